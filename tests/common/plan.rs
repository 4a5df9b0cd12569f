//! What `svirtctl plan` says, and whether a launch then does that.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::host::{Host, Refusal, Started, label};

/// What was said, and what the host was like at that time.
pub(crate) struct Plan {
    /// Whether QEMU would be started.
    pub(crate) starts: bool,
    pub(crate) lines: Vec<String>,
    pub(crate) warned: String,
    domid: Option<u16>,
    devices: Vec<PathBuf>,
    labels: BTreeMap<PathBuf, String>,
    claims: Vec<String>,
}

impl Plan {
    /// Of a launch with QEMU's arguments. The devices are what else has a label, beside the host's images.
    pub(crate) fn of<Arg: AsRef<str>>(host: &Host, args: &[Arg], devices: &[PathBuf]) -> Self {
        let args: Vec<&str> = args.iter().map(AsRef::as_ref).collect();
        let all = || (host.everything(), host.path("state").exists(), labels(host, devices));
        let before = all();
        let output = host.svirtctl(&[&["plan", "--"], &args[..]].concat());
        assert_eq!(all(), before, "a plan changes nothing");
        let [said, warned] = [output.stdout, output.stderr].map(|text| String::from_utf8(text).unwrap());
        Self {
            starts: output.status.success(),
            lines: said.lines().map(String::from).collect(),
            warned,
            domid: args.iter().position(|arg| *arg == "-xen-domid").and_then(|at| args.get(at + 1)?.parse().ok()),
            devices: devices.to_vec(),
            labels: before.2,
            claims: claims(host),
        }
    }

    /// Compares it with all that can be seen of the launch: the QEMU that runs, where there is one.
    pub(crate) fn is_what_was_done(&self, host: &Host, launched: Result<Started, Refusal>) -> Option<Started> {
        let lines = &self.lines;
        let started = match launched {
            Ok(started) => started,
            Err(refusal) => {
                let said = refusal.said.lines().last().unwrap().strip_prefix("svirt-interpose: ").unwrap().to_owned();
                assert_eq!(lines, &[format!("refused, with exit status {}: {said}", refusal.status)]);
                return None;
            }
        };
        assert!(self.starts, "{lines:?}");
        let said: String =
            started.said().split_inclusive('\n').filter(|line| line.starts_with("svirt-interpose: ")).collect();
        assert_eq!(said, self.warned);
        let executed = fs::read_link(format!("/proc/{}/exe", started.pid())).unwrap();
        assert_eq!(executed, Path::new(self.value("QEMU: ").unwrap()));
        let pair = self.domid.and_then(|domid| host.key(domid)).unwrap_or_default();
        let context = self.value("context: ").map(|context| context.replace("cA,cB", &pair));
        assert_eq!(started.exec_context(host), context);
        let new = self.value("categories: ").is_some_and(|categories| categories.starts_with("cA,cB"));
        assert_eq!(claims(host).contains(&pair) && !self.claims.contains(&pair), new, "{lines:?}");
        assert_eq!(self.relabels(&pair), self.relabelled(host));
        Some(started)
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.lines.iter().find_map(|line| line.strip_prefix(name))
    }

    /// The labels that were to change, with the pair that was drawn, sorted.
    fn relabels(&self, pair: &str) -> Vec<String> {
        let relabel = |line: &String| {
            let (before, after) = line.trim_start().split_once(" -> ")?;
            let after = after.split(", ").next()?.replace("cA,cB", pair);
            let is_same = before.ends_with(&format!(": {after}"));
            (!is_same).then(|| format!("{before} -> {after}"))
        };
        let mut all: Vec<String> = self.lines.iter().filter_map(relabel).collect();
        all.sort();
        all
    }

    /// Those that did, sorted.
    fn relabelled(&self, host: &Host) -> Vec<String> {
        let now = labels(host, &self.devices);
        let changed = now.iter().filter(|(path, after)| self.labels[*path] != **after);
        let line = |(path, after): (&PathBuf, &String)| format!("{}: {} -> {after}", path.display(), self.labels[path]);
        let mut all: Vec<String> = changed.map(line).collect();
        all.sort();
        all
    }
}

fn labels(host: &Host, devices: &[PathBuf]) -> BTreeMap<PathBuf, String> {
    let images = fs::read_dir(host.path("images")).unwrap().map(|entry| entry.unwrap().path());
    images.chain(devices.iter().cloned()).map(|path| (path.clone(), label(&path))).collect()
}

fn claims(host: &Host) -> Vec<String> {
    if host.path("state/claims").exists() { host.claims() } else { Vec::new() }
}
