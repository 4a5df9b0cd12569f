//! What `svirtctl plan` says is what a launch then does.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod plan;
    pub(crate) mod xenstored;
}

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::host::{CONTENT, Disk, Host, Started, UNUSED, cdrom, qcow2_disk, qdisk, set_label};
use common::plan::Plan;
use common::xenstored::Daemon;

/// What `plan` said: whether QEMU would be started, the lines of its output, and its warnings.
fn plan(host: &Host, args: &[&str]) -> (bool, Vec<String>, String) {
    let Plan { starts, lines, warned, .. } = Plan::of(host, args, &[]);
    (starts, lines, warned)
}

/// Plans, launches, and compares all that can be seen: the running QEMU where there is one.
fn agree(host: &Host, args: &[&str]) -> Option<Started> {
    let plan = Plan::of(host, args, &[]);
    plan.is_what_was_done(host, host.start(args).outcome())
}

fn guest(domid: u16) -> [String; 4] {
    ["-xen-domid", &domid.to_string(), "-name", "h"].map(String::from)
}

fn agrees(host: &Host, domid: u16) -> Option<Started> {
    agree(host, &guest(domid).each_ref().map(String::as_str))
}

#[test]
fn of_a_guest_with_every_kind_of_disk() {
    for daemon in [Daemon::C, Daemon::OCaml] {
        let host = Host::with(daemon);
        let images = host.path("images");
        host.configure(&format!(
            "qemu = '{}'\nbacking_dirs = ['{}']",
            common::host::compiled("qemu").display(),
            images.display()
        ));
        let [raw, iso, template] = ["a.raw", "install.iso", "template.raw"].map(|name| host.image(name));
        let readable = host.image("readable.iso");
        set_label(&readable, CONTENT);
        let overlay = host.qcow2("b.qcow2", template.to_str().unwrap(), "raw");
        let empty = Disk("qdisk", 5696, String::new(), "r", vec![]);
        let remote = Disk("qdisk", 5760, "nbd:host:10809".into(), "w", vec![]);
        let disks =
            [qdisk(768, &raw), qcow2_disk(832, &overlay), cdrom(5632, &iso), cdrom(5633, &readable), empty, remote];
        host.domain(7, "vm7", &disks);
        let (_, lines, _) = plan(&host, &["-xen-domid", "7"]);
        let to_guest = "system_u:object_r:svirt_xen_image_t:s0:cA,cB";
        let expected = [
            "domain: 7 (\"h7\", VM vm7)".into(),
            "categories: cA,cB, a pair that nobody has".into(),
            "context: system_u:system_r:svirt_xen_t:s0:cA,cB".into(),
            "/local/domain/0/backend/qdisk/7/768 (to write):".into(),
            format!("    {}: {UNUSED} -> {to_guest}", raw.display()),
            "/local/domain/0/backend/qdisk/7/832 (to write):".into(),
            format!("    {}: {UNUSED} -> {to_guest}", overlay.display()),
            "/local/domain/0/backend/qdisk/7/5760 (to write):".into(),
            "    nothing on this host".into(),
            "/local/domain/0/backend/qdisk/7/5632 (to read):".into(),
            format!("    {}: {UNUSED} -> {CONTENT}", iso.display()),
            "/local/domain/0/backend/qdisk/7/5633 (to read):".into(),
            format!("    {}: {CONTENT}, left as it is", readable.display()),
            "/local/domain/0/backend/qdisk/7/5696 (to read):".into(),
            "    nothing on this host".into(),
            "/local/domain/0/backend/qdisk/7/832 (what it stands on):".into(),
            format!("    {}: {UNUSED} -> {CONTENT}", template.display()),
        ];
        let mut said = lines[1..].to_vec();
        let mut wanted = expected.to_vec();
        said.sort();
        wanted.sort();
        assert_eq!(said, wanted);
        let qemu = agrees(&host, 7);
        // another that reads the same file, and has one of its own
        host.domain(8, "vm8", &[qdisk(768, &host.image("c.raw")), cdrom(5632, &iso)]);
        assert!(
            plan(&host, &["-xen-domid", "8"]).1.iter().any(|line| line.ends_with(", whose claim content-1 is joined"))
        );
        let _second = agrees(&host, 8);
        drop(qemu);
    }
}

#[test]
fn of_a_guest_that_was_there_before() {
    let host = Host::new();
    let [one, two] = ["a.raw", "b.raw"].map(|name| host.image(name));
    host.domain(1, "vm1", &[qdisk(768, &one)]);
    drop(agrees(&host, 1).unwrap());
    let pair = host.key(1).unwrap();
    host.destroy(1);
    // the same VM, in another domain
    host.domain(2, "vm1", &[qdisk(768, &one), qdisk(832, &two)]);
    let (_, lines, _) = plan(&host, &["-xen-domid", "2"]);
    assert!(lines.contains(&format!("categories: {pair}, by the claim of this VM, which is joined")), "{lines:?}");
    drop(agrees(&host, 2).unwrap());
    host.destroy(2);
    // another VM, of a disk that a dead one had
    host.domain(3, "vm3", &[qdisk(768, &two)]);
    let (_, lines, _) = plan(&host, &["-xen-domid", "3"]);
    assert!(lines.iter().any(|line| line.ends_with(&format!(", taken over from the claim of {pair}"))), "{lines:?}");
    drop(agrees(&host, 3).unwrap());
}

