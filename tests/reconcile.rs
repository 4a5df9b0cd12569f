//! The end of a claim: `svirtctl reconcile` after every way a launch, a guest or a host can end.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod mount;
    pub(crate) mod xenstored;
}

use std::fs;
use std::os::unix::fs::{MetadataExt as _, symlink};
use std::path::Path;
use std::process::{Command, Stdio};

use common::host::{CONTENT, Disk, Host, UNUSED, cdrom, label, level, qdisk, set_label};
use common::mount::Mount;

fn inode(path: &Path) -> u64 {
    fs::metadata(path).unwrap().ino()
}

/// Reconciles, and returns the exit status and what it said.
fn reconcile(host: &Host) -> (i32, String) {
    let output = host.svirtctl(&["reconcile"]);
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.code().unwrap(), said.concat())
}

/// One guest that ran and is gone.
fn after_a_guest(host: &Host, disk: &Path) {
    after_a_guest_with(host, qdisk(768, disk));
}

fn after_a_guest_with(host: &Host, disk: Disk) {
    host.domain(1, "vm1", &[disk]);
    drop(host.launch(1).unwrap());
    host.destroy(1);
}

#[test]
fn with_all_tells_of_what_is_in_use() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    let guest = host.launch(1).unwrap();
    let labelled = label(&disk);
    assert_eq!(reconcile(&host), (0, String::new()));
    let output = host.svirtctl(&["reconcile", "--all"]);
    let said = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains(": stays: in use by domain 1 (VM vm1, device model "), "{said}");
    assert_eq!(label(&disk), labelled);
    drop(guest);
    host.destroy(1);
    let output = host.svirtctl(&["reconcile", "--all"]);
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(label(&disk), UNUSED);
}

#[test]
fn puts_labels_back_and_frees_the_pair() {
    let host = Host::new();
    let disk = host.image("a.raw");
    let before = host.everything();
    after_a_guest(&host, &disk);
    assert_ne!(label(&disk), UNUSED);
    let (status, said) = reconcile(&host);
    assert_eq!((status, said.contains("freed, 1 labels put back")), (0, true), "{said}");
    assert_eq!(host.everything(), before);
    assert_eq!(reconcile(&host), (0, String::new()), "the second time there is nothing to do");
}

#[test]
fn leaves_the_living_alone() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    let qemu = host.launch(1).unwrap();
    let before = host.everything();
    assert_eq!(reconcile(&host), (0, String::new()));
    assert_eq!(host.everything(), before);
    // the domain outlives its device model, for the next one to come
    drop(qemu);
    assert_eq!(reconcile(&host), (0, String::new()));
    assert_eq!(host.everything(), before);
    // a device model outlives its domain
    let qemu = host.launch(1).unwrap();
    host.destroy(1);
    let before = host.everything();
    assert_eq!(reconcile(&host), (0, String::new()));
    assert_eq!(host.everything(), before);
    drop(qemu);
    assert_eq!(reconcile(&host).0, 0);
    assert_eq!(label(&disk), UNUSED);
}

#[test]
fn follows_a_disk_that_was_renamed_and_forgets_one_that_was_deleted() {
    let host = Host::new();
    let disk = host.image("a.raw");
    let renamed = disk.with_extension("old");
    after_a_guest(&host, &disk);
    fs::rename(&disk, &renamed).unwrap();
    assert_eq!(reconcile(&host).0, 0);
    assert_eq!(label(&renamed), UNUSED);

    after_a_guest(&host, &renamed);
    fs::remove_file(&renamed).unwrap();
    assert_eq!(reconcile(&host).0, 0);
    assert!(host.claims().is_empty());
    assert_eq!(fs::read_dir(host.path("state/objects")).unwrap().count(), 0);
}

#[test]
fn finds_a_disk_whose_symlink_is_gone() {
    let host = Host::new();
    let (disk, link) = (host.image("a.raw"), host.path("link"));
    symlink(&disk, &link).unwrap();
    after_a_guest(&host, &link);
    fs::remove_file(&link).unwrap();
    let (status, said) = reconcile(&host);
    assert_eq!((status, label(&disk).as_str()), (0, UNUSED), "{said}");
}

