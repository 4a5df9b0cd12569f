//! Claims: which pair is whose, which object belongs to which pair, and what its label was before.
//!
//! `<state>/claims/<pair>` is a journal of text lines, one record each, only ever appended to. It appears by
//! link(2), whole and locked, so that one launch alone can have a pair. `<state>/objects/<identity>` is a
//! symlink to the owning claim, made by symlink(2), so that one claim alone can have an object. Both outlive
//! the domain and the host's reboot, as a label on a file does.

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::fs::{self, File, OpenOptions, Permissions, TryLockError};
use std::io::{ErrorKind, Read, Seek, SeekFrom, Write as _};
use std::os::fd::AsRawFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag};
use nix::unistd::linkat;

use crate::argv::Domid;
use crate::context::Context;
use crate::mcs::Pair;
use crate::object::{Identity, Object};

/// The first line of a claim: a later version that a reader of this one would misread has another number.
const HEADER: &str = "svirt-interpose claim 1";

/// How long a claim that another launch or `svirtctl` has locked is waited for; they hold it for milliseconds.
const PATIENCE: Duration = Duration::from_secs(5);

/// A process that cannot be mistaken for a later one of the same pid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of proc(5)'s stat. execve(2) does not change it.
    pub start: u64,
    /// The boot it belongs to, `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

impl Process {
    /// This process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn own() -> Result<Self> {
        let pid = std::process::id();
        let start = start_time(pid)?.context("cannot find ourselves in /proc")?;
        Ok(Self { pid, start, boot: boot_id()? })
    }

    /// Whether it still runs. A zombie does not: it has let go of every disk.
    ///
    /// # Errors
    /// When `/proc` cannot be read: who asks must take it to be alive.
    pub fn is_alive(&self) -> Result<bool> {
        Ok(self.is_of_this_boot()? && start_time(self.pid)? == Some(self.start))
    }

    /// Whether the host has not been rebooted since.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn is_of_this_boot(&self) -> Result<bool> {
        Ok(self.boot == boot_id()?)
    }
}

fn boot_id() -> Result<String> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    Ok(fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?.trim_end().to_owned())
}

/// `None` when there is no such process, or it is a zombie.
fn start_time(pid: u32) -> Result<Option<u64>> {
    let path = format!("/proc/{pid}/stat");
    let line = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32) => {
            return Ok(None);
        }
        result => result.with_context(|| format!("cannot read {path}"))?,
    };
    // the name of the program, in parentheses, may hold anything
    let after_name = line.rsplit(|byte| *byte == b')').next().unwrap_or_default();
    let fields: Vec<&str> = str::from_utf8(after_name).unwrap_or_default().split_ascii_whitespace().collect();
    match (fields.first(), fields.get(19).map(|start| start.parse())) {
        (Some(&("Z" | "X")), _) => Ok(None),
        (_, Some(Ok(start))) => Ok(Some(start)),
        _ => bail!("cannot make sense of {path}"),
    }
}

/// Who holds a claim: one device model of one VM.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Holder {
    /// The domain it serves.
    pub domid: Domid,
    /// The VM's UUID, which a reboot and a local migration keep while the domid changes.
    pub vm: String,
    /// The device model, which is also the launch before it executes QEMU.
    pub process: Process,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "domain {} (VM {}, device model {})", self.domid, self.vm, self.process.pid)
    }
}

/// A claim that was there a moment ago is gone: `svirtctl reconcile` freed it. Where it is gone for good, its links
/// in the index are what reconcile removes.
#[derive(Debug)]
pub struct Vanished(pub Pair);

impl fmt::Display for Vanished {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the claim of {} is gone: run svirtctl reconcile", self.0)
    }
}

impl std::error::Error for Vanished {}

/// An object that a claim labelled, or was about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// What the kernel calls it.
    pub identity: Identity,
    /// The label it had before any guest did.
    pub before: Context,
    /// The label it was given.
    pub after: Context,
    /// The path it was reached by.
    pub path: PathBuf,
}

// The records, one line each.

fn holder_line(Holder { domid, vm, process }: &Holder) -> String {
    format!("holder domid={domid} vm={} {}\n", Escaped(vm.as_bytes()), Fields(process))
}

/// The launch of this process failed, and what it did was undone.
fn left_line(process: &Process) -> String {
    format!("left {}\n", Fields(process))
}

fn label_line(Labelled { identity, before, after, path }: &Labelled) -> String {
    let path = Escaped(path.as_os_str().as_bytes());
    format!("label object={identity} before={before} after={after} path={path}\n")
}

struct Fields<'a>(&'a Process);

