//! A loop device of this machine's.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::host::set_label;

/// A loop device over a file, detached when this goes; its node's label is wiped, as nodes outlive their use.
pub(crate) struct Loop(pub(crate) PathBuf);

impl Loop {
    pub(crate) fn over(file: &Path) -> Self {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end());
        set_label(&device, "system_u:object_r:fixed_disk_device_t:s0");
        Self(device)
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}
