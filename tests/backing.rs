//! The files below a qcow2 disk, which the real wrapper finds by headers that nobody vouches for.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod xenstored;
}

use std::fs::File;
use std::os::unix::fs::symlink;

use common::host::{CONTENT, Host, UNUSED, compiled, label, level, qcow2_disk, qdisk, set_label, write_qcow2};
use nix::sys::stat::{Mode, SFlag, makedev, mknod};

/// A host whose images may all be backing files, by a name of their directory that is a symlink.
fn host_with_backing_files() -> Host {
    let host = Host::new();
    let link = host.path("srv");
    symlink(host.path("images"), &link).unwrap();
    let directories = format!("backing_dirs = ['/nonexistent', '{}']", link.display());
    host.configure(&format!("qemu = '{}'\n{directories}", compiled("qemu").display()));
    host
}

#[test]
fn labels_every_layer_below_a_qcow2_disk() {
    let host = host_with_backing_files();
    let base = host.image("base.raw");
    let lower = host.qcow2("lower.qcow2", &format!("file:{}", base.display()), "raw");
    let options = format!(r#"json:{{"driver":"qcow2","file":{{"driver":"file","filename":"{}"}}}}"#, lower.display());
    let upper = host.qcow2("upper.qcow2", &options, "");
    let layers = [&base, &lower, &upper];
    let own = [1, 2].map(|number| host.qcow2(&format!("{number}.qcow2"), "../images/upper.qcow2", "qcow2"));
    for (domid, disk) in (1u16..).zip(&own) {
        host.domain(domid, &format!("vm{domid}"), &[qcow2_disk(768, disk)]);
    }
    let mut running = Vec::new();
    for (domid, disk) in (1u16..).zip(&own) {
        running.push(host.launch(domid).unwrap());
        assert_eq!(level(&label(disk)), format!("s0:{}", host.key(domid).unwrap()));
    }
    assert_eq!(host.claims().len(), own.len() + layers.len(), "the layers are shared");
    for (domid, expected) in (1u16..).zip([CONTENT, UNUSED]) {
        assert_eq!(layers.map(|layer| label(layer)), [CONTENT; 3]);
        host.destroy(domid);
        drop(running.remove(0));
        assert!(host.svirtctl(&["reconcile"]).status.success());
        assert_eq!(layers.map(|layer| label(layer)), [expected; 3]);
    }
}

#[test]
fn reads_no_header_unless_it_is_told_where_backing_files_are() {
    let host = Host::new();
    let base = host.image("base.raw");
    let disk = host.qcow2("a.qcow2", "base.raw", "raw");
    host.set("unreadable", disk.to_str().unwrap());
    host.domain(1, "vm1", &[qcow2_disk(768, &disk)]);
    let _qemu = host.launch(1).unwrap();
    assert_eq!(label(&base), UNUSED);
}

#[test]
fn tells_which_boolean_lets_it_read_a_header() {
    let host = host_with_backing_files();
    host.image("base.raw");
    let disk = host.qcow2("a.qcow2", "base.raw", "raw");
    host.set("unreadable", disk.to_str().unwrap());
    host.domain(1, "vm1", &[qcow2_disk(768, &disk)]);
    let refusal = host.refuse(&["-xen-domid", "1"]);
    let said = format!(
        "cannot follow the backing file of {}: cannot read its header: \
         setsebool -P svirt_interpose_read_image_headers on: Permission denied",
        disk.display()
    );
    assert!(refusal.said.contains(&said), "{}", refusal.said);
}

#[test]
fn never_follows_what_is_not_declared_qcow2() {
    let host = host_with_backing_files();
    let secret = host.image("secret.raw");
    // the guest wrote a header into its raw disk, and into the one that another image stands on
    let [raw, base, old] = ["raw", "base.raw", "old.img"].map(|name| host.qcow2(name, "secret.raw", "raw"));
    let [disk, older] = [("a.qcow2", "base.raw", "raw"), ("b.qcow2", "old.img", "qcow")]
        .map(|(name, backing, format)| host.qcow2(name, backing, format));
    host.set("unreadable", &format!("{} {} {}", raw.display(), base.display(), old.display()));
    host.domain(1, "vm1", &[qdisk(768, &raw), qcow2_disk(832, &disk), qcow2_disk(5632, &older)]);
    let _qemu = host.launch(1).unwrap();
    assert_eq!([base, old].map(|layer| label(&layer)), [CONTENT; 2]);
    assert_eq!(label(&secret), UNUSED);
}

#[test]
fn a_layer_that_is_also_a_disk_of_the_guest_is_that() {
    let host = host_with_backing_files();
    let base = host.image("base.raw");
    let disk = host.qcow2("a.qcow2", "base.raw", "raw");
    host.domain(1, "vm1", &[qcow2_disk(768, &disk), qdisk(832, &base)]);
    let _qemu = host.launch(1).unwrap();
    assert_eq!(label(&base), label(&disk));
}

#[test]
fn refuses_a_chain_that_leads_where_no_backing_file_is() {
    let host = host_with_backing_files();
    let disk = host.image("a.qcow2");
    host.domain(1, "vm1", &[qcow2_disk(768, &disk)]);
    let refused = |backing: &str, format: &str, because: &str| {
        write_qcow2(&disk, backing, format);
        let refusal = host.refuse(&["-xen-domid", "1"]);
        assert_eq!(refusal.status, 125, "{}", refusal.said);
        assert!(refusal.said.contains(because), "{because:?} is not in {:?}", refusal.said);
    };

    let outside = host.path("outside.raw");
    File::create(&outside).unwrap();
    set_label(&outside, UNUSED);
    symlink(&outside, host.path("images/link")).unwrap();
    let nowhere = format!(
        "cannot follow the backing file of {}: {} is in none of the directories that backing_dirs names in \
         /etc/svirt-interpose.conf",
        disk.display(),
        outside.display()
    );
    for backing in [outside.to_str().unwrap(), "../outside.raw", "link", "./../images/link"] {
        refused(backing, "raw", &nowhere);
    }
    assert_eq!(label(&outside), UNUSED);

    host.qcow2("b.qcow2", "a.qcow2", "qcow2");
    for backing in ["a.qcow2", "b.qcow2"] {
        refused(backing, "qcow2", "a.qcow2 stands on itself");
    }
    refused("missing.raw", "raw", "missing.raw as a disk: No such file or directory");
    refused("file:base.raw", "raw", "its backing file \"file:base.raw\" is no absolute path: qemu-img rebase");
    refused("base.raw", "", "it does not say which format its backing file \"base.raw\" has: qemu-img rebase");
    mknod(&host.path("images/device"), SFlag::S_IFBLK, Mode::empty(), makedev(7, 0)).unwrap();
    refused("device", "raw", "device is a block device, and only a file can be one that guests read");

    let base = host.image("base.raw");
    refused("base.raw", "qcow2", "base.raw: it is no qcow2 image of version 2 or 3");
    let shadow = host.qcow2("shadow", "base.raw", "raw");
    set_label(&shadow, "system_u:object_r:shadow_t:s0");
    host.set("unreadable", shadow.to_str().unwrap());
    for format in ["raw", "qcow2"] {
        refused("shadow", format, "its type shadow_t is none of a disk");
    }
    host.domain(2, "vm2", &[qdisk(768, &base)]);
    let _other = host.launch(2).unwrap();
    refused("base.raw", "raw", "base.raw: it is in use by domain 2");
}

#[test]
fn follows_a_chain_as_deep_as_libvirt_does() {
    let host = host_with_backing_files();
    host.image("0.qcow2");
    for layer in 1..=201 {
        host.qcow2(
            &format!("{layer}.qcow2"),
            &format!("{}.qcow2", layer - 1),
            if layer == 1 { "raw" } else { "qcow2" },
        );
    }
    let disks = [200, 201].map(|layer| host.path(&format!("images/{layer}.qcow2")));
    for (domid, disk) in (1u16..).zip(&disks) {
        host.domain(domid, &format!("vm{domid}"), &[qcow2_disk(768, disk)]);
    }
    assert!(host.refuse(&["-xen-domid", "2"]).said.contains("there are more than 200 of them"));
    let _qemu = host.launch(1).unwrap();
    assert_eq!(label(&host.path("images/0.qcow2")), CONTENT);
}
