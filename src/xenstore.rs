//! The client of xenstored: blocking, on one socket or device, every wait of it bounded.
//!
//! It carries the traits of `xenstore-rs` and adds what a launch cannot do without: transactions, directories of any
//! size, permissions, reads in batches, and a time limit.

mod parallel;
mod permissions;
mod stream;
mod wire;

use std::cell::RefCell;
use std::io::{self, ErrorKind};
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::time::Duration;

use xenstore_rs::{Xs, XsTransaction, XsTransactionSpan};

use crate::environment;
pub use permissions::{Access, Permissions};
use stream::Stream;
use wire::{Answer, Operation, Request};

/// How long [`Connection::open`] lets one connection wait for xenstored, all its requests together: well within the
/// 60 s that libxl gives a whole device model to start.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// How often a directory that changes while it is listed in parts is listed anew.
const RESTARTS: usize = 32;

/// A connection to xenstored.
///
/// All requests go through the [`Xs`] trait and the methods here. An error of xenstored's own has the [`ErrorKind`] of
/// its errno: `ENOENT` is `NotFound`, `EACCES` `PermissionDenied`, `EAGAIN` `WouldBlock`. After a lost connection
/// (`ConnectionReset`), an answer too late (`TimedOut`) or one to something else than was asked (`InvalidData`), no
/// reply can be told from another: every later request fails with `NotConnected`.
#[derive(Debug)]
pub struct Connection {
    stream: Rc<RefCell<Stream>>,
    transaction: u32,
}

/// The paths of what is asked for in one flight.
#[derive(Debug, Default)]
pub struct Look {
    /// Nodes whose permissions are asked for.
    pub permissions: Vec<String>,
    /// Nodes of which the names right below are asked for.
    pub directories: Vec<String>,
    /// Nodes whose values are asked for.
    pub values: Vec<String>,
}

/// The answers, in the order of the [paths](Look), each with an error of its own.
#[derive(Debug)]
pub struct Seen {
    /// Who may do what with each node.
    pub permissions: Vec<io::Result<Permissions>>,
    /// The names below each node.
    pub directories: Vec<io::Result<Vec<Box<str>>>>,
    /// The value of each node.
    pub values: Vec<io::Result<Vec<u8>>>,
}

impl Connection {
    /// Connects as libxenstore's `xs_open` does: to `$XENSTORED_PATH` alone if it is set; else to the socket in
    /// `$XENSTORED_RUNDIR`, by default `/run/xenstored/socket`; and where that fails, for whatever reason, to
    /// `/dev/xen/xenbus` (`/proc/xen/xenbus` on old kernels), which is the way to a xenstored outside this domain.
    ///
    /// Both variables are whoever's who started this process: where it has gained rights by that they are ignored. The
    /// device then leads to the host's xenstored, wherever its socket is.
    ///
    /// # Errors
    ///
    /// When none of them can be opened; the text names each one and its failure. A socket that does not accept within
    /// [`PATIENCE`] is `TimedOut`, without trying the device.
    pub fn open() -> io::Result<Self> {
        if let Some(path) = environment::var("XENSTORED_PATH") {
            return Self::connect(Path::new(&path), PATIENCE);
        }
        let rundir =
            environment::var("XENSTORED_RUNDIR").map_or_else(|| PathBuf::from("/run/xenstored"), PathBuf::from);
        Self::connect(&rundir.join("socket"), PATIENCE).or_else(|socket| {
            if socket.kind() == ErrorKind::TimedOut {
                return Err(socket);
            }
            let device = ["/dev/xen/xenbus", "/proc/xen/xenbus"].map(Path::new);
            let device = if device[0].exists() { device[0] } else { device[1] };
            Self::connect(device, PATIENCE).map_err(|error| io::Error::new(socket.kind(), format!("{socket}; {error}")))
        })
    }

    /// Connects to the socket or character device at `path`, and never waits longer than `patience` in all.
    ///
    /// # Errors
    ///
    /// When `path` is neither, or cannot be opened.
    pub fn connect(path: &Path, patience: Duration) -> io::Result<Self> {
        Stream::open(path, patience)
            .map(|stream| Self { stream: Rc::new(RefCell::new(stream)), transaction: 0 })
            .map_err(|error| {
                io::Error::new(error.kind(), format!("cannot connect to xenstored at {}: {error}", path.display()))
            })
    }

