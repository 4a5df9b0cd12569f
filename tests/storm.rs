//! A host in a storm: guests start, fail, reboot and are killed at once while reconcile runs, also killed, and somebody
//! looks on who knows nothing of the code: at processes, labels, XenStore and claims.
//!
//! It lasts `STORM_SECONDS`, 5 unless set.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod xenstored;
}

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::panic::{self, AssertUnwindSafe};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU16, AtomicU32, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use common::host::{CONTENT, Disk, Host, Started, UNUSED, cdrom, compiled, label, qdisk};
use nix::sys::signal::Signal;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};
use xenstore_rs::Xs as _;

/// Toolstacks that start guests at once, and VMs of each.
const TOOLSTACKS: u16 = 6;
const VMS: u16 = 6;

/// How many guests of one toolstack run at once.
const RUNNING: usize = 6;

/// What a domain was given.
#[derive(Clone)]
struct Config {
    vm: String,
    writes: Vec<PathBuf>,
    reads: Vec<PathBuf>,
}

/// The host, and what everybody knows of it.
struct Storm {
    host: Host,
    /// Disks that several VMs want, to write or to read.
    wanted: Vec<PathBuf>,
    /// Every domain there ever was.
    domains: Mutex<BTreeMap<u16, Config>>,
    next: AtomicU16,
    over: AtomicBool,
    launches: AtomicU32,
    started: AtomicU32,
    reconciles: AtomicU32,
    looks: AtomicU32,
}

impl Storm {
    fn new() -> Self {
        let host = Host::new();
        host.set("current", "system_u:system_r:svirt_interpose_t:s0-s0:c0.c39");
        let wanted = (0..6).map(|number| host.image(&format!("wanted-{number}"))).collect();
        Self {
            host,
            wanted,
            domains: Mutex::default(),
            next: 1.into(),
            over: false.into(),
            launches: 0.into(),
            started: 0.into(),
            reconciles: 0.into(),
            looks: 0.into(),
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
            for disk in &self.wanted {
                match random.random_range(0..20) {
                    0 => config.writes.push(disk.clone()),
                    1..=4 => config.reads.push(disk.clone()),
                    _ => {}
                }
            }
            running.extend(self.guest(&config, &mut random));
            while running.len() > RUNNING || !running.is_empty() && random.random_range(0..4) == 0 {
                let (domid, qemu) = running.swap_remove(random.random_range(0..running.len()));
                self.end(domid, qemu, &mut random);
            }
        }
        for (domid, qemu) in running {
            self.end(domid, qemu, &mut random);
        }
    }

