//! What is to be labelled and whose it is: decided from what was found, before anything is changed.

use std::fmt;
use std::path::PathBuf;

use crate::argv::Domid;
use crate::claim::Holder;
use crate::context::Context;
use crate::mcs::{Pair, Set};

/// The types a disk may have before a guest's label. A path that leads elsewhere, to `/etc/shadow` or to
/// dom0's own system, is a mistake or an attack; the policy allows relabelling from these and no others.
pub const DISK_TYPES: &[&str] = &["fixed_disk_device_t", "virt_image_t", "xen_image_t"];

/// An object of one of the guest's writable disks, as found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The path it was reached by.
    pub path: PathBuf,
    /// Its label.
    pub label: Context,
    /// Whose it is.
    pub owner: Owner,
    /// The label it had before any guest, as its owner recorded it.
    pub recorded: Option<Context>,
}

/// Whose an object is, by the claims on this host.
#[derive(Debug, Clone)]
pub enum Owner {
    /// No claim's.
    Nobody,
    /// A claim's of this same VM: its earlier run's, or that of the domain it migrates from.
    SameVm(Pair),
    /// A claim's whose domains and device models are all gone.
    Gone(Pair),
    /// Another VM's that is running.
    Live(Holder),
}

/// What to do with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Relabel {
    /// The label it had before any guest did: what it gets back in the end.
    pub original: Context,
    /// The claim it is taken over from.
    pub from: Option<Pair>,
}

/// Why an object cannot be this guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// A running VM has it.
    InUse(PathBuf, String),
    /// It carries categories that are published for a running domain, though no claim says so.
    Carries(PathBuf, String, Domid),
    /// It carries a guest's categories, and nobody knows which label it had before: a copy made with its label, or
    /// a disk of a state directory that was lost.
    Stray(PathBuf, String),
    /// Its type is none that a disk has.
    Type(PathBuf, String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::InUse(path, holder) => write!(f, "cannot label {}: it is in use by {holder}", path.display()),
            Self::Carries(path, set, domid) => {
                write!(f, "cannot label {}: it carries {set}, which is published for domain {domid}", path.display())
            }
            Self::Stray(path, set) => {
                let path = path.display();
                write!(
                    f,
                    "cannot label {path}: it carries {set}, and no claim says of whom: restorecon -F '{path}' if it is nobody's"
                )
            }
            Self::Type(path, type_) => {
                let path = path.display();
                write!(
                    f,
                    "cannot label {path}: its type {type_} is none of a disk: semanage fcontext -a -t xen_image_t '{path}' and restorecon '{path}'"
                )
            }
        }
    }
}

impl std::error::Error for Refused {}

/// Decides on one object. `image` is the image context, `published` the sets of the other domains.
///
/// # Errors
/// [`Refused`].
pub fn relabel(found: &Found, image: &Context, published: &[(Domid, Set)]) -> Result<Relabel, Refused> {
    let type_ = found.label.type_();
    if type_ != image.type_() && !DISK_TYPES.contains(&type_) {
        return Err(Refused::Type(found.path.clone(), type_.into()));
    }
    // what was recorded counts only while the label is a guest's: somebody may have put it right by hand
    let carried = if type_ == image.type_() { found.label.categories() } else { &Set::default() };
    let original = if carried.is_empty() { Some(&found.label) } else { found.recorded.as_ref() };
    let original = || original.cloned().ok_or_else(|| Refused::Stray(found.path.clone(), carried.to_string()));
    match &found.owner {
        Owner::Live(holder) => Err(Refused::InUse(found.path.clone(), holder.to_string())),
        Owner::SameVm(pair) | Owner::Gone(pair) => Ok(Relabel { original: original()?, from: Some(*pair) }),
        Owner::Nobody => match published.iter().find(|(_, set)| !carried.is_empty() && set.comparable(carried)) {
            Some((domid, _)) => Err(Refused::Carries(found.path.clone(), carried.to_string(), *domid)),
            None => Ok(Relabel { original: original()?, from: None }),
        },
    }
}

