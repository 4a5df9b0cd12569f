//! What `svirtctl audit` finds, by the real one against a real xenstored and real files.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod xenstored;
}

use std::cell::Cell;
use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use common::host::{CONTENT, Host, Started, UNUSED, cdrom, label, qdisk, set_label};
use common::xenstored::Daemon;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use svirt_interpose::xenstore::{Access, Permissions};
use xenstore_rs::Xs as _;

/// A host with two guests, the first with a disk, the same disk once more to read, and a CD; and a third domain, which
/// has no device model.
struct Guests {
    host: Host,
    disks: [PathBuf; 2],
    iso: PathBuf,
    qemus: Vec<Started>,
    reports: Cell<u32>,
}

impl Guests {
    fn new(daemon: Daemon) -> Self {
        let host = Host::with(daemon);
        let (disks, iso) = (["1.raw", "2.raw"].map(|name| host.image(name)), host.image("install.iso"));
        let mut qemus = Vec::new();
        for (domid, disk) in [1, 2].into_iter().zip(&disks) {
            host.domain(domid, &format!("vm{domid}"), &[qdisk(768, disk), cdrom(832, disk), cdrom(5632, &iso)]);
            let qemu = host.launch(domid).unwrap();
            host.store().write(&pid_node(domid), &qemu.pid().to_string()).unwrap();
            qemus.push(qemu);
        }
        host.domain(3, "vm3", &[]);
        Self { host, disks, iso, qemus, reports: Cell::default() }
    }

    /// The exit status, the codes of the findings in order, and what was said for people.
    fn audit(&self) -> (i32, Vec<String>, String) {
        let text = self.host.svirtctl(&["audit"]);
        let json = self.host.svirtctl(&["audit", "--json"]);
        assert_eq!(text.status.code(), json.status.code());
        let report: Value = serde_json::from_slice(&json.stdout).unwrap();
        fs::write(self.report(self.reports.get()), &json.stdout).unwrap();
        self.reports.set(self.reports.get() + 1);
        let text = String::from_utf8(text.stdout).unwrap();
        let findings = report["findings"].as_array().unwrap();
        assert_eq!(report["clean"], findings.is_empty());
        for finding in findings {
            let (what, mend) = (finding["text"].as_str().unwrap(), finding["mend"].as_str());
            let line = mend.map_or_else(|| what.to_owned(), |mend| format!("{what}: {mend}"));
            assert!(text.lines().any(|said| said == line), "{line} is not in {text}");
            let of = |domain: &&Value| domain["domid"] == finding["domid"];
            let domain = report["domains"].as_array().unwrap().iter().find(of);
            assert!(domain.is_none_or(|domain| domain["verdict"].as_array().unwrap().contains(&finding["code"])));
        }
        let codes = findings.iter().map(|finding| finding["code"].as_str().unwrap().to_owned()).collect();
        (json.status.code().unwrap(), codes, text)
    }

    fn report(&self, number: u32) -> PathBuf {
        self.host.path(&format!("audit.{number}.json"))
    }

    /// That it finds this and nothing else.
    fn finds(&self, code: &str, said: &str) {
        let (status, codes, text) = self.audit();
        assert_eq!((status, codes), (1, vec![code.to_owned()]), "{text}");
        assert!(text.contains(said), "{said:?} is not in {text}");
    }

    fn finds_nothing(&self) {
        let (status, codes, text) = self.audit();
        assert_eq!((status, codes.len()), (0, 0), "{text}");
    }

    fn key(&self, domid: u16, value: &str) {
        let (store, key) = (self.host.store(), key_node(domid));
        store.write(&key, value).unwrap();
        store.set_permissions(&key, &Permissions::dom0_only()).unwrap();
    }

    /// A process that runs as that.
    fn process(&self, context: &str) -> Killed {
        let child = Command::new("sleep").arg("1000").spawn().unwrap();
        self.host.set(&format!("pid.{}", child.id()), context);
        Killed(child)
    }

    fn runs_as(&self, guest: usize, context: &str) {
        self.host.set(&format!("pid.{}", self.qemus[guest].pid()), context);
    }

    fn unset(&self, name: &str) {
        fs::remove_file(self.host.path(name)).unwrap();
    }
}

struct Killed(Child);

