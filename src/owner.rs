//! Whose an object is, by the claims on this host and the domains and device models that hold them.

use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use crate::claim::{Holder, Journal, Name, Outdated, Registry};
use crate::config::Contexts;
use crate::context::Context;
use crate::guest;
use crate::mcs::Pair;
use crate::object::{Loops, Object};
use crate::plan::{Access, Owner};
use crate::xenstore::Connection;

/// How long the device model of a domain that is gone may take to exit before its disk is called in use:
/// libxl sends it SIGHUP and does not wait (`libxl__destroy_device_model`).
const EXITING: Duration = Duration::from_secs(10);

/// The claims, as one launch asks them.
#[derive(Debug)]
pub struct Owners<'a> {
    registry: &'a Registry,
    store: &'a Connection,
    vm: &'a str,
    contexts: &'a Contexts,
    loops: &'a Loops,
    deadline: Instant,
}

impl<'a> Owners<'a> {
    /// For a guest of this VM.
    #[must_use]
    pub fn new(
        registry: &'a Registry,
        store: &'a Connection,
        vm: &'a str,
        contexts: &'a Contexts,
        loops: &'a Loops,
    ) -> Self {
        Self { registry, store, vm, contexts, loops, deadline: Instant::now() + EXITING }
    }

    /// Whose an object is that carries this label, with the label recorded for it. The index tells, or else the
    /// label itself: an index of an earlier boot does not count.
    ///
    /// # Errors
    /// When that cannot be told, or is [`Outdated`].
    pub fn of(&self, object: &Object, label: &Context, access: Access) -> Result<(Owner, Option<Context>)> {
        for (other, node) in object.overlapping(self.loops)? {
            if let Some(journal) = self.registry.owning(other)?
                && let Some(holder) = self.another(&journal)?
            {
                return Ok((Owner::Overlapping(node, holder), None));
            }
        }
        let indexed = self.registry.owner(object.identity())?;
        // reconcile may have put the label back, and freed the claim, since the label was read
        let nobodys = || -> Result<_> {
            ensure!(object.label()? == *label, Outdated::Label(object.path().into()));
            Ok((Owner::Nobody, None))
        };
        let Some(name) = indexed.map_or_else(|| self.led_to(object, label), |name| Ok(Some(name)))? else {
            return nobodys();
        };
        let Some(journal) = self.registry.read(name)? else {
            return if indexed.is_some() { Err(Outdated::Claim(name).into()) } else { nobodys() };
        };
        let recorded = journal.label(object)?.map(|record| record.before.clone());
        match name {
            Name::Content(_) if access == Access::ReadOnly => return Ok((Owner::Common(name), recorded)),
            Name::Shared(_) if access == Access::Shared => return Ok((Owner::Common(name), recorded)),
            Name::Pair(pair) if journal.holders.iter().any(|holder| holder.vm == self.vm) => {
                let held = self.is_held(&journal)?;
                // a file that another domain of this VM has to write stays one to write
                let own = held || access == Access::Exclusive;
                let owner = if own { Owner::SameVm { pair, held } } else { Owner::Gone(name) };
                return Ok((owner, recorded));
            }
            // its categories are the claim's, but it is none of the claim's objects
            Name::Pair(_) if indexed.is_none() && recorded.is_none() => return nobodys(),
            _ => {}
        }
        Ok(match self.another(&journal)? {
            Some(holder) => (Owner::Live(holder), None),
            None => (Owner::Gone(name), recorded),
        })
    }

    /// The holder of a claim that is another VM's and still there, once it has had the time to exit.
    fn another(&self, journal: &Journal) -> Result<Option<Holder>> {
        let another = |holder: &Holder| holder.vm != self.vm;
        loop {
            let others = journal.holders.iter().filter(|holder| another(holder));
            if let Some(holder) = guest::still_there(self.store, others)? {
                return Ok(Some(holder.clone()));
            }
            match journal.live(another)? {
                Some(exiting) if Instant::now() > self.deadline => return Ok(Some(exiting.clone())),
                Some(_) => sleep(Duration::from_millis(10)),
                None => return Ok(None),
            }
        }
    }

    /// The claim that a label leads to: that of its categories, or where it has none the one that records the object.
    /// One that cannot be read is reconcile's to report, and to keep.
    fn led_to(&self, object: &Object, label: &Context) -> Result<Option<Name>> {
        if ![&self.contexts.content, &self.contexts.shared].contains(&label) {
            return Ok(Pair::of(label.categories()).map(Name::Pair));
        }
        for name in self.registry.names()?.into_iter().filter(|name| name.is_common()) {
            if let Ok(Some(journal)) = self.registry.read(name)
                && journal.label(object)?.is_some()
            {
                return Ok(Some(name));
            }
        }
        Ok(None)
    }

    fn is_held(&self, journal: &Journal) -> Result<bool> {
        Ok(journal.live(|_| true)?.is_some() || guest::still_there(self.store, &journal.holders)?.is_some())
    }
}
