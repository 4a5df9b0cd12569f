//! A loop device of this machine's.

// Each test binary uses a part of this.
#![allow(dead_code)]

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use super::host::{Host, set_label};
use super::xenstored::within;

/// A loop device over a file, detached when this goes; its node's label is wiped, as nodes outlive their use.
pub(crate) struct Loop(pub(crate) PathBuf);

impl Loop {
    /// Over an image that has room for partitions.
    pub(crate) fn whole_disk(host: &Host) -> (PathBuf, Self) {
        let file = host.image("disk");
        File::options().write(true).open(&file).unwrap().set_len(4 << 20).unwrap();
        let whole = Self::over(&file);
        (file, whole)
    }

    pub(crate) fn over(file: &Path) -> Self {
        let output = Command::new("losetup").args(["--find", "--show"]).arg(file).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let device = PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end());
        set_label(&device, "system_u:object_r:fixed_disk_device_t:s0");
        Self(device)
    }

    /// A partition of 1 MiB at that many MiB, until the device goes.
    pub(crate) fn partition(&self, number: u32, at: u32) -> PathBuf {
        let [number, start] = [number, at * 2048].map(|number| number.to_string());
        let status = Command::new("addpart").arg(&self.0).args([&number, &start, "2048"]).status();
        assert!(status.unwrap().success());
        let node = PathBuf::from(format!("{}p{number}", self.0.display()));
        within(Duration::from_secs(60), || node.exists().then_some(()));
        set_label(&node, "system_u:object_r:fixed_disk_device_t:s0");
        node
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("partx").arg("--delete").arg(&self.0).stderr(Stdio::null()).status();
        let _ = Command::new("losetup").arg("-d").arg(&self.0).status();
    }
}
