//! What XenStore says of a guest, and the key that says which categories it has.

use std::io::{self, ErrorKind};
use std::iter;

use anyhow::{Context as _, Result, bail, ensure};
use xenstore_rs::{Xs as _, XsTransaction as _, XsTransactionSpan as _};

use crate::argv::Domid;
use crate::claim::Holder;
use crate::log;
use crate::mcs::{Pair, Set};
use crate::optional;
use crate::vbd::{self, Backend, Nodes, Vbd};
use crate::xenstore::{self, Connection, Look, Permissions, Seen, Transaction};

/// How often a transaction is tried that somebody else's change undid: a toolstack that builds the domain
/// at the same time writes below it all along.
const TRIES: usize = 200;

/// The key of a domain's categories.
#[must_use]
pub fn key(domid: impl std::fmt::Display) -> String {
    format!("/local/domain/{domid}/selinux-mcs")
}

/// The domains there are.
#[derive(Debug)]
pub struct Domains {
    /// The one that this process runs in, whose backends are its own: dom0, or a driver domain.
    pub own: Domid,
    /// All of them, that one and dom0 included.
    pub all: Vec<Domid>,
}

impl Domains {
    /// Asks which there are.
    ///
    /// # Errors
    /// When XenStore does not say.
    pub fn read(store: &Connection) -> Result<Self> {
        Ok(First::look(store, &[])?.domains)
    }

    /// All but one.
    #[must_use]
    pub fn others(&self, domid: Domid) -> Vec<Domid> {
        self.all.iter().copied().filter(|other| *other != domid).collect()
    }
}

/// A guest as XenStore has it.
#[derive(Debug, Clone)]
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
    pub fn read(store: &Connection, domid: Domid) -> Result<Self> {
        let first = First::look(store, &[domid])?;
        let values = store.read_all(first.paths.concat())?;
        first.guest(domid, values)
    }

    /// Reads many guests, all in two exchanges with xenstored.
    ///
    /// # Errors
    /// The outer error is the connection's; each inner one as for [`read`](Self::read).
    pub fn read_all(store: &Connection, domids: &[Domid]) -> Result<Vec<Result<Self>>> {
        let first = First::look(store, domids)?;
        let values = store.read_all(first.paths.concat())?;
        Ok(first.guests(values))
    }

    /// Begins to read a guest: there is time for something else until XenStore has [answered](Asked::beside_others).
    ///
    /// # Errors
    /// When XenStore cannot be asked.
    pub fn ask(store: &Connection, domid: Domid) -> Result<Asked<'_>> {
        Ok(Asked { store, domid, first: store.begin_to_look(First::question(&[domid]))? })
    }

    /// `values` are those of the [paths].
    fn of(
        own: Domid,
        domid: Domid,
        home: io::Result<Permissions>,
        directories: io::Result<Vec<String>>,
        values: io::Result<Vec<Option<Vec<u8>>>>,
    ) -> Result<Self> {
        check_home(domid, home)?;
        let mut values = values?.into_iter();
        let name = String::from_utf8_lossy(&values.next().flatten().unwrap_or_default()).into_owned();
        let vm = String::from_utf8(values.next().flatten().unwrap_or_default()).unwrap_or_default();
        let vm = uuid(&vm).to_owned();
        ensure!(!vm.is_empty(), "cannot tell which VM domain {domid} is: /local/domain/{domid}/vm names none");
        let vbds = directories.map_err(Into::into).and_then(|directories| disks(own, directories, values));
        let vbds = vbds.with_context(|| format!("cannot tell the disks of domain {domid}"))?;
        Ok(Self { domid, name, vm, vbds })
    }

    /// Whether that is a device model of this domain.
    #[must_use]
    pub fn is(&self, holder: &Holder) -> bool {
        holder.domid == self.domid && holder.vm == self.vm
    }
}

fn home(domid: Domid) -> String {
    format!("/local/domain/{domid}")
}

/// That the domain exists and that its guest may not write its node, of these permissions.
fn check_home(domid: Domid, permissions: io::Result<Permissions>) -> Result<()> {
    let permissions = optional(permissions)?.with_context(|| format!("domain {domid} does not exist"))?;
    ensure!(
        !permissions.writable_by(domid.number()),
        "refusing domain {domid}: its guest may write /local/domain/{domid}"
    );
    Ok(())
}

