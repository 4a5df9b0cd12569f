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
}

impl Name {
    /// The names a claim of a file may have.
    pub fn contents() -> impl Iterator<Item = Self> {
        (1..=u16::MAX).map(Self::Content)
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
        }
    }
}

impl FromStr for Name {
    type Err = mcs::Malformed;

    fn from_str(text: &str) -> Result<Self, mcs::Malformed> {
        match text.strip_prefix("content-").and_then(mcs::number) {
            Some(number) => Ok(Self::Content(number)),
            None => text.parse().map(Self::Pair),
        }
    }
}
