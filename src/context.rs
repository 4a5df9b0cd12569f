//! Security contexts: `user:role:type:range`, always in the raw form the kernel has.

use std::fmt;
use std::str::FromStr;

use crate::mcs::{Pair, Set};

/// Why a text is no context.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// A context of three fields: the policy has no levels, so nothing could keep two guests apart.
    NoLevel(String),
    /// Anything else that is no `user:role:type:range`.
    Other(String),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLevel(text) => write!(f, "{text:?} has no level: a policy with MCS is needed"),
            Self::Other(text) => write!(f, "{text:?} is no context (user:role:type:level)"),
        }
    }
}

impl std::error::Error for Malformed {}

/// A level: a sensitivity and a set of categories, `s0:c5,c9`.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Level {
    sensitivity: String,
    categories: Set,
}

impl Level {
    fn parse(text: &str) -> Option<Self> {
        let (sensitivity, categories) = text.split_once(':').map_or((text, None), |(s, c)| (s, Some(c)));
        let categories = match categories {
            // a bare number is a set only in XenStore, never in a level
            Some(set) => set.starts_with('c').then(|| set.parse().ok())??,
            None => Set::default(),
        };
        is_name(sensitivity).then(|| Self { sensitivity: sensitivity.into(), categories })
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let colon = if self.categories.is_empty() { "" } else { ":" };
        write!(f, "{}{colon}{}", self.sensitivity, self.categories)
    }
}

/// A context. Two contexts are equal when they mean the same, however their categories were spelt.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Context {
    user: String,
    role: String,
    type_: String,
    low: Level,
    high: Level,
}

impl Context {
    /// The type, `svirt_xen_t`.
    #[must_use]
    pub fn type_(&self) -> &str {
        &self.type_
    }

    /// The categories of the upper end of the range: all that a process so labelled may reach, and for an
    /// object, whose range is one level, the set it carries.
    #[must_use]
    pub fn categories(&self) -> &Set {
        &self.high.categories
    }

    /// Whether the range is one level, as that of a guest's device model and of its disks must be: a range
    /// up to `s0:c0.c1023` would dominate every other guest's.
    #[must_use]
    pub fn is_single_level(&self) -> bool {
        self.low == self.high
    }

    /// This context at exactly the pair's level: low equal to high, its sensitivity kept.
    #[must_use]
    pub fn with_pair(&self, pair: Pair) -> Self {
        let level = Level { sensitivity: self.low.sensitivity.clone(), categories: pair.set() };
        Self { low: level.clone(), high: level, ..self.clone() }
    }
}

impl fmt::Display for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}:{}:{}", self.user, self.role, self.type_, self.low)?;
        if self.low == self.high { Ok(()) } else { write!(f, "-{}", self.high) }
    }
}

impl FromStr for Context {
    type Err = Malformed;

    fn from_str(text: &str) -> Result<Self, Malformed> {
        let other = || Malformed::Other(text.into());
        let mut fields = text.splitn(4, ':');
        let mut name = || fields.next().filter(|field| is_name(field)).map(String::from).ok_or_else(other);
        let (user, role, type_) = (name()?, name()?, name()?);
        let range = fields.next().ok_or_else(|| Malformed::NoLevel(text.into()))?;
        let (low, high) = range.split_once('-').unwrap_or((range, range));
        let (low, high) = (Level::parse(low).ok_or_else(other)?, Level::parse(high).ok_or_else(other)?);
        Ok(Self { user, role, type_, low, high })
    }
}

/// What the policy language allows as an identifier.
fn is_name(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.'))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn context(text: &str) -> Context {
        text.parse().unwrap()
    }

    #[test]
    fn gives_the_whole_range_up_for_the_pairs_level() {
        let pair = "c5,c9".parse().unwrap();
        for range in ["s0", "s0:c1", "s0-s0:c0.c1023"] {
            let context = context(&format!("system_u:system_r:svirt_xen_t:{range}")).with_pair(pair);
            assert_eq!(context.to_string(), "system_u:system_r:svirt_xen_t:s0:c5,c9");
            assert!(context.is_single_level());
        }
    }

    #[test]
    fn compares_by_meaning() {
        assert_eq!(context("u:r:t:s0:c2,c1"), context("u:r:t:s0:c1,c2-s0:c1,c2"));
        assert_ne!(context("u:r:t:s0:c1"), context("u:r:t:s0:c1-s0:c2"));
    }

    #[test]
    fn tells_a_policy_without_levels_from_a_bad_context() {
        assert_eq!("u:r:t".parse::<Context>(), Err(Malformed::NoLevel("u:r:t".into())));
        for text in [
            "",
            "u",
            "u:r",
            "u:r:t:",
            "u:r:t:s0:",
            "u:r:t:s0:5",
            "u:r:t:s0:c1024",
            "u:r:t:s0-",
            "u:r:t y:s0",
            "u:r:t:s0\n",
            ":r:t:s0",
        ] {
            assert!(matches!(text.parse::<Context>(), Err(Malformed::Other(_))), "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in ".{0,40}") {
            if let Ok(context) = text.parse::<Context>() {
                prop_assert_eq!(context.to_string().parse::<Context>().unwrap(), context);
            }
        }

        #[test]
        fn what_is_written_is_read_back(low in proptest::collection::vec(0..1024u16, 0..5), high in proptest::collection::vec(0..1024u16, 0..5)) {
            let level = |cats: Vec<u16>| {
                let cats: Vec<String> = cats.iter().map(|c| format!("c{c}")).collect();
                if cats.is_empty() { "s0".to_string() } else { format!("s0:{}", cats.join(",")) }
            };
            let context = context(&format!("u:r:t:{}-{}", level(low), level(high)));
            prop_assert_eq!(context.to_string().parse::<Context>().unwrap(), context);
        }
    }
}
