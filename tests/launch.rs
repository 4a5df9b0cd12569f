//! The real wrapper, start to exec, against a real xenstored and real files.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod loop_device;
    pub(crate) mod mount;
    pub(crate) mod xenstored;
}

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::Path;
use std::thread;
use std::time::Duration;

use common::host::{CONTENT, Disk, Host, Started, UNUSED, cdrom, compiled, label, level, phy, qdisk, set_label};
use common::loop_device::Loop;
use common::mount::Mount;
use common::xenstored::{Daemon, within};
use nix::sys::signal::Signal;
use svirt_interpose::mcs::{Pair, Set};
use svirt_interpose::object::Loops;
use svirt_interpose::xenstore::{Access, Permissions};
use xenstore_rs::Xs as _;

// What a launch does.

#[test]
fn gives_qemu_and_every_writable_disk_one_pair() {
    for daemon in [Daemon::C, Daemon::OCaml] {
        let host = Host::with(daemon);
        let images = ["a.raw", "b.raw", "c.qcow2", "block", "beyond.raw", "ro.raw"].map(|name| host.image(name));
        let [a, b, c, behind, beyond, readonly] = &images;
        let (over_a, block) = (Loop::over(a), Loop::over(behind));
        let over_a_path = over_a.0.display().to_string();
        host.domain(
            7,
            "vm7",
            &[
                Disk(
                    "vbd",
                    768,
                    a.display().to_string(),
                    "w",
                    vec![
                        ("script", "/etc/xen/scripts/block".into()),
                        ("node", over_a_path.clone()),
                        ("physical-device-path", over_a_path),
                    ],
                ),
                qdisk(832, b),
                Disk("qdisk", 5632, format!("qcow2:{}", c.display()), "w", vec![]),
                Disk(
                    "vbd",
                    5696,
                    block.0.display().to_string(),
                    "w",
                    vec![("physical-device-path", block.0.display().to_string())],
                ),
                qdisk(51792, beyond),
                Disk("vbd", 51776, readonly.display().to_string(), "r", vec![]),
                Disk("qdisk", 5760, "aio:".into(), "r", vec![("device-type", "cdrom".into())]),
                Disk("qdisk", 51808, "rbd:pool/image".into(), "w", vec![]),
            ],
        );
        let qemu = host.launch(7).unwrap();

        let pair: Pair = host.key(7).unwrap().parse().unwrap();
        assert_eq!(host.claims(), [pair.to_string(), "content-1".into()]);
        assert_eq!(qemu.exec_context(&host).unwrap(), format!("system_u:system_r:svirt_xen_t:s0:{pair}"));
        for path in [a, b, c, behind, beyond, &block.0] {
            assert_eq!(label(path), format!("system_u:object_r:svirt_xen_image_t:s0:{pair}"), "{}", path.display());
        }
        assert_eq!(label(readonly), CONTENT);
        assert_eq!(label(&over_a.0), "system_u:object_r:fixed_disk_device_t:s0", "the kernel alone uses it");
        assert_eq!(qemu.said(), "");
    }
}

#[test]
fn publishes_a_key_that_its_guest_cannot_read_or_change() {
    let host = Host::new();
    host.domain(7, "vm7", &[]);
    let _qemu = host.launch(7).unwrap();
    let mut guest = host.xenstored.guest(7);
    let key = "/local/domain/7/selinux-mcs";
    assert_eq!(guest.read(key).unwrap_err(), "EACCES");
    assert_eq!(guest.write(key, "c0,c1").unwrap_err(), "EACCES");
    assert_eq!(guest.rm(key).unwrap_err(), "EACCES");
    assert_eq!(host.store().permissions(key).unwrap(), Permissions::dom0_only());
}

#[test]
fn qemu_finds_everything_as_the_toolstack_left_it() {
    let host = Host::new();
    host.domain(7, "vm7", &[qdisk(768, &host.image("a.raw"))]);
    let report = host.path("report");
    let args: [&[u8]; 8] = [b"-xen-domid", b"7", b"-name", b"a b\n\"c\"", b"-append", b"", b"\xff\xfe -drive", b"--"];
    let args = args.map(|arg| OsStr::from_bytes(arg).to_owned());
    let run = |program: &Path, args: &[OsString]| {
        let _ = fs::remove_file(&report);
        let mut child = host
            .command(compiled("toolstack"))
            .arg(program)
            .arg("qemu-dm-7")
            .args(args)
            .env("QEMU_REPORT", &report)
            .env("XEN_DOMAIN_ID", "7")
            .env("EMPTY", "")
            .env("BYTES", OsStr::from_bytes(b"\xff=\n"))
            .spawn()
            .unwrap();
        within(Duration::from_secs(30), || report.exists().then_some(()));
        let text = fs::read_to_string(&report).unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        let (ids, rest) = text.split_once('\n').unwrap();
        assert!(ids.starts_with(&format!("pid {} ", child.id())), "QEMU is the process the toolstack started");
        rest.to_owned()
    };
    let wrapper = Path::new(env!("CARGO_BIN_EXE_svirt-interpose"));
    let qemu = compiled("qemu");
    assert_eq!(run(wrapper, &args), run(&qemu, &args), "a guest's");
    assert!(host.key(7).is_some());
    assert_eq!(run(wrapper, &["-help".into()]), run(&qemu, &["-help".into()]), "a probe");
    host.set("mode", "disabled");
    host.set("filesystems", "nodev\tproc\n");
    assert_eq!(run(wrapper, &args), run(&qemu, &args), "without SELinux");
}

#[test]
fn a_probe_leaves_nothing_behind() {
    let host = Host::new();
    host.domain(7, "vm7", &[]);
    let libxl = [
        "-S",
        "-no-user-config",
        "-nodefaults",
        "-nographic",
        "-machine",
        "none,accel=xen",
        "-chardev",
        "socket,id=libxl-cmd,fd=9,server=on,wait=off",
        "-mon",
        "chardev=libxl-cmd,mode=control",
    ];
    let before = host.everything();
    for args in [&libxl[..], &["-help"], &["-version"], &[], &["-xen-domid", "0", "-xen-attach", "-name", "dom0"]] {
        let qemu = host.start(args).outcome().unwrap();
        assert_eq!(qemu.exec_context(&host), None, "{args:?}");
    }
    assert_eq!(host.everything(), before);
    assert!(!host.path("state").exists());
}

// Uniqueness.

