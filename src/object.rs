//! A disk's object in dom0: a regular file or a block device, held by a descriptor that pins it.

mod recorded;
mod stack;

use std::fmt;
use std::fs::{self, File, Metadata};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::OFlag;
use nix::sys::stat::{major, minor};
use nix::sys::statfs::{TMPFS_MAGIC, fstatfs};
use nix::unistd::{sync, syncfs};

use crate::context::Context;
use crate::optional;
use crate::selinux;
pub use recorded::Recorded;
pub use stack::Loops;

/// What the kernel calls the object, by whatever path it was reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Identity {
    /// A block device's major and minor number.
    Block(u64, u64),
    /// A file's filesystem, by the numbers of its device, and its inode.
    File(u64, u64, u64),
}

impl Identity {
    /// `None` for what is no disk.
    fn of(status: &Metadata) -> Option<Self> {
        let kind = status.file_type();
        if kind.is_file() {
            Some(Self::File(major(status.dev()), minor(status.dev()), status.ino()))
        } else if kind.is_block_device() {
            Some(Self::Block(major(status.rdev()), minor(status.rdev())))
        } else {
            None
        }
    }

    /// A file's inode.
    fn inode(self) -> Option<u64> {
        if let Self::File(.., inode) = self { Some(inode) } else { None }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Block(major, minor) => write!(f, "block-{major}:{minor}"),
            Self::File(major, minor, inode) => write!(f, "file-{major}:{minor}-{inode}"),
        }
    }
}

impl FromStr for Identity {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let numbers: Vec<u64> =
            text.split(['-', ':']).skip(1).map(str::parse).collect::<Result<_, _>>().unwrap_or_default();
        let identity = match (text.split('-').next(), numbers.as_slice()) {
            (Some("block"), &[major, minor]) => Self::Block(major, minor),
            (Some("file"), &[major, minor, inode]) => Self::File(major, minor, inode),
            _ => bail!("{text:?} is no identity of a block device or file"),
        };
        if identity.to_string() == text {
            Ok(identity)
        } else {
            bail!("{text:?} is no identity of a block device or file")
        }
    }
}

/// An object held open with `O_PATH`: neither read nor written, and no rename or symlink can change what it is.
#[derive(Debug)]
pub struct Object {
    file: File,
    path: PathBuf,
    identity: Identity,
}

impl Object {
    /// Opens the object a path leads to, through symlinks: a logical volume's name is one.
    ///
    /// # Errors
    /// When there is none, or it is neither a regular file nor a block device.
    pub fn open(path: &Path) -> Result<Self> {
        let open = || -> Result<Self> {
            let file = fs::OpenOptions::new().read(true).custom_flags(OFlag::O_PATH.bits()).open(path)?;
            let identity = Identity::of(&file.metadata()?);
            let identity = identity.context("it is neither a regular file nor a block device")?;
            Ok(Self { file, path: path.into(), identity })
        };
        open().with_context(|| format!("cannot use {} as a disk", path.display()))
    }

    /// The path it was reached by.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the kernel calls it.
    #[must_use]
    pub fn identity(&self) -> Identity {
        self.identity
    }

    /// Whether it is a block device, and no file.
    #[must_use]
    pub fn is_device(&self) -> bool {
        matches!(self.identity, Identity::Block(..))
    }

    /// Whether its label may outlive a reboot of the host: not on a filesystem that is in memory, as a device's node is.
    #[must_use]
    pub fn keeps_its_label(&self) -> bool {
        !fstatfs(&self.file).is_ok_and(|filesystem| filesystem.filesystem_type() == TMPFS_MAGIC)
    }

    /// Its label.
    ///
    /// # Errors
    /// When it has none or it cannot be read.
    pub fn label(&self) -> Result<Context> {
        selinux::label(self).with_context(|| format!("cannot read the label of {}", self.path.display()))
    }

    /// Labels it.
    ///
    /// # Errors
    /// When the kernel refuses, or the label read back is another.
    pub fn set_label(&self, context: &Context) -> Result<()> {
        selinux::set_label(self, context).with_context(|| format!("cannot label {}", self.path.display()))
    }

    /// Syncs the filesystem that a file is on: by its directory, as the file is not to be opened, or else all there are.
    fn sync(&self) -> Result<()> {
        let directory = || -> io::Result<File> {
            let path = fs::read_link(format!("/proc/self/fd/{}", self.file.as_raw_fd()))?;
            File::open(path.parent().unwrap_or(&path))
        };
        let device = self.file.metadata()?.dev();
        match directory().ok().filter(|directory| directory.metadata().is_ok_and(|status| status.dev() == device)) {
            Some(directory) => syncfs(&directory)?,
            None => sync(),
        }
        Ok(())
    }

    /// The devices and files that share sectors with this one, and their paths: who writes them writes it.
    ///
    /// # Errors
    /// When sysfs cannot be read, or a file that it names.
    pub fn overlapping(&self, loops: &Loops) -> Result<Vec<(Identity, PathBuf)>> {
        self.told(stack::of(self.identity, loops))
    }

    /// The file that a loop device hides: the same disk by another identity. `None` for any other object,
    /// for a loop device without one, and where the file was deleted.
    ///
    /// # Errors
    /// When sysfs cannot be read, or the file cannot be opened.
    pub fn behind(&self) -> Result<Option<Self>> {
        let Identity::Block(major, minor) = self.identity else { return Ok(None) };
        let device = format!("/sys/dev/block/{major}:{minor}");
        self.told(stack::backing_file(Path::new(&device)))?.map(|path| Self::open(&path)).transpose()
    }

