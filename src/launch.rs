//! One launch, top to bottom: read, look, decide, claim, label, execute.

use std::convert::Infallible;
use std::ffi::OsString;
use std::path::PathBuf;

use anyhow::{Context as _, Result, anyhow, ensure};
use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};

use crate::argv::{self, Domid, Target};
use crate::backing;
use crate::claim::{Holder, Outdated, Process, Registry};
use crate::config::{self, Config, Contexts};
use crate::confinement::Confinement;
use crate::exec::{self, Qemu};
use crate::guest::{self, Guest};
use crate::log;
use crate::mcs::{self, InUse, Set};
use crate::object::{self, Object};
use crate::owner::Owners;
use crate::plan::{self, Found, Relabel};
use crate::selinux::{self, Mode};
use crate::signals::Held;
use crate::xenstore::Connection;

/// How often a launch begins anew because a claim was changed under it.
const TRIES: u32 = 5;

/// Why QEMU was not started, and the exit status that says so: 125 refused, 126 it cannot be executed, 127
/// there is no such file; as env(1) and runcon(1).
#[derive(Debug)]
pub struct Failure {
    /// The exit status.
    pub status: u8,
    /// The cause, for the toolstack's log and syslog.
    pub cause: anyhow::Error,
}

impl From<anyhow::Error> for Failure {
    fn from(cause: anyhow::Error) -> Self {
        Self { status: 125, cause }
    }
}

impl From<exec::Error> for Failure {
    fn from(error: exec::Error) -> Self {
        Self { status: error.status(), cause: error.into() }
    }
}

/// Starts QEMU in place of this process, confined if it serves a guest. `args` is QEMU's own argv without
/// its first word.
///
/// # Errors
/// It returns only with a [`Failure`], and then has left labels, XenStore and claims as they were.
pub fn launch(args: &[OsString]) -> Result<Infallible, Failure> {
    let config = Config::load()?;
    let qemu = Qemu::find(&config.qemu)?;
    let Target::Guest(domid) = argv::target(args).context("cannot tell the domain from QEMU's arguments")? else {
        return Ok(qemu.exec(args)?);
    };
    let mode = selinux::mode()?;
    if mode == Mode::Disabled {
        if config.require {
            return Err(anyhow!("SELinux is disabled, and {} says require = true", config::PATH).into());
        }
        log::warn(&format!("domain {domid} is not confined: SELinux is disabled"));
        return Ok(qemu.exec(args)?);
    }

    let signals = Held::hold()?;
    let confinement = confine(&config, domid, mode);
    if let Err(stopped) = signals.release() {
        return Err(confinement.err().map_or(anyhow!("{stopped}"), |cause| cause.context(stopped)).into());
    }
    match confinement {
        Ok(_kept_by_execve) => Ok(qemu.exec(args)?),
        Err(cause) if mode == Mode::Permissive => {
            log::warn(&format!(
                "domain {domid} is not confined, and would be refused if SELinux were enforcing: {cause:#}"
            ));
            Ok(qemu.exec(args)?)
        }
        Err(cause) => Err(cause.into()),
    }
}

/// Tries again when a claim that it built on was changed meanwhile: other launches and `svirtctl reconcile` may run at
/// any time.
fn confine(config: &Config, domid: Domid, mode: Mode) -> Result<Confinement> {
    for _ in 1..TRIES {
        match try_to_confine(config, domid, mode) {
            Err(error) if error.is::<Outdated>() => {}
            result => return result,
        }
    }
    try_to_confine(config, domid, mode)
}

