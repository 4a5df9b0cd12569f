//! `svirtctl reconcile`: puts back the labels of claims that nobody holds any more, and frees their pairs.
//!
//! Safe beside launches and beside itself: every claim is changed under its lock.

use anyhow::{Context as _, Result};

use crate::claim::{Journal, Name, Registry};
use crate::config::Config;
use crate::guest;
use crate::log::clean;
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
    let mut left = registry.names()?;
    loop {
        let before = left.len();
        let mut stays = Vec::new();
        for name in left {
            match reconcile(&registry, name).with_context(|| format!("cannot reconcile the claim of {name}"))? {
                Outcome::Held => {}
                Outcome::Freed(labels) => println!("{name}: freed, {labels} labels put back"),
                Outcome::Stays(why) => stays.push((name, why)),
            }
        }
        if stays.is_empty() || stays.len() == before {
            for (name, why) in &stays {
                all = false;
                println!("{name}: stays: {}", clean(&why.join("; ")));
            }
            registry.clean_index()?;
            return Ok(all);
        }
        left = stays.into_iter().map(|(name, _)| name).collect();
    }
}

fn reconcile(registry: &Registry, name: Name) -> Result<Outcome> {
    let mut claim = match registry.lock(name) {
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
    Ok(match claim.put_back(registry, &journal) {
        Ok(labels) => Outcome::Freed(labels),
        Err(failures) => Outcome::Stays(failures.iter().map(|failure| format!("{failure:#}")).collect()),
    })
}

/// A domain may outlive its device model, and the other way round. Nothing outlives the host's reboot, so that
/// before the guests start no XenStore is needed.
fn is_held(journal: &Journal) -> Result<bool> {
    for holder in &journal.holders {
        if holder.process.is_of_this_boot()? {
            return Ok(journal.live(|_| true)?.is_some()
                || guest::still_there(&Connection::open()?, &journal.holders)?.is_some());
        }
    }
    Ok(false)
}
