//! What `svirtctl doctor` says of a host that is ready, and of one that lacks one thing.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod xenstored;
}

use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use common::host::{Host, compiled, set_label};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

const EXEC: &str = "system_u:object_r:svirt_interpose_exec_t:s0";
const QEMU: &str = "system_u:object_r:svirt_xen_exec_t:s0";
const STATE: &str = "system_u:object_r:svirt_interpose_var_lib_t:s0";
const BIN: &str = "system_u:object_r:bin_t:s0";
const OURS: &str = "name = 'a'\ndevice_model_override = '/usr/libexec/svirt-interpose'\n";
const ALLOWED: &str = "unconfined_t svirt_interpose_t process transition\n\
                       svirt_interpose_t svirt_xen_t:s0:c0,c1 process transition\n";
const RULE: &str = "usr/lib/udev/rules.d/99-svirt-interpose.rules";
const UNIT: &str = "svirt-interpose-watch.service";

/// A host where everything is as it should be.
struct Ready {
    host: Host,
    qemu: PathBuf,
    _log: UnixDatagram,
}

impl Ready {
    fn new() -> Self {
        let host = Host::new();
        let qemu = host.path("qemu-system-i386");
        fs::copy(compiled("qemu"), &qemu).unwrap();
        set_label(&qemu, QEMU);
        let log = UnixDatagram::bind(host.path("log")).unwrap();
        let ready = Self { host, qemu, _log: log };
        ready.configure("");
        let host = &ready.host;
        host.set("current", "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023");
        host.set("entered", "unconfined_u:unconfined_r:svirt_interpose_t:s0-s0:c0.c1023");
        host.set("allowed", ALLOWED);
        host.set("customizable_types", "svirt_xen_image_t\nvirt_content_t\n");
        fs::create_dir(host.path("state")).unwrap();
        fs::set_permissions(host.path("state"), Permissions::from_mode(0o700)).unwrap();
        set_label(&host.path("state"), STATE);
        ready.file("etc/selinux/config", "# a comment\nSELINUX=enforcing\nSELINUXTYPE=default\n");
        let interpose = ready.file("usr/libexec/svirt-interpose", "#!/bin/true\n");
        fs::set_permissions(&interpose, Permissions::from_mode(0o755)).unwrap();
        set_label(&interpose, EXEC);
        ready.file("etc/xen/a.cfg", OURS);
        ready.file("etc/xen/xl.conf", "name = 'no guest'\n");
        ready.file(RULE, "");
        ready.file(&format!("usr/lib/systemd/system/{UNIT}"), "");
        ready.file("usr/lib/systemd/system/svirt-interpose-reconcile.service", "");
        ready.file("usr/lib/systemd/system/svirt-interpose-reconcile.timer", "");
        fs::create_dir_all(host.path("root/run/systemd/system")).unwrap();
        for (target, unit) in [("multi-user.target", UNIT), ("timers.target", "svirt-interpose-reconcile.timer")] {
            let link = ready.file(&format!("etc/systemd/system/{target}.wants/{unit}"), "");
            fs::remove_file(&link).unwrap();
            symlink(format!("/usr/lib/systemd/system/{unit}"), link).unwrap();
        }
        ready
    }

    fn configure(&self, more: &str) {
        self.host.configure(&format!("qemu = '{}'\n{more}", self.qemu.display()));
    }

    /// A file of the host's own.
    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.host.path("root").join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, text).unwrap();
        path
    }

    fn remove(&self, name: &str) {
        fs::remove_file(self.host.path(name)).unwrap();
    }

    fn doctor(&self) -> (i32, String) {
        let output = self.host.svirtctl(&["doctor"]);
        let said = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        (output.status.code().unwrap(), said.concat())
    }

    fn is_ready(&self) {
        let (status, text) = self.doctor();
        assert_eq!((status, text.lines().last()), (0, Some("ready")), "{text}");
        assert!(text.lines().rev().skip(1).all(|line| line.starts_with("ok  ")), "{text}");
    }

    /// That this is wrong, and nothing else.
    fn lacks(&self, said: &str) {
        let (status, text) = self.doctor();
        let wrong: Vec<&str> = text.lines().filter(|line| !line.starts_with("ok  ")).collect();
        assert_eq!((status, wrong.len(), wrong.last()), (1, 2, Some(&"not ready")), "{said}: {text}");
        assert!(wrong[0].starts_with("WRONG  ") && wrong[0].contains(said), "{said:?} is not in {text}");
    }
}

