//! What is to be labelled and whose it is: decided from what was found, before anything is changed.

use std::fmt;
use std::path::PathBuf;

use crate::argv::Domid;
use crate::claim::{Holder, Name};
use crate::config::Contexts;
use crate::context::Context;
use crate::kind::Kind;
use crate::mcs::{Pair, Set};

/// The types of whole filesystems that keep no labels, and the boolean by which QEMU may use them none the less.
const UNLABELLED_TYPES: &[(&str, &str)] = &[("cifs_t", "svirt_xen_use_samba"), ("nfs_t", "svirt_xen_use_nfs")];

/// How a guest has an object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// To write, alone.
    Exclusive,
    /// To write, as others do: the administrator said so.
    Shared,
    /// To read, as others may.
    ReadOnly,
}

impl Access {
    /// Whether it is to write.
    #[must_use]
    pub fn writes(self) -> bool {
        self != Self::ReadOnly
    }
}

/// An object of one of the guest's disks, as found.
#[derive(Debug, Clone)]
pub struct Found {
    /// The path it was reached by.
    pub path: PathBuf,
    /// How the guest has it.
    pub access: Access,
    /// Whether it is no disk itself, but what one stands on: so the disk's own header says.
    pub backing: bool,
    /// Its label.
    pub label: Context,
    /// What it is by that.
    pub kind: Kind,
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
    /// A claim's of this same VM, to write: its earlier run's, or that of the domain it migrates from.
    SameVm {
        /// What is claimed.
        pair: Pair,
        /// Whether a domain or a device model of the VM still has it.
        held: bool,
    },
    /// A claim's that keeps nobody else from it: all others' domains and device models are gone.
    Gone(Name),
    /// The claim's of all who have it as this guest does: to read, or shared.
    Common(Name),
    /// Another VM's that is running.
    Live(Holder),
    /// A device that shares sectors with it is another VM's that is running.
    Overlapping(PathBuf, Holder),
}

/// What to do with an object.
#[derive(Debug, Clone, PartialEq, Eq)]
#[must_use]
pub struct Relabel {
    /// How the guest will have it.
    pub access: Access,
    /// Whether it keeps the label it has, and is the guest's by the claims alone: every guest's QEMU may use it.
    pub is_open: bool,
    /// The label it had before any guest did: what it gets back in the end.
    pub original: Context,
    /// The claim it is taken over from.
    pub from: Option<Name>,
    /// The claim of those who have it in common, to be joined.
    pub common: Option<Name>,
}

impl Relabel {
    /// The label that it gets, from a guest with this pair.
    #[must_use]
    pub fn after(&self, contexts: &Contexts, pair: Pair) -> Context {
        match self {
            Self { is_open: true, .. } => self.original.clone(),
            Self { access: Access::Exclusive, .. } => contexts.image.with_pair(pair),
            Self { access: Access::Shared, .. } => contexts.shared.clone(),
            Self { access: Access::ReadOnly, .. } => contexts.content.clone(),
        }
    }
}

/// Why an object cannot be this guest's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// A running VM has it.
    InUse(PathBuf, String),
    /// A running VM has a device that shares sectors with it.
    Overlaps(PathBuf, PathBuf, String),
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
            Self::Overlaps(path, other, holder) => {
                let [path, other] = [path, other].map(|path| path.display());
                write!(f, "cannot label {path}: it shares sectors with {other}, which is in use by {holder}")
            }
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
                if let Some((_, boolean)) = UNLABELLED_TYPES.iter().find(|(known, _)| known == type_) {
                    return write!(
                        f,
                        "cannot label {path}: the filesystem keeps no labels, all of it is {type_}: setsebool -P {boolean} on to let every guest's QEMU use what is there"
                    );
                }
                write!(
                    f,
                    "cannot label {path}: its type {type_} is none of a disk: semanage fcontext -a -t xen_image_t '{path}' and restorecon '{path}'"
                )
            }
        }
    }
}

impl std::error::Error for Refused {}

