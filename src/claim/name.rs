//! What claims are called.

use std::fmt;
use std::str::FromStr;

use crate::mcs::{self, Pair};

/// What a claim is of, and the name of its file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Name {
    /// A VM's pair and its writable disks: `c5,c9`.
    Pair(Pair),
    /// A file that guests only read, however many, under a number that says nothing: `content-1`.
    Content(u16),
    /// A disk that guests share to write, under such a number: `shared-1`.
    Shared(u16),
}

impl Name {
    /// The names that a claim of a file may have which guests read.
    pub fn contents() -> impl Iterator<Item = Self> {
        (1..=u16::MAX).map(Self::Content)
    }

    /// The names that a claim of a disk may have which guests share.
    pub fn shared() -> impl Iterator<Item = Self> {
        (1..=u16::MAX).map(Self::Shared)
    }

    /// Whether it is of an object that several guests have in the same way, and not one VM's alone.
    #[must_use]
    pub fn is_common(self) -> bool {
        !matches!(self, Self::Pair(_))
    }

    /// Whether both are of objects that guests have in the same way, and not alone.
    #[must_use]
    pub fn is_like(self, other: Self) -> bool {
        matches!((self, other), (Self::Content(_), Self::Content(_)) | (Self::Shared(_), Self::Shared(_)))
    }
}

impl From<Pair> for Name {
    fn from(pair: Pair) -> Self {
        Self::Pair(pair)
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Pair(pair) => pair.fmt(f),
            Self::Content(number) => write!(f, "content-{number}"),
            Self::Shared(number) => write!(f, "shared-{number}"),
        }
    }
}

impl FromStr for Name {
    type Err = mcs::Malformed;

    fn from_str(text: &str) -> Result<Self, mcs::Malformed> {
        let numbered = |prefix: &str| text.strip_prefix(prefix).and_then(mcs::number);
        if let Some(number) = numbered("content-") {
            Ok(Self::Content(number))
        } else if let Some(number) = numbered("shared-") {
            Ok(Self::Shared(number))
        } else {
            text.parse().map(Self::Pair)
        }
    }
}
