//! What does not agree, and how it is mended: decided from what was looked at.
//!
//! What a guest's set is its claim says, if it has one: XenStore is what others may have changed. So each fault is one
//! finding, not one for each thing that follows from it.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;

use super::look::{Claim, DeviceModel, Disk, Domain, Host, Key};
use crate::argv::Domid;
use crate::claim::Name;
use crate::config::Contexts;
use crate::context::Context;
use crate::ctl::INSTALL_POLICY;
use crate::guest;
use crate::mcs::{Pair, Set};
use crate::plan;
use crate::policy::Policy;
use crate::selinux::Mode;

/// What kind of thing does not agree. These names are part of the output, and stay: svirtctl(8) explains each.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub(super) enum Code {
    SelinuxDisabled,
    SelinuxPermissive,
    TypePermissive,
    PolicyMissing,
    PolicyVersion,
    ContextUnknown,
    DomainUnreadable,
    KeyMalformed,
    KeyWritable,
    KeyDiffers,
    KeyWithoutClaim,
    ClaimWithoutKey,
    ComparableSets,
    DeviceModelUnconfined,
    DeviceModelUnknown,
    DeviceModelGone,
    DeviceModelLabel,
    DiskLabel,
    DiskUnreadable,
    ClaimStale,
    ClaimUnreadable,
    ForeignSet,
}

/// One thing that does not agree.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Finding {
    pub(super) code: Code,
    /// The domain that it is about.
    pub(super) domid: Option<u16>,
    /// A sentence.
    pub(super) text: String,
    /// How it is mended: a command, or what is to be done.
    pub(super) mend: Option<String>,
}

/// Takes one finding's code, text and mend.
type Say<'a> = dyn FnMut(Code, String, Option<String>) + 'a;

/// A domain with what is claimed for it.
struct Guest<'a> {
    domain: &'a Domain,
    claim: Option<&'a Claim>,
    /// What keeps it apart from others.
    set: Option<Set>,
}

/// Everything that does not agree.
pub(super) fn of(host: &Host) -> Vec<Finding> {
    let mut all = Vec::new();
    of_host(host, &mut |code, text, mend| all.push(Finding { code, domid: None, text, mend }));
    if host.mode == Mode::Disabled {
        return all; // there is nothing to tell of labels
    }
    let guests = guests(host);
    for guest in &guests {
        let domid = guest.domain.domid;
        of_guest(host, &guests, guest, &mut |code, text, mend| {
            all.push(Finding { code, domid: Some(domid.number()), text: format!("domain {domid}: {text}"), mend });
        });
    }
    for claim in &host.claims {
        of_claim(host, claim, &mut |code, text, mend| all.push(Finding { code, domid: None, text, mend }));
    }
    all.extend(host.strangers.iter().filter_map(|(pid, label)| of_stranger(host, &guests, *pid, label)));
    all
}

/// Each domain with the claim that a device model of it holds or held: of several the one that is in use, or else
/// published.
fn guests(host: &Host) -> Vec<Guest<'_>> {
    let mut claims: BTreeMap<(Domid, &str), Vec<&Claim>> = BTreeMap::new();
    for claim in host.claims.iter().filter(|claim| pair_of(claim).is_some()) {
        for holder in claim.holders() {
            claims.entry((holder.domid, &holder.vm)).or_default().push(claim);
        }
    }
    let guests = host.domains.iter().map(|domain| {
        let published = if let Key::Set(set) = &domain.key { Some(set) } else { None };
        let claims = claims.get(&(domain.domid, domain.vm.as_str())).into_iter().flatten().copied();
        let claim = claims.max_by_key(|claim| (!claim.live.is_empty(), pair_of(claim).as_ref() == published));
        Guest { domain, claim, set: claim.and_then(pair_of).or_else(|| published.cloned()) }
    });
    guests.collect()
}

fn of_host(host: &Host, say: &mut Say) {
    let install = Some(INSTALL_POLICY.to_owned());
    match host.mode {
        Mode::Disabled => {
            let mend = "boot with security=selinux selinux=1".to_owned();
            return say(Code::SelinuxDisabled, "SELinux is disabled: no guest is confined".into(), Some(mend));
        }
        Mode::Permissive => {
            let mend = "setenforce 1".to_owned();
            say(Code::SelinuxPermissive, "SELinux is permissive: no guest is confined".into(), Some(mend));
        }
        Mode::Enforcing => {}
    }
    for type_ in &host.permissive_types {
        let text = format!("the type {type_} is permissive: nothing is refused it");
        say(Code::TypePermissive, text, Some(format!("semanage permissive -d {type_}")));
    }
    match host.policy {
        Policy::Missing => {
            return say(Code::PolicyMissing, "the svirt_interpose policy module is not loaded".into(), install);
        }
        Policy::OtherVersion => {
            let text =
                concat!("the svirt_interpose policy module that is loaded is not of ", env!("CARGO_PKG_VERSION"));
            say(Code::PolicyVersion, text.into(), install);
        }
        Policy::Loaded => {}
    }
    for context in &host.unknown_contexts {
        let text = format!("the loaded policy does not know the context {context}");
        say(Code::ContextUnknown, text, Some(format!("name another in {}", crate::config::PATH)));
    }
}

