//! What an audit looks at, as it was found: nothing is judged here, and nothing changed.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::fs;
use std::io;
use std::path::PathBuf;

use anyhow::{Context as _, Result};

use crate::argv::Domid;
use crate::claim::{Holder, Journal, Name, Registry};
use crate::config::{Config, Contexts};
use crate::context::Context;
use crate::guest::{self, Domains, Guest};
use crate::kind::Kind;
use crate::mcs::{CATEGORIES, Category, Pair, Set};
use crate::object::{self, Object};
use crate::optional;
use crate::policy::{self, Policy};
use crate::selinux::{self, Mode};
use crate::vbd::Vbd;
use crate::xenstore::{Connection, Look, Permissions, Seen};

/// What cannot be told, in words.
type Told<T> = Result<T, String>;

/// The host.
#[derive(Debug)]
pub(super) struct Host {
    pub(super) mode: Mode,
    pub(super) policy: Policy,
    pub(super) contexts: Contexts,
    /// Those that the loaded policy does not know.
    pub(super) unknown_contexts: Vec<Context>,
    /// The types of its own whose processes are refused nothing.
    pub(super) permissive_types: Vec<String>,
    pub(super) domains: Vec<Domain>,
    pub(super) claims: Vec<Claim>,
    /// The processes at a level of their own that are no device model which we know.
    pub(super) strangers: Vec<(u32, Context)>,
}

/// A domain other than this one.
#[derive(Debug)]
pub(super) struct Domain {
    pub(super) domid: Domid,
    pub(super) name: String,
    pub(super) vm: String,
    pub(super) key: Key,
    /// Whether its guest may write the key.
    pub(super) key_is_writable: bool,
    /// The device model that XenStore names.
    pub(super) named_pid: Option<u32>,
    pub(super) device_model: Option<DeviceModel>,
    pub(super) disks: Vec<Disk>,
    /// What could not be told of it.
    pub(super) troubles: Vec<String>,
}

/// What is published for a domain.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Key {
    None,
    Set(Set),
    Malformed(String),
}

/// The device model of a domain: the one that holds its claim, or else the one that XenStore names.
#[derive(Debug)]
pub(super) struct DeviceModel {
    pub(super) pid: u32,
    pub(super) label: Told<Context>,
    /// Whether the policy lets it write a disk with a pair that it lacks.
    pub(super) is_unconstrained: bool,
}

/// An object of a domain's writable disks, or a file that it only reads.
#[derive(Debug)]
pub(super) struct Disk {
    pub(super) path: PathBuf,
    pub(super) writable: bool,
    pub(super) is_device: bool,
    pub(super) label: Told<Context>,
    /// Whether the policy lets every guest use it with that label.
    pub(super) is_open: bool,
    /// The label it was given, by the claim that owns it.
    pub(super) given: Told<Option<Context>>,
}

/// A claim.
#[derive(Debug)]
pub(super) struct Claim {
    pub(super) name: Name,
    pub(super) journal: Told<Journal>,
    /// The holders whose device models run.
    pub(super) live: Vec<Holder>,
    /// Whether a domain of one of its holders exists.
    pub(super) is_domains: bool,
}

impl Claim {
    /// All who hold it or held it.
    pub(super) fn holders(&self) -> &[Holder] {
        self.journal.as_ref().map_or(&[], |journal| &journal.holders)
    }
}

