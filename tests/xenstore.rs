//! The client against both real daemons, and against servers that misbehave.

#![allow(missing_docs, clippy::unwrap_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod xenstored;
}

use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use common::xenstored::{Daemon, Directory, Xenstored, message};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use svirt_interpose::xenstore::{Access, Connection, Look, PATIENCE, Permissions, Seen};
use xenstore_rs::{Xs, XsTransaction, XsTransactionSpan};

/// What a test of time limits can afford.
const SHORT: Duration = Duration::from_millis(200);

const DIRECTORY: u32 = 1;
const READ: u32 = 2;
const TRANSACTION_START: u32 = 6;
const TRANSACTION_END: u32 = 7;
const WATCH_EVENT: u32 = 15;
const ERROR: u32 = 16;
const DIRECTORY_PART: u32 = 22;

/// What follows `-- stdout --` in a failure's output says which of them it was.
fn with_both_daemons(test: impl Fn(&Xenstored)) {
    for daemon in [Daemon::C, Daemon::OCaml] {
        println!("{daemon:?}");
        test(&Xenstored::start(daemon));
    }
}

fn kind<T: std::fmt::Debug>(result: io::Result<T>) -> ErrorKind {
    result.unwrap_err().kind()
}

fn signal(xenstored: &Xenstored, signal: Signal) {
    kill(Pid::from_raw(xenstored.pid().try_into().unwrap()), signal).unwrap();
}

// Requests

#[test]
fn nodes_are_written_listed_read_and_removed() {
    with_both_daemons(|xenstored| {
        let store = xenstored.connect();
        store.write("/tool/x/a", "1").unwrap();
        store.write("/tool/x/b", "").unwrap();
        let mut names = store.directory("/tool/x").unwrap();
        names.sort();
        assert_eq!(names, ["a".into(), "b".into()]);
        assert_eq!(&*store.read("/tool/x/a").unwrap(), "1");
        assert_eq!(&*store.read("/tool/x/b").unwrap(), "");
        assert!(store.directory("/tool/x/a").unwrap().is_empty());
        store.rm("/tool/x/a").unwrap();
        assert_eq!(store.directory("/tool/x").unwrap(), ["b".into()]);
    });
}

#[test]
fn a_missing_node_is_not_found_and_the_error_names_it() {
    with_both_daemons(|xenstored| {
        let store = xenstored.connect();
        let error = store.read("/tool/none").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::NotFound);
        assert_eq!(error.to_string(), "cannot read /tool/none: No such file or directory");
        assert_eq!(kind(store.directory("/tool/none")), ErrorKind::NotFound);
        assert_eq!(kind(store.permissions("/tool/none")), ErrorKind::NotFound);
        assert_eq!(kind(store.rm("/none/none")), ErrorKind::NotFound);
        assert_eq!(kind(store.read("no path")), ErrorKind::InvalidInput);
        store.read("/").unwrap();
    });
}

#[test]
fn a_value_that_is_not_utf8_can_be_read_as_bytes() {
    let (_directory, socket) = server(|mut client| {
        while let Some([kind, id, ..]) = request(&mut client) {
            reply(&mut client, [kind, id, 0], b"/dev/\xff");
        }
    });
    let store = Connection::connect(&socket, PATIENCE).unwrap();
    assert_eq!(store.read_bytes("/a").unwrap(), b"/dev/\xff");
    assert_eq!(kind(store.read("/a")), ErrorKind::InvalidData);
    assert_eq!(store.read_bytes("/a").unwrap(), b"/dev/\xff");
}