#[test]
fn two_hundred_at_once_get_incomparable_sets() {
    let host = Host::new();
    host.set("current", "system_u:system_r:svirt_interpose_t:s0-s0:c0.c39");
    host.store().write("/local/domain/900/selinux-mcs", "5").unwrap();
    for domid in 1..=200 {
        host.domain(domid, &format!("vm{domid}"), &[]);
    }
    let started: Vec<_> = (1..=200u16).map(|domid| host.start(&["-xen-domid", &domid.to_string()])).collect();
    let running: Vec<_> = started.into_iter().map(|started| started.outcome().unwrap()).collect();
    let mut sets: Vec<Set> = (1..=200).map(|domid| host.key(domid).unwrap().parse().unwrap()).collect();
    for (domid, qemu) in (1u16..).zip(&running) {
        assert_eq!(level(&qemu.exec_context(&host).unwrap()), format!("s0:{}", host.key(domid).unwrap()));
    }
    sets.push("5".parse().unwrap());
    for (index, set) in sets.iter().enumerate() {
        assert!(sets[..index].iter().all(|other| !other.comparable(set)), "{set}");
    }
}

#[test]
fn refuses_when_no_pair_is_left() {
    let host = Host::new();
    host.set("current", "system_u:system_r:svirt_interpose_t:s0-s0:c7.c9");
    for domid in 1..=4 {
        host.domain(domid, &format!("vm{domid}"), &[qdisk(768, &host.image(&format!("{domid}.raw")))]);
    }
    let _running: Vec<_> = (1..=3).map(|domid| host.launch(domid).unwrap()).collect();
    let refusal = host.refuse(&["-xen-domid", "4"]);
    assert_eq!(refusal.status, 125);
    assert!(refusal.said.contains("cannot find a free pair of categories"), "{}", refusal.said);
    host.set("current", "system_u:system_r:svirt_interpose_t:s0");
    let refusal = host.refuse(&["-xen-domid", "4"]);
    assert!(refusal.said.contains("svirt_interpose_t:s0 has no pair of categories to give"), "{}", refusal.said);
}

#[test]
fn a_pair_is_not_free_while_the_device_model_of_a_destroyed_domain_runs() {
    let host = Host::new();
    host.set("current", "system_u:system_r:svirt_interpose_t:s0-s0:c7.c8");
    for domid in [1, 2] {
        host.domain(domid, &format!("vm{domid}"), &[qdisk(768, &host.image(&format!("{domid}.raw")))]);
    }
    let old = host.launch(1).unwrap();
    host.destroy(1);
    assert!(host.svirtctl(&["reconcile"]).status.success());
    assert!(host.refuse(&["-xen-domid", "2"]).said.contains("cannot find a free pair of categories"));
    drop(old);
    assert!(host.svirtctl(&["reconcile"]).status.success());
    let _new = host.launch(2).unwrap();
}

#[test]
fn works_among_two_thousand_domains() {
    for daemon in [Daemon::C, Daemon::OCaml] {
        let host = Host::with(daemon);
        let store = host.store();
        for domid in 30000..32000 {
            store
                .write(
                    &format!("/local/domain/{domid}/selinux-mcs"),
                    &format!("c{},c1000", domid - 30000 - 1000 * (domid / 31000)),
                )
                .unwrap();
        }
        host.domain(7, "vm7", &[qdisk(768, &host.image("a.raw"))]);
        let qemu = host.launch(7).unwrap();
        assert_eq!(qemu.said(), "");
        assert!(!host.key(7).unwrap().ends_with(",c1000"));
    }
}

#[test]
fn a_malformed_key_of_another_domain_stops_nobody() {
    let host = Host::new();
    for (domid, value) in [(1, "abc"), (2, "9999"), (3, ""), (4, "c1,c1\n"), (5, "c0.c")] {
        host.store().write(&format!("/local/domain/{domid}/selinux-mcs"), value).unwrap();
    }
    host.domain(7, "vm7", &[]);
    let qemu = host.launch(7).unwrap();
    assert_eq!(qemu.said().lines().filter(|line| line.contains("passing over /local/domain/")).count(), 5);
}

// Refusals.

#[test]
fn refuses_malformed_arguments() {
    let host = Host::new();
    for domid in [7, 8, 9] {
        host.domain(domid, &format!("vm{domid}"), &[]);
    }
    for args in [
        &["-xen-domid", "x"][..],
        &["-xen-domid", "+7"],
        &["-xen-domid", "7x"],
        &["-xen-domid", "-1"],
        &["-xen-domid", "40000"],
        &["-xen-domid", "7", "-xen-domid", "8"],
        &["-xen-domid"],
        &["7x"],
        &["-d", "07"],
    ] {
        let refusal = host.refuse(args);
        assert_eq!(refusal.status, 125, "{args:?}");
        assert!(
            refusal.said.starts_with("svirt-interpose: cannot tell the domain from QEMU's arguments: "),
            "{}",
            refusal.said
        );
    }
    let _qemu = host.start(&["-xen-domid", "7", "-name", "-xen-domid 9"]).outcome().unwrap();
    assert!(host.key(7).is_some() && host.key(9).is_none());
}

#[test]
fn refuses_to_execute_itself() {
    let host = Host::new();
    host.domain(7, "vm7", &[]);
    let itself = Path::new(env!("CARGO_BIN_EXE_svirt-interpose"));
    let (link, hard) = (host.path("link"), itself.with_file_name("svirt-interpose-by-another-name"));
    symlink(itself, &link).unwrap();
    let _ = fs::remove_file(&hard);
    fs::hard_link(itself, &hard).unwrap();
    for qemu in [itself, &link, &hard] {
        host.configure(&format!("qemu = '{}'", qemu.display()));
        for args in [&["-xen-domid", "7"][..], &["-help"]] {
            let refusal = host.refuse(args);
            assert_eq!(refusal.status, 126);
            assert!(refusal.said.contains("it is svirt-interpose itself"), "{}", refusal.said);
        }
    }
    fs::remove_file(&hard).unwrap();
}

#[test]
fn refuses_a_qemu_that_is_missing_or_cannot_run() {
    let host = Host::new();
    host.domain(7, "vm7", &[qdisk(768, &host.image("a.raw"))]);
    let file = host.path("no-program");
    fs::write(&file, "\0").unwrap();
    host.configure("qemu = '/nonexistent/qemu'");
    assert_eq!(host.refuse(&["-xen-domid", "7"]).status, 127);
    host.configure(&format!("qemu = '{}'", file.display()));
    assert_eq!(host.refuse(&["-xen-domid", "7"]).status, 126);
    // it passes every check, but the kernel cannot execute it: all that was done is undone
    fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
    let refusal = host.refuse(&["-xen-domid", "7"]);
    assert_eq!(refusal.status, 126);
    assert!(refusal.said.contains("no-program: Exec format error"), "{}", refusal.said);
}