/// Decides on one object; `None` when it is left alone. `published` are the sets of the other domains.
///
/// # Errors
/// [`Refused`].
pub fn relabel(
    found: &Found,
    Contexts { image, content, shared, .. }: &Contexts,
    published: &[(Domid, Set)],
) -> Result<Option<Relabel>, Refused> {
    let Found { path, label, kind, owner, recorded, .. } = found;
    let (access, from, common) = match owner {
        Owner::Live(holder) => return Err(Refused::InUse(path.clone(), holder.to_string())),
        Owner::Overlapping(other, holder) => {
            return Err(Refused::Overlaps(path.clone(), other.clone(), holder.to_string()));
        }
        Owner::Nobody => (found.access, None, None),
        Owner::SameVm { pair, .. } => (Access::Exclusive, Some(Name::Pair(*pair)), None),
        Owner::Gone(name) => (found.access, Some(*name), None),
        Owner::Common(name) => (found.access, None, Some(*name)),
    };
    let type_ = label.type_();
    let unclaimed = from.is_none() && common.is_none();
    let is_open = *kind == Kind::Open;
    if !access.writes() && (is_open || is_content(label, content) && unclaimed) {
        return Ok(None);
    }
    // what was recorded counts only while the label is a guest's: somebody may have put it right by hand
    let carried = label.categories();
    let original = if type_ == image.type_() && !carried.is_empty() {
        if let Some((domid, _)) = published.iter().find(|(_, set)| unclaimed && set.comparable(carried)) {
            return Err(Refused::Carries(path.clone(), carried.to_string(), *domid));
        }
        recorded.as_ref().ok_or_else(|| Refused::Stray(path.clone(), carried.to_string()))?
    } else if type_ != image.type_() && [content, shared].map(Context::type_).contains(&type_) {
        // an administrator may have labelled a shared disk for good
        let by_hand = (access == Access::Shared && label == shared).then_some(label);
        recorded.as_ref().or(by_hand).ok_or_else(|| Refused::Type(path.clone(), type_.into()))?
    } else if *kind == Kind::Other {
        return Err(Refused::Type(path.clone(), type_.into()));
    } else {
        label
    };
    Ok(Some(Relabel { access, is_open, original: original.clone(), from, common }))
}

/// Whether a file with this label is one that every guest's QEMU may read.
#[must_use]
pub fn is_content(label: &Context, content: &Context) -> bool {
    label.type_() == content.type_() && label.categories().is_empty()
}

