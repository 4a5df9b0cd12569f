//! A host in a storm: guests start, fail, reboot and are killed at once while reconcile runs, also killed, and somebody
//! looks on who is another process and knows nothing of the code.
//!
//! `STORM_GUESTS` toolstacks, 24 unless set, start a guest each at the same moment, and then others at any time, for
//! `STORM_SECONDS`, 5 unless set.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod observer;
    pub(crate) mod xenstored;
}

use std::env;
use std::fs::{self, File};
use std::io;
use std::os::fd::AsFd as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use common::host::{Disk, Host, Started, UNUSED, cdrom, label, qdisk};
use common::observer::{Config, Observer};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::Signal;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use svirt_interpose::xenstore::Connection;

/// How many VMs each toolstack has: it may start one again before it has ended.
const VMS: u16 = 2;

const WRAPPER: &str = env!("CARGO_BIN_EXE_svirt-interpose");

/// How often something happened, and how often at once.
#[derive(Default)]
struct Count {
    all: AtomicU32,
    now: AtomicU32,
    most: AtomicU32,
}

impl Count {
    fn begin(&self) {
        self.all.fetch_add(1, Relaxed);
        self.most.fetch_max(self.now.fetch_add(1, Relaxed) + 1, Relaxed);
    }

    fn end(&self) {
        self.now.fetch_sub(1, Relaxed);
    }

    fn tell(&self) -> String {
        format!("{} (at most {} at once)", self.all.load(Relaxed), self.most.load(Relaxed))
    }
}

/// The host, and what everybody knows of it.
struct Storm {
    host: Host,
    toolstacks: u16,
    /// Disks that several VMs want, to write or to read.
    wanted: Vec<PathBuf>,
    next: AtomicU16,
    /// Held by who writes a domain into XenStore: at once, they would spend the storm on each other's transactions.
    turn: Mutex<()>,
    /// Whether first launches are let through the gate; all launches are first ones until then.
    is_open: AtomicBool,
    over: AtomicBool,
    launches: Count,
    guests: Count,
    killed: AtomicU32,
    late: AtomicU32,
    reconciles: AtomicU32,
}

impl Storm {
    fn new(toolstacks: u16) -> Self {
        let host = Host::new();
        host.set("current", "system_u:system_r:svirt_interpose_t:s0-s0:c0.c39");
        fs::create_dir(host.path("domains")).unwrap();
        mkfifo(&host.path("gate"), Mode::S_IRWXU).unwrap();
        let wanted = (0..=toolstacks / 4).map(|number| host.image(&format!("wanted-{number}"))).collect();
        let (launches, guests, killed, late, reconciles) = <_>::default();
        Self {
            host,
            toolstacks,
            wanted,
            next: 1.into(),
            turn: Mutex::default(),
            is_open: false.into(),
            over: false.into(),
            launches,
            guests,
            killed,
            late,
            reconciles,
        }
    }

    /// Starts and ends guests until the storm is over, and all of its own then.
    fn toolstack(&self, number: u16) {
        let mut random = StdRng::seed_from_u64(number.into());
        let own: Vec<_> = (0..VMS).map(|vm| self.host.image(&format!("{number}-{vm}.raw"))).collect();
        let mut running: Vec<(u16, Started)> = Vec::new();
        while !self.over.load(Relaxed) {
            let vm = random.random_range(0..VMS);
            let mut config = Config {
                vm: format!("vm-{number}-{vm}"),
                writes: vec![own[usize::from(vm)].clone()],
                reads: Vec::new(),
            };
            for disk in [(); 3].map(|()| &self.wanted[random.random_range(0..self.wanted.len())]) {
                match random.random_range(0..8) {
                    0 => config.writes.push(disk.clone()),
                    1..=3 => config.reads.push(disk.clone()),
                    _ => {}
                }
            }
            running.extend(self.guest(&config, &mut random));
            self.stay(Duration::from_millis(random.random_range(0..40 * u64::from(self.toolstacks))));
            while running.len() > 1 || !running.is_empty() && random.random_range(0..4) == 0 {
                let (domid, qemu) = running.swap_remove(random.random_range(0..running.len()));
                self.end(domid, qemu, &mut random);
            }
        }
        for (domid, qemu) in running {
            self.end(domid, qemu, &mut random);
        }
    }

