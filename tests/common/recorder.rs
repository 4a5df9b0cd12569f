//! A disk that writes down what is written to it and when it is flushed, so that its power can be cut afterwards, at any
//! moment and in every way that a disk may then have kept or lost what was under way.

use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng};

use super::xenstored::within;

/// The unit of the log.
const SECTOR: usize = 512;

/// What a disk writes whole: ext4 takes for granted that its superblock, of two sectors, is never torn.
const WHOLE: usize = 2 * SECTOR;

/// Where a disk was written: a range of it, and where the log has what was written.
#[derive(Clone, Debug)]
struct Write {
    to: Range<usize>,
    from: usize,
}

/// A disk whose power is on: QEMU's storage daemon shows it as a file and logs all that comes (`blklogwrites`, in the
/// format of the kernel's dm-log-writes).
pub(crate) struct Recorder {
    daemon: Child,
    directory: PathBuf,
}

impl Recorder {
    /// Records what happens to this disk, a raw image, in its directory.
    pub(crate) fn start(base: &Path) -> Self {
        let directory = base.parent().unwrap().to_owned();
        let of = |name: &str| directory.join(name);
        fs::copy(base, of("disk")).unwrap();
        for name in ["log", "shown"] {
            File::create(of(name)).unwrap();
        }
        let file = |node: &str, name: &str| format!("driver=file,node-name={node},filename={}", of(name).display());
        let daemon = Command::new("qemu-storage-daemon")
            .args(["--blockdev", &file("disk", "disk"), "--blockdev", &file("log", "log")])
            .args(["--blockdev", "driver=blklogwrites,node-name=recorded,file=disk,log=log", "--export"])
            .arg(format!("fuse,id=shown,node-name=recorded,writable=on,mountpoint={}", of("shown").display()))
            .spawn();
        let recorder = Self { daemon: daemon.unwrap(), directory };
        let size = fs::metadata(base).unwrap().len();
        within(Duration::from_secs(60), || {
            fs::metadata(recorder.disk()).is_ok_and(|shown| shown.len() == size).then_some(())
        });
        recorder
    }

    /// The disk, to be used as a file.
    pub(crate) fn disk(&self) -> PathBuf {
        self.directory.join("shown")
    }

    /// How much has happened up to the last flush.
    pub(crate) fn so_far(&self) -> usize {
        number(&fs::read(self.directory.join("log")).unwrap(), 16)
    }

    /// All that happened, once nobody uses the disk any more.
    pub(crate) fn stop(mut self) -> Recording {
        let pid = Pid::from_raw(i32::try_from(self.daemon.id()).unwrap());
        kill(pid, Signal::SIGTERM).unwrap();
        self.daemon.wait().unwrap();
        Recording::read(fs::read(self.directory.join("log")).unwrap())
    }
}

impl Drop for Recorder {
    fn drop(&mut self) {
        let _ = self.daemon.kill();
        let _ = self.daemon.wait();
    }
}

/// What happened to a disk: writes, and `None` for a flush.
pub(crate) struct Recording {
    log: Vec<u8>,
    events: Vec<Option<Write>>,
}

/// A moment to cut the power at: the disk has all that came before a flush, and of what came after it just this.
pub(crate) struct Cut {
    flushed: usize,
    kept: Vec<Write>,
}

fn number(log: &[u8], at: usize) -> usize {
    usize::try_from(u64::from_le_bytes(log[at..at + 8].try_into().unwrap())).unwrap()
}

impl Recording {
    fn read(log: Vec<u8>) -> Self {
        let (mut events, mut at) = (Vec::new(), SECTOR);
        for _ in 0..number(&log, 16) {
            let [sector, sectors, flags] = [0, 8, 16].map(|field| number(&log, at + field));
            let (start, length) = (sector * SECTOR, sectors * SECTOR);
            at += SECTOR;
            events.push(match flags {
                0 => Some(Write { to: start..start + length, from: at }),
                1 => None,
                other => panic!("a loop device neither discards nor flushes single writes: {other}"),
            });
            at += length;
        }
        Self { log, events }
    }

    /// The moments from one on. Between two flushes: each beginning of the writes there, as they came, and some of them
    /// without the others, the last torn.
    pub(crate) fn cuts(&self, from: usize) -> Vec<Cut> {
        let mut random = StdRng::seed_from_u64(1);
        let mut cuts = Vec::new();
        let mut flushed = from;
        for end in (from..self.events.len()).filter(|end| self.events[*end].is_none()) {
            let writes: Vec<Write> = self.events[flushed..end].iter().flatten().cloned().collect();
            for count in 0..writes.len() {
                let mut kept = writes[..count].to_vec();
                cuts.push(Cut { flushed, kept: kept.clone() });
                kept.retain(|_| random.random_range(0..2) == 0);
                if let Some(torn) = kept.last_mut().filter(|torn| torn.to.len() > WHOLE) {
                    torn.to.end -= random.random_range(1..torn.to.len() / WHOLE) * WHOLE;
                }
                if count > 1 {
                    cuts.push(Cut { flushed, kept });
                }
            }
            flushed = end + 1;
        }
        cuts
    }

    /// The disk after each of these cuts, which come in order; `base` is what it was at first.
    pub(crate) fn replay(&self, base: &Path, cuts: &[&Cut], mut look: impl FnMut(&[u8], &str)) {
        let mut disk = fs::read(base).unwrap();
        let write = |disk: &mut [u8], Write { to, from }: &Write| {
            disk[to.clone()].copy_from_slice(&self.log[*from..from + to.len()]);
        };
        let mut done = 0;
        for Cut { flushed, kept } in cuts {
            for event in self.events[done..*flushed].iter().flatten() {
                write(&mut disk, event);
            }
            done = *flushed;
            let mut left = disk.clone();
            for event in kept {
                write(&mut left, event);
            }
            let sectors: Vec<_> = kept.iter().map(|write| write.to.start / SECTOR).collect();
            look(&left, &format!("cut after event {flushed} and the writes of {sectors:?}"));
        }
    }
}
