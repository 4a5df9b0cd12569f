//! `svirtctl reconcile`: puts back the labels of claims that nobody holds any more, and frees their pairs.
//!
//! Safe beside launches and beside itself: every claim is changed under its lock.

use std::cell::LazyCell;
use std::io;

use anyhow::{Context as _, Result, anyhow};

use crate::claim::{Holder, Journal, Name, Registry};
use crate::config::Config;
use crate::guest;
use crate::log::clean;
use crate::xenstore::Connection;

/// XenStore, connected to once it is needed.
type Store = LazyCell<io::Result<Connection>>;

/// What became of one claim.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// It is in use, and by whom.
    Held(String),
    /// It is free, with so many labels put back.
    Freed(usize),
    /// It stays, and why.
    Stays(Vec<String>),
}

/// Reconciles every claim. True when nothing had to be left; with `whole`, not even what is in use.
///
/// # Errors
/// When the state directory or, for claims of this boot, XenStore cannot be read.
pub(super) fn run(whole: bool) -> Result<bool> {
    let config = Config::load()?;
    let registry = Registry::open(&config.state_dir)?;
    let store = LazyCell::new(Connection::open as fn() -> _);
    let mut all = true;
    // an object that went from one dead claim to another keeps the first until the second has put it back
    let mut left = registry.names()?;
    loop {
        let before = left.len();
        let mut stays = Vec::new();
        for name in left {
            match reconcile(&registry, &store, name).with_context(|| format!("cannot reconcile the claim of {name}"))? {
                Outcome::Held(by) if whole => {
                    all = false;
                    println!("{name}: stays: in use by {by}");
                }
                Outcome::Held(_) => {}
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

fn reconcile(registry: &Registry, store: &Store, name: Name) -> Result<Outcome> {
    let mut claim = match registry.try_lock(name) {
        Ok(Some(claim)) => claim,
        // whoever has it locked is a launch, which holds it, or another reconcile
        Ok(None) => return Ok(Outcome::Held("a launch".into())),
        Err(error) => return Ok(Outcome::Stays(vec![format!("{error:#}")])),
    };
    let journal = match claim.journal() {
        Ok(journal) => journal,
        Err(corrupt) => {
            let way_out = "restorecon -F the disks that carry it, remove it, and reconcile again";
            return Ok(Outcome::Stays(vec![format!("{corrupt:#}"), way_out.into()]));
        }
    };
    if let Some(holder) = holder(&journal, store)? {
        return Ok(Outcome::Held(holder.to_string()));
    }
    Ok(match claim.put_back(registry, &journal) {
        Ok(labels) => Outcome::Freed(labels),
        Err(failures) => Outcome::Stays(failures.iter().map(|failure| format!("{failure:#}")).collect()),
    })
}

/// A domain may outlive its device model, and the other way round. Nothing outlives the host's reboot, so that
/// before the guests start no XenStore is needed.
fn holder<'a>(journal: &'a Journal, store: &Store) -> Result<Option<&'a Holder>> {
    if let Some(holder) = journal.live(|_| true)? {
        return Ok(Some(holder));
    }
    for holder in &journal.holders {
        if holder.process.is_of_this_boot()? {
            let store = store.as_ref().map_err(|error| anyhow!("{error}"))?;
            return guest::still_there(store, &journal.holders);
        }
    }
    Ok(None)
}