/// The pair of an earlier claim of this same VM, which the guest then joins instead of getting a new one: of several,
/// one that is still held.
#[must_use]
pub fn earlier_pair<'a>(found: impl IntoIterator<Item = &'a Found>) -> Option<Pair> {
    let earlier = found.into_iter().filter_map(|found| match found.owner {
        Owner::SameVm { pair, held } => Some((held, pair)),
        _ => None,
    });
    earlier.max_by_key(|(held, _)| *held).map(|(_, pair)| pair)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::claim::Process;

    fn context(text: &str) -> Context {
        text.parse().unwrap()
    }

    fn found(label: &str, owner: Owner) -> Found {
        let (label, recorded) = (context(label), Some(context("u:object_r:xen_image_t:s0")));
        let disks = ["fixed_disk_device_t", "virt_image_t", "xen_image_t", "svirt_xen_image_t", "virt_content_t"];
        let is_disk = disks.contains(&label.type_()) || label == contexts().shared;
        let kind = if is_disk { Kind::Disk } else { Kind::Other };
        Found { path: "/images/a".into(), access: Access::Exclusive, backing: false, label, kind, owner, recorded }
    }

    fn read(label: &str, owner: Owner) -> Found {
        let found = found(label, owner);
        let kind = if found.label.type_() == "usr_t" { Kind::Open } else { found.kind };
        Found { access: Access::ReadOnly, kind, ..found }
    }

    fn share(label: &str, owner: Owner) -> Found {
        Found { access: Access::Shared, ..found(label, owner) }
    }

    fn on_nfs(found: Found) -> Found {
        unrecorded(Found { label: context("system_u:object_r:nfs_t:s0"), kind: Kind::Open, ..found })
    }

    fn unrecorded(found: Found) -> Found {
        Found { recorded: None, ..found }
    }

    fn contexts() -> Contexts {
        Contexts {
            domain: context("system_u:system_r:svirt_xen_t:s0"),
            image: context("system_u:object_r:svirt_xen_image_t:s0"),
            content: context("system_u:object_r:virt_content_t:s0"),
            shared: context("system_u:object_r:svirt_xen_shared_image_t:s0"),
        }
    }

    fn decide(found: &Found, published: &[(&str, &str)]) -> Result<Option<Relabel>, Refused> {
        let published: Vec<_> =
            published.iter().map(|(domid, set)| (domid.parse().unwrap(), set.parse().unwrap())).collect();
        relabel(found, &contexts(), &published)
    }

    #[test]
    fn refuses_a_disk_of_a_live_domain() {
        let process = Process { pid: 41, start: 1, boot: "b".into() };
        let holder = Holder { domid: "3".parse().unwrap(), vm: "u-u".into(), process };
        for wanted in [found, read] {
            let refused = decide(&wanted("u:object_r:svirt_xen_image_t:s0:c1,c2", Owner::Live(holder.clone())), &[]);
            assert_eq!(
                refused.unwrap_err().to_string(),
                "cannot label /images/a: it is in use by domain 3 (VM u-u, device model 41)"
            );
        }
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
            for wanted in [found, read] {
                let refused = decide(&unrecorded(wanted(&format!("u:object_r:{type_}:s0"), Owner::Nobody)), &[]);
                assert!(matches!(refused, Err(Refused::Type(..))), "{type_}");
            }
        }
        for type_ in ["usr_t", "virt_content_t"] {
            let refused = decide(&unrecorded(found(&format!("u:object_r:{type_}:s0"), Owner::Nobody)), &[]);
            assert!(matches!(refused, Err(Refused::Type(..))), "{type_}, to write");
        }
    }

    #[test]
    fn takes_over_from_the_gone_and_keeps_the_original_label() {
        let (pair, content) = ("c1,c2".parse().unwrap(), Name::Content(1));
        for (label, from) in
            [("u:object_r:svirt_xen_image_t:s0:c1,c2", pair), ("system_u:object_r:virt_content_t:s0", content)]
        {
            for wanted in [found, read] {
                let wanted = wanted(label, Owner::Gone(from));
                let taken = decide(&wanted, &[]).unwrap();
                let original = context("u:object_r:xen_image_t:s0");
                let relabel =
                    Relabel { access: wanted.access, is_open: false, original, from: Some(from), common: None };
                assert_eq!(taken, Some(relabel));
            }
        }
    }

    #[test]
    fn leaves_what_every_guest_may_read() {
        for label in ["u:object_r:usr_t:s0", "u:object_r:virt_content_t:s0"] {
            assert_eq!(decide(&unrecorded(read(label, Owner::Nobody)), &[]), Ok(None), "{label}");
        }
        let odd = unrecorded(read("u:object_r:virt_content_t:s0:c1,c2", Owner::Nobody));
        assert!(matches!(decide(&odd, &[]), Err(Refused::Type(..))), "its categories keep guests out");
    }

    #[test]
    fn what_keeps_no_label_is_the_guests_by_its_claim() {
        let label = "u:object_r:xen_image_t:s0";
        let pair: Pair = "c1,c2".parse().unwrap();
        for (owner, from) in [(Owner::Nobody, None), (Owner::Gone(pair.into()), Some(pair.into()))] {
            let relabel = decide(&on_nfs(found(label, owner.clone())), &[]).unwrap().unwrap();
            assert_eq!((relabel.access, relabel.from), (Access::Exclusive, from));
            assert_eq!(relabel.after(&contexts(), pair), context("system_u:object_r:nfs_t:s0"));
            assert_eq!(decide(&on_nfs(read(label, owner)), &[]), Ok(None));
        }
        let shared = decide(&on_nfs(share(label, Owner::Nobody)), &[]).unwrap().unwrap();
        assert_eq!(shared.access, Access::Shared, "it is claimed, too");
        assert_eq!(shared.after(&contexts(), pair), context("system_u:object_r:nfs_t:s0"));
        let refused = decide(&Found { kind: Kind::Other, ..on_nfs(found(label, Owner::Nobody)) }, &[]).unwrap_err();
        assert_eq!(
            refused.to_string(),
            "cannot label /images/a: the filesystem keeps no labels, all of it is nfs_t: setsebool -P svirt_xen_use_nfs on to \
             let every guest's QEMU use what is there"
        );
    }

    #[test]
    fn joins_those_who_read_a_file() {
        let content = Name::Content(1);
        let joined = decide(&read("u:object_r:virt_content_t:s0", Owner::Common(content)), &[]).unwrap().unwrap();
        assert_eq!((joined.access, joined.from, joined.common), (Access::ReadOnly, None, Some(content)));
        assert_eq!(joined.original, context("u:object_r:xen_image_t:s0"));
    }

    #[test]
    fn shares_what_the_administrator_says() {
        let (label, name) = ("system_u:object_r:svirt_xen_shared_image_t:s0", Name::Shared(1));
        let original = context("u:object_r:xen_image_t:s0");
        for (wanted, from, common) in [
            (share("u:object_r:xen_image_t:s0", Owner::Nobody), None, None),
            (share(label, Owner::Common(name)), None, Some(name)),
            (share(label, Owner::Gone(name)), Some(name), None),
        ] {
            let relabel = Relabel { access: Access::Shared, is_open: false, original: original.clone(), from, common };
            assert_eq!(relabel.after(&contexts(), "c1,c2".parse().unwrap()), context(label));
            assert_eq!(decide(&wanted, &[]), Ok(Some(relabel)));
        }
        let by_hand = decide(&unrecorded(share(label, Owner::Nobody)), &[]).unwrap().unwrap();
        assert_eq!((by_hand.access, by_hand.original), (Access::Shared, context(label)));
        for wanted in [found, read] {
            let refused = decide(&unrecorded(wanted(label, Owner::Nobody)), &[]);
            assert!(matches!(refused, Err(Refused::Type(..))), "it is not shared");
        }
    }

    #[test]
    fn what_the_same_vm_has_to_write_stays_so() {
        let same = Owner::SameVm { pair: "c1,c2".parse().unwrap(), held: true };
        let kept = decide(&read("u:object_r:svirt_xen_image_t:s0:c1,c2", same), &[]).unwrap().unwrap();
        assert_eq!(kept.access, Access::Exclusive);
    }

    #[test]
    fn refuses_a_guests_label_that_nobody_recorded() {
        let pair: Pair = "c3,c4".parse().unwrap();
        for owner in [Owner::Nobody, Owner::Gone(pair.into()), Owner::SameVm { pair, held: false }] {
            let stray = unrecorded(found("u:object_r:svirt_xen_image_t:s0:c1,c2", owner));
            assert!(matches!(decide(&stray, &[]), Err(Refused::Stray(..))));
        }
    }

    #[test]
    fn a_label_that_was_put_right_by_hand_is_the_original() {
        let relabelled = found("u:object_r:virt_image_t:s0", Owner::Gone("c1,c2".parse().unwrap()));
        assert_eq!(decide(&relabelled, &[]).unwrap().unwrap().original, relabelled.label);
    }

    #[test]
    fn joins_the_claim_of_the_same_vm() {
        let [pair, other]: [Pair; 2] = ["c1,c2", "c1,c3"].map(|pair| pair.parse().unwrap());
        let same = |pair, held| found("u:r:svirt_xen_image_t:s0:c1,c2", Owner::SameVm { pair, held });
        let nobodys = || found("u:r:xen_image_t:s0", Owner::Nobody);
        assert_eq!(earlier_pair(&[nobodys()]), None);
        assert_eq!(earlier_pair(&[nobodys(), same(pair, false)]), Some(pair));
        for disks in [[same(pair, true), same(other, false)], [same(other, false), same(pair, true)]] {
            assert_eq!(earlier_pair(&disks), Some(pair));
        }
    }
}
