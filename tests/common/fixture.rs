//! A toolstack's launch, captured or rebuilt: a directory of tests/fixtures, whose file SOURCE says where it is from.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use svirt_interpose::xenstore::{Access, Permissions};
use xenstore_rs::Xs as _;

use super::host::{Host, compiled};

pub(crate) struct Fixture {
    /// QEMU's argv, from its first word on: one word a line.
    pub(crate) argv: Vec<String>,
    /// Its environment: one variable a line.
    pub(crate) env: Vec<(String, String)>,
    /// XenStore, as `xenstore-ls -fp` prints it: path, value, permissions.
    nodes: Vec<(String, String, Permissions)>,
}

impl Fixture {
    pub(crate) fn load(name: &str) -> Self {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name);
        let read = |file| fs::read_to_string(directory.join(file)).unwrap_or_else(|error| panic!("{name}: {error}"));
        assert!(!read("SOURCE").is_empty());
        let variable = |line: &str| line.split_once('=').map(|(name, value)| (name.into(), value.into())).unwrap();
        Self {
            argv: read("argv").lines().map(Into::into).collect(),
            env: read("env").lines().map(variable).collect(),
            nodes: read("xenstore").lines().map(node).collect(),
        }
    }

    /// Puts paths of this machine in the place of captured ones, all at once: either may be the name of another's.
    pub(crate) fn replace(&mut self, paths: &[(String, PathBuf)]) {
        let mut seen = vec![false; paths.len()];
        let texts = self.nodes.iter_mut().map(|(_, value, _)| value).chain(&mut self.argv);
        for text in texts {
            let (mut replaced, mut rest) = (String::new(), text.as_str());
            while let Some(first) = rest.chars().next() {
                if let Some(index) = paths.iter().position(|(from, _)| rest.starts_with(from)) {
                    let (from, to) = &paths[index];
                    replaced.push_str(to.to_str().unwrap());
                    rest = &rest[from.len()..];
                    seen[index] = true;
                } else {
                    replaced.push(first);
                    rest = &rest[first.len_utf8()..];
                }
            }
            *text = replaced;
        }
        for ((from, _), seen) in paths.iter().zip(seen) {
            assert!(seen, "{from} is named nowhere");
        }
    }

    /// The domains that it has beside dom0.
    fn domids(&self) -> impl Iterator<Item = u16> {
        let homes = self.nodes.iter().filter_map(|(path, ..)| path.strip_prefix("/local/domain/")?.parse().ok());
        homes.filter(|domid| *domid != 0)
    }

    /// Brings the host's XenStore to where it was.
    pub(crate) fn install(&self, host: &Host) {
        let store = host.store();
        self.domids().for_each(|domid| host.xenstored.add_domain(domid));
        for (path, value, permissions) in &self.nodes {
            store.write(path, value).unwrap();
            store.set_permissions(path, permissions).unwrap();
        }
    }

    /// Its launch, by the wrapper in the place of the program that was started.
    pub(crate) fn command(&self, host: &Host) -> Command {
        let mut command = host.command(env!("CARGO_BIN_EXE_svirt-interpose"));
        command.arg0(&self.argv[0]).args(&self.argv[1..]).envs(self.env.iter().cloned());
        if let Some((_, preload)) = self.env.iter().find(|(name, _)| name == "LD_PRELOAD") {
            command.env("LD_PRELOAD", format!("{} {preload}", compiled("selinux.so").display()));
        }
        command
    }
}

/// `/path = "value"   (n0,r7)`
fn node(line: &str) -> (String, String, Permissions) {
    let (path, rest) = line.split_once(" = \"").unwrap();
    let (value, permissions) = rest.rsplit_once("\"   (").unwrap();
    let mut entries = permissions.trim_end_matches(')').split(',').map(|entry| {
        let (access, domid) = entry.split_at(1);
        let access = match access {
            "n" => Access::None,
            "r" => Access::Read,
            "w" => Access::Write,
            "b" => Access::ReadWrite,
            _ => panic!("{line}"),
        };
        (domid.parse().unwrap(), access)
    });
    let (owner, default) = entries.next().unwrap();
    (path.into(), value.into(), Permissions { owner, default, entries: entries.collect() })
}

/// The lines of QEMU's report of that kind: `arg` or `env`.
pub(crate) fn reported(report: &str, kind: &str) -> Vec<OsString> {
    let hex = report.lines().filter_map(|line| line.strip_prefix(kind)?.strip_prefix(' '));
    hex.map(|hex| {
        let digits = |at: usize| u8::from_str_radix(&hex[at..at + 2], 16).unwrap();
        OsString::from_vec((0..hex.len()).step_by(2).map(digits).collect())
    })
    .collect()
}
