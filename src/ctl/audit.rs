//! `svirtctl audit`: for every guest what is published and claimed, what its QEMU and its disks really carry, and
//! whether that agrees.

mod findings;
mod look;
mod print;

use std::thread::sleep;
use std::time::Duration;

use anyhow::Result;

/// How long a launch may take to get from one change to the next.
const LAUNCH: Duration = Duration::from_millis(200);

/// Prints what there is and whether it agrees, for people or for programs. True when it does.
///
/// # Errors
/// When XenStore, the claims or the kernel cannot be asked.
pub(super) fn run(json: bool) -> Result<bool> {
    let mut host = look::look()?;
    let mut findings = findings::of(&host);
    if !findings.is_empty() {
        // what a launch or reconcile in the middle of its work was about to do is no finding
        sleep(LAUNCH);
        host = look::look()?;
        let again = findings::of(&host);
        findings.retain(|finding| again.contains(finding));
    }
    if json {
        print::json(&host, &findings)?;
    } else {
        print::text(&host, &findings);
    }
    Ok(findings.is_empty())
}