#[test]
fn a_host_that_is_ready_is_told_so_and_left_as_it_is() {
    let ready = Ready::new();
    let before = ready.host.everything();
    ready.is_ready();
    assert_eq!(ready.host.everything(), before);
    assert_eq!(fs::read_dir(ready.host.path("state")).unwrap().count(), 0);
    fs::remove_dir(ready.host.path("state")).unwrap();
    set_label(&ready.host.path("."), STATE);
    ready.is_ready();
    assert!(!ready.host.path("state").exists());
}

#[test]
fn tells_of_selinux_and_its_policy() {
    let ready = Ready::new();
    let host = &ready.host;
    host.set("mode", "permissive");
    ready.lacks("SELinux is permissive: setenforce 1");
    host.set("mode", "disabled");
    ready.lacks("the kernel runs SELinux but libselinux finds it disabled: mount selinuxfs at ");
    host.set("filesystems", "nodev\tproc\n");
    ready.lacks("SELinux is disabled: boot with security=selinux selinux=1");
    host.set("mode", "enforcing");
    host.set("filesystems", "nodev\tselinuxfs\n");
    ready.file("etc/selinux/config", "#SELINUX=enforcing\nSELINUX=permissive\n");
    ready.lacks("SELinux will be \"permissive\" after the next boot: SELINUX=enforcing in /etc/selinux/config");
    ready.file("etc/selinux/config", "SELINUX=enforcing\n");
    for (unknown, said) in [
        (
            ":svirt_interpose_t:",
            "the svirt_interpose policy module is not loaded: /usr/libexec/svirt-interpose-policy install",
        ),
        (
            ":svirt_interpose_0_1_0_t:",
            "the svirt_interpose policy module that is loaded is not of 0.1.0: /usr/libexec/",
        ),
        (
            ":svirt_xen_t:",
            "does not know the context system_u:system_r:svirt_xen_t:s0: /usr/libexec/svirt-interpose-policy install, or another ",
        ),
    ] {
        host.set("unknown", unknown);
        ready.lacks(said);
        ready.remove("unknown");
    }
    host.set("permissive", ":svirt_xen_t:");
    ready.lacks("nothing is refused what runs as svirt_xen_t: semanage permissive -d svirt_xen_t");
    ready.remove("permissive");
    host.set("customizable_types", "svirt_image_t\nvirt_content_t\n");
    ready.lacks("restorecon would take guests' disks away from them: svirt_xen_image_t is not in ");
    host.set("customizable_types", "svirt_xen_image_t\nvirt_content_t\n");
    ready.is_ready();
}

#[test]
fn tells_whether_the_chain_can_be_entered() {
    let ready = Ready::new();
    let host = &ready.host;
    host.set("entered", "unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023");
    ready.lacks(
        "does not start svirt-interpose in a domain of its own: svirt_interpose_toolstack_domain(unconfined_t) ",
    );
    host.set("entered", "unconfined_u:unconfined_r:svirt_interpose_t:s0");
    ready.lacks(
        "svirt-interpose runs as unconfined_u:unconfined_r:svirt_interpose_t:s0, and has no pair of categories to give",
    );
    host.set("entered", "unconfined_u:unconfined_r:svirt_interpose_t:s0-s0:c0.c1023");
    host.set("allowed", ALLOWED.lines().nth(1).unwrap());
    ready.lacks(
        "a toolstack that runs as unconfined_u:unconfined_r:unconfined_t:s0-s0:c0.c1023 does not start svirt-int",
    );
    host.set("allowed", ALLOWED.lines().next().unwrap());
    ready.lacks("the policy does not let svirt_interpose_t start a QEMU as system_u:system_r:svirt_xen_t:s0:c0,c1: ");
    host.set("allowed", ALLOWED);
    ready.is_ready();
}