#[test]
fn what_cannot_be_sent_is_refused_and_the_connection_stays() {
    with_both_daemons(|xenstored| {
        let store = xenstored.connect();
        store.write("/tool/x", "1").unwrap();
        assert_eq!(kind(store.write("/tool/x\0/y", "2")), ErrorKind::InvalidInput);
        assert_eq!(kind(store.read(&"/a".repeat(1537))), ErrorKind::InvalidInput);
        assert_eq!(kind(store.write("/tool/x", &"v".repeat(4089))), ErrorKind::InvalidInput);
        assert_eq!(kind(store.read_all(["/tool/x", "/tool/x\0"])), ErrorKind::InvalidInput);
        assert_eq!(&*store.read("/tool/x").unwrap(), "1");
        // oxenstored has a quota on values, for dom0 too.
        store.write("/tool/x", &"v".repeat(2000)).unwrap();
        assert_eq!(store.read("/tool/x").unwrap().len(), 2000);
    });
}

#[test]
fn two_thousand_domains_are_listed_and_read() {
    with_both_daemons(|xenstored| {
        let store = xenstored.connect();
        // Five digits: C xenstored refuses to list more than 682 such names at once.
        let domids: Vec<String> = (10_001..=12_000).map(|domid| domid.to_string()).collect();
        for domid in &domids {
            store.write(&format!("/local/domain/{domid}"), "").unwrap();
            if !domid.ends_with('7') {
                store.write(&format!("/local/domain/{domid}/selinux-mcs"), &format!("c1,c{domid}")).unwrap();
            }
        }

        let mut listed = store.directory("/local/domain").unwrap();
        listed.retain(|domid| &**domid != "0");
        listed.sort();
        assert!(listed.iter().map(|domid| &**domid).eq(domids.iter()), "{} domains", listed.len());

        let answers = store.read_all(domids.iter().map(|domid| format!("/local/domain/{domid}/selinux-mcs"))).unwrap();
        assert_eq!(answers.len(), domids.len());
        for (domid, answer) in domids.iter().zip(answers) {
            if domid.ends_with('7') {
                assert_eq!(kind(answer), ErrorKind::NotFound, "{domid}");
            } else {
                assert_eq!(answer.unwrap(), format!("c1,c{domid}").as_bytes());
            }
        }

        let directories = ["/local/domain", "/none", "/local/domain/10001"].map(Into::into).into();
        let permissions = vec!["/local/domain/10001".into(), "/none".into()];
        let look =
            Look { permissions, directories, values: vec!["/none".into(), "/local/domain/10001/selinux-mcs".into()] };
        let Seen { mut permissions, mut directories, mut values } = store.look(&look).unwrap();
        assert_eq!(kind(permissions.pop().unwrap()), ErrorKind::NotFound);
        assert!(permissions.pop().unwrap().is_ok());
        assert!(values.pop().unwrap().is_ok());
        assert_eq!(kind(values.pop().unwrap()), ErrorKind::NotFound);
        assert_eq!(*directories.pop().unwrap().unwrap(), ["selinux-mcs".into()]);
        assert_eq!(kind(directories.pop().unwrap()), ErrorKind::NotFound);
        assert!(directories.pop().unwrap().unwrap().len() >= 2000);
    });
}

#[test]
fn large_values_are_read_in_one_batch() {
    with_both_daemons(|xenstored| {
        let store = xenstored.connect();
        let value = "v".repeat(2000);
        store.write("/tool/x", &value).unwrap();
        // More than a socket holds in either direction, were it sent without reading.
        let answers = store.read_all(vec!["/tool/x"; 5000]).unwrap();
        assert_eq!(answers.len(), 5000);
        assert!(answers.into_iter().all(|answer| answer.unwrap() == value.as_bytes()));
    });
}

#[test]
fn what_was_asked_for_is_answered_later() {
    with_both_daemons(|xenstored| {
        let store = xenstored.connect();
        store.write("/tool/x", "1").unwrap();
        let look = || Look { values: vec!["/tool/x".into(); 200], ..Look::default() };
        let asked = store.begin_to_look(look()).unwrap();
        xenstored.connect().write("/tool/y", "2").unwrap();
        let values = asked.answers().unwrap().values;
        assert_eq!(values.len(), 200);
        assert!(values.into_iter().all(|value| value.unwrap() == b"1"));
        assert_eq!(&*store.read("/tool/y").unwrap(), "2");
        // answers that nobody waited for must not be taken for others
        drop(store.begin_to_look(look()).unwrap());
        assert_eq!(kind(store.read("/tool/y")), ErrorKind::NotConnected);
    });
}

