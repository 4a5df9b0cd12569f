//! Disks that come and go while a guest runs: `svirtctl relabel`, by hand, and `svirtctl watch`, by itself.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod xenstored;
}

use std::fs::{self, File};
use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use common::host::{CONTENT, Disk, Host, UNUSED, cdrom, compiled, label, qdisk, set_label};
use common::xenstored::{Daemon, within};
use xenstore_rs::Xs as _;

const PATIENCE: Duration = Duration::from_secs(60);

/// Relabels, and returns the exit status and what it said.
fn relabel(host: &Host, args: &[&str]) -> (i32, String) {
    let output = host.svirtctl(&[&["relabel"], args].concat());
    let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
    (output.status.code().unwrap(), said.concat())
}

/// The label that a domain's disks have.
fn guests(host: &Host, domid: u16) -> String {
    format!("system_u:object_r:svirt_xen_image_t:s0:{}", host.key(domid).unwrap())
}

/// As [`qdisk`], with its name.
fn named(devid: u32, name: &str, path: &Path) -> Disk {
    let mut disk = qdisk(devid, path);
    disk.4.push(("dev", name.into()));
    disk
}

#[test]
fn labels_a_disk_that_was_attached_and_does_so_once() {
    let host = Host::new();
    let [first, second] = ["a.raw", "b.raw"].map(|name| host.image(name));
    host.domain(1, "vm1", &[qdisk(768, &first)]);
    let _qemu = host.launch(1).unwrap();
    host.attach(1, &named(51728, "xvdb", &second));
    let label_of_1 = guests(&host, 1);
    assert_eq!(relabel(&host, &["1"]), (0, format!("{}: labelled {label_of_1}\n", second.display())));
    assert_eq!([label(&first), label(&second)], [label_of_1.clone(), label_of_1]);

    let before = (host.everything(), fs::read(host.path("state/claims").join(host.key(1).unwrap())).unwrap());
    for args in [&["1"][..], &["1", "51728"], &["1", "xvdb"]] {
        assert_eq!(relabel(&host, args), (0, String::new()), "there is nothing to do");
    }
    assert_eq!((host.everything(), fs::read(host.path("state/claims").join(host.key(1).unwrap())).unwrap()), before);
}

#[test]
fn labels_the_named_disk_alone() {
    let host = Host::new();
    let [a, b] = ["a.raw", "b.raw"].map(|name| host.image(name));
    host.domain(1, "vm1", &[]);
    let _qemu = host.launch(1).unwrap();
    host.attach(1, &named(51728, "xvdb", &a));
    host.attach(1, &named(51744, "xvdc", &b));
    assert_eq!(relabel(&host, &["1", "xvdc"]).0, 0);
    assert_eq!([label(&a), label(&b)], [UNUSED.into(), guests(&host, 1)]);
    assert_eq!(relabel(&host, &["1", "51728"]).0, 0);
    assert_eq!(label(&a), guests(&host, 1));
}

#[test]
fn has_qemu_try_again_a_disk_that_it_could_not_open() {
    for daemon in [Daemon::C, Daemon::OCaml] {
        let host = Host::with(daemon);
        let disk = host.image("a.raw");
        host.domain(1, "vm1", &[]);
        let _qemu = host.launch(1).unwrap();
        host.attach(1, &qdisk(51728, &disk));
        let backend = "/local/domain/0/backend/qdisk/1";
        let mut changes = host.store().watch(backend).unwrap();
        assert_eq!(&*changes.next_change().unwrap(), backend);
        let before = host.everything();
        assert_eq!(relabel(&host, &["1"]).0, 0);
        assert_eq!(&*changes.next_change().unwrap(), format!("{backend}/51728"));
        set_label(&disk, UNUSED);
        let link = fs::read_dir(host.path("state/objects")).unwrap().next().unwrap().unwrap().path();
        fs::remove_file(link).unwrap();
        assert_eq!(host.everything(), before, "no node was changed");
    }
}

