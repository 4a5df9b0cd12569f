//! Whole launches, from the wrapper's exec to QEMU's.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Output};
use std::time::Instant;

use xenstore_rs::Xs as _;

use crate::common::host::{Disk, Host, UNUSED, qdisk, set_label};
use crate::common::xenstored::Daemon;
use crate::programs::program;
use crate::rounds::{Times, interleave};

const WRAPPER: &str = env!("CARGO_BIN_EXE_svirt-interpose");

/// A host with guests that were built and not yet launched.
struct Guests {
    host: Host,
    count: u16,
}

/// In memory, as the nodes of devices and their labels are: no launch waits for the disk. The claims are there as well,
/// as ext4 is slow to make what was removed a moment ago, and each round does.
const DEVICES: &str = "/dev/shm";

const FILES: &str = "/var/tmp";

impl Guests {
    /// `count` guests of so many disks below a directory.
    fn new(count: u16, disks: u32, directory: &str) -> Self {
        let host = Host::below(Path::new(directory), Daemon::C);
        host.configure(&format!("qemu = '{}'", program("target").display()));
        for domid in 1..=count {
            let disks: Vec<Disk> =
                (0..disks).map(|disk| qdisk(disk, &host.image(&format!("{domid}.{disk}")))).collect();
            host.domain(domid, &format!("00000000-0000-0000-0000-{domid:012}"), &disks);
        }
        Self { host, count }
    }

    /// As before the first launch, the state directory apart, which a host makes once.
    fn reset(&self) {
        for directory in ["state/claims", "state/objects"] {
            for entry in fs::read_dir(self.host.path(directory)).into_iter().flatten() {
                fs::remove_file(entry.unwrap().path()).unwrap();
            }
        }
        for image in fs::read_dir(self.host.path("images")).unwrap() {
            set_label(&image.unwrap().path(), UNUSED);
        }
        let store = self.host.store();
        for domid in 1..=self.count {
            _ = store.rm(&format!("/local/domain/{domid}/selinux-mcs"));
        }
    }

    /// The microseconds it takes all guests to run this at once, and the most memory of one, in KiB. Everything runs
    /// in the same environment, the stand-in for SELinux included.
    fn run(&self, words: &[&str]) -> (f64, u64) {
        self.reset();
        let mut command = self.host.command(program("spawn"));
        let output = command.arg(self.count.to_string()).args(words).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let said = String::from_utf8(output.stdout).unwrap();
        let (nanoseconds, memory) = said.trim_end().split_once(' ').unwrap();
        (nanoseconds.parse::<f64>().unwrap() / 1e3, memory.parse().unwrap())
    }

    fn time(&self, words: &[&str]) -> f64 {
        self.run(words).0
    }
}

/// The contestants' argv.
struct Words {
    target: String,
    plain: String,
}

impl Words {
    fn new() -> Self {
        let path = |name| program(name).to_str().unwrap().to_owned();
        Self { target: path("target"), plain: path("plain") }
    }

    fn bare(&self) -> [&str; 1] {
        [&self.target]
    }

    fn plain(&self) -> [&str; 2] {
        [&self.plain, &self.target]
    }
}

/// QEMU's argv, for each guest its own.
const LAUNCH: [&str; 5] = [WRAPPER, "-xen-domid", "@", "-name", "h"];

pub(crate) fn one() {
    let words = Words::new();
    let [device, file] = [DEVICES, FILES].map(|directory| Guests::new(1, 1, directory));
    let [bare, plain, on_device, on_file, synced] = interleave(
        201,
        [
            &mut || device.time(&words.bare()),
            &mut || device.time(&words.plain()),
            &mut || device.time(&LAUNCH),
            &mut || file.time(&LAUNCH),
            &mut || sync(&file.host.path("")),
        ],
    );
    println!("launch: one guest of one disk, to the end of what is executed in QEMU's place\n");
    println!("                                                   us   of bare      of C");
    let row = |what, times: &Times| {
        println!("  {what:42} {:8.0} {:9.2} {:9.2}", times.median(), times.over(&bare), times.over(&plain));
    };
    row("bare: the target alone", &bare);
    row("C: a program linked with libselinux", &plain);
    row("svirt-interpose, the disk a device", &on_device);
    row("svirt-interpose, the disk a file", &on_file);
    row("a file on that filesystem, synced", &synced);
    println!();
}

