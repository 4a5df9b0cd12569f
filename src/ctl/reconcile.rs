//! `svirtctl reconcile`: puts back the labels of claims that nobody holds any more, and frees their pairs.
//!
//! Safe beside launches and beside itself: every claim is changed under its lock. A pair is free again only when no
//! object that can be found carries it.

use anyhow::{Context as _, Result, bail};

use crate::claim::{Claim, Journal, Labelled, Registry};
use crate::config::Config;
use crate::guest;
use crate::log::clean;
use crate::mcs::Pair;
use crate::object;
use crate::xenstore::Connection;

/// What became of one claim.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// Somebody holds it.
    Held,
    /// It is free, with so many labels put back.
    Freed(usize),
    /// It stays, and why.
    Stays(Vec<String>),
}

/// Reconciles every claim. True when nothing had to be left.
///
/// # Errors
/// When the state directory or, for claims of this boot, XenStore cannot be read.
pub(super) fn run() -> Result<bool> {
    let config = Config::load()?;
    let registry = Registry::open(&config.state_dir)?;
    let mut all = true;
    // an object that went from one dead claim to another keeps the first until the second has put it back
    let mut left = registry.pairs()?;
    loop {
        let before = left.len();
        let mut stays = Vec::new();
        for pair in left {
            match reconcile(&registry, pair).with_context(|| format!("cannot reconcile the claim of {pair}"))? {
                Outcome::Held => {}
                Outcome::Freed(labels) => println!("{pair}: freed, {labels} labels put back"),
                Outcome::Stays(why) => stays.push((pair, why)),
            }
        }
        if stays.is_empty() || stays.len() == before {
            for (pair, why) in &stays {
                all = false;
                println!("{pair}: stays: {}", clean(&why.join("; ")));
            }
            registry.remove_dangling()?;
            return Ok(all);
        }
        left = stays.into_iter().map(|(pair, _)| pair).collect();
    }
}

fn reconcile(registry: &Registry, pair: Pair) -> Result<Outcome> {
    let mut claim = match registry.lock(pair) {
        Ok(Some(claim)) => claim,
        Ok(None) => return Ok(Outcome::Held),
        Err(locked) => return Ok(Outcome::Stays(vec![format!("{locked:#}")])),
    };
    let journal = match claim.journal() {
        Ok(journal) => journal,
        Err(corrupt) => {
            let way_out = "restorecon -F the disks that carry it, remove it, and reconcile again";
            return Ok(Outcome::Stays(vec![format!("{corrupt:#}"), way_out.into()]));
        }
    };
    if is_held(&journal)? {
        return Ok(Outcome::Held);
    }
    let (mut restored, mut stays) = (0, Vec::new());
    for label in &journal.labels {
        match restore(registry, &claim, label) {
            Ok(put_back) => restored += usize::from(put_back),
            Err(error) => stays.push(format!("{error:#}")),
        }
    }
    if !stays.is_empty() {
        return Ok(Outcome::Stays(stays));
    }
    claim.release()?;
    Ok(Outcome::Freed(restored))
}

/// A domain may outlive its device model, and the other way round. Nothing outlives the host's reboot, so that
/// before the guests start no XenStore is needed.
fn is_held(journal: &Journal) -> Result<bool> {
    for holder in &journal.holders {
        if holder.process.is_of_this_boot()? {
            return Ok(
                journal.live()?.is_some() || guest::still_there(&Connection::open()?, &journal.holders)?.is_some()
            );
        }
    }
    Ok(false)
}

/// Puts one label back, if the object is still the one recorded and still carries a guest's label. True when it was
/// changed.
fn restore(registry: &Registry, claim: &Claim, label: &Labelled) -> Result<bool> {
    let owned = registry.owner(label.identity)? == Some(claim.pair());
    let mut changed = false;
    if let Some(object) = object::find(label.identity, &label.path)? {
        let now = object.label()?;
        // a launch that died halfway owns the object while it carries the claim's before
        let carries = now == label.after || owned && now.type_() == label.after.type_() && !now.categories().is_empty();
        match registry.owner(object.identity())?.filter(|owner| *owner != claim.pair()) {
            None if carries => {
                object.set_label(&label.before)?;
                changed = true;
            }
            Some(other) if now == label.after => {
                bail!("{} carries it, but is claimed by {other}", object.path().display())
            }
            _ => {}
        }
    }
    registry.disown(label.identity, claim.pair())?;
    Ok(changed)
}
