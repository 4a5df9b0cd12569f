//! `svirtctl audit`: for every guest what is published, what its QEMU and its disks really carry, and whether
//! that agrees.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use xenstore_rs::Xs;

use crate::argv::Domid;
use crate::claim::{Holder, Name, Registry};
use crate::config::Config;
use crate::context::Context;
use crate::guest::{self, Guest};
use crate::log::clean;
use crate::mcs::{Pair, Set};
use crate::object::{self, Object};
use crate::plan;
use crate::selinux::{self, Mode};
use crate::xenstore::Connection;

/// What was found of one domain.
#[derive(Debug)]
struct Found {
    domid: Domid,
    name: String,
    vm: String,
    published: Option<Set>,
    device_model: Option<(u32, Result<Context, String>)>,
    disks: Vec<Disk>,
    trouble: Option<String>,
}

/// An object of its writable disks, or a file that it only reads.
#[derive(Debug)]
struct Disk {
    path: PathBuf,
    writable: bool,
    label: Result<Context, String>,
    /// The label it was given, by the claim that owns it.
    given: Result<Option<Context>, String>,
}

/// Prints the table and the findings below it. True when there are none.
///
/// # Errors
/// When XenStore or the kernel cannot be asked.
pub(super) fn run() -> Result<bool> {
    let mode = selinux::mode()?;
    let config = Config::load()?;
    let content = config.contexts()?.content;
    // nothing is made by looking
    let registry = config.state_dir.exists().then(|| Registry::open(&config.state_dir)).transpose()?;
    let store = Connection::open()?;
    let own = guest::own_domid(&store)?;
    let published = guest::published(&store)?;
    let names = store.directory("/local/domain").context("cannot list the domains in XenStore")?;
    let domids = names.iter().filter_map(|name| name.parse::<Domid>().ok());
    let mut domids: Vec<Domid> = domids.filter(|domid| *domid != own && !domid.is_dom0()).collect();
    domids.sort_unstable();
    let found: Vec<Found> = domids
        .into_iter()
        .map(|domid| {
            let set = published.iter().find(|(known, _)| *known == domid).map(|(_, set)| set.clone());
            look(&store, registry.as_ref(), own, domid, set)
        })
        .collect();
    let mut findings = findings(mode, &content, &found);
    if let Some(registry) = &registry {
        findings.extend(unknown_to_xenstore(registry, &found)?);
    }
    print!("{}", table(&found));
    if !findings.is_empty() {
        println!();
    }
    for finding in &findings {
        println!("{}", clean(finding));
    }
    Ok(findings.is_empty())
}

fn look(store: &Connection, registry: Option<&Registry>, own: Domid, domid: Domid, published: Option<Set>) -> Found {
    let pid = ["image/device-model-pid", "qemu-pid"]
        .iter()
        .find_map(|node| store.read(&format!("/local/domain/{domid}/{node}")).ok()?.parse().ok());
    let device_model = pid.map(|pid| (pid, selinux::context_of(pid).map_err(|error| format!("{error:#}"))));
    let mut found = Found {
        domid,
        name: String::new(),
        vm: String::new(),
        published,
        device_model,
        disks: Vec::new(),
        trouble: None,
    };
    match Guest::read(store, own, domid) {
        Ok(guest) => {
            found.name = guest.name;
            found.vm = guest.vm;
            let mut writable = Vec::new();
            for vbd in guest.vbds {
                let objects = match object::open_all(&vbd.paths) {
                    Ok(objects) => objects,
                    Err(error) => {
                        found.trouble = Some(format!("{error:#}"));
                        continue;
                    }
                };
                for object in objects {
                    if vbd.writable {
                        writable.push(object.identity());
                    } else if object.is_device() || writable.contains(&object.identity()) {
                        continue;
                    }
                    found.disks.push(Disk {
                        path: object.path().into(),
                        writable: vbd.writable,
                        label: object.label().map_err(|error| format!("{error:#}")),
                        given: given(registry, &object).map_err(|error| format!("{error:#}")),
                    });
                }
            }
        }
        Err(error) => found.trouble = Some(format!("{error:#}")),
    }
    found
}

fn given(registry: Option<&Registry>, object: &Object) -> Result<Option<Context>> {
    let Some(registry) = registry else { return Ok(None) };
    let Some(owner) = registry.owner(object.identity())? else { return Ok(None) };
    let Some(claim) = registry.read(owner)? else { return Ok(None) };
    Ok(claim.label(object)?.map(|label| label.after.clone()))
}