    /// One guest from its domain's birth to its running device model, if it gets that far.
    fn guest(&self, config: &Config, random: &mut StdRng) -> Option<(u16, Started)> {
        let domid = self.next.fetch_add(1, Relaxed);
        let disks: Vec<Disk> = (768..)
            .zip(&config.writes)
            .map(|(devid, path)| qdisk(devid, path))
            .chain((5632..).zip(&config.reads).map(|(devid, path)| cdrom(devid, path)))
            .collect();
        self.domains.lock().unwrap().insert(domid, config.clone());
        self.host.domain(domid, &config.vm, &disks);
        self.launches.fetch_add(1, Relaxed);
        let launch = self.host.start(&["-xen-domid", &domid.to_string()]);
        let moment = Duration::from_millis(random.random_range(0..60));
        let expected: &[&str] = match random.random_range(0..12) {
            0 | 1 => {
                sleep(moment);
                launch.signal(Signal::SIGKILL);
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
        match launch.outcome() {
            Ok(qemu) => {
                self.started.fetch_add(1, Relaxed);
                Some((domid, qemu))
            }
            Err(refusal) => {
                let said: String = refusal.said.lines().filter(|line| !line.contains("warning: ")).collect();
                let matches = |text: &&str| if text.is_empty() { said.is_empty() } else { said.contains(*text) };
                assert!(expected.iter().any(matches), "domain {domid}: {said}");
                self.host.destroy(domid);
                None
            }
        }
    }

    fn end(&self, domid: u16, qemu: Started, random: &mut StdRng) {
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

    /// Looks on all along.
    fn observer(&self) {
        while !self.over.load(Relaxed) {
            self.look().check();
            self.looks.fetch_add(1, Relaxed);
        }
    }

    /// What is seen between two looks at the device models, and at the keys, was so while those were there that are in
    /// both.
    fn look(&self) -> Seen {
        let (running, published) = (self.device_models(), self.keys());
        let images = fs::read_dir(self.host.path("images")).unwrap().map(|entry| entry.unwrap().path());
        let labels = images.map(|path| (path.clone(), label(&path))).collect();
        let claim = |set: &String| fs::read_to_string(self.host.path("state/claims").join(set)).unwrap_or_default();
        let claims = running.values().map(|set| (set.clone(), claim(set))).collect();
        let (still_running, still_published) = (self.device_models(), self.keys());
        let keys = published.iter().filter(|(domid, set)| still_published.get(domid) == Some(set));
        Seen {
            keys: keys.map(|(domid, set)| (*domid, set.clone())).collect(),
            running: running.into_iter().filter(|(process, _)| still_running.contains_key(process)).collect(),
            labels,
            claims,
            domains: self.domains.lock().unwrap().clone(),
        }
    }

    /// The device models that run, by `/proc`, each with the set it was entered with.
    fn device_models(&self) -> BTreeMap<Process, String> {
        let qemu = compiled("qemu");
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let device_model = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let fields: Vec<&str> = status.rsplit(')').next()?.split_whitespace().collect();
            if fields[1] != std::process::id().to_string() || fs::read_link(format!("/proc/{pid}/exe")).ok()? != qemu {
                return None;
            }
            let args = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let domid = args.split('\0').nth(2)?.parse().ok()?;
            let context = fs::read_to_string(self.host.path(&format!("exec.{pid}"))).ok()?;
            let set = context.strip_prefix("system_u:system_r:svirt_xen_t:s0:")?.to_owned();
            Some((Process { pid, start: fields[19].parse().ok()?, domid }, set))
        };
        pids.filter_map(device_model).collect()
    }

    fn keys(&self) -> BTreeMap<u16, String> {
        let store = self.host.store();
        let domids = store.directory("/local/domain").unwrap();
        let key = |domid: &str| Some((domid.parse().ok()?, self.host.key(domid.parse().ok()?)?));
        domids.iter().filter_map(|domid| key(domid)).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: u32,
    start: u64,
    domid: u16,
}

/// What was so at one time.
struct Seen {
    running: BTreeMap<Process, String>,
    keys: BTreeMap<u16, String>,
    labels: BTreeMap<PathBuf, String>,
    claims: BTreeMap<String, String>,
    domains: BTreeMap<u16, Config>,
}

impl Seen {
    fn check(&self) {
        for (process, set) in &self.running {
            let Process { pid, start, domid } = process;
            self.check_disks(*domid, set);
            let (claim, vm) = (&self.claims[set], &self.domains[domid].vm);
            let holder = format!(" vm={vm} pid={pid} start={start} ");
            assert!(claim.contains(&holder), "domain {domid} runs at {set} without holding it: {claim:?}");
            if let Some(key) = self.keys.get(domid) {
                assert_eq!(key, set, "domain {domid} runs at another set than is published");
            }
        }
        self.check_apart(&self.running.iter().map(|(process, set)| (process.domid, set)).collect::<Vec<_>>());
        self.check_apart(&self.keys.iter().map(|(domid, set)| (*domid, set)).collect::<Vec<_>>());
    }

    /// That a guest has its disks, and no other.
    fn check_disks(&self, domid: u16, set: &str) {
        let Config { vm, writes, reads } = &self.domains[&domid];
        let own = format!("system_u:object_r:svirt_xen_image_t:s0:{set}");
        for path in writes {
            assert_eq!(self.labels[path], own, "domain {domid} writes {}", path.display());
        }
        for path in reads {
            // its VM may have it to write in another domain
            let label = &self.labels[path];
            assert!(label == CONTENT || *label == own, "domain {domid} reads {}: {label}", path.display());
        }
        for (path, _) in self.labels.iter().filter(|(_, label)| **label == own) {
            let mut vms = self.domains.values().filter(|config| config.vm == *vm);
            let is_its = vms.any(|Config { writes, reads, .. }| writes.contains(path) || reads.contains(path));
            assert!(is_its, "{} has the label of {vm}, {own}", path.display());
        }
    }

    /// That no two of them are comparable, but of one VM.
    fn check_apart(&self, sets: &[(u16, &String)]) {
        for (index, (domid, set)) in sets.iter().enumerate() {
            for (other, others) in &sets[..index] {
                let same_vm = self.domains[domid].vm == self.domains[other].vm;
                assert!(same_vm || !comparable(set, others), "domain {domid} at {set}, {other} at {others}");
            }
        }
    }
}

/// Whether one of two sets is within the other.
fn comparable(one: &str, other: &str) -> bool {
    let set = |text: &str| text.split(',').map(String::from).collect::<BTreeSet<_>>();
    set(one).is_subset(&set(other)) || set(other).is_subset(&set(one))
}

#[test]
fn guests_are_kept_apart_in_a_storm() {
    let seconds = env::var("STORM_SECONDS").map_or(5, |text| text.parse().unwrap());
    let storm = Storm::new();
    let start = Instant::now();
    // whoever fails ends the storm for all
    let run = |part: &dyn Fn()| {
        let result = panic::catch_unwind(AssertUnwindSafe(part));
        storm.over.store(true, Relaxed);
        result.unwrap_or_else(|cause| panic::resume_unwind(cause));
    };
    thread::scope(|scope| {
        for number in 0..TOOLSTACKS {
            let (run, storm) = (&run, &storm);
            scope.spawn(move || run(&|| storm.toolstack(number)));
        }
        scope.spawn(|| run(&|| storm.reconciler()));
        scope.spawn(|| run(&|| storm.observer()));
        while start.elapsed() < Duration::from_secs(seconds) && !storm.over.load(Relaxed) {
            sleep(Duration::from_millis(20));
        }
        storm.over.store(true, Relaxed);
    });
    let [launches, started, reconciles, looks] =
        [&storm.launches, &storm.started, &storm.reconciles, &storm.looks].map(|count| count.load(Relaxed));
    println!("{launches} launches, {started} of them started a guest; {reconciles} reconciles, {looks} looks");
    assert!(started > 0 && reconciles > 0 && looks > 0);

    let output = storm.host.svirtctl(&["reconcile"]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    for directory in ["claims", "objects"] {
        let left = fs::read_dir(storm.host.path("state").join(directory)).unwrap();
        assert_eq!(left.count(), 0, "{directory}");
    }
    for entry in fs::read_dir(storm.host.path("images")).unwrap() {
        assert_eq!(label(&entry.unwrap().path()), UNUSED);
    }
    assert_eq!(storm.keys(), BTreeMap::new());
}