impl fmt::Display for Fields<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "pid={} start={} boot={}", self.0.pid, self.0.start, Escaped(self.0.boot.as_bytes()))
    }
}

/// Bytes as one word: `%` and two hexadecimal digits for all that is no printing ASCII.
struct Escaped<'a>(&'a [u8]);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.0 {
            if byte.is_ascii_graphic() && *byte != b'%' {
                f.write_char(char::from(*byte))?;
            } else {
                write!(f, "%{byte:02x}")?;
            }
        }
        Ok(())
    }
}

fn unescaped(text: &str) -> Option<Vec<u8>> {
    let mut parts = text.split('%');
    let mut bytes = parts.next()?.as_bytes().to_vec();
    for part in parts {
        let digits = part.get(..2).filter(|digits| digits.bytes().all(|digit| digit.is_ascii_hexdigit()))?;
        bytes.push(u8::from_str_radix(digits, 16).ok()?);
        bytes.extend_from_slice(part.get(2..)?.as_bytes());
    }
    Some(bytes)
}

/// What a claim's records add up to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Journal {
    /// Its holders, alive or not; those that left are not here.
    pub holders: Vec<Holder>,
    /// Every object it labelled, once, as last recorded.
    pub labels: Vec<Labelled>,
}

impl Journal {
    /// Reads a claim. A last line without its end was torn off by a crash before anything followed from it
    /// and counts as not written. Records of a kind that is not known are a later version's additions and
    /// are passed over.
    ///
    /// # Errors
    /// When the header or a whole line of a known kind makes no sense: nothing is guessed.
    fn parse(text: &[u8]) -> Result<Self> {
        let text = text.get(..whole_lines(text)).unwrap_or_default();
        let text = str::from_utf8(text).context("it is no text")?;
        let mut lines = text.lines();
        let header = lines.next().unwrap_or_default();
        ensure!(header == HEADER, "it begins with {header:?}, not {HEADER:?}");
        let mut journal = Self::default();
        for (number, line) in lines.enumerate() {
            journal.add(line).with_context(|| format!("line {} makes no sense", number + 2))?;
        }
        Ok(journal)
    }

    /// `None` for a line that makes no sense.
    fn add(&mut self, line: &str) -> Option<()> {
        let (kind, rest) = line.split_once(' ')?;
        let fields: HashMap<&str, &str> = rest.split(' ').filter_map(|field| field.split_once('=')).collect();
        let field = |name| fields.get(name).copied();
        let text = |name| String::from_utf8(unescaped(field(name)?)?).ok();
        let process = || {
            let (pid, start) = (field("pid")?.parse().ok()?, field("start")?.parse().ok()?);
            Some(Process { pid, start, boot: text("boot")? })
        };
        match kind {
            "holder" => {
                let domid = field("domid")?.parse().ok()?;
                self.holders.push(Holder { domid, vm: text("vm")?, process: process()? });
            }
            "left" => {
                let left = process()?;
                self.holders.retain(|holder| holder.process != left);
            }
            "label" => {
                let identity = field("object")?.parse().ok()?;
                let (before, after) = (field("before")?.parse().ok()?, field("after")?.parse().ok()?);
                let path = OsString::from_vec(unescaped(field("path")?)?).into();
                self.labels.retain(|known| known.identity != identity);
                self.labels.push(Labelled { identity, before, after, path });
            }
            _ => {}
        }
        Some(())
    }

    /// The holder that still runs, if any.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn live(&self) -> Result<Option<&Holder>> {
        for holder in &self.holders {
            if holder.process.is_alive()? {
                return Ok(Some(holder));
            }
        }
        Ok(None)
    }

    /// The record of an object, if this claim labelled it.
    #[must_use]
    pub fn label(&self, object: &Object) -> Option<&Labelled> {
        self.labels.iter().find(|label| object.is(label.identity, &label.path))
    }
}

/// The state directory.
#[derive(Debug)]
pub struct Registry {
    claims: PathBuf,
    objects: PathBuf,
}

