//! What is told, to stderr, which is the toolstack's log of this device model, and to syslog's auth facility.

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::os::unix::net::UnixDatagram;
use std::sync::atomic::{AtomicBool, Ordering};

pub use syslog::Severity;
use syslog::{Facility, Formatter3164, LogFormat};

/// The name every line begins with.
const NAME: &str = "svirt-interpose";

static STDERR_ALONE: AtomicBool = AtomicBool::new(false);

/// From now on syslog is told nothing: nothing is done that it would have to tell of.
pub fn to_stderr_alone() {
    STDERR_ALONE.store(true, Ordering::Relaxed);
}

/// Tells of something that is not as it should be but stops nothing.
pub fn warn(message: &str) {
    say(&format!("warning: {message}"));
    record(Severity::LOG_WARNING, message);
}

/// Tells stderr alone.
pub fn say(message: &str) {
    tell(NAME, message);
}

/// Tells stderr what a program has to say, in one write: several may have one log, and whoever is killed leaves no half of a
/// line. Not by `eprintln!`, which writes in pieces and would end the launch when the log's filesystem is full.
pub fn tell(program: &str, message: &str) {
    _ = io::stderr().write_all([program, ": ", &clean(message), "\n"].concat().as_bytes());
}

/// Tells syslog alone, in one datagram that never waits: a syslog daemon that is stopped is no reason to hold a guest up.
pub fn record(severity: Severity, message: &str) {
    if STDERR_ALONE.load(Ordering::Relaxed) {
        return;
    }
    let formatter =
        Formatter3164 { facility: Facility::LOG_AUTH, hostname: None, process: NAME.into(), pid: std::process::id() };
    let mut line = Vec::new();
    _ = formatter.format(&mut line, severity, clean(message));
    _ = UnixDatagram::unbound().and_then(|socket| {
        socket.set_nonblocking(true)?;
        socket.connect("/dev/log")?;
        socket.send(&line)
    });
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
