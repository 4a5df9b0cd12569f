//! Processes, told from later ones of the same pid.

use std::fs;
use std::io::ErrorKind;

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;

use crate::boot;

/// A process that cannot be mistaken for a later one of the same pid.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Process {
    /// Its pid.
    pub pid: u32,
    /// When it started, in clock ticks since boot: field 22 of proc(5)'s stat. execve(2) does not change it.
    pub start: u64,
    /// The boot it belongs to, `/proc/sys/kernel/random/boot_id`.
    pub boot: String,
}

impl Process {
    /// This process.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn own() -> Result<Self> {
        let pid = std::process::id();
        let start = start_time(pid)?.context("cannot find ourselves in /proc")?;
        Ok(Self { pid, start, boot: boot::id()?.into() })
    }

    /// Whether it still runs. A zombie does not: it has let go of every disk.
    ///
    /// # Errors
    /// When `/proc` cannot be read: who asks must take it to be alive.
    pub fn is_alive(&self) -> Result<bool> {
        Ok(self.is_of_this_boot()? && start_time(self.pid)? == Some(self.start))
    }

    /// Whether the host has not been rebooted since.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn is_of_this_boot(&self) -> Result<bool> {
        Ok(self.boot == boot::id()?)
    }
}

/// `None` when there is no such process, or it is a zombie.
fn start_time(pid: u32) -> Result<Option<u64>> {
    let path = format!("/proc/{pid}/stat");
    let line = match fs::read(&path) {
        Err(error) if error.kind() == ErrorKind::NotFound || error.raw_os_error() == Some(Errno::ESRCH as i32) => {
            return Ok(None);
        }
        result => result.with_context(|| format!("cannot read {path}"))?,
    };
    // the name of the program, in parentheses, may hold anything
    let after_name = line.rsplit(|byte| *byte == b')').next().unwrap_or_default();
    let fields: Vec<&str> = str::from_utf8(after_name).unwrap_or_default().split_ascii_whitespace().collect();
    match (fields.first(), fields.get(19).map(|start| start.parse())) {
        (Some(&("Z" | "X")), _) => Ok(None),
        (_, Some(Ok(start))) => Ok(Some(start)),
        _ => bail!("cannot make sense of {path}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tells_itself_from_a_process_of_the_same_pid_or_of_another_boot() {
        let own = Process::own().unwrap();
        assert!(own.is_alive().unwrap());
        assert!(!Process { start: own.start + 1, ..own.clone() }.is_alive().unwrap());
        assert!(!Process { boot: "another".into(), ..own.clone() }.is_alive().unwrap());
        assert!(!Process { pid: 0x3fff_ffff, ..own }.is_alive().unwrap());
    }
}
