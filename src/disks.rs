//! A guest's disks: what they are made of, whose that is, and what is to become of it. Nothing is changed here.

use std::path::PathBuf;
use std::slice;

use anyhow::{Context as _, Result};

use crate::argv::Domid;
use crate::backing;
use crate::config::{Config, Contexts};
use crate::guest::Guest;
use crate::kind::Kind;
use crate::log;
use crate::mcs::Set;
use crate::object::{self, Identity, Object};
use crate::owner::Owners;
use crate::plan::{self, Access, Found, Relabel};
use crate::selinux::Mode;
use crate::vbd::Vbd;

/// What stands below a disk, or is the disk itself.
#[derive(Debug)]
pub struct Part<'a> {
    /// The disk.
    pub vbd: &'a Vbd,
    /// Whether it is below.
    pub backing: bool,
    /// What it is made of, or why that cannot be used.
    pub objects: Result<Vec<Object>>,
}

/// The guest's disks, and then what is below them.
pub fn parts<'a>(
    guest: &'a Guest,
    Config { backing_dirs, .. }: &'a Config,
    contexts: &'a Contexts,
) -> impl Iterator<Item = Part<'a>> {
    let disks = guest.vbds.iter().map(|vbd| (vbd, false, object::open_all(&vbd.paths)));
    // after all disks: a layer that is also one of them is that first of all
    let qcow2 = guest.vbds.iter().filter(|vbd| vbd.qcow2 && !backing_dirs.is_empty());
    let layers = qcow2.filter_map(|vbd| Some((vbd, true, backing::layers(vbd.paths.first()?, backing_dirs, contexts))));
    disks.chain(layers).map(|(vbd, backing, objects)| {
        let objects = objects.with_context(|| format!("cannot use {}", vbd.backend));
        Part { vbd, backing, objects }
    })
}

/// Each of their objects once, and whose it is. A read-only device is left as it is.
///
/// # Errors
/// When one of them cannot be used, unless SELinux is permissive, or it cannot be told whose it is.
pub fn find(
    guest: &Guest,
    owners: &Owners,
    config: &Config,
    contexts: &Contexts,
    mode: Mode,
) -> Result<Vec<(Object, Found)>> {
    let shared = shared(&config.shared_disks)?;
    let mut all: Vec<(Object, Found)> = Vec::new();
    for Part { vbd, backing, objects } in parts(guest, config, contexts) {
        for object in tolerate(objects, mode)?.unwrap_or_default() {
            let known = all.iter().any(|(known, _)| known.identity() == object.identity());
            let access = if backing {
                Access::ReadOnly
            } else if shared.contains(&object.identity()) {
                Access::Shared
            } else if vbd.writable {
                Access::Exclusive
            } else {
                Access::ReadOnly
            };
            if known || !access.writes() && object.is_device() {
                continue;
            }
            let Some(label) = tolerate(object.label(), mode)? else { continue };
            let (owner, recorded) = owners.of(&object, &label, access)?;
            let kind = Kind::of(&label, object.is_device(), access.writes(), contexts)?;
            let found = Found { path: object.path().into(), access, backing, label, kind, owner, recorded };
            all.push((object, found));
        }
    }
    Ok(all)
}

/// What the administrator has guests share, as far as it is there.
fn shared(paths: &[PathBuf]) -> Result<Vec<Identity>> {
    let mut shared = Vec::new();
    for path in paths {
        if path.try_exists().with_context(|| format!("cannot use {} as a disk", path.display()))? {
            shared.extend(object::open_all(slice::from_ref(path))?.iter().map(Object::identity));
        }
    }
    Ok(shared)
}

/// What is to be done with each: those that are left alone are not there. `published` are the sets of other domains.
///
/// # Errors
/// With the first that cannot be this guest's, unless SELinux is permissive.
pub fn decide(
    found: Vec<(Object, Found)>,
    contexts: &Contexts,
    published: &[(Domid, Set)],
    mode: Mode,
) -> Result<Vec<(Object, Relabel)>> {
    let mut plan = Vec::new();
    for (object, found) in found {
        let decision = plan::relabel(&found, contexts, published).map_err(Into::into);
        plan.extend(tolerate(decision, mode)?.flatten().map(|relabel| (object, relabel)));
    }
    Ok(plan)
}

/// While SELinux is permissive, what would be refused is told and left out.
fn tolerate<T>(result: Result<T>, mode: Mode) -> Result<Option<T>> {
    match result {
        Err(error) if mode == Mode::Permissive => {
            log::warn(&format!("{error:#}; it would be refused if SELinux were enforcing"));
            Ok(None)
        }
        result => result.map(Some),
    }
}