#[test]
fn refuses_a_bad_configuration() {
    let host = Host::new();
    host.domain(7, "vm7", &[]);
    host.set("conf", "qemu = '/bin/true'\nqemuu = 1\n");
    let refusal = host.refuse(&["-xen-domid", "7"]);
    assert_eq!(refusal.status, 125);
    assert!(
        refusal.said.starts_with("svirt-interpose: /etc/svirt-interpose.conf:2: unknown field `qemuu`"),
        "{}",
        refusal.said
    );
    host.configure("");
    fs::set_permissions(host.path("conf"), fs::Permissions::from_mode(0o666)).unwrap();
    assert!(host.refuse(&["-help"]).said.contains("somebody else than root may write it"));
}

#[test]
fn a_failure_leaves_labels_store_and_claims_as_they_were() {
    let host = Host::new();
    let [first, second] = ["first.raw", "second.raw"].map(|name| host.image(name));
    let refused = |vm: u16, disks: &[Disk], because: &str| {
        host.domain(vm, &format!("vm{vm}"), disks);
        let refusal = host.refuse(&["-xen-domid", &vm.to_string()]);
        assert_eq!(refusal.status, 125, "{}", refusal.said);
        assert!(refusal.said.contains(because), "{because:?} is not in {:?}", refusal.said);
        assert_eq!((label(&first), label(&second)), (UNUSED.into(), UNUSED.into()));
    };
    let both = || [qdisk(768, &first), qdisk(832, &second)];

    host.set("denied", second.to_str().unwrap());
    refused(1, &both(), "second.raw: Permission denied");
    fs::remove_file(host.path("denied")).unwrap();

    host.set("unknown", "svirt_xen_image_t");
    refused(2, &both(), "the loaded policy does not know the context system_u:object_r:svirt_xen_image_t:s0");
    fs::remove_file(host.path("unknown")).unwrap();

    let missing = host.path("images/missing.raw");
    refused(3, &[qdisk(768, &first), qdisk(832, &missing)], "missing.raw as a disk: No such file or directory");

    let unlabelled = host.path("images/unlabelled.raw");
    File::create(&unlabelled).unwrap();
    refused(4, &[qdisk(768, &first), qdisk(832, &unlabelled)], "cannot read the label of ");
    refused(
        5,
        &[qdisk(768, &first), qdisk(832, Path::new("/dev/zero"))],
        "/dev/zero as a disk: it is neither a regular file nor a block device",
    );

    let shadow = host.image("shadow");
    set_label(&shadow, "system_u:object_r:shadow_t:s0");
    refused(6, &[qdisk(768, &first), qdisk(832, &shadow)], "its type shadow_t is none of a disk");
    refused(7, &[qdisk(768, &first), Disk("qdisk", 832, "aio:second.raw".into(), "w", vec![])], "is no absolute path");

    let readonly = host.path("readonly");
    let mounted = Mount::tmpfs(&readonly, "size=64k");
    File::create(readonly.join("disk")).unwrap();
    set_label(&readonly.join("disk"), UNUSED);
    mounted.make_readonly();
    refused(8, &[qdisk(768, &first), qdisk(832, &readonly.join("disk"))], "disk: Read-only file system");
    drop(mounted);
}

#[test]
fn a_full_or_readonly_state_directory_refuses_the_launch() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(7, "vm7", &[qdisk(768, &disk)]);
    let state = host.path("state");
    let mounted = Mount::tmpfs(&state, "size=16k,mode=700");
    for directory in ["claims", "objects"] {
        fs::create_dir(state.join(directory)).unwrap();
        fs::set_permissions(state.join(directory), fs::Permissions::from_mode(0o700)).unwrap();
    }
    let filler = state.join("filler");
    let _ = fs::write(&filler, vec![0; 1 << 16]);
    let refusal = host.refuse(&["-xen-domid", "7"]);
    assert_eq!(refusal.status, 125);
    assert!(refusal.said.contains("No space left on device"), "{}", refusal.said);
    fs::remove_file(&filler).unwrap();
    mounted.make_readonly();
    assert!(host.refuse(&["-xen-domid", "7"]).said.contains("Read-only file system"));
    assert_eq!(label(&disk), UNUSED);
}

#[test]
fn refuses_a_domain_that_its_guest_may_write_or_that_is_not_there() {
    let host = Host::new();
    host.domain(7, "vm7", &[]);
    let guests = Permissions { owner: 7, default: Access::None, entries: vec![] };
    host.store().set_permissions("/local/domain/7", &guests).unwrap();
    assert!(host.refuse(&["-xen-domid", "7"]).said.contains("refusing domain 7: its guest may write /local/domain/7"));
    let refusal = host.refuse(&["-xen-domid", "8"]);
    assert_eq!((refusal.status, refusal.said.as_str()), (125, "svirt-interpose: domain 8 does not exist\n"));
}

