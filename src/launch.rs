//! One launch, top to bottom: read, look, decide, claim, label, execute.

use std::convert::Infallible;
use std::ffi::OsString;

use anyhow::{Context as _, Result, anyhow, ensure};
use rand::SeedableRng;
use rand::rngs::{StdRng, SysRng};

use crate::argv::{self, Domid, Target};
use crate::claim::{self, Holder, Process, Registry};
use crate::config::{self, Config, Contexts};
use crate::confinement::Confinement;
use crate::context::Context;
use crate::disks;
use crate::exec::{self, Qemu};
use crate::guest::Guest;
use crate::mcs::{self, InUse, Pair, Set};
use crate::object::{Loops, Object};
use crate::owner::Owners;
use crate::plan::{self, Relabel};
use crate::selinux::{self, Mode};
use crate::signals::Held;
use crate::trail::{Given, Trail};
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
/// It returns only with a [`Failure`], and then has left labels, XenStore and claims as they were, and told why.
pub fn launch(args: &[OsString]) -> Result<Infallible, Failure> {
    let mut trail = Trail::default();
    start(args, &mut trail).inspect_err(|failure| trail.refused(failure.status, &failure.cause))
}

fn start(args: &[OsString], trail: &mut Trail) -> Result<Infallible, Failure> {
    let config = Config::load()?;
    let (qemu, guest) = target(&config, args, trail)?;
    qemu.check()?;
    let Some((domid, mode)) = guest else { return Ok(qemu.exec(args)?) };
    if mode == Mode::Disabled {
        trail.unconfined(domid, "SELinux is disabled");
        return Ok(qemu.exec(args)?);
    }

    let signals = Held::hold()?;
    let confinement =
        claim::retrying(|| confine(decide(&config, domid, mode, &selinux::own_context()?, trail)?, trail));
    if let Err(stopped) = signals.release() {
        return Err(confinement.err().map_or(anyhow!("{stopped}"), |cause| cause.context(stopped)).into());
    }
    let kept_by_execve = unless_permissive(confinement, mode)?;
    match &kept_by_execve {
        Ok(_) => trail.confined(),
        Err(cause) => trail.unconfined(domid, cause),
    }
    Ok(qemu.exec(args)?)
}

/// The QEMU to execute, and the domain to confine it for, if any.
///
/// # Errors
/// As [`launch`].
pub(crate) fn target<'a>(
    config: &'a Config,
    args: &[OsString],
    trail: &mut Trail,
) -> Result<(Qemu<'a>, Option<(Domid, Mode)>), Failure> {
    let qemu = Qemu::find(&config.qemu)?;
    let Target::Guest(domid) = argv::target(args).context("cannot tell the domain from QEMU's arguments")? else {
        return Ok((qemu, None));
    };
    trail.domid = Some(domid);
    let mode = selinux::mode()?;
    if mode == Mode::Disabled && config.require {
        return Err(anyhow!("SELinux is disabled, and {} says require = true", config::PATH).into());
    }
    Ok((qemu, Some((domid, mode))))
}

/// While SELinux is permissive QEMU starts, whatever cannot be done for it: then why it is not confined.
pub(crate) fn unless_permissive<T>(result: Result<T>, mode: Mode) -> Result<Result<T, String>> {
    match result {
        Err(cause) if mode == Mode::Permissive => {
            Ok(Err(format!("it would be refused if SELinux were enforcing: {cause:#}")))
        }
        result => result.map(Ok),
    }
}

/// What is to be done for a guest: all is decided, and nothing done.
#[derive(Debug)]
pub(crate) struct Decided {
    pub(crate) guest: Guest,
    pub(crate) contexts: Contexts,
    /// The pair of an earlier claim of the same VM, to be joined.
    pub(crate) earlier: Option<Pair>,
    /// What is to be labelled.
    pub(crate) objects: Vec<(Object, Relabel)>,
    /// The categories that a pair may be of, and the sets that others have.
    pool: Set,
    in_use: Vec<(Domid, Set)>,
    loops: Loops,
    store: Connection,
    registry: Registry,
}

/// Looks, and decides. `own` is the context that the launch runs in.
///
/// # Errors
/// When something cannot be told, or is to be refused.
pub(crate) fn decide(config: &Config, domid: Domid, mode: Mode, own: &Context, trail: &mut Trail) -> Result<Decided> {
    let store = Connection::open()?;
    let asked = Guest::ask(&store, domid)?;
    let contexts = config.contexts()?;
    ensure!(
        own.categories().len() > 1,
        "our own context {own} has no pair of categories to give: is the svirt_interpose module installed?"
    );
    let registry = Registry::open(&config.state_dir)?;
    let loops = Loops::look()?;
    let (guest, published) = asked.beside_others()?;
    let guest = trail.guest.insert(guest).clone();
    let owners = Owners::new(&registry, &store, &guest.vm, &contexts, &loops);
    let found = disks::find(&guest, &owners, config, &contexts, mode)?;

    let earlier = plan::earlier_pair(found.iter().map(|(_, found)| found));
    let objects = disks::decide(found, &contexts, &published, mode)?;
    Ok(Decided {
        guest,
        contexts,
        earlier,
        objects,
        pool: own.categories().clone(),
        in_use: published,
        loops,
        store,
        registry,
    })
}

/// Does it.
fn confine(
    Decided { guest, contexts, earlier, objects, pool, in_use, loops, store, registry }: Decided,
    trail: &mut Trail,
) -> Result<Confinement> {
    let holder = Holder { domid: guest.domid, vm: guest.vm.clone(), process: Process::own()? };
    let mut confinement = if let Some(pair) = earlier {
        Confinement::join(store, registry, holder, pair)?
    } else {
        let mut sets = InUse::default();
        sets.extend(in_use.into_iter().map(|(_, set)| set));
        let mut rng = StdRng::try_from_rng(&mut SysRng).context("cannot get random bytes from the kernel")?;
        let candidates = mcs::candidates(&pool, &sets, &mut rng);
        Confinement::claim(store, registry, holder, candidates)?
    };
    confinement.publish()?;
    let count = objects.len();
    confinement.label(objects, &contexts, &loops)?;
    confinement.enter(&contexts.domain)?;
    trail.given = Some(Given { pair: confinement.pair(), objects: count, contexts });
    Ok(confinement)
}
