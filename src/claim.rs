//! Claims: which pair is whose, which object belongs to which pair, who reads a file that several guests may read,
//! and what the label of each was before.
//!
//! `<state>/claims/<name>` is a journal of text lines, one record each, appended to or replaced whole. It appears by
//! link(2), whole and locked, so that one launch alone can have a pair. It outlives the domain and the host's reboot,
//! as a label on a file does.
//!
//! `<state>/objects/<boot>.<identity>` is a symlink to the owning claim, made by symlink(2), so that one claim alone
//! can have an object. It counts in its own boot alone, as device numbers do; after it an object's label leads to its
//! claim, or what the claim recorded does.
//!
//! The claim of a pair is one VM's; that of a file that is only read is joined by every guest that reads it, and that of a
//! shared disk by every guest that has it.

mod journal;
mod name;
mod process;
mod registry;
mod restore;

use std::fmt;
use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write as _};
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::linkat;

pub use journal::{Holder, Journal, Labelled};
use journal::{holder_line, label_line, left_line, whole_lines};
pub use name::Name;
pub use process::Process;
pub use registry::Registry;

/// What a launch has found is not so any more: another launch or `svirtctl reconcile` was quicker. It may look again.
#[derive(Debug)]
pub enum Outdated {
    /// A claim is gone, or no longer of that object. Where it is gone for good, its links in the index are what
    /// reconcile removes.
    Claim(Name),
    /// The label of an object was changed.
    Label(PathBuf),
}

impl fmt::Display for Outdated {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Claim(name) => write!(f, "the claim of {name} is gone: run svirtctl reconcile"),
            Self::Label(path) => write!(f, "cannot tell whose {} is: its label keeps changing", path.display()),
        }
    }
}

impl std::error::Error for Outdated {}

/// How often something begins anew because a claim was changed under it.
const TRIES: u32 = 5;

/// Does what builds on claims, and again when it was [`Outdated`].
///
/// # Errors
/// As what it does.
pub fn retrying<T>(mut attempt: impl FnMut() -> Result<T>) -> Result<T> {
    for _ in 1..TRIES {
        match attempt() {
            Err(error) if error.is::<Outdated>() => {}
            result => return result,
        }
    }
    attempt()
}

/// A claim that has no name yet, and that nobody else can see.
#[derive(Debug)]
pub struct Draft(File);

impl Draft {
    /// Claims the first of these names that no other claim has; `None` when all of them are claimed.
    ///
    /// # Errors
    /// When the claim cannot be linked into its directory.
    pub fn claim<N: Into<Name> + Copy>(
        self,
        registry: &Registry,
        names: impl Iterator<Item = N>,
    ) -> Result<Option<(N, Claim)>> {
        for candidate in names {
            let name = candidate.into();
            let path = registry.claim(name);
            match self.link(&path) {
                Ok(()) => return Ok(Some((candidate, Claim { name, file: self.0, path }))),
                Err(Errno::EEXIST) => {}
                Err(errno) => return Err(errno).with_context(|| format!("cannot make {}", path.display())),
            }
        }
        Ok(None)
    }

    fn link(&self, path: &Path) -> nix::Result<()> {
        let own = format!("/proc/self/fd/{}", self.0.as_raw_fd());
        linkat(AT_FDCWD, own.as_str(), AT_FDCWD, path, AtFlags::AT_SYMLINK_FOLLOW)
    }
}

/// A claim, locked until this is dropped; executing QEMU drops it.
#[derive(Debug)]
pub struct Claim {
    name: Name,
    file: File,
    path: PathBuf,
}

impl Claim {
    /// Its name.
    #[must_use]
    pub fn name(&self) -> Name {
        self.name
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

    /// Writes it anew, to say just this. Whoever waits for its lock finds that file, locked too; a crash leaves one or
    /// the other.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn replace(&mut self, registry: &Registry, journal: &Journal) -> Result<()> {
        let new = registry.draft(journal)?;
        let unfinished = registry.unfinished(self.name);
        let replace = || -> Result<()> {
            new.0.sync_data()?;
            new.link(&unfinished)?;
            Ok(fs::rename(&unfinished, &self.path)?)
        };
        replace().with_context(|| format!("cannot replace {}", self.path.display()))?;
        self.file = new.0;
        Ok(())
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

    /// Records what is about to be labelled.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn record(&mut self, labels: &[Labelled]) -> Result<()> {
        self.append(&labels.iter().map(label_line).collect::<String>())
    }

    /// Puts the claim on the disk, its name included, before a label is given that outlives a power cut as well.
    ///
    /// # Errors
    /// When that fails.
    pub fn sync(&self) -> Result<()> {
        let what = || format!("cannot sync {}", self.path.display());
        self.file.sync_data().with_context(what)?;
        let claims = self.path.parent().context("a claim has a directory")?;
        File::open(claims).and_then(|claims| claims.sync_all()).with_context(what)
    }

    /// Gives the claim up: another launch may have its name at once.
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