#[test]
fn refuses_what_a_launch_refuses_and_leaves_it() {
    let host = Host::new();
    let [theirs, strange, stray, fine] = ["a.raw", "b.raw", "c.raw", "d.raw"].map(|name| host.image(name));
    set_label(&strange, "system_u:object_r:shadow_t:s0");
    set_label(&stray, "system_u:object_r:svirt_xen_image_t:s0:c1,c2");
    host.domain(1, "vm1", &[]);
    host.domain(2, "vm2", &[qdisk(768, &theirs)]);
    let _qemus = [host.launch(1).unwrap(), host.launch(2).unwrap()];
    host.attach(1, &named(51728, "xvdb", &theirs));
    host.attach(1, &named(51744, "xvdc", &strange));
    host.attach(1, &named(51760, "xvdd", &stray));
    let before = host.everything();
    for (device, why) in [
        ("xvdb", "it is in use by domain 2 "),
        ("xvdc", "its type shadow_t is none of a disk"),
        ("xvdd", "it carries c1,c2, and no claim says of whom"),
    ] {
        let (status, said) = relabel(&host, &["1", device]);
        assert_eq!((status, said.contains(why)), (1, true), "{device}: {said}");
    }
    assert_eq!(host.everything(), before);
    host.attach(1, &named(51776, "xvde", &fine));
    assert_eq!(relabel(&host, &["1"]).0, 1);
    assert_eq!(label(&fine), guests(&host, 1), "the others' fault is not its own");
}

#[test]
fn undoes_what_could_not_be_finished() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm1", &[]);
    let _qemu = host.launch(1).unwrap();
    host.attach(1, &qdisk(51728, &disk));
    let before = host.everything();
    host.set("denied", &disk.display().to_string());
    let (status, said) = relabel(&host, &["1"]);
    assert_eq!((status, said.contains("Permission denied")), (1, true), "{said}");
    assert_eq!(host.everything(), before);
}

#[test]
fn tells_that_there_is_nothing_to_relabel() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm1", &[qdisk(768, &disk)]);
    host.domain(2, "vm2", &[]);
    let qemu = host.launch(2).unwrap();
    for (args, why) in [
        (&["1"][..], "domain 1 has no pair of categories"),
        (&["3"], "domain 3 does not exist"),
        (&["2", "xvdb"], "domain 2 has no virtual block device xvdb"),
        (&["x"], "x"),
        (&[], "see svirtctl --help"),
        (&["1", "xvda", "xvdb"], "see svirtctl --help"),
    ] {
        let (status, said) = relabel(&host, args);
        assert_eq!((status, said.contains(why)), (2, true), "{args:?}: {said}");
    }
    // the key of another's pair is no claim to it
    host.store().write("/local/domain/1/selinux-mcs", &host.key(2).unwrap()).unwrap();
    let (status, said) = relabel(&host, &["1"]);
    assert_eq!((status, said.contains("no running device model of it has claimed that")), (1, true), "{said}");
    drop(qemu);
    host.attach(2, &qdisk(51728, &disk));
    assert_eq!(relabel(&host, &["2"]).0, 1, "its device model is gone");
    assert_eq!(label(&disk), UNUSED);
}

#[test]
fn puts_back_the_label_of_a_disk_that_was_detached() {
    let host = Host::new();
    let [first, second] = ["a.raw", "b.raw"].map(|name| host.image(name));
    host.domain(1, "vm1", &[qdisk(768, &first)]);
    host.domain(2, "vm2", &[]);
    let qemus = [host.launch(1).unwrap(), host.launch(2).unwrap()];
    let disk = named(51728, "xvdb", &second);
    host.attach(1, &disk);
    assert_eq!(relabel(&host, &["1"]).0, 0);
    host.detach(1, &disk);
    assert_eq!(relabel(&host, &["1"]), (0, format!("{}: put back {UNUSED}\n", second.display())));
    assert_eq!(label(&first), guests(&host, 1));
    host.attach(2, &disk);
    assert_eq!(relabel(&host, &["2"]).0, 0, "another may have it now");
    assert_eq!(label(&second), guests(&host, 2));
    drop(qemus);
    host.destroy(1);
    host.destroy(2);
    assert!(host.svirtctl(&["reconcile"]).status.success());
    assert_eq!([label(&first), label(&second)], [UNUSED, UNUSED]);
}

