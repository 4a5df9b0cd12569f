//! `svirtctl plan`: what a launch with these arguments would do, by the launch's own code, and nothing done.

use std::collections::HashSet;
use std::ffi::OsString;

use anyhow::Result;

use super::doctor::is_interpose;
use crate::argv::Domid;
use crate::claim::{self, Name};
use crate::config::Config;
use crate::context::Context;
use crate::disks::{self, Part};
use crate::exec;
use crate::launch::{self, Decided, Failure};
use crate::log::{self, clean};
use crate::object::Object;
use crate::plan::{Access, Relabel};
use crate::policy;
use crate::selinux::Mode;
use crate::trail::Trail;

/// What stands for a pair that is drawn at random when it is claimed.
const NEW: &str = "cA,cB";

/// Prints it. True when QEMU would be started.
pub(super) fn run(args: &[OsString]) -> bool {
    log::to_stderr_alone();
    match plan(args) {
        Ok(lines) => {
            for line in lines {
                println!("{}", clean(&line));
            }
            true
        }
        Err(Failure { status, cause }) => {
            println!("refused, with exit status {status}: {}", clean(&format!("{cause:#}")));
            false
        }
    }
}

fn plan(args: &[OsString]) -> Result<Vec<String>, Failure> {
    let config = Config::load()?;
    // a launch tells it by its own executable, which is svirtctl here
    if is_interpose(&config.qemu) {
        return Err(exec::Error::Itself(config.qemu.clone()).into());
    }
    let (qemu, guest) = launch::target(&config, args, &mut Trail::default())?;
    let mut lines = vec![format!("QEMU: {}", qemu.path().display())];
    let confined = guest.map(|(domid, mode)| decide(&config, domid, mode)).transpose()?.flatten();
    match confined {
        Some(decided) => lines.extend(described(&decided, &config)?),
        None => lines.push("executed as it is: not confined by a pair, and nothing is changed".into()),
    }
    Ok(lines)
}

fn decide(config: &Config, domid: Domid, mode: Mode) -> Result<Option<Decided>> {
    let decide = || launch::decide(config, domid, mode, &policy::interposer()?, &mut Trail::default());
    let decided = match mode {
        Mode::Disabled => Err("SELinux is disabled".into()),
        _ => launch::unless_permissive(claim::retrying(decide), mode)?,
    };
    Ok(decided.inspect_err(|cause| log::warn(&format!("domain {domid} is not confined: {cause}"))).ok())
}

fn described(Decided { guest, contexts, earlier, objects, .. }: &Decided, config: &Config) -> Result<Vec<String>> {
    // a pair that is none yet has no context
    let at_pair = |context: &Context| {
        earlier.map_or_else(|| format!("{context}:{NEW}"), |pair| context.with_pair(pair).to_string())
    };
    let mut lines = vec![
        format!("domain: {} ({:?}, VM {})", guest.domid, guest.name, guest.vm),
        earlier.map_or_else(
            || format!("categories: {NEW}, a pair that nobody has"),
            |pair| format!("categories: {pair}, by the claim of this VM, which is joined"),
        ),
        format!("context: {}", at_pair(&contexts.domain)),
    ];
    let line = |object: &Object, relabel: Option<&Relabel>| -> Result<String> {
        let (path, now) = (object.path().display(), object.label()?);
        let Some(Relabel { access, is_open, from, common, .. }) = relabel else {
            return Ok(format!("    {path}: {now}, left as it is"));
        };
        let after = match access {
            _ if *is_open => "the same, which every guest's device model may write".into(),
            Access::Exclusive => at_pair(&contexts.image),
            Access::Shared => contexts.shared.to_string(),
            Access::ReadOnly => contexts.content.to_string(),
        };
        let whose = match (from, common) {
            (Some(name), _) if earlier.map(Name::Pair) != Some(*name) => {
                format!(", taken over from the claim of {name}")
            }
            (_, Some(name)) => format!(", whose claim {name} is joined"),
            _ => String::new(),
        };
        Ok(format!("    {path}: {now} -> {after}{whose}"))
    };
    let mut told = HashSet::new();
    for Part { vbd, backing, objects: parts } in disks::parts(guest, config, contexts) {
        let what = match (backing, vbd.writable) {
            (true, _) => "what it stands on",
            (false, true) => "to write",
            (false, false) => "to read",
        };
        lines.push(format!("{} ({what}):", vbd.backend));
        // while SELinux is permissive one that cannot be used was told of
        for object in parts.unwrap_or_default() {
            if told.insert(object.identity()) {
                let planned = objects.iter().find(|(planned, _)| planned.identity() == object.identity());
                lines.push(line(&object, planned.map(|(_, relabel)| relabel))?);
            }
        }
        if vbd.paths.is_empty() {
            lines.push("    nothing on this host".into());
        }
    }
    Ok(lines)
}