#[test]
fn starts_qemu_though_its_log_is_full() {
    let host = Host::new();
    host.set("mode", "permissive");
    let report = host.path("report");
    let mut command = host.command(env!("CARGO_BIN_EXE_svirt-interpose"));
    let full = fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let mut child = command.args(["-xen-domid", "7"]).env("QEMU_REPORT", &report).stderr(full).spawn().unwrap();
    within(Duration::from_secs(30), || report.exists().then_some(()));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_message_is_written_at_once() {
    let host = Host::new();
    let (log, stderr) = UnixDatagram::pair().unwrap();
    let mut command = host.command(env!("CARGO_BIN_EXE_svirt-interpose"));
    command.args(["-xen-domid", "7"]).stderr(OwnedFd::from(stderr)).status().unwrap();
    // a write is a datagram
    let mut said = [0; 256];
    let length = log.recv(&mut said).unwrap();
    assert_eq!(str::from_utf8(&said[..length]).unwrap(), "svirt-interpose: domain 7 does not exist\n");
}

// Hostile and unlucky hosts.

#[test]
fn nothing_a_guest_writes_steers_what_is_labelled() {
    let host = Host::new();
    let [own, others] = ["own.raw", "others.raw"].map(|name| host.image(name));
    host.domain(8, "vm8", &[qdisk(768, &others)]);
    for (domid, backend) in (20u16..).zip([
        "/local/domain/0/backend/qdisk/8/768",
        "/local/domain/0/backend/qdisk/7/../8/768",
        "../..",
        "/nonexistent",
        "",
    ]) {
        host.domain(domid, &format!("vm{domid}"), &[qdisk(768, &own)]);
        let mut guest = host.xenstored.guest(domid);
        guest.write(&format!("/local/domain/{domid}/device/vbd/768/backend"), backend).unwrap();
        guest.write(&format!("/local/domain/{domid}/device/vbd/768/params"), others.to_str().unwrap()).unwrap();
        assert_eq!(
            guest.write(&format!("/local/domain/{domid}/device/vbd/832/backend"), backend).unwrap_err(),
            "EACCES"
        );
        let qemu = host.launch(domid).unwrap();
        assert_eq!(level(&label(&own)), format!("s0:{}", host.key(domid).unwrap()), "{backend:?}");
        assert_eq!(label(&others), UNUSED, "{backend:?}");
        host.destroy(domid);
        drop(qemu);
    }
}

#[test]
fn a_disk_may_be_on_any_kind_of_backend() {
    let host = Host::new();
    let images = ["a.raw", "b.raw", "c.raw", "d.raw", "e.raw"].map(|name| host.image(name));
    let disks: Vec<Disk> = ["vbd", "vbd3", "qdisk", "tap", "virtio_disk"]
        .into_iter()
        .zip(768..)
        .zip(&images)
        .map(|((kind, devid), image)| Disk(kind, devid, image.display().to_string(), "w", vec![]))
        .collect();
    host.domain(1, "vm1", &disks);
    let _qemu = host.launch(1).unwrap();
    for image in &images {
        assert_eq!(level(&label(image)), format!("s0:{}", host.key(1).unwrap()), "{}", image.display());
    }
}

#[test]
fn a_disk_that_a_driver_domain_serves_is_none_of_this_ones() {
    let host = Host::new();
    let [own, remote] = ["a.raw", "b.raw"].map(|name| host.image(name));
    host.domain(1, "vm1", &[qdisk(768, &own)]);
    let [backend, frontend, record] =
        ["/local/domain/5/backend/vbd/1/832", "/local/domain/1/device/vbd/832", "/libxl/1/device/vbd/832"];
    let path = remote.to_str().unwrap(); // which dom0 has as well
    for (directory, node, value) in [
        (backend, "params", path),
        (backend, "physical-device-path", path),
        (backend, "mode", "w"),
        (frontend, "backend", backend),
        (frontend, "backend-id", "5"),
        (record, "backend", backend),
        (record, "params", path),
        (record, "mode", "w"),
    ] {
        host.store().write(&format!("{directory}/{node}"), value).unwrap();
    }
    let _qemu = host.launch(1).unwrap();
    assert_eq!(host.svirtctl(&["relabel", "1"]).status.code(), Some(0));
    assert_eq!((level(&label(&own)), label(&remote)), (format!("s0:{}", host.key(1).unwrap()), UNUSED.into()));
}

#[test]
fn a_domain_destroyed_in_the_middle_leaves_nothing() {
    for hang_up in [false, true] {
        let host = Host::new();
        let disk = host.image("a.raw");
        let before = host.everything();
        host.domain(7, "vm7", &[qdisk(768, &disk)]);
        let launch = host.start_paused(&["-xen-domid", "7"], "");
        assert!(host.key(7).is_some());
        if hang_up {
            launch.signal(Signal::SIGHUP);
        }
        host.destroy(7);
        host.go_on();
        let refusal = launch.outcome().err().unwrap();
        assert_eq!(refusal.status, 125);
        assert!(
            refusal.said.contains(if hang_up { "stopped by SIGHUP" } else { "domain 7 was destroyed while" }),
            "{}",
            refusal.said
        );
        let leftovers = |text: &str| {
            text.lines()
                .filter(|line| !line.starts_with("/l") || line.contains("/7"))
                .map(String::from)
                .collect::<Vec<_>>()
        };
        assert_eq!(leftovers(&host.everything()), leftovers(&before));
        assert!(host.claims().is_empty());
    }
}

#[test]
fn a_failure_leaves_the_pair_that_its_domain_had() {
    let host = Host::new();
    let [first, second] = ["first.raw", "second.raw"].map(|name| host.image(name));
    host.domain(1, "vm1", &[qdisk(768, &first)]);
    drop(host.launch(1).unwrap());
    let pair = host.key(1).unwrap();
    // as after a soft reset: the domain stays, and gets another device model
    host.attach(1, &qdisk(832, &second));
    host.set("denied", second.to_str().unwrap());
    assert!(host.refuse(&["-xen-domid", "1"]).said.contains("second.raw: Permission denied"));
    assert_eq!(host.key(1).unwrap(), pair);
}

#[test]
fn xenstored_gone_in_the_middle_undoes_the_labels_and_the_claim() {
    let host = Host::new();
    let disks = ["a.raw", "b.raw"].map(|name| host.image(name));
    host.domain(7, "vm7", &[qdisk(768, &disks[0]), qdisk(832, &disks[1])]);
    let launch = host.start_paused(&["-xen-domid", "7"], "");
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(host.xenstored.pid().try_into().unwrap()), Signal::SIGKILL)
        .unwrap();
    host.go_on();
    let refusal = launch.outcome().err().unwrap();
    assert_eq!(refusal.status, 125);
    assert!(refusal.said.contains("xenstored"), "{}", refusal.said);
    assert_eq!(disks.map(|disk| label(&disk)), [UNUSED; 2]);
    assert!(host.claims().is_empty());
    assert_eq!(fs::read_dir(host.path("state/objects")).unwrap().count(), 0);
}

// One disk, one guest.

#[test]
fn refuses_a_disk_of_a_live_domain_by_any_name() {
    let host = Host::new();
    let disk = host.image("a.raw");
    let (link, hard) = (host.path("images/link"), host.path("images/hard"));
    symlink(&disk, &link).unwrap();
    fs::hard_link(&disk, &hard).unwrap();
    let over = Loop::over(&disk);
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    let first = host.launch(1).unwrap();
    for (domid, name) in (2u16..).zip([&disk, &link, &hard, &over.0]) {
        host.domain(domid, &format!("vm{domid}"), &[qdisk(768, name)]);
        let refusal = host.refuse(&["-xen-domid", &domid.to_string()]);
        assert_eq!(refusal.status, 125);
        assert!(
            refusal.said.contains(&format!("it is in use by domain 1 (VM vm1, device model {})", first.pid())),
            "{}",
            refusal.said
        );
        assert_eq!(level(&label(&disk)), format!("s0:{}", host.key(1).unwrap()));
    }
}