#[test]
fn touches_nothing_that_is_not_as_it_left_it() {
    let host = Host::new();
    let disk = host.image("a.raw");
    after_a_guest(&host, &disk);
    let by_hand = "system_u:object_r:virt_image_t:s0";
    set_label(&disk, by_hand);
    assert_eq!(reconcile(&host).0, 0);
    assert_eq!(label(&disk), by_hand);

    after_a_guest(&host, &disk);
    let others = host.image("others.raw");
    let theirs = "system_u:object_r:svirt_xen_image_t:s0:c1,c2";
    set_label(&others, theirs);
    fs::rename(&others, &disk).unwrap();
    assert_eq!(reconcile(&host).0, 0);
    assert_eq!(label(&disk), theirs);
    assert!(host.claims().is_empty());
}

#[test]
fn keeps_the_pair_while_the_disk_cannot_be_reached() {
    let host = Host::new();
    let place = host.path("mounted");
    fs::create_dir(&place).unwrap();
    let image = host.path("filesystem");
    fs::File::create(&image).unwrap().set_len(4 << 20).unwrap();
    assert!(Command::new("mke2fs").args(["-q", "-t", "ext4"]).arg(&image).status().unwrap().success());
    let mount = || Mount::at(&place, &["-o", "loop", image.to_str().unwrap()]);
    let disk = mount().file("a.raw", UNUSED);
    for is_rebooted in [false, true] {
        let mounted = mount();
        after_a_guest(&host, &disk);
        drop(mounted);
        if is_rebooted {
            host.rebooted(&host.claims()[0]);
        }
        let (status, said) = reconcile(&host);
        assert_eq!(status, 1);
        assert!(said.contains(&format!("its filesystem is not mounted at {}", place.display())), "{said}");
        assert_eq!(host.claims().len(), 1);
        let _mounted = mount();
        let (status, said) = reconcile(&host);
        assert_eq!((status, label(&disk).as_str()), (0, UNUSED), "{said}");
    }
}

#[test]
fn after_the_hosts_reboot_a_disk_that_is_gone_is_forgotten_and_one_renamed_found() {
    let host = Host::new();
    let disk = host.image("a.raw");
    let renamed = disk.with_extension("old");
    after_a_guest(&host, &disk);
    host.rebooted(&host.claims()[0]);
    fs::rename(&disk, &renamed).unwrap();
    let (status, said) = reconcile(&host);
    assert_eq!((status, label(&renamed).as_str()), (0, UNUSED), "{said}");
    after_a_guest(&host, &renamed);
    host.rebooted(&host.claims()[0]);
    fs::remove_file(&renamed).unwrap();
    let (status, said) = reconcile(&host);
    assert_eq!((status, host.claims().len()), (0, 0), "{said}");
}

#[test]
fn after_the_hosts_reboot_nothing_is_held_and_numbers_have_changed() {
    let host = Host::new();
    let [disk, taken] = ["a.raw", "b.raw"].map(|name| host.image(name));
    let before = host.everything();
    let mut running = Vec::new(); // whatever has that pid now
    for (domid, disk) in [(1, &disk), (2, &taken)] {
        host.domain(domid, &format!("vm{domid}"), &[qdisk(768, disk)]);
        running.push(host.launch(domid).unwrap());
        host.rebooted(&host.key(domid).unwrap());
        host.destroy(domid);
    }
    // before reconcile ran, another guest got the second disk: the label leads to the claim
    host.domain(3, "vm3", &[qdisk(768, &taken)]);
    let qemu = host.launch(3).unwrap();
    assert_eq!(level(&label(&taken)), format!("s0:{}", host.key(3).unwrap()));
    let (status, said) = reconcile(&host);
    assert_eq!((status, label(&disk).as_str()), (0, UNUSED), "{said}");
    assert_eq!(level(&label(&taken)), format!("s0:{}", host.key(3).unwrap()), "{said}");
    host.destroy(3);
    drop(qemu);
    assert_eq!(reconcile(&host).0, 0);
    assert_eq!(host.everything(), before);
}