/// A path that does not begin with a slash begins at our own domain's node.
const OWN: &str = "";

/// What a first exchange says of domains, and with it what is to be read in a second.
struct First {
    domains: Domains,
    domids: Vec<Domid>,
    homes: Vec<io::Result<Permissions>>,
    /// Those of each domain's disks.
    directories: Vec<io::Result<Vec<String>>>,
    /// What is to be read of each domain.
    paths: Vec<Vec<String>>,
}

/// A guest that was asked for, and not answered yet.
#[derive(Debug)]
pub struct Asked<'a> {
    store: &'a Connection,
    domid: Domid,
    first: xenstore::Asked<'a>,
}

impl Asked<'_> {
    /// The guest and, asked for with its disks, what is [`published`] for each other domain.
    ///
    /// # Errors
    /// As for [`Guest::read`] and [`published`].
    pub fn beside_others(self) -> Result<(Guest, Vec<(Domid, Set)>)> {
        let first = First::of(&[self.domid], self.first.answers()?)?;
        let others = first.domains.others(self.domid);
        let mut paths = first.paths.concat();
        let own = paths.len();
        paths.extend(others.iter().map(key));
        let mut values = self.store.read_all(paths)?;
        let published = values.split_off(own);
        Ok((first.guest(self.domid, values)?, sets(&others, published)?))
    }
}

impl First {
    fn question(domids: &[Domid]) -> Look {
        let parents = domids.iter().flat_map(|domid| parents(OWN, *domid));
        let directories = iter::once("/local/domain".to_owned()).chain(parents).collect();
        let permissions = domids.iter().copied().map(home).collect();
        Look { permissions, directories, values: vec!["domid".into()] }
    }

    fn look(store: &Connection, domids: &[Domid]) -> Result<Self> {
        Self::of(domids, store.look(&Self::question(domids))?)
    }

    /// `seen` is the answer to the [question](Self::question).
    fn of(domids: &[Domid], Seen { permissions: homes, mut directories, values }: Seen) -> Result<Self> {
        let found = directories.split_off(1);
        let (names, own) = (only(directories)?, only(values)?);
        let own: Domid = str::from_utf8(&own).context("XenStore's domid is no number")?.parse()?;
        let home = format!("{}/", home(own));
        let parents: Vec<_> = domids.iter().map(|domid| parents(&home, *domid)).collect();
        let found = grouped(&parents, found);
        let directories: Vec<_> =
            parents.iter().zip(found).map(|(parents, names)| Ok(below(parents, names?))).collect();
        let paths = domids.iter().zip(&directories).map(|(domid, of)| paths(*domid, of)).collect();
        let all = names.iter().filter_map(|name| name.parse().ok()).collect();
        Ok(Self { domains: Domains { own, all }, domids: domids.into(), homes, directories, paths })
    }

    /// The only one, of this domid.
    fn guest(self, domid: Domid, values: Vec<io::Result<Vec<u8>>>) -> Result<Guest> {
        self.guests(values).pop().with_context(|| format!("domain {domid} does not exist"))?
    }

    /// `values` are those of the paths.
    fn guests(self, values: Vec<io::Result<Vec<u8>>>) -> Vec<Result<Guest>> {
        let values = grouped(&self.paths, values);
        let guests = self.domids.into_iter().zip(self.homes).zip(self.directories.into_iter().zip(values));
        let own = self.domains.own;
        guests.map(|((domid, home), (of, values))| Guest::of(own, domid, home, of, values)).collect()
    }
}

/// Where a domain's disks are: the backends, below the node of the domain that has them, and libxl's own records of them.
fn parents(home: &str, domid: Domid) -> Vec<String> {
    let backends = vbd::KINDS.iter().map(|kind| format!("{home}backend/{kind}/{domid}"));
    let listed = ["vbd", "virtio_disk"].map(|kind| format!("/libxl/{domid}/device/{kind}"));
    backends.chain(listed).collect()
}

/// What is read of a domain: its name, its VM, and the nodes of the directories of its disks.
fn paths(domid: Domid, directories: &io::Result<Vec<String>>) -> Vec<String> {
    let own = ["name", "vm"].map(|node| format!("/local/domain/{domid}/{node}"));
    let nodes = |directory: &String| nodes_of(directory).iter().map(|name| format!("{directory}/{name}")).collect();
    own.into_iter().chain(directories.iter().flatten().flat_map::<Vec<_>, _>(nodes)).collect()
}