    /// Reads a node whose value need not be UTF-8: a disk's path, for one.
    ///
    /// # Errors
    ///
    /// As for any request: see [`Connection`].
    pub fn read_bytes(&self, path: &str) -> io::Result<Vec<u8>> {
        self.ask(Operation::Read, path, &[])
    }

    /// Reads many nodes at the price of a few: up to 64 requests are in flight on each of up to eight connections, in a
    /// transaction on one. The answers come in the order of `paths`, each with an error of its own.
    ///
    /// # Errors
    ///
    /// The outer error is the connection's, or that of a path that cannot be sent; then nothing was asked.
    pub fn read_all<P: Into<String>>(
        &self,
        paths: impl IntoIterator<Item = P>,
    ) -> io::Result<Vec<io::Result<Vec<u8>>>> {
        let values = paths.into_iter().map(Into::into).collect();
        Ok(self.look(&Look { values, ..Look::default() })?.values)
    }

    /// Asks for all of that as [`read_all`](Self::read_all) reads nodes.
    ///
    /// # Errors
    ///
    /// As for [`read_all`](Self::read_all).
    pub fn look(&self, look: &Look) -> io::Result<Seen> {
        let answers = self.gather(&look.requests()?)?;
        Ok(self.seen(look, answers))
    }

    /// Begins to look; xenstored answers while its [answers](Asked::answers) are not waited for yet.
    ///
    /// # Errors
    ///
    /// As for [`read_all`](Self::read_all).
    pub fn begin_to_look(&self, look: Look) -> io::Result<Asked<'_>> {
        let requests = look.requests()?;
        self.stream.borrow_mut().begin(self.transaction, &requests)?;
        Ok(Asked { store: self, look, requests, answered: false })
    }

    /// Looks, and then writes a node and gives it these permissions, in the same flight: for a transaction, which is not
    /// committed where what is seen forbids it.
    ///
    /// # Errors
    ///
    /// The outer error is the connection's, or that of a path that cannot be sent; the inner one is the first of the two
    /// that failed.
    pub fn look_and_write(
        &self,
        look: &Look,
        path: &str,
        data: &str,
        permissions: &Permissions,
    ) -> io::Result<(Seen, io::Result<()>)> {
        let mut requests = look.requests()?;
        let looks = requests.len();
        requests.extend(writing(path, data, permissions)?);
        let mut answers = self.exchange(&requests)?;
        let written = answers.split_off(looks).into_iter().try_for_each(|answer| answer.map(drop));
        Ok((self.seen(look, answers), written))
    }

    fn seen(&self, look: &Look, answers: Vec<Answer>) -> Seen {
        let mut answers = answers.into_iter();
        let permissions = look.permissions.iter().zip(answers.by_ref());
        let permissions = permissions.map(|(path, answer)| list_of_permissions(path, answer)).collect();
        let directories: Vec<_> = look.directories.iter().zip(answers.by_ref()).collect();
        let values = answers.collect();
        let directories = directories.into_iter().map(|(path, answer)| self.names(path, answer)).collect();
        Seen { permissions, directories, values }
    }

    /// Reads who may do what with a node.
    ///
    /// # Errors
    ///
    /// As for any request; a list that cannot be parsed is `InvalidData`.
    pub fn permissions(&self, path: &str) -> io::Result<Permissions> {
        list_of_permissions(path, self.ask(Operation::GetPerms, path, &[]))
    }

    /// Replaces a node's permissions, its owner included.
    ///
    /// # Errors
    ///
    /// As for any request; a list of more than 4096 bytes is `InvalidInput`.
    pub fn set_permissions(&self, path: &str, permissions: &Permissions) -> io::Result<()> {
        self.ask(Operation::SetPerms, path, permissions.to_string().as_bytes()).map(drop)
    }

    /// Writes a node and gives it these permissions, both in one flight.
    ///
    /// # Errors
    ///
    /// As for any request: the first that failed of the two.
    pub fn write_with_permissions(&self, path: &str, data: &str, permissions: &Permissions) -> io::Result<()> {
        self.exchange(&writing(path, data, permissions)?)?.into_iter().try_for_each(|answer| answer.map(drop))
    }

    /// Watches a node and all below it, for which this connection is then given up.
    ///
    /// # Errors
    ///
    /// When the path cannot be sent.
    pub fn watch(self, path: &str) -> io::Result<Watch> {
        let request = Request::new(Operation::Watch, path, b"watch\0")?;
        self.stream.borrow_mut().start(&request)?;
        Ok(Watch { stream: self.stream, request })
    }

    fn ask(&self, operation: Operation, path: &str, argument: &[u8]) -> Answer {
        let answers = self.exchange(&[Request::new(operation, path, argument)?])?;
        // One request has one answer: there is nothing to join.
        answers.into_iter().collect::<io::Result<Vec<_>>>().map(|answers| answers.concat())
    }

    fn exchange(&self, requests: &[Request]) -> io::Result<Vec<Answer>> {
        self.stream.borrow_mut().exchange(self.transaction, requests)
    }

    /// The same for requests that change nothing: their order is of no matter.
    fn gather(&self, requests: &[Request]) -> io::Result<Vec<Answer>> {
        match self.transaction {
            0 => parallel::exchange(&mut self.stream.borrow_mut(), requests),
            _ => self.exchange(requests),
        }
    }

    fn names(&self, path: &str, answer: Answer) -> io::Result<Vec<Box<str>>> {
        let list = match answer {
            Err(error) if error.kind() == ErrorKind::ArgumentListTooLong => self.directory_parts(path),
            answer => answer,
        };
        wire::strings(&list?).map_err(|error| io::Error::new(error.kind(), format!("cannot list {path}: {error}")))
    }

    /// C xenstored refuses to list more than 4096 bytes at once and has `XS_DIRECTORY_PART` for that.
    fn directory_parts(&self, path: &str) -> Answer {
        'restart: for _ in 0..RESTARTS {
            let mut names = Vec::new();
            let mut generation = None;
            while names.len() <= wire::REPLY_MAX {
                let reply = self.ask(Operation::DirectoryPart, path, format!("{}\0", names.len()).as_bytes())?;
                let (now, part) = wire::part(&reply)
                    .map_err(|error| io::Error::new(error.kind(), format!("cannot list {path}: {error}")))?;
                if generation.get_or_insert_with(|| now.to_vec()) != now {
                    continue 'restart;
                }
                names.extend_from_slice(part);
                // An empty name ends the list.
                if names == [0] || names.ends_with(&[0, 0]) {
                    names.pop();
                    return Ok(names);
                }
            }
            return Err(wire::garbled(format!("cannot list {path}: the list has no end")));
        }
        Err(io::Error::new(ErrorKind::ResourceBusy, format!("cannot list {path}: it keeps changing")))
    }
}

