//! What a claim says: text lines, one record each, of the form `kind name=value …`.
//!
//! Versions read each other's. What an earlier one does not have to know is added as a record of another kind, which it
//! passes over and keeps, or as a field of another name, which it may drop. What it would misread has another [`HEADER`].

use std::collections::HashMap;
use std::ffi::OsString;
use std::fmt::{self, Write as _};
use std::os::unix::ffi::{OsStrExt, OsStringExt};

use anyhow::{Context as _, Result, ensure};

use super::Process;
use crate::argv::Domid;
use crate::context::Context;
use crate::object::{Object, Recorded};

/// The first line of a claim: a later version that a reader of this one would misread has another number.
pub(super) const HEADER: &str = "svirt-interpose claim 1";

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

/// An object that a claim labelled, or was about to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Labelled {
    /// Which one.
    pub object: Recorded,
    /// The label it had before any guest did.
    pub before: Context,
    /// The label it was given.
    pub after: Context,
}

// The records, one line each.

pub(super) fn holder_line(Holder { domid, vm, process }: &Holder) -> String {
    format!("holder domid={domid} vm={} {}\n", Escaped(vm.as_bytes()), Fields(process))
}

/// The launch of this process failed, and what it did was undone.
pub(super) fn left_line(process: &Process) -> String {
    format!("left {}\n", Fields(process))
}

pub(super) fn label_line(Labelled { object, before, after }: &Labelled) -> String {
    let Recorded { identity, boot, path, mount } = object;
    let [boot, path, mount] = [boot.as_ref(), path.as_os_str(), mount.as_os_str()].map(|text| Escaped(text.as_bytes()));
    format!("label object={identity} boot={boot} before={before} after={after} path={path} mount={mount}\n")
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
    /// What a later version added.
    unknown: Vec<String>,
    /// How many lines it has, and how many it had when it was last written anew.
    lines: usize,
    kept: usize,
}

impl Journal {
    /// What a claim says that nobody else has joined.
    #[must_use]
    pub fn of(holder: &Holder) -> Self {
        Self { holders: vec![holder.clone()], ..Self::default() }
    }

    /// Reads a claim. What was not written whole does not count; a claim of which nothing was, its
    /// header included, says nothing. Records of a kind that is not known are a later version's additions and
    /// mean nothing here.
    ///
    /// # Errors
    /// When the header or a whole line of a known kind makes no sense: nothing is guessed.
    pub fn parse(text: &[u8]) -> Result<Self> {
        let (text, torn) = text.split_at(whole_lines(text));
        if text.is_empty() && HEADER.as_bytes().starts_with(written(torn)) {
            return Ok(Self::default());
        }
        let text = str::from_utf8(text).context("it is no text")?;
        let mut lines = text.lines();
        let header = lines.next().unwrap_or_default();
        ensure!(header == HEADER, "it begins with {header:?}, not {HEADER:?}");
        let mut journal = Self { lines: text.lines().count(), ..Self::default() };
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
                let path = |name| Some(OsString::from_vec(unescaped(field(name)?)?).into());
                let object = Recorded { identity, boot: text("boot")?, path: path("path")?, mount: path("mount")? };
                self.labels.retain(|known| !object.supersedes(&known.object));
                self.labels.push(Labelled { object, before, after });
            }
            "kept" => self.kept = field("lines")?.parse().ok()?,
            _ => self.unknown.push(format!("{line}\n")),
        }
        Some(())
    }

    /// Whether most of its lines may say nothing any more: it was joined again and again.
    #[must_use]
    pub fn is_long(&self) -> bool {
        self.lines > 2 * self.kept + 64
    }

    /// The claim that says just this.
    #[must_use]
    pub fn text(&self) -> String {
        let records = self.holders.iter().map(holder_line).chain(self.labels.iter().map(label_line));
        let records: Vec<String> = records.chain(self.unknown.iter().cloned()).collect();
        format!("{HEADER}\nkept lines={}\n{}", records.len(), records.concat())
    }

    /// The holder that still runs, if any of those that count does.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn live(&self, counts: impl Fn(&Holder) -> bool) -> Result<Option<&Holder>> {
        for holder in &self.holders {
            if counts(holder) && holder.process.is_alive()? {
                return Ok(Some(holder));
            }
        }
        Ok(None)
    }

    /// The last record of an object, if this claim labelled it.
    ///
    /// # Errors
    /// When that cannot be told.
    pub fn label(&self, object: &Object) -> Result<Option<&Labelled>> {
        for label in self.labels.iter().rev() {
            if label.object.is(object)? {
                return Ok(Some(label));
            }
        }
        Ok(None)
    }
}

