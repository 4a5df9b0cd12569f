//! The bytes of xenstored's protocol, as xen's `public/io/xs_wire.h` and `docs/misc/xenstore.txt` define them.
//! Nothing here does I/O; every reply is hostile until it has been parsed.

use std::io::{self, ErrorKind};

use nix::errno::Errno;

const HEADER: usize = 16;
pub(super) const WATCH_EVENT: u32 = 15;
pub(super) const ERROR: u32 = 16;
/// `XENSTORE_PAYLOAD_MAX`: xenstored drops the connection of a client that exceeds it.
const PAYLOAD_MAX: usize = 4096;
/// `XENSTORE_ABS_PATH_MAX`.
const PATH_MAX: usize = 3072;
/// Past `XENSTORE_PAYLOAD_MAX` on purpose: oxenstored answers a large `XS_DIRECTORY` in one oversized reply.
pub(super) const REPLY_MAX: usize = 1 << 20;

/// The request types in use, by their number on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Operation {
    Directory = 1,
    Read = 2,
    GetPerms = 3,
    Watch = 4,
    TransactionStart = 6,
    TransactionEnd = 7,
    Write = 11,
    Rm = 13,
    SetPerms = 14,
    DirectoryPart = 22,
}

/// One request, checked: its payload can be sent as it is.
#[derive(Debug)]
pub(super) struct Request {
    operation: Operation,
    payload: Vec<u8>,
}

impl Request {
    /// `argument` is whatever follows the path and its NUL.
    pub(super) fn new(operation: Operation, path: &str, argument: &[u8]) -> io::Result<Self> {
        let payload = [path.as_bytes(), &[0], argument].concat();
        let request = Self { operation, payload };
        let why = if path.contains('\0') {
            "the path contains a NUL"
        } else if path.len() > PATH_MAX {
            "the path is longer than 3072 bytes"
        } else if request.payload.len() > PAYLOAD_MAX {
            "the request is longer than 4096 bytes"
        } else {
            return Ok(request);
        };
        Err(request.failure(ErrorKind::InvalidInput, why))
    }

    /// Appends the message; `id` and `transaction` come back in its reply.
    pub(super) fn encode(&self, id: u32, transaction: u32, output: &mut Vec<u8>) {
        // The payload is at most 4096 bytes: `new` is the only way to make one.
        let length = u32::try_from(self.payload.len()).unwrap_or(u32::MAX);
        for field in [self.operation as u32, id, transaction, length] {
            output.extend_from_slice(&field.to_ne_bytes());
        }
        output.extend_from_slice(&self.payload);
    }

    /// The reply at the head of `input` and the bytes it takes there, or `None` while it is incomplete.
    /// The outer error means the stream can no longer be trusted, the inner one that xenstored refused.
    pub(super) fn decode(&self, id: u32, transaction: u32, input: &[u8]) -> io::Result<Option<(Answer, usize)>> {
        let Some((header, _)) = input.split_first_chunk::<HEADER>() else {
            return Ok(None);
        };
        let [kind, reply_id, reply_transaction, _] = fields(header);
        if (reply_id, reply_transaction) != (id, transaction) {
            return Err(garbled(format!(
                "xenstored answered request {reply_id} of transaction {reply_transaction}, not {id} of {transaction}"
            )));
        }
        if kind != self.operation as u32 && kind != ERROR {
            return Err(garbled(format!("xenstored sent a reply of type {kind}, not {}", self.operation as u32)));
        }
        let Some((_, payload, length)) = message(input)? else {
            return Ok(None);
        };
        let answer = if kind == ERROR { Err(self.refusal(payload)) } else { Ok(payload.to_vec()) };
        Ok(Some((answer, length)))
    }

