//! Runs in place of a guest's QEMU, gives it its categories, and becomes it. See svirt-interpose(8).

use std::ffi::OsString;
use std::process::ExitCode;

use svirt_interpose::launch;

fn main() -> ExitCode {
    let args: Vec<OsString> = std::env::args_os().skip(1).collect();
    let Err(failure) = launch::launch(&args);
    ExitCode::from(failure.status)
}
