//! `svirtctl relabel`: labels the disks that a guest got since its launch, and puts back the labels of those it has
//! no more.

use std::collections::BTreeSet;

use anyhow::{Result, bail, ensure};

use crate::argv::Domid;
use crate::claim::{self, Labelled, Outdated, Registry};
use crate::config::Config;
use crate::confinement::Confinement;
use crate::disks;
use crate::guest::{self, Domains, Guest};
use crate::libxl::Record;
use crate::log::{self, Severity, clean};
use crate::mcs::Pair;
use crate::object::{self, Identity, Loops, Object};
use crate::owner::Owners;
use crate::plan::Relabel;
use crate::selinux;
use crate::vbd::Vbd;
use crate::xenstore::Connection;

/// Relabels one virtual block device of a guest by number or name, or all of them. True when nothing had to be left.
///
/// # Errors
/// When there is no such guest or device, or that cannot be told.
pub(super) fn run(domid: Domid, device: Option<&str>) -> Result<bool> {
    let config = Config::load()?;
    let store = Connection::open()?;
    let guest = Guest::read(&store, domid)?;
    let Some(pair) = guest::pair_of(&store, domid)? else {
        bail!("domain {domid} has no pair of categories: svirt-interpose started no device model for it");
    };
    let vbds: Vec<&Vbd> = guest.vbds.iter().filter(|vbd| device.is_none_or(|device| vbd.is(device))).collect();
    if let Some(device) = device {
        ensure!(!vbds.is_empty(), "domain {domid} has no virtual block device {device}");
    }
    let mut all = true;
    for vbd in vbds {
        all &= tell(&label(&config, &guest, vbd, pair, None));
    }
    if device.is_none() {
        all &= tell(&release(&config, &guest, pair));
    }
    Ok(all)
}

pub(super) fn tell(done: &Result<Vec<String>>) -> bool {
    match done {
        Ok(lines) => lines.iter().for_each(|line| println!("{}", clean(line))),
        Err(error) => log::tell("svirtctl", &format!("{error:#}")),
    }
    done.is_ok()
}

/// Labels what a disk is made of, as a launch would have; a line for each object that was changed. With libxl's record
/// only what is in there, and what the administrator has as backing files.
///
/// # Errors
/// When a launch would have refused it, or the record has it not; then all is as it was.
pub(super) fn label(
    config: &Config,
    guest: &Guest,
    vbd: &Vbd,
    pair: Pair,
    record: Option<&Record>,
) -> Result<Vec<String>> {
    let alone = Guest { vbds: vec![vbd.clone()], ..guest.clone() };
    let labelled = claim::retrying(|| {
        let (store, registry) = (Connection::open()?, Registry::open(&config.state_dir)?);
        let (contexts, mode) = (config.contexts()?, selinux::mode()?);
        let published = guest::published(&store, &Domains::read(&store)?.others(guest.domid))?;
        let loops = Loops::look()?;
        let found = {
            let owners = Owners::new(&registry, &store, &guest.vm, &contexts, &loops);
            disks::find(&alone, &owners, config, &contexts, mode)?
        };
        let doubtful: Vec<Identity> = found
            .iter()
            .filter(|(object, found)| !found.backing && record.is_some_and(|record| !record.has(object, vbd.writable)))
            .map(|(object, _)| object.identity())
            .collect();
        let (mut plan, mut settled, mut lines) = (Vec::new(), Vec::new(), Vec::new());
        for (object, relabel) in disks::decide(found, &contexts, &published, mode)? {
            let after = relabel.after(&contexts, pair);
            if object.label()? == after && has_it(&registry, guest, pair, &relabel)? {
                settled.push((object, after));
                continue;
            }
            let path = object.path().display();
            ensure!(
                !doubtful.contains(&object.identity()),
                "cannot label {path}: libxl has no such disk on record for domain {}",
                guest.domid
            );
            lines.push(format!("{path}: labelled {after}"));
            plan.push((object, relabel));
        }
        let mut confinement = Confinement::running(store, registry, guest.domid, &guest.vm, pair)?;
        // who had the claim locked may just have put back the label of a disk that was not attached yet
        for (object, after) in &settled {
            ensure!(object.label()? == *after, Outdated::Label(object.path().into()));
        }
        if !plan.is_empty() {
            let objects = plan.len();
            confinement.label(plan, &contexts, &loops)?;
            let done = format!("relabel domid={} vm={} set={pair} objects={objects}", guest.domid, guest.vm);
            log::record(Severity::LOG_INFO, &done);
        }
        confinement.keep();
        Ok(lines)
    })?;
    guest::offer_again(&Connection::open()?, vbd)?;
    Ok(labelled)
}

/// Whether the claims have it already that this is the guest's.
fn has_it(registry: &Registry, guest: &Guest, pair: Pair, relabel: &Relabel) -> Result<bool> {
    let Some(name) = relabel.common else { return Ok(relabel.from == Some(pair.into())) };
    Ok(registry.read(name)?.is_some_and(|journal| journal.holders.iter().any(|holder| guest.is(holder))))
}

/// Puts back the labels of what the guest was given, but neither has as a disk nor holds open any more. A line for
/// each.
fn release(config: &Config, guest: &Guest, pair: Pair) -> Result<Vec<String>> {
    let registry = Registry::open(&config.state_dir)?;
    let mut claim = registry.lock(pair.into())?.ok_or(Outdated::Claim(pair.into()))?;
    let journal = claim.journal()?;
    let store = Connection::open()?;
    let contexts = config.contexts()?;
    let mut in_use: BTreeSet<Identity> = BTreeSet::new();
    for holder in &journal.holders {
        if holder.process.is_alive()? {
            // the backend's nodes are gone before QEMU has written the last of a qcow2 and closed it
            in_use.extend(object::open_in(holder.process.pid)?);
        }
        if guest::still_there(&store, [holder])?.is_some() {
            let guest = Guest::read(&store, holder.domid)?;
            for part in disks::parts(&guest, config, &contexts) {
                in_use.extend(part.objects?.iter().map(Object::identity));
            }
        }
    }
    let left = |label: &Labelled| -> Result<bool> {
        let object = label.object.find()?;
        Ok(object.is_some_and(|object| !in_use.contains(&object.identity())))
    };
    let mut lines = Vec::new();
    let mut put_back =
        |label: &Labelled| lines.push(format!("{}: put back {}", label.object.path.display(), label.before));
    for label in journal.labels.iter().rev() {
        if left(label)? && claim.restore(&registry, label)?.1 {
            put_back(label);
        }
    }
    for name in registry.names()?.into_iter().filter(|name| name.is_common()) {
        let Some(mut claim) = registry.lock(name)? else { continue };
        let journal = claim.journal()?;
        for label in &journal.labels {
            for holder in journal.holders.iter().filter(|holder| guest.is(holder)) {
                if left(label)? {
                    match claim.give_up(&registry, &holder.process)? {
                        Ok(0) => {}
                        Ok(_) => put_back(label),
                        Err(failures) => failures.into_iter().try_for_each(Err)?,
                    }
                }
            }
        }
    }
    Ok(lines)
}
