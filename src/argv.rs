//! Which domain the device model is started for, read from QEMU's own argv.
//!
//! Every toolstack's form is known, and nothing is guessed: what says two things, or nothing clear, is refused.
//!
//! | who | form |
//! |---|---|
//! | libxl (`libxl__build_device_model_args_new`), XAPI's qemu-wrapper | `-xen-domid N` anywhere |
//! | libxl for qemu-traditional (`libxl__build_device_model_args_old`) | `-d N` |
//! | XAPI, XenClient to a wrapper of QEMU's | `N` before all else |
//! | libxl's and libvirt's probes, `-help`, `-version` | none |
//! | dom0's own disk backend (`xen-qemu-dom0-disk-backend.service`) | `-xen-domid 0` |

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::str::FromStr;

use crate::mcs;

/// The number of a domain that can exist: 0 to 32751, below `DOMID_FIRST_RESERVED` of xen/include/public/xen.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Domid(u16);

impl Domid {
    const FIRST_RESERVED: u16 = 0x7ff0;

    /// Whether this is dom0, which is no guest.
    #[must_use]
    pub fn is_dom0(self) -> bool {
        self.0 == 0
    }

    /// The number itself.
    #[must_use]
    pub fn number(self) -> u16 {
        self.0
    }
}

impl fmt::Display for Domid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for Domid {
    type Err = Refused;

    /// Decimal digits alone; no sign, no blank, no leading zero, nothing after.
    fn from_str(text: &str) -> Result<Self, Refused> {
        let number = mcs::number(text).filter(|number| *number < Self::FIRST_RESERVED);
        number.map(Self).ok_or_else(|| Refused::NoDomid(text.into()))
    }
}

/// Whom QEMU is started for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// A guest, to be confined.
    Guest(Domid),
    /// No guest: a probe, or dom0's own disk backend. The policy has a domain for these by `type_transition`.
    Host,
}

/// Why no target can be told from the argv.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// What stands where a domid must is none.
    NoDomid(String),
    /// An option that takes a domid stands last.
    Missing(String),
    /// Two domids are named.
    Contradictory(Domid, Domid),
    /// `-xen-domid` or `-d` follows an option that may take it as its own value.
    Ambiguous(String, String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoDomid(text) => write!(f, "{text:?} is no domid (0 to {})", Domid::FIRST_RESERVED - 1),
            Self::Missing(option) => write!(f, "{option} has no domid after it"),
            Self::Contradictory(one, other) => write!(f, "it names two domids, {one} and {other}"),
            Self::Ambiguous(before, option) => {
                write!(f, "{option} after {before} may be that option's value: give {option} first")
            }
        }
    }
}

impl std::error::Error for Refused {}

/// QEMU's options that take no value (qemu-options.hx, 2.10 to 10.1, and qemu-traditional's): what follows one
/// is an option in its own right.
const FLAGS: &[&str] = &[
    "S",
    "alt-grab",
    "async-teardown",
    "ctrl-grab",
    "curses",
    "daemonize",
    "enable-fips",
    "enable-kvm",
    "enable-sync-profile",
    "full-screen",
    "h",
    "help",
    "jitdump",
    "localtime",
    "mem-prealloc",
    "no-acpi",
    "no-fd-bootchk",
    "no-frame",
    "no-hpet",
    "no-quit",
    "no-reboot",
    "no-shutdown",
    "no-user-config",
    "nodefaults",
    "nodefconfig",
    "nographic",
    "old-param",
    "one-insn-per-tb",
    "perfmap",
    "portrait",
    "preconfig",
    "rtc-td-hack",
    "s",
    "sdl",
    "semihosting",
    "singlestep",
    "snapshot",
    "std-vga",
    "syslog",
    "tdf",
    "usb",
    "version",
    "videoram",
    "win2k-hack",
    "xen-attach",
    "xen-create",
    "xen-domid-restrict",
];

/// Tells the target from QEMU's argv without `argv[0]`.
///
/// # Errors
/// [`Refused`] when a domid is malformed, missing, named twice with different numbers, or possibly another
/// option's value.
pub fn target(args: &[OsString]) -> Result<Target, Refused> {
    let mut found: Option<Domid> = None;
    let mut note = |text: &OsStr| {
        let domid = text.to_string_lossy().parse()?;
        match found.replace(domid) {
            Some(other) if other != domid => Err(Refused::Contradictory(other, domid)),
            _ => Ok(()),
        }
    };

    if let Some(first) = args.first().filter(|first| is_numeric(first)) {
        note(first)?;
    }
    let mut before: Option<&str> = None; // an option, as long as its value may follow
    let mut rest = args.iter();
    while let Some(arg) = rest.next() {
        let Some(option) = option(arg) else {
            before = None;
            continue;
        };
        match (option, before) {
            (_, Some("name")) => before = None, // a guest's name may be anything
            ("xen-domid", Some(before)) => return Err(Refused::Ambiguous(format!("-{before}"), "-xen-domid".into())),
            ("xen-domid", None) => note(rest.next().ok_or_else(|| Refused::Missing("-xen-domid".into()))?)?,
            ("d", Some(before)) if rest.as_slice().first().is_some_and(|value| is_numeric(value)) => {
                return Err(Refused::Ambiguous(format!("-{before}"), "-d".into()));
            }
            // upstream QEMU's -d takes names of log items, and those are no numbers
            ("d", None) => match rest.next() {
                Some(value) if is_numeric(value) => note(value)?,
                Some(_) => {}
                None => return Err(Refused::Missing("-d".into())),
            },
            _ => before = (!FLAGS.contains(&option)).then_some(option),
        }
    }
    Ok(found.filter(|domid| !domid.is_dom0()).map_or(Target::Host, Target::Guest))
}

