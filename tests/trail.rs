//! What a launch leaves in syslog and in the kernel's audit.

#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing)]

mod common {
    pub(crate) mod host;
    pub(crate) mod xenstored;
}

use std::io::ErrorKind;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

use common::host::{Host, cdrom, qdisk};
use xenstore_rs::Xs as _;

const UUID: &str = "5a3a2c8e-6d1b-4f0e-9c7d-0123456789ab";

/// A socket of the host's: `log` or `audit`.
struct Listener(UnixDatagram);

impl Listener {
    fn at(host: &Host, name: &str) -> Self {
        let socket = UnixDatagram::bind(host.path(name)).unwrap();
        socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        Self(socket)
    }

    /// All datagrams that came until now; the wrapper sends them before QEMU runs.
    fn received(&self) -> Vec<Vec<u8>> {
        let mut all = Vec::new();
        loop {
            let mut datagram = vec![0; 1 << 17];
            match self.0.recv(&mut datagram) {
                Ok(length) => all.push(datagram[..length].to_vec()),
                Err(error) if error.kind() == ErrorKind::WouldBlock => return all,
                Err(error) => panic!("{error}"),
            }
        }
    }

    fn lines(&self) -> Vec<String> {
        self.received().into_iter().map(|line| String::from_utf8(line).unwrap()).collect()
    }

    /// The netlink messages: type and text.
    fn records(&self) -> Vec<(u16, String)> {
        let mut records = Vec::new();
        for datagram in self.received() {
            let mut rest = &datagram[..];
            while !rest.is_empty() {
                let length = usize::try_from(u32::from_ne_bytes(rest[..4].try_into().unwrap())).unwrap();
                let kind = u16::from_ne_bytes(rest[4..6].try_into().unwrap());
                assert_eq!(rest[6..16], [1, 0, 0, 0, 0, 0, 0, 0, 0, 0], "NLM_F_REQUEST, and no answer is asked for");
                let text = rest[16..length].strip_suffix(b"\0").expect("the text ends with a zero");
                records.push((kind, String::from_utf8(text.to_vec()).unwrap()));
                rest = &rest[length.next_multiple_of(4)..];
            }
        }
        records
    }
}

/// How libaudit ends a record of this program's.
fn end(result: &str) -> String {
    let exe = env!("CARGO_BIN_EXE_svirt-interpose");
    format!(" exe=\"{exe}\" hostname=? addr=? terminal=? res={result}")
}

#[test]
fn tells_syslog_of_every_launch_in_one_line() {
    let host = Host::new();
    let log = Listener::at(&host, "log");
    host.domain(7, UUID, &[qdisk(768, &host.image("a.raw"))]);
    host.store().write("/local/domain/7/name", "x\nforged: line\u{1b}[2J").unwrap();
    let _qemu = host.launch(7).unwrap();
    let pair = host.key(7).unwrap();
    let [line] = &log.lines()[..] else { panic!() };
    assert!(line.starts_with("<38>"), "auth facility, info: {line}");
    let told = format!(
        ": launch result=confined domid=7 vm=\"{UUID}\" name=\"x\\nforged: line\\u{{1b}}[2J\" set={pair} objects=1 \
         context=system_u:system_r:svirt_xen_t:s0:{pair} status=0 cause=?"
    );
    assert!(line.ends_with(&told), "{line}");
    assert!(!line.chars().any(char::is_control), "{line:?}");

    host.domain(8, "rival \" set=c0,c1", &[qdisk(768, &host.path("images/a.raw"))]);
    let refusal = host.refuse(&["-xen-domid", "8"]);
    let [line] = &log.lines()[..] else { panic!() };
    assert!(line.starts_with("<35>"), "auth facility, err: {line}");
    let cause = refusal.said.trim_end().strip_prefix("svirt-interpose: ").unwrap();
    let told = format!(
        ": launch result=refused domid=8 vm=\"rival \\\" set=c0,c1\" name=\"h8\" set=? objects=? context=? status=125 \
         cause={cause:?}"
    );
    assert!(line.ends_with(&told), "{line}");

    host.refuse(&["-xen-domid", "9x"]);
    let [line] = &log.lines()[..] else { panic!() };
    assert!(line.contains(": launch result=refused domid=? vm=? name=? set=? objects=? context=? status=125 cause=\""));

    host.set("mode", "permissive");
    let _qemu = host.launch(8).unwrap();
    let lines = log.lines();
    assert!(lines.last().unwrap().contains(": launch result=confined domid=8 "), "{lines:?}");
    host.domain(10, "", &[]);
    let _qemu = host.launch(10).unwrap();
    let [line] = &log.lines()[..] else { panic!() };
    assert!(line.starts_with("<36>"), "auth facility, warning: {line}");
    assert!(
        line.contains(": launch result=unconfined domid=10 vm=? name=? set=? objects=? context=? status=0 cause=\"")
    );
}