fn of_guest(host: &Host, all: &[Guest], guest: &Guest, say: &mut Say) {
    let Guest { domain, claim, set } = guest;
    for trouble in &domain.troubles {
        say(Code::DomainUnreadable, trouble.clone(), None);
    }
    if domain.key_is_writable {
        let mend = format!("xenstore-chmod {} n0", guest::key(domain.domid));
        say(Code::KeyWritable, "its guest may write the key of its categories".into(), Some(mend));
    }
    of_key(all, guest, say);
    if let Some(model) = &domain.device_model {
        of_device_model(host, guest, model, say);
    } else if let Some(claim) = claim {
        let text = format!("it has no device model, though {} is claimed for it", claim.name);
        say(Code::DeviceModelGone, text, Some(start_again(domain.domid)));
    }
    if let Some(set) = set {
        domain.disks.iter().for_each(|disk| of_disk(host, disk, set, say));
    }
}

fn of_key(all: &[Guest], Guest { domain, claim, .. }: &Guest, say: &mut Say) {
    let key = guest::key(domain.domid);
    let publish = |name: Name| format!("xenstore-write {key} {name} && xenstore-chmod {key} n0");
    let mend = Some(claim.map_or_else(|| start_again(domain.domid), |claim| publish(claim.name)));
    let set = match (&domain.key, claim) {
        (Key::None, None) => return,
        (Key::None, Some(claim)) => {
            return say(Code::ClaimWithoutKey, format!("{} is claimed for it, but not published", claim.name), mend);
        }
        (Key::Malformed(text), _) => {
            let text = format!("what is published for it, {text:?}, is no set of categories");
            return say(Code::KeyMalformed, text, mend);
        }
        (Key::Set(set), Some(claim)) if pair_of(claim) == Some(set.clone()) => return,
        (Key::Set(set), _) => set,
    };
    let is_another = |other: &&Guest| other.domain.domid != domain.domid && other.domain.vm != domain.vm;
    let is_near = |other: &&Guest| other.set.as_ref().is_some_and(|theirs| theirs.comparable(set));
    if let Some(Guest { domain: other, .. }) = all.iter().filter(is_another).find(is_near) {
        let text = format!("{set} is published for it, which does not keep it apart from domain {}", other.domid);
        say(Code::ComparableSets, text, mend);
    } else if let Some(claim) = claim {
        say(Code::KeyDiffers, format!("{set} is published for it, but {} is claimed", claim.name), mend);
    } else {
        say(Code::KeyWithoutClaim, format!("{set} is published for it, but no claim says so"), mend);
    }
}

fn of_device_model(host: &Host, Guest { domain, claim, set }: &Guest, model: &DeviceModel, say: &mut Say) {
    let DeviceModel { pid, label, is_unconstrained } = model;
    let again = Some(start_again(domain.domid));
    let holds = claim.is_some_and(|claim| claim.live.iter().any(|holder| holder.process.pid == *pid));
    if holds && domain.named_pid != Some(*pid) {
        let named = domain.named_pid.map_or_else(|| "none".into(), |named| format!("process {named}"));
        let mend = format!("xenstore-write /local/domain/{}/image/device-model-pid {pid}", domain.domid);
        let text = format!("process {pid} holds its claim, but XenStore names {named} as its device model");
        say(Code::DeviceModelUnknown, text, Some(mend));
    }
    let Ok(label) = label else {
        return say(Code::DeviceModelGone, format!("its device model {pid} is gone"), again);
    };
    let runs = format!("its device model {pid} runs as {label}");
    match set {
        None => say(Code::DeviceModelUnconfined, format!("{runs}: svirt-interpose did not start it"), again),
        Some(_) if *is_unconstrained => {
            say(Code::DeviceModelUnconfined, format!("{runs}, whom no category keeps from other guests' disks"), again);
        }
        Some(_) if label.type_() != host.contexts.domain.type_() => {
            let text = format!("{runs}, not as {}", host.contexts.domain.type_());
            say(Code::DeviceModelUnconfined, text, again);
        }
        Some(set) if !carries(label, set) => say(Code::DeviceModelLabel, format!("{runs}, not at {set}"), again),
        Some(_) => {}
    }
}

