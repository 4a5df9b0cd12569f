//! Which boot of the host this is: pids and device numbers mean something within one alone.

use std::fs;
use std::sync::OnceLock;

use anyhow::{Context as _, Result};

/// `/proc/sys/kernel/random/boot_id`.
///
/// # Errors
/// When it cannot be read.
pub fn id() -> Result<&'static str> {
    const PATH: &str = "/proc/sys/kernel/random/boot_id";
    static ID: OnceLock<String> = OnceLock::new();
    if let Some(id) = ID.get() {
        return Ok(id);
    }
    let id = fs::read_to_string(PATH).with_context(|| format!("cannot read {PATH}"))?.trim_end().to_owned();
    Ok(ID.get_or_init(|| id))
}
