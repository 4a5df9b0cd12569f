//! An audit as people read it, and as programs do.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use anyhow::Result;
use serde::Serialize;

use super::findings::{Code, Finding};
use super::look::{Disk, Domain, Host, Key};
use crate::context::Context;
use crate::log::clean;
use crate::policy::Policy;
use crate::selinux::Mode;

/// A table, and below it a sentence for each finding.
pub(super) fn text(host: &Host, findings: &[Finding]) {
    print!("{}", table(host, findings));
    if !findings.is_empty() {
        println!();
    }
    for Finding { text, mend, .. } in findings {
        println!("{}", clean(&mend.as_ref().map_or_else(|| text.clone(), |mend| format!("{text}: {mend}"))));
    }
}

fn table(host: &Host, findings: &[Finding]) -> String {
    let label = |label: &Result<Context, String>| label.as_ref().map_or_else(|_| "?".into(), ToString::to_string);
    let mut rows = vec![["DOMID", "NAME", "SET", "PID OR DISK", "LABEL", "VERDICT"].map(String::from)];
    for domain in &host.domains {
        let model = domain.device_model.as_ref();
        rows.push([
            domain.domid.to_string(),
            clean(&domain.name),
            published(domain).map_or_else(|| "-".into(), |set| clean(&set)),
            model.map_or_else(|| "-".into(), |model| model.pid.to_string()),
            model.map_or_else(|| "-".into(), |model| label(&model.label)),
            verdict(domain, findings),
        ]);
        for disk in &domain.disks {
            let [empty, path] = [String::new(), clean(&disk.path.display().to_string())];
            rows.push([empty.clone(), empty.clone(), empty.clone(), path, label(&disk.label), empty]);
        }
    }
    let mut widths = [0; 6];
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

fn published(domain: &Domain) -> Option<String> {
    match &domain.key {
        Key::None => None,
        Key::Set(set) => Some(set.to_string()),
        Key::Malformed(text) => Some(text.clone()),
    }
}

/// The codes of a domain's findings, or what it is without.
fn verdict(domain: &Domain, findings: &[Finding]) -> String {
    let codes = codes(domain, findings);
    if codes.is_empty() {
        return if domain.device_model.is_some() { "ok" } else { "no device model" }.into();
    }
    let names: Vec<String> =
        codes.iter().filter_map(|code| serde_json::to_value(code).ok()?.as_str().map(String::from)).collect();
    names.join(",")
}

fn codes(domain: &Domain, findings: &[Finding]) -> Vec<Code> {
    let mut codes = Vec::new();
    for finding in findings.iter().filter(|finding| finding.domid == Some(domain.domid.number())) {
        if !codes.contains(&finding.code) {
            codes.push(finding.code);
        }
    }
    codes
}

/// packaging/svirtctl-audit.schema.json.
#[derive(Debug, Serialize)]
struct Report<'a> {
    version: u32,
    clean: bool,
    selinux: &'static str,
    policy: Option<&'static str>,
    domains: Vec<DomainReport>,
    findings: &'a [Finding],
}

#[derive(Debug, Serialize)]
struct DomainReport {
    domid: u16,
    name: String,
    uuid: String,
    published: Option<String>,
    device_model: Option<DeviceModelReport>,
    disks: Vec<DiskReport>,
    verdict: Vec<Code>,
}

#[derive(Debug, Serialize)]
struct DeviceModelReport {
    pid: u32,
    label: Option<String>,
}

#[derive(Debug, Serialize)]
struct DiskReport {
    path: String,
    writable: bool,
    label: Option<String>,
    given: Option<String>,
}

/// One object, of the schema.
///
/// # Errors
/// When it cannot be written.
pub(super) fn json(host: &Host, findings: &[Finding]) -> Result<()> {
    let text = |label: &Result<Context, String>| label.as_ref().ok().map(ToString::to_string);
    let disk = |Disk { path, writable, label, given, .. }: &Disk| DiskReport {
        path: path.display().to_string(),
        writable: *writable,
        label: text(label),
        given: given.as_ref().ok().and_then(Option::as_ref).map(ToString::to_string),
    };
    let domain = |domain: &Domain| {
        let model = domain.device_model.as_ref();
        DomainReport {
            domid: domain.domid.number(),
            name: domain.name.clone(),
            uuid: domain.vm.clone(),
            published: published(domain),
            device_model: model.map(|model| DeviceModelReport { pid: model.pid, label: text(&model.label) }),
            disks: domain.disks.iter().map(disk).collect(),
            verdict: codes(domain, findings),
        }
    };
    let report = Report {
        version: 1,
        clean: findings.is_empty(),
        selinux: match host.mode {
            Mode::Disabled => "disabled",
            Mode::Permissive => "permissive",
            Mode::Enforcing => "enforcing",
        },
        policy: (host.mode != Mode::Disabled).then_some(match host.policy {
            Policy::Loaded => "loaded",
            Policy::OtherVersion => "other-version",
            Policy::Missing => "missing",
        }),
        domains: host.domains.iter().map(domain).collect(),
        findings,
    };
    let mut output = io::stdout().lock();
    serde_json::to_writer_pretty(&mut output, &report)?;
    Ok(writeln!(output)?)
}
