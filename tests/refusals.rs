//! What a launch refuses that no other test has it refuse: with these each message in DIAGNOSTICS of svirt-interpose(8)
//! is said by some launch, as tests/messages makes sure.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod xenstored;
}

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::Command;

use common::host::{Host, compiled, qcow2_disk, qdisk};
use common::xenstored::within;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use xenstore_rs::Xs as _;

fn refuses(host: &Host, args: &[&str], because: &str) {
    let refusal = host.refuse(args);
    assert!(refusal.said.contains(because), "{because:?} is not in {:?}", refusal.said);
}

/// A host with domain 7, which has one disk.
fn host() -> Host {
    let host = Host::new();
    host.domain(7, "vm7", &[qdisk(768, &host.image("a.raw"))]);
    host
}

const SEVEN: &[&str] = &["-xen-domid", "7"];

#[test]
fn an_argument_that_may_be_anothers_value() {
    let because = "-xen-domid after -append may be that option's value: give -xen-domid first";
    refuses(&host(), &["-append", "-xen-domid", "7"], because);
}

#[test]
fn contexts_that_are_none() {
    let host = host();
    let conf = |line: &str| {
        let (qemu, state) = (compiled("qemu"), host.path("state"));
        host.set("conf", &format!("qemu = '{}'\nstate_dir = '{}'\n{line}\n", qemu.display(), state.display()));
    };
    conf("");
    refuses(&host, SEVEN, "virtual_domain_context: name one as domain_context in /etc/svirt-interpose.conf: ");
    conf("domain_context = 'svirt_xen_t'");
    refuses(&host, SEVEN, "/etc/svirt-interpose.conf:3: \"svirt_xen_t\" is no context (user:role:type:level)");
    conf("domain_context = 'u:r:svirt_xen_t'");
    refuses(&host, SEVEN, "/etc/svirt-interpose.conf:3: \"u:r:svirt_xen_t\" has no level: a policy with MCS is needed");
}

#[test]
fn a_qemu_that_is_no_file_or_not_executable_after_all() {
    let host = host();
    host.configure("qemu = '/usr'");
    refuses(&host, SEVEN, "cannot execute /usr: not a regular file");
    // to be executed by what is no program
    let script = host.path("script");
    fs::write(&script, "#!/etc/passwd\n").unwrap();
    fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
    host.configure(&format!("qemu = '{}'", script.display()));
    let mut command = host.command("setpriv");
    command.args(["--no-new-privs", env!("CARGO_BIN_EXE_svirt-interpose")]).args(SEVEN);
    let refusal = host.run(command).outcome().err().unwrap();
    assert!(
        refusal.said.contains(": no_new_privs is set, as by NoNewPrivileges= in a systemd unit"),
        "{}",
        refusal.said
    );
}

#[test]
fn what_xenstore_says_of_a_domain() {
    let host = host();
    let store = host.store();
    let (vm, backend) = ("/local/domain/7/vm", "/local/domain/0/backend/qdisk/7/768");
    store.write(vm, "").unwrap();
    refuses(&host, SEVEN, "cannot tell which VM domain 7 is: /local/domain/7/vm names none");
    store.write(vm, "/vm/vm7").unwrap();
    for node in [backend, "/libxl/7/device/vbd/768"] {
        store.write(&format!("{node}/mode"), "rw").unwrap();
    }
    refuses(&host, SEVEN, &format!("cannot tell the disks of domain 7: {backend}/mode is \"rw\", neither r nor w"));
    store.write(&format!("{backend}/mode"), "w").unwrap();
    refuses(&host, SEVEN, &format!("{backend}/mode is not what libxl recorded"));
    store.rm(backend).unwrap();
    refuses(&host, SEVEN, &format!("{backend} does not exist, but libxl recorded it"));
}

