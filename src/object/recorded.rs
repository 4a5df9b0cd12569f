//! Objects as they were recorded, to be known and found again: by another name, or after a reboot of the host.

use std::fs;
use std::io::ErrorKind;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::sys::stat::{major, minor};

use super::{Identity, Object};
use crate::boot;

/// What an object was when it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// What the kernel called it.
    pub identity: Identity,
    /// The boot that the device numbers in its identity are of.
    pub boot: String,
    /// The path it was reached by.
    pub path: PathBuf,
}

impl Recorded {
    /// An object as it is now.
    ///
    /// # Errors
    /// When the boot cannot be told.
    pub fn of(object: &Object) -> Result<Self> {
        Ok(Self { identity: object.identity, boot: boot::id()?.into(), path: object.path.clone() })
    }

    /// Whether that is this object. In another boot its device numbers may be another's: what its path leads to, with
    /// its inode, tells a file then. A block device is told no more: its node was made anew, and has no guest's label.
    ///
    /// # Errors
    /// When the boot cannot be told.
    pub fn is(&self, object: &Object) -> Result<bool> {
        if self.is_of_this_boot()? && self.identity == object.identity {
            return Ok(true);
        }
        let at_path =
            || self.path == object.path || Object::open(&self.path).is_ok_and(|at| at.identity == object.identity);
        Ok(same_inode(self.identity, object.identity) && at_path())
    }

    /// Whether this is a later record of the same object.
    #[must_use]
    pub fn supersedes(&self, earlier: &Self) -> bool {
        self.boot == earlier.boot && self.identity == earlier.identity
            || self.path == earlier.path && same_inode(self.identity, earlier.identity)
    }

    /// The object, wherever it is now; `None` when it is gone for good, and its label with it: a block device without
    /// a node, a file that is neither at its path nor beside it.
    ///
    /// # Errors
    /// When that cannot be told: a filesystem that is not mounted, for one.
    pub fn find(&self) -> Result<Option<Object>> {
        if let Ok(object) = Object::open(&self.path)
            && self.is(&object)?
        {
            return Ok(Some(object));
        }
        let now = match self.identity {
            Identity::Block(major, minor) if self.is_of_this_boot()? => node(major, minor)?,
            Identity::Block(..) => None,
            Identity::File(major, minor, inode) => beside(&self.path, (major, minor), inode)
                .with_context(|| format!("cannot find {}", self.path.display()))?,
        };
        now.map(|path| Object::open(&path)).transpose().map(|now| now.filter(|object| object.identity == self.identity))
    }

    fn is_of_this_boot(&self) -> Result<bool> {
        Ok(self.boot == boot::id()?)
    }
}

fn same_inode(one: Identity, other: Identity) -> bool {
    matches!((one, other), (Identity::File(.., one), Identity::File(.., other)) if one == other)
}

/// The kernel's own node of a block device, by sysfs.
fn node(major: u64, minor: u64) -> Result<Option<PathBuf>> {
    let attribute = format!("/sys/dev/block/{major}:{minor}/uevent");
    let text = match fs::read_to_string(&attribute) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        result => result.with_context(|| format!("cannot read {attribute}"))?,
    };
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    Ok(name.map(|name| Path::new("/dev").join(name)).filter(|path| path.exists()))
}

/// A file that was renamed where it was, as by `mv disk disk.old`.
fn beside(path: &Path, filesystem: (u64, u64), inode: u64) -> Result<Option<PathBuf>> {
    let directory = path.ancestors().skip(1).find(|directory| directory.is_dir()).context("it is no absolute path")?;
    let device = fs::metadata(directory)?.dev();
    ensure!((major(device), minor(device)) == filesystem, "its filesystem is not mounted at {}", directory.display());
    for entry in fs::read_dir(directory)? {
        let entry = entry?;
        if entry.ino() == inode && entry.file_type()?.is_file() {
            return Ok(Some(entry.path()));
        }
    }
    Ok(None)
}