/// What was asked for and not answered yet.
#[derive(Debug)]
pub struct Asked<'a> {
    store: &'a Connection,
    look: Look,
    requests: Vec<Request>,
    answered: bool,
}

impl Asked<'_> {
    /// Waits for the answers.
    ///
    /// # Errors
    ///
    /// As for any request: see [`Connection`].
    pub fn answers(mut self) -> io::Result<Seen> {
        self.answered = true;
        Ok(self.store.seen(&self.look, self.store.exchange(&self.requests)?))
    }
}

impl Drop for Asked<'_> {
    fn drop(&mut self) {
        if !self.answered {
            // its answers are not to be taken for others
            self.store.stream.borrow_mut().give_up();
        }
    }
}

impl Look {
    fn requests(&self) -> io::Result<Vec<Request>> {
        let of = |operation, paths: &[String]| -> io::Result<Vec<Request>> {
            paths.iter().map(|path| Request::new(operation, path, &[])).collect()
        };
        let permissions = of(Operation::GetPerms, &self.permissions)?;
        let (directories, values) = (of(Operation::Directory, &self.directories)?, of(Operation::Read, &self.values)?);
        Ok(permissions.into_iter().chain(directories).chain(values).collect())
    }
}

fn writing(path: &str, data: &str, permissions: &Permissions) -> io::Result<[Request; 2]> {
    let write = Request::new(Operation::Write, path, data.as_bytes())?;
    Ok([write, Request::new(Operation::SetPerms, path, permissions.to_string().as_bytes())?])
}

