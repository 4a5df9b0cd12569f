//! The environment of a process that may have gained rights when it was executed.

use std::env;
use std::ffi::OsString;
use std::fs;

/// A variable, as `secure_getenv(3)` gives it: none where this process gained rights by being executed, by set-user-ID or
/// by a change of its SELinux domain, since whoever executed it chose the environment.
#[must_use]
pub fn var(name: &str) -> Option<OsString> {
    env::var_os(name).filter(|_| !gained_rights())
}

/// `AT_SECURE` of `getauxval(3)`. What cannot be read counts as true.
fn gained_rights() -> bool {
    const AT_SECURE: usize = 23;
    let vector = fs::read("/proc/self/auxv").unwrap_or_default();
    let words = vector.as_chunks().0.iter().map(|word| usize::from_ne_bytes(*word));
    let words: Vec<usize> = words.collect();
    let entry = words.as_chunks().0.iter().find(|[kind, _]| *kind == AT_SECURE);
    entry.is_none_or(|[_, value]| *value != 0)
}