/// Looks at everything.
///
/// # Errors
/// When XenStore, the claims or the kernel cannot be asked.
pub(super) fn look() -> Result<Host> {
    let (mode, config) = (selinux::mode()?, Config::load()?);
    let contexts = config.named_contexts()?;
    let registry = Registry::open(&config.state_dir)?;
    let mut claims = claims(&registry)?;
    let mut domains = domains(&registry, &claims)?;
    let existing: BTreeSet<(Domid, &str)> = domains.iter().map(|domain| (domain.domid, domain.vm.as_str())).collect();
    for claim in &mut claims {
        claim.is_domains = claim.holders().iter().any(|holder| existing.contains(&(holder.domid, &holder.vm)));
    }
    let mut host = Host {
        mode,
        policy: Policy::Missing,
        contexts,
        unknown_contexts: Vec::new(),
        permissive_types: Vec::new(),
        domains: Vec::new(),
        claims,
        strangers: Vec::new(),
    };
    if mode != Mode::Disabled {
        host.policy = Policy::loaded()?;
        for context in host.contexts.all() {
            if !host.unknown_contexts.contains(context) && !selinux::knows(context)? {
                host.unknown_contexts.push(context.clone());
            }
        }
        host.permissive_types = policy::permissive_types(&host.contexts)?;
        for model in domains.iter_mut().filter_map(|domain| domain.device_model.as_mut()) {
            if let Ok(label) = &model.label {
                model.is_unconstrained = host.unknown_contexts.is_empty() && is_unconstrained(label, &host.contexts)?;
            }
        }
        for disk in domains.iter_mut().flat_map(|domain| &mut domain.disks) {
            if let Ok(label) = &disk.label
                && host.policy != Policy::Missing
                && host.unknown_contexts.is_empty()
            {
                disk.is_open = Kind::of(label, disk.is_device, disk.writable, &host.contexts)? == Kind::Open;
            }
        }
        host.strangers = strangers(&domains, &host.claims)?;
    }
    host.domains = domains;
    Ok(host)
}

fn claims(registry: &Registry) -> Result<Vec<Claim>> {
    let mut claims = Vec::new();
    for name in registry.names()? {
        let journal = match registry.read(name) {
            Ok(Some(journal)) => Ok(journal),
            Ok(None) => continue, // it was freed meanwhile
            Err(error) => Err(format!("{error:#}")),
        };
        let mut live = journal.as_ref().map_or_else(|_| Vec::new(), |journal| journal.holders.clone());
        live.retain(|holder| holder.process.is_alive().unwrap_or(true));
        claims.push(Claim { name, journal, live, is_domains: false });
    }
    Ok(claims)
}

fn domains(registry: &Registry, claims: &[Claim]) -> Result<Vec<Domain>> {
    let store = Connection::open()?;
    let domains = Domains::read(&store)?;
    let own = domains.own;
    let mut domids = domains.others(own);
    domids.retain(|domid| !domid.is_dom0());
    domids.sort_unstable();
    let keys: Vec<String> = domids.iter().map(guest::key).collect();
    let pids = domids
        .iter()
        .flat_map(|domid| ["image/device-model-pid", "qemu-pid"].map(|node| format!("/local/domain/{domid}/{node}")));
    let pids = store.read_all(pids)?;
    let Seen { permissions, values, .. } =
        store.look(&Look { permissions: keys.clone(), values: keys, ..Look::default() })?;
    let guests = Guest::read_all(&store, &domids)?;
    let given: BTreeMap<Name, &Journal> =
        claims.iter().filter_map(|claim| Some((claim.name, claim.journal.as_ref().ok()?))).collect();

    let live = claims.iter().flat_map(|claim| &claim.live);
    let live: BTreeMap<_, _> = live.map(|holder| ((holder.domid, holder.vm.as_str()), holder)).collect();
    let keys = values.into_iter().zip(permissions).zip(pids.chunks(2));
    let all = domids.into_iter().zip(keys).zip(guests).map(|((domid, ((value, permissions), pids)), guest)| {
        let mut domain = Domain {
            domid,
            name: String::new(),
            vm: String::new(),
            key: Key::None,
            key_is_writable: permissions.is_ok_and(|permissions: Permissions| permissions.writable_by(domid.number())),
            named_pid: pids.iter().find_map(|pid| str::from_utf8(pid.as_ref().ok()?).ok()?.parse().ok()),
            device_model: None,
            disks: Vec::new(),
            troubles: Vec::new(),
        };
        match key(value) {
            Ok(key) => domain.key = key,
            Err(error) => domain.troubles.push(format!("cannot read what is published: {error}")),
        }
        match guest {
            Ok(guest) => {
                domain.name = guest.name;
                domain.vm = guest.vm;
                domain.look_at_disks(&guest.vbds, registry, &given);
            }
            Err(error) => {
                domain.vm = guest::vm(&store, domid).ok().flatten().unwrap_or_default();
                domain.troubles.push(format!("{error:#}"));
            }
        }
        let holder = live.get(&(domid, domain.vm.as_str()));
        domain.device_model = holder.map(|holder| holder.process.pid).or(domain.named_pid).map(DeviceModel::of);
        domain
    });
    Ok(all.collect())
}