#[test]
fn of_what_is_refused() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    let _running = agrees(&host, 1).unwrap();
    let shadow = host.image("shadow");
    set_label(&shadow, "system_u:object_r:shadow_t:s0");
    let stray = host.image("stray");
    set_label(&stray, "system_u:object_r:svirt_xen_image_t:s0:c1022,c1023");
    for (vm, disk) in [
        (2, qdisk(768, &disk)),
        (3, qdisk(768, &shadow)),
        (4, qdisk(768, &stray)),
        (5, qdisk(768, &host.path("images/missing"))),
        (6, qdisk(768, Path::new("/dev/zero"))),
        (7, Disk("qdisk", 768, "aio:relative.raw".into(), "w", vec![])),
        (8, Disk("qdisk", 768, format!("aio:{}", disk.display()), "rw", vec![])),
    ] {
        host.domain(vm, &format!("vm{vm}"), &[disk]);
        assert!(agrees(&host, vm).is_none());
    }
    for args in
        [&["-xen-domid", "99"][..], &["-xen-domid", "x"], &["-xen-domid"], &["-xen-domid", "1", "-xen-domid", "2"]]
    {
        assert!(agree(&host, args).is_none());
    }
    host.set("unknown", "svirt_xen_image_t");
    assert!(agrees(&host, 1).is_none());
    fs::remove_file(host.path("unknown")).unwrap();
    host.configure("qemu = '/nonexistent/qemu'");
    assert!(agrees(&host, 1).is_none());
    host.configure("qemu = '/etc/passwd'");
    assert!(agrees(&host, 1).is_none());
    fs::create_dir_all(host.path("root/usr/libexec")).unwrap();
    symlink(env!("CARGO_BIN_EXE_svirt-interpose"), host.path("root/usr/libexec/svirt-interpose")).unwrap();
    host.configure(concat!("qemu = '", env!("CARGO_BIN_EXE_svirt-interpose"), "'"));
    assert!(agrees(&host, 1).is_none());
    assert!(agree(&host, &["-xen-domid", "x"]).is_none());
    host.set("conf", "nonsense");
    assert!(agrees(&host, 1).is_none());
}

#[test]
fn of_a_qemu_without_a_guest_or_without_selinux() {
    let host = Host::new();
    for args in [&["-help"][..], &["-version"], &["-xen-domid", "0"], &["-S", "-machine", "none"]] {
        let (_, lines, _) = plan(&host, args);
        assert_eq!(lines[1..], ["executed as it is: not confined by a pair, and nothing is changed"]);
        assert!(agree(&host, args).is_some());
    }
    let disk = host.image("a.raw");
    host.domain(7, "vm7", &[qdisk(768, &disk), qdisk(832, Path::new("/dev/zero"))]);
    host.set("mode", "permissive");
    assert!(agrees(&host, 7).is_some(), "what is refused is left out");
    host.domain(8, "", &[]);
    assert!(agrees(&host, 8).is_some(), "and starts unconfined");
    host.set("mode", "disabled");
    assert!(agrees(&host, 7).is_none(), "which the kernel's own list denies");
    host.set("filesystems", "nodev\tproc\n");
    assert!(agrees(&host, 7).is_some());
    host.configure(&format!("qemu = '{}'\nrequire = true", common::host::compiled("qemu").display()));
    assert!(agrees(&host, 7).is_none());
}

#[test]
fn wants_the_arguments_after_two_dashes() {
    let host = Host::new();
    for args in [&["plan"][..], &["plan", "-xen-domid", "1"]] {
        let output = host.svirtctl(args);
        assert_eq!(output.status.code(), Some(2));
        assert!(String::from_utf8_lossy(&output.stderr).contains("QEMU's arguments follow --; see svirtctl --help"));
    }
}

#[test]
fn tells_syslog_nothing() {
    let host = Host::new();
    let log = std::os::unix::net::UnixDatagram::bind(host.path("log")).unwrap();
    log.set_nonblocking(true).unwrap();
    host.domain(7, "vm7", &[]);
    host.set("mode", "permissive");
    host.configure("qemu = '/nonexistent/qemu'");
    let _ = plan(&host, &["-xen-domid", "7"]);
    host.configure(&format!("qemu = '{}'", common::host::compiled("qemu").display()));
    let _ = plan(&host, &["-xen-domid", "x"]);
    host.domain(8, "", &[]);
    assert!(plan(&host, &["-xen-domid", "8"]).2.contains("warning: domain 8 is not confined"));
    assert!(log.recv(&mut [0; 9]).is_err());
}
