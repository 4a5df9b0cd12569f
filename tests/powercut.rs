//! The host's power is cut while guests start, fail, reboot and end, at any write of its disk, and in every way that the
//! disk may then have kept some writes and lost others. Claims are on one filesystem and images on another, both ext4.
//!
//! `POWER_CUTS` is how many moments are looked at, spread evenly over all of them: 60 unless set.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod mount;
    pub(crate) mod recorder;
    pub(crate) mod xenstored;
}

use std::collections::BTreeMap;
use std::env;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::PermissionsExt as _;
use std::panic::{self, AssertUnwindSafe};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread::{self, sleep};
use std::time::Duration;

use common::host::{Disk, Host, Started, cdrom, label, level, qdisk, set_label};
use common::mount::Mount;
use common::recorder::Recorder;
use nix::sys::signal::Signal;
use nix::unistd::syncfs;

/// The size of each of the two filesystems.
const SIZE: u64 = 6 << 20;

/// Where they are on the host, in the order in which they are on the disk.
const PLACES: [&str; 2] = ["state", "images"];

/// Two filesystems, made on a disk.
fn make_filesystems(disk: &Path) {
    File::create(disk).unwrap().set_len(SIZE * 2).unwrap();
    for offset in [0, SIZE] {
        let status = Command::new("mke2fs")
            .args(["-q", "-t", "ext4", "-b", "1024", "-J", "size=1", "-E"])
            .arg(format!("offset={offset},lazy_itable_init=0,nodiscard"))
            .arg(disk)
            .arg(format!("{}k", SIZE / 1024))
            .status();
        assert!(status.unwrap().success());
    }
}

fn mount_filesystems(host: &Host, disk: &Path) -> Vec<Mount> {
    let mount = |(place, offset)| {
        let options = format!("loop,noatime,offset={offset},sizelimit={SIZE}");
        Mount::at(&host.path(place), &["-t", "ext4", "-o", &options, disk.to_str().unwrap()])
    };
    PLACES.into_iter().zip([0, SIZE]).map(mount).collect()
}

/// Commits what is under way on either filesystem again and again, as whatever else runs on a host does: with the data
/// that belong to it, or before them.
fn commit(host: &Host, is_over: &AtomicBool) {
    let others = PLACES.map(|place| File::create(host.path(place).join("other")).unwrap());
    for turn in (0..6).cycle().take_while(|_| !is_over.load(Relaxed)) {
        match (turn, &others[turn % 2]) {
            (0 | 1, mut other) => other.write_all(b".").and_then(|()| other.sync_data()).unwrap(),
            (2 | 3, other) => syncfs(other).unwrap(),
            _ => sleep(Duration::from_millis(2)),
        }
    }
}

/// A launch, slow enough for all that may come between two of its steps.
fn start(host: &Host, domid: u16) -> Started {
    let mut command = host.command("strace");
    command.args(["-D", "-o", "/dev/null", "-e", "inject=all:delay_exit=200"]);
    command.arg(env!("CARGO_BIN_EXE_svirt-interpose")).args(["-xen-domid", &domid.to_string()]);
    host.run(command)
}

fn launch(host: &Host, domid: u16, vm: &str, disks: &[Disk]) -> Started {
    host.domain(domid, vm, disks);
    start(host, domid).outcome().unwrap()
}

/// All that becomes of claims.
fn story(host: &Host, images: &[PathBuf]) {
    let [fresh, used, read, half, other, added, iso, shared] = images else { panic!("{images:?}") };
    // guests that ran: their disks go to the next
    drop(launch(host, 1, "vm1", &[qdisk(768, used), cdrom(5632, read)]));
    host.destroy(1);
    let reader = launch(host, 2, "vm2", &[cdrom(5632, shared)]);
    let disks = [qdisk(768, fresh), qdisk(832, used), qdisk(896, read), cdrom(5632, iso), cdrom(5696, shared)];
    let first = launch(host, 3, "vm3", &disks);
    // one that fails after it has labelled
    host.set("denied", other.to_str().unwrap());
    host.domain(4, "vm4", &[qdisk(768, half), qdisk(832, other), cdrom(5632, shared)]);
    assert!(start(host, 4).outcome().is_err());
    host.destroy(4);
    host.set("denied", "none");
    // a reboot, with a disk more, and so often before that the claim is written anew
    drop(first);
    host.held_before(&host.key(3).unwrap());
    host.destroy(3);
    let second = launch(host, 5, "vm3", &[&disks[..], &[qdisk(960, added)]].concat());
    // killed in the middle
    host.set("pause", other.to_str().unwrap());
    host.domain(6, "vm6", &[qdisk(768, half), qdisk(832, other)]);
    let mut killed = start(host, 6);
    killed.until(|| host.path("paused").exists());
    killed.signal(Signal::SIGKILL);
    drop(killed);
    host.destroy(6);
    host.go_on();
    // and the end
    assert!(host.svirtctl(&["reconcile"]).status.success());
    drop((second, reader));
    for domid in [2, 5] {
        host.destroy(domid);
    }
    assert!(host.svirtctl(&["reconcile"]).status.success());
}