#[test]
fn a_file_that_guests_read_comes_back_when_the_last_is_gone() {
    let host = Host::new();
    let iso = host.image("install.iso");
    let before = host.everything();
    for domid in 1..=3 {
        host.domain(domid, &format!("vm{domid}"), &[cdrom(5632, &iso)]);
    }
    let mut running: Vec<_> = (1..=3).map(|domid| host.launch(domid).unwrap()).collect();
    for domid in [1, 3] {
        host.destroy(domid);
        running.remove(usize::from(domid) / 2);
        assert_eq!(reconcile(&host).0, 0);
        assert_eq!(label(&iso), CONTENT);
    }
    // the last one's domain outlives its device model
    running.clear();
    assert_eq!(reconcile(&host), (0, String::new()));
    assert_eq!(label(&iso), CONTENT);
    host.destroy(2);
    let (status, said) = reconcile(&host);
    assert_eq!((status, said.contains("content-1: freed, 1 labels put back")), (0, true), "{said}");
    assert_eq!(host.everything(), before);
}

#[test]
fn after_the_hosts_reboot_a_reader_is_found_though_its_label_leads_nowhere() {
    let host = Host::new();
    let isos = ["1.iso", "2.iso", "3.iso"].map(|name| host.image(name));
    let link = host.path("images/link.iso");
    symlink(&isos[1], &link).unwrap();
    let before = host.everything();
    host.domain(1, "vm1", &[cdrom(5632, &isos[0]), cdrom(5696, &isos[1]), cdrom(5760, &isos[2])]);
    let running = host.launch(1).unwrap(); // whatever has that pid now
    for name in host.claims() {
        host.rebooted(&name);
    }
    host.destroy(1);
    // before reconcile ran, one file is another guest's to write, and one it reads by another name
    host.domain(2, "vm2", &[qdisk(768, &isos[0]), cdrom(5632, &link)]);
    let qemu = host.launch(2).unwrap();
    let (status, said) = reconcile(&host);
    assert_eq!((status, label(&isos[2]).as_str()), (0, UNUSED), "{said}");
    assert_eq!((level(&label(&isos[0])), label(&isos[1])), (format!("s0:{}", host.key(2).unwrap()), CONTENT.into()));
    host.destroy(2);
    drop((running, qemu));
    assert_eq!(reconcile(&host).0, 0);
    assert_eq!(host.everything(), before);
}

#[test]
fn after_the_hosts_reboot_a_number_may_be_another_files() {
    let host = Host::new();
    let [ours, others] = ["ours", "others"].map(|name| Mount::tmpfs(&host.path(name), "size=1m"));
    let [disk, iso] = ["disk", "iso"].map(|name| ours.file(name, UNUSED));
    let [stranger, library] = [("disk", UNUSED), ("iso", CONTENT)].map(|(name, label)| others.file(name, label));
    host.domain(1, "vm1", &[qdisk(768, &disk), cdrom(5632, &iso)]);
    let earlier = host.launch(1).unwrap(); // whatever has that pid now
    let pair = host.key(1).unwrap();
    for name in [&pair, "content-1"] {
        host.renumbered(name, &format!("file-{}-", ours.numbers()), &format!("file-{}-", others.numbers()));
    }
    host.destroy(1);
    assert_eq!(inode(&disk), inode(&stranger));
    assert_eq!(inode(&iso), inode(&library));
    // the same guest has its disk and its pair again, and another what never was that guest's
    host.domain(2, "vm1", &[qdisk(768, &disk)]);
    let qemu = host.launch(2).unwrap();
    assert_eq!(host.key(2).unwrap(), pair);
    host.domain(3, "vm3", &[qdisk(768, &stranger), cdrom(5632, &library)]);
    let another = host.launch(3).unwrap();
    let (status, said) = reconcile(&host);
    assert_eq!((status, label(&iso).as_str(), label(&library).as_str()), (0, UNUSED, CONTENT), "{said}");
    for domid in [2, 3] {
        host.destroy(domid);
    }
    drop((earlier, qemu, another));
    let (status, said) = reconcile(&host);
    assert_eq!((status, host.claims().len()), (0, 0), "{said}");
    assert_eq!([&disk, &stranger, &library].map(|path| label(path)), [UNUSED, UNUSED, CONTENT]);
}

