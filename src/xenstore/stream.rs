//! One file descriptor to xenstored, and the time it may take.

use std::cell::Cell;
use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};

use super::wire::{self, Answer, Request, garbled};

/// Requests in flight on a socket: oxenstored stops reading from a client that sends thousands without reading, and a
/// window of 64 is as fast as one of 512.
const SOCKET_WINDOW: usize = 64;

/// And on the device: it loses what follows a message in one write(2), and sends a message's payload, some time after the
/// write, from the buffer that the next write fills (`xenbus_dev_request_and_reply` in Linux). With two in flight the
/// first would be asked with the path of the second.
const DEVICE_WINDOW: usize = 1;

#[derive(Debug)]
pub(super) struct Stream {
    path: PathBuf,
    file: File,
    window: usize,
    patience: Duration,
    /// Of the patience: one account for all that were opened [beside](Self::beside) each other.
    waited: Rc<Cell<Duration>>,
    next_request: u32,
    next_reply: u32,
    output: Vec<u8>,
    input: Vec<u8>,
    /// Where read(2) puts what comes: kept, as clearing one for each took a third of a launch's instructions.
    chunk: Vec<u8>,
    broken: bool,
}

impl Stream {
    pub(super) fn open(path: &Path, patience: Duration) -> io::Result<Self> {
        let kind = fs::metadata(path)?.file_type();
        let start = Instant::now();
        let (file, window) = if kind.is_socket() {
            (File::from(OwnedFd::from(connected(path, patience)?)), SOCKET_WINDOW)
        } else if kind.is_char_device() {
            let flags = OFlag::O_NONBLOCK.bits();
            (OpenOptions::new().read(true).write(true).custom_flags(flags).open(path)?, DEVICE_WINDOW)
        } else {
            return Err(io::Error::new(ErrorKind::InvalidInput, "neither a socket nor a character device"));
        };
        let waited = Rc::new(Cell::new(start.elapsed()));
        Ok(Self { path: path.into(), waited, ..Self::new(file, window, patience) })
    }

    fn new(file: File, window: usize, patience: Duration) -> Self {
        Self {
            path: PathBuf::new(),
            file,
            window,
            patience,
            waited: Rc::default(),
            next_request: 1,
            next_reply: 1,
            output: Vec::new(),
            input: Vec::new(),
            chunk: vec![0; 16384],
            broken: false,
        }
    }

    /// Another to the same socket, which has what is left of the patience; none to a device.
    pub(super) fn beside(&self) -> Option<Self> {
        if self.window == DEVICE_WINDOW {
            return None;
        }
        let other = Self::open(&self.path, self.left()).ok()?;
        self.waited.set(self.waited.get() + other.waited.get());
        Some(Self { patience: self.patience, waited: Rc::clone(&self.waited), ..other })
    }

    /// How many requests it may have in flight.
    pub(super) fn window(&self) -> usize {
        self.window
    }

    /// Sends the first of these requests, as many as may be in flight. An [`exchange`](Self::exchange) of them is then to
    /// come next.
    pub(super) fn begin(&mut self, transaction: u32, requests: &[Request]) -> io::Result<()> {
        self.encode(transaction, requests.get(..self.window).unwrap_or(requests));
        self.usable().and_then(|()| self.send()).map_err(|error| self.broke(requests.first(), error))
    }

    pub(super) fn exchange(&mut self, transaction: u32, requests: &[Request]) -> io::Result<Vec<Answer>> {
        let mut answers = Vec::with_capacity(requests.len());
        self.converse(transaction, requests, &mut answers)
            .map_err(|error| self.broke(requests.get(answers.len()), error))?;
        Ok(answers)
    }

    /// Every later request fails.
    pub(super) fn give_up(&mut self) {
        self.broken = true;
    }

    fn broke(&mut self, awaited: Option<&Request>, error: io::Error) -> io::Error {
        self.give_up();
        match awaited {
            Some(awaited) => awaited.failure(error.kind(), error),
            None => error,
        }
    }

    fn converse(&mut self, transaction: u32, requests: &[Request], answers: &mut Vec<Answer>) -> io::Result<()> {
        self.usable()?;
        while answers.len() < requests.len() {
            let end = requests.len().min(answers.len() + self.window);
            let sent = answers.len() + self.in_flight();
            self.encode(transaction, requests.get(sent..end).unwrap_or_default());
            self.send()?;
            self.wait_patiently()?;
            self.receive()?;
            let mut parsed = 0;
            for awaited in requests.get(answers.len()..end).unwrap_or_default() {
                let rest = self.input.get(parsed..).unwrap_or_default();
                let Some((answer, length)) = awaited.decode(self.next_reply, transaction, rest)? else { break };
                parsed += length;
                self.next_reply = self.next_reply.wrapping_add(1);
                answers.push(answer);
            }
            self.input.drain(..parsed);
            if self.in_flight() == 0 && !self.input.is_empty() {
                return Err(garbled("xenstored sent more than it was asked for"));
            }
        }
        Ok(())
    }

    fn usable(&self) -> io::Result<()> {
        if self.broken {
            return Err(io::Error::new(ErrorKind::NotConnected, "the connection to xenstored broke earlier"));
        }
        Ok(())
    }

    fn in_flight(&self) -> usize {
        self.next_request.wrapping_sub(self.next_reply) as usize
    }

    fn encode(&mut self, transaction: u32, requests: &[Request]) {
        for request in requests {
            request.encode(self.next_request, transaction, &mut self.output);
            self.next_request = self.next_request.wrapping_add(1);
        }
    }

    /// Sends a request whose reply is one of the [`messages`](Self::message) to come.
    pub(super) fn start(&mut self, request: &Request) -> io::Result<()> {
        request.encode(self.next_request, 0, &mut self.output);
        self.send()
    }

