//! Somebody who looks at a host from outside and knows nothing of the code: at processes, labels, XenStore and claims, and
//! at what the toolstacks wrote down of their domains.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use svirt_interpose::xenstore::Connection;
use xenstore_rs::Xs as _;

use super::host::{CONTENT, label};

/// What a toolstack gave a domain.
#[derive(Clone)]
pub(crate) struct Config {
    pub(crate) vm: String,
    pub(crate) writes: Vec<PathBuf>,
    pub(crate) reads: Vec<PathBuf>,
}

impl Config {
    /// Writes it down for the observer, before the domain is there.
    pub(crate) fn save(&self, directory: &Path, domid: u16) {
        let mut text = format!("vm {}\n", self.vm);
        for (mode, path) in self.writes.iter().map(|path| ('w', path)).chain(self.reads.iter().map(|path| ('r', path)))
        {
            writeln!(text, "{mode} {}", path.display()).unwrap();
        }
        let path = directory.join("domains").join(domid.to_string());
        fs::write(path.with_extension("new"), text).unwrap();
        fs::rename(path.with_extension("new"), path).unwrap();
    }

    fn load(path: &Path) -> Self {
        let text = fs::read_to_string(path).unwrap();
        let all = |mode| text.lines().filter_map(move |line| line.strip_prefix(mode));
        Self {
            vm: all("vm ").collect(),
            writes: all("w ").map(Into::into).collect(),
            reads: all("r ").map(Into::into).collect(),
        }
    }
}

/// The one who looks.
pub(crate) struct Observer {
    directory: PathBuf,
    store: Connection,
    /// The toolstacks, whose children the device models are.
    toolstacks: u32,
    domains: BTreeMap<u16, Config>,
}

impl Observer {
    pub(crate) fn new(directory: PathBuf, store: Connection, toolstacks: u32) -> Self {
        Self { directory, store, toolstacks, domains: BTreeMap::new() }
    }

    /// Looks once; how many device models ran all the while.
    pub(crate) fn look(&mut self) -> usize {
        // what is seen between two looks at the device models, and at the keys, was so while those were there that are
        // in both
        let (running, published) = (self.device_models(), self.keys());
        let images = fs::read_dir(self.directory.join("images")).unwrap().map(|entry| entry.unwrap().path());
        let labels = images.map(|path| (path.clone(), label(&path))).collect();
        let claim =
            |set: &String| fs::read_to_string(self.directory.join("state/claims").join(set)).unwrap_or_default();
        let claims = running.values().map(|set| (set.clone(), claim(set))).collect();
        let (still_running, still_published) = (self.device_models(), self.keys());
        for entry in fs::read_dir(self.directory.join("domains")).unwrap().map(Result::unwrap) {
            if let Some(domid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) {
                self.domains.entry(domid).or_insert_with(|| Config::load(&entry.path()));
            }
        }
        let keys = published.iter().filter(|(domid, set)| still_published.get(domid) == Some(set));
        let seen = Seen {
            keys: keys.map(|(domid, set)| (*domid, set.clone())).collect(),
            running: running.into_iter().filter(|(process, _)| still_running.contains_key(process)).collect(),
            labels,
            claims,
            domains: &self.domains,
        };
        seen.check();
        seen.running.len()
    }

    /// The device models that run, by `/proc`, each with the set it was entered with.
    fn device_models(&self) -> BTreeMap<Process, String> {
        let pids = fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
        let device_model = |pid: u32| {
            let status = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
            let fields: Vec<&str> = status.rsplit(')').next()?.split_whitespace().collect();
            // another test may have compiled that stand-in anew, so that this one is deleted
            let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?.into_os_string().into_string().ok()?;
            if fields[1] != self.toolstacks.to_string() || !program.trim_end_matches(" (deleted)").ends_with("/qemu") {
                return None;
            }
            let args = fs::read_to_string(format!("/proc/{pid}/cmdline")).ok()?;
            let domid = args.split('\0').nth(2)?.parse().ok()?;
            let context = fs::read_to_string(self.directory.join(format!("exec.{pid}"))).ok()?;
            let set = context.strip_prefix("system_u:system_r:svirt_xen_t:s0:")?.to_owned();
            Some((Process { pid, start: fields[19].parse().ok()?, domid }, set))
        };
        pids.filter_map(device_model).collect()
    }

    /// What is published, by domain.
    pub(crate) fn keys(&self) -> BTreeMap<u16, String> {
        let domids = self.store.directory("/local/domain").unwrap();
        let values =
            self.store.read_all(domids.iter().map(|domid| format!("/local/domain/{domid}/selinux-mcs"))).unwrap();
        let key = |(domid, value): (&str, io::Result<Vec<u8>>)| {
            Some((domid.parse().ok()?, String::from_utf8(value.ok()?).unwrap()))
        };
        domids.iter().map(AsRef::as_ref).zip(values).filter_map(key).collect()
    }
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Process {
    pid: u32,
    start: u64,
    domid: u16,
}

/// What was so at one time.
struct Seen<'a> {
    running: BTreeMap<Process, String>,
    keys: BTreeMap<u16, String>,
    labels: BTreeMap<PathBuf, String>,
    claims: BTreeMap<String, String>,
    domains: &'a BTreeMap<u16, Config>,
}

impl Seen<'_> {
    fn check(&self) {
        for (process, set) in &self.running {
            let Process { pid, start, domid } = process;
            self.check_disks(*domid, set);
            let (claim, vm) = (&self.claims[set], &self.domains[domid].vm);
            let holder = format!(" vm={vm} pid={pid} start={start} ");
            assert!(claim.contains(&holder), "domain {domid} runs at {set} without holding it: {claim:?}");
            if let Some(key) = self.keys.get(domid) {
                assert_eq!(key, set, "domain {domid} runs at another set than is published");
            }
        }
        self.check_apart(&self.running.iter().map(|(process, set)| (process.domid, set)).collect::<Vec<_>>());
        self.check_apart(&self.keys.iter().map(|(domid, set)| (*domid, set)).collect::<Vec<_>>());
    }

    /// That a guest has its disks, and no other.
    fn check_disks(&self, domid: u16, set: &str) {
        let Config { vm, writes, reads } = &self.domains[&domid];
        let own = format!("system_u:object_r:svirt_xen_image_t:s0:{set}");
        for path in writes {
            assert_eq!(self.labels[path], own, "domain {domid} writes {}", path.display());
        }
        for path in reads {
            // its VM may have it to write in another domain
            let label = &self.labels[path];
            assert!(label == CONTENT || *label == own, "domain {domid} reads {}: {label}", path.display());
        }
        for (path, _) in self.labels.iter().filter(|(_, label)| **label == own) {
            let mut vms = self.domains.values().filter(|config| config.vm == *vm);
            let is_its = vms.any(|Config { writes, reads, .. }| writes.contains(path) || reads.contains(path));
            assert!(is_its, "{} has the label of {vm}, {own}", path.display());
        }
    }

    /// That no two of them are comparable, but of one VM.
    fn check_apart(&self, sets: &[(u16, &String)]) {
        let categories = |set: &str| set.split(',').map(String::from).collect::<BTreeSet<_>>();
        let sets: Vec<_> = sets.iter().map(|(domid, set)| (&self.domains[domid].vm, categories(set))).collect();
        for (index, (vm, set)) in sets.iter().enumerate() {
            for (other, others) in &sets[..index] {
                let is_comparable = set.is_subset(others) || others.is_subset(set);
                assert!(vm == other || !is_comparable, "{vm} at {set:?}, {other} at {others:?}");
            }
        }
    }
}
