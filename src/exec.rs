//! QEMU: found before anything is done, and executed in our place at the end.

use std::convert::Infallible;
use std::env;
use std::ffi::{CString, NulError, OsStr, OsString};
use std::fmt;
use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::prctl;
use nix::unistd::{AccessFlags, access, execv};

/// Why QEMU cannot be executed. The exit status tells the two kinds apart as env(1) and runcon(1) do.
#[derive(Debug)]
pub enum Error {
    /// There is no such file: exit status 127.
    NotFound(PathBuf),
    /// It is there but cannot be executed: exit status 126.
    Cannot(PathBuf, io::Error),
    /// It is this program, by whatever name: exit status 126.
    Itself(PathBuf),
    /// Neither this program nor its SELinux attributes can be seen: exit status 125.
    NoProc(io::Error),
}

impl Error {
    /// The exit status that says so.
    #[must_use]
    pub fn status(&self) -> u8 {
        match self {
            Self::NotFound(_) => 127,
            Self::Cannot(..) | Self::Itself(_) => 126,
            Self::NoProc(_) => 125,
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let config = crate::config::PATH;
        match self {
            Self::NotFound(path) => {
                write!(f, "cannot execute {}: no such file; name QEMU as qemu in {config}", path.display())
            }
            Self::Cannot(path, _) => write!(f, "cannot execute {}", path.display()),
            Self::NoProc(_) => f.write_str(
                "cannot read /proc/self/exe: mount /proc, also in a chroot that svirt-interpose is started in",
            ),
            Self::Itself(path) => write!(
                f,
                "cannot execute {}: it is svirt-interpose itself; name QEMU as qemu in {config}",
                path.display()
            ),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Cannot(_, cause) | Self::NoProc(cause) => Some(cause),
            Self::NotFound(_) | Self::Itself(_) => None,
        }
    }
}

/// A program that is there and is not this one.
#[derive(Debug)]
pub struct Qemu<'a>(&'a Path);

impl<'a> Qemu<'a> {
    /// Looks at the executable, so that what can be refused is refused before anything is done. Whether this very process
    /// may execute it is [another question](Self::check).
    ///
    /// # Errors
    /// [`Error`], each of its kinds.
    pub fn find(path: &'a Path) -> Result<Self, Error> {
        let cannot = |cause| Error::of(path, cause);
        let file = fs::metadata(path).map_err(cannot)?;
        let own = fs::metadata("/proc/self/exe").map_err(Error::NoProc)?;
        if (file.dev(), file.ino()) == (own.dev(), own.ino()) {
            return Err(Error::Itself(path.into()));
        }
        if !file.is_file() {
            return Err(cannot(io::Error::new(ErrorKind::PermissionDenied, "not a regular file")));
        }
        if file.mode() & 0o111 == 0 {
            return Err(cannot(Errno::EACCES.into()));
        }
        Ok(Self(path))
    }

    /// That this process may execute it: the policy lets svirt-interpose alone.
    ///
    /// # Errors
    /// [`Error::Cannot`].
    pub fn check(&self) -> Result<(), Error> {
        access(self.0, AccessFlags::X_OK).map_err(|errno| Error::of(self.0, errno.into()))
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.0
    }

    /// Executes QEMU in this process: same pid, argv with its first word, environment, working directory,
    /// descriptors, signal dispositions and mask. SIGPIPE is at its default, where Rust's runtime had set it
    /// to be ignored; libxl promises its children so (`libxl__exec` in `libxl_exec.c`). By execve(2) itself:
    /// the execvp(3) of [`std::process::Command`] gives a file that is no program to `/bin/sh`.
    ///
    /// # Errors
    /// It returns only with one: [`Error::NotFound`] or [`Error::Cannot`].
    pub fn exec(&self, args: &[OsString]) -> Result<Infallible, Error> {
        let cannot = |nul: NulError| Error::Cannot(self.0.into(), nul.into());
        let word = |word: &OsStr| CString::new(word.as_bytes());
        let program = word(self.0.as_os_str()).map_err(cannot)?;
        let name = env::args_os().next();
        let words: Vec<CString> =
            name.iter().chain(args).map(|arg| word(arg)).collect::<Result<_, _>>().map_err(cannot)?;
        sigpipe::reset();
        let Err(errno) = execv(&program, &words);
        if errno == Errno::EACCES && prctl::get_no_new_privs().unwrap_or(false) {
            let hint = "no_new_privs is set, as by NoNewPrivileges= in a systemd unit, and bars the way into the guest's context";
            return Err(Error::Cannot(self.0.into(), io::Error::new(ErrorKind::PermissionDenied, hint)));
        }
        Err(Error::of(self.0, errno.into()))
    }
}

impl Error {
    fn of(path: &Path, cause: io::Error) -> Self {
        if cause.kind() == ErrorKind::NotFound { Self::NotFound(path.into()) } else { Self::Cannot(path.into(), cause) }
    }
}
