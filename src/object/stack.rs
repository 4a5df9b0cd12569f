//! Block devices that are made of one another and of files: a disk and its partitions, a volume group's disk and its
//! volumes, a file behind a loop device and the partitions of that. The kernel has a number for each, and so they are
//! objects of their own, but who writes one writes the other.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;

use super::Identity;
use crate::optional;

/// Where sysfs has loop devices, among others.
const VIRTUAL: &str = "/sys/devices/virtual/block";

/// The loop devices that something is made of, each with its file: few, if any.
#[derive(Debug)]
pub struct Loops(Vec<(PathBuf, Identity)>);

impl Loops {
    /// Those that there are now.
    ///
    /// # Errors
    /// When sysfs cannot be read, or a file that it names.
    pub fn look() -> Result<Self> {
        let look = || -> io::Result<Self> {
            let mut loops = Vec::new();
            for entry in optional(fs::read_dir(VIRTUAL))?.into_iter().flatten() {
                let entry = entry?;
                let (is_loop, device) = (entry.file_name().as_bytes().starts_with(b"loop"), entry.path());
                // the files of the others need not be looked at
                if is_loop && backing_file(&device)?.is_some() && !above(&device)?.is_empty() {
                    loops.extend(behind(&device)?.map(|(file, _)| (device, file)));
                }
            }
            Ok(Self(loops))
        };
        look().with_context(|| format!("cannot read {VIRTUAL}"))
    }

    /// What is made of a file by way of a loop device that is none of these.
    fn above(&self, file: Identity, known: &[PathBuf]) -> io::Result<Vec<PathBuf>> {
        let mut devices = Vec::new();
        for (device, behind) in &self.0 {
            if *behind == file && !known.contains(device) {
                devices.extend(reached(device, above)?);
            }
        }
        Ok(devices)
    }
}

/// The devices and files, by their nodes, that an object is a part of or made of, and those that are parts of it or made of
/// it, by sysfs. Two volumes on one disk are not: neither is made of the other. Nor are a loop device and its file: who has
/// the one has both.
///
/// # Errors
/// When sysfs cannot be read, or a file that it names; a device that it does not have stands alone.
pub(super) fn of(object: Identity, loops: &Loops) -> io::Result<Vec<(Identity, PathBuf)>> {
    let Identity::Block(major, minor) = object else { return named(&loops.above(object, &[])?) };
    let Some(device) = optional(fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")))? else {
        return Ok(Vec::new());
    };
    let below = reached(&device, below)?;
    let mut others = named(below.iter().chain(&reached(&device, above)?))?;
    for device in &below {
        if let Some((file, path)) = behind(device)? {
            others.extend(named(&loops.above(file, &below)?)?);
            others.push((file, path));
        }
    }
    Ok(others)
}

/// The file behind a loop device. `None` for another device, and where the file was deleted.
fn behind(device: &Path) -> io::Result<Option<(Identity, PathBuf)>> {
    let Some(path) = backing_file(device)? else { return Ok(None) };
    let status = optional(fs::metadata(&path))?;
    Ok(status.and_then(|status| Identity::of(&status)).map(|file| (file, path)))
}

/// The path of the file behind a loop device, by its directory in sysfs, as [`behind`].
pub(super) fn backing_file(device: &Path) -> io::Result<Option<PathBuf>> {
    let Some(mut path) = attribute(fs::read(device.join("loop/backing_file")))? else { return Ok(None) };
    path.pop_if(|last| *last == b'\n');
    let is_deleted = path.ends_with(b" (deleted)");
    let path = PathBuf::from(OsString::from_vec(path));
    Ok(Some(path).filter(|path| !is_deleted || path.exists()))
}

/// What there is that way from a device.
fn reached(device: &Path, next: fn(&Path) -> io::Result<Vec<PathBuf>>) -> io::Result<Vec<PathBuf>> {
    let mut reached = Vec::new();
    let mut ahead = next(device)?;
    while let Some(device) = ahead.pop() {
        if !reached.contains(&device) {
            ahead.extend(next(&device)?);
            reached.push(device);
        }
    }
    Ok(reached)
}

