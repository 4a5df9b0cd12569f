//! Objects as they were recorded, to be known and found again: by another name, or after a reboot of the host.

use std::fs;
use std::os::unix::fs::{DirEntryExt, MetadataExt};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use nix::sys::stat::{major, minor};

use super::{Identity, Object, stack};
use crate::boot;

/// What an object was when it was recorded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recorded {
    /// What the kernel called it.
    pub identity: Identity,
    /// The boot that the device numbers in its identity are of.
    pub boot: String,
    /// A file's own path, behind every symlink; that of a device is one, as a logical volume's.
    pub path: PathBuf,
    /// Where the filesystem of a file was mounted.
    pub mount: PathBuf,
}

impl Recorded {
    /// An object as it is now.
    ///
    /// # Errors
    /// When the boot, or where a file is, cannot be told.
    pub fn of(object: &Object) -> Result<Self> {
        let place = |path: &Path| {
            if object.is_device() {
                return Ok((path.into(), PathBuf::new()));
            }
            let path = fs::canonicalize(path)?;
            mount_point(&path).map(|mount| (path, mount))
        };
        let (path, mount) =
            place(&object.path).with_context(|| format!("cannot tell the place of {}", object.path.display()))?;
        Ok(Self { identity: object.identity, boot: boot::id()?.into(), path, mount })
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
        match self.identity {
            Identity::Block(major, minor) if self.is_of_this_boot()? => {
                let object = node(major, minor)?.map(|path| Object::open(&path)).transpose()?;
                Ok(object.filter(|object| object.identity == self.identity))
            }
            Identity::Block(..) => Ok(None),
            Identity::File(..) => self.beside().with_context(|| format!("cannot find {}", self.path.display())),
        }
    }

    /// A file that was renamed where it was, as by `mv disk disk.old`.
    fn beside(&self) -> Result<Option<Object>> {
        let mut above = self.path.ancestors().skip(1);
        let directory = above.find(|directory| directory.is_dir()).context("it is no absolute path")?;
        ensure!(self.is_mounted(directory)?, "its filesystem is not mounted at {}", self.mount.display());
        for entry in fs::read_dir(directory)? {
            let entry = entry?;
            if self.identity.inode() == Some(entry.ino()) && entry.file_type()?.is_file() {
                let object = Object::open(&entry.path())?;
                return Ok(Some(object).filter(|object| same_inode(object.identity, self.identity)));
            }
        }
        Ok(None)
    }

    /// Whether the file's filesystem is the one that a directory on its path is on. After a reboot its numbers may be
    /// others, and anything that is mounted where it was is taken for it.
    fn is_mounted(&self, directory: &Path) -> Result<bool> {
        let device = fs::metadata(directory)?.dev();
        if self.is_of_this_boot()? {
            return Ok(matches!(self.identity, Identity::File(a, b, _) if (a, b) == (major(device), minor(device))));
        }
        let is_root =
            self.mount.parent().is_none_or(|above| fs::metadata(above).is_ok_and(|above| above.dev() != device));
        Ok(is_root && fs::metadata(&self.mount)?.dev() == device)
    }

    fn is_of_this_boot(&self) -> Result<bool> {
        Ok(self.boot == boot::id()?)
    }
}

/// Where the filesystem is mounted that a file is on.
fn mount_point(path: &Path) -> std::io::Result<PathBuf> {
    let device = fs::metadata(path)?.dev();
    let inside = path.ancestors().take_while(|above| fs::metadata(above).is_ok_and(|above| above.dev() == device));
    Ok(inside.last().unwrap_or(path).into())
}

fn same_inode(one: Identity, other: Identity) -> bool {
    one.inode().is_some() && one.inode() == other.inode()
}

/// The kernel's own node of a block device, by sysfs.
fn node(major: u64, minor: u64) -> Result<Option<PathBuf>> {
    let attribute = format!("/sys/dev/block/{major}:{minor}/uevent");
    let text = stack::attribute(fs::read_to_string(&attribute)).with_context(|| format!("cannot read {attribute}"))?;
    let text = text.unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("DEVNAME="));
    Ok(name.map(|name| Path::new("/dev").join(name)).filter(|path| path.exists()))
}
