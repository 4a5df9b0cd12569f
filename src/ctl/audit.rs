//! `svirtctl audit`: for every guest what is published, what its QEMU and its disks really carry, and whether
//! that agrees.

use std::fmt::Write as _;
use std::path::PathBuf;

use anyhow::{Context as _, Result};
use xenstore_rs::Xs;

use crate::argv::Domid;
use crate::config::Config;
use crate::context::Context;
use crate::guest::{self, Guest};
use crate::log::clean;
use crate::mcs::{Pair, Set};
use crate::object;
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
    disks: Vec<(PathBuf, Result<Context, String>)>,
    /// The files that it only reads, and whether it may by their labels.
    read: Vec<(PathBuf, Result<Context, String>, bool)>,
    trouble: Option<String>,
}

/// Prints the table and the findings below it. True when there are none.
///
/// # Errors
/// When XenStore or the kernel cannot be asked.
pub(super) fn run() -> Result<bool> {
    let mode = selinux::mode()?;
    let content = Config::load()?.contexts()?.content;
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
            look(&store, &content, own, domid, set)
        })
        .collect();
    let findings = findings(mode, &found);
    print!("{}", table(&found));
    if !findings.is_empty() {
        println!();
    }
    for finding in &findings {
        println!("{}", clean(finding));
    }
    Ok(findings.is_empty())
}

fn look(store: &Connection, content: &Context, own: Domid, domid: Domid, published: Option<Set>) -> Found {
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
        read: Vec::new(),
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
                    let path = object.path().into();
                    let label = object.label().map_err(|error| format!("{error:#}"));
                    if vbd.writable {
                        writable.push(object.identity());
                        found.disks.push((path, label));
                    } else if !object.is_device() && !writable.contains(&object.identity()) {
                        let readable = label.as_ref().is_ok_and(|label| plan::is_readable(label, content));
                        found.read.push((path, label, readable));
                    }
                }
            }
        }
        Err(error) => found.trouble = Some(format!("{error:#}")),
    }
    found
}

/// Everything that does not agree, a sentence each.
fn findings(mode: Mode, all: &[Found]) -> Vec<String> {
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
        for (path, label) in &found.disks {
            match label {
                Err(error) => say(error.clone()),
                Ok(label) if !carries(label, &set) => {
                    say(format!("its disk {} is labelled {label}, not at {set}", path.display()));
                }
                Ok(_) => {}
            }
        }
        for (path, label, readable) in &found.read {
            match label {
                Err(error) => say(error.clone()),
                Ok(label) if !readable => {
                    say(format!("its read-only disk {} is labelled {label}, which it may not read", path.display()));
                }
                Ok(_) => {}
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
        let read = found.read.iter().map(|(path, label, _)| (path, label));
        for (path, label) in found.disks.iter().map(|(path, label)| (path, label)).chain(read) {
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

    fn found(domid: u16, set: Option<&str>, qemu: Option<&str>, disk: &str) -> Found {
        let context = |level: &str| format!("u:r:t:{level}").parse().map_err(|_| String::from("no context"));
        Found {
            domid: domid.to_string().parse().unwrap(),
            name: format!("h{domid}"),
            vm: format!("vm{domid}"),
            published: set.map(|set| set.parse().unwrap()),
            device_model: qemu.map(|level| (40 + u32::from(domid), context(level))),
            disks: vec![("/images/a".into(), context(disk))],
            read: vec![("/images/iso".into(), context("s0"), true)],
            trouble: None,
        }
    }

    fn count(all: &[Found]) -> usize {
        findings(Mode::Enforcing, all).len()
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
        assert_eq!(findings(Mode::Permissive, &[]).len(), 1);
        assert_eq!(findings(Mode::Disabled, &[]).len(), 1);
    }
}