// Transactions

/// The traits alone must do: other code knows no more of a connection.
fn publish<S: XsTransaction<Span: XsTransactionSpan>>(store: &S, before_commit: impl Fn()) -> io::Result<()> {
    let transaction = store.transaction()?;
    transaction.read("/local/domain/7")?;
    // oxenstored lets a write that has read nothing prevail over another's.
    let _ = transaction.read("/local/domain/7/selinux-mcs");
    transaction.write("/local/domain/7/selinux-mcs", "c1,c2")?;
    before_commit();
    transaction.commit()
}

#[test]
fn a_transaction_shows_its_changes_to_others_when_committed() {
    with_both_daemons(|xenstored| {
        xenstored.add_domain(7);
        let store = xenstored.connect();
        publish(&store, || assert_eq!(kind(store.read("/local/domain/7/selinux-mcs")), ErrorKind::NotFound)).unwrap();
        assert_eq!(&*store.read("/local/domain/7/selinux-mcs").unwrap(), "c1,c2");
    });
}

#[test]
fn a_conflicting_commit_would_block_and_changes_nothing() {
    with_both_daemons(|xenstored| {
        xenstored.add_domain(7);
        let (store, other) = (xenstored.connect(), xenstored.connect());
        let result = publish(&store, || other.write("/local/domain/7/selinux-mcs", "c3,c4").unwrap());
        assert_eq!(kind(result), ErrorKind::WouldBlock);
        assert_eq!(&*store.read("/local/domain/7/selinux-mcs").unwrap(), "c3,c4");
        publish(&store, || ()).unwrap();
        assert_eq!(&*store.read("/local/domain/7/selinux-mcs").unwrap(), "c1,c2");
    });
}

#[test]
fn a_domain_destroyed_meanwhile_is_not_brought_back() {
    with_both_daemons(|xenstored| {
        xenstored.add_domain(7);
        let (store, toolstack) = (xenstored.connect(), xenstored.connect());
        let result = publish(&store, || toolstack.rm("/local/domain/7").unwrap());
        assert_eq!(kind(result), ErrorKind::WouldBlock);
        assert_eq!(kind(store.read("/local/domain/7")), ErrorKind::NotFound);
        assert_eq!(kind(publish(&store, || ())), ErrorKind::NotFound);
        assert_eq!(kind(store.read("/local/domain/7")), ErrorKind::NotFound);
    });
}

#[test]
fn a_dropped_transaction_is_aborted() {
    with_both_daemons(|xenstored| {
        let store = xenstored.connect();
        store.write("/tool/x", "1").unwrap();
        let transaction = store.transaction().unwrap();
        transaction.write("/tool/x", "2").unwrap();
        assert_eq!(&*transaction.read("/tool/x").unwrap(), "2");
        drop(transaction);
        assert_eq!(&*store.read("/tool/x").unwrap(), "1");
    });
}

#[test]
fn a_dropped_transaction_is_ended_at_once() {
    let (sent, received) = mpsc::channel();
    let (_directory, socket) = server(move |mut client| {
        while let Some([kind, id, transaction, _]) = request(&mut client) {
            sent.send((kind, transaction)).unwrap();
            reply(&mut client, [kind, id, transaction], b"5\0");
        }
    });
    let store = Connection::connect(&socket, PATIENCE).unwrap();
    drop(store.transaction().unwrap());
    store.transaction().unwrap().commit().unwrap();
    drop(store);
    let ended = [(TRANSACTION_START, 0), (TRANSACTION_END, 5)];
    assert_eq!(received.iter().collect::<Vec<_>>(), [ended, ended].concat());
}

