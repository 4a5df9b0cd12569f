//! The kernel's audit: the records that virtualisation tools read, in the fields and encoding of libvirt
//! (`virDomainAuditStart` and `virDomainAuditSecurityLabel` in `src/conf/domain_audit.c`), so that auvirt(8) and
//! ausearch(8) show a Xen guest as they show a KVM one.

use std::env;
use std::fmt::Write as _;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, sendto, socket};

use crate::context::Context;
use crate::guest::Guest;

/// The types of the records, in linux/audit.h (1000 to 2999 are for programs) and libaudit.h.
const VIRT_CONTROL: u16 = 2500;
const VIRT_RESOURCE: u16 = 2501;
const VIRT_MACHINE_ID: u16 = 2502;

/// What the socket takes at once without a word: well below its buffer (`net.core.wmem_default`).
const DATAGRAM: usize = 64 << 10;

/// A record: its type, what it says, and whether that was done.
type Record = (u16, String, bool);

/// Records that the guest started: with which contexts, if it has its own, and with which disks.
pub fn started(guest: &Guest, contexts: Option<(&Context, &Context)>) {
    let vm = vm(guest);
    let label = contexts.map(|(domain, image)| {
        (VIRT_MACHINE_ID, format!("virt=xen {vm} vm-ctx={domain} img-ctx={image} model=selinux"), true)
    });
    let paths = guest.vbds.iter().filter_map(|vbd| vbd.paths.first());
    let disks = paths.map(|path| {
        let (old, new) = (value("old-disk", b"?"), value("new-disk", path.as_os_str().as_bytes()));
        (VIRT_RESOURCE, format!("virt=xen resrc=disk reason=start {vm} {old} {new}"), true)
    });
    send(label.into_iter().chain(disks).chain([start(&vm, true)]));
}

/// Records that the guest was not started.
pub fn refused(guest: &Guest) {
    send([start(&vm(guest), false)]);
}

fn start(vm: &str, success: bool) -> Record {
    (VIRT_CONTROL, format!("virt=xen op=start reason=booted {vm} vm-pid={}", std::process::id()), success)
}

fn vm(Guest { name, vm, .. }: &Guest) -> String {
    // no quotes: libvirt has a UUID here
    let plain = vm.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-');
    format!("{} uuid={}", value("vm", name.as_bytes()), if plain { vm } else { "?" })
}

/// A field as libaudit's `audit_encode_nv_string` writes it: in quotes, or in hexadecimal digits if the value could end
/// them. An apostrophe, which it leaves, would end the kernel's `msg='…'`.
fn value(key: &str, value: &[u8]) -> String {
    let plain = value.iter().all(|byte| byte.is_ascii_graphic() && !matches!(byte, b'"' | b'\''));
    let mut field = format!("{key}=");
    if plain {
        _ = write!(field, "\"{}\"", String::from_utf8_lossy(value));
    } else {
        for byte in value {
            _ = write!(field, "{byte:02X}");
        }
    }
    field
}

/// Sends records, if there is somebody to take them: no launch fails or waits because the kernel has no audit, or this
/// process may not write to it. What the kernel answers is not read.
fn send(records: impl IntoIterator<Item = Record>) {
    let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
    let Ok(socket) = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkAudit) else { return };
    let exe = env::current_exe().unwrap_or_else(|_| "?".into());
    let exe = value("exe", exe.as_os_str().as_bytes());
    // as few datagrams as can be: where its backlog is full, the kernel holds up the sender of each
    let mut datagrams = vec![Vec::new()];
    for record in records {
        let message = message(&record, &exe);
        match datagrams.last_mut() {
            Some(last) if last.len() + message.len() <= DATAGRAM => last.extend(message),
            _ => datagrams.push(message),
        }
    }
    for datagram in datagrams {
        _ = sendto(socket.as_raw_fd(), &datagram, &NetlinkAddr::new(0, 0), MsgFlags::empty());
    }
}

/// A netlink message, padded to its alignment (netlink(7)): the record as libaudit's `audit_log_user_message` ends it.
fn message((kind, text, success): &Record, exe: &str) -> Vec<u8> {
    const HEADER: usize = 16;
    const REQUEST: u16 = 1;
    let result = if *success { "success" } else { "failed" };
    let text = format!("{text} {exe} hostname=? addr=? terminal=? res={result}\0");
    let length = HEADER + text.len();
    let mut message = u32::try_from(length).unwrap_or_default().to_ne_bytes().to_vec();
    message.extend(kind.to_ne_bytes());
    message.extend(REQUEST.to_ne_bytes());
    message.resize(HEADER, 0); // no sequence number; the kernel knows who sends
    message.extend(text.as_bytes());
    message.resize(length.next_multiple_of(4), 0);
    message
}

#[cfg(test)]
mod tests {
    use super::value;

    #[test]
    fn writes_what_could_end_a_field_in_hexadecimal_digits() {
        for (text, field) in [
            ("h1", "vm=\"h1\""),
            ("a=b", "vm=\"a=b\""),
            ("", "vm=\"\""),
            ("a b", "vm=612062"),
            ("x\" res=success", "vm=7822207265733D73756363657373"),
            ("it's", "vm=69742773"),
            ("\n", "vm=0A"),
            ("é", "vm=C3A9"),
        ] {
            assert_eq!(value("vm", text.as_bytes()), field);
        }
    }
}