#[test]
fn tells_of_the_programs() {
    let ready = Ready::new();
    let interpose = ready.host.path("root/usr/libexec/svirt-interpose");
    for (path, type_, shown, install) in [
        (&interpose, EXEC, "/usr/libexec/svirt-interpose", "install svirt-interpose"),
        (&ready.qemu, QEMU, ready.qemu.to_str().unwrap(), "name QEMU as qemu in /etc/svirt-interpose.conf"),
    ] {
        set_label(path, BIN);
        ready.lacks(&format!("{shown} is bin_t, not {}: restorecon {shown}", type_.split(':').nth(2).unwrap()));
        set_label(path, type_);
        fs::set_permissions(path, Permissions::from_mode(0o644)).unwrap();
        ready.lacks(&format!("{shown} is no program: {install}"));
        fs::set_permissions(path, Permissions::from_mode(0o775)).unwrap();
        ready.lacks(&format!("somebody else than root may write {shown}: chown root {shown} && chmod 755 {shown}"));
        fs::set_permissions(path, Permissions::from_mode(0o755)).unwrap();
        let away = path.with_extension("away");
        fs::rename(path, &away).unwrap();
        ready.lacks(&format!("there is no {shown}: {install}"));
        fs::rename(away, path).unwrap();
    }
    ready.is_ready();
    fs::remove_file(&ready.qemu).unwrap();
    fs::hard_link(&interpose, &ready.qemu).unwrap();
    let (status, text) = ready.doctor();
    assert!(text.contains("is svirt-interpose itself: name QEMU as qemu in /etc/svirt-interpose.conf\n"), "{text}");
    assert_eq!(status, 1);
}

#[test]
fn tells_of_the_configurations() {
    let ready = Ready::new();
    ready.host.configure("qemuu = 'a'");
    let (status, text) = ready.doctor();
    assert_eq!(status, 1);
    assert!(text.starts_with("WRONG  /etc/svirt-interpose.conf:1: unknown field `qemuu`"), "{text}");
    assert_eq!(text.matches("WRONG").count(), 1, "nothing is told of what it would have named: {text}");
    ready.configure("");
    for (name, shown) in [("etc/xen/b.cfg", "/etc/xen/b.cfg"), ("etc/xen/auto/c", "/etc/xen/auto/c")] {
        let path = ready.file(name, "name = 'b'\n");
        ready.lacks(&format!("{shown} starts its guest without svirt-interpose: device_model_override = "));
        fs::write(path, OURS).unwrap();
    }
    ready.is_ready();
}

#[test]
fn tells_of_the_state_directory() {
    let ready = Ready::new();
    let state = ready.host.path("state");
    fs::set_permissions(&state, Permissions::from_mode(0o770)).unwrap();
    ready.lacks("somebody else than root may write it (chown root and chmod 0700 it)");
    fs::set_permissions(&state, Permissions::from_mode(0o700)).unwrap();
    set_label(&state, BIN);
    ready.lacks(&format!("is bin_t, not svirt_interpose_var_lib_t: restorecon -R {}", state.display()));
    set_label(&state, STATE);
    ready.is_ready();
    // /proc has no O_TMPFILE
    let conf = fs::read_to_string(ready.host.path("conf")).unwrap();
    ready.host.set("conf", &conf.replace(state.to_str().unwrap(), "/proc/sys"));
    ready.lacks("a claim cannot be written to /proc/sys: ");
}

#[test]
fn tells_of_what_else_a_host_runs() {
    let ready = Ready::new();
    ready.remove("log");
    ready
        .lacks("syslog will not tell of launches: /dev/log: No such file or directory (os error 2): start systemd-jou");
    let _log = UnixDatagram::bind(ready.host.path("log")).unwrap();

    ready.remove(&format!("root/{RULE}"));
    ready.lacks("udev may take guests' disks away from them: there is no 99-svirt-interpose.rules: install ");
    ready.file(RULE, "");
    let mask = ready.file("etc/udev/rules.d/99-svirt-interpose.rules", "");
    fs::remove_file(&mask).unwrap();
    symlink("/dev/null", &mask).unwrap();
    ready.lacks(
        "udev may take guests' disks away from them: /etc/udev/rules.d/99-svirt-interpose.rules masks the rule: rm ",
    );
    fs::remove_file(&mask).unwrap();

    let enabled = Path::new("root/etc/systemd/system/multi-user.target.wants").join(UNIT);
    ready.remove(enabled.to_str().unwrap());
    ready.lacks(&format!("{UNIT} is not enabled: systemctl enable --now {UNIT}"));
    symlink("/dev/null", ready.host.path(enabled.to_str().unwrap())).unwrap();
    ready.is_ready();

    kill(Pid::from_raw(ready.host.xenstored.pid().try_into().unwrap()), Signal::SIGKILL).unwrap();
    ready.lacks("cannot connect to xenstored at ");
}

#[test]
fn says_when_it_cannot_tell() {
    let ready = Ready::new();
    ready.remove("root/etc/selinux/config");
    let (status, text) = ready.doctor();
    assert_eq!(status, 2, "{text}");
    assert!(text.contains("\n?      cannot read /etc/selinux/config: No such file or directory"), "{text}");
}
