//! What is told, to stderr, which is the toolstack's log of this device model, and to syslog's auth facility.

use std::fmt::Write as _;
use std::io::{self, Write as _};

use syslog::{Facility, Formatter3164, Logger, LoggerBackend};

/// The name every line begins with.
const NAME: &str = "svirt-interpose";

/// Tells syslog alone that something was done. Failing to log never fails a launch.
pub fn done(message: &str) {
    let message = clean(message);
    _ = syslog().map(|mut syslog| syslog.info(message));
}

/// Tells of something that is not as it should be but stops nothing.
pub fn warn(message: &str) {
    let message = clean(message);
    say(&format!("{NAME}: warning: {message}"));
    _ = syslog().map(|mut syslog| syslog.warning(message));
}

/// Tells why the launch ends here.
pub fn refused(message: &str) {
    let message = clean(message);
    say(&format!("{NAME}: {message}"));
    _ = syslog().map(|mut syslog| syslog.err(message));
}

/// Not by `eprintln!`, which would end the launch when the log's filesystem is full.
fn say(line: &str) {
    _ = writeln!(io::stderr(), "{line}");
}

fn syslog() -> Option<Logger<LoggerBackend, Formatter3164>> {
    let formatter =
        Formatter3164 { facility: Facility::LOG_AUTH, hostname: None, process: NAME.into(), pid: std::process::id() };
    syslog::unix(formatter).ok()
}

/// The message with its control characters written out, so that no name or value in it can forge a line.
#[must_use]
pub fn clean(message: &str) -> String {
    let mut clean = String::with_capacity(message.len());
    for c in message.chars() {
        if c.is_control() || matches!(c, '\u{2028}' | '\u{2029}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}') {
            _ = write!(clean, "{}", c.escape_default());
        } else {
            clean.push(c);
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::clean;

    #[test]
    fn writes_control_characters_out() {
        assert_eq!(clean("a\nb\t\u{1b}[1m\u{0}é"), "a\\nb\\t\\u{1b}[1m\\u{0}é");
        assert_eq!(clean("\u{202e}txt"), "\\u{202e}txt");
    }
}
