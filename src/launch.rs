//! One launch, top to bottom: read, look, decide, claim, label, execute.

use std::convert::Infallible;
use std::ffi::OsString;

use anyhow::{Context as _, Result, anyhow, ensure};
use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};

use crate::argv::{self, Domid, Target};
use crate::claim::{self, Holder, Process, Registry};
use crate::config::{self, Config};
use crate::confinement::Confinement;
use crate::disks;
use crate::exec::{self, Qemu};
use crate::guest::{self, Guest};
use crate::log;
use crate::mcs::{self, InUse};
use crate::owner::Owners;
use crate::plan;
use crate::selinux::{self, Mode};
use crate::signals::Held;
use crate::xenstore::Connection;

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
    let confinement = claim::retrying(|| confine(&config, domid, mode));
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

fn confine(config: &Config, domid: Domid, mode: Mode) -> Result<Confinement> {
    let contexts = config.contexts()?;
    let own = selinux::own_context()?;
    ensure!(
        own.categories().len() > 1,
        "our own context {own} has no pair of categories to give: is the svirt_interpose module installed?"
    );
    let store = Connection::open()?;
    let guest = Guest::read(&store, guest::own_domid(&store)?, domid)?;
    let published = guest::published_for_others(&store, domid)?;
    let registry = Registry::open(&config.state_dir)?;
    let owners = Owners::new(&registry, &store, &guest.vm, &contexts.content);
    let found = disks::find(&guest, &owners, &config.backing_dirs, &contexts, mode)?;

    let earlier = plan::earlier_pair(found.iter().map(|(_, found)| found));
    let plan = disks::decide(found, &contexts, &published, mode)?;
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