#[test]
fn reports_a_claim_that_it_cannot_read_and_leaves_it() {
    let host = Host::new();
    let disk = host.image("a.raw");
    after_a_guest(&host, &disk);
    let claim = host.path("state/claims").join(&host.claims()[0]);
    let text = fs::read_to_string(&claim).unwrap();
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    for (unreadable, why) in [
        (text.replace("label object=file", "label object=fill"), "line 4 makes no sense"),
        (text.replace("svirt-interpose claim 1", "svirt-interpose claim 2"), "it begins with"),
    ] {
        fs::write(&claim, unreadable).unwrap();
        let before = host.everything();
        let (status, said) = reconcile(&host);
        assert_eq!((status, said.contains(why)), (1, true), "{said}");
        assert_eq!(host.everything(), before);
        let refusal = host.refuse(&["-xen-domid", "2"]);
        assert!(refusal.said.contains(why), "no guest gets its disk: {}", refusal.said);
    }
    fs::write(&claim, text).unwrap();
    assert_eq!(reconcile(&host).0, 0);
}

#[test]
fn removes_what_leads_to_no_claim() {
    let host = Host::new();
    let disk = host.image("a.raw");
    after_a_guest(&host, &disk);
    fs::remove_file(host.path("state/claims").join(&host.claims()[0])).unwrap();
    set_label(&disk, UNUSED);
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    assert!(host.refuse(&["-xen-domid", "2"]).said.contains("is gone: run svirtctl reconcile"));
    assert_eq!(reconcile(&host).0, 0);
    let _qemu = host.launch(2).unwrap();
}

#[test]
fn leaves_what_a_launch_is_at() {
    let host = Host::new();
    let disk = host.image("a.raw");
    after_a_guest(&host, &disk);
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    let launch = host.start_paused(&["-xen-domid", "2"], "");
    assert_eq!(reconcile(&host), (0, String::new()));
    host.go_on();
    let _qemu = launch.outcome().unwrap();
    assert_eq!(level(&label(&disk)), format!("s0:{}", host.key(2).unwrap()));
}

#[test]
fn connects_to_xenstore_once_at_most() {
    let host = Host::new();
    let connections = || {
        let calls = traced(&host, None, env!("CARGO_BIN_EXE_svirtctl"), &["reconcile"]);
        calls.iter().filter(|call| *call == "connect").count()
    };
    assert_eq!(connections(), 0, "before the first guest it may not even run");
    for domid in 1..=3 {
        host.domain(domid, &format!("vm{domid}"), &[]);
        drop(host.launch(domid).unwrap());
    }
    assert_eq!(connections(), 1);
    assert_eq!(host.claims().len(), 3);
}

#[test]
fn may_run_at_any_time_beside_launches() {
    let host = Host::new();
    let disk = host.image("a.raw");
    for round in 0..40 {
        host.domain(1, "vm", &[qdisk(768, &disk)]);
        drop(host.launch(1).unwrap());
        host.destroy(1);
        host.domain(2, "vm", &[qdisk(768, &disk)]);
        let mut reconciling = host.command(env!("CARGO_BIN_EXE_svirtctl"));
        let mut reconciling = reconciling.arg("reconcile").stdout(Stdio::null()).spawn().unwrap();
        let qemu = host.launch(2).unwrap_or_else(|refusal| panic!("{round}: {}", refusal.said));
        assert_eq!(level(&label(&disk)), format!("s0:{}", host.key(2).unwrap()), "{round}");
        assert!(reconciling.wait().unwrap().success());
        host.destroy(2);
        drop(qemu);
        assert_eq!(reconcile(&host).0, 0);
    }
}