fn below(device: &Path) -> io::Result<Vec<PathBuf>> {
    let mut below = linked(&device.join("slaves"))?;
    if is_partition(device) {
        below.extend(device.parent().map(Into::into));
    }
    Ok(below)
}

fn above(device: &Path) -> io::Result<Vec<PathBuf>> {
    let mut above = linked(&device.join("holders"))?;
    let name = device.file_name().unwrap_or_default().as_bytes();
    for entry in optional(fs::read_dir(device))?.into_iter().flatten() {
        let entry = entry?;
        // a partition's name begins with its disk's
        if entry.file_name().as_bytes().starts_with(name) && is_partition(&entry.path()) {
            above.push(entry.path());
        }
    }
    Ok(above)
}

fn is_partition(device: &Path) -> bool {
    device.join("partition").exists()
}

/// The devices that symlinks in a directory of sysfs lead to.
fn linked(directory: &Path) -> io::Result<Vec<PathBuf>> {
    let mut devices = Vec::new();
    for entry in optional(fs::read_dir(directory))?.into_iter().flatten() {
        devices.extend(optional(fs::canonicalize(entry?.path()))?);
    }
    Ok(devices)
}

/// Those that are still there.
fn named<'a>(devices: impl IntoIterator<Item = &'a PathBuf>) -> io::Result<Vec<(Identity, PathBuf)>> {
    let named = |device: &'a PathBuf| Ok(identity(device)?.map(|identity| (identity, node(device))));
    devices.into_iter().filter_map(|device| named(device).transpose()).collect()
}

fn identity(device: &Path) -> io::Result<Option<Identity>> {
    let Some(numbers) = attribute(fs::read_to_string(device.join("dev")))? else { return Ok(None) };
    format!("block-{}", numbers.trim_end()).parse().map(Some).map_err(|error: anyhow::Error| io::Error::other(error))
}

/// What was read of a device's attribute in sysfs. `None` where there is none: the device may go before it is read, which is
/// `ENODEV` once the attribute is open (the kernel's fs/kernfs/file.c, `kernfs_seq_start`).
pub(super) fn attribute<T>(read: io::Result<T>) -> io::Result<Option<T>> {
    match read {
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(None),
        read => optional(read),
    }
}

/// The kernel's own name for its node.
fn node(device: &Path) -> PathBuf {
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    Path::new("/dev").join(name.replace('!', "/"))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    #[test]
    fn tells_what_is_made_of_one_another() {
        let sysfs = std::env::temp_dir().join(format!("stack.{}", std::process::id()));
        let device = |name: &str| sysfs.join(name);
        for directory in
            ["sda/holders", "sda/sda1/holders", "sda/sda2/holders", "dm-0/slaves", "dm-1/slaves", "dm-1/holders"]
        {
            fs::create_dir_all(device(directory)).unwrap();
        }
        for partition in ["sda/sda1", "sda/sda2"] {
            fs::write(device(partition).join("partition"), "1\n").unwrap();
        }
        // two volumes on the second partition
        for (above, below) in [("dm-0", "sda/sda2"), ("dm-1", "sda/sda2")] {
            symlink(device(below), device(above).join("slaves").join("sda2")).unwrap();
            symlink(device(above), device(below).join("holders").join(above)).unwrap();
        }
        let reached = |name, next| {
            let mut names: Vec<_> = reached(&device(name), next).unwrap().iter().map(|path| node(path)).collect();
            names.sort();
            names
        };
        let nodes = |names: &[&str]| names.iter().map(|name| Path::new("/dev").join(name)).collect::<Vec<_>>();
        assert_eq!(reached("dm-0", below), nodes(&["sda", "sda2"]));
        assert_eq!(reached("dm-0", above), nodes(&[]));
        assert_eq!(reached("sda", above), nodes(&["dm-0", "dm-1", "sda1", "sda2"]));
        assert_eq!(reached("sda/sda1", below), nodes(&["sda"]));
        assert_eq!(reached("sda/sda2", above), nodes(&["dm-0", "dm-1"]));
        fs::remove_dir_all(&sysfs).unwrap();
    }

    #[test]
    fn what_sysfs_does_not_have_stands_alone() {
        assert_eq!(of(Identity::Block(4095, 1_000_000), &Loops(Vec::new())).unwrap(), []);
    }
}