/// What the host finds when its power is back.
fn look(host: &Host, before: &BTreeMap<PathBuf, String>, is_first_to_launch: bool, cut: &str) {
    for path in before.keys() {
        if let Some(set) = level(&label(path)).strip_prefix("s0:") {
            let claim = host.path("state/claims").join(set);
            assert!(claim.exists(), "{cut}: {} has {set}, which anybody may get", path.display());
        }
    }
    if is_first_to_launch {
        // a guest that starts by itself
        let disks: Vec<_> = (768..).step_by(64).zip(before.keys()).map(|(devid, path)| qdisk(devid, path)).collect();
        host.domain(9, "vm9", &disks);
        let qemu = host.launch(9).unwrap_or_else(|refusal| panic!("{cut}: {}", refusal.said));
        let own = format!("s0:{}", host.key(9).unwrap());
        assert!(before.keys().all(|path| level(&label(path)) == own), "{cut}");
        host.destroy(9);
        drop(qemu);
    }
    let output = host.svirtctl(&["reconcile"]);
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{cut}: {said}");
    let after = before.keys().map(|path| (path.clone(), label(path))).collect();
    assert_eq!(*before, after, "{cut}: {said}");
    for directory in ["claims", "objects"] {
        let left = fs::read_dir(host.path("state").join(directory)).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{cut}: {directory}: {said}");
    }
}

/// The story under a recorder, and the host with it once it is over; `beside` runs meanwhile.
fn cut_everywhere(beside: fn(&Host, &AtomicBool)) {
    let mut host = Host::new();
    let _memory = Mount::tmpfs(&host.path("memory"), "size=512m");
    let base = host.path("memory/base");
    make_filesystems(&base);
    fs::create_dir(host.path("state")).unwrap();
    let recorder = Recorder::start(&base);
    let mounts = mount_filesystems(&host, &recorder.disk());
    fs::set_permissions(host.path("state"), fs::Permissions::from_mode(0o700)).unwrap();
    let images: Vec<_> =
        ["fresh", "used", "read", "half", "other", "added", "iso", "shared"].map(|name| host.image(name)).into();
    set_label(&images[1], "system_u:object_r:virt_image_t:s0");
    let before: BTreeMap<_, _> = images.iter().map(|path| (path.clone(), label(path))).collect();
    for place in PLACES {
        syncfs(File::open(host.path(place)).unwrap()).unwrap();
    }
    let start = recorder.so_far();
    let is_over = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| beside(&host, &is_over));
        let result = panic::catch_unwind(AssertUnwindSafe(|| story(&host, &images)));
        is_over.store(true, Relaxed);
        result.unwrap_or_else(|cause| panic::resume_unwind(cause));
    });
    drop(mounts);
    let recording = recorder.stop();

    let all = recording.cuts(start);
    let wanted: usize = env::var("POWER_CUTS").map_or(60, |text| text.parse().unwrap());
    let cuts: Vec<_> = all.iter().step_by((all.len() / wanted).max(1)).collect();
    println!("count: power cut at {} of {} moments", cuts.len(), all.len());
    host.reboot();
    let left = host.path("memory/left");
    let mut number = 0;
    recording.replay(&base, &cuts, |disk, cut| {
        fs::write(&left, disk).unwrap();
        let _mounted = mount_filesystems(&host, &left);
        number += 1;
        look(&host, &before, number % 3 == 0, cut);
    });
}

#[test]
fn a_power_cut_loses_nothing() {
    cut_everywhere(|_, _| {});
}

#[test]
fn a_power_cut_loses_nothing_while_others_sync() {
    cut_everywhere(commit);
}
