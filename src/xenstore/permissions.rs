//! A node's permissions.

use std::fmt;
use std::io;

use super::wire::garbled;

/// What a domain may do with a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// `n`
    None,
    /// `r`
    Read,
    /// `w`
    Write,
    /// `b`
    ReadWrite,
}

/// A node's permissions: its owner, who may do anything with it; what a domain that is not named may do; and what those
/// that are named may do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Permissions {
    /// The owner's domid.
    pub owner: u16,
    /// The access of every domain but the owner, domain 0 and those in `entries`.
    pub default: Access,
    /// The access of single domains; of two entries for one domain the first counts.
    pub entries: Vec<(u16, Access)>,
}

impl Permissions {
    /// `n0`: domain 0's own, and nobody else's to read or write.
    #[must_use]
    pub fn dom0_only() -> Self {
        Self { owner: 0, default: Access::None, entries: Vec::new() }
    }

    /// Whether xenstored lets `domid` write the node: as xenstored's `perm_for_conn` decides it, for a domain that is
    /// not the device model of another.
    #[must_use]
    pub fn writable_by(&self, domid: u16) -> bool {
        let access = self.entries.iter().find(|(named, _)| *named == domid).map_or(self.default, |(_, access)| *access);
        domid == 0 || domid == self.owner || matches!(access, Access::Write | Access::ReadWrite)
    }

    pub(super) fn parse(list: &[Box<str>]) -> io::Result<Self> {
        let entry = |text: &str| {
            let access = match text.get(..1) {
                Some("n") => Access::None,
                Some("r") => Access::Read,
                Some("w") => Access::Write,
                Some("b") => Access::ReadWrite,
                _ => return None,
            };
            let domid = text.get(1..)?;
            // from_str takes a sign.
            domid.starts_with(|first: char| first.is_ascii_digit()).then(|| Some((domid.parse().ok()?, access)))?
        };
        let mut entries = list
            .iter()
            .map(|text| entry(text).ok_or_else(|| garbled(format!("{} is no permission", text.escape_default()))));
        let (owner, default) = entries.next().ok_or_else(|| garbled("the list is empty"))??;
        Ok(Self { owner, default, entries: entries.collect::<io::Result<_>>()? })
    }
}

/// The protocol's form, `n0\0r5\0`.
impl fmt::Display for Permissions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (domid, access) in std::iter::once(&(self.owner, self.default)).chain(&self.entries) {
            let letter = match access {
                Access::None => 'n',
                Access::Read => 'r',
                Access::Write => 'w',
                Access::ReadWrite => 'b',
            };
            write!(f, "{letter}{domid}\0")?;
        }
        Ok(())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parse(list: &[&str]) -> io::Result<Permissions> {
        Permissions::parse(&list.iter().map(|text| (*text).into()).collect::<Vec<_>>())
    }

    #[test]
    fn refuses_what_is_no_permission() {
        for list in [&[][..], &[""], &["n"], &["0"], &["x0"], &["n-1"], &["n+1"], &["n 1"], &["n65536"], &["é1"]] {
            assert!(parse(list).is_err(), "{list:?}");
        }
        assert!(parse(&["n0", "r5x"]).is_err());
    }

    proptest! {
        #[test]
        fn what_is_sent_is_what_is_read(owner: u16, entries in prop::collection::vec((any::<u16>(), 0..4_usize), 0..9)) {
            const ACCESSES: [Access; 4] = [Access::None, Access::Read, Access::Write, Access::ReadWrite];
            let entries = entries.into_iter().map(|(domid, access)| (domid, *ACCESSES.get(access).unwrap())).collect();
            let permissions = Permissions { owner, default: Access::Read, entries };
            let text = permissions.to_string();
            prop_assert_eq!(parse(&text.split_terminator('\0').collect::<Vec<_>>()).unwrap(), permissions);
        }
    }
}