#[test]
fn everything_works_inside_a_transaction() {
    with_both_daemons(|xenstored| {
        let store = xenstored.connect();
        let transaction = store.transaction().unwrap();
        transaction.write("/tool/x/a", "1").unwrap();
        transaction.set_permissions("/tool/x/a", &Permissions::dom0_only()).unwrap();
        assert_eq!(transaction.permissions("/tool/x/a").unwrap(), Permissions::dom0_only());
        assert_eq!(transaction.directory("/tool/x").unwrap(), ["a".into()]);
        assert_eq!(transaction.read_all(["/tool/x/a"]).unwrap().remove(0).unwrap(), b"1");
        transaction.write("/tool/x/b", "2").unwrap();
        transaction.rm("/tool/x/b").unwrap();
        transaction.commit().unwrap();
        assert_eq!(store.directory("/tool/x").unwrap(), ["a".into()]);
        assert_eq!(store.permissions("/tool/x/a").unwrap(), Permissions::dom0_only());
    });
}

// Permissions

#[test]
fn permissions_come_back_as_they_were_set() {
    with_both_daemons(|xenstored| {
        let store = xenstored.connect();
        store.write("/tool/x", "").unwrap();
        let entries = vec![(3, Access::ReadWrite), (9, Access::None), (32_751, Access::Read)];
        for permissions in [
            Permissions::dom0_only(),
            Permissions { owner: 7, default: Access::Write, entries: Vec::new() },
            Permissions { owner: 0, default: Access::Read, entries },
        ] {
            store.set_permissions("/tool/x", &permissions).unwrap();
            assert_eq!(store.permissions("/tool/x").unwrap(), permissions);
        }
    });
}

#[test]
fn writable_by_says_what_xenstored_does() {
    const ACCESSES: [Access; 4] = [Access::None, Access::Read, Access::Write, Access::ReadWrite];
    with_both_daemons(|xenstored| {
        xenstored.add_domain(7);
        let (store, mut guest) = (xenstored.connect(), xenstored.guest(7));
        store.write("/tool/x", "").unwrap();
        let entries = ACCESSES.map(|access| vec![(7, access)]).into_iter().chain([
            vec![],
            vec![(8, Access::ReadWrite)],
            vec![(8, Access::ReadWrite), (7, Access::Read), (7, Access::ReadWrite)],
        ]);
        for entries in entries {
            for (owner, default) in [0, 7, 8].iter().flat_map(|owner| ACCESSES.map(|access| (*owner, access))) {
                let permissions = Permissions { owner, default, entries: entries.clone() };
                store.set_permissions("/tool/x", &permissions).unwrap();
                let written = guest.write("/tool/x", "guest");
                assert_eq!(written.is_ok(), permissions.writable_by(7), "{permissions:?}: {written:?}");
                assert!(permissions.writable_by(0));
            }
        }
    });
}

#[test]
fn a_guest_can_neither_read_nor_change_what_is_dom0s_only() {
    with_both_daemons(|xenstored| {
        xenstored.add_domain(7);
        let (store, mut guest) = (xenstored.connect(), xenstored.guest(7));
        let key = "/local/domain/7/selinux-mcs";
        assert!(!store.permissions("/local/domain/7").unwrap().writable_by(7));
        assert_eq!(guest.write(key, "c0,c1").unwrap_err(), "EACCES");
        store.write(key, "c1,c2").unwrap();
        assert_eq!(guest.read(key).unwrap(), "c1,c2");
        store.set_permissions(key, &Permissions::dom0_only()).unwrap();
        assert_eq!(guest.read(key).unwrap_err(), "EACCES");
        assert_eq!(guest.write(key, "c0,c1").unwrap_err(), "EACCES");
        assert_eq!(guest.set_permissions(key, "n7\0").unwrap_err(), "EACCES");
        assert_eq!(guest.rm("/local/domain/7").unwrap_err(), "EACCES");
        assert_eq!(&*store.read(key).unwrap(), "c1,c2");
    });
}

// Watches

