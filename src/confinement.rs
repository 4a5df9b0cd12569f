//! What a launch has done so far, kept so that it can be undone.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::claim::{Claim, Holder, Labelled, Registry, Vanished};
use crate::context::Context;
use crate::guest;
use crate::log;
use crate::mcs::Pair;
use crate::object::{Identity, Object};
use crate::plan::{Refused, Relabel};
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
    claim: Claim,
    joined: bool,
    /// Claims that objects were taken over from, locked until QEMU runs.
    taken: Vec<Claim>,
    published: bool,
    /// What the key said before it was published.
    before: Option<String>,
    owned: Vec<(Identity, Option<Pair>)>,
    labelled: Vec<(Object, Context)>,
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
        let claim = registry.draft(&holder)?.claim(&registry, candidates)?;
        let claim = claim.context("cannot find a free pair of categories: all that our own range has are in use")?;
        Ok(Self::new(store, registry, holder, claim, false))
    }

    /// Joins the claim of an earlier run of the same VM.
    ///
    /// # Errors
    /// When the claim is gone by now, is another VM's, or cannot be written.
    pub fn join(store: Connection, registry: Registry, holder: Holder, pair: Pair) -> Result<Self> {
        let mut claim = registry.lock(pair)?.ok_or(Vanished(pair))?;
        let journal = claim.journal()?;
        ensure!(journal.holders.iter().any(|known| known.vm == holder.vm), Vanished(pair));
        if let Some(other) = journal.live()?.filter(|other| other.domid != holder.domid) {
            log::warn(&format!(
                "domain {} shares its disks and categories with {other}: both are that VM",
                holder.domid
            ));
        }
        claim.join(&holder)?;
        Ok(Self::new(store, registry, holder, claim, true))
    }

    fn new(store: Connection, registry: Registry, holder: Holder, claim: Claim, joined: bool) -> Self {
        let (taken, owned, labelled) = Default::default();
        Self { store, registry, holder, claim, joined, taken, published: false, before: None, owned, labelled }
    }

    /// The pair.
    #[must_use]
    pub fn pair(&self) -> Pair {
        self.claim.pair()
    }

    /// Publishes the pair.
    ///
    /// # Errors
    /// As [`guest::publish`].
    pub fn publish(&mut self) -> Result<()> {
        self.before = guest::key_of(&self.store, self.holder.domid)?;
        self.published = true; // even if it fails: the answer to a commit may be lost
        guest::publish(&self.store, self.holder.domid, self.pair())
    }

    /// Labels the objects, one record written ahead of each change.
    ///
    /// # Errors
    /// When one of them became another VM's meanwhile, or cannot be labelled.
    pub fn label(&mut self, mut objects: Vec<(Object, Relabel)>, image: &Context) -> Result<()> {
        let after = image.with_pair(self.pair());
        let record = |(object, relabel): &(Object, Relabel)| Labelled {
            identity: object.identity(),
            before: relabel.original.clone(),
            after: after.clone(),
            path: object.path().into(),
        };
        // in one order for all launches: of two that want the same disks, the first to own one owns all
        objects.sort_by_key(|(object, _)| object.identity());
        self.claim.about_to_label(&objects.iter().map(record).collect::<Vec<_>>())?;
        self.lock_taken(&objects)?;
        for (object, relabel) in &objects {
            self.own(object, relabel.from)?;
        }
        for (object, _) in objects {
            let before = object.label()?;
            if before != after {
                self.labelled.push((object, before));
                self.labelled.last().map_or(Ok(()), |(object, _)| object.set_label(&after))?;
            }
        }
        Ok(())
    }

    /// Locks the claims that objects are taken over from, in one order for all launches, and looks again: a
    /// device model may have come up since.
    fn lock_taken(&mut self, objects: &[(Object, Relabel)]) -> Result<()> {
        let from = objects.iter().filter_map(|(object, relabel)| Some((relabel.from?, object.path())));
        let from: BTreeMap<Pair, &Path> = from.filter(|(pair, _)| *pair != self.pair()).collect();
        for (pair, path) in from {
            let mut claim = self.registry.lock(pair)?.ok_or(Vanished(pair))?;
            if let Some(live) = claim.journal()?.live()?.filter(|live| live.vm != self.holder.vm) {
                return Err(Refused::InUse(path.into(), live.to_string()).into());
            }
            self.taken.push(claim);
        }
        Ok(())
    }

    fn own(&mut self, object: &Object, from: Option<Pair>) -> Result<()> {
        let (identity, pair) = (object.identity(), self.pair());
        let before = self.registry.owner(identity)?;
        let done = match before {
            Some(owner) if owner == pair => return Ok(()),
            Some(owner) => from == before && self.registry.hand_over(identity, owner, pair)?,
            None => self.registry.own(identity, pair)?,
        };
        if !done {
            let owner = self.registry.owner(identity)?;
            let journal = owner.and_then(|pair| self.registry.read(pair).transpose()).transpose()?.unwrap_or_default();
            let holder = journal.holders.last().map_or_else(|| "another launch".into(), ToString::to_string);
            bail!(Refused::InUse(object.path().into(), holder));
        }
        self.owned.push((identity, before));
        Ok(())
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
        let pair = self.pair();
        let mut failures = Vec::new();
        failures.extend(selinux::clear_exec_context().err());
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
                Some(from) => self.registry.hand_over(*identity, pair, *from).map(drop),
                None => self.registry.disown(*identity, pair),
            };
            failures.extend(given_back.err());
        }
        if self.published {
            failures.extend(self.unpublish().err());
        }
        let left =
            if self.joined || !kept.is_empty() { self.claim.leave(&self.holder.process) } else { self.claim.release() };
        failures.extend(left.err());
        failures
    }

    /// A connection that broke is made anew: the key is not to stay because of a time-out.
    fn unpublish(&self) -> Result<()> {
        let (domid, pair, before) = (self.holder.domid, self.pair(), self.before.as_deref());
        guest::unpublish(&self.store, domid, pair, before)
            .or_else(|_| guest::unpublish(&Connection::open()?, domid, pair, before))
    }
}

impl Drop for Confinement {
    fn drop(&mut self) {
        for failure in self.undo() {
            log::warn(&format!("cannot undo the launch of domain {} whole: {failure:#}", self.holder.domid));
        }
    }
}