impl Registry {
    /// Opens the directory, and makes it where it is missing: root's alone, as whoever writes here decides
    /// which labels are put back.
    ///
    /// # Errors
    /// When it cannot be made, or somebody else than root may write it.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let registry = Self { claims: state_dir.join("claims"), objects: state_dir.join("objects") };
        for dir in [state_dir, &registry.claims, &registry.objects] {
            match fs::create_dir(dir) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                // whatever umask the toolstack has
                made => made.and_then(|()| fs::set_permissions(dir, Permissions::from_mode(0o700))),
            }
            .with_context(|| format!("cannot make {}", dir.display()))?;
            let status = fs::symlink_metadata(dir).with_context(|| format!("cannot use {}", dir.display()))?;
            ensure!(status.is_dir(), "cannot use {}: it is no directory", dir.display());
            ensure!(
                status.uid() == 0 && status.mode() & 0o022 == 0,
                "refusing {}: somebody else than root may write it (chown root and chmod 0700 it)",
                dir.display()
            );
        }
        Ok(registry)
    }

    /// Begins a claim for this holder, without a pair yet.
    ///
    /// # Errors
    /// When it cannot be written: a full or read-only filesystem, for one.
    pub fn draft(&self, holder: &Holder) -> Result<Draft> {
        let begin = || -> Result<Draft> {
            let flags = OFlag::O_TMPFILE.bits();
            let mut file =
                OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(flags).open(&self.claims)?;
            file.lock()?;
            file.write_all(format!("{HEADER}\n{}", holder_line(holder)).as_bytes())?;
            Ok(Draft(file))
        };
        begin().with_context(|| format!("cannot write a claim in {}", self.claims.display()))
    }

    /// The pair that owns an object.
    ///
    /// # Errors
    /// When the symlink cannot be read or names no claim.
    pub fn owner(&self, identity: Identity) -> Result<Option<Pair>> {
        let path = self.object(identity);
        let target = match fs::read_link(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
            result => result.with_context(|| format!("cannot read {}", path.display()))?,
        };
        let pair = target.strip_prefix("../claims").ok().and_then(Path::to_str).and_then(|pair| pair.parse().ok());
        pair.map(Some).with_context(|| {
            format!("cannot use {}: it leads to {}, which is no claim", path.display(), target.display())
        })
    }

    /// Reads the claim of a pair; `None` when there is none.
    ///
    /// # Errors
    /// When it cannot be read, or is corrupt.
    pub fn read(&self, pair: Pair) -> Result<Option<Journal>> {
        let path = self.claim(pair);
        match fs::read(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            result => {
                let text = result.with_context(|| format!("cannot read {}", path.display()))?;
                Journal::parse(&text).map(Some).with_context(|| format!("cannot use {}", path.display()))
            }
        }
    }

    /// Locks the claim of a pair to change it; `None` when there is none.
    ///
    /// # Errors
    /// When somebody keeps it locked, or it cannot be opened.
    pub fn lock(&self, pair: Pair) -> Result<Option<Claim>> {
        let path = self.claim(pair);
        let what = || format!("cannot lock {}", path.display());
        let deadline = Instant::now() + PATIENCE;
        loop {
            let nofollow = OFlag::O_NOFOLLOW.bits();
            let file = match OpenOptions::new().read(true).append(true).custom_flags(nofollow).open(&path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
                result => result.with_context(what)?,
            };
            match file.try_lock() {
                // it may have been removed, and even made again, before the lock was ours
                Ok(()) if is_same(&file, &path) => return Ok(Some(Claim { pair, file, path })),
                Ok(()) | Err(TryLockError::WouldBlock) if Instant::now() < deadline => sleep(Duration::from_millis(5)),
                Ok(()) => bail!("{}: it keeps changing", what()),
                Err(TryLockError::WouldBlock) => {
                    bail!("{}: another launch or svirtctl has held it for {PATIENCE:?}", what())
                }
                Err(TryLockError::Error(error)) => return Err(error).with_context(what),
            }
        }
    }

    /// Makes a pair the owner of an object that has none. False when it has one by now.
    ///
    /// # Errors
    /// When the symlink cannot be made.
    pub fn own(&self, identity: Identity, pair: Pair) -> Result<bool> {
        let path = self.object(identity);
        match symlink(format!("../claims/{pair}"), &path) {
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
            result => result.map(|()| true).with_context(|| format!("cannot make {}", path.display())),
        }
    }

    /// Hands an object over from one pair, whose claim the caller has locked, to another. False when it is no
    /// longer that pair's.
    ///
    /// # Errors
    /// When the symlink cannot be replaced.
    pub fn hand_over(&self, identity: Identity, from: Pair, to: Pair) -> Result<bool> {
        if self.owner(identity)? != Some(from) {
            return Ok(false);
        }
        let path = self.object(identity);
        let new = self.unfinished(identity, to);
        _ = fs::remove_file(&new);
        symlink(format!("../claims/{to}"), &new)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("cannot replace {}", path.display()))?;
        Ok(true)
    }

    /// Takes an object from a pair; one that it does not own is left alone.
    ///
    /// # Errors
    /// When the symlink cannot be removed.
    pub fn disown(&self, identity: Identity, pair: Pair) -> Result<()> {
        _ = fs::remove_file(self.unfinished(identity, pair));
        if self.owner(identity)? == Some(pair) {
            let path = self.object(identity);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Every pair that is claimed.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn pairs(&self) -> Result<Vec<Pair>> {
        let what = || format!("cannot list {}", self.claims.display());
        let mut pairs = Vec::new();
        for entry in fs::read_dir(&self.claims).with_context(what)? {
            pairs.extend(entry.with_context(what)?.file_name().to_str().and_then(|name| name.parse::<Pair>().ok()));
        }
        pairs.sort_unstable();
        Ok(pairs)
    }

    /// Removes what leads to no claim from the index.
    ///
    /// # Errors
    /// When the index cannot be read or changed.
    pub fn remove_dangling(&self) -> Result<()> {
        let what = || format!("cannot clean {}", self.objects.display());
        for entry in fs::read_dir(&self.objects).with_context(what)? {
            let path = entry.with_context(what)?.path();
            let leads_nowhere = path.is_symlink() && !path.exists();
            if leads_nowhere {
                fs::remove_file(&path).with_context(what)?;
            }
        }
        Ok(())
    }

    fn claim(&self, pair: Pair) -> PathBuf {
        self.claims.join(pair.to_string())
    }

    /// What a crash in the middle of [`hand_over`](Self::hand_over) leaves.
    fn unfinished(&self, identity: Identity, to: Pair) -> PathBuf {
        self.objects.join(format!(".{identity}.{to}"))
    }

    fn object(&self, identity: Identity) -> PathBuf {
        self.objects.join(identity.to_string())
    }
}

fn is_same(file: &File, path: &Path) -> bool {
    let id = |status: fs::Metadata| (status.dev(), status.ino());
    matches!((file.metadata().map(id), fs::symlink_metadata(path).map(id)), (Ok(open), Ok(named)) if open == named)
}

/// A claim that has no pair yet, and that nobody else can see.
#[derive(Debug)]
pub struct Draft(File);

impl Draft {
    /// Claims the first of these pairs that no other claim has; `None` when all of them are claimed.
    ///
    /// # Errors
    /// When the claim cannot be linked into its directory.
    pub fn claim(self, registry: &Registry, pairs: impl Iterator<Item = Pair>) -> Result<Option<Claim>> {
        let own = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        for pair in pairs {
            let path = registry.claim(pair);
            match linkat(AT_FDCWD, own.as_str(), AT_FDCWD, &path, AtFlags::AT_SYMLINK_FOLLOW) {
                Ok(()) => return Ok(Some(Claim { pair, file: self.0, path })),
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).with_context(|| format!("cannot make {}", path.display())),
            }
        }
        Ok(None)
    }
}