    /// The next message by its type and payload, however long it takes to come.
    pub(super) fn message(&mut self) -> io::Result<(u32, Vec<u8>)> {
        loop {
            if let Some((kind, payload, length)) = wire::message(&self.input)? {
                let message = (kind, payload.to_vec());
                self.input.drain(..length);
                return Ok(message);
            }
            self.send()?;
            self.wait(PollTimeout::NONE)?;
            self.receive()?;
        }
    }

    fn send(&mut self) -> io::Result<()> {
        while !self.output.is_empty() {
            match self.file.write(&self.output) {
                Ok(length) => drop(self.output.drain(..length)),
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(lost(error)),
            }
        }
        Ok(())
    }

    fn wait_patiently(&mut self) -> io::Result<()> {
        let left = self.left();
        let start = Instant::now();
        let ready = self.wait(PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX));
        self.waited.set(self.waited.get() + start.elapsed());
        ready
    }

    fn left(&self) -> Duration {
        self.patience.saturating_sub(self.waited.get())
    }

    fn wait(&self, timeout: PollTimeout) -> io::Result<()> {
        let mut events = PollFlags::POLLIN;
        // Never polled for on the device, which takes every write and never reports itself writable.
        events.set(PollFlags::POLLOUT, !self.output.is_empty());
        match poll(&mut [PollFd::new(self.file.as_fd(), events)], timeout) {
            Ok(0) => {
                let why = format!("xenstored did not answer within {:?}", self.patience);
                Err(io::Error::new(ErrorKind::TimedOut, why))
            }
            Ok(_) | Err(Errno::EINTR) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    fn receive(&mut self) -> io::Result<()> {
        match self.file.read(&mut self.chunk) {
            Ok(0) => Err(lost(ErrorKind::UnexpectedEof.into())),
            Ok(length) => {
                self.input.extend_from_slice(self.chunk.get(..length).unwrap_or_default());
                Ok(())
            }
            Err(error) if matches!(error.kind(), ErrorKind::Interrupted | ErrorKind::WouldBlock) => Ok(()),
            Err(error) => Err(lost(error)),
        }
    }
}

/// A stopped daemon's backlog is soon full, and connect(2) then waits for as long as a send may.
fn connected(path: &Path, patience: Duration) -> io::Result<UnixStream> {
    let socket = socket(AddressFamily::Unix, SockType::Stream, SockFlag::SOCK_CLOEXEC, None)?;
    let socket = UnixStream::from(socket);
    socket.set_write_timeout(Some(patience))?;
    let address = UnixAddr::new(path)?;
    loop {
        match connect(socket.as_raw_fd(), &address) {
            Ok(()) => break,
            Err(Errno::EINTR) => {}
            Err(Errno::EAGAIN) => {
                let why = format!("xenstored did not accept within {patience:?}");
                return Err(io::Error::new(ErrorKind::TimedOut, why));
            }
            Err(errno) => return Err(errno.into()),
        }
    }
    socket.set_nonblocking(true)?;
    Ok(socket)
}

fn lost(error: io::Error) -> io::Error {
    match error.kind() {
        ErrorKind::UnexpectedEof | ErrorKind::BrokenPipe | ErrorKind::ConnectionReset => {
            io::Error::new(ErrorKind::ConnectionReset, "xenstored closed the connection")
        }
        _ => error,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::os::unix::net::UnixDatagram;
    use std::thread;

    use super::*;
    use crate::xenstore::wire::Operation;

    /// The kernel's one buffer: a datagram is a write(2), its first message is taken and the rest of it lost, and what the
    /// buffer has when no more has come for a moment is the payload of every message that waits.
    #[test]
    fn what_the_device_is_asked_is_not_overwritten_by_the_next_request() {
        let (client, device) = UnixDatagram::pair().unwrap();
        client.set_nonblocking(true).unwrap();
        device.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
        thread::spawn(move || {
            let (mut waiting, mut message, mut buffer) = (Vec::new(), [0; 8192], [0; 8192]);
            loop {
                if device.recv(&mut message).is_ok() {
                    let (header, payload) = message.split_at(16);
                    let length = usize::try_from(u32::from_ne_bytes(header.last_chunk().copied().unwrap())).unwrap();
                    buffer.get_mut(..length).unwrap().copy_from_slice(payload.get(..length).unwrap());
                    waiting.push((header.to_vec(), length));
                } else {
                    for (header, length) in waiting.drain(..) {
                        device.send(&[&header, buffer.get(..length).unwrap()].concat()).unwrap();
                    }
                }
            }
        });
        let mut stream = Stream::new(File::from(OwnedFd::from(client)), DEVICE_WINDOW, Duration::from_secs(10));
        let paths: Vec<String> = (0..20).map(|number| format!("/{number}")).collect();
        let requests = paths.iter().map(|path| Request::new(Operation::Read, path, &[]).unwrap());
        let answers = stream.exchange(0, &requests.collect::<Vec<_>>()).unwrap();
        let answers: Vec<_> = answers.into_iter().map(|answer| String::from_utf8(answer.unwrap()).unwrap()).collect();
        assert_eq!(answers, paths.iter().map(|path| format!("{path}\0")).collect::<Vec<_>>());
    }

    #[test]
    fn a_connection_is_not_inherited() {
        let directory = std::env::temp_dir().join(format!("svirt-stream.{}", std::process::id()));
        let listener = std::os::unix::net::UnixListener::bind(&directory).unwrap();
        let stream = Stream::open(&directory, Duration::from_secs(10));
        fs::remove_file(&directory).unwrap();
        let flags = nix::fcntl::fcntl(&stream.unwrap().file, nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags, nix::fcntl::FdFlag::FD_CLOEXEC.bits());
        drop(listener);
    }
}