fn list_of_permissions(path: &str, answer: Answer) -> io::Result<Permissions> {
    wire::strings(&answer?)
        .and_then(|list| Permissions::parse(&list))
        .map_err(|error| io::Error::new(error.kind(), format!("cannot read the permissions of {path}: {error}")))
}

impl Xs for Connection {
    fn directory(&self, path: &str) -> io::Result<Vec<Box<str>>> {
        self.names(path, self.ask(Operation::Directory, path, &[]))
    }

    fn read(&self, path: &str) -> io::Result<Box<str>> {
        String::from_utf8(self.read_bytes(path)?)
            .map(String::into_boxed_str)
            .map_err(|_| wire::garbled(format!("cannot read {path}: its value is not UTF-8")))
    }

    fn write(&self, path: &str, data: &str) -> io::Result<()> {
        self.ask(Operation::Write, path, data.as_bytes()).map(drop)
    }

    fn rm(&self, path: &str) -> io::Result<()> {
        self.ask(Operation::Rm, path, &[]).map(drop)
    }
}

impl XsTransaction for Connection {
    type Span = Transaction;

    fn transaction(&self) -> io::Result<Transaction> {
        let reply = self.ask(Operation::TransactionStart, "", &[])?;
        let id = str::from_utf8(&reply).ok().and_then(|id| id.trim_end_matches('\0').parse().ok());
        let id = id.filter(|id| *id != 0).ok_or_else(|| {
            wire::garbled(format!("cannot start a transaction: xenstored named it {}", reply.escape_ascii()))
        })?;
        Ok(Transaction { inside: Self { stream: Rc::clone(&self.stream), transaction: id }, open: true })
    }
}

/// What changes below a node, from [`Connection::watch`].
#[derive(Debug)]
pub struct Watch {
    stream: Rc<RefCell<Stream>>,
    request: Request,
}

impl Watch {
    /// Waits for the next change, without a limit, and returns the path of the node that was written, created, removed
    /// or given other permissions. The first is that of the watched node itself, at once.
    ///
    /// # Errors
    ///
    /// When xenstored refuses the watch or the connection is lost.
    pub fn next_change(&mut self) -> io::Result<Box<str>> {
        loop {
            let (kind, payload) = self.stream.borrow_mut().message()?;
            match kind {
                wire::WATCH_EVENT => {
                    let path = wire::strings(&payload)?.into_iter().next();
                    return path.ok_or_else(|| wire::garbled("xenstored sent a watch event without a path"));
                }
                wire::ERROR => return Err(self.request.refusal(&payload)),
                _ => {} // the watch is set
            }
        }
    }
}

/// A transaction: a [`Connection`] whose requests see the store as it was at the start, with its own changes,
/// which nobody else sees before [`commit`](XsTransactionSpan::commit). Dropped without it, it is aborted.
///
/// `commit` fails with `WouldBlock` when something the transaction has read was changed meanwhile: nothing of it
/// happened, and it may be tried again from the start. What it has only written is no conflict to oxenstored: read a
/// node first, even one that is not there yet, if another's write to it must not be lost.
#[derive(Debug)]
pub struct Transaction {
    inside: Connection,
    open: bool,
}

impl Deref for Transaction {
    type Target = Connection;

    fn deref(&self) -> &Connection {
        &self.inside
    }
}

impl Xs for Transaction {
    fn directory(&self, path: &str) -> io::Result<Vec<Box<str>>> {
        self.inside.directory(path)
    }

    fn read(&self, path: &str) -> io::Result<Box<str>> {
        self.inside.read(path)
    }

    fn write(&self, path: &str, data: &str) -> io::Result<()> {
        self.inside.write(path, data)
    }

    fn rm(&self, path: &str) -> io::Result<()> {
        self.inside.rm(path)
    }
}

impl XsTransactionSpan for Transaction {
    fn commit(mut self) -> io::Result<()> {
        // xenstored forgets the transaction whatever comes of it.
        self.open = false;
        self.inside.ask(Operation::TransactionEnd, "T", &[]).map(drop)
    }
}

impl Drop for Transaction {
    fn drop(&mut self) {
        if self.open {
            // Where the connection is lost, xenstored aborts it for us.
            let _ = self.inside.ask(Operation::TransactionEnd, "F", &[]);
        }
    }
}
