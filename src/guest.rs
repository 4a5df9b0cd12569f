//! What XenStore says of a guest, and the key that says which categories it has.

use std::io::{self, ErrorKind};

use anyhow::{Context as _, Result, bail, ensure};
use xenstore_rs::{Xs, XsTransaction, XsTransactionSpan};

use crate::argv::Domid;
use crate::claim::Holder;
use crate::log;
use crate::mcs::{Pair, Set};
use crate::vbd::{self, Backend, Nodes, Vbd};
use crate::xenstore::{Connection, Permissions};

/// How often a transaction is tried that somebody else's change undid: a toolstack that builds the domain
/// at the same time writes below it all along.
const TRIES: usize = 200;

/// The key of a domain's categories.
fn key(domid: impl std::fmt::Display) -> String {
    format!("/local/domain/{domid}/selinux-mcs")
}

/// The domain this process runs in, whose backends are its own: dom0, or a driver domain.
///
/// # Errors
/// When XenStore does not say.
pub fn own_domid(store: &Connection) -> Result<Domid> {
    Ok(store.read("domid")?.parse()?)
}

/// A guest as XenStore has it.
#[derive(Debug)]
pub struct Guest {
    /// Its domid.
    pub domid: Domid,
    /// Its name, for messages alone.
    pub name: String,
    /// Its UUID, which a reboot keeps.
    pub vm: String,
    /// Its disks, the writable first: a file that it has both ways is one to write.
    pub vbds: Vec<Vbd>,
}

impl Guest {
    /// Reads a guest and its disks, from nodes that dom0 owns alone.
    ///
    /// # Errors
    /// When the domain does not exist, the guest may write its own node (so that it could forge what is
    /// published there), or its disks cannot be told.
    pub fn read(store: &Connection, own: Domid, domid: Domid) -> Result<Self> {
        let home = format!("/local/domain/{domid}");
        check_home(store, domid)?;
        let name = optional(store.read(&format!("{home}/name")))?;
        let vm = vm(store, domid)?.filter(|vm| !vm.is_empty());
        let vm = vm.with_context(|| format!("cannot tell which VM domain {domid} is: {home}/vm names none"))?;
        let vbds = vbds(store, own, domid).with_context(|| format!("cannot tell the disks of domain {domid}"))?;
        Ok(Self { domid, name: name.unwrap_or_default().into(), vm, vbds })
    }
}

/// That the domain exists and that its guest may not write its node.
fn check_home(store: &Connection, domid: Domid) -> Result<()> {
    let home = format!("/local/domain/{domid}");
    let permissions = optional(store.permissions(&home))?.with_context(|| format!("domain {domid} does not exist"))?;
    ensure!(!permissions.writable_by(domid.number()), "refusing domain {domid}: its guest may write {home}");
    Ok(())
}

fn vbds(store: &Connection, own: Domid, domid: Domid) -> Result<Vec<Vbd>> {
    let parents = |base: &str, kinds: &[&str], rest: &str| -> Vec<String> {
        kinds.iter().map(|kind| format!("{base}/{kind}{rest}")).collect()
    };
    let backends =
        children(store, &parents(&format!("/local/domain/{own}/backend"), vbd::KINDS, &format!("/{domid}")))?;
    let listed = children(store, &parents(&format!("/libxl/{domid}/device"), &["vbd", "virtio_disk"], ""))?;
    let backends =
        nodes(store, backends, vbd::NODES)?.into_iter().map(|(path, nodes)| Backend { path, nodes }).collect();
    let listed: Vec<Nodes> = nodes(store, listed, vbd::LISTED_NODES)?.into_iter().map(|(_, nodes)| nodes).collect();
    let known = vbd::known(backends, &listed, own)?;
    let mut vbds: Vec<Vbd> = known.iter().map(vbd::vbd).collect::<Result<_, _>>()?;
    vbds.sort_by_key(|vbd| !vbd.writable);
    Ok(vbds)
}

/// The directories below these; one that does not exist has none.
fn children(store: &Connection, parents: &[String]) -> io::Result<Vec<String>> {
    let mut children = Vec::new();
    for (parent, names) in parents.iter().zip(store.directory_all(parents)?) {
        children.extend(optional(names)?.unwrap_or_default().iter().map(|name| format!("{parent}/{name}")));
    }
    Ok(children)
}

