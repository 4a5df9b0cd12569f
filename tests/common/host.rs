//! A host of one's own for launches: a real xenstored, a stand-in for SELinux's kernel and for QEMU, real files.

// Each test binary uses a part of this.
#![allow(dead_code)]

use std::ffi::{CString, OsStr};
use std::fmt::Write as _;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use selinux::SecurityContext;
use svirt_interpose::xenstore::{Access, Connection, Permissions};
use xenstore_rs::{Xs as _, XsTransaction as _, XsTransactionSpan as _};

use super::xenstored::{Daemon, Directory, Xenstored, within};

/// Nothing here takes longer, however loaded the machine is.
const PATIENCE: Duration = Duration::from_secs(300);

/// The label a disk has before any guest.
pub(crate) const UNUSED: &str = "system_u:object_r:xen_image_t:s0";

/// The label of a file that guests only read.
pub(crate) const CONTENT: &str = "system_u:object_r:virt_content_t:s0";

/// A VBD as a test asks for it: backend kind and devid, `params`, mode, and further backend nodes.
#[derive(Clone)]
pub(crate) struct Disk(pub &'static str, pub u32, pub String, pub &'static str, pub Vec<(&'static str, String)>);

/// A writable raw disk on a qdisk backend.
pub(crate) fn qdisk(devid: u32, path: &Path) -> Disk {
    Disk("qdisk", devid, format!("aio:{}", path.display()), "w", vec![])
}

/// A writable block device on the kernel's backend.
pub(crate) fn phy(devid: u32, path: &Path) -> Disk {
    Disk("vbd", devid, path.display().to_string(), "w", vec![])
}

/// A writable disk that is declared qcow2.
pub(crate) fn qcow2_disk(devid: u32, path: &Path) -> Disk {
    Disk("qdisk", devid, format!("qcow2:{}", path.display()), "w", vec![])
}

/// A raw one, read-only.
pub(crate) fn cdrom(devid: u32, path: &Path) -> Disk {
    Disk("qdisk", devid, format!("aio:{}", path.display()), "r", vec![("device-type", "cdrom".into())])
}

pub(crate) struct Host {
    pub(crate) xenstored: Xenstored,
    directory: Directory,
    launches: AtomicU32,
}

impl Host {
    pub(crate) fn new() -> Self {
        Self::with(Daemon::C)
    }

    /// An enforcing host with one dom0, no guest, and a configuration that names what the tests have.
    pub(crate) fn with(daemon: Daemon) -> Self {
        Self::below(&std::env::temp_dir(), daemon)
    }

    /// The same with its claims and images on the filesystem of a directory.
    pub(crate) fn below(parent: &Path, daemon: Daemon) -> Self {
        let host = Self { xenstored: start_xenstored(daemon), directory: Directory::below(parent), launches: 0.into() };
        host.set("mode", "enforcing");
        host.set("filesystems", "nodev\tselinuxfs\n");
        host.set("current", "system_u:system_r:svirt_interpose_t:s0-s0:c0.c1023");
        host.configure(&format!("qemu = '{}'", compiled("qemu").display()));
        fs::create_dir(host.path("images")).unwrap();
        host
    }

    pub(crate) fn store(&self) -> Connection {
        self.xenstored.connect()
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    /// What the kernel is to answer: see tests/stand-ins/selinux.c.
    pub(crate) fn set(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).unwrap();
    }

    /// The configuration's `qemu` line, or all of it but the state directory and the contexts.
    pub(crate) fn configure(&self, text: &str) {
        let all = format!(
            "{text}\nstate_dir = '{}'\ndomain_context = 'system_u:system_r:svirt_xen_t:s0'\n\
             image_context = 'system_u:object_r:svirt_xen_image_t:s0'\ncontent_context = '{CONTENT}'\n",
            self.path("state").display()
        );
        self.set("conf", &all);
    }

    /// An image file, labelled as a new one is.
    pub(crate) fn image(&self, name: &str) -> PathBuf {
        let path = self.path("images").join(name);
        File::create(&path).unwrap().set_len(1 << 20).unwrap();
        set_label(&path, UNUSED);
        path
    }

    /// An image file that is qcow2 as far as its header goes, standing on what is named so, of that format.
    pub(crate) fn qcow2(&self, name: &str, backing: &str, format: &str) -> PathBuf {
        let path = self.image(name);
        write_qcow2(&path, backing, format);
        path
    }

    /// A domain as libxl has it in XenStore when it starts the device model.
    pub(crate) fn domain(&self, domid: u16, vm: &str, disks: &[Disk]) {
        let store = self.store();
        let home = format!("/local/domain/{domid}");
        self.xenstored.add_domain(domid);
        for (node, value) in [("vm", format!("/vm/{vm}")), ("name", format!("h{domid}")), ("domid", domid.to_string())]
        {
            store.write(&format!("{home}/{node}"), &value).unwrap();
        }
        for disk in disks {
            self.attach(domid, disk);
        }
    }

    /// Adds a disk to a domain as libxl does, all at once, again where others changed the store meanwhile.
    pub(crate) fn attach(&self, domid: u16, disk: &Disk) {
        while let Err(error) = self.try_to_attach(domid, disk) {
            assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock, "{error}");
        }
    }

    fn try_to_attach(&self, domid: u16, Disk(kind, devid, params, mode, nodes): &Disk) -> std::io::Result<()> {
        let frontend = format!("/local/domain/{domid}/device/vbd/{devid}");
        let backend = format!("/local/domain/0/backend/{kind}/{domid}/{devid}");
        let record = format!("/libxl/{domid}/device/vbd/{devid}");
        let store = self.store().transaction().unwrap();
        store.write(&frontend, "").unwrap();
        let guests = Permissions { owner: domid, default: Access::None, entries: vec![(0, Access::Read)] };
        store.set_permissions(&frontend, &guests).unwrap();
        store.write(&format!("{frontend}/backend"), &backend).unwrap();
        store.write(&format!("{record}/backend"), &backend).unwrap();
        for base in [&backend, &record] {
            store.write(&format!("{base}/frontend"), &frontend).unwrap();
            store.write(&format!("{base}/params"), params).unwrap();
            store.write(&format!("{base}/mode"), mode).unwrap();
        }
        store.write(&format!("{backend}/state"), "1").unwrap();
        for (node, value) in nodes {
            store.write(&format!("{backend}/{node}"), value).unwrap();
        }
        store.commit()
    }

    /// Takes a disk from a domain as libxl does.
    pub(crate) fn detach(&self, domid: u16, Disk(kind, devid, ..): &Disk) {
        let store = self.store().transaction().unwrap();
        store.rm(&format!("/local/domain/{domid}/device/vbd/{devid}")).unwrap();
        store.rm(&format!("/local/domain/0/backend/{kind}/{domid}/{devid}")).unwrap();
        store.rm(&format!("/libxl/{domid}/device/vbd/{devid}")).unwrap();
        store.commit().unwrap();
    }

    /// Removes a domain as libxl does, without a word to its device model.
    pub(crate) fn destroy(&self, domid: u16) {
        let store = self.store();
        let backends = ["qdisk", "vbd"].map(|kind| format!("/local/domain/0/backend/{kind}/{domid}"));
        for path in backends.into_iter().chain([format!("/libxl/{domid}"), format!("/local/domain/{domid}")]) {
            let _ = store.rm(&path);
        }
    }

    /// The wrapper or `svirtctl`, on this host.
    pub(crate) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command
            .env("LD_PRELOAD", compiled("selinux.so"))
            .env("SELINUX_SHIM", self.directory.path())
            .env("XENSTORED_PATH", self.xenstored.socket())
            .env_remove("LD_LIBRARY_PATH") // cargo's, which the loader would search for every library
            .stdin(Stdio::null());
        command
    }

    /// Starts the wrapper and returns at once.
    pub(crate) fn start(&self, args: &[&str]) -> Started {
        let mut command = self.command(env!("CARGO_BIN_EXE_svirt-interpose"));
        command.args(args);
        self.run(command)
    }

    /// Starts it, and returns once it waits at a relabelling: the first, or the first of an object that is named.
    pub(crate) fn start_paused(&self, args: &[&str], objects: &str) -> Started {
        self.set("pause", objects);
        let mut started = self.start(args);
        started.until(|| self.path("paused").exists());
        started
    }

    /// Lets go on who waits.
    pub(crate) fn go_on(&self) {
        for name in ["pause", "paused"] {
            fs::remove_file(self.path(name)).unwrap();
        }
    }

    /// Starts a command that becomes the wrapper.
    pub(crate) fn run(&self, mut command: Command) -> Started {
        let number = self.launches.fetch_add(1, Ordering::Relaxed);
        let report = self.path(&format!("report.{number}"));
        let log = self.path(&format!("stderr.{number}"));
        let child =
            command.env("QEMU_REPORT", &report).stdout(Stdio::null()).stderr(File::create(&log).unwrap()).spawn();
        Started { child: child.unwrap(), report, log }
    }

    /// Launches a guest's device model as libxl does.
    pub(crate) fn launch(&self, domid: u16) -> Result<Started, Refusal> {
        self.start(&["-xen-domid", &domid.to_string(), "-name", "h"]).outcome()
    }

    /// A launch that must fail and leave everything as it was: its exit status and what it said.
    pub(crate) fn refuse(&self, args: &[&str]) -> Refusal {
        let before = self.everything();
        let refusal = self.start(args).outcome().err().expect("QEMU was started");
        assert_eq!(self.everything(), before, "{}", refusal.said);
        refusal
    }

    /// What is published for a domain.
    pub(crate) fn key(&self, domid: u16) -> Option<String> {
        self.store().read(&format!("/local/domain/{domid}/selinux-mcs")).ok().map(Into::into)
    }

    pub(crate) fn svirtctl(&self, args: &[&str]) -> Output {
        self.command(env!("CARGO_BIN_EXE_svirtctl")).args(args).output().unwrap()
    }

    /// Every label, node and claim of this host, as text to compare.
    pub(crate) fn everything(&self) -> String {
        let mut all = String::new();
        for directory in ["images", "state/claims", "state/objects"] {
            let mut entries: Vec<PathBuf> = fs::read_dir(self.path(directory))
                .map(|entries| entries.map(|entry| entry.unwrap().path()).collect())
                .unwrap_or_default();
            entries.sort();
            for path in entries {
                let status = fs::symlink_metadata(&path).unwrap();
                let target = fs::read_link(&path).unwrap_or_default();
                // a claim that is written anew is still that claim
                let inode = if directory == "state/claims" { 0 } else { status.ino() };
                writeln!(all, "{} {inode} {} {:?}", path.display(), target.display(), label(&path)).unwrap();
            }
        }
        if let Ok(store) = Connection::connect(&self.xenstored.socket(), PATIENCE) {
            tree(&store, "/", &mut all);
        }
        all
    }

    /// Boots the host anew: another boot id, and nothing in XenStore. Whoever runs is to be gone by then.
    pub(crate) fn reboot(&mut self) {
        self.set("boot_id", "00000000-the-boot-after\n");
        self.xenstored = start_xenstored(Daemon::C);
    }

    /// Makes a claim as long as one that was joined daily for months.
    pub(crate) fn held_before(&self, name: &str) {
        // Appended, as joins are: a power cut must not find the claim without what it said before.
        let claim = self.path("state/claims").join(name);
        let lines = fs::read_to_string(&claim).unwrap().lines().count();
        let line = "holder domid=9 vm=long-gone pid=1 start=1 boot=00000000-the-boot-before\n";
        let more = line.repeat(200_usize.saturating_sub(lines));
        File::options().append(true).open(claim).unwrap().write_all(more.as_bytes()).unwrap();
    }

    /// Makes a claim one of before a reboot of the host: of another boot, and with device numbers that nothing has now.
    pub(crate) fn rebooted(&self, name: &str) {
        self.renumbered(name, "file-", "file-9");
    }

    /// The same, with these device numbers.
    pub(crate) fn renumbered(&self, name: &str, from: &str, to: &str) {
        let claim = self.path("state/claims").join(name);
        let boot = fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap();
        let earlier = |text: &str| text.replace(boot.trim_end(), "00000000-the-boot-before").replace(from, to);
        fs::write(&claim, earlier(&fs::read_to_string(&claim).unwrap())).unwrap();
        for entry in fs::read_dir(self.path("state/objects")).unwrap().map(Result::unwrap) {
            if fs::read_link(entry.path()).unwrap().ends_with(name) {
                let old = earlier(entry.file_name().to_str().unwrap());
                fs::rename(entry.path(), entry.path().with_file_name(old)).unwrap();
            }
        }
    }

    /// The names of the claims, sorted: pairs come before content.
    pub(crate) fn claims(&self) -> Vec<String> {
        let entries = fs::read_dir(self.path("state/claims")).unwrap();
        let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

/// A store with one dom0 in it and no guest.
fn start_xenstored(daemon: Daemon) -> Xenstored {
    let xenstored = Xenstored::start(daemon);
    let store = xenstored.connect();
    store.write("/local/domain/0/domid", "0").unwrap();
    for parent in ["/local/domain/0/backend/qdisk", "/local/domain/0/backend/vbd", "/libxl"] {
        store.write(parent, "").unwrap();
    }
    xenstored
}

/// Begins a file as `qemu-img create -f qcow2 -o compat=0.10` does, with or without `-F`.
pub(crate) fn write_qcow2(path: &Path, backing: &str, format: &str) {
    let mut header = [b"QFI\xfb\0\0\0\x02", &[0; 64][..]].concat();
    if !format.is_empty() {
        header.extend(0xe279_2aca_u32.to_be_bytes());
        header.extend(u32::try_from(format.len()).unwrap().to_be_bytes());
        header.extend(format.bytes());
        header.resize(header.len().next_multiple_of(8) + 8, 0);
    }
    let name_at = u64::try_from(header.len()).unwrap();
    header[8..16].copy_from_slice(&name_at.to_be_bytes());
    header[16..20].copy_from_slice(&u32::try_from(backing.len()).unwrap().to_be_bytes());
    header[23] = 16; // the cluster's size, as a power of two
    header.extend(backing.bytes());
    File::options().write(true).open(path).unwrap().write_all(&header).unwrap();
}

fn tree(store: &Connection, path: &str, all: &mut String) {
    let value = store.read_bytes(path).unwrap_or_default();
    writeln!(all, "{path} = {:?} {:?}", value.escape_ascii().to_string(), store.permissions(path).ok()).unwrap();
    let Ok(names) = store.directory(path) else { return };
    for name in names {
        tree(store, &format!("{}/{name}", path.trim_end_matches('/')), all);
    }
}

/// The level that a pair makes.
pub(crate) fn level(label: &str) -> String {
    label.splitn(4, ':').last().unwrap().to_owned()
}

/// An object's label.
pub(crate) fn label(path: &Path) -> String {
    let label = SecurityContext::of_path(path, false, true).ok().flatten();
    label.map(|label| label.to_c_string().unwrap().unwrap().to_str().unwrap().to_owned()).unwrap_or_default()
}

pub(crate) fn set_label(path: &Path, label: &str) {
    let label = CString::new(label).unwrap();
    SecurityContext::from_c_str(&label, true).set_for_path(path, false, true).unwrap();
}

/// A wrapper that was started, and QEMU once it is that.
pub(crate) struct Started {
    pub(crate) child: Child,
    report: PathBuf,
    log: PathBuf,
}

/// How a launch failed.
#[derive(Debug)]
pub(crate) struct Refusal {
    pub(crate) status: i32,
    pub(crate) said: String,
}

impl Started {
    /// Waits until QEMU runs or the wrapper is done.
    pub(crate) fn outcome(mut self) -> Result<Self, Refusal> {
        let status = within(PATIENCE, || match self.child.try_wait().unwrap() {
            Some(status) => Some(Some(status)),
            None => self.report.exists().then_some(None),
        });
        match status {
            None => Ok(self),
            // -1: it was killed
            Some(status) => Err(Refusal { status: status.code().unwrap_or(-1), said: self.said() }),
        }
    }

    /// Waits until something is so, which the wrapper is to live to see.
    pub(crate) fn until(&mut self, is_so: impl Fn() -> bool) {
        within(PATIENCE, || {
            let status = self.child.try_wait().unwrap();
            assert!(status.is_none(), "{status:?}: {}", self.said());
            is_so().then_some(())
        });
    }

    pub(crate) fn said(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// What QEMU was started with.
    pub(crate) fn report(&self) -> String {
        fs::read_to_string(&self.report).unwrap()
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The exec context that QEMU was entered with, when one was set.
    pub(crate) fn exec_context(&self, host: &Host) -> Option<String> {
        fs::read_to_string(host.path(&format!("exec.{}", self.pid()))).ok()
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(i32::try_from(self.pid()).unwrap()), signal).unwrap();
    }
}

impl Drop for Started {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        record(&fs::read_to_string(&self.log).unwrap_or_default());
    }
}

/// Keeps what a launch said for tests/messages, which compares it with the manual page.
fn record(said: &str) {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("said");
    let name = format!("{}.{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
    if !said.is_empty() {
        fs::create_dir_all(&directory).unwrap();
        fs::write(directory.join(name), said).unwrap();
    }
}

/// One of the C programs in tests/stand-ins, compiled once: a shared library by its name's ending.
pub(crate) fn compiled(name: &str) -> PathBuf {
    static LOCK: OnceLock<PathBuf> = OnceLock::new();
    let directory = LOCK.get_or_init(|| {
        let directory = Path::new(env!("CARGO_TARGET_TMPDIR")).join("launch");
        fs::create_dir_all(&directory).unwrap();
        for (program, options) in [("qemu", &[][..]), ("toolstack", &[]), ("selinux.so", &["-shared", "-fPIC"])] {
            let source =
                format!("{}/tests/stand-ins/{}.c", env!("CARGO_MANIFEST_DIR"), program.trim_end_matches(".so"));
            // another test binary may compile at the same time
            let scratch = directory.join(format!("{program}.{}", std::process::id()));
            let status = Command::new("cc")
                .args(["-Wall", "-Werror"])
                .args(options)
                .arg("-o")
                .arg(&scratch)
                .arg(&source)
                .status();
            assert!(status.unwrap().success(), "cannot compile {source}");
            fs::rename(&scratch, directory.join(program)).unwrap();
        }
        directory
    });
    directory.join(name)
}