    /// `cannot read /local/domain/7/name: why`.
    pub(super) fn failure(&self, kind: ErrorKind, why: impl std::fmt::Display) -> io::Error {
        let path = self.payload.split(|byte| *byte == 0).next().unwrap_or_default();
        let path = path.escape_ascii();
        let action = match self.operation {
            Operation::Directory | Operation::DirectoryPart => format!("list {path}"),
            Operation::Read => format!("read {path}"),
            Operation::Watch => format!("watch {path}"),
            Operation::Write => format!("write {path}"),
            Operation::Rm => format!("remove {path}"),
            Operation::GetPerms => format!("read the permissions of {path}"),
            Operation::SetPerms => format!("set the permissions of {path}"),
            Operation::TransactionStart => "start a transaction".to_owned(),
            Operation::TransactionEnd => "end the transaction".to_owned(),
        };
        io::Error::new(kind, format!("cannot {action}: {why}"))
    }

    pub(super) fn refusal(&self, payload: &[u8]) -> io::Error {
        let name = payload.strip_suffix(&[0]).unwrap_or(payload);
        // The names of xs_wire.h; xenstored sends no number.
        let errno = match name {
            b"EINVAL" => Errno::EINVAL,
            b"EACCES" => Errno::EACCES,
            b"EEXIST" => Errno::EEXIST,
            b"EISDIR" => Errno::EISDIR,
            b"ENOENT" => Errno::ENOENT,
            b"ENOMEM" => Errno::ENOMEM,
            b"ENOSPC" => Errno::ENOSPC,
            b"EIO" => Errno::EIO,
            b"ENOTEMPTY" => Errno::ENOTEMPTY,
            b"ENOSYS" => Errno::ENOSYS,
            b"EROFS" => Errno::EROFS,
            b"EBUSY" => Errno::EBUSY,
            b"EAGAIN" => Errno::EAGAIN,
            b"EISCONN" => Errno::EISCONN,
            b"E2BIG" => Errno::E2BIG,
            other => return self.failure(ErrorKind::Other, other.escape_ascii()),
        };
        self.failure(io::Error::from(errno).kind(), errno.desc())
    }
}

/// What xenstored made of one request: the reply's payload, or its refusal.
pub(super) type Answer = io::Result<Vec<u8>>;

fn fields(header: &[u8; HEADER]) -> [u32; 4] {
    let mut words = header.as_chunks::<4>().0.iter().map(|word| u32::from_ne_bytes(*word));
    std::array::from_fn(|_| words.next().unwrap_or_default())
}

/// The message at the head of `input`, by its type and payload, and the bytes it takes there; `None` while it is
/// incomplete.
pub(super) fn message(input: &[u8]) -> io::Result<Option<(u32, &[u8], usize)>> {
    let Some((header, rest)) = input.split_first_chunk::<HEADER>() else {
        return Ok(None);
    };
    let [kind, _, _, length] = fields(header);
    let length = usize::try_from(length).ok().filter(|length| *length <= REPLY_MAX);
    let length = length.ok_or_else(|| garbled("xenstored sent an absurdly long reply"))?;
    Ok(rest.get(..length).map(|payload| (kind, payload, HEADER + length)))
}

/// Splits a list of strings, each with a NUL behind it.
pub(super) fn strings(payload: &[u8]) -> io::Result<Vec<Box<str>>> {
    if payload.is_empty() {
        return Ok(Vec::new());
    }
    let list = payload.strip_suffix(&[0]).ok_or_else(|| garbled("xenstored sent a list without its last NUL"))?;
    list.split(|byte| *byte == 0)
        .map(|string| match str::from_utf8(string) {
            Ok("") => Err(garbled("xenstored sent a list with an empty name")),
            Ok(string) => Ok(string.into()),
            Err(_) => Err(garbled("xenstored sent a name that is not UTF-8")),
        })
        .collect()
}

/// Splits a reply to `XS_DIRECTORY_PART` into the directory's generation and the names.
pub(super) fn part(payload: &[u8]) -> io::Result<(&[u8], &[u8])> {
    let end = payload.iter().position(|byte| *byte == 0);
    end.and_then(|end| Some((payload.get(..end)?, payload.get(end + 1..)?)))
        .filter(|(_, names)| !names.is_empty())
        .ok_or_else(|| garbled("xenstored sent a part of a list without its generation or names"))
}