/// A claim, locked until this is dropped; executing QEMU drops it.
#[derive(Debug)]
pub struct Claim {
    pair: Pair,
    file: File,
    path: PathBuf,
}

impl Claim {
    /// The pair claimed.
    #[must_use]
    pub fn pair(&self) -> Pair {
        self.pair
    }

    /// What it says now.
    ///
    /// # Errors
    /// When it cannot be read, or is corrupt.
    pub fn journal(&mut self) -> Result<Journal> {
        let text = self.text();
        let what = || format!("cannot use {}", self.path.display());
        Journal::parse(&text.with_context(what)?).with_context(what)
    }

    /// Adds a holder.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn join(&mut self, holder: &Holder) -> Result<()> {
        self.append(&holder_line(holder))
    }

    /// Takes a holder whose launch failed out again.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn leave(&mut self, process: &Process) -> Result<()> {
        self.append(&left_line(process))
    }

    /// Records what is about to be labelled, on the disk, with the claim itself: a label on a file and a link in the
    /// index outlive a power cut.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn about_to_label(&mut self, labels: &[Labelled]) -> Result<()> {
        self.append(&labels.iter().map(label_line).collect::<String>())?;
        let what = || format!("cannot sync {}", self.path.display());
        self.file.sync_data().with_context(what)?;
        let claims = self.path.parent().context("a claim has a directory")?;
        File::open(claims).and_then(|claims| claims.sync_all()).with_context(what)
    }

    /// Gives the pair up: another launch may have it at once.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn release(&self) -> Result<()> {
        fs::remove_file(&self.path).with_context(|| format!("cannot remove {}", self.path.display()))
    }

    /// One write for all lines. A torn line that a crash left is cut off first, so that it cannot swallow the next.
    fn append(&mut self, lines: &str) -> Result<()> {
        let text = self.text();
        let what = || format!("cannot write {}", self.path.display());
        let text = text.with_context(what)?;
        let whole = whole_lines(&text);
        if whole < text.len() {
            self.file.set_len(whole as u64).with_context(what)?;
        }
        self.file.seek(SeekFrom::End(0)).and_then(|_| self.file.write_all(lines.as_bytes())).with_context(what)
    }

    fn text(&mut self) -> std::io::Result<Vec<u8>> {
        let mut text = Vec::new();
        self.file.seek(SeekFrom::Start(0))?;
        self.file.read_to_end(&mut text)?;
        Ok(text)
    }
}

