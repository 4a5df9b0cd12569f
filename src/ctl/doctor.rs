//! `svirtctl doctor`: every precondition of a launch, one line each, with the way to mend what is not so.

mod host;
mod policy;
mod programs;

pub(super) use programs::is_interpose;

use anyhow::Result;

use crate::config::Config;
use crate::log::clean;

/// What came of one check.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Check {
    /// It is so.
    Fine(String),
    /// It is not so; and how it is mended, where that is not in the text.
    Wrong(String, Option<String>),
    /// It cannot be told.
    Unknown(String),
}

impl Check {
    fn fine(text: impl Into<String>) -> Self {
        Self::Fine(text.into())
    }

    fn wrong(text: impl Into<String>, mend: impl Into<String>) -> Self {
        Self::Wrong(text.into(), Some(mend.into()))
    }

    /// What could not be told, for whatever reason.
    fn of(check: Result<Self>) -> Self {
        check.unwrap_or_else(|error| Self::Unknown(format!("{error:#}")))
    }
}

/// Checks everything. True when a launch can do its work.
///
/// # Errors
/// When nothing is wrong, as far as it can be told, but not all can be.
pub(super) fn run() -> Result<bool> {
    let config = Config::load();
    let mut checks = vec![match &config {
        Ok(_) => Check::fine(format!("{} makes sense", crate::config::PATH)),
        Err(error) => Check::Wrong(format!("{error:#}"), None),
    }];
    // where the configuration makes no sense, what it would have named is anybody's guess
    let config = config.as_ref().ok();
    checks.extend(policy::checks(config));
    checks.extend(programs::checks(config));
    checks.extend(host::checks(config));
    let (mut wrong, mut unknown) = (0, 0);
    for check in checks {
        let (word, text) = match check {
            Check::Fine(text) => ("ok", text),
            Check::Wrong(text, mend) => {
                wrong += 1;
                ("WRONG", mend.map_or_else(|| text.clone(), |mend| format!("{text}: {mend}")))
            }
            Check::Unknown(text) => {
                unknown += 1;
                ("?", text)
            }
        };
        println!("{word:6} {}", clean(&text));
    }
    anyhow::ensure!(wrong > 0 || unknown == 0, "cannot tell whether the host is ready: see what is marked ?");
    println!("{}", if wrong == 0 { "ready" } else { "not ready" });
    Ok(wrong == 0)
}
