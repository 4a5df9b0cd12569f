//! svirt-interpose and QEMU: there, executable, and labelled so that the policy knows them.

use std::fs::{File, Metadata, OpenOptions};
use std::io::{self, ErrorKind};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Result;
use nix::fcntl::OFlag;

use super::Check;
use crate::config::{Config, QEMU_PATHS};
use crate::selinux;

/// Where it is installed, and where the policy knows it.
const INTERPOSE: &str = "/usr/libexec/svirt-interpose";
/// Where guests' configurations are.
const GUESTS: &str = "/etc/xen";

pub(super) fn checks(config: Option<&Config>) -> Vec<Check> {
    let mut checks =
        vec![Check::of(program(Path::new(INTERPOSE), "svirt_interpose_exec_t", "install svirt-interpose"))];
    if let Some(Config { qemu, .. }) = config {
        let named = format!("name QEMU as qemu in {}", crate::config::PATH);
        checks.push(Check::of(program(qemu, "svirt_xen_exec_t", &named)));
        if is_interpose(qemu) {
            checks.push(Check::wrong(format!("{} is svirt-interpose itself", qemu.display()), named));
        }
    }
    checks.extend(guests());
    checks
}

fn opened(path: &Path) -> io::Result<(File, Metadata)> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path)?;
    let status = file.metadata()?;
    Ok((file, status))
}

/// Whether a path leads to svirt-interpose.
pub(in crate::ctl) fn is_interpose(path: &Path) -> bool {
    let identity = |path| opened(path).map(|(_, status)| (status.dev(), status.ino())).ok();
    identity(path).is_some_and(|it| Some(it) == identity(Path::new(INTERPOSE)))
}

fn program(path: &Path, type_: &str, install: &str) -> Result<Check> {
    let shown = path.display();
    let (file, status) = match opened(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => {
            return Ok(Check::wrong(format!("there is no {shown}"), install));
        }
        opened => opened?,
    };
    if !status.is_file() || status.mode() & 0o111 == 0 {
        return Ok(Check::wrong(format!("{shown} is no program"), install));
    }
    if status.uid() != 0 || status.mode() & 0o022 != 0 {
        let mend = format!("chown root {shown} && chmod 755 {shown}");
        return Ok(Check::wrong(format!("somebody else than root may write {shown}"), mend));
    }
    let label = match selinux::label(&file) {
        Ok(label) => label,
        Err(error) => {
            return Ok(Check::wrong(format!("cannot read the label of {shown}: {error:#}"), restorecon(path)));
        }
    };
    Ok(if label.type_() == type_ {
        Check::fine(format!("{shown} is {type_}"))
    } else {
        Check::wrong(format!("{shown} is {}, not {type_}", label.type_()), restorecon(path))
    })
}

fn restorecon(path: &Path) -> String {
    format!("restorecon {}", path.display())
}

/// The configurations of guests that start without us, unless QEMU's own place is ours.
fn guests() -> Vec<Check> {
    if let Some(path) = QEMU_PATHS.iter().find(|path| is_interpose(Path::new(path))) {
        return vec![Check::fine(format!("every guest starts by svirt-interpose, which is {path}"))];
    }
    let mut checks = Vec::new();
    let mut named = 0;
    for path in configurations() {
        let Ok(text) = std::fs::read(&path) else { continue };
        match device_model(&String::from_utf8_lossy(&text)) {
            DeviceModel::Other => {
                let text = format!("{} starts its guest without svirt-interpose", path.display());
                checks.push(Check::wrong(
                    text,
                    format!("device_model_override = \"{INTERPOSE}\" there, or svirt-interpose-default on"),
                ));
            }
            DeviceModel::Ours => named += 1,
            DeviceModel::NoGuest => {}
        }
    }
    if checks.is_empty() {
        checks.push(Check::fine(format!("the guests in {GUESTS} start by svirt-interpose: {named} of them")));
    }
    checks
}

/// The files that `xl create` is given by hand, and at boot.
fn configurations() -> Vec<PathBuf> {
    let in_dir = |dir: &str| std::fs::read_dir(dir).into_iter().flatten().filter_map(|entry| Some(entry.ok()?.path()));
    let by_hand = in_dir(GUESTS).filter(|path| path.extension().is_some_and(|extension| extension == "cfg"));
    let mut all: Vec<PathBuf> = by_hand.chain(in_dir("/etc/xen/auto")).collect();
    all.sort();
    all
}

/// What a configuration names as its guest's device model.
#[derive(Debug, PartialEq, Eq)]
enum DeviceModel {
    Ours,
    Other,
    /// It is none of a guest's.
    NoGuest,
}

/// xlcfg.cfg(5): `KEY=VALUE`, of which the last counts, and comments from `#` on.
fn device_model(text: &str) -> DeviceModel {
    let settings = text.lines().filter_map(|line| line.trim_start().split_once('='));
    let (mut is_guest, mut named) = (false, false);
    for (key, value) in settings {
        match key.trim_end() {
            "name" => is_guest = true,
            "device_model_override" => {
                let value = value.trim_start();
                let path = value
                    .chars()
                    .next()
                    .filter(|quote| "\"'".contains(*quote))
                    .and_then(|quote| value.split(quote).nth(1));
                named = path.is_some_and(|path| path == INTERPOSE || is_interpose(Path::new(path)));
            }
            _ => {}
        }
    }
    match (is_guest, named) {
        (false, _) => DeviceModel::NoGuest,
        (true, true) => DeviceModel::Ours,
        (true, false) => DeviceModel::Other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_a_guests_configuration_names() {
        for (text, means) in [
            ("name = \"a\"\ndevice_model_override = \"/usr/libexec/svirt-interpose\"\n", DeviceModel::Ours),
            ("  name='a'\n device_model_override ='/usr/libexec/svirt-interpose' # ours", DeviceModel::Ours),
            ("name = \"a\"\n# device_model_override = \"/usr/libexec/svirt-interpose\"\n", DeviceModel::Other),
            ("name = \"a\"\ndevice_model_override = \"/usr/libexec/svirt-interpose-not\"\n", DeviceModel::Other),
            ("name = \"a\"\ndevice_model_override = /usr/libexec/svirt-interpose\n", DeviceModel::Other),
            ("name = \"a\"\n", DeviceModel::Other),
            ("vif.default.script=\"vif-bridge\"\n", DeviceModel::NoGuest),
            ("", DeviceModel::NoGuest),
        ] {
            assert_eq!(device_model(text), means, "{text}");
        }
    }
}