/// The option's name, when this is one; QEMU takes one dash and two alike (`lookup_opt` in system/vl.c).
fn option(arg: &OsStr) -> Option<&str> {
    let name = arg.to_str()?.strip_prefix('-')?;
    Some(name.strip_prefix('-').unwrap_or(name)).filter(|name| !name.is_empty())
}

/// Whether somebody meant this to be a number, well-formed or not.
fn is_numeric(arg: &OsStr) -> bool {
    let text = arg.to_string_lossy();
    let digits = text.trim_start().trim_start_matches(['+', '-']);
    digits.starts_with(|c: char| c.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    fn told(args: &[&str]) -> Result<Target, Refused> {
        target(&args.iter().map(OsString::from).collect::<Vec<_>>())
    }

    const fn guest(number: u16) -> Target {
        Target::Guest(Domid(number))
    }

    #[test]
    fn reads_the_domid_in_every_toolstacks_form() {
        assert_eq!(told(&["-xen-domid", "7", "-no-shutdown", "-name", "h1"]), Ok(guest(7)));
        assert_eq!(told(&["-d", "7", "-domain-name", "h1", "-vnc", "none"]), Ok(guest(7)));
        assert_eq!(told(&["7", "--syslog", "-pidfile", "/run/p", "-xen-domid", "7", "-m", "size=1"]), Ok(guest(7)));
        assert_eq!(told(&["7", "--syslog"]), Ok(guest(7)));
        assert_eq!(told(&["-machine", "pc", "--xen-domid", "32751"]), Ok(guest(32751)));
    }

    #[test]
    fn tells_probes_and_dom0_from_guests() {
        let probe = [
            "-S",
            "-no-user-config",
            "-nodefaults",
            "-nographic",
            "-machine",
            "none,accel=xen",
            "-chardev",
            "socket,id=libxl-cmd,fd=9,server=on,wait=off",
            "-mon",
            "chardev=libxl-cmd,mode=control",
        ];
        for args in [&probe[..], &["-help"], &["--version"], &[], &["-xen-domid", "0", "-xen-attach"]] {
            assert_eq!(told(args), Ok(Target::Host), "{args:?}");
        }
    }

    #[test]
    fn refuses_a_malformed_domid() {
        for text in ["x", "+7", "7x", "-1", "40000", "32752", "65543", "07", " 7", "7 ", "", "0x7", "７"] {
            assert!(told(&["-xen-domid", text]).is_err(), "-xen-domid {text:?}");
        }
        for text in ["+7", "7x", "-1", "40000", "07", " 7"] {
            assert!(told(&[text, "-m", "1"]).is_err(), "leading {text:?}");
            assert!(told(&["-d", text]).is_err(), "-d {text:?}");
        }
        assert!(told(&["-xen-domid"]).is_err());
        let bytes = OsString::from_vec(vec![b'7', 0xff]);
        assert!(target(&["-xen-domid".into(), bytes]).is_err());
    }

    #[test]
    fn refuses_two_domids_and_takes_one_named_twice() {
        assert_eq!(told(&["-xen-domid", "7", "-xen-domid", "8"]), Err(Refused::Contradictory(Domid(7), Domid(8))));
        assert!(told(&["8", "-xen-domid", "7"]).is_err());
        assert!(told(&["-xen-domid", "7", "-xen-domid", "0"]).is_err());
        assert_eq!(told(&["-xen-domid", "7", "-d", "7"]), Ok(guest(7)));
    }

    #[test]
    fn takes_no_domid_from_another_options_value() {
        assert_eq!(told(&["-xen-domid", "7", "-name", "-xen-domid 9"]), Ok(guest(7)));
        assert_eq!(told(&["-name", "-xen-domid", "-xen-domid", "7"]), Ok(guest(7)));
        assert_eq!(told(&["-name", "-d", "-xen-domid", "7"]), Ok(guest(7)));
        assert_eq!(told(&["-name", "7", "-xen-domid", "8"]), Ok(guest(8)));
        assert_eq!(told(&["-d", "guest_errors", "-xen-domid", "7"]), Ok(guest(7)));
        assert!(matches!(told(&["-append", "-xen-domid", "9"]), Err(Refused::Ambiguous(..))));
        assert!(matches!(told(&["-append", "-d", "9"]), Err(Refused::Ambiguous(..))));
    }

    proptest! {
        #[test]
        fn any_argv_is_read_or_refused(args in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..12), 0..8)) {
            let args: Vec<OsString> = args.into_iter().map(OsString::from_vec).collect();
            let _ = target(&args);
        }

        #[test]
        fn a_guest_is_one_its_argv_names(args in proptest::collection::vec("(-xen-domid|-d|-name|-S|[0-9]{1,6}|[+-]?[0-9]x?)", 0..8)) {
            let args: Vec<OsString> = args.into_iter().map(OsString::from).collect();
            if let Ok(Target::Guest(domid)) = target(&args) {
                prop_assert!(args.contains(&domid.to_string().into()));
            }
        }
    }
}