    /// Leaves the others some of the host: the more there are, the more.
    fn stay(&self, time: Duration) {
        let start = Instant::now();
        while start.elapsed() < time && !self.over.load(Relaxed) {
            sleep(Duration::from_millis(100).min(time));
        }
    }

    /// Lets the first launches of all toolstacks go at once. Closed with what this returns.
    fn open_the_gate(&self) -> File {
        while self.launches.now.load(Relaxed) < self.toolstacks.into() && !self.over.load(Relaxed) {
            sleep(Duration::from_millis(20));
        }
        // to read, too: does not wait for those who read
        let gate = File::options().read(true).write(true).open(self.host.path("gate")).unwrap();
        self.is_open.store(true, Relaxed);
        gate
    }

    /// A launch; a first one waits at the gate, a process already, until it is opened.
    fn launch(&self, domid: u16, is_first: bool) -> Started {
        let mut command = self.host.command(if is_first { "/bin/sh" } else { WRAPPER });
        if is_first {
            command.args(["-c", ": <\"$0\" && exec \"$@\""]).arg(self.host.path("gate")).arg(WRAPPER);
        }
        command.args(["-xen-domid", &domid.to_string()]);
        let launch = self.host.run(command);
        self.launches.begin();
        while !self.is_open.load(Relaxed) {
            sleep(Duration::from_millis(20));
        }
        launch
    }

    /// One guest from its domain's birth to its running device model, if it gets that far.
    fn guest(&self, config: &Config, random: &mut StdRng) -> Option<(u16, Started)> {
        let domid = self.next.fetch_add(1, Relaxed);
        let disks: Vec<Disk> = (768..)
            .zip(&config.writes)
            .map(|(devid, path)| qdisk(devid, path))
            .chain((5632..).zip(&config.reads).map(|(devid, path)| cdrom(devid, path)))
            .collect();
        config.save(&self.host.path(""), domid);
        {
            let _turn = self.turn.lock().unwrap();
            self.host.domain(domid, &config.vm, &disks);
        }
        if self.over.load(Relaxed) {
            self.host.destroy(domid);
            return None;
        }
        let is_first = !self.is_open.load(Relaxed);
        let launch = self.launch(domid, is_first);
        // some when they have begun already
        let slowness = if is_first { self.toolstacks.into() } else { 1 };
        let moment = Duration::from_millis(random.random_range(0..60 * slowness));
        let expected: &[&str] = match random.random_range(0..12) {
            0 | 1 => {
                sleep(moment);
                launch.signal(Signal::SIGKILL);
                self.killed.fetch_add(1, Relaxed);
                &["in use by", ""]
            }
            2 => {
                sleep(moment);
                launch.signal(Signal::SIGHUP);
                &["in use by", "stopped by SIGHUP", ""]
            }
            3 => {
                sleep(moment);
                self.host.destroy(domid);
                &["in use by", "was destroyed while", "does not exist", "recorded", "cannot tell ", ""]
            }
            _ => &["in use by"],
        };
        let outcome = launch.outcome();
        self.launches.end();
        match outcome {
            Ok(qemu) => {
                self.guests.begin();
                Some((domid, qemu))
            }
            Err(refusal) => {
                let said: String = refusal.said.lines().filter(|line| !line.contains("warning: ")).collect();
                // xenstored serves one after the other, and a launch gives up in time for its toolstack to be told
                if said.contains(": xenstored did not ") {
                    self.late.fetch_add(1, Relaxed);
                    self.host.destroy(domid);
                    return None;
                }
                let matches = |text: &&str| if text.is_empty() { said.is_empty() } else { said.contains(*text) };
                assert!(expected.iter().any(matches), "domain {domid}: {said}");
                self.host.destroy(domid);
                None
            }
        }
    }

    fn end(&self, domid: u16, qemu: Started, random: &mut StdRng) {
        self.guests.end();
        match random.random_range(0..3) {
            0 => drop(qemu),
            1 => {
                self.host.destroy(domid);
                sleep(Duration::from_millis(random.random_range(0..50)));
                drop(qemu);
            }
            _ => {
                drop(qemu);
                sleep(Duration::from_millis(random.random_range(0..50)));
            }
        }
        self.host.destroy(domid);
    }