#[test]
fn refuses_a_device_that_shares_sectors_with_a_live_domains() {
    let host = Host::new();
    let (_, whole) = Loop::whole_disk(&host);
    let [first, second] = [1, 2].map(|number| whole.partition(number, number));
    host.domain(1, "vm1", &[phy(768, &first)]);
    let part = host.launch(1).unwrap();
    host.domain(2, "vm2", &[phy(768, &whole.0)]);
    let said = host.refuse(&["-xen-domid", "2"]).said;
    let shares = format!("{}: it shares sectors with {}, ", whole.0.display(), first.display());
    assert!(said.contains(&shares) && said.contains("in use by domain 1 (VM vm1"), "{said}");
    // two partitions share nothing
    host.domain(3, "vm3", &[phy(768, &second)]);
    drop(host.launch(3).unwrap());
    for domid in [1, 3] {
        host.destroy(domid);
    }
    drop(part);
    let _whole = host.launch(2).unwrap();
    host.domain(4, "vm4", &[phy(768, &second)]);
    let said = host.refuse(&["-xen-domid", "4"]).said;
    assert!(said.contains(&format!("shares sectors with {}, ", whole.0.display())), "{said}");
}

#[test]
fn refuses_a_file_that_shares_sectors_with_a_partition_of_its_loop_device() {
    let host = Host::new();
    let (file, whole) = Loop::whole_disk(&host);
    let part = whole.partition(1, 1);
    let again = Loop::over(&file);
    let other_part = again.partition(1, 1);
    let disks = [
        phy(768, &part),
        qdisk(768, &file),
        cdrom(768, &file),
        phy(768, &other_part),
        phy(768, &again.0),
        phy(768, &part),
    ];
    for (domid, disk) in (1..).zip(disks) {
        host.domain(domid, &format!("vm{domid}"), &[disk]);
    }
    let refuse = |domid: u16, one: &Path, other: &Path, holder: u16| {
        let said = host.refuse(&["-xen-domid", &domid.to_string()]).said;
        let [one, other] = [one, other].map(Path::display);
        let why = format!("{one}: it shares sectors with {other}, which is in use by domain {holder} ");
        assert!(said.contains(&why), "{said}");
    };
    let qemu = host.launch(1).unwrap();
    refuse(2, &file, &part, 1);
    refuse(3, &file, &part, 1);
    refuse(4, &other_part, &part, 1);
    refuse(5, &file, &part, 1);
    host.destroy(1);
    drop(qemu);
    for whole in [2, 3] {
        let qemu = host.launch(whole).unwrap();
        refuse(6, &part, &file, whole);
        refuse(4, &other_part, &file, whole);
        host.destroy(whole);
        drop(qemu);
    }
}

#[test]
fn a_loop_device_may_go_while_it_is_looked_at() {
    let host = Host::new();
    let image = host.image("a.raw");
    thread::scope(|scope| {
        let others = scope.spawn(|| (0..200).for_each(|_| drop(Loop::over(&image))));
        while !others.is_finished() {
            Loops::look().unwrap();
        }
    });
}

#[test]
fn of_two_launches_at_once_for_what_overlaps_one_at_most_starts() {
    let host = Host::new();
    let (file, whole) = Loop::whole_disk(&host);
    let part = whole.partition(1, 1);
    for round in 0..20 {
        for (domid, disk) in
            [(1, if round % 2 == 0 { phy(768, &whole.0) } else { qdisk(768, &file) }), (2, phy(768, &part))]
        {
            host.domain(domid, &format!("vm{domid}"), &[disk]);
        }
        let launches = [1, 2].map(|domid| host.start(&["-xen-domid", &domid.to_string()]));
        let outcomes = launches.map(Started::outcome);
        assert!(outcomes.iter().any(Result::is_err), "{round}: both started");
        for refusal in outcomes.iter().filter_map(|outcome| outcome.as_ref().err()) {
            assert!(refusal.said.contains("shares sectors with"), "{round}: {}", refusal.said);
        }
        drop(outcomes);
        for domid in [1, 2] {
            host.destroy(domid);
        }
        assert!(host.svirtctl(&["reconcile"]).status.success());
    }
}

#[test]
fn of_two_launches_at_once_for_one_disk_one_starts() {
    let host = Host::new();
    for round in 0..20u16 {
        let disk = host.image(&format!("{round}.raw"));
        let domids = [100 + 2 * round, 101 + 2 * round];
        for domid in domids {
            host.domain(domid, &format!("vm{domid}"), &[qdisk(768, &disk)]);
        }
        let started = domids.map(|domid| host.start(&["-xen-domid", &domid.to_string()]));
        let outcomes = started.map(common::host::Started::outcome);
        let winner = outcomes.iter().position(Result::is_ok).expect("one starts");
        let [loser] = outcomes.iter().filter_map(|outcome| outcome.as_ref().err()).collect::<Vec<_>>()[..] else {
            panic!("both started")
        };
        assert_eq!(loser.status, 125);
        assert!(loser.said.contains(&format!("it is in use by domain {}", domids[winner])), "{}", loser.said);
        assert_eq!(level(&label(&disk)), format!("s0:{}", host.key(domids[winner]).unwrap()));
        assert_eq!(host.key(domids[1 - winner]), None);
    }
}

#[test]
fn takes_the_disk_of_a_dead_domain_over_and_keeps_its_first_label() {
    let host = Host::new();
    let disk = host.image("a.raw");
    let mut old = String::new();
    for domid in 1..=3u16 {
        host.domain(domid, &format!("vm{domid}"), &[qdisk(768, &disk)]);
        let qemu = host.launch(domid).unwrap();
        let pair = host.key(domid).unwrap();
        assert_ne!(pair, old);
        assert_eq!(level(&label(&disk)), format!("s0:{pair}"));
        let claim = fs::read_to_string(host.path("state/claims").join(&pair)).unwrap();
        assert!(claim.contains(&format!(" before={UNUSED} ")), "{claim}");
        old = pair;
        host.destroy(domid);
        drop(qemu);
    }
    assert!(host.claims().contains(&old), "a claim outlives its domain: the disk still carries its label");
}