/// Runs a program under strace with this injected, and returns the system calls it made before it executed another.
fn traced(host: &Host, inject: Option<&str>, program: &str, args: &[&str]) -> Vec<String> {
    let trace = host.path("trace");
    let status = Command::new("timeout")
        .args(["60", "strace", "-o"])
        .arg(&trace)
        .args(inject.iter().flat_map(|inject| ["-e", inject]))
        .arg(format!("--env=LD_PRELOAD={}", common::host::compiled("selinux.so").display()))
        .arg(program)
        .args(args)
        .env("QEMU_EXIT", "yes")
        .env("SELINUX_SHIM", host.path(""))
        .env("XENSTORED_PATH", host.xenstored.socket())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status()
        .unwrap();
    assert_ne!(status.code(), Some(124), "{program} hangs");
    let trace = fs::read_to_string(trace).unwrap();
    let calls = trace.lines().filter_map(|line| line.split_once('(')).map(|(name, _)| name.to_owned());
    calls.skip(1).take_while(|name| name != "execve").filter(|name| !name.starts_with("exit")).collect()
}

/// Runs a program once for each of its system calls, killed there; `prepare` comes before and `mended` after each run.
/// How many there were.
fn crash_everywhere(host: &Host, program: &str, args: &[&str], prepare: impl Fn(), mended: impl Fn(&str)) -> usize {
    prepare();
    let calls = traced(host, None, program, args);
    mended("no crash");
    for (index, name) in calls.iter().enumerate() {
        let number = calls[..=index].iter().filter(|call| *call == name).count();
        prepare();
        traced(host, Some(&format!("inject={name}:signal=SIGKILL:when={number}")), program, args);
        mended(&format!("killed at {name} {number}"));
    }
    calls.len()
}

#[test]
fn mends_what_a_crash_at_any_system_call_left() {
    let host = Host::new();
    let [fresh, used, written, read, shared] = ["1", "2", "3", "4", "5"].map(|name| host.image(name));
    host.domain(3, "vm3", &[cdrom(5632, &shared)]);
    let _reader = host.launch(3).unwrap();
    let before = host.everything();
    let prepare = || {
        host.held_before("content-1"); // so that who joins it writes it anew
        // taken over from guests that are gone: one to write as they did, one to write that they read, one to read
        after_a_guest(&host, &used);
        after_a_guest_with(&host, cdrom(5632, &written));
        after_a_guest(&host, &read);
        let disks = [qdisk(768, &fresh), qdisk(832, &used), qdisk(896, &written)];
        host.domain(2, "vm2", &[&disks[..], &[cdrom(5632, &read), cdrom(5696, &shared)]].concat());
    };
    let mended = |point: &str| {
        for disk in [&fresh, &used, &written, &read] {
            let set = level(&label(disk)).split_off(2);
            assert!(set.is_empty() || host.claims().contains(&set[1..].into()), "{point}: {set} without a claim");
        }
        assert_eq!(label(&shared), CONTENT, "{point}");
        host.destroy(2);
        let (status, said) = reconcile(&host);
        assert_eq!(status, 0, "{point}: {said}");
        assert_eq!(host.everything(), before, "{point}: {said}");
    };
    let points = crash_everywhere(&host, env!("CARGO_BIN_EXE_svirt-interpose"), &["-xen-domid", "2"], prepare, mended);
    println!("count: killed at {points} system calls of a launch");
    assert!(points > 200, "only {points} points");
}

#[test]
fn may_itself_be_killed_at_any_system_call() {
    let host = Host::new();
    let [a, b, iso, shared] = ["a.raw", "b.raw", "a.iso", "shared.iso"].map(|name| host.image(name));
    host.domain(2, "vm2", &[cdrom(5632, &shared)]);
    let _reader = host.launch(2).unwrap();
    let before = host.everything();
    let prepare = || {
        host.domain(1, "vm1", &[qdisk(768, &a), qdisk(832, &b), cdrom(5632, &iso), cdrom(5696, &shared)]);
        drop(host.launch(1).unwrap());
        host.destroy(1);
    };
    let mended = |point: &str| {
        let (status, said) = reconcile(&host);
        assert_eq!(status, 0, "{point}: {said}");
        assert_eq!(host.everything(), before, "{point}: {said}");
    };
    let points = crash_everywhere(&host, env!("CARGO_BIN_EXE_svirtctl"), &["reconcile"], prepare, mended);
    println!("count: killed at {points} system calls of a reconcile");
    assert!(points > 100, "only {points} points");
}
