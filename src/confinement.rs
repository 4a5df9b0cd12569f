//! What a launch has done so far, kept so that it can be undone.

use std::collections::BTreeMap;
use std::mem;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::argv::Domid;
use crate::claim::{Claim, Holder, Journal, Labelled, Name, Outdated, Registry};
use crate::config::Contexts;
use crate::context::Context;
use crate::guest;
use crate::log;
use crate::mcs::Pair;
use crate::object::{self, Identity, Loops, Object, Recorded};
use crate::plan::{Access, Refused, Relabel};
use crate::selinux;
use crate::xenstore::Connection;

/// A guest's pair, published and labelled. Dropping it undoes all of it in reverse; executing QEMU does not
/// come back to drop it.
#[derive(Debug)]
#[must_use]
pub struct Confinement {
    store: Connection,
    registry: Registry,
    holder: Holder,
    pair: Pair,
    claim: Claim,
    entry: Entry,
    /// Claims that objects were taken over from, locked until QEMU runs.
    taken: Vec<Claim>,
    published: bool,
    /// What the key said before it was published.
    before: Option<String>,
    owned: Vec<(Identity, Option<Name>)>,
    labelled: Vec<(Object, Context)>,
    /// Claims of what this guest has in common with others.
    common: Vec<Name>,
}

/// How a claim was come by, and so how it is left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    /// It is this launch's own.
    New,
    /// An earlier launch's of the same VM, which this one holds too.
    Joined,
    /// A running guest's, whose device model holds it.
    Running,
}

impl Confinement {
    /// Claims the first of the candidates that no other claim has.
    ///
    /// # Errors
    /// When every candidate is claimed, or the claim cannot be written.
    pub fn claim(
        store: Connection,
        registry: Registry,
        holder: Holder,
        candidates: impl Iterator<Item = Pair>,
    ) -> Result<Self> {
        let claimed = registry.draft(&Journal::of(&holder))?.claim(&registry, candidates)?;
        let (pair, claim) =
            claimed.context("cannot find a free pair of categories: all that our own range has are in use")?;
        Ok(Self::new(store, registry, holder, pair, claim, Entry::New))
    }

    /// Joins the claim of an earlier run of the same VM.
    ///
    /// # Errors
    /// When the claim is gone by now, is another VM's, or cannot be written.
    pub fn join(store: Connection, registry: Registry, holder: Holder, pair: Pair) -> Result<Self> {
        let outdated = || Outdated::Claim(pair.into());
        let mut claim = registry.lock(pair.into())?.ok_or_else(outdated)?;
        let journal = claim.journal()?;
        ensure!(journal.holders.iter().any(|known| known.vm == holder.vm), outdated());
        if let Some(other) = journal.live(|other| other.domid != holder.domid)? {
            log::warn(&format!(
                "domain {} shares its disks and categories with {other}: both are that VM",
                holder.domid
            ));
        }
        join(&mut claim, &registry, &store, &holder)?;
        Ok(Self::new(store, registry, holder, pair, claim, Entry::Joined))
    }

    /// Locks the claim of a guest that runs, to label what it got since.
    ///
    /// # Errors
    /// When the pair is claimed for no device model of this domain that runs: what XenStore says of a domain's pair
    /// does not suffice.
    pub fn running(store: Connection, registry: Registry, domid: Domid, vm: &str, pair: Pair) -> Result<Self> {
        let mut claim = registry.lock(pair.into())?.ok_or(Outdated::Claim(pair.into()))?;
        let journal = claim.journal()?;
        let holder = journal.live(|holder| holder.domid == domid && holder.vm == vm)?.cloned().with_context(|| {
            format!("{pair} is published for domain {domid}, but no running device model of it has claimed that")
        })?;
        Ok(Self::new(store, registry, holder, pair, claim, Entry::Running))
    }

    fn new(store: Connection, registry: Registry, holder: Holder, pair: Pair, claim: Claim, entry: Entry) -> Self {
        let (taken, published, before, owned, labelled, common) = Default::default();
        Self { store, registry, holder, pair, claim, entry, taken, published, before, owned, labelled, common }
    }

    /// The pair.
    #[must_use]
    pub fn pair(&self) -> Pair {
        self.pair
    }

    /// Publishes the pair.
    ///
    /// # Errors
    /// As [`guest::publish`].
    pub fn publish(&mut self) -> Result<()> {
        guest::publish(&self.store, self.holder.domid, self.pair, |before| {
            self.published = true;
            self.before = before.map(Into::into);
        })
    }