/// The microseconds it takes to put a small new file on the disk: what a launch waits for before it gives a label that
/// outlives a power cut.
fn sync(directory: &Path) -> f64 {
    let path = directory.join("synced");
    let start = Instant::now();
    fs::write(&path, [b'x'; 400]).unwrap();
    File::open(&path).unwrap().sync_data().unwrap();
    let took = start.elapsed();
    fs::remove_file(path).unwrap();
    took.as_secs_f64() * 1e6
}

pub(crate) fn counts() {
    let (guests, words) = (Guests::new(1, 1, DEVICES), Words::new());
    println!("counts: of one launch until it executes QEMU\n");
    println!("                                         system calls   instructions   memory KiB   binary KiB");
    for (what, words) in [("a C program linked with libselinux", &words.plain()[..]), ("svirt-interpose", &LAUNCH)] {
        let (_, memory) = guests.run(words);
        let words: Vec<&str> = words.iter().map(|word| if *word == "@" { "1" } else { word }).collect();
        println!(
            "  {what:38} {:12} {:14} {memory:12} {:12}",
            system_calls(&guests, &words),
            instructions(&guests, &words),
            fs::metadata(words[0]).unwrap().len() / 1024
        );
    }
    println!();
}

fn system_calls(guests: &Guests, words: &[&str]) -> u32 {
    guests.reset();
    let log = guests.host.path("strace");
    let mut strace = Command::new("strace");
    for (name, value) in guests.host.command("").get_envs() {
        // a variable without a value is taken away
        strace.arg("-E").arg(value.map_or_else(|| name.to_owned(), |value| [name, value].join("=".as_ref())));
    }
    succeeded(&strace.arg("-o").arg(&log).args(words).output().unwrap());
    let log = fs::read_to_string(log).unwrap();
    // the first is its own exec, the second QEMU's
    let before = |line: &&str| !line.starts_with("execve(");
    log.lines().skip(1).take_while(before).map(|_| 1).sum()
}

fn instructions(guests: &Guests, words: &[&str]) -> u64 {
    guests.reset();
    let log = guests.host.path("callgrind");
    let option = format!("--callgrind-out-file={}", log.display());
    let mut valgrind = guests.host.command("valgrind");
    succeeded(
        &valgrind.args(["-q", "--tool=callgrind", "--dump-before=execv*", &option]).args(words).output().unwrap(),
    );
    let dump = fs::read_to_string(log.with_extension("1")).unwrap();
    dump.lines().find_map(|line| line.strip_prefix("totals: ")).unwrap().parse().unwrap()
}

fn succeeded(output: &Output) {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}

pub(crate) fn storm() {
    let (guests, words) = (Guests::new(64, 1, DEVICES), Words::new());
    let [bare, plain, launch] = interleave(
        11,
        [&mut || guests.time(&words.bare()), &mut || guests.time(&words.plain()), &mut || guests.time(&LAUNCH)],
    );
    println!("storm: 64 guests of one disk started at once\n");
    for (what, times) in [("bare", &bare), ("a C program linked with libselinux", &plain), ("svirt-interpose", &launch)]
    {
        println!("  {what:38} {:8.0} a second {:8.2} of bare", 64e6 / times.median(), times.over(&bare));
    }
    println!();
}

pub(crate) fn disks() {
    let counts = [1, 16, 128];
    let guests = counts.map(|disks| Guests::new(1, disks, DEVICES));
    let [one, some, many] = &guests;
    let times = interleave(31, [&mut || one.time(&LAUNCH), &mut || some.time(&LAUNCH), &mut || many.time(&LAUNCH)]);
    println!("disks: one guest of many disks\n");
    println!("    disks         us   us a disk   system calls a disk");
    let words = LAUNCH.map(|word| if word == "@" { "1" } else { word });
    let calls = guests.each_ref().map(|guests| system_calls(guests, &words));
    for ((disks, time), count) in counts.iter().zip(&times).zip(&calls) {
        let further = f64::from(disks - 1);
        print!("  {disks:7} {:10.0}", time.median());
        if further > 0.0 {
            let per_disk = (time.median() - times[0].median()) / further;
            let calls_each = f64::from(count - calls[0]) / further;
            print!(" {per_disk:11.0} {calls_each:21.1}");
        }
        println!();
    }
    println!();
}
