//! The state directory, and what else a launch and its labels rely on.

use std::collections::BTreeSet;
use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::fcntl::OFlag;

use super::Check;
use crate::claim::Registry;
use crate::config::Config;
use crate::guest::Domains;
use crate::selinux;
use crate::xenstore::Connection;

/// Of the first directory that has it.
const RULE: &str = "99-svirt-interpose.rules";
const RULES: &[&str] = &["/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d"];
/// Where units are installed, and where they are enabled.
const UNITS: &[&str] = &["/etc/systemd/system", "/usr/lib/systemd/system"];

pub(super) fn checks(config: Option<&Config>) -> Vec<Check> {
    let mut checks: Vec<Check> = config.iter().map(|config| state(&config.state_dir)).collect();
    checks.extend([xenstore(), syslog(), udev()]);
    if Path::new("/run/systemd/system").is_dir() {
        checks.extend(units());
    }
    checks
}

/// Leaves nothing there: what it makes has no name.
fn state(dir: &Path) -> Check {
    if let Err(error) = Registry::open(dir) {
        return Check::Wrong(format!("{error:#}"), None);
    }
    let shown = dir.display();
    let mut existing = dir.ancestors().filter(|above| above.is_dir());
    let place = existing.next().unwrap_or(Path::new("/"));
    let flags = OFlag::O_TMPFILE.bits();
    if let Err(error) = OpenOptions::new().write(true).mode(0o600).custom_flags(flags).open(place) {
        let mend = format!("state_dir on another filesystem, in {}", crate::config::PATH);
        return Check::wrong(format!("a claim cannot be written to {}: {error}", place.display()), mend);
    }
    let label = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(place);
    match label.map_err(Into::into).and_then(selinux::label) {
        Err(error) => {
            Check::wrong(format!("cannot read the label of {}: {error:#}", place.display()), restorecon(place))
        }
        Ok(_) if place != dir => Check::fine(format!("the first launch can make {shown}")),
        Ok(label) if label.type_() == "svirt_interpose_var_lib_t" => {
            Check::fine(format!("{shown} is root's, for claims"))
        }
        Ok(label) => {
            let text = format!("{shown} is {}, not svirt_interpose_var_lib_t", label.type_());
            Check::wrong(text, restorecon(dir))
        }
    }
}

fn restorecon(path: &Path) -> String {
    format!("restorecon -R {}", path.display())
}

fn xenstore() -> Check {
    let asked = || -> Result<_> { Domains::read(&Connection::open()?).context("cannot tell which domain this is") };
    match asked() {
        Ok(Domains { own, .. }) => Check::fine(format!("XenStore answers, and this is domain {own}")),
        Err(error) => Check::wrong(format!("{error:#}"), "start xenstored, on a host that runs Xen"),
    }
}

fn syslog() -> Check {
    let connected = UnixDatagram::unbound().and_then(|socket| socket.connect("/dev/log"));
    match connected {
        Ok(()) => Check::fine("syslog listens"),
        Err(error) => {
            let mend = "start systemd-journald or a syslog daemon";
            Check::wrong(format!("syslog will not tell of launches: /dev/log: {error}"), mend)
        }
    }
}

fn udev() -> Check {
    let mut rules = RULES.iter().map(|dir| Path::new(dir).join(RULE));
    match rules.find(|path| path.symlink_metadata().is_ok()) {
        Some(path) if path.metadata().is_ok_and(|status| status.is_file()) => {
            Check::fine(format!("udev keeps guests' labels, by {}", path.display()))
        }
        Some(path) => Check::wrong(
            format!("udev may take guests' disks away from them: {} masks the rule", path.display()),
            format!("rm {}", path.display()),
        ),
        None => Check::wrong(
            format!("udev may take guests' disks away from them: there is no {RULE}"),
            "install packaging/udev/*.rules",
        ),
    }
}

/// Those of ours that are installed. A service that a timer of its name starts needs no more.
fn units() -> Vec<Check> {
    let listed = |dir: &str| fs::read_dir(dir).into_iter().flatten().filter_map(Result::ok).collect::<Vec<_>>();
    let names = UNITS.iter().flat_map(|dir| listed(dir)).filter_map(|entry| entry.file_name().into_string().ok());
    let names: BTreeSet<String> = names.filter(|name| name.starts_with("svirt-interpose")).collect();
    let wants = listed("/etc/systemd/system").into_iter().map(|entry| entry.path());
    let wants: Vec<PathBuf> = wants.filter(|path| path.extension().is_some_and(|kind| kind == "wants")).collect();
    let is_enabled = |name: &str| wants.iter().any(|wants| wants.join(name).symlink_metadata().is_ok());
    let needs = |name: &&String| match name.rsplit_once('.') {
        Some((unit, "service")) => !names.contains(&format!("{unit}.timer")),
        Some((_, kind)) => kind == "timer",
        None => false,
    };
    let check = |name: &String| {
        if is_enabled(name) {
            Check::fine(format!("{name} is enabled"))
        } else {
            Check::wrong(format!("{name} is not enabled"), format!("systemctl enable --now {name}"))
        }
    };
    names.iter().filter(needs).map(check).collect()
}