#[test]
fn refuses_a_disk_whose_domain_outlived_its_device_model() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    drop(host.launch(1).unwrap());
    assert!(host.refuse(&["-xen-domid", "2"]).said.contains("it is in use by domain 1"));
    // the number was given to another VM since
    host.destroy(1);
    host.domain(1, "vm3", &[]);
    let _qemu = host.launch(2).unwrap();
}

#[test]
fn waits_for_the_device_model_of_a_destroyed_domain_to_exit() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    let old = host.launch(1).unwrap();
    host.destroy(1);
    let new = host.start(&["-xen-domid", "2"]);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(host.key(2), None);
    drop(old);
    let _new = new.outcome().unwrap();
    assert_eq!(level(&label(&disk)), format!("s0:{}", host.key(2).unwrap()));
}

#[test]
fn a_rebooted_guest_keeps_its_pair() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm", &[qdisk(768, &disk)]);
    let old = host.launch(1).unwrap();
    let pair = host.key(1).unwrap();
    host.domain(2, "vm", &[qdisk(768, &disk)]);
    let _new = host.launch(2).unwrap();
    assert_eq!(host.key(2).unwrap(), pair);
    assert_eq!(host.claims(), [pair.as_str()]);
    drop(old);
    // a launch that fails leaves the claim to those who have it
    host.domain(3, "vm", &[qdisk(768, &disk), qdisk(832, Path::new("/nonexistent"))]);
    assert_eq!(host.refuse(&["-xen-domid", "3"]).status, 125);
    assert_eq!(level(&label(&disk)), format!("s0:{pair}"));
}

#[test]
fn a_guest_that_was_soft_reset_keeps_its_pair() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm", &[qdisk(768, &disk)]);
    let old = host.launch(1).unwrap();
    let pair = host.key(1).unwrap();
    // libxl makes what XenStore has of the domain anew, and waits for no device model
    host.destroy(1);
    host.domain(1, "vm", &[qdisk(768, &disk)]);
    let _new = host.launch(1).unwrap();
    assert_eq!((host.key(1).unwrap(), level(&label(&disk))), (pair.clone(), format!("s0:{pair}")));
    drop(old);
    assert!(host.svirtctl(&["reconcile"]).status.success());
    assert_eq!((host.claims(), level(&label(&disk))), (vec![pair.clone()], format!("s0:{pair}")));
}

#[test]
fn refuses_a_label_that_another_domain_has_published() {
    let host = Host::new();
    let disk = host.image("a.raw");
    set_label(&disk, "system_u:object_r:svirt_xen_image_t:s0:c3,c4");
    host.domain(1, "vm1", &[]);
    host.store().write("/local/domain/1/selinux-mcs", "c3,c4").unwrap();
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    assert!(host.refuse(&["-xen-domid", "2"]).said.contains("it carries c3,c4, which is published for domain 1"));
}

#[test]
fn refuses_a_guests_label_that_no_claim_gave() {
    let host = Host::new();
    let disk = host.image("copy.raw");
    set_label(&disk, "system_u:object_r:svirt_xen_image_t:s0:c3,c4");
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    let refusal = host.refuse(&["-xen-domid", "1"]);
    assert!(refusal.said.contains("it carries c3,c4, and no claim says of whom: restorecon -F"), "{}", refusal.said);
}

#[test]
fn of_two_launches_for_the_same_disks_in_another_order_one_starts() {
    let host = Host::new();
    for round in 0..10u16 {
        let disks = ["a", "b"].map(|name| host.image(&format!("{round}{name}.raw")));
        let domids = [100 + 2 * round, 101 + 2 * round];
        host.domain(domids[0], &format!("vm{}", domids[0]), &[qdisk(768, &disks[0]), qdisk(832, &disks[1])]);
        let second = if round % 2 == 0 { qdisk(832, &disks[0]) } else { cdrom(832, &disks[0]) };
        host.domain(domids[1], &format!("vm{}", domids[1]), &[qdisk(768, &disks[1]), second]);
        let started = domids.map(|domid| host.start(&["-xen-domid", &domid.to_string()]));
        let running: Vec<_> = started.into_iter().map(common::host::Started::outcome).filter_map(Result::ok).collect();
        assert_eq!(running.len(), 1);
    }
}

#[test]
fn waits_for_a_launch_of_the_same_vm_that_is_slow() {
    let host = Host::new();
    let disk = host.image("a.raw");
    for domid in [1, 2] {
        host.domain(domid, "vm", &[qdisk(768, &disk)]);
    }
    let first = host.start_paused(&["-xen-domid", "1"], "");
    let second = host.start(&["-xen-domid", "2"]);
    // as long as XenStore may take to answer it
    std::thread::sleep(Duration::from_secs(10));
    host.go_on();
    let _running = [first, second].map(|launch| launch.outcome().unwrap());
    assert_eq!(host.key(1), host.key(2));
}

#[test]
fn of_two_earlier_claims_of_one_vm_the_one_in_use_is_joined() {
    let host = Host::new();
    let mut disks = ["a.raw", "b.raw"].map(|name| host.image(name));
    for round in 0..2u16 {
        let [first, second, third] = [1, 2, 3].map(|number| 10 * round + number);
        let vm = format!("vm{round}");
        host.domain(first, &vm, &[qdisk(768, &disks[0])]);
        drop(host.launch(first).unwrap());
        host.destroy(first);
        host.domain(second, &vm, &[qdisk(768, &disks[1])]);
        let running = host.launch(second).unwrap();
        let pair = host.key(second).unwrap();
        host.domain(third, &vm, &[qdisk(768, &disks[0]), qdisk(832, &disks[1])]);
        let migrated = host.launch(third).unwrap();
        assert_eq!(host.key(third).unwrap(), pair);
        assert_eq!(disks.each_ref().map(|disk| level(&label(disk))), [(); 2].map(|()| format!("s0:{pair}")));
        host.destroy(second);
        host.destroy(third);
        drop((running, migrated));
        disks.reverse();
    }
}

#[test]
fn refuses_a_disk_that_another_domain_of_the_vm_has_with_another_pair() {
    let host = Host::new();
    let disks = ["a.raw", "b.raw"].map(|name| host.image(name));
    let running = [0, 1].map(|index: u16| {
        host.domain(index + 1, "vm", &[qdisk(768, &disks[usize::from(index)])]);
        host.launch(index + 1).unwrap()
    });
    host.domain(3, "vm", &[qdisk(768, &disks[0]), qdisk(832, &disks[1])]);
    let refusal = host.refuse(&["-xen-domid", "3"]);
    assert!(refusal.status == 125 && refusal.said.contains("is in use by domain "), "{}", refusal.said);
    drop(running);
}