    /// Reconciles all along; some are killed.
    fn reconciler(&self) {
        let mut random = StdRng::seed_from_u64(99);
        while !self.over.load(Relaxed) {
            let mut command = self.host.command(env!("CARGO_BIN_EXE_svirtctl"));
            let mut child = command.arg("reconcile").stdout(Stdio::null()).spawn().unwrap();
            if random.random_range(0..3) == 0 {
                sleep(Duration::from_millis(random.random_range(0..30)));
                child.kill().unwrap();
            }
            child.wait().unwrap();
            self.reconciles.fetch_add(1, Relaxed);
        }
    }

    /// Has another process look on until this one closes its input; it says how often it looked.
    fn observed(&self) {
        let observer = Command::new(env::current_exe().unwrap())
            .args(["--ignored", "--exact", "look_on", "--nocapture"])
            .env("STORM_DIRECTORY", self.host.path(""))
            .env("STORM_TOOLSTACKS", std::process::id().to_string())
            .env("XENSTORED_PATH", self.host.xenstored.socket())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn();
        let mut observer = observer.unwrap();
        while !self.over.load(Relaxed) && observer.try_wait().unwrap().is_none() {
            sleep(Duration::from_millis(20));
        }
        let output = observer.wait_with_output().unwrap();
        let [said, failed] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        assert!(output.status.success(), "{said}{failed}");
        println!("{}", said.lines().find(|line| line.starts_with("count: ")).unwrap());
    }
}

#[test]
fn guests_are_kept_apart_in_a_storm() {
    let number = |name, default| env::var(name).map_or(default, |text| text.parse::<u16>().unwrap());
    let (seconds, guests) = (number("STORM_SECONDS", 5), number("STORM_GUESTS", 24));
    let storm = Storm::new(guests);
    // whoever fails ends the storm for all
    let run = |part: &dyn Fn()| {
        let result = panic::catch_unwind(AssertUnwindSafe(part));
        storm.over.store(true, Relaxed);
        result.unwrap_or_else(|cause| panic::resume_unwind(cause));
    };
    thread::scope(|scope| {
        for number in 0..guests {
            let (run, storm) = (&run, &storm);
            scope.spawn(move || run(&|| storm.toolstack(number)));
        }
        scope.spawn(|| run(&|| storm.reconciler()));
        scope.spawn(|| run(&|| storm.observed()));
        let _gate = storm.open_the_gate();
        let start = Instant::now();
        while start.elapsed() < Duration::from_secs(seconds.into()) && !storm.over.load(Relaxed) {
            sleep(Duration::from_millis(20));
        }
        storm.over.store(true, Relaxed);
    });
    let [launches, guests] = [&storm.launches, &storm.guests].map(Count::tell);
    let [killed, late, reconciles] = [&storm.killed, &storm.late, &storm.reconciles].map(|count| count.load(Relaxed));
    println!("count: launches: {launches}, {killed} of them killed, {late} that gave up waiting for xenstored");
    println!("count: guests: {guests}; reconciles: {reconciles}");

    let output = storm.host.svirtctl(&["reconcile"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    for directory in ["claims", "objects"] {
        let left = fs::read_dir(storm.host.path("state").join(directory)).unwrap();
        assert_eq!(left.count(), 0, "{directory}");
    }
    for entry in fs::read_dir(storm.host.path("images")).unwrap() {
        assert_eq!(label(&entry.unwrap().path()), UNUSED);
    }
    let observer = Observer::new(storm.host.path(""), storm.host.store(), std::process::id());
    assert!(observer.keys().is_empty());
}

#[test]
#[ignore = "the observer of guests_are_kept_apart_in_a_storm"]
fn look_on() {
    let directory = PathBuf::from(env::var_os("STORM_DIRECTORY").unwrap());
    let toolstacks = env::var("STORM_TOOLSTACKS").unwrap().parse().unwrap();
    let socket = PathBuf::from(env::var_os("XENSTORED_PATH").unwrap());
    let store = Connection::connect(&socket, Duration::from_secs(600)).unwrap();
    let mut observer = Observer::new(directory, store, toolstacks);
    let input = io::stdin();
    let mut input = [PollFd::new(input.as_fd(), PollFlags::POLLIN)];
    let (mut looks, mut most) = (0, 0);
    while poll(&mut input, PollTimeout::ZERO).unwrap() == 0 {
        most = most.max(observer.look());
        looks += 1;
    }
    println!("count: the observer looked {looks} times, at up to {most} running guests at once");
}