fn of_disk(host: &Host, Disk { path, writable, label, is_open, given, .. }: &Disk, set: &Set, say: &mut Say) {
    let Contexts { content, shared, .. } = &host.contexts;
    // by its claim, and not by what it carries
    let is_shared = given.as_ref().is_ok_and(|given| given.as_ref() == Some(shared));
    let fits = |label: &Context| match writable {
        _ if is_shared => label == shared,
        true => carries(label, set),
        false => plan::is_content(label, content),
    };
    let (label, given) = match (label, given) {
        (Ok(label), Ok(given)) => (label, given.as_ref().filter(|given| fits(given))),
        (Err(error), _) | (_, Err(error)) => return say(Code::DiskUnreadable, error.clone(), None),
    };
    let disk =
        format!("its {} {} is labelled {label}", if *writable { "disk" } else { "read-only disk" }, path.display());
    let mend = |context: &Context| Some(chcon(context, path));
    match given {
        Some(given) if label != given => say(Code::DiskLabel, format!("{disk}, not {given}"), mend(given)),
        _ if *is_open || fits(label) => {}
        _ if *writable => {
            let own = Pair::of(set).map(|pair| host.contexts.image.with_pair(pair));
            say(Code::DiskLabel, format!("{disk}, not at {set}"), own.as_ref().and_then(mend));
        }
        _ => say(Code::DiskLabel, format!("{disk}, which it may not read"), mend(content)),
    }
}

fn of_claim(host: &Host, claim: &Claim, say: &mut Say) {
    let Claim { name, journal, live, is_domains } = claim;
    match journal {
        Err(error) => say(Code::ClaimUnreadable, error.clone(), Some("svirtctl reconcile".into())),
        Ok(_) if live.is_empty() && !is_domains => {
            say(Code::ClaimStale, format!("nobody holds the claim of {name}"), Some("svirtctl reconcile".into()));
        }
        // a file that several guests read has a claim as well, but all who hold it have a pair
        Ok(_) if matches!(name, Name::Pair(_)) => {
            for holder in live {
                if !host.domains.iter().any(|domain| domain.domid == holder.domid && domain.vm == holder.vm) {
                    let text = format!("{holder} holds {name}, and XenStore does not know of that domain");
                    say(Code::DeviceModelUnknown, text, Some(format!("kill {}", holder.process.pid)));
                }
            }
        }
        Ok(_) => {}
    }
}

fn of_stranger(host: &Host, guests: &[Guest], pid: u32, label: &Context) -> Option<Finding> {
    let is_near = |set: &Set| set.comparable(label.categories());
    let owner = |guest: &&Guest| guest.set.as_ref().is_some_and(is_near);
    let claim = |claim: &&Claim| pair_of(claim).is_some_and(|set| is_near(&set));
    let runs = format!("process {pid} runs as {label}");
    let is_qemu = label.type_() == host.contexts.domain.type_();
    let (code, domid, text) = if let Some(Guest { domain, .. }) = guests.iter().find(owner) {
        let text = format!("{runs}, which is not kept apart from domain {}", domain.domid);
        (Code::ForeignSet, Some(domain.domid.number()), text)
    } else if let Some(claim) = host.claims.iter().find(claim) {
        (Code::ForeignSet, None, format!("{runs}, which is not kept apart from the claim of {}", claim.name))
    } else if is_qemu {
        (Code::DeviceModelUnknown, None, format!("{runs}, but neither a claim nor XenStore knows of it"))
    } else {
        return None;
    };
    // a container is somebody's, and may be told its categories; a QEMU that nobody knows of is not to run
    let mend = if is_qemu { format!("kill {pid}") } else { "stop it and start it again, at other categories".into() };
    Some(Finding { code, domid, text, mend: Some(mend) })
}

fn pair_of(claim: &Claim) -> Option<Set> {
    if let Name::Pair(pair) = claim.name { Some(pair.set()) } else { None }
}

fn carries(label: &Context, set: &Set) -> bool {
    label.is_single_level() && label.categories() == set
}

fn chcon(context: &Context, path: &Path) -> String {
    format!("chcon {context} '{}'", path.display())
}

fn start_again(domid: Domid) -> String {
    format!("destroy domain {domid} and start it again, with svirt-interpose as its device model")
}