fn below(parents: &[String], names: Vec<Option<Vec<Box<str>>>>) -> Vec<String> {
    let children = |(parent, names): (&String, Option<Vec<Box<str>>>)| {
        names.unwrap_or_default().iter().map(|name| format!("{parent}/{name}")).collect::<Vec<_>>()
    };
    parents.iter().zip(names).flat_map(children).collect()
}

/// The nodes that count of a backend, or of libxl's own record of it.
fn nodes_of(directory: &str) -> &'static [&'static str] {
    if is_record(directory) { vbd::LISTED_NODES } else { vbd::NODES }
}

fn is_record(directory: &str) -> bool {
    directory.starts_with("/libxl/")
}

/// `values` are those of the [nodes](nodes_of) of each directory.
fn disks(own: Domid, directories: Vec<String>, mut values: impl Iterator<Item = Option<Vec<u8>>>) -> Result<Vec<Vbd>> {
    let (mut backends, mut listed) = (Vec::new(), Vec::new());
    for path in directories {
        let nodes = nodes_of(&path).iter().zip(values.by_ref());
        let nodes: Nodes = nodes.filter_map(|(name, value)| Some((*name, value?))).collect();
        if is_record(&path) {
            listed.push(nodes);
        } else {
            backends.push(Backend { path, nodes });
        }
    }
    let known = vbd::known(backends, &listed, own)?;
    let mut vbds: Vec<Vbd> = known.iter().map(vbd::vbd).collect::<Result<_, _>>()?;
    vbds.sort_by_key(|vbd| !vbd.writable);
    Ok(vbds)
}

/// The answers to all questions of all groups, by group, `None` where there is no such node, or the first that is
/// another error.
fn grouped<Q, T>(groups: &[Vec<Q>], answers: Vec<io::Result<T>>) -> Vec<io::Result<Vec<Option<T>>>> {
    let mut answers = answers.into_iter();
    let mut of = |group: &Vec<Q>| answers.by_ref().take(group.len()).map(optional).collect::<Vec<_>>();
    groups.iter().map(|group| of(group).into_iter().collect()).collect()
}

/// The categories published for each of these domains. A key that makes no sense is somebody else's fault: it is told
/// and passed over, as it must not stop every launch on the host.
///
/// One read for each domain, many of them in flight. Among launches the claim files decide already, at a cost that does not
/// grow with the domains; this is for what no claim tells of: a key that something else wrote, and those of guests that
/// run on after the state directory was lost. An index of the sets in use, in XenStore, would be one look-up
/// (`tests/bench/run claim` has it beside this), and give up just that, as only its own writers are in it; and an entry
/// would outlive its domain, which takes the key along. Nothing else in XenStore says at once that a key deep below
/// `/local/domain` was written, but a watch that somebody has to stay for.
///
/// # Errors
/// When XenStore cannot be read: only a key that does not exist means none.
pub fn published(store: &Connection, domids: &[Domid]) -> Result<Vec<(Domid, Set)>> {
    sets(domids, store.read_all(domids.iter().map(key))?)
}

/// `values` are those of the [keys](key) of these domains.
fn sets(domids: &[Domid], values: Vec<io::Result<Vec<u8>>>) -> Result<Vec<(Domid, Set)>> {
    let mut published = Vec::new();
    for (domid, value) in domids.iter().zip(values) {
        let value = optional(value).context("cannot read the categories in use from XenStore")?;
        match value.map(|value| String::from_utf8_lossy(&value).parse()) {
            Some(Ok(set)) => published.push((*domid, set)),
            Some(Err(malformed)) => log::warn(&format!("passing over {}: {malformed}", key(domid))),
            None => {}
        }
    }
    Ok(published)
}

/// What is published for a domain.
fn key_of(store: &Connection, domid: Domid) -> Result<Option<String>> {
    Ok(optional(store.read(&key(domid)))?.map(Into::into))
}

/// The pair published for a domain.
///
/// # Errors
/// When XenStore cannot be read, or what is published is no pair.
pub fn pair_of(store: &Connection, domid: Domid) -> Result<Option<Pair>> {
    let pair = key_of(store, domid)?.map(|value| value.parse());
    pair.transpose().with_context(|| format!("cannot use {}", key(domid)))
}