fn key(value: io::Result<Vec<u8>>) -> io::Result<Key> {
    let Some(value) = optional(value)? else { return Ok(Key::None) };
    let text = String::from_utf8_lossy(&value);
    Ok(text.parse().map_or_else(|_| Key::Malformed(text.clone().into_owned()), Key::Set))
}

impl Domain {
    fn look_at_disks(&mut self, vbds: &[Vbd], registry: &Registry, claims: &BTreeMap<Name, &Journal>) {
        let mut writable = HashSet::new();
        for vbd in vbds {
            let objects = object::open_all(&vbd.paths).unwrap_or_else(|error| {
                self.troubles.push(format!("{error:#}"));
                Vec::new()
            });
            for object in objects {
                let identity = object.identity();
                if vbd.writable {
                    writable.insert(identity);
                } else if object.is_device() || writable.contains(&identity) {
                    continue;
                }
                self.disks.push(Disk {
                    path: object.path().into(),
                    writable: vbd.writable,
                    is_device: object.is_device(),
                    label: object.label().map_err(|error| format!("{error:#}")),
                    is_open: false,
                    given: given(registry, claims, &object).map_err(|error| format!("{error:#}")),
                });
            }
        }
    }
}

fn given(registry: &Registry, claims: &BTreeMap<Name, &Journal>, object: &Object) -> Result<Option<Context>> {
    let Some(claim) = registry.owner(object.identity())?.and_then(|owner| claims.get(&owner)) else { return Ok(None) };
    Ok(claim.label(object)?.map(|label| label.after.clone()))
}

impl DeviceModel {
    fn of(pid: u32) -> Self {
        let label = selinux::context_of(pid).map_err(|error| format!("{error:#}"));
        Self { pid, label, is_unconstrained: false }
    }
}

/// Asks for a disk of another guest's: with a pair that is not wholly in the label's own set, where there is one.
fn is_unconstrained(label: &Context, contexts: &Contexts) -> Result<bool> {
    let mut pairs = (0..CATEGORIES - 1).filter_map(|low| Pair::new(Category::new(low)?, Category::new(low + 1)?));
    let Some(pair) = pairs.find(|pair| !label.categories().dominates(&pair.set())) else { return Ok(true) };
    Ok(selinux::decide(label, &contexts.image.with_pair(pair), "file", "write")?.allowed)
}

/// The processes that are at one level with categories, as guests' device models and containers are, but no device
/// model of the domains or claims.
fn strangers(domains: &[Domain], claims: &[Claim]) -> Result<Vec<(u32, Context)>> {
    let models = domains.iter().filter_map(|domain| Some(domain.device_model.as_ref()?.pid));
    let holders = claims.iter().flat_map(|claim| &claim.live).map(|holder| holder.process.pid);
    let known: HashSet<u32> = models.chain(holders).collect();
    let mut strangers = Vec::new();
    for entry in fs::read_dir("/proc").context("cannot list the processes")? {
        let name = entry.context("cannot list the processes")?.file_name();
        let Some(pid) = name.to_str().and_then(|name| name.parse().ok()) else { continue };
        // one that has exited meanwhile has no context
        if !known.contains(&pid)
            && let Ok(label) = selinux::context_of(pid)
            && label.is_single_level()
            && !label.categories().is_empty()
        {
            strangers.push((pid, label));
        }
    }
    strangers.sort_by_key(|(pid, _)| *pid);
    Ok(strangers)
}
