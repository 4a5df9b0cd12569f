//! The state directory: claims by name, and the index of the objects they own.

use std::fs::{self, DirEntry, File, Metadata, OpenOptions, Permissions, TryLockError};
use std::io::{self, ErrorKind, Write as _};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::fcntl::OFlag;

use super::{Claim, Draft, Journal, Name};
use crate::boot;
use crate::object::Identity;
use crate::optional;
use crate::xenstore;

/// How long a claim that somebody else has locked is waited for. A launch holds its own, and those that it takes disks
/// over from, until it executes QEMU: for as long as XenStore makes it wait. All others hold one for milliseconds.
const PATIENCE: Duration = Duration::from_secs(xenstore::PATIENCE.as_secs() + 5);

/// What came of trying to lock a claim.
enum Attempt {
    Locked(Claim),
    NoClaim,
    Busy,
}

/// The state directory.
#[derive(Debug)]
pub struct Registry {
    claims: PathBuf,
    objects: PathBuf,
    boot: &'static str,
}

impl Registry {
    /// Opens the directory, root's alone, as whoever writes here decides which labels are put back. One that is missing
    /// has no claims, and is made by the first.
    ///
    /// # Errors
    /// When somebody else than root may write it.
    pub fn open(state_dir: &Path) -> Result<Self> {
        let registry = Self { claims: state_dir.join("claims"), objects: state_dir.join("objects"), boot: boot::id()? };
        for dir in [state_dir, &registry.claims, &registry.objects] {
            match fs::symlink_metadata(dir) {
                Err(error) if error.kind() == ErrorKind::NotFound => {}
                status => check(dir, &status.with_context(|| format!("cannot use {}", dir.display()))?)?,
            }
        }
        Ok(registry)
    }