    fn told<T>(&self, stack: io::Result<T>) -> Result<T> {
        stack.with_context(|| format!("cannot tell what is below and above {}", self.path.display()))
    }
}

/// All files and block devices that a process has open; none when there is no such process any more.
///
/// # Errors
/// When `/proc` cannot be read: that of a device model of another user, without `CAP_SYS_PTRACE`.
pub fn open_in(pid: u32) -> Result<Vec<Identity>> {
    let directory = format!("/proc/{pid}/fd");
    let open = || -> io::Result<Vec<Identity>> {
        let mut open = Vec::new();
        for descriptor in fs::read_dir(&directory)? {
            let path = descriptor?.path();
            match fs::read_link(&path) {
                // no socket or pipe; what we may not look at we have not labelled
                Ok(target) if target.is_absolute() => {
                    open.extend(fs::metadata(&path).ok().as_ref().and_then(Identity::of));
                }
                Err(error) if error.kind() != ErrorKind::NotFound => return Err(error),
                _ => {}
            }
        }
        Ok(open)
    };
    let open = optional(open()).with_context(|| format!("cannot tell what process {pid} has open"))?;
    Ok(open.unwrap_or_default())
}

impl AsFd for Object {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Makes the labels of these outlast a power cut, so that what comes later cannot alone: a claim that is removed on another
/// filesystem. The label of a block device ends with its node.
///
/// # Errors
/// When a filesystem cannot be synced.
pub fn sync_labels<'a>(objects: impl IntoIterator<Item = &'a Object>) -> Result<()> {
    let mut synced = Vec::new();
    for object in objects {
        if let Identity::File(major, minor, _) = object.identity
            && !synced.contains(&(major, minor))
        {
            object.sync().with_context(|| format!("cannot sync {}", object.path.display()))?;
            synced.push((major, minor));
        }
    }
    Ok(())
}

/// Opens all that a disk is made of: each path once by identity, and the files behind loop devices. The loop
/// device that a hotplug script put over the file QEMU opens (`/etc/xen/scripts/block`) is left out: the
/// kernel alone uses it, and its node would keep the label when the next guest's file comes under it.
///
/// # Errors
/// When one of them cannot be opened.
pub fn open_all(paths: &[PathBuf]) -> Result<Vec<Object>> {
    let mut objects: Vec<Object> = Vec::new();
    for path in paths {
        let object = Object::open(path)?;
        let behind = object.behind()?;
        let known = |identity| objects.iter().any(|object| object.identity == identity);
        if known(object.identity) || behind.as_ref().is_some_and(|file| known(file.identity)) {
            continue;
        }
        objects.push(object);
        objects.extend(behind);
    }
    Ok(objects)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn refuses_what_is_no_disk() {
        for path in ["/", "/dev/null", "/proc/self/fd", "/nonexistent/disk"] {
            assert!(Object::open(Path::new(path)).is_err(), "{path}");
        }
    }

    #[test]
    fn what_was_opened_is_labelled_wherever_its_path_leads_by_then() {
        let directory = std::env::temp_dir().join(format!("svirt-swapped.{}", std::process::id()));
        fs::create_dir(&directory).unwrap();
        let [disk, other, link] = ["disk", "other", "link"].map(|name| directory.join(name));
        let label = |path: &Path| Object::open(path).unwrap().label().unwrap();
        let [before, after] = ["u:object_r:xen_image_t:s0", "u:object_r:svirt_xen_image_t:s0:c1,c2"];
        for path in [&disk, &other] {
            fs::write(path, "").unwrap();
            Object::open(path).unwrap().set_label(&before.parse().unwrap()).unwrap();
        }
        symlink(&disk, &link).unwrap();
        let object = Object::open(&link).unwrap();
        fs::remove_file(&link).unwrap();
        symlink(&other, &link).unwrap();
        object.set_label(&after.parse().unwrap()).unwrap();
        assert_eq!([label(&disk), label(&other)], [after, before].map(|label| label.parse().unwrap()));
        fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn a_label_in_memory_does_not_outlive_a_reboot() {
        let beside = std::env::current_exe().unwrap();
        let in_memory = Path::new("/dev/shm").join(format!("svirt-object.{}", std::process::id()));
        fs::write(&in_memory, "").unwrap();
        let keeps = [&beside, &in_memory].map(|path| Object::open(path).unwrap().keeps_its_label());
        fs::remove_file(&in_memory).unwrap();
        assert_eq!(keeps, [true, false]);
    }

    proptest! {
        #[test]
        fn an_identity_is_read_back(major in any::<u64>(), minor in any::<u64>(), inode in any::<u64>()) {
            for identity in [Identity::Block(major, minor), Identity::File(major, minor, inode)] {
                prop_assert_eq!(identity.to_string().parse::<Identity>().unwrap(), identity);
            }
        }

        #[test]
        fn any_text_is_an_identity_or_refused(text in "(block|file)?[-:0-9a-z+/. ]{0,20}") {
            if let Ok(identity) = text.parse::<Identity>() {
                prop_assert_eq!(identity.to_string(), text);
            }
        }
    }
}