#[test]
fn a_claim_forgets_its_holders_of_long_ago() {
    let host = Host::new();
    let [disk, iso] = ["a.raw", "install.iso"].map(|name| host.image(name));
    let disks = [qdisk(768, &disk), cdrom(5632, &iso)];
    host.domain(1, "vm", &disks);
    let first = host.launch(1).unwrap();
    let pair = host.key(1).unwrap();
    let claims = host.claims();
    let lines = |name: &str, kind: &str| -> Vec<String> {
        let claim = fs::read_to_string(host.path("state/claims").join(name)).unwrap();
        claim.lines().filter(|line| line.starts_with(kind)).map(String::from).collect()
    };
    let records = |name: &str| BTreeSet::from_iter(lines(name, "label "));
    let before: Vec<_> = claims.iter().map(|name| records(name)).collect();
    for name in &claims {
        host.held_before(name);
    }
    host.domain(2, "vm", &disks);
    let second = host.launch(2).unwrap();
    for (name, before) in claims.iter().zip(before) {
        let holders = lines(name, "holder ");
        assert_eq!(holders.len(), 3, "the first, the last that is gone, the second: {holders:?}");
        for (holder, qemu) in [(&holders[0], &first), (&holders[2], &second)] {
            assert!(holder.contains(&format!(" pid={} ", qemu.pid())), "{holders:?}");
        }
        assert_eq!(records(name), before);
    }
    assert_eq!(host.key(2).unwrap(), pair);
    assert_eq!(host.claims(), claims);
}

#[test]
fn two_domains_of_one_vm_share_its_claim_and_are_told() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm", &[qdisk(768, &disk)]);
    host.domain(2, "vm", &[qdisk(768, &disk)]);
    let _first = host.launch(1).unwrap();
    let second = host.launch(2).unwrap();
    assert_eq!(host.key(1), host.key(2));
    assert!(second.said().contains("domain 2 shares its disks and categories with domain 1"), "{}", second.said());
}

#[test]
fn waits_for_no_syslog() {
    let host = Host::new();
    let log = UnixDatagram::bind(host.path("log")).unwrap();
    let filler = UnixDatagram::unbound().unwrap();
    filler.set_nonblocking(true).unwrap();
    while filler.send_to(b"full", host.path("log")).is_ok() {}
    host.domain(7, "vm7", &[qdisk(768, &host.image("a.raw"))]);
    let _qemu = host.launch(7).unwrap();
    drop(log);
}

// One file, many readers.

#[test]
fn many_guests_may_read_one_file() {
    let host = Host::new();
    let iso = host.image("install.iso");
    let hard = host.path("images/hard.iso");
    fs::hard_link(&iso, &hard).unwrap();
    let domids = 1..=20u16;
    for domid in domids.clone() {
        let own = host.image(&format!("{domid}.raw"));
        let iso = if domid % 2 == 0 { &iso } else { &hard };
        host.domain(domid, &format!("vm{domid}"), &[qdisk(768, &own), cdrom(5632, iso)]);
    }
    let started: Vec<_> = domids.map(|domid| host.start(&["-xen-domid", &domid.to_string()])).collect();
    let running: Vec<_> = started.into_iter().map(|started| started.outcome().unwrap()).collect();
    assert_eq!(label(&iso), CONTENT);
    assert_eq!(host.claims().iter().filter(|name| name.starts_with("content-")).count(), 1);
    assert_eq!(host.claims().len(), 1 + running.len());
}

#[test]
fn what_one_guest_reads_another_cannot_write_and_the_other_way_round() {
    let host = Host::new();
    let [iso, disk] = ["install.iso", "a.raw"].map(|name| host.image(name));
    host.domain(1, "vm1", &[cdrom(5632, &iso), qdisk(768, &disk)]);
    let first = host.launch(1).unwrap();
    host.domain(2, "vm2", &[qdisk(768, &iso)]);
    host.domain(3, "vm3", &[cdrom(5632, &disk)]);
    host.domain(4, "vm4", &[cdrom(5632, &iso)]);
    let reader = host.launch(4).unwrap();
    for (domid, object) in [(2, &iso), (3, &disk)] {
        let refusal = host.refuse(&["-xen-domid", &domid.to_string()]);
        let holder = format!("cannot label {}: it is in use by domain 1 (VM vm1", object.display());
        assert!(refusal.status == 125 && refusal.said.contains(&holder), "{}", refusal.said);
    }
    // the one who read it first is gone, and another still reads it
    host.destroy(1);
    drop(first);
    assert!(host.refuse(&["-xen-domid", "2"]).said.contains("it is in use by domain 4 (VM vm4"));
    host.destroy(4);
    drop(reader);
    for (domid, object) in [(2, &iso), (3, &disk)] {
        let _qemu = host.launch(domid).unwrap();
        for name in host.claims() {
            let claim = fs::read_to_string(host.path("state/claims").join(name)).unwrap();
            let mut records = claim.lines().filter(|line| line.starts_with("label "));
            assert!(records.all(|line| line.contains(&format!(" before={UNUSED} "))), "{claim}");
        }
        if domid == 2 {
            assert_eq!(level(&label(object)), format!("s0:{}", host.key(domid).unwrap()));
        } else {
            assert_eq!(label(object), CONTENT);
        }
    }
}

#[test]
fn a_file_that_a_guest_has_both_ways_is_one_to_write() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm", &[cdrom(768, &disk), qdisk(832, &disk)]);
    let first = host.launch(1).unwrap();
    let own = format!("s0:{}", host.key(1).unwrap());
    assert_eq!(level(&label(&disk)), own);
    // it migrates to a domain that only reads it
    host.domain(2, "vm", &[cdrom(768, &disk)]);
    let second = host.launch(2).unwrap();
    assert_eq!((level(&label(&disk)), host.claims().len()), (own, 1));
    drop((first, second));
    for domid in [1, 2] {
        host.destroy(domid);
    }
    // the image is done, and from now on many are to read it
    host.domain(3, "vm", &[cdrom(768, &disk)]);
    host.domain(4, "another", &[cdrom(768, &disk)]);
    let _running = [3, 4].map(|domid| host.launch(domid).unwrap());
    assert_eq!(label(&disk), CONTENT);
}

