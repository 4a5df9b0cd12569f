//! A filesystem of a test's own.

// Each test binary uses a part of this.
#![allow(dead_code)]

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::sys::stat::{major, minor};

use super::host::set_label;

/// Mounted, until this goes.
pub(crate) struct Mount(PathBuf);

impl Mount {
    /// A new one in memory, at a directory that is made where it is missing.
    pub(crate) fn tmpfs(at: &Path, options: &str) -> Self {
        fs::create_dir_all(at).unwrap();
        Self::at(at, &["-t", "tmpfs", "-o", options, "tmpfs"])
    }

    /// As `mount ARG… AT` does.
    pub(crate) fn at(at: &Path, what: &[&str]) -> Self {
        mount(what, at);
        Self(at.into())
    }

    pub(crate) fn make_readonly(&self) {
        mount(&["-o", "remount,ro"], &self.0);
    }

    pub(crate) fn file(&self, name: &str, label: &str) -> PathBuf {
        let path = self.0.join(name);
        fs::File::create(&path).unwrap();
        set_label(&path, label);
        path
    }

    /// Its device's numbers.
    pub(crate) fn numbers(&self) -> String {
        let device = fs::metadata(&self.0).unwrap().dev();
        format!("{}:{}", major(device), minor(device))
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        let unmounted = |options: &[&str]| Command::new("umount").args(options).arg(&self.0).output();
        // whoever was killed a moment ago may still be there
        if !unmounted(&[]).is_ok_and(|output| output.status.success()) {
            let _ = unmounted(&["--lazy"]);
        }
    }
}

fn mount(args: &[&str], at: &Path) {
    let output = Command::new("mount").args(args).arg(at).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
}
