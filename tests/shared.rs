//! Disks that several guests write, as the configuration says.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod loop_device;
    pub(crate) mod xenstored;
}

use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use common::host::{Host, Started, UNUSED, cdrom, compiled, label, level, phy, qdisk, set_label};
use common::loop_device::Loop;

/// The label of such a disk.
const SHARED: &str = "system_u:object_r:svirt_xen_shared_image_t:s0";

fn share(host: &Host, disks: &[&Path]) {
    let qemu = compiled("qemu");
    host.configure(&format!("qemu = '{}'\nshared_context = '{SHARED}'\nshared_disks = {disks:?}", qemu.display()));
}

/// A host with a disk that is to be shared by the name of a symlink to it, and one that does not exist.
fn host_with_a_shared_disk() -> (Host, PathBuf) {
    let host = Host::new();
    let disk = host.image("cluster.raw");
    let link = host.path("cluster");
    symlink(&disk, &link).unwrap();
    share(&host, &[Path::new("/nonexistent/disk"), &link]);
    (host, disk)
}

fn reconcile(host: &Host) {
    assert!(host.svirtctl(&["reconcile"]).status.success());
}

#[test]
fn guests_share_a_disk_until_the_last_is_gone() {
    let (host, disk) = host_with_a_shared_disk();
    let own = ["a.raw", "b.raw", "c.raw"].map(|name| host.image(name));
    let mut running = Vec::new();
    for (domid, own) in (1u16..).zip(&own) {
        let third = if domid == 3 { cdrom(51728, &disk) } else { qdisk(51728, &disk) };
        host.domain(domid, &format!("vm{domid}"), &[qdisk(51712, own), third]);
        running.push(host.launch(domid).unwrap());
        assert_eq!(label(&disk), SHARED);
        assert_eq!(level(&label(own)), format!("s0:{}", host.key(domid).unwrap()), "its own disk is its own");
    }
    assert_eq!(host.claims().len(), own.len() + 1, "one claim, of all of them");
    let audited = || String::from_utf8(host.svirtctl(&["audit"]).stdout).unwrap();
    let finding = format!("{} is labelled {UNUSED}, not {SHARED}", disk.display());
    assert!(!audited().contains(" is labelled "), "{}", audited());
    set_label(&disk, UNUSED);
    assert_eq!(audited().matches(&finding).count(), 3, "{}", audited());
    set_label(&disk, SHARED);
    for domid in 1..=3 {
        assert_eq!(label(&disk), SHARED);
        host.destroy(domid);
        drop(running.remove(0));
        reconcile(&host);
    }
    assert_eq!((label(&disk).as_str(), host.claims().len()), (UNUSED, 0));
}

#[test]
fn refuses_a_shared_disk_that_another_guest_has_alone_and_the_other_way_round() {
    let (host, disk) = host_with_a_shared_disk();
    share(&host, &[]);
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    let alone = host.launch(1).unwrap();
    share(&host, &[&disk]);
    let refusal = host.refuse(&["-xen-domid", "2"]);
    assert!(refusal.said.contains("it is in use by domain 1 "), "{}", refusal.said);

    host.destroy(1);
    drop(alone);
    let _shared = host.launch(2).unwrap();
    assert_eq!(label(&disk), SHARED, "taken over from one that is gone");
    share(&host, &[]);
    host.domain(3, "vm3", &[qdisk(768, &disk)]);
    let refusal = host.refuse(&["-xen-domid", "3"]);
    assert!(refusal.said.contains("it is in use by domain 2 "), "{}", refusal.said);
}

#[test]
fn a_disk_that_is_shared_no_more_is_one_guests_with_its_first_label_kept() {
    let (host, disk) = host_with_a_shared_disk();
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    drop(host.launch(1).unwrap());
    host.destroy(1);
    share(&host, &[]);
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    let qemu = host.launch(2).unwrap();
    assert_eq!(level(&label(&disk)), format!("s0:{}", host.key(2).unwrap()));
    host.destroy(2);
    drop(qemu);
    reconcile(&host);
    assert_eq!((label(&disk).as_str(), host.claims().len()), (UNUSED, 0));
}

#[test]
fn knows_the_first_label_of_a_shared_disk_after_the_hosts_reboot() {
    let (host, disk) = host_with_a_shared_disk();
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    drop(host.launch(1).unwrap());
    host.destroy(1);
    host.rebooted("shared-1");
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    let qemu = host.launch(2).unwrap();
    assert_eq!(label(&disk), SHARED);
    host.destroy(2);
    drop(qemu);
    reconcile(&host);
    assert_eq!((label(&disk).as_str(), host.claims().len()), (UNUSED, 0));
}

#[test]
fn what_a_failed_launch_shared_is_as_it_was() {
    let (host, disk) = host_with_a_shared_disk();
    let denied = host.image("denied.raw");
    host.set("denied", denied.to_str().unwrap());
    host.domain(1, "vm1", &[qdisk(768, &disk), qdisk(832, &denied)]);
    host.refuse(&["-xen-domid", "1"]);
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    let _qemu = host.launch(2).unwrap();
    host.refuse(&["-xen-domid", "1"]);
    assert_eq!(label(&disk), SHARED, "the other shares it still");
}