impl Drop for Killed {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn key_node(domid: u16) -> String {
    format!("/local/domain/{domid}/selinux-mcs")
}

fn pid_node(domid: u16) -> String {
    format!("/local/domain/{domid}/image/device-model-pid")
}

impl Drop for Guests {
    /// Every report is of the schema that is documented.
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut python = Command::new("python3");
        python.args(["-m", "jsonschema"]);
        for number in 0..self.reports.get() {
            python.arg("-i").arg(self.report(number));
        }
        let output = python.arg("packaging/svirtctl-audit.schema.json").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn shows_every_guest_and_finds_nothing_where_all_agrees() {
    for daemon in [Daemon::C, Daemon::OCaml] {
        let guests = Guests::new(daemon);
        let before = guests.host.everything();
        guests.finds_nothing();
        assert_eq!(guests.host.everything(), before, "nothing is changed by looking");
        let (_, _, text) = guests.audit();
        assert_eq!(text.lines().count(), 1 + 2 * 3 + 1, "{text}");
        assert_eq!(text.matches(CONTENT).count(), 2, "{text}");
        for domid in [1, 2] {
            let level = format!("s0:{}", guests.host.key(domid).unwrap());
            assert_eq!(text.matches(&level).count(), 2, "{text}");
        }
        assert_eq!(text.matches("  ok\n").count(), 2, "{text}");
    }
}

#[test]
fn nothing_is_made_by_looking() {
    let host = Host::new();
    assert_eq!(host.svirtctl(&["audit"]).status.code(), Some(0));
    assert!(!host.path("state").exists());
}

#[test]
fn tells_what_the_host_lacks() {
    let guests = Guests::new(Daemon::C);
    let host = &guests.host;
    host.set("mode", "permissive");
    guests.finds("selinux-permissive", "SELinux is permissive: no guest is confined: setenforce 1\n");
    host.set("mode", "disabled");
    host.set("filesystems", "nodev\tproc\n");
    guests.finds("selinux-disabled", "SELinux is disabled: no guest is confined: boot with ");
    host.set("mode", "enforcing");
    host.set("permissive", ":svirt_xen_t:");
    guests
        .finds("type-permissive", "the type svirt_xen_t is permissive: nothing is refused it: semanage permissive -d ");
    guests.unset("permissive");
    for (unknown, code, said) in [
        (
            ":svirt_interpose_t:",
            "policy-missing",
            "module is not loaded: /usr/libexec/svirt-interpose-policy install\n",
        ),
        (
            ":svirt_interpose_0_1_0_t:",
            "policy-version",
            "module that is loaded is not of 0.1.0: /usr/libexec/svirt-interpose-policy install\n",
        ),
        (
            ":svirt_xen_image_t:",
            "context-unknown",
            "know the context system_u:object_r:svirt_xen_image_t:s0: name another",
        ),
    ] {
        host.set("unknown", unknown);
        guests.finds(code, said);
        guests.unset("unknown");
    }
    guests.finds_nothing();
}

#[test]
fn tells_a_key_that_is_not_as_it_was_published() {
    let guests = Guests::new(Daemon::C);
    let store = guests.host.store();
    let [one, two] = [1, 2].map(|domid| guests.host.key(domid).unwrap());
    let single = one.split(',').next().unwrap();

    store.rm(&key_node(1)).unwrap();
    guests
        .finds("claim-without-key", &format!("domain 1: {one} is claimed for it, but not published: xenstore-write "));
    guests.key(1, "c1,c2,");
    guests.finds(
        "key-malformed",
        "domain 1: what is published for it, \"c1,c2,\", is no set of categories: xenstore-write ",
    );
    guests.key(1, "c1022,c1023");
    guests
        .finds("key-differs", &format!("domain 1: c1022,c1023 is published for it, but {one} is claimed: xenstore-wr"));
    guests.key(1, &two);
    guests.finds(
        "comparable-sets",
        &format!("domain 1: {two} is published for it, which does not keep it apart from domain 2"),
    );
    guests.key(1, &one);
    let permissions = Permissions { owner: 0, default: Access::None, entries: vec![(1, Access::Write)] };
    store.set_permissions(&key_node(1), &permissions).unwrap();
    guests.finds(
        "key-writable",
        "domain 1: its guest may write the key of its categories: xenstore-chmod /local/domain/1/",
    );
    guests.key(1, &one);

    guests.key(3, "c1022,c1023");
    guests.finds(
        "key-without-claim",
        "domain 3: c1022,c1023 is published for it, but no claim says so: destroy domain 3 ",
    );
    for comparable in [&one, single, "c0.c1023"] {
        guests.key(3, comparable);
        guests.finds(
            "comparable-sets",
            " is published for it, which does not keep it apart from domain 1: destroy domain 3",
        );
    }
    store.rm(&key_node(3)).unwrap();
    guests.finds_nothing();
}

#[test]
fn tells_a_device_model_that_is_not_confined_or_not_known() {
    let guests = Guests::new(Daemon::C);
    let (host, store) = (&guests.host, guests.host.store());
    let pair = host.key(1).unwrap();
    let (pid, name) = (guests.qemus[0].pid(), format!("pid.{}", guests.qemus[0].pid()));

    for (context, code, said) in [
        ("system_u:system_r:svirt_xen_t:s0:c1022,c1023", "device-model-label", format!(", not at {pair}: destroy ")),
        (
            "system_u:system_r:svirt_xen_t:s0-s0:c0.c1023",
            "device-model-unconfined",
            ", whom no category keeps from ".into(),
        ),
        (&format!("u:r:svirt_xen_t:s0-s0:{pair}"), "device-model-label", format!(", not at {pair}: destroy ")),
        (&format!("u:r:unconfined_t:s0:{pair}"), "device-model-unconfined", ", not as svirt_xen_t: destroy ".into()),
    ] {
        guests.runs_as(0, context);
        guests.finds(code, &format!("domain 1: its device model {pid} runs as {context}{said}"));
    }
    guests.unset(&name);
    host.set("allowed", "svirt_xen_t svirt_xen_image_t:s0:c0,c1 file write\n");
    let (status, codes, text) = guests.audit();
    assert_eq!((status, codes), (1, vec!["device-model-unconfined".to_owned(); 2]), "{text}");
    guests.unset("allowed");

    store.rm(&pid_node(1)).unwrap();
    guests.finds(
        "device-model-unknown",
        &format!("domain 1: process {pid} holds its claim, but XenStore names none as "),
    );
    let other = guests.process("system_u:system_r:init_t:s0");
    store.write(&pid_node(1), &other.0.id().to_string()).unwrap();
    guests.finds(
        "device-model-unknown",
        &format!("holds its claim, but XenStore names process {} as its ", other.0.id()),
    );
    store.write(&pid_node(1), &pid.to_string()).unwrap();
    store.write(&pid_node(3), &other.0.id().to_string()).unwrap();
    guests.finds(
        "device-model-unconfined",
        "runs as system_u:system_r:init_t:s0: svirt-interpose did not start it: destroy ",
    );
    drop(other);
    guests.finds("device-model-gone", "domain 3: its device model ");
    store.rm(&pid_node(3)).unwrap();

    let stray = guests.process("system_u:system_r:svirt_xen_t:s0:c1022,c1023");
    guests.finds("device-model-unknown", &format!("process {} runs as system_u:system_r:svirt_xen_t", stray.0.id()));
    drop(stray);
    guests.finds_nothing();
}

#[test]
fn tells_a_process_that_shares_a_guests_categories() {
    let guests = Guests::new(Daemon::C);
    let pair = guests.host.key(1).unwrap();
    for set in [&pair, pair.split(',').next().unwrap(), "c0.c1023"] {
        let container = guests.process(&format!("system_u:system_r:container_t:s0:{set}"));
        let (status, codes, text) = guests.audit();
        assert_eq!((status, codes), (1, vec!["foreign-set".to_owned()]), "{text}");
        let told = format!("process {} runs as system_u:system_r:container_t:s0:", container.0.id());
        assert!(text.contains(&told), "{text}");
        assert!(text.ends_with(": stop it and start it again, at other categories\n"), "{text}");
    }
    let qemu = guests.process(&format!("system_u:system_r:svirt_xen_t:s0:{pair}"));
    guests.finds("foreign-set", &format!("which is not kept apart from domain 1: kill {}\n", qemu.0.id()));
    drop(qemu);
    let _apart = guests.process("system_u:system_r:container_t:s0:c1022,c1023");
    let _range = guests.process("unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023");
    guests.finds_nothing();
}

#[test]
fn tells_a_disk_that_lost_its_label_and_how_to_mend_it() {
    let guests = Guests::new(Daemon::C);
    let disk = &guests.disks[1];
    let given = label(disk);
    for (whose, path, wrong) in [
        ("domain 2: its disk", disk, UNUSED.to_owned()),
        // as restorecon leaves it without -F
        ("domain 2: its disk", disk, given.replace("svirt_xen_image_t", "xen_image_t")),
        ("domain 2: its disk", disk, label(&guests.disks[0])),
    ] {
        set_label(path, &wrong);
        let mend = format!("chcon {given} '{}'", path.display());
        guests.finds("disk-label", &format!("{whose} {} is labelled {wrong}, not {given}: {mend}\n", path.display()));
        set_label(path, &given);
    }
    set_label(&guests.iso, UNUSED);
    let (status, codes, text) = guests.audit();
    assert_eq!((status, codes), (1, vec!["disk-label".to_owned(); 2]), "{text}");
    assert_eq!(text.matches(&format!(": chcon {CONTENT} '{}'\n", guests.iso.display())).count(), 2, "{text}");
    set_label(&guests.iso, CONTENT);
    remove_label(disk);
    guests.finds("disk-unreadable", &format!("domain 2: cannot read the label of {}: ", disk.display()));
    set_label(disk, &given);

    let mode = "/local/domain/0/backend/qdisk/2/768/mode";
    guests.host.store().write(mode, "r").unwrap();
    guests.finds(
        "domain-unreadable",
        "domain 2: cannot tell the disks of domain 2: /local/domain/0/backend/qdisk/2/768/mode",
    );
    guests.host.store().write(mode, "w").unwrap();
    guests.finds_nothing();
}

fn remove_label(path: &Path) {
    let program = "import os, sys; os.removexattr(sys.argv[1], 'security.selinux')";
    assert!(Command::new("python3").args(["-c", program]).arg(path).status().unwrap().success());
}

#[test]
fn tells_a_claim_that_nobody_holds_or_can_read() {
    let mut guests = Guests::new(Daemon::C);
    let garbage = guests.host.path("state/claims/c1022,c1023");
    fs::write(&garbage, "garbage\n").unwrap();
    guests.finds("claim-unreadable", "c1022,c1023: it begins with \"garbage\", not ");
    fs::remove_file(garbage).unwrap();

    let pair = guests.host.key(2).unwrap();
    let claim = guests.host.path("state/claims").join(&pair);
    let text = fs::read(&claim).unwrap();
    fs::remove_file(&claim).unwrap();
    guests.finds("key-without-claim", &format!("domain 2: {pair} is published for it, but no claim says so: destroy "));
    fs::write(&claim, text).unwrap();
    guests.finds_nothing();

    drop(guests.qemus.pop());
    guests.finds("device-model-gone", "domain 2: its device model ");
    guests.host.store().rm(&pid_node(2)).unwrap();
    guests
        .finds("device-model-gone", &format!("domain 2: it has no device model, though {pair} is claimed for it: des"));
    guests.host.destroy(2);
    guests.finds("claim-stale", &format!("\nnobody holds the claim of {pair}: svirtctl reconcile\n"));
    assert_eq!(guests.host.svirtctl(&["reconcile"]).status.code(), Some(0));
    guests.finds_nothing();

    let pid = guests.qemus[0].pid();
    guests.host.destroy(1);
    guests.finds("device-model-unknown", &format!("\ndomain 1 (VM vm1, device model {pid}) holds "));
}

#[test]
fn cannot_tell_without_xenstore_or_with_a_bad_configuration() {
    let host = Host::new();
    host.set("conf", "no = 'key'\n");
    let output = host.svirtctl(&["audit", "--json"]);
    assert_eq!((output.status.code(), output.stdout.as_slice()), (Some(2), &b""[..]));
    assert!(
        String::from_utf8_lossy(&output.stderr).starts_with("svirtctl: /etc/svirt-interpose.conf:1: unknown field")
    );
    host.configure("");
    kill(Pid::from_raw(host.xenstored.pid().try_into().unwrap()), Signal::SIGKILL).unwrap();
    let is_gone = || UnixStream::connect(host.xenstored.socket()).is_err().then_some(());
    common::xenstored::within(std::time::Duration::from_secs(60), is_gone);
    let output = host.svirtctl(&["audit"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("cannot connect to xenstored at "));
}

#[test]
fn what_a_launch_was_in_the_middle_of_is_no_finding() {
    let host = Host::new();
    host.domain(1, "vm1", &[qdisk(768, &host.image("a.raw"))]);
    let launch = host.start_paused(&["-xen-domid", "1"], "");
    let audit = host.command(env!("CARGO_BIN_EXE_svirtctl")).arg("audit").stdout(Stdio::piped()).spawn().unwrap();
    std::thread::sleep(std::time::Duration::from_millis(50));
    host.go_on();
    let output = audit.wait_with_output().unwrap();
    let _qemu = launch.outcome().unwrap();
    // XenStore is the toolstack's to tell of the device model, a little later
    let text = String::from_utf8(output.stdout).unwrap();
    let findings = text.lines().filter(|line| line.starts_with("domain "));
    assert!(findings.into_iter().all(|line| line.contains("XenStore names none as its device model")), "{text}");
}