    /// Makes what is missing of it.
    fn make(&self) -> Result<()> {
        for dir in self.claims.parent().into_iter().chain([self.claims.as_path(), &self.objects]) {
            match fs::create_dir(dir) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
                // whatever umask the toolstack has
                made => made.and_then(|()| fs::set_permissions(dir, Permissions::from_mode(0o700))),
            }
            .with_context(|| format!("cannot make {}", dir.display()))?;
        }
        Ok(())
    }

    /// Begins a claim that says this, without a name yet.
    ///
    /// # Errors
    /// When it cannot be written: a full or read-only filesystem, for one.
    pub fn draft(&self, journal: &Journal) -> Result<Draft> {
        self.make()?;
        let begin = || -> Result<Draft> {
            let flags = OFlag::O_TMPFILE.bits();
            let mut file =
                OpenOptions::new().read(true).write(true).mode(0o600).custom_flags(flags).open(&self.claims)?;
            file.lock()?;
            file.write_all(journal.text().as_bytes())?;
            Ok(Draft(file))
        };
        begin().with_context(|| format!("cannot write a claim in {}", self.claims.display()))
    }

    /// The claim that owns an object.
    ///
    /// # Errors
    /// When the symlink cannot be read or names no claim.
    pub fn owner(&self, identity: Identity) -> Result<Option<Name>> {
        let path = self.object(identity);
        let target = optional(fs::read_link(&path)).with_context(|| format!("cannot read {}", path.display()))?;
        let Some(target) = target else { return Ok(None) };
        let name = target.strip_prefix("../claims").ok().and_then(Path::to_str).and_then(|name| name.parse().ok());
        name.map(Some).with_context(|| {
            format!("cannot use {}: it leads to {}, which is no claim", path.display(), target.display())
        })
    }

    /// Reads the claim that owns an object; `None` also when it was freed meanwhile.
    ///
    /// # Errors
    /// As [`owner`](Self::owner) and [`read`](Self::read).
    pub fn owning(&self, identity: Identity) -> Result<Option<Journal>> {
        self.owner(identity)?.map_or(Ok(None), |name| self.read(name))
    }

    /// Reads a claim; `None` when there is none of that name.
    ///
    /// # Errors
    /// When it cannot be read, or is corrupt.
    pub fn read(&self, name: Name) -> Result<Option<Journal>> {
        let path = self.claim(name);
        let text = optional(fs::read(&path)).with_context(|| format!("cannot read {}", path.display()))?;
        let journal = text.map(|text| Journal::parse(&text)).transpose();
        journal.with_context(|| format!("cannot use {}", path.display()))
    }

    /// Locks a claim to change it; `None` when there is none of that name. Waits for whoever has it locked.
    ///
    /// # Errors
    /// When somebody keeps it locked, or it cannot be opened.
    pub fn lock(&self, name: Name) -> Result<Option<Claim>> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.attempt(name).with_context(|| format!("cannot lock {}", self.claim(name).display()))? {
                Attempt::Locked(claim) => return Ok(Some(claim)),
                Attempt::NoClaim => return Ok(None),
                Attempt::Busy if Instant::now() < deadline => sleep(Duration::from_millis(5)),
                Attempt::Busy => {
                    let path = self.claim(name);
                    bail!("cannot lock {}: another launch or svirtctl has held it for {PATIENCE:?}", path.display())
                }
            }
        }
    }

    /// The same without waiting: `None` also when somebody else has it locked.
    ///
    /// # Errors
    /// When it cannot be opened.
    pub fn try_lock(&self, name: Name) -> Result<Option<Claim>> {
        let attempt = self.attempt(name).with_context(|| format!("cannot lock {}", self.claim(name).display()))?;
        Ok(if let Attempt::Locked(claim) = attempt { Some(claim) } else { None })
    }

    fn attempt(&self, name: Name) -> io::Result<Attempt> {
        let path = self.claim(name);
        let nofollow = OFlag::O_NOFOLLOW.bits();
        let file = match OpenOptions::new().read(true).append(true).custom_flags(nofollow).open(&path) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Attempt::NoClaim),
            result => result?,
        };
        match file.try_lock() {
            // it may have been removed, and even made again, before the lock was ours
            Ok(()) if is_same(&file, &path) => {
                _ = fs::remove_file(self.unfinished(name));
                Ok(Attempt::Locked(Claim { name, file, path }))
            }
            Ok(()) | Err(TryLockError::WouldBlock) => Ok(Attempt::Busy),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Makes a claim the owner of an object that has none, or `from`, whose claim the caller has locked. False when
    /// it is another's by now.
    ///
    /// # Errors
    /// When the symlink cannot be made or replaced.
    pub fn own(&self, identity: Identity, from: Option<Name>, to: Name) -> Result<bool> {
        let path = self.object(identity);
        let make = |path: &Path| symlink(format!("../claims/{to}"), path);
        match self.owner(identity)? {
            Some(owner) if owner == to => Ok(true),
            Some(owner) if Some(owner) == from => {
                let new = self.unfinished_link(identity, to);
                _ = fs::remove_file(&new);
                let replaced = make(&new).and_then(|()| fs::rename(&new, &path));
                replaced.map(|()| true).with_context(|| format!("cannot replace {}", path.display()))
            }
            Some(_) => Ok(false),
            None => match make(&path) {
                Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(false),
                result => result.map(|()| true).with_context(|| format!("cannot make {}", path.display())),
            },
        }
    }

    /// Takes an object from a claim; one that it does not own is left alone.
    ///
    /// # Errors
    /// When the symlink cannot be removed.
    pub fn disown(&self, identity: Identity, name: Name) -> Result<()> {
        _ = fs::remove_file(self.unfinished_link(identity, name));
        if self.owner(identity)? == Some(name) {
            let path = self.object(identity);
            fs::remove_file(&path).with_context(|| format!("cannot remove {}", path.display()))?;
        }
        Ok(())
    }

    /// Every claim.
    ///
    /// # Errors
    /// When the directory cannot be read.
    pub fn names(&self) -> Result<Vec<Name>> {
        let what = || format!("cannot list {}", self.claims.display());
        let mut names = Vec::new();
        for entry in entries(&self.claims).with_context(what)? {
            names.extend(entry.with_context(what)?.file_name().to_str().and_then(|name| name.parse::<Name>().ok()));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// Removes what leads to no claim from the index, and what is of another boot.
    ///
    /// # Errors
    /// When the index cannot be read or changed.
    pub fn clean_index(&self) -> Result<()> {
        let what = || format!("cannot clean {}", self.objects.display());
        for entry in entries(&self.objects).with_context(what)? {
            let entry = entry.with_context(what)?;
            let path = entry.path();
            let is_of_this_boot = entry.file_name().to_string_lossy().trim_start_matches('.').starts_with(self.boot);
            if !is_of_this_boot || path.is_symlink() && !path.exists() {
                optional(fs::remove_file(&path)).with_context(what)?; // its launch may be quicker
            }
        }
        Ok(())
    }

    pub(super) fn claim(&self, name: Name) -> PathBuf {
        self.claims.join(name.to_string())
    }

    /// What a crash in the middle of [`Claim::replace`] leaves; the next to lock the claim removes it.
    pub(super) fn unfinished(&self, name: Name) -> PathBuf {
        self.claims.join(format!(".{name}"))
    }

    /// What a crash in the middle of [`own`](Self::own) leaves.
    fn unfinished_link(&self, identity: Identity, to: Name) -> PathBuf {
        self.objects.join(format!(".{}.{identity}.{to}", self.boot))
    }

    fn object(&self, identity: Identity) -> PathBuf {
        self.objects.join(format!("{}.{identity}", self.boot))
    }
}

/// That whoever writes there is root.
fn check(dir: &Path, status: &Metadata) -> Result<()> {
    ensure!(status.is_dir(), "cannot use {}: it is no directory", dir.display());
    ensure!(
        status.uid() == 0 && status.mode() & 0o022 == 0,
        "refusing {}: somebody else than root may write it (chown root and chmod 0700 it)",
        dir.display()
    );
    Ok(())
}

/// Those of a directory, which need not be there.
fn entries(dir: &Path) -> io::Result<impl Iterator<Item = io::Result<DirEntry>>> {
    Ok(optional(fs::read_dir(dir))?.into_iter().flatten())
}

fn is_same(file: &File, path: &Path) -> bool {
    let id = |status: Metadata| (status.dev(), status.ino());
    matches!((file.metadata().map(id), fs::symlink_metadata(path).map(id)), (Ok(open), Ok(named)) if open == named)
}