#[test]
fn labels_a_file_that_is_only_read_as_content_until_the_last_gives_it_up() {
    let host = Host::new();
    let image = host.image("cd.iso");
    host.domain(1, "vm1", &[cdrom(5632, &image)]);
    host.domain(2, "vm2", &[]);
    let _qemus = [host.launch(1).unwrap(), host.launch(2).unwrap()];
    host.attach(2, &cdrom(5632, &image));
    assert_eq!(relabel(&host, &["2", "5632"]), (0, format!("{}: labelled {CONTENT}\n", image.display())));
    for args in [&["2", "5632"][..], &["2"]] {
        assert_eq!(relabel(&host, args), (0, String::new()), "there is nothing to do");
    }
    host.detach(1, &cdrom(5632, &image));
    assert_eq!(relabel(&host, &["1"]), (0, String::new()));
    assert_eq!(label(&image), CONTENT);
    host.detach(2, &cdrom(5632, &image));
    assert_eq!(relabel(&host, &["2"]), (0, format!("{}: put back {UNUSED}\n", image.display())));
    assert_eq!(host.claims().len(), 2);
}

#[test]
fn leaves_the_label_of_a_disk_that_qemu_has_not_closed() {
    let host = Host::new();
    let disk = host.image("a.raw");
    host.domain(1, "vm1", &[]);
    let attached = qdisk(51728, &disk);
    // what is opened here is open in the stand-in for QEMU
    let file = File::open(&disk).unwrap();
    let report = host.path("report.own");
    let mut qemu = host.command(env!("CARGO_BIN_EXE_svirt-interpose"));
    let qemu = qemu.args(["-xen-domid", "1"]).env("QEMU_REPORT", &report).stdin(Stdio::from(file)).spawn();
    let mut qemu = Killed(qemu.unwrap());
    within(PATIENCE, || report.exists().then_some(()));
    host.attach(1, &attached);
    assert_eq!(relabel(&host, &["1"]).0, 0);
    host.detach(1, &attached);
    assert_eq!(relabel(&host, &["1"]), (0, String::new()));
    assert_eq!(label(&disk), guests(&host, 1));
    qemu.0.kill().unwrap();
}

/// A process that ends with the test.
struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// `svirtctl watch`, once it watches; what it says goes to a file.
fn watch(host: &Host) -> Killed {
    let said = File::create(host.path("watch.said")).unwrap();
    let mut watch = host.command(env!("CARGO_BIN_EXE_svirtctl"));
    let watch = watch.arg("watch").stdout(said.try_clone().unwrap()).stderr(said);
    Killed(watch.spawn().unwrap())
}

fn says(host: &Host, what: &str) {
    let said = || fs::read_to_string(host.path("watch.said")).unwrap().contains(what).then_some(());
    within(PATIENCE, said);
}

/// libxl's own record of a domain's disks.
fn record(host: &Host, domid: u16, vm: &str, disks: &[(&Path, u8)]) {
    let disks: Vec<String> = disks
        .iter()
        .map(|(path, readwrite)| format!("{{\"pdev_path\": \"{}\", \"readwrite\": {readwrite}}}", path.display()))
        .collect();
    host.set(&format!("userdata-d.{domid}.{vm}.libxl-json"), &format!("{{\"disks\": [{}]}}\n\0", disks.join(", ")));
}

#[test]
fn watch_labels_what_libxl_attaches() {
    for daemon in [Daemon::C, Daemon::OCaml] {
        let host = Host::with(daemon);
        let [early, late] = ["a.raw", "b.raw"].map(|name| host.image(name));
        host.domain(1, "vm1", &[]);
        let _qemu = host.launch(1).unwrap();
        record(&host, 1, "vm1", &[(&early, 1), (&late, 1)]);
        host.attach(1, &qdisk(51728, &early));
        let _watch = watch(&host);
        says(&host, &format!("{}: labelled", early.display()));
        host.attach(1, &qdisk(51744, &late));
        says(&host, &format!("{}: labelled", late.display()));
        assert_eq!([label(&early), label(&late)], [guests(&host, 1), guests(&host, 1)]);
    }
}