/// Everything that does not agree, a sentence each. `content` is the context of files that are only read.
fn findings(mode: Mode, content: &Context, all: &[Found]) -> Vec<String> {
    let mut findings = Vec::new();
    match mode {
        Mode::Disabled => findings.push("SELinux is disabled: no guest is confined".into()),
        Mode::Permissive => findings.push("SELinux is permissive: no guest is confined (setenforce 1)".into()),
        Mode::Enforcing => {}
    }
    for (index, found) in all.iter().enumerate() {
        let domid = found.domid;
        let mut say = |text: String| findings.push(format!("domain {domid}: {text}"));
        if let Some(trouble) = &found.trouble {
            say(trouble.clone());
        }
        match (&found.published, &found.device_model) {
            (None, None) => continue,
            (None, Some((pid, _))) => {
                say(format!("no categories are published, but its device model runs as process {pid}"));
                continue;
            }
            (Some(set), _) if Pair::of(set).is_none() => say(format!("the published set {set} is no pair")),
            (Some(set), None) => say(format!("{set} is published, but no device model is known")),
            (Some(_), Some(_)) => {}
        }
        let set = found.published.clone().unwrap_or_default();
        match &found.device_model {
            Some((_, Err(error))) => say(error.clone()),
            Some((pid, Ok(label))) if !carries(label, &set) => {
                say(format!("its device model {pid} runs as {label}, not at {set}"));
            }
            _ => {}
        }
        for Disk { path, writable, label, given } in &found.disks {
            let fits =
                |label: &Context| if *writable { carries(label, &set) } else { plan::is_readable(label, content) };
            let (disk, path) = (if *writable { "disk" } else { "read-only disk" }, path.display());
            match (label, given) {
                (Err(error), _) | (_, Err(error)) => say(error.clone()),
                (Ok(label), Ok(Some(given))) if label != given && fits(given) => {
                    say(format!("its {disk} {path} is labelled {label}, not {given}: chcon {given} '{path}'"));
                }
                (Ok(label), _) if fits(label) => {}
                (Ok(label), _) if *writable => say(format!("its {disk} {path} is labelled {label}, not at {set}")),
                (Ok(label), _) => say(format!("its {disk} {path} is labelled {label}, which it may not read")),
            }
        }
        for other in all.iter().take(index).filter(|other| other.vm != found.vm || found.vm.is_empty()) {
            if other.published.as_ref().is_some_and(|theirs| theirs.comparable(&set)) {
                say(format!("its set {set} does not keep it apart from domain {}", other.domid));
            }
        }
    }
    findings
}

/// The device models that run by the claims, but not by XenStore, which every device model may write.
fn unknown_to_xenstore(registry: &Registry, all: &[Found]) -> Result<Vec<String>> {
    let is_known = |holder: &Holder| {
        all.iter().any(|found| {
            let pid = found.device_model.as_ref().map(|(pid, _)| *pid);
            found.domid == holder.domid && pid == Some(holder.process.pid)
        })
    };
    // a file that several guests read has a claim as well, but all who hold it have a pair
    let pairs = registry.names()?.into_iter().filter(|name| matches!(name, Name::Pair(_)));
    let finding = |name| -> Result<Option<String>> {
        let journal = registry.read(name)?.unwrap_or_default();
        let unknown = journal.live(|holder| !is_known(holder))?;
        Ok(unknown.map(|holder| format!("{holder} holds {name}, and XenStore does not know of that device model")))
    };
    Ok(pairs.filter_map(|name| finding(name).unwrap_or_else(|error| Some(format!("{error:#}")))).collect())
}

fn carries(label: &Context, set: &Set) -> bool {
    label.is_single_level() && label.categories() == set
}