#[test]
fn leaves_a_file_that_every_guest_may_read_as_it_is() {
    let host = Host::new();
    let isos = ["library.iso", "virtio-win.iso"].map(|name| host.image(name));
    let labels = [CONTENT, "system_u:object_r:usr_t:s0"];
    for (iso, label) in isos.iter().zip(labels) {
        set_label(iso, label);
    }
    host.domain(1, "vm1", &[cdrom(5632, &isos[0]), cdrom(5696, &isos[1])]);
    let _qemu = host.launch(1).unwrap();
    assert_eq!(isos.each_ref().map(|iso| label(iso)), labels);
    assert_eq!(host.claims(), [host.key(1).unwrap()]);
    // nor is it anybody's to write
    host.domain(2, "vm2", &[qdisk(768, &isos[0])]);
    assert!(host.refuse(&["-xen-domid", "2"]).said.contains("its type virt_content_t is none of a disk"));
}

#[test]
fn refuses_to_read_what_is_no_disk() {
    let host = Host::new();
    let file = host.image("secret");
    host.domain(1, "vm1", &[cdrom(5632, &file)]);
    for type_ in ["user_home_t", "var_t", "shadow_t"] {
        set_label(&file, &format!("system_u:object_r:{type_}:s0"));
        let refusal = host.refuse(&["-xen-domid", "1"]);
        assert!(refusal.said.contains(&format!("its type {type_} is none of a disk: semanage")), "{}", refusal.said);
    }
}

#[test]
fn a_readers_failure_leaves_the_file_as_it_was() {
    let host = Host::new();
    let [iso, disk] = ["install.iso", "a.raw"].map(|name| host.image(name));
    host.domain(2, "vm2", &[qdisk(768, &disk), cdrom(5632, &iso)]);
    host.set("denied", iso.to_str().unwrap());
    assert!(host.refuse(&["-xen-domid", "2"]).said.contains("install.iso: Permission denied"));
    fs::remove_file(host.path("denied")).unwrap();
    assert_eq!(label(&iso), UNUSED);

    let program = host.path("no-program");
    fs::write(&program, "\0").unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    let fails = |domid: u16| {
        host.configure(&format!("qemu = '{}'", program.display()));
        let refusal = host.start(&["-xen-domid", &domid.to_string()]).outcome().err().unwrap();
        assert_eq!(refusal.status, 126, "{}", refusal.said);
        host.configure(&format!("qemu = '{}'", compiled("qemu").display()));
    };
    let before = host.everything();
    fails(2);
    assert_eq!(host.everything(), before);

    // the file is another's to read, too
    host.domain(1, "vm1", &[cdrom(5632, &iso)]);
    let first = host.launch(1).unwrap();
    fails(2);
    assert_eq!((label(&iso), label(&disk)), (CONTENT.into(), UNUSED.into()));
    assert_eq!(host.claims(), [host.key(1).unwrap(), "content-1".into()]);
    drop(first);
}

#[test]
fn the_last_of_those_who_fail_puts_the_label_back() {
    let host = Host::new();
    let mut files = ["a.iso", "b.iso", "c.iso"].map(|name| host.image(name));
    files.sort_by_key(|path| fs::metadata(path).unwrap().ino()); // as a launch goes through them
    let [shared, one, other] = files;
    for (domid, own) in [(1, &one), (2, &other)] {
        host.domain(domid, &format!("vm{domid}"), &[cdrom(5632, &shared), cdrom(5696, own)]);
    }
    let before = host.everything();
    // each is held up after it has joined those who read the first file
    let first = host.start_paused(&["-xen-domid", "1"], &format!("{} {}", one.display(), other.display()));
    let second = host.start(&["-xen-domid", "2"]);
    let claim = || fs::read_to_string(host.path("state/claims/content-1")).unwrap_or_default();
    within(Duration::from_secs(30), || (claim().matches("holder ").count() == 2).then_some(()));
    host.set("denied", one.to_str().unwrap());
    host.set("pause", other.to_str().unwrap());
    assert!(first.outcome().err().unwrap().said.contains("Permission denied"));
    assert_eq!(label(&shared), CONTENT, "the second reads it");
    second.signal(Signal::SIGTERM);
    host.go_on();
    assert!(second.outcome().err().unwrap().said.contains("stopped by SIGTERM"));
    assert_eq!(host.everything(), before);
}

// SELinux's modes.

#[test]
fn permissive_does_everything_and_tells_what_it_would_refuse() {
    let host = Host::new();
    host.set("mode", "permissive");
    let [disk, shadow] = ["a.raw", "shadow"].map(|name| host.image(name));
    set_label(&shadow, "system_u:object_r:shadow_t:s0");
    host.domain(7, "vm7", &[qdisk(768, &disk), qdisk(832, &shadow)]);
    let qemu = host.launch(7).unwrap();
    let pair = host.key(7).unwrap();
    assert_eq!(level(&qemu.exec_context(&host).unwrap()), format!("s0:{pair}"));
    assert_eq!(level(&label(&disk)), format!("s0:{pair}"));
    assert_eq!(label(&shadow), "system_u:object_r:shadow_t:s0");
    assert!(qemu.said().contains("its type shadow_t is none of a disk"), "{}", qemu.said());
    let other = host.launch(8).unwrap();
    assert!(other.said().contains("domain 8 does not exist"), "{}", other.said());
    assert_eq!(other.exec_context(&host), None);
}

#[test]
fn disabled_is_believed_only_when_the_kernel_agrees() {
    let host = Host::new();
    host.domain(7, "vm7", &[]);
    host.set("mode", "disabled");
    let refusal = host.refuse(&["-xen-domid", "7"]);
    assert!(refusal.said.contains("the kernel runs SELinux but libselinux finds it disabled"), "{}", refusal.said);
    host.set("filesystems", "nodev\tproc\n\text4\n");
    let qemu = host.launch(7).unwrap();
    assert!(qemu.said().contains("domain 7 is not confined: SELinux is disabled"), "{}", qemu.said());
    assert!(host.key(7).is_none() && !host.path("state").exists());
    let refusal = {
        host.configure(&format!("qemu = '{}'\nrequire = true", compiled("qemu").display()));
        host.refuse(&["-xen-domid", "7"])
    };
    assert!(refusal.said.contains("require = true"), "{}", refusal.said);
}