    /// Labels the objects, one record written ahead of each change.
    ///
    /// # Errors
    /// When one of them became another VM's meanwhile, or cannot be labelled.
    pub fn label(&mut self, mut objects: Vec<(Object, Relabel)>, contexts: &Contexts, loops: &Loops) -> Result<()> {
        // in one order for all launches: of two that want the same disks, the first to own one owns all
        objects.sort_by_key(|(object, _)| object.identity());
        self.lock_taken(&objects)?;
        let pair = self.pair();
        let is_own = |relabel: &Relabel| relabel.access == Access::Exclusive;
        let own = objects.iter().filter(|(_, relabel)| is_own(relabel));
        let records: Result<Vec<_>> =
            own.map(|(object, relabel)| record(object, relabel, &relabel.after(contexts, pair))).collect();
        self.claim.record(&records?)?;
        if objects.iter().any(|(object, relabel)| is_own(relabel) && object.keeps_its_label()) {
            self.claim.sync()?;
        }
        for (object, relabel) in &objects {
            if is_own(relabel) {
                self.own(object, relabel.from)?;
            } else {
                self.have_in_common(object, relabel, &relabel.after(contexts, pair))?;
            }
            self.check_overlaps(object, loops)?;
        }
        for (object, relabel) in objects {
            let (before, after) = (object.label()?, relabel.after(contexts, pair));
            if relabel.is_open {
                let path = object.path().display();
                log::warn(&format!("{path} keeps the label {after}: every guest's device model may write it"));
            }
            if before == after {
                continue;
            }
            if is_own(&relabel) {
                self.labelled.push((object, before));
                self.labelled.last().map_or(Ok(()), |(object, _)| object.set_label(&after))?;
            } else {
                object.set_label(&after)?;
            }
        }
        Ok(())
    }

    /// Locks the claims that objects are taken over from, in one order for all launches, and looks again: a
    /// device model may have come up since.
    fn lock_taken(&mut self, objects: &[(Object, Relabel)]) -> Result<()> {
        let from = objects.iter().filter_map(|(object, relabel)| Some((relabel.from?, object.path())));
        let from: BTreeMap<Name, &Path> = from.filter(|(name, _)| *name != self.claim.name()).collect();
        for (name, path) in from {
            let mut claim = self.registry.lock(name)?.ok_or(Outdated::Claim(name))?;
            // what this VM itself reads it may write; what it writes by another label it would lose there
            let keeps = |live: &Holder| live.vm != self.holder.vm || !matches!(name, Name::Content(_));
            if let Some(live) = claim.journal()?.live(keeps)? {
                return Err(Refused::InUse(path.into(), live.to_string()).into());
            }
            self.taken.push(claim);
        }
        Ok(())
    }

    fn own(&mut self, object: &Object, from: Option<Name>) -> Result<()> {
        let (identity, own) = (object.identity(), self.claim.name());
        let before = self.registry.owner(identity)?;
        if before == Some(own) {
            return Ok(());
        }
        if !self.registry.own(identity, from, own)? {
            let journal = self.registry.owning(identity)?.unwrap_or_default();
            let holder = journal.holders.last().map_or_else(|| "another launch".into(), ToString::to_string);
            bail!(Refused::InUse(object.path().into(), holder));
        }
        self.owned.push((identity, before));
        Ok(())
    }

    /// That no launch got hold of a device that shares sectors with this one since they were looked for. Of two that have
    /// one each, by the index and by their claims, one at least looks after the other is in both.
    fn check_overlaps(&self, object: &Object, loops: &Loops) -> Result<()> {
        for (other, node) in object.overlapping(loops)? {
            if let Some(journal) = self.registry.owning(other)?
                && let Some(live) = journal.live(|live| live.vm != self.holder.vm)?
            {
                bail!(Refused::Overlaps(object.path().into(), node, live.to_string()));
            }
        }
        Ok(())
    }

    /// Holds what the guest has in common with others, by the claim of those who have it already or else a new one. That
    /// is locked no longer than this takes: others may be about to have it too.
    fn have_in_common(&mut self, object: &Object, relabel: &Relabel, after: &Context) -> Result<()> {
        let mut claim = if let Some(name) = relabel.common {
            let mut claim = self.registry.lock(name)?.ok_or(Outdated::Claim(name))?;
            ensure!(claim.journal()?.label(object)?.is_some(), Outdated::Claim(name)); // it is another object's by now
            join(&mut claim, &self.registry, &self.store, &self.holder)?;
            claim
        } else {
            let draft = self.registry.draft(&Journal::of(&self.holder))?;
            let claimed = match relabel.access {
                Access::Shared => draft.claim(&self.registry, Name::shared())?,
                _ => draft.claim(&self.registry, Name::contents())?,
            };
            claimed.context("cannot find a free number for the claim of a disk that guests have in common")?.1
        };
        let name = claim.name();
        self.common.push(name);
        if self.registry.owner(object.identity())? != Some(name) || object.label()? != *after {
            claim.record(&[record(object, relabel, after)?])?;
            if object.keeps_its_label() {
                claim.sync()?;
            }
            ensure!(self.registry.own(object.identity(), relabel.from, name)?, Outdated::Claim(name));
        }
        Ok(())
    }