fn try_to_confine(config: &Config, domid: Domid, mode: Mode) -> Result<Confinement> {
    let contexts = config.contexts()?;
    let own = selinux::own_context()?;
    ensure!(
        own.categories().len() > 1,
        "our own context {own} has no pair of categories to give: is the svirt_interpose module installed?"
    );
    let store = Connection::open()?;
    let guest = Guest::read(&store, guest::own_domid(&store)?, domid)?;
    let published: Vec<(Domid, Set)> =
        guest::published(&store)?.into_iter().filter(|(other, _)| *other != domid).collect();
    let registry = Registry::open(&config.state_dir)?;
    let owners = Owners::new(&registry, &store, &guest.vm, &contexts.content);
    let found = find(&guest, &owners, &config.backing_dirs, &contexts, mode)?;

    let earlier = plan::earlier_pair(found.iter().map(|(_, found)| found));
    let plan = decide(found, &contexts, &published, mode)?;
    let holder = Holder { domid, vm: guest.vm.clone(), process: Process::own()? };

    let mut confinement = if let Some(pair) = earlier {
        Confinement::join(store, registry, holder, pair)?
    } else {
        let mut in_use = InUse::default();
        in_use.extend(published.into_iter().map(|(_, set)| set));
        let mut rng = StdRng::try_from_rng(&mut SysRng).context("cannot get random bytes from the kernel")?;
        let candidates = mcs::candidates(own.categories(), &in_use, &mut rng);
        Confinement::claim(store, registry, holder, candidates)?
    };
    confinement.publish()?;
    let objects = plan.len();
    confinement.label(plan, &contexts)?;
    confinement.enter(&contexts.domain)?;
    log::done(&format!(
        "launch domid={domid} vm={} name={:?} set={} objects={objects} context={}",
        guest.vm,
        guest.name,
        confinement.pair(),
        contexts.domain.with_pair(confinement.pair())
    ));
    Ok(confinement)
}

/// The objects of the guest's disks and below them, and whose they are. A read-only device is left as it is.
fn find(
    guest: &Guest,
    owners: &Owners,
    backing_dirs: &[PathBuf],
    contexts: &Contexts,
    mode: Mode,
) -> Result<Vec<(Object, Found)>> {
    let disks = guest.vbds.iter().map(|vbd| (vbd, vbd.writable, object::open_all(&vbd.paths)));
    // after all disks: a layer that is also one of them is that first of all
    let qcow2 = guest.vbds.iter().filter(|vbd| vbd.qcow2 && !backing_dirs.is_empty());
    let layers =
        qcow2.filter_map(|vbd| Some((vbd, false, backing::layers(vbd.paths.first()?, backing_dirs, contexts))));
    let mut all: Vec<(Object, Found)> = Vec::new();
    for (vbd, writable, objects) in disks.chain(layers) {
        let objects = objects.with_context(|| format!("cannot use {}", vbd.backend));
        for object in tolerate(objects, mode)?.unwrap_or_default() {
            let known = all.iter().any(|(known, _)| known.identity() == object.identity());
            if known || !writable && object.is_device() {
                continue;
            }
            let Some(label) = tolerate(object.label(), mode)? else { continue };
            let (owner, recorded) = owners.of(&object, &label, writable)?;
            let found = Found { path: object.path().into(), writable, label, owner, recorded };
            all.push((object, found));
        }
    }
    Ok(all)
}

fn decide(
    found: Vec<(Object, Found)>,
    contexts: &Contexts,
    published: &[(Domid, Set)],
    mode: Mode,
) -> Result<Vec<(Object, Relabel)>> {
    let mut plan = Vec::new();
    for (object, found) in found {
        let decision = plan::relabel(&found, contexts, published).map_err(Into::into);
        plan.extend(tolerate(decision, mode)?.flatten().map(|relabel| (object, relabel)));
    }
    Ok(plan)
}

/// While SELinux is permissive, what would be refused is told and left out.
fn tolerate<T>(result: Result<T>, mode: Mode) -> Result<Option<T>> {
    match result {
        Err(error) if mode == Mode::Permissive => {
            log::warn(&format!("{error:#}; it would be refused if SELinux were enforcing"));
            Ok(None)
        }
        result => result.map(Some),
    }
}