/// Those of the named nodes that each directory has.
fn nodes(store: &Connection, directories: Vec<String>, names: &[&'static str]) -> io::Result<Vec<(String, Nodes)>> {
    let paths = directories.iter().flat_map(|directory| names.iter().map(move |name| format!("{directory}/{name}")));
    let mut values = store.read_all(paths)?.into_iter();
    directories
        .into_iter()
        .map(|directory| {
            let nodes = names
                .iter()
                .zip(values.by_ref())
                .filter_map(|(name, value)| Some((*name, optional(value).transpose()?)));
            let nodes = nodes.map(|(name, value)| Ok((name, value?))).collect::<io::Result<Nodes>>()?;
            Ok((directory, nodes))
        })
        .collect()
}

/// The categories published for each domain. A key that makes no sense is somebody else's fault: it is told
/// and passed over, as it must not stop every launch on the host.
///
/// # Errors
/// When XenStore cannot be read: only a key that does not exist means none.
pub fn published(store: &Connection) -> Result<Vec<(Domid, Set)>> {
    let what = "cannot read the categories in use from XenStore";
    let domids: Vec<Domid> =
        store.directory("/local/domain").context(what)?.iter().filter_map(|name| name.parse().ok()).collect();
    let mut published = Vec::new();
    for (domid, value) in domids.iter().zip(store.read_all(domids.iter().map(key)).context(what)?) {
        let Some(value) = optional(value).context(what)? else { continue };
        match String::from_utf8_lossy(&value).parse() {
            Ok(set) => published.push((*domid, set)),
            Err(malformed) => log::warn(&format!("passing over {}: {malformed}", key(domid))),
        }
    }
    Ok(published)
}

/// What is published for a domain.
///
/// # Errors
/// When XenStore cannot be read.
pub fn key_of(store: &Connection, domid: Domid) -> Result<Option<String>> {
    Ok(optional(store.read(&key(domid)))?.map(Into::into))
}

/// Publishes a guest's pair, readable by dom0 alone.
///
/// # Errors
/// When the domain does not exist, its guest may write its node, or XenStore refuses.
pub fn publish(store: &Connection, domid: Domid, pair: Pair) -> Result<()> {
    change(store, domid, |_| Change::Write(pair.to_string()))
}

/// Takes back what [`publish`] did, where it still stands: a domain that is gone took its key along.
///
/// # Errors
/// When XenStore refuses.
pub fn unpublish(store: &Connection, domid: Domid, pair: Pair, before: Option<&str>) -> Result<()> {
    let back = |now: Option<&str>| match before {
        _ if now != Some(&pair.to_string()) => Change::Nothing,
        Some(before) => Change::Write(before.into()),
        None => Change::Remove,
    };
    change(store, domid, back)
}

/// What becomes of a key.
enum Change {
    Nothing,
    Write(String),
    Remove,
}

/// Changes a domain's key by what it says now. In a transaction that has seen the
/// domain's own node: a plain write would bring a destroyed domain back as a ghost.
fn change(store: &Connection, domid: Domid, to: impl Fn(Option<&str>) -> Change) -> Result<()> {
    let key = key(domid);
    for _ in 0..TRIES {
        let transaction = store.transaction()?;
        let now = optional(transaction.read(&key))?;
        match to(now.as_deref()) {
            Change::Nothing => {}
            Change::Remove => transaction.rm(&key)?,
            Change::Write(value) => {
                check_home(&transaction, domid)?;
                transaction.write(&key, &value)?;
                transaction.set_permissions(&key, &Permissions::dom0_only())?;
            }
        }
        match transaction.commit() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => return Ok(result?),
        }
    }
    bail!("cannot change {key}: somebody else kept changing the domain in {TRIES} tries")
}

/// Whether this pair is what is published for the domain: false as soon as the domain is destroyed.
///
/// # Errors
/// When XenStore cannot be read.
pub fn is_published(store: &Connection, domid: Domid, pair: Pair) -> Result<bool> {
    Ok(key_of(store, domid)?.is_some_and(|value| value == pair.to_string()))
}

/// The holder whose domain still exists, if any: whatever became of its device model, the kernel's own
/// backend may be writing its disks, and a soft reset starts another.
///
/// # Errors
/// When XenStore cannot be read.
pub fn still_there<'a>(
    store: &Connection,
    holders: impl IntoIterator<Item = &'a Holder>,
) -> Result<Option<&'a Holder>> {
    for holder in holders {
        if holder.process.is_of_this_boot()? && vm(store, holder.domid)?.is_some_and(|vm| vm == holder.vm) {
            return Ok(Some(holder));
        }
    }
    Ok(None)
}

/// A domain's UUID; `None` when the domain does not exist.
fn vm(store: &Connection, domid: Domid) -> Result<Option<String>> {
    let path = optional(store.read(&format!("/local/domain/{domid}/vm")))?;
    Ok(path.map(|path| path.rsplit('/').next().unwrap_or_default().to_owned()))
}

/// `None` for a node that does not exist, and only for that.
fn optional<T>(answer: io::Result<T>) -> io::Result<Option<T>> {
    match answer {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        answer => answer.map(Some),
    }
}