/// Publishes a guest's pair, readable by dom0 alone. `before` is told what the key says before it is written: even a
/// write that fails may have happened, as the answer to a commit may be lost.
///
/// # Errors
/// When the domain does not exist, its guest may write its node, or XenStore refuses.
pub fn publish(store: &Connection, domid: Domid, pair: Pair, mut before: impl FnMut(Option<&str>)) -> Result<()> {
    in_transaction(store, domid, |transaction, key, look| {
        let (seen, written) = transaction.look_and_write(look, key, &pair.to_string(), &Permissions::dom0_only())?;
        check_home(domid, only(seen.permissions))?;
        before(text(key, only(seen.values))?.as_deref());
        Ok(written?)
    })
}

/// Takes back what [`publish`] did, where it still stands: a domain that is gone took its key along.
///
/// # Errors
/// When XenStore refuses.
pub fn unpublish(store: &Connection, domid: Domid, pair: Pair, before: Option<&str>) -> Result<()> {
    in_transaction(store, domid, |transaction, key, look| {
        let seen = transaction.look(look)?;
        if text(key, only(seen.values))?.is_none_or(|now| now != pair.to_string()) {
            return Ok(());
        }
        let Some(before) = before else { return Ok(transaction.rm(key)?) };
        check_home(domid, only(seen.permissions))?;
        Ok(transaction.write_with_permissions(key, before, &Permissions::dom0_only())?)
    })
}

/// Changes a domain's key, by what `act` sees of it and of the domain's own node. In a transaction: a plain write would
/// bring a destroyed domain back as a ghost.
fn in_transaction(
    store: &Connection,
    domid: Domid,
    mut act: impl FnMut(&Transaction, &str, &Look) -> Result<()>,
) -> Result<()> {
    let key = key(domid);
    for _ in 0..TRIES {
        let transaction = store.transaction()?;
        let look = Look { permissions: vec![home(domid)], values: vec![key.clone()], ..Look::default() };
        act(&transaction, &key, &look)?;
        match transaction.commit() {
            Err(error) if error.kind() == ErrorKind::WouldBlock => {}
            result => return Ok(result?),
        }
    }
    bail!("cannot change {key}: somebody else kept changing the domain in {TRIES} tries")
}

/// What a key says; `None` where there is none.
fn text(key: &str, value: io::Result<Vec<u8>>) -> Result<Option<String>> {
    let text = optional(value)?.map(String::from_utf8).transpose();
    text.with_context(|| format!("cannot use {key}"))
}

/// The answer to the only question.
fn only<T>(answers: Vec<io::Result<T>>) -> io::Result<T> {
    answers.into_iter().next().unwrap_or_else(|| Err(ErrorKind::InvalidData.into()))
}

/// Whether this pair is what is published for the domain: false as soon as the domain is destroyed.
///
/// # Errors
/// When XenStore cannot be read.
pub fn is_published(store: &Connection, domid: Domid, pair: Pair) -> Result<bool> {
    Ok(key_of(store, domid)?.is_some_and(|value| value == pair.to_string()))
}

/// Has QEMU try a disk again that it could not open: it does so as often as anything below its backends changes, as
/// long as the state is the toolstack's first (`xen_bus_type_enumerate` in hw/xen/xen-bus.c). Permissions replaced
/// by what they are change nothing, and cannot bring back a backend that is being removed.
///
/// # Errors
/// When XenStore cannot be asked.
pub fn offer_again(store: &Connection, vbd: &Vbd) -> Result<()> {
    const INITIALISING: &str = "1";
    let state = optional(store.read(&format!("{}/state", vbd.backend)))?;
    if !vbd.paths.is_empty() && state.as_deref() == Some(INITIALISING) {
        let touch = || store.set_permissions(&vbd.backend, &store.permissions(&vbd.backend)?);
        optional(touch())?;
    }
    Ok(())
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
///
/// # Errors
/// When XenStore cannot be read.
pub fn vm(store: &Connection, domid: Domid) -> Result<Option<String>> {
    let path = optional(store.read(&format!("/local/domain/{domid}/vm")))?;
    Ok(path.map(|path| uuid(&path).to_owned()))
}

/// What `/vm/<uuid>` names.
fn uuid(vm: &str) -> &str {
    vm.rsplit('/').next().unwrap_or_default()
}