fn table(all: &[Found]) -> String {
    let text = |label: &Result<Context, String>| label.as_ref().map_or_else(|_| "?".into(), ToString::to_string);
    let mut rows = vec![["DOMID", "NAME", "SET", "PID OR DISK", "LABEL"].map(String::from)];
    for found in all {
        let set = found.published.as_ref().map_or_else(|| "-".into(), ToString::to_string);
        let (pid, label) =
            found.device_model.as_ref().map_or(("-".into(), "-".into()), |(pid, label)| (pid.to_string(), text(label)));
        rows.push([found.domid.to_string(), clean(&found.name), set, pid, label]);
        for Disk { path, label, .. } in &found.disks {
            rows.push([String::new(), String::new(), String::new(), clean(&path.display().to_string()), text(label)]);
        }
    }
    let mut widths = [0; 5];
    for row in &rows {
        for (width, cell) in widths.iter_mut().zip(row) {
            *width = cell.chars().count().max(*width);
        }
    }
    let mut table = String::new();
    for row in &rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(widths) {
            _ = write!(line, "{cell:width$}  ");
        }
        _ = writeln!(table, "{}", line.trim_end());
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    const CONTENT: &str = "u:r:content_t:s0";

    fn disk(path: &str, writable: bool, label: &str, given: Option<&str>) -> Disk {
        let context = |text: &str| text.parse().map_err(|_| String::from("no context"));
        Disk { path: path.into(), writable, label: context(label), given: given.map(context).transpose() }
    }

    fn found(domid: u16, set: Option<&str>, qemu: Option<&str>, level: &str) -> Found {
        let context = |level: &str| format!("u:r:t:{level}").parse().map_err(|_| String::from("no context"));
        Found {
            domid: domid.to_string().parse().unwrap(),
            name: format!("h{domid}"),
            vm: format!("vm{domid}"),
            published: set.map(|set| set.parse().unwrap()),
            device_model: qemu.map(|level| (40 + u32::from(domid), context(level))),
            disks: vec![
                disk("/images/a", true, &format!("u:r:t:{level}"), None),
                disk("/images/iso", false, CONTENT, None),
            ],
            trouble: None,
        }
    }

    fn said(all: &[Found]) -> Vec<String> {
        findings(Mode::Enforcing, &CONTENT.parse().unwrap(), all)
    }

    fn count(all: &[Found]) -> usize {
        said(all).len()
    }

    #[test]
    fn finds_nothing_where_all_agrees() {
        assert_eq!(
            count(&[
                found(1, Some("c1,c2"), Some("s0:c1,c2"), "s0:c1,c2"),
                found(2, Some("c1,c3"), Some("s0:c1,c3"), "s0:c1,c3")
            ]),
            0
        );
        assert_eq!(count(&[found(3, None, None, "s0")]), 0);
    }

    #[test]
    fn finds_each_thing_that_does_not_agree() {
        for (what, wrong) in [
            ("a device model at another level", found(1, Some("c1,c2"), Some("s0:c1,c3"), "s0:c1,c2")),
            ("a device model with a range", found(1, Some("c1,c2"), Some("s0-s0:c1,c2"), "s0:c1,c2")),
            ("a disk at another level", found(1, Some("c1,c2"), Some("s0:c1,c2"), "s0")),
            ("a device model without a set", found(1, None, Some("s0"), "s0")),
            ("a set without a device model", found(1, Some("c1,c2"), None, "s0:c1,c2")),
            ("a single category", found(1, Some("5"), Some("s0:c5"), "s0:c5")),
        ] {
            assert_eq!(count(&[wrong]), 1, "{what}");
        }
    }

    #[test]
    fn finds_a_disk_that_lost_the_label_it_was_given() {
        let given = "u:r:g:s0:c1,c2";
        let mend = format!("not {given}: chcon {given} '/images/a'");
        for (disk, finding) in [
            (
                disk("/images/a", true, "u:r:t:s0", Some(given)),
                format!("its disk /images/a is labelled u:r:t:s0, {mend}"),
            ),
            // as restorecon leaves it without -F
            (disk("/images/a", true, "u:r:t:s0:c1,c2", Some(given)), mend.clone()),
            // another guest's by the claims
            (disk("/images/a", true, "u:r:t:s0", Some("u:r:g:s0:c3,c4")), "not at c1,c2".into()),
            (disk("/images/a", false, "u:r:t:s0", Some(CONTENT)), format!("chcon {CONTENT} '/images/a'")),
            (disk("/images/a", false, "u:r:t:s0", Some(given)), "which it may not read".into()),
        ] {
            let mut guest = found(1, Some("c1,c2"), Some("s0:c1,c2"), "s0:c1,c2");
            guest.disks = vec![disk];
            let said = said(&[guest]);
            assert!(said.len() == 1 && said[0].ends_with(&finding), "{finding}: {said:?}");
        }
    }

    #[test]
    fn finds_comparable_sets_but_not_within_one_vm() {
        let mut pair = [
            found(1, Some("c1,c2"), Some("s0:c1,c2"), "s0:c1,c2"),
            found(2, Some("c1,c2"), Some("s0:c1,c2"), "s0:c1,c2"),
        ];
        assert_eq!(count(&pair), 1);
        pair[1].vm = pair[0].vm.clone();
        assert_eq!(count(&pair), 0);
    }

    #[test]
    fn says_when_nothing_is_enforced() {
        let content = CONTENT.parse().unwrap();
        assert_eq!(findings(Mode::Permissive, &content, &[]).len(), 1);
        assert_eq!(findings(Mode::Disabled, &content, &[]).len(), 1);
    }
}
