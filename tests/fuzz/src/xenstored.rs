//! xenstored, gone mad: a launch asks it, and it answers with anything.

use std::io::Write as _;
use std::net::Shutdown;
use std::os::unix::net::UnixListener;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use svirt_interpose::guest::{self, Asked, Domains, Guest};
use svirt_interpose::xenstore::Connection;
use xenstore_rs::Xs as _;

const TRANSACTION_START: u8 = 6;

/// The first byte says what is asked, and whether the rest is sent as it is or as replies: the type and length of
/// each, one byte both, and its value. The numbers of request and transaction are as they should be then.
pub(crate) fn answers(data: &[u8]) {
    let Some((&how, rest)) = data.split_first() else { return };
    let (listener, path) = daemon();
    let store = Connection::connect(path, Duration::from_secs(10)).unwrap();
    let (mut socket, _) = listener.accept().unwrap();
    let answers = if how & 1 == 0 { rest.to_vec() } else { replies(rest) };
    socket.write_all(&answers).unwrap();
    socket.shutdown(Shutdown::Write).unwrap();

    let domid = "7".parse().unwrap();
    match how >> 1 {
        0 => drop(Guest::ask(&store, domid).and_then(Asked::beside_others)),
        1 => drop(Domains::read(&store).and_then(|domains| guest::published(&store, &domains.all))),
        2 => drop(guest::publish(&store, domid, "c5,c9".parse().unwrap(), |_| ())),
        3 => drop(guest::unpublish(&store, domid, "c5,c9".parse().unwrap(), Some("c1,c2"))),
        4 => drop(store.permissions("/local/domain/7")),
        5 => drop(store.directory("/local/domain")),
        _ => {
            let mut watch = store.watch("/local/domain").unwrap();
            while watch.next_change().is_ok() {}
        }
    }
}

/// Where it listens. A connection is there as soon as the kernel queues it, so that all of this is one thread.
fn daemon() -> &'static (UnixListener, PathBuf) {
    static DAEMON: OnceLock<(UnixListener, PathBuf)> = OnceLock::new();
    DAEMON.get_or_init(|| {
        let path = std::env::temp_dir().join(format!("svirt-fuzz.{}", std::process::id()));
        _ = std::fs::remove_file(&path);
        (UnixListener::bind(&path).unwrap(), path)
    })
}

fn replies(mut rest: &[u8]) -> Vec<u8> {
    let (mut messages, mut transaction) = (Vec::new(), 0_u32);
    for id in 1_u32.. {
        let [kind, length, ref after @ ..] = *rest else { break };
        let (value, next) = after.split_at(after.len().min(length.into()));
        for field in [kind.into(), id, transaction, u32::try_from(value.len()).unwrap()] {
            messages.extend_from_slice(&field.to_ne_bytes());
        }
        messages.extend_from_slice(value);
        if kind == TRANSACTION_START {
            let number = str::from_utf8(value).unwrap_or_default().trim_end_matches('\0');
            transaction = number.parse().unwrap_or_default();
        }
        rest = next;
    }
    messages
}