#[test]
fn a_qcow2_header_that_makes_no_sense() {
    let host = Host::new();
    let images = host.path("images");
    host.configure(&format!("qemu = '{}'\nbacking_dirs = ['{}']", compiled("qemu").display(), images.display()));
    let disk = host.qcow2("a.qcow2", "/b.raw", "raw");
    let good = fs::read(&disk).unwrap();
    host.domain(7, "vm7", &[qcow2_disk(768, &disk)]);
    let with = |at: usize, bytes: &[u8]| {
        let mut header = good.clone();
        header[at..at + bytes.len()].copy_from_slice(bytes);
        header
    };
    // version 3, whose header says how long it is and which features it has
    let version_3 = |at: usize, bytes: &[u8]| {
        let mut header = with(4, &3_u32.to_be_bytes());
        header[100..104].copy_from_slice(&104_u32.to_be_bytes());
        header[at..at + bytes.len()].copy_from_slice(bytes);
        header
    };
    for (header, because) in [
        (good[..40].to_vec(), "its header is cut off"),
        (with(20, &99_u32.to_be_bytes()), "its cluster size is out of bounds"),
        (with(16, &9999_u32.to_be_bytes()), "the name of its backing file is out of bounds"),
        (with(76, &u32::MAX.to_be_bytes()), "a header extension is out of bounds"),
        (version_3(100, &1_u32.to_be_bytes()), "the length of its header is out of bounds"),
        (
            version_3(72, &4_u64.to_be_bytes()),
            "its data is in another file, which no launch labels: qemu-img convert it",
        ),
    ] {
        fs::write(&disk, header).unwrap();
        refuses(&host, SEVEN, because);
    }
    fs::write(&disk, &good).unwrap();
    common::host::write_qcow2(&disk, "json:{\"driver\":\"nbd\"}", "raw");
    refuses(&host, SEVEN, "names no file and its format: qemu-img rebase -u");
}

#[test]
fn a_state_directory_that_is_anybodys_or_cannot_be_made() {
    let host = host();
    fs::create_dir(host.path("state")).unwrap();
    fs::set_permissions(host.path("state"), Permissions::from_mode(0o777)).unwrap();
    refuses(&host, SEVEN, "somebody else than root may write it (chown root and chmod 0700 it)");
    let conf = fs::read_to_string(host.path("conf")).unwrap();
    host.set("conf", &conf.replace(host.path("state").to_str().unwrap(), "/proc/state"));
    refuses(&host, SEVEN, "cannot make /proc/state: ");
}

#[test]
fn claims_that_were_damaged() {
    let host = host();
    drop(host.launch(7).unwrap());
    let claim = host.path("state/claims").join(host.key(7).unwrap());
    let good = fs::read_to_string(&claim).unwrap();
    fs::write(&claim, "svirt-interpose claim 9\n").unwrap();
    refuses(&host, SEVEN, "it begins with \"svirt-interpose claim 9\", not \"svirt-interpose claim 1\"");
    fs::write(&claim, good.clone() + "holder domid=x\n").unwrap();
    refuses(&host, SEVEN, &format!("line {} makes no sense", good.lines().count() + 1));
    fs::remove_file(&claim).unwrap();
    let gone = format!("the claim of {} is gone: run svirtctl reconcile", host.key(7).unwrap());
    refuses(&host, SEVEN, &gone);
    fs::write(&claim, good).unwrap();
    for entry in fs::read_dir(host.path("state/objects")).unwrap() {
        let link = entry.unwrap().path();
        fs::remove_file(&link).unwrap();
        symlink("/etc/passwd", link).unwrap();
    }
    refuses(&host, SEVEN, ": it leads to /etc/passwd, which is no claim");
}

#[test]
fn a_claim_that_somebody_keeps_locked() {
    let host = host();
    drop(host.launch(7).unwrap());
    let claim = host.path("state/claims").join(host.key(7).unwrap());
    let mut locked = Command::new("flock").arg(&claim).args(["sleep", "1000"]).spawn().unwrap();
    within(std::time::Duration::from_secs(60), || is_locked(&claim).then_some(()));
    refuses(&host, SEVEN, ": another launch or svirtctl has held it for 15s");
    let _ = Command::new("pkill").args(["-P", &locked.id().to_string()]).status();
    locked.wait().unwrap();
}

fn is_locked(path: &Path) -> bool {
    fs::File::open(path).unwrap().try_lock().is_err()
}

#[test]
fn a_xenstored_that_does_not_answer() {
    let host = host();
    let xenstored = Pid::from_raw(host.xenstored.pid().try_into().unwrap());
    kill(xenstored, Signal::SIGSTOP).unwrap();
    let refusal = host.launch(7).err().unwrap();
    assert!(refusal.said.contains("xenstored did not answer within 10s"), "{}", refusal.said);
    kill(xenstored, Signal::SIGCONT).unwrap();
}
