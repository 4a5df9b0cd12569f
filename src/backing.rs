//! The files below a disk that is qcow2: QEMU opens each of them to read.
//!
//! Their names come out of headers that a device model which was broken into may have written. So a file is looked
//! into, and labelled, only where the administrator said that backing files are.

use std::fs::{self, OpenOptions};
use std::io::{ErrorKind, Read};
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::OFlag;

use crate::config::{self, Contexts};
use crate::kind::Kind;
use crate::object::Object;
use crate::plan::Refused;
use crate::qcow2::{self, Layer};

/// How many layers a disk may stand on, as with libvirt (`QEMU_DOMAIN_STORAGE_SOURCE_CHAIN_MAX_DEPTH`).
const DEPTH: usize = 200;

/// The layers below a disk that the toolstack declared qcow2, the uppermost first. Those of a block device, or of what
/// keeps no label, are not looked for.
///
/// # Errors
/// When a header cannot be read or understood, or a layer is no file in one of these directories.
pub fn layers(disk: &Path, directories: &[PathBuf], contexts: &Contexts) -> Result<Vec<Object>> {
    let disk = Object::open(disk)?;
    if disk.is_device() {
        return Ok(Vec::new());
    }
    // one that does not exist has nothing in it
    let directories: Vec<PathBuf> = directories.iter().filter_map(|path| path.canonicalize().ok()).collect();
    let what = |image: &Object| format!("cannot follow the backing file of {}", image.path().display());
    let mut chain = vec![disk];
    while let Some(image) = chain.last() {
        let Some(Layer { path, qcow2 }) = below(image, contexts).with_context(|| what(image))? else { break };
        let layer = Object::open(&path).with_context(|| what(image))?;
        check(&layer, &chain, &directories).with_context(|| what(image))?;
        chain.push(layer);
        if !qcow2 {
            break;
        }
    }
    Ok(chain.split_off(1))
}

/// Below what keeps no label nothing gets one.
fn below(image: &Object, contexts: &Contexts) -> Result<Option<Layer>> {
    let label = image.label()?;
    match Kind::of(&label, false, false, contexts)? {
        Kind::Other => bail!(Refused::Type(image.path().into(), label.type_().into())),
        Kind::Open => Ok(None),
        Kind::Disk => Ok(qcow2::below(image.path(), &header(image)?)?),
    }
}

/// The only time that a disk is read.
fn header(image: &Object) -> Result<Vec<u8>> {
    let mut header = Vec::new();
    let flags = OFlag::O_NONBLOCK.bits(); // nobody's lease on the file is waited for
    let file = OpenOptions::new().read(true).custom_flags(flags).open(by_descriptor(image));
    match file.and_then(|file| file.take(qcow2::HEADER).read_to_end(&mut header)) {
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            Err(error).context("cannot read its header: setsebool -P svirt_interpose_read_image_headers on")
        }
        result => result.map(|_| header).context("cannot read its header"),
    }
}

fn check(layer: &Object, chain: &[Object], directories: &[PathBuf]) -> Result<()> {
    let path = layer.path().display();
    ensure!(!layer.is_device(), "{path} is a block device, and only a file can be one that guests read");
    ensure!(chain.iter().all(|image| image.identity() != layer.identity()), "{path} stands on itself");
    ensure!(chain.len() <= DEPTH, "there are more than {DEPTH} of them");
    let real = fs::read_link(by_descriptor(layer)).with_context(|| format!("cannot tell where {path} is"))?;
    ensure!(
        directories.iter().any(|directory| real.starts_with(directory)),
        "{} is in none of the directories that backing_dirs names in {}",
        real.display(),
        config::PATH
    );
    Ok(())
}

fn by_descriptor(object: &Object) -> String {
    format!("/proc/self/fd/{}", object.as_fd().as_raw_fd())
}