pub(super) fn garbled(why: impl Into<String>) -> io::Error {
    io::Error::new(ErrorKind::InvalidData, why.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn request() -> impl Strategy<Value = Request> {
        use Operation::*;
        let operation = prop::sample::select(vec![Directory, Read, GetPerms, Write, SetPerms, DirectoryPart]);
        let argument = prop::collection::vec(any::<u8>(), 0..1000);
        (operation, "[^\0]{0,700}", argument)
            .prop_map(|(operation, path, argument)| Request::new(operation, &path, &argument).unwrap())
    }

    fn framed(header: [u32; 4], payload: &[u8]) -> Vec<u8> {
        [header.map(u32::to_ne_bytes).as_flattened(), payload].concat()
    }

    #[test]
    fn a_request_may_be_as_long_as_the_protocol_allows() {
        let path = |length| "p".repeat(length);
        assert!(Request::new(Operation::Write, &path(3072), &[0; 1023]).is_ok());
        assert!(Request::new(Operation::Write, &path(3072), &[0; 1024]).is_err());
        assert!(Request::new(Operation::Read, &path(3073), &[]).is_err());
    }

    #[test]
    fn an_error_has_the_kind_of_its_errno() {
        let request = Request::new(Operation::Read, "/a", &[]).unwrap();
        let kind = |name: &[u8]| request.refusal(name).kind();
        assert_eq!(kind(b"ENOENT\0"), ErrorKind::NotFound);
        assert_eq!(kind(b"EACCES\0"), ErrorKind::PermissionDenied);
        assert_eq!(kind(b"EAGAIN\0"), ErrorKind::WouldBlock);
        assert_eq!(kind(b"E2BIG\0"), ErrorKind::ArgumentListTooLong);
        assert_eq!(kind(b"ENOSYS\0"), ErrorKind::Unsupported);
        assert_eq!(kind(b"ENOSPC\0"), ErrorKind::StorageFull);
        assert_eq!(kind(b"EQUOTA\0"), ErrorKind::Other);
    }

    proptest! {
        #[test]
        fn a_reply_is_taken_whole_and_nothing_after_it(
            request in request(), id: u32, transaction: u32, payload: Vec<u8>, after: Vec<u8>
        ) {
            let length = u32::try_from(payload.len()).unwrap();
            let message = framed([request.operation as u32, id, transaction, length], &payload);
            for end in 0..message.len() {
                prop_assert!(request.decode(id, transaction, message.get(..end).unwrap()).unwrap().is_none());
            }
            let input = [&message[..], &after].concat();
            let (answer, taken) = request.decode(id, transaction, &input).unwrap().unwrap();
            prop_assert_eq!(answer.unwrap(), payload);
            prop_assert_eq!(taken, message.len());
        }

        #[test]
        fn a_message_says_how_long_it_is(request in request(), id: u32, transaction: u32) {
            let mut output = Vec::new();
            request.encode(id, transaction, &mut output);
            let length = u32::try_from(request.payload.len()).unwrap();
            prop_assert_eq!(output, framed([request.operation as u32, id, transaction, length], &request.payload));
        }

        #[test]
        fn no_reply_is_a_panic(request in request(), header: [u32; 4], kind in 0_u32..32, payload: Vec<u8>) {
            let [_, id, transaction, length] = header;
            for length in [length, length % 64] {
                let _ = request.decode(id, transaction, &framed([kind, id, transaction, length], &payload));
            }
            let _ = (request.refusal(&payload).to_string(), strings(&payload), part(&payload));
        }

        #[test]
        fn strings_come_apart_as_they_were_joined(names in prop::collection::vec("[^\0]{1,9}", 0..9)) {
            let list: String = names.iter().flat_map(|name| [name.as_str(), "\0"]).collect();
            let split = strings(list.as_bytes()).unwrap();
            prop_assert!(split.iter().map(|name| &**name).eq(names.iter().map(String::as_str)));
        }
    }
}