#[test]
fn a_watch_tells_of_every_change_below_its_node() {
    with_both_daemons(|xenstored| {
        let store = xenstored.connect();
        store.write("/tool/x/a", "1").unwrap();
        let mut watch = xenstored.connect().watch("/tool/x").unwrap();
        assert_eq!(&*watch.next_change().unwrap(), "/tool/x", "the first comes at once");
        store.write("/tool/y", "").unwrap();
        store.write("/tool/x/a", "1").unwrap();
        assert_eq!(&*watch.next_change().unwrap(), "/tool/x/a");
        store.set_permissions("/tool/x/a", &store.permissions("/tool/x/a").unwrap()).unwrap();
        assert_eq!(&*watch.next_change().unwrap(), "/tool/x/a");
        store.rm("/tool/x/a").unwrap();
        assert_eq!(&*watch.next_change().unwrap(), "/tool/x/a");
        signal(xenstored, Signal::SIGKILL);
        assert_eq!(kind(watch.next_change()), ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_watch_that_is_refused_says_so() {
    with_both_daemons(|xenstored| {
        let error = xenstored.connect().watch("/tool/no name").unwrap().next_change().unwrap_err();
        assert!(error.to_string().starts_with("cannot watch /tool/no name: "), "{error}");
    });
}

// A daemon that stops, dies or misbehaves

#[test]
fn a_killed_daemon_ends_a_batch_with_an_error() {
    with_both_daemons(|xenstored| {
        let store = xenstored.connect();
        let answers = thread::scope(|scope| {
            scope.spawn(|| {
                thread::sleep(Duration::from_millis(20));
                signal(xenstored, Signal::SIGKILL);
            });
            store.read_all(vec!["/"; 100_000])
        });
        let error = answers.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionReset);
        assert_eq!(error.to_string(), "cannot read /: xenstored closed the connection");
        assert_eq!(kind(store.read("/")), ErrorKind::NotConnected);
    });
}

#[test]
fn a_stopped_daemon_is_waited_for_no_longer_than_allowed() {
    with_both_daemons(|xenstored| {
        let store = Connection::connect(&xenstored.socket(), SHORT).unwrap();
        let transaction = store.transaction().unwrap();
        signal(xenstored, Signal::SIGSTOP);
        let start = Instant::now();
        let error = transaction.read("/tool").unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut);
        assert_eq!(error.to_string(), "cannot read /tool: xenstored did not answer within 200ms");
        // Its answer may still come, and must not be taken for another request's.
        signal(xenstored, Signal::SIGCONT);
        assert_eq!(kind(store.read("/")), ErrorKind::NotConnected);
        drop(transaction);
        assert!(start.elapsed() < SHORT * 5, "{:?}", start.elapsed());
    });
}

#[test]
fn a_stopped_daemon_with_a_full_backlog_is_not_waited_for_either() {
    with_both_daemons(|xenstored| {
        signal(xenstored, Signal::SIGSTOP);
        let connect = || Connection::connect(&xenstored.socket(), SHORT);
        let waiting: Vec<Connection> = std::iter::from_fn(|| connect().ok()).take(1000).collect();
        let start = Instant::now();
        let error = connect().unwrap_err();
        assert_eq!(error.kind(), ErrorKind::TimedOut, "{} wait", waiting.len());
        assert!(start.elapsed() < SHORT * 5, "{:?}", start.elapsed());
    });
}

#[test]
fn a_server_that_trickles_does_not_stretch_the_time() {
    let (_directory, socket) = server(|mut client| {
        while client.write_all(&[0]).is_ok() {
            thread::sleep(SHORT / 10);
        }
    });
    let store = Connection::connect(&socket, SHORT).unwrap();
    let start = Instant::now();
    // Fifteen bytes are no header yet; the sixteenth comes too late.
    assert_eq!(kind(store.read("/")), ErrorKind::TimedOut);
    assert!(start.elapsed() < SHORT * 5, "{:?}", start.elapsed());
}

#[test]
fn a_torn_batch_names_the_first_request_without_an_answer() {
    let (_directory, socket) = server(|mut client| {
        for _ in 0..10 {
            let [kind, id, ..] = request(&mut client).unwrap();
            reply(&mut client, [kind, id, 0], b"v");
        }
        client.write_all(&message(READ, b"v")[..10]).unwrap();
    });
    let store = Connection::connect(&socket, PATIENCE).unwrap();
    let error = store.read_all((0..50).map(|number| format!("/{number}"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(error.to_string(), "cannot read /10: xenstored closed the connection");
}

#[test]
fn where_one_of_many_connections_is_lost_nothing_is_read() {
    let (_directory, socket) = listening(|listener| {
        let (mut first, second) = (listener.accept().unwrap().0, listener.accept().unwrap().0);
        drop(second);
        while let Some([kind, id, ..]) = request(&mut first) {
            reply(&mut first, [kind, id, 0], b"v");
        }
    });
    let store = Connection::connect(&socket, PATIENCE).unwrap();
    let error = store.read_all((0..100).map(|number| format!("/{number}"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::ConnectionReset);
    assert_eq!(error.to_string(), "cannot read /50: xenstored closed the connection");
    assert_eq!(kind(store.read("/")), ErrorKind::NotConnected);
}

#[test]
fn many_connections_have_one_limit_of_time() {
    let (_directory, socket) = listening(|listener| {
        let clients: Vec<UnixStream> = listener.incoming().map(Result::unwrap).take(8).collect();
        for mut client in clients {
            thread::sleep(SHORT / 2);
            for id in 1..=64 {
                _ = client.write_all(&framed([READ, id, 0, 1], b"v"));
            }
        }
    });
    let store = Connection::connect(&socket, SHORT).unwrap();
    let error = store.read_all((0..512).map(|number| format!("/{number}"))).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::TimedOut);
    assert!(error.to_string().ends_with("xenstored did not answer within 200ms"), "{error}");
}

#[test]
fn a_reply_in_pieces_is_a_reply() {
    let (_directory, socket) = server(|mut client| {
        let [kind, id, ..] = request(&mut client).unwrap();
        for word in [kind, id, 0, 5].map(u32::to_ne_bytes) {
            client.write_all(&word).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        for byte in b"value" {
            client.write_all(&[*byte]).unwrap();
            thread::sleep(Duration::from_millis(2));
        }
        let _ = request(&mut client);
    });
    assert_eq!(&*Connection::connect(&socket, PATIENCE).unwrap().read("/a").unwrap(), "value");
}

#[test]
fn a_reply_that_is_not_the_awaited_one_breaks_the_connection() {
    type Reply = fn(u32) -> Vec<u8>;
    let replies: [(&str, Reply); 7] = [
        ("another request's", |id| framed([READ, id + 1, 0, 1], b"v")),
        ("another transaction's", |id| framed([READ, id, 5, 1], b"v")),
        ("another type's", |id| framed([DIRECTORY, id, 0, 1], b"v")),
        ("a watch event", |_| framed([WATCH_EVENT, 0, 0, 4], b"a\0b\0")),
        ("an absurd length", |id| framed([READ, id, 0, u32::MAX], b"v")),
        ("an absurd error", |id| framed([ERROR, id, 0, 2 << 20], b"ENOENT\0")),
        ("two replies", |id| framed([READ, id, 0, 1], b"v").repeat(2)),
    ];
    for (name, bytes) in replies {
        let (_directory, socket) = server(move |mut client| {
            let [_, id, ..] = request(&mut client).unwrap();
            client.write_all(&bytes(id)).unwrap();
            let _ = request(&mut client);
        });
        let store = Connection::connect(&socket, PATIENCE).unwrap();
        assert_eq!(kind(store.read("/a")), ErrorKind::InvalidData, "{name}");
        assert_eq!(kind(store.read("/a")), ErrorKind::NotConnected, "{name}");
    }
}

#[test]
fn an_unknown_error_name_is_told_without_control_characters() {
    let (_directory, socket) = server(|mut client| {
        let [_, id, ..] = request(&mut client).unwrap();
        reply(&mut client, [ERROR, id, 0], b"E\x1b[2J\0");
    });
    let error = Connection::connect(&socket, PATIENCE).unwrap().read("/a").unwrap_err();
    assert_eq!(error.to_string(), r"cannot read /a: E\x1b[2J");
}

#[test]
fn a_malformed_list_is_invalid_data() {
    for list in [&b"a"[..], b"\0", b"a\0\0", b"\xff\0", b"a\0b"] {
        let (_directory, socket) = server(move |mut client| {
            while let Some([kind, id, ..]) = request(&mut client) {
                reply(&mut client, [kind, id, 0], list);
            }
        });
        let store = Connection::connect(&socket, PATIENCE).unwrap();
        assert_eq!(kind(store.directory("/a")), ErrorKind::InvalidData, "{list:?}");
        assert_eq!(kind(store.permissions("/a")), ErrorKind::InvalidData, "{list:?}");
    }
}

#[test]
fn a_listing_in_parts_starts_anew_when_the_directory_changes() {
    let parts = [&b"1\0aa\0bb\0"[..], b"2\0cc\0\0", b"2\0bb\0", b"2\0cc\0\0"];
    assert_eq!(list_in_parts(parts).unwrap(), ["bb".into(), "cc".into()]);
    let end = [&b"1\0aa\0bb\0"[..], b"1\0\0"];
    assert_eq!(list_in_parts(end).unwrap(), ["aa".into(), "bb".into()]);
    assert!(list_in_parts([&b"1\0\0"[..]]).unwrap().is_empty());
}

#[test]
fn a_listing_in_parts_comes_to_an_end() {
    let changing = (0..1000).map(|generation| format!("{generation}\0aa\0").into_bytes());
    assert_eq!(kind(list_in_parts(changing)), ErrorKind::ResourceBusy);
    assert_eq!(
        kind(list_in_parts(std::iter::repeat_n([&b"1\0"[..], &b"a\0".repeat(2000)].concat(), 400))),
        ErrorKind::InvalidData
    );
    for part in [&b""[..], b"1", b"1\0", b"\0"] {
        assert_eq!(kind(list_in_parts([part])), ErrorKind::InvalidData, "{part:?}");
    }
}

// Where xenstored is

#[test]
fn opens_what_the_environment_names() {
    let xenstored = Xenstored::start(Daemon::C);
    let socket = xenstored.socket();
    let directory = Directory::new();
    assert_eq!(opened(&[("XENSTORED_PATH", &socket)]), "");
    assert_eq!(opened(&[("XENSTORED_RUNDIR", socket.parent().unwrap())]), "");
    assert_eq!(opened(&[("XENSTORED_PATH", &socket), ("XENSTORED_RUNDIR", directory.path())]), "");

    let missing = directory.path().join("socket");
    let here = missing.display();
    let why = "No such file or directory (os error 2)";
    assert_eq!(opened(&[("XENSTORED_PATH", &missing)]), format!("cannot connect to xenstored at {here}: {why}"));
    // A host with a xenstored of its own has the device.
    if !Path::new("/dev/xen/xenbus").exists() {
        assert_eq!(
            opened(&[("XENSTORED_RUNDIR", directory.path())]),
            format!(
                "cannot connect to xenstored at {here}: {why}; cannot connect to xenstored at /proc/xen/xenbus: {why}"
            )
        );
    }

    std::fs::write(&missing, "").unwrap();
    let why = "neither a socket nor a character device";
    assert_eq!(opened(&[("XENSTORED_PATH", &missing)]), format!("cannot connect to xenstored at {here}: {why}"));

    std::fs::remove_file(&missing).unwrap();
    drop(UnixListener::bind(&missing).unwrap());
    let why = "Connection refused (os error 111)";
    assert_eq!(opened(&[("XENSTORED_PATH", &missing)]), format!("cannot connect to xenstored at {here}: {why}"));
}

#[test]
fn a_process_that_gained_rights_does_not_ask_the_environment() {
    let directory = Directory::new();
    // not in /tmp, which may be nosuid
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join("set-group-id");
    // by a process of its own: a child of another test may have what this one writes still open, and it would be busy
    let copied = Command::new("cp").arg(std::env::current_exe().unwrap()).arg(&program).status().unwrap();
    assert!(copied.success());
    std::os::unix::fs::chown(&program, None, Some(65534)).unwrap();
    let missing = directory.path().join("socket");
    for (mode, asked) in [(0o755, true), (0o2755, false)] {
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(mode)).unwrap();
        for (variable, value) in [("XENSTORED_PATH", missing.as_path()), ("XENSTORED_RUNDIR", directory.path())] {
            let said = opened_by(&program, &[(variable, value)]);
            assert_eq!(said.contains(missing.to_str().unwrap()), asked, "{mode:o} {variable}: {said}");
        }
    }
}

/// The error of `Connection::open` under an environment, in a process of its own.
fn opened(environment: &[(&str, &Path)]) -> String {
    opened_by(&std::env::current_exe().unwrap(), environment)
}

fn opened_by(program: &Path, environment: &[(&str, &Path)]) -> String {
    let output = Command::new(program)
        .args(["--ignored", "--exact", "open_and_tell", "--nocapture"])
        .env_remove("XENSTORED_PATH")
        .env_remove("XENSTORED_RUNDIR")
        .envs(environment.iter().copied())
        .output()
        .unwrap();
    assert!(output.status.success());
    String::from_utf8(output.stderr).unwrap().trim_end().to_owned()
}

#[test]
#[ignore = "the other half of opens_what_the_environment_names"]
fn open_and_tell() {
    if let Err(error) = Connection::open().and_then(|store| store.read("/")) {
        eprintln!("{error}");
    }
}

// Servers made for a test

/// Serves one client on a thread; the socket lives as long as the directory.
fn server(serve: impl FnOnce(UnixStream) + Send + 'static) -> (Directory, PathBuf) {
    listening(|listener| serve(listener.accept().unwrap().0))
}

fn listening(serve: impl FnOnce(UnixListener) + Send + 'static) -> (Directory, PathBuf) {
    let directory = Directory::new();
    let socket = directory.path().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    thread::spawn(move || serve(listener));
    (directory, socket)
}

/// The next request's header, or `None` when the client has gone.
fn request(client: &mut UnixStream) -> Option<[u32; 4]> {
    let mut header = [0; 16];
    client.read_exact(&mut header).ok()?;
    let fields: Vec<u32> = header.chunks(4).map(|word| u32::from_ne_bytes(word.try_into().unwrap())).collect();
    io::copy(&mut client.take(fields[3].into()), &mut io::sink()).ok()?;
    fields.try_into().ok()
}

fn reply(client: &mut UnixStream, [kind, id, transaction]: [u32; 3], payload: &[u8]) {
    client.write_all(&framed([kind, id, transaction, payload.len().try_into().unwrap()], payload)).unwrap();
}

fn framed(header: [u32; 4], payload: &[u8]) -> Vec<u8> {
    [header.map(u32::to_ne_bytes).as_flattened(), payload].concat()
}

/// Lists a directory that is too large for one reply, from a server that sends these parts.
fn list_in_parts<P: AsRef<[u8]>>(parts: impl IntoIterator<Item = P>) -> io::Result<Vec<Box<str>>> {
    let parts: Vec<Vec<u8>> = parts.into_iter().map(|part| part.as_ref().to_vec()).collect();
    let (_directory, socket) = server(|mut client| {
        let mut parts = parts.into_iter();
        while let Some([kind, id, ..]) = request(&mut client) {
            if kind == DIRECTORY_PART {
                reply(&mut client, [kind, id, 0], &parts.next().unwrap());
            } else {
                reply(&mut client, [ERROR, id, 0], b"E2BIG\0");
            }
        }
    });
    Connection::connect(&socket, PATIENCE)?.directory("/local/domain")
}
