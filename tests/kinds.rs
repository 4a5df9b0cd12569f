//! Disks whose type only the policy knows, and those that carry no label of their own.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod xenstored;
}

use std::fs;
use std::path::Path;

use common::host::{Host, UNUSED, cdrom, label, qdisk, set_label};
use nix::sys::signal::Signal;

const SITE: &str = "system_u:object_r:site_image_t:s0";
const NFS: &str = "system_u:object_r:nfs_t:s0";

/// What a guest's QEMU may do with what is on NFS.
fn nfs(permissions: &[&str]) -> String {
    let rules: Vec<String> =
        permissions.iter().map(|permission| format!("svirt_xen_t nfs_t file {permission}\n")).collect();
    rules.concat()
}

/// A file on a filesystem that keeps no labels: none can be set.
fn on_nfs(host: &Host, name: &str) -> std::path::PathBuf {
    let path = host.image(name);
    set_label(&path, NFS);
    host.set("denied", path.to_str().unwrap());
    path
}

fn reconcile(host: &Host) -> String {
    let output = host.svirtctl(&["reconcile"]);
    assert!(output.status.success(), "{output:?}");
    String::from_utf8(output.stdout).unwrap()
}

fn end(host: &Host, domid: u16, qemu: common::host::Started) {
    qemu.signal(Signal::SIGKILL);
    drop(qemu);
    host.destroy(domid);
}

#[test]
fn a_disk_has_a_type_of_the_sites_own() {
    let host = Host::new();
    let disk = host.image("a.raw");
    set_label(&disk, SITE);
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    assert!(host.refuse(&["-xen-domid", "1"]).said.contains("its type site_image_t is none of a disk"));
    // that an administrator may relabel everything is no answer
    host.set(
        "allowed",
        "unconfined_t site_image_t file relabelfrom\nsvirt_interpose_t site_image_t blk_file relabelfrom",
    );
    assert!(host.refuse(&["-xen-domid", "1"]).said.contains("its type site_image_t is none of a disk"));

    host.set("allowed", "svirt_interpose_t site_image_t file relabelfrom");
    let qemu = host.launch(1).unwrap();
    assert_eq!(label(&disk), format!("system_u:object_r:svirt_xen_image_t:s0:{}", host.key(1).unwrap()));
    end(&host, 1, qemu);
    reconcile(&host);
    assert_eq!(label(&disk), SITE);
}

#[test]
fn a_disk_that_keeps_no_label_waits_for_the_policys_word() {
    let host = Host::new();
    let disk = on_nfs(&host, "a.raw");
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    for allowed in [vec![], vec!["open", "read"], vec!["read", "write"]] {
        host.set("allowed", &nfs(&allowed));
        let said = host.refuse(&["-xen-domid", "1"]).said;
        assert!(said.contains("all of it is nfs_t: setsebool -P svirt_xen_use_nfs on"), "{said}");
    }
    host.set("allowed", &nfs(&["open", "read", "write"]));
    let plan = String::from_utf8(host.svirtctl(&["plan", "--", "-xen-domid", "1"]).stdout).unwrap();
    assert!(plan.contains("a.raw: system_u:object_r:nfs_t:s0 -> the same"), "{plan}");
    let qemu = host.launch(1).unwrap();
    assert!(qemu.said().contains("a.raw keeps the label system_u:object_r:nfs_t:s0"), "{}", qemu.said());
    assert!(qemu.exec_context(&host).unwrap().ends_with(&host.key(1).unwrap()));
    assert_eq!(label(&disk), NFS);
    let audit = String::from_utf8(host.svirtctl(&["audit"]).stdout).unwrap();
    assert!(audit.contains(NFS) && !audit.contains("is labelled"), "{audit}");
}

#[test]
fn a_disk_that_keeps_no_label_is_one_guests_none_the_less() {
    let host = Host::new();
    let disk = on_nfs(&host, "a.raw");
    host.set("allowed", &nfs(&["open", "read", "write"]));
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    let qemu = host.launch(1).unwrap();
    let said = host.refuse(&["-xen-domid", "2"]).said;
    assert!(said.contains("a.raw: it is in use by domain 1"), "{said}");
    assert!(host.svirtctl(&["reconcile"]).status.success());
    end(&host, 1, qemu);

    let qemu = host.launch(2).unwrap();
    end(&host, 2, qemu);
    reconcile(&host);
    assert_eq!((host.claims(), label(&disk)), (Vec::<String>::new(), NFS.to_owned()));
    assert_eq!(fs::read_dir(host.path("state/objects")).unwrap().count(), 0);
}

#[test]
fn a_claim_does_not_wait_for_what_keeps_no_label() {
    let host = Host::new();
    let [disk, other] = [on_nfs(&host, "a.raw"), host.image("b.raw")];
    host.set("allowed", &nfs(&["open", "read", "write"]));
    host.domain(1, "vm1", &[qdisk(768, &disk), qdisk(832, &other)]);
    let qemu = host.launch(1).unwrap();
    end(&host, 1, qemu);
    // as if it were unmounted
    fs::rename(disk.parent().unwrap(), host.path("elsewhere")).unwrap();
    fs::create_dir(disk.parent().unwrap()).unwrap();
    fs::rename(host.path("elsewhere/b.raw"), &other).unwrap();
    reconcile(&host);
    assert_eq!((host.claims(), label(&other)), (Vec::<String>::new(), UNUSED.to_owned()));
}

#[test]
fn what_keeps_no_label_may_be_read_by_many() {
    let host = Host::new();
    let iso = on_nfs(&host, "a.iso");
    let drive = |path: &Path| [cdrom(5632, path)];
    host.domain(1, "vm1", &drive(&iso));
    assert!(host.refuse(&["-xen-domid", "1"]).said.contains("setsebool -P svirt_xen_use_nfs on"));
    host.set("allowed", &nfs(&["open", "read"]));
    host.domain(2, "vm2", &drive(&iso));
    let _qemus = [1, 2].map(|domid| host.launch(domid).unwrap());
    assert_eq!((host.claims().len(), label(&iso)), (2, NFS.to_owned()));
}