#[test]
fn a_probe_is_told_to_nobody() {
    let host = Host::new();
    let (log, audit) = (Listener::at(&host, "log"), Listener::at(&host, "audit"));
    let _qemu = host.start(&["-help"]).outcome().unwrap();
    assert!(log.received().is_empty() && audit.received().is_empty());
}

#[test]
fn gives_the_kernels_audit_what_virtualisation_tools_read() {
    let host = Host::new();
    let audit = Listener::at(&host, "audit");
    let (disk, cd) = (host.image("a b.raw"), host.image("cd.iso"));
    host.domain(7, UUID, &[qdisk(768, &disk), cdrom(5632, &cd), cdrom(5696, "".as_ref())]);
    let qemu = host.launch(7).unwrap();

    let vm = format!("vm=\"h7\" uuid={UUID}");
    let pair = host.key(7).unwrap();
    let hex: String = disk.to_str().unwrap().bytes().fold(String::new(), |hex, byte| hex + &format!("{byte:02X}"));
    let [label, first, second, start] = &audit.records()[..] else { panic!() };
    let contexts =
        format!("vm-ctx=system_u:system_r:svirt_xen_t:s0:{pair} img-ctx=system_u:object_r:svirt_xen_image_t:s0:{pair}");
    assert_eq!(*label, (2502, format!("virt=xen {vm} {contexts} model=selinux{}", end("success"))));
    let disk = |new| (2501, format!("virt=xen resrc=disk reason=start {vm} old-disk=\"?\" {new}{}", end("success")));
    assert_eq!(*first, disk(format!("new-disk={hex}")));
    assert_eq!(*second, disk(format!("new-disk=\"{}\"", cd.display())));
    let pid = qemu.pid();
    assert_eq!(*start, (2500, format!("virt=xen op=start reason=booted {vm} vm-pid={pid}{}", end("success"))));
}

#[test]
fn the_kernels_audit_hears_of_a_refused_guest_and_no_more() {
    let host = Host::new();
    let audit = Listener::at(&host, "audit");
    let disk = host.image("a.raw");
    host.domain(7, UUID, &[qdisk(768, &disk)]);
    let _first = host.launch(7).unwrap();
    audit.records();
    host.domain(8, "it's res=success", &[qdisk(768, &disk)]);
    host.store().write("/local/domain/8/name", "it's res=success").unwrap();
    host.refuse(&["-xen-domid", "8"]);
    let [(2500, text)] = &audit.records()[..] else { panic!() };
    let vm = "vm=69742773207265733D73756363657373";
    assert!(text.starts_with(&format!("virt=xen op=start reason=booted {vm} uuid=? vm-pid=")), "{text}");
    assert!(text.ends_with(&end("failed")), "{text}");
}

#[test]
fn a_guest_that_runs_unconfined_is_recorded_without_a_label() {
    let host = Host::new();
    let audit = Listener::at(&host, "audit");
    host.set("mode", "permissive");
    host.set("current", "system_u:system_r:svirt_interpose_t:s0-s0:c0.c1");
    for domid in [7, 8] {
        host.domain(domid, &format!("vm{domid}"), &[]);
    }
    let _first = host.launch(7).unwrap();
    audit.records();
    let _unconfined = host.launch(8).unwrap();
    let records = audit.records();
    assert!(matches!(&records[..], [(2500, text)] if text.ends_with(&end("success"))), "{records:?}");
}

#[test]
fn the_records_of_many_disks_all_arrive() {
    let host = Host::new();
    let audit = Listener::at(&host, "audit");
    let disks: Vec<_> = (0..200u32)
        .map(|number| qdisk(51712 + number * 16, &host.image(&format!("{}{number:03}.raw", "x ".repeat(100)))))
        .collect();
    host.domain(7, UUID, &disks);
    let _qemu = host.launch(7).unwrap();
    let records = audit.records();
    assert_eq!(records.iter().filter(|(kind, _)| *kind == 2501).count(), 200);
    assert!(matches!(records.last(), Some((2500, _))));
}

#[test]
fn a_kernel_that_takes_no_records_changes_nothing() {
    let host = Host::new();
    host.domain(7, UUID, &[qdisk(768, &host.image("a.raw"))]);
    drop(Listener::at(&host, "audit"));
    assert!(host.path("audit").exists(), "sending fails");
    let qemu = host.launch(7).unwrap();
    assert_eq!(qemu.said(), "");
    let pair = host.key(7).unwrap();
    assert_eq!(qemu.exec_context(&host).unwrap(), format!("system_u:system_r:svirt_xen_t:s0:{pair}"));
}
