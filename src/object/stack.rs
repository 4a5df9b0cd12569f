//! Block devices that are made of one another: a disk and its partitions, a volume group's disk and its volumes. The
//! kernel has a number for each, and so they are objects of their own, but who writes one writes the other.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};

use super::Identity;

/// The devices, and their nodes, that a device is a part of or made of, and those that are parts of it or made of it, by sysfs. Two
/// volumes on one disk are not: neither is made of the other.
///
/// # Errors
/// When sysfs cannot be read; a device that it does not have stands alone.
pub(super) fn of(major: u64, minor: u64) -> io::Result<Vec<(Identity, PathBuf)>> {
    let Some(device) = optional(fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")))? else {
        return Ok(Vec::new());
    };
    let mut others = reached(&device, below)?;
    others.extend(reached(&device, above)?);
    others.iter().map(|device| Ok((identity(device)?, node(device)))).collect()
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
    for entry in optional(fs::read_dir(device))?.into_iter().flatten() {
        above.extend(Some(entry?.path()).filter(|path| is_partition(path)));
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

fn identity(device: &Path) -> io::Result<Identity> {
    let text = fs::read_to_string(device.join("dev"))?;
    format!("block-{}", text.trim_end()).parse().map_err(|error: anyhow::Error| io::Error::other(error))
}

/// The kernel's own name for its node.
fn node(device: &Path) -> PathBuf {
    let name = device.file_name().unwrap_or_default().to_string_lossy();
    Path::new("/dev").join(name.replace('!', "/"))
}

/// `None` for what is not there, or is gone by now.
fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
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
        assert_eq!(of(4095, 1_000_000).unwrap(), []);
    }
}