#[test]
fn watch_labels_nothing_on_the_word_of_xenstore_alone() {
    let host = Host::new();
    let [golden, victims, listed, last] = ["a.raw", "b.raw", "c.raw", "d.raw"].map(|name| host.image(name));
    host.domain(1, "vm1", &[]);
    host.domain(2, "vm2", &[]);
    host.domain(3, "vm3", &[]);
    let _qemus = [1, 2, 3].map(|domid| host.launch(domid).unwrap());
    record(&host, 1, "vm1", &[(&golden, 0), (&listed, 1)]);
    record(&host, 3, "vm3", &[(&last, 1)]);
    let _watch = watch(&host);
    let before = [&victims, &listed].map(|path| label(path));
    host.attach(1, &qdisk(51728, &victims));
    says(&host, &format!("cannot label {}: libxl has no such", victims.display()));
    host.attach(1, &qdisk(51744, &golden));
    says(&host, &format!("cannot label {}: libxl has no such", golden.display()));
    host.detach(1, &qdisk(51744, &golden));
    host.attach(1, &cdrom(51744, &golden));
    says(&host, &format!("{}: labelled {CONTENT}", golden.display()));
    // what it stands on is no better known than its path
    let physical = vec![("physical-device-path", victims.display().to_string())];
    host.attach(1, &Disk("vbd", 51760, listed.display().to_string(), "w", physical));
    // libxl has no record of this domain
    host.attach(2, &qdisk(51728, &victims));
    host.attach(3, &qdisk(51728, &last));
    says(&host, &format!("{}: labelled", last.display()));
    assert_eq!([&victims, &listed].map(|path| label(path)), before);
}

#[test]
fn watch_labels_a_shared_disk_that_libxl_attaches_to_read() {
    const SHARED: &str = "system_u:object_r:svirt_xen_shared_image_t:s0";
    let host = Host::new();
    let disk = host.image("a.raw");
    let qemu = compiled("qemu");
    host.configure(&format!("qemu = '{}'\nshared_context = '{SHARED}'\nshared_disks = [{disk:?}]", qemu.display()));
    host.domain(1, "vm1", &[]);
    let _qemu = host.launch(1).unwrap();
    record(&host, 1, "vm1", &[(&disk, 0)]);
    let _watch = watch(&host);
    host.attach(1, &cdrom(51744, &disk));
    says(&host, &format!("{}: labelled {SHARED}", disk.display()));
    assert_eq!(label(&disk), SHARED);
}

#[test]
fn a_relabel_that_was_killed_anywhere_is_finished_by_the_next_or_put_back_in_the_end() {
    let host = Host::new();
    let disk = host.image("a.raw");
    let nothing = host.everything();
    let run = |inject: Option<&str>| -> Vec<String> {
        let trace = host.path("trace");
        let mut strace = Command::new("timeout");
        strace.args(["60", "strace", "-o"]).arg(&trace).args(inject.iter().flat_map(|inject| ["-e", inject]));
        strace.arg(format!("--env=LD_PRELOAD={}", compiled("selinux.so").display()));
        strace.args([env!("CARGO_BIN_EXE_svirtctl"), "relabel", "1"]).stdout(Stdio::null()).stderr(Stdio::null());
        strace.env("SELINUX_SHIM", host.path("")).env("XENSTORED_PATH", host.xenstored.socket());
        assert_ne!(strace.status().unwrap().code(), Some(124), "it hangs");
        let trace = BufReader::new(File::open(trace).unwrap());
        let names = trace.lines().filter_map(|line| Some(line.unwrap().split_once('(')?.0.to_owned()));
        names.skip(1).filter(|name| !name.starts_with("exit")).collect()
    };
    let mut points = Vec::new();
    for round in 0.. {
        host.domain(1, "vm1", &[]);
        let qemu = host.launch(1).unwrap();
        host.attach(1, &qdisk(51728, &disk));
        if round == 0 {
            points = run(None);
        } else {
            let Some(name) = points.get(round - 1) else { break };
            let number = points[..round].iter().filter(|point| *point == name).count();
            run(Some(&format!("inject={name}:signal=SIGKILL:when={number}")));
        }
        // one in two is tried again before the end
        if round % 2 == 0 {
            assert_eq!(relabel(&host, &["1"]).0, 0, "round {round}");
            assert_eq!(label(&disk), guests(&host, 1), "round {round}");
        }
        host.destroy(1);
        drop(qemu);
        assert!(host.svirtctl(&["reconcile"]).status.success(), "round {round}");
        assert_eq!(host.everything(), nothing, "round {round}");
    }
    assert!(points.len() > 100, "only {} points", points.len());
}