    /// Keeps what was labelled, where no execve(2) will.
    pub fn keep(mut self) {
        self.owned.clear();
        self.labelled.clear();
        self.common.clear();
    }

    /// Sets the context that QEMU will run in, and makes sure that the domain is still there for it.
    ///
    /// # Errors
    /// When the kernel refuses, or the domain was destroyed meanwhile.
    pub fn enter(&mut self, domain: &Context) -> Result<()> {
        selinux::set_exec_context(&domain.with_pair(self.pair()))?;
        let (domid, there) = (self.holder.domid, guest::is_published(&self.store, self.holder.domid, self.pair())?);
        ensure!(there, "domain {domid} was destroyed while its device model was being launched");
        Ok(())
    }

    /// Takes everything back, the last first, and goes on past what fails: it tells each failure.
    fn undo(&mut self) -> Vec<anyhow::Error> {
        let own = self.claim.name();
        let mut failures = Vec::new();
        failures.extend(selinux::clear_exec_context().err());
        for name in self.common.iter().rev() {
            failures.extend(self.stop_sharing(*name).unwrap_or_else(|error| vec![error]));
        }
        // an object whose label cannot be put back stays ours, and the pair with it
        let mut kept = Vec::new();
        for (object, before) in self.labelled.iter().rev() {
            let unchanged = object.label().is_ok_and(|now| now == *before);
            if let (false, Err(error)) = (unchanged, object.set_label(before)) {
                kept.push(object.identity());
                failures.push(error);
            }
        }
        for (identity, from) in self.owned.iter().rev().filter(|(identity, _)| !kept.contains(identity)) {
            let given_back = match from {
                Some(from) => self.registry.own(*identity, Some(own), *from).map(drop),
                None => self.registry.disown(*identity, own),
            };
            failures.extend(given_back.err());
        }
        if self.published {
            failures.extend(self.unpublish().err());
        }
        let synced = object::sync_labels(self.labelled.iter().map(|(object, _)| object));
        let left = match self.entry {
            Entry::Running => Ok(()),
            Entry::New if kept.is_empty() && synced.is_ok() => self.claim.release(),
            Entry::New | Entry::Joined => self.claim.leave(&self.holder.process),
        };
        failures.extend(synced.err().into_iter().chain(left.err()));
        failures
    }

    /// What could not be put back is told.
    fn stop_sharing(&self, name: Name) -> Result<Vec<anyhow::Error>> {
        let Some(mut claim) = self.registry.lock(name)? else { return Ok(Vec::new()) };
        Ok(claim.give_up(&self.registry, &self.holder.process)?.err().unwrap_or_default())
    }

    /// A connection that broke is made anew: the key is not to stay because of a time-out.
    fn unpublish(&self) -> Result<()> {
        let (domid, pair, before) = (self.holder.domid, self.pair(), self.before.as_deref());
        guest::unpublish(&self.store, domid, pair, before)
            .or_else(|_| guest::unpublish(&Connection::open()?, domid, pair, before))
    }
}

/// Adds a holder to a claim. One that has become long is written anew, without holders that are gone; the last stays, as
/// it says which VM's it is while this launch may still fail.
fn join(claim: &mut Claim, registry: &Registry, store: &Connection, holder: &Holder) -> Result<()> {
    let mut journal = claim.journal()?;
    if !journal.is_long() {
        return claim.join(holder);
    }
    let mut known = mem::take(&mut journal.holders);
    let last = known.pop();
    for holder in known {
        if holder.process.is_alive()? || guest::still_there(store, [&holder])?.is_some() {
            journal.holders.push(holder);
        }
    }
    journal.holders.extend(last.into_iter().chain([holder.clone()]));
    claim.replace(registry, &journal)
}

fn record(object: &Object, relabel: &Relabel, after: &Context) -> Result<Labelled> {
    let (before, after) = (relabel.original.clone(), after.clone());
    Ok(Labelled { object: Recorded::of(object)?, before, after })
}

impl Drop for Confinement {
    fn drop(&mut self) {
        for failure in self.undo() {
            log::warn(&format!("cannot undo what was done for domain {} whole: {failure:#}", self.holder.domid));
        }
    }
}
