//! `svirtctl`: the administrator's view of what the launches did.

mod audit;
mod doctor;
mod plan;
mod reconcile;
mod relabel;
mod watch;

use std::process::ExitCode;

use anyhow::{Result, bail, ensure};
use lexopt::Arg::{Long, Short, Value};

use crate::log;

/// What puts the policy module into the host's policy.
const INSTALL_POLICY: &str = "/usr/libexec/svirt-interpose-policy install";

const USAGE: &str = "\
usage: svirtctl COMMAND

  audit [--json]
              show every guest's categories, its device model's label and its disks' labels,
              and whether they agree
  doctor      tell whether this host is ready for guests, and what to change where it is not
  plan -- QEMU-ARGUMENT...
              tell what a launch with these arguments would do, and do nothing
  reconcile [--all]
              put back the labels of guests that are gone, and free their categories; --all wants
              it of every guest: one that is not gone is reported too
  relabel DOMID [DEVICE]
              label the disks that a running guest got since its launch, or the one of that
              number or name (51728, xvdb); without DEVICE, also put back the labels of those
              it has no more
  watch       label whatever libxl attaches to running guests, until stopped

exit status: 0 all is well, 1 something is not (audit: it does not agree; doctor: the host is
not ready; plan: it would be refused; reconcile, relabel: it could not be done), 2 it cannot
be told

See svirtctl(8).
";

/// Runs the command that the arguments name.
#[must_use]
pub fn run() -> ExitCode {
    sigpipe::reset(); // `svirtctl audit | head` ends quietly, as every tool does
    match command() {
        Ok(clean) => ExitCode::from(u8::from(!clean)),
        Err(error) => {
            log::tell("svirtctl", &format!("{error:#}"));
            ExitCode::from(2)
        }
    }
}

/// Whether all is as it should be.
fn command() -> Result<bool> {
    let mut args = lexopt::Parser::from_env();
    let mut words = Vec::new();
    while let Some(arg) = args.next()? {
        match arg {
            Short('h') | Long("help") if words.is_empty() => {
                print!("{USAGE}");
                return Ok(true);
            }
            Short('V') | Long("version") if words.is_empty() => {
                println!("svirtctl {}", env!("CARGO_PKG_VERSION"));
                return Ok(true);
            }
            Value(word) if word == "plan" && words.is_empty() => {
                let mut rest = args.raw_args()?;
                ensure!(
                    rest.next().is_some_and(|word| word == "--"),
                    "QEMU's arguments follow --; see svirtctl --help"
                );
                return Ok(plan::run(&rest.collect::<Vec<_>>()));
            }
            Long("json") => words.push("--json".into()),
            Long("all") => words.push("--all".into()),
            Value(word) => words.push(word.to_string_lossy().into_owned()),
            other => bail!("{}; see svirtctl --help", other.unexpected()),
        }
    }
    match words.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["audit"] => audit::run(false),
        ["audit", "--json"] => audit::run(true),
        ["doctor"] => doctor::run(),
        ["reconcile"] => reconcile::run(false),
        ["reconcile", "--all"] => reconcile::run(true),
        ["relabel", domid] => relabel::run(domid.parse()?, None),
        ["relabel", domid, device] => relabel::run(domid.parse()?, Some(device)),
        ["watch"] => watch::run(),
        [] => bail!("no command given; see svirtctl --help"),
        _ => bail!("cannot make sense of {:?}; see svirtctl --help", words.join(" ")),
    }
}