/// How much of a claim's text ends in a line's end.
fn whole_lines(text: &[u8]) -> usize {
    text.iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn holder(domid: u16, pid: u32) -> Holder {
        let process = Process { pid, start: 7, boot: "b-1".into() };
        Holder { domid: domid.to_string().parse().unwrap(), vm: "3c85-x y%".into(), process }
    }

    fn label(path: &[u8]) -> Labelled {
        Labelled {
            identity: Identity::File(254, 0, 1234),
            before: "system_u:object_r:xen_image_t:s0".parse().unwrap(),
            after: "system_u:object_r:svirt_xen_image_t:s0:c5,c9".parse().unwrap(),
            path: OsString::from_vec(path.to_vec()).into(),
        }
    }

    fn text(lines: &[String]) -> String {
        format!("{HEADER}\n{}", lines.concat())
    }

    #[test]
    fn a_torn_last_line_counts_as_not_written() {
        let whole = text(&[holder_line(&holder(7, 12))]);
        let torn = format!("{whole}{}", label_line(&label(b"/images/a b")).trim_end());
        assert_eq!(Journal::parse(torn.as_bytes()).unwrap(), Journal::parse(whole.as_bytes()).unwrap());
    }

    #[test]
    fn refuses_a_corrupt_claim() {
        let broken = label_line(&label(b"/images/a")).replace("file-", "file:");
        for lines in ["holder domid=7\n", "\0\0\0\n", "holder\n", &broken] {
            assert!(Journal::parse(format!("{HEADER}\n{lines}").as_bytes()).is_err(), "{lines:?}");
        }
        for text in ["", "garbage\n", "svirt-interpose claim 2\n"] {
            assert!(Journal::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn passes_over_what_a_later_version_added() {
        let text = text(&["shared object=block-7:7\n".into(), holder_line(&holder(7, 12))]);
        assert_eq!(Journal::parse(text.as_bytes()).unwrap().holders, [holder(7, 12)]);
    }

    #[test]
    fn believes_the_last_record_and_drops_holders_that_left() {
        let second = Labelled { before: "u:r:other_t:s0".parse().unwrap(), ..label(b"/images/a") };
        let lines = [
            holder_line(&holder(7, 12)),
            label_line(&label(b"/images/a")),
            holder_line(&holder(8, 13)),
            label_line(&second),
            left_line(&holder(8, 13).process),
        ];
        let journal = Journal::parse(text(&lines).as_bytes()).unwrap();
        assert_eq!(journal.holders, [holder(7, 12)]);
        assert_eq!(journal.labels, [second]);
    }

    #[test]
    fn tells_itself_from_a_process_of_the_same_pid_or_of_another_boot() {
        let own = Process::own().unwrap();
        assert!(own.is_alive().unwrap());
        assert!(!Process { start: own.start + 1, ..own.clone() }.is_alive().unwrap());
        assert!(!Process { boot: "another".into(), ..own.clone() }.is_alive().unwrap());
        assert!(!Process { pid: 0x3fff_ffff, ..own }.is_alive().unwrap());
    }

    proptest! {
        #[test]
        fn any_path_is_read_back(path in proptest::collection::vec(any::<u8>(), 0..40)) {
            let journal = Journal::parse(text(&[label_line(&label(&path))]).as_bytes()).unwrap();
            prop_assert_eq!(journal.labels, [label(&path)]);
        }

        #[test]
        fn any_text_is_read_or_refused(text in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Journal::parse(&text);
        }

        #[test]
        fn a_claim_cut_anywhere_is_a_beginning_of_it_or_refused(at in 0usize..400) {
            let whole = text(&[holder_line(&holder(7, 12)), label_line(&label(b"/images/a"))]);
            let cut = &whole.as_bytes()[..at.min(whole.len())];
            if let Ok(journal) = Journal::parse(cut) {
                prop_assert!(journal.holders.is_empty() || journal.holders == [holder(7, 12)]);
                prop_assert!(journal.labels.is_empty() || journal.labels == [label(b"/images/a")]);
            }
        }
    }
}