#[test]
fn leaves_a_disk_that_was_labelled_as_shared_by_hand() {
    let (host, disk) = host_with_a_shared_disk();
    set_label(&disk, SHARED);
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    let qemu = host.launch(1).unwrap();
    assert_eq!(label(&disk), SHARED);
    host.domain(2, "vm2", &[qdisk(768, &disk)]);
    share(&host, &[]);
    let refuse = || host.refuse(&["-xen-domid", "2"]).said;
    let said = refuse();
    assert!(said.contains("it is in use by domain 1 "), "{said}");
    host.destroy(1);
    drop(qemu);
    reconcile(&host);
    assert_eq!((label(&disk).as_str(), host.claims().len()), (SHARED, 0));
    let said = refuse();
    assert!(said.contains("its type svirt_xen_shared_image_t is none of a disk"), "{said}");
}

/// A host with a device, a partition of which is to be shared.
fn host_with_a_shared_partition() -> (Host, Loop, PathBuf) {
    let host = Host::new();
    let (_, whole) = Loop::whole_disk(&host);
    let part = whole.partition(1, 1);
    share(&host, &[&part]);
    (host, whole, part)
}

#[test]
fn refuses_a_shared_device_that_shares_sectors_with_one_that_another_guest_has_alone() {
    let (host, whole, part) = host_with_a_shared_partition();
    for (domid, path) in [(1, &part), (2, &part), (3, &whole.0), (4, &whole.0)] {
        host.domain(domid, &format!("vm{domid}"), &[phy(768, path)]);
    }
    let sharers = [1, 2].map(|domid| host.launch(domid).unwrap());
    assert_eq!(label(&part), SHARED);
    let said = host.refuse(&["-xen-domid", "3"]).said;
    let overlap = |one: &Path, other: &Path| format!("{}: it shares sectors with {}, ", one.display(), other.display());
    assert!(said.contains(&overlap(&whole.0, &part)), "{said}");
    for domid in [1, 2] {
        host.destroy(domid);
    }
    drop(sharers);

    let _alone = host.launch(3).unwrap();
    host.domain(5, "vm5", &[phy(768, &part)]);
    let said = host.refuse(&["-xen-domid", "5"]).said;
    assert!(said.contains(&overlap(&part, &whole.0)), "{said}");
}

#[test]
fn of_two_launches_at_once_for_a_shared_device_and_what_it_is_part_of_one_at_most_starts() {
    let (host, whole, part) = host_with_a_shared_partition();
    for round in 0..10 {
        for (domid, path) in [(1, &whole.0), (2, &part)] {
            host.domain(domid, &format!("vm{domid}"), &[phy(768, path)]);
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
        reconcile(&host);
    }
}

#[test]
fn guests_share_a_disk_that_keeps_no_label() {
    const NFS: &str = "system_u:object_r:nfs_t:s0";
    let (host, disk) = host_with_a_shared_disk();
    set_label(&disk, NFS);
    host.set("denied", disk.to_str().unwrap()); // no label can be set
    host.set("allowed", &["open", "read", "write"].map(|word| format!("svirt_xen_t nfs_t file {word}")).join("\n"));
    for domid in 1..=3 {
        host.domain(domid, &format!("vm{domid}"), &[qdisk(768, &disk)]);
    }
    let qemus = [1, 2].map(|domid| host.launch(domid).unwrap());
    assert!(qemus.iter().all(|qemu| qemu.said().contains("keeps the label system_u:object_r:nfs_t:s0")));
    let audit = String::from_utf8(host.svirtctl(&["audit"]).stdout).unwrap();
    assert!(!audit.contains("is labelled"), "{audit}");
    share(&host, &[]);
    let said = host.refuse(&["-xen-domid", "3"]).said;
    assert!(said.contains("it is in use by domain 1 "), "{said}");
    for domid in [1, 2] {
        host.destroy(domid);
    }
    drop(qemus);
    reconcile(&host);
    assert_eq!((label(&disk).as_str(), host.claims().len()), (NFS, 0));
}

#[test]
fn shares_a_disk_that_a_running_guest_gets() {
    let (host, disk) = host_with_a_shared_disk();
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    host.domain(2, "vm2", &[]);
    let _qemus = [1, 2].map(|domid| host.launch(domid).unwrap());
    host.attach(2, &qdisk(768, &disk));
    assert_eq!(host.svirtctl(&["relabel", "2"]).status.code(), Some(0));
    host.detach(1, &qdisk(768, &disk));
    assert_eq!(host.svirtctl(&["relabel", "1"]).status.code(), Some(0));
    assert_eq!(label(&disk), SHARED, "the second has it still");
    host.detach(2, &qdisk(768, &disk));
    assert_eq!(host.svirtctl(&["relabel", "2"]).status.code(), Some(0));
    assert_eq!(label(&disk), UNUSED);
}

#[test]
fn refuses_to_share_without_a_label_for_it() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.configure(&format!("qemu = '{}'\nshared_disks = [{disk:?}]", compiled("qemu").display()));
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    let refusal = host.refuse(&["-xen-domid", "1"]);
    assert!(refusal.said.contains("no shared_context of a type of their own"), "{}", refusal.said);
}
