//! The administrator's tool. See svirtctl(8).

use std::process::ExitCode;

fn main() -> ExitCode {
    svirt_interpose::ctl::run()
}
