//! A real xenstored for one test, in a directory of its own.

// Each test binary uses a part of this.
#![allow(dead_code)]

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read as _, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::sleep;
use std::time::{Duration, Instant};

use svirt_interpose::xenstore::{Access, Connection, PATIENCE, Permissions};
use xenstore_rs::Xs as _;

/// The two implementations that hosts run.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Daemon {
    C,
    OCaml,
}

/// A directory that lives as long as this, short enough for a socket's path.
pub(crate) struct Directory(PathBuf);

impl Directory {
    pub(crate) fn new() -> Self {
        Self::below(&std::env::temp_dir())
    }

    pub(crate) fn below(parent: &Path) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let name = format!("xs.{}.{}", std::process::id(), NUMBER.fetch_add(1, Ordering::Relaxed));
        let path = parent.join(name);
        DirBuilder::new().mode(0o700).create(&path).unwrap();
        Self(path)
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Directory {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A running daemon, killed when this goes.
pub(crate) struct Xenstored {
    process: Child,
    directory: Directory,
}

impl Xenstored {
    /// Returns once the daemon answers.
    pub(crate) fn start(daemon: Daemon) -> Self {
        let directory = Directory::new();
        let root = packages();
        let program = |name| root.join("usr/lib/xen-4.17/bin").join(name);
        let mut command = Command::new("nice");
        command.args(["-n", "-9"]); // hundreds may ask it at once: it comes before each of them
        match daemon {
            Daemon::C => command.arg(program("xenstored")).arg("-N"),
            Daemon::OCaml => command
                .arg(program("oxenstored"))
                .args(["--no-fork", "--config-file"])
                .arg(oxenstored_conf(directory.path())),
        };
        let libraries = format!("usr/lib/{}-linux-gnu", std::env::consts::ARCH);
        let process = command
            .env("XENSTORED_RUNDIR", directory.path())
            .env("LD_LIBRARY_PATH", root.join(libraries))
            .env("LD_PRELOAD", shim())
            .stdout(File::create(directory.path().join("stdout")).unwrap())
            .spawn()
            .unwrap();
        let xenstored = Self { process, directory };
        within(PATIENCE, || Connection::connect(&xenstored.socket(), PATIENCE).and_then(|c| c.read("/")).ok());
        xenstored
    }

    /// What `XENSTORED_PATH` is to name.
    pub(crate) fn socket(&self) -> PathBuf {
        self.directory.path().join("socket")
    }

    pub(crate) fn pid(&self) -> u32 {
        self.process.id()
    }

    /// A connection of dom0's that waits as long as it takes.
    pub(crate) fn connect(&self) -> Connection {
        Connection::connect(&self.socket(), Duration::from_secs(600)).unwrap()
    }

    /// `/local/domain/<domid>` as libxl makes it: dom0's, and readable by the guest.
    pub(crate) fn add_domain(&self, domid: u16) {
        let path = format!("/local/domain/{domid}");
        let connection = self.connect();
        connection.write(&path, "").unwrap();
        let permissions = Permissions { owner: 0, default: Access::None, entries: vec![(domid, Access::Read)] };
        connection.set_permissions(&path, &permissions).unwrap();
    }

    /// The store as the guest `domid` reaches it.
    pub(crate) fn guest(&self, domid: u16) -> Guest {
        const INTRODUCE: u32 = 8;
        let port = u32::from(domid) + 100;
        let mut dom0 = UnixStream::connect(self.socket()).unwrap();
        dom0.set_read_timeout(Some(PATIENCE)).unwrap();
        dom0.write_all(&message(INTRODUCE, format!("{domid}\x001\0{port}\0").as_bytes())).unwrap();
        let mut reply = [0; 19];
        dom0.read_exact(&mut reply).unwrap();
        assert_eq!(&reply[16..], b"OK\0");
        let path = |name: &str| self.directory.path().join(name);
        let open = |path| OpenOptions::new().read(true).write(true).open(path).unwrap();
        Guest { ring: open(path(&format!("ring.{domid}"))), evtchn: open(path("evtchn")), port }
    }
}

impl Drop for Xenstored {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// A guest's own, unprivileged connection: `xenstore_domain_interface` of `xs_wire.h`, as its kernel would use it.
pub(crate) struct Guest {
    ring: File,
    evtchn: File,
    port: u32,
}

impl Guest {
    const SIZE: u32 = 1024;
    const REQUESTS: u64 = 0;
    const RESPONSES: u64 = 1024;
    const REQ_PROD: u64 = 2052;
    const RSP_CONS: u64 = 2056;
    const RSP_PROD: u64 = 2060;

    /// The name of the errno where xenstored refuses.
    pub(crate) fn read(&mut self, path: &str) -> Result<String, String> {
        self.ask(2, &format!("{path}\0"))
    }

    pub(crate) fn write(&mut self, path: &str, value: &str) -> Result<String, String> {
        self.ask(11, &format!("{path}\0{value}"))
    }

    pub(crate) fn rm(&mut self, path: &str) -> Result<String, String> {
        self.ask(13, &format!("{path}\0"))
    }

    /// `permissions` in the protocol's form, `n0\0r5\0`.
    pub(crate) fn set_permissions(&mut self, path: &str, permissions: &str) -> Result<String, String> {
        self.ask(14, &format!("{path}\0{permissions}"))
    }

    fn ask(&mut self, kind: u32, payload: &str) -> Result<String, String> {
        const ERROR: u32 = 16;
        let mut produced = self.word(Self::REQ_PROD);
        for byte in message(kind, payload.as_bytes()) {
            self.ring.write_all_at(&[byte], Self::REQUESTS + u64::from(produced % Self::SIZE)).unwrap();
            produced = produced.wrapping_add(1);
        }
        self.set_word(Self::REQ_PROD, produced);
        self.evtchn.write_all(&self.port.to_ne_bytes()).unwrap();
        let header = self.take(16);
        let field = |at: usize| u32::from_ne_bytes(header[at..at + 4].try_into().unwrap());
        let body = String::from_utf8(self.take(field(12))).unwrap();
        if field(0) == ERROR { Err(body.trim_end_matches('\0').to_owned()) } else { Ok(body) }
    }

    fn take(&mut self, length: u32) -> Vec<u8> {
        let consumed = self.word(Self::RSP_CONS);
        within(PATIENCE, || (self.word(Self::RSP_PROD).wrapping_sub(consumed) >= length).then_some(()));
        let byte = |at: u32| {
            let mut byte = [0];
            self.ring.read_exact_at(&mut byte, Self::RESPONSES + u64::from(at % Self::SIZE)).unwrap();
            byte[0]
        };
        let bytes = (0..length).map(|offset| byte(consumed.wrapping_add(offset))).collect();
        self.set_word(Self::RSP_CONS, consumed.wrapping_add(length));
        bytes
    }

    fn word(&self, at: u64) -> u32 {
        let mut word = [0; 4];
        self.ring.read_exact_at(&mut word, at).unwrap();
        u32::from_ne_bytes(word)
    }

    fn set_word(&self, at: u64, value: u32) {
        self.ring.write_all_at(&value.to_ne_bytes(), at).unwrap();
    }
}

/// Tries until it gives something, for `limit` at most.
pub(crate) fn within<T>(limit: Duration, mut attempt: impl FnMut() -> Option<T>) -> T {
    let start = Instant::now();
    let mut pause = Duration::from_millis(1);
    loop {
        if let Some(result) = attempt() {
            return result;
        }
        assert!(start.elapsed() < limit, "nothing within {limit:?}");
        sleep(pause);
        // hundreds may wait at once
        pause = (pause * 5 / 4).min(Duration::from_millis(100));
    }
}

/// One message of the protocol, outside any transaction.
pub(crate) fn message(kind: u32, payload: &[u8]) -> Vec<u8> {
    let header = [kind, 1, 0, u32::try_from(payload.len()).unwrap()];
    [header.map(u32::to_ne_bytes).as_flattened(), payload].concat()
}

/// Where the daemons are unpacked.
fn packages() -> &'static Path {
    static ROOT: OnceLock<PathBuf> = OnceLock::new();
    ROOT.get_or_init(|| {
        let output = Command::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/xenstored/fetch")).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        PathBuf::from(String::from_utf8(output.stdout).unwrap().trim_end())
    })
}

/// The library that stands in for the hypervisor.
fn shim() -> &'static Path {
    static SHIM: OnceLock<PathBuf> = OnceLock::new();
    SHIM.get_or_init(|| {
        let library = Path::new(env!("CARGO_TARGET_TMPDIR")).join("xenstored-shim.so");
        // A test binary may run beside another: neither must see the other's half-written library.
        let scratch = library.with_extension(std::process::id().to_string());
        let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/xenstored/shim.c");
        let status = Command::new("cc").args(["-shared", "-fPIC", "-o"]).arg(&scratch).arg(source).status();
        assert!(status.unwrap().success(), "cannot compile {source}");
        fs::rename(&scratch, &library).unwrap();
        library
    })
}

/// The least that makes oxenstored run outside /var/log and /run.
fn oxenstored_conf(directory: &Path) -> PathBuf {
    let path = directory.join("oxenstored.conf");
    let at = directory.display();
    let text = format!(
        "pid-file = {at}/pid\nxenstored-log-file = {at}/log\naccess-log-file = {at}/access\n\
         xenstored-kva = /proc/xen/xsd_kva\nxenstored-port = /proc/xen/xsd_port\n"
    );
    fs::write(&path, text).unwrap();
    path
}