/// How much of a claim's text was written whole. A crash tears the last line; a power cut leaves the file shorter, down to
/// nothing, or zeros from where the filesystem had not written it yet. Nothing follows from a record that is not on the
/// disk: a claim is synced before the labels that it tells of are set.
pub(super) fn whole_lines(text: &[u8]) -> usize {
    written(text).iter().rposition(|byte| *byte == b'\n').map_or(0, |end| end + 1)
}

fn written(text: &[u8]) -> &[u8] {
    text.split(|byte| *byte == 0).next().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::object::Identity;
    use proptest::prelude::*;

    fn holder(domid: u16, pid: u32) -> Holder {
        let process = Process { pid, start: 7, boot: "b-1".into() };
        Holder { domid: domid.to_string().parse().unwrap(), vm: "3c85-x y%".into(), process }
    }

    fn label(path: &[u8]) -> Labelled {
        Labelled {
            object: Recorded {
                identity: Identity::File(254, 0, 1234),
                boot: "b-1".into(),
                path: OsString::from_vec(path.to_vec()).into(),
                mount: "/images".into(),
            },
            before: "system_u:object_r:xen_image_t:s0".parse().unwrap(),
            after: "system_u:object_r:svirt_xen_image_t:s0:c5,c9".parse().unwrap(),
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
    fn what_a_power_cut_left_unwritten_does_not_count() {
        let whole = text(&[holder_line(&holder(7, 12))]);
        let unwritten = format!("{whole}\0\0\0\0/a mount=/\n{}", label_line(&label(b"/images/a")));
        assert_eq!(Journal::parse(unwritten.as_bytes()).unwrap(), Journal::parse(whole.as_bytes()).unwrap());
        for nothing in ["", "\0\0\0\0holder\n", "svirt-int", "svirt-interpose claim 1"] {
            assert_eq!(Journal::parse(nothing.as_bytes()).unwrap(), Journal::default(), "{nothing:?}");
        }
    }

    #[test]
    fn refuses_a_corrupt_claim() {
        let broken = label_line(&label(b"/images/a")).replace("file-", "file:");
        for lines in ["holder domid=7\n", "\u{1}\n", "holder\n", &broken] {
            assert!(Journal::parse(format!("{HEADER}\n{lines}").as_bytes()).is_err(), "{lines:?}");
        }
        for text in ["\n", "garbage", "garbage\n", "svirt-interpose claim 2\n"] {
            assert!(Journal::parse(text.as_bytes()).is_err(), "{text:?}");
        }
    }

    #[test]
    fn passes_over_what_a_later_version_added_and_keeps_it() {
        let added = "frozen object=block-7:7\n";
        let with_a_field = holder_line(&holder(7, 12)).replace('\n', " since=12\n");
        let journal = Journal::parse(text(&[added.into(), with_a_field]).as_bytes()).unwrap();
        assert_eq!(journal.holders, [holder(7, 12)]);
        assert!(journal.text().contains(added), "it is not lost when the claim is written anew");
    }

    #[test]
    fn refuses_what_a_later_version_has_it_misread() {
        let refused = Journal::parse(text(&[]).replace("claim 1", "claim 2").as_bytes()).unwrap_err();
        assert_eq!(refused.to_string(), "it begins with \"svirt-interpose claim 2\", not \"svirt-interpose claim 1\"");
    }

    #[test]
    fn what_is_written_anew_says_the_same_and_is_short() {
        let lines = [holder_line(&holder(7, 12)), label_line(&label(b"/images/a b"))];
        let journal = Journal::parse(
            text(&lines.concat().repeat(40).lines().map(|line| format!("{line}\n")).collect::<Vec<_>>()).as_bytes(),
        )
        .unwrap();
        assert!(journal.is_long());
        let anew = Journal::parse(journal.text().as_bytes()).unwrap();
        assert!(!anew.is_long());
        assert_eq!((&anew.holders, &anew.labels), (&journal.holders, &journal.labels));
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
