//! The end of a claim: the labels that its objects had before any guest come back.

use anyhow::{Error, Result, bail};

use super::{Claim, Journal, Labelled, Process, Registry};
use crate::object::{self, Object};

impl Claim {
    /// Puts every label back that can be, and then gives the claim up: it is free again only when no object that
    /// can be found carries it. How many labels were changed; `journal` is what the claim says.
    ///
    /// # Errors
    /// All that could not be put back; the claim stays.
    pub fn put_back(&self, registry: &Registry, journal: &Journal) -> Result<usize, Vec<Error>> {
        let (mut changed, mut found, mut failures) = (0, Vec::new(), Vec::new());
        // the last record first: a reboot may have given an object a second one, under other numbers
        for label in journal.labels.iter().rev() {
            match self.restore(registry, label) {
                Ok((object, was_changed)) => {
                    found.extend(object);
                    changed += usize::from(was_changed);
                }
                Err(error) => failures.push(error),
            }
        }
        // also what was not changed: an earlier reconcile may have been stopped here
        failures.extend(object::sync_labels(&found).err());
        if failures.is_empty() {
            self.release().map_err(|error| vec![error])?;
            Ok(changed)
        } else {
            Err(failures)
        }
    }

    /// Takes a holder out, the last of whom puts every label back as [`put_back`](Self::put_back) does.
    ///
    /// # Errors
    /// When the claim cannot be read or written.
    pub fn give_up(&mut self, registry: &Registry, process: &Process) -> Result<Result<usize, Vec<Error>>> {
        self.leave(process)?;
        let journal = self.journal()?;
        Ok(if journal.holders.is_empty() { self.put_back(registry, &journal) } else { Ok(0) })
    }

    /// Puts one label back, if the object is still the one recorded and still carries the label it was given. The object,
    /// and whether it was changed.
    ///
    /// # Errors
    /// When the object cannot be told or labelled, or another claim has it.
    pub fn restore(&self, registry: &Registry, label: &Labelled) -> Result<(Option<Object>, bool)> {
        let mut changed = false;
        // what kept its label needs none back, nor to be there
        let object = if label.before == label.after { None } else { label.object.find()? };
        if let Some(object) = &object
            && object.label()? == label.after
        {
            match registry.owner(object.identity())?.filter(|owner| *owner != self.name()) {
                None => {
                    object.set_label(&label.before)?;
                    changed = true;
                }
                // both give the same label: the other has recorded what becomes of it
                Some(other) if other.is_like(self.name()) => {}
                // a launch took it over and died before it labelled it
                Some(other) => bail!("{} carries it, but is claimed by {other}", object.path().display()),
            }
        }
        registry.disown(label.object.identity, self.name())?;
        Ok((object, changed))
    }
}