/// The pair of an earlier claim of this same VM, which the guest then joins instead of getting a new one.
#[must_use]
pub fn earlier_pair<'a>(found: impl IntoIterator<Item = &'a Found>) -> Option<Pair> {
    found.into_iter().find_map(|found| match found.owner {
        Owner::SameVm(pair) => Some(pair),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::Process;

    const IMAGE: &str = "system_u:object_r:svirt_xen_image_t:s0";

    fn context(text: &str) -> Context {
        text.parse().unwrap()
    }

    fn found(label: &str, owner: Owner) -> Found {
        let recorded = Some(context("u:object_r:xen_image_t:s0"));
        Found { path: "/images/a".into(), label: context(label), owner, recorded }
    }

    fn decide(found: &Found, published: &[(&str, &str)]) -> Result<Relabel, Refused> {
        let published: Vec<_> =
            published.iter().map(|(domid, set)| (domid.parse().unwrap(), set.parse().unwrap())).collect();
        relabel(found, &context(IMAGE), &published)
    }

    #[test]
    fn refuses_a_disk_of_a_live_domain() {
        let process = Process { pid: 41, start: 1, boot: "b".into() };
        let holder = Holder { domid: "3".parse().unwrap(), vm: "u-u".into(), process };
        let refused = decide(&found("u:object_r:svirt_xen_image_t:s0:c1,c2", Owner::Live(holder)), &[]).unwrap_err();
        assert_eq!(refused.to_string(), "cannot label /images/a: it is in use by domain 3 (VM u-u, device model 41)");
    }

    #[test]
    fn refuses_categories_published_for_another_domain() {
        let carrying = found("u:object_r:svirt_xen_image_t:s0:c1,c2", Owner::Nobody);
        assert!(matches!(decide(&carrying, &[("3", "c1,c2")]), Err(Refused::Carries(..))));
        assert!(matches!(decide(&carrying, &[("3", "c2")]), Err(Refused::Carries(..))));
        assert!(decide(&carrying, &[("3", "c1,c3")]).is_ok());
        assert!(decide(&found("u:object_r:xen_image_t:s0", Owner::Nobody), &[("3", "c1,c2")]).is_ok());
    }

    #[test]
    fn refuses_a_type_that_is_no_disks() {
        for type_ in ["shadow_t", "etc_t", "device_t", "user_home_t", "svirt_image_t"] {
            let refused = decide(&found(&format!("u:object_r:{type_}:s0"), Owner::Nobody), &[]);
            assert!(matches!(refused, Err(Refused::Type(..))), "{type_}");
        }
    }

    #[test]
    fn takes_over_from_the_gone_and_keeps_the_original_label() {
        let pair = "c1,c2".parse().unwrap();
        let taken = decide(&found("u:object_r:svirt_xen_image_t:s0:c1,c2", Owner::Gone(pair)), &[]).unwrap();
        assert_eq!(taken, Relabel { original: context("u:object_r:xen_image_t:s0"), from: Some(pair) });
    }

    #[test]
    fn refuses_a_guests_label_that_nobody_recorded() {
        for owner in [Owner::Nobody, Owner::Gone("c3,c4".parse().unwrap()), Owner::SameVm("c3,c4".parse().unwrap())] {
            let stray = Found { recorded: None, ..found("u:object_r:svirt_xen_image_t:s0:c1,c2", owner) };
            assert!(matches!(decide(&stray, &[]), Err(Refused::Stray(..))));
        }
    }

    #[test]
    fn a_label_that_was_put_right_by_hand_is_the_original() {
        let relabelled = found("u:object_r:virt_image_t:s0", Owner::Gone("c1,c2".parse().unwrap()));
        assert_eq!(decide(&relabelled, &[]).unwrap().original, relabelled.label);
    }

    #[test]
    fn joins_the_claim_of_the_same_vm() {
        let pair: Pair = "c1,c2".parse().unwrap();
        let disks =
            [found("u:r:xen_image_t:s0", Owner::Nobody), found("u:r:svirt_xen_image_t:s0:c1,c2", Owner::SameVm(pair))];
        assert_eq!(earlier_pair(&disks), Some(pair));
        assert_eq!(earlier_pair(&disks[..1]), None);
    }
}
