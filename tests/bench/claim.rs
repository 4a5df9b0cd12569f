//! A claim among many domains: the classic walk, ours, and the least that any could do.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::Instant;

use rand::SeedableRng as _;
use rand::rngs::{StdRng, SysRng};
use svirt_interpose::argv::Domid;
use svirt_interpose::claim::{Holder, Journal, Process, Registry};
use svirt_interpose::guest::{self, Domains};
use svirt_interpose::mcs::{self, InUse, Pair, Set};
use svirt_interpose::xenstore::Permissions;
use xenstore_rs::{Xs as _, XsTransaction as _, XsTransactionSpan as _};

use crate::common::host::Host;
use crate::common::xenstored::message;
use crate::programs::program;
use crate::rounds::interleave;

/// The domain that is started: none of those that are there.
const OWN: u16 = 20_000;

pub(crate) fn run() {
    println!("claim: one claim of a pair among N domains that have one (us)\n");
    println!("  domains      C walk       claim       floor       index   walk/claim  claim/floor");
    let host = Host::new();
    host.domain(OWN, "00000000-0000-0000-0000-000000000000", &[]);
    let mut domains = 0;
    for (wanted, rounds) in [(1, 301), (10, 201), (100, 101), (1000, 31), (5000, 9)] {
        populate(&host, domains + 1..=wanted);
        domains = wanted;
        let mut walk = Walk::start(&host);
        let [walk, claim, floor, indexed] = interleave(
            rounds,
            [&mut || walk.once(wanted), &mut || claim(&host, wanted), &mut || floor(&host, wanted), &mut || {
                index(&host)
            }],
        );
        println!(
            "  {wanted:7} {:11.0} {:11.0} {:11.0} {:11.0} {:12.2} {:12.2}",
            walk.median(),
            claim.median(),
            floor.median(),
            indexed.median(),
            walk.over(&claim),
            claim.over(&floor)
        );
    }
    println!();
}

fn populate(host: &Host, domids: impl Iterator<Item = u16>) {
    let store = host.store();
    for domid in domids {
        host.xenstored.add_domain(domid);
        host.xenstored.guest(domid);
        let key = format!("/local/domain/{domid}/selinux-mcs");
        let set = format!("c{},c{}", domid / 500, 512 + domid % 500);
        store.write_with_permissions(&key, &set, &Permissions::dom0_only()).unwrap();
    }
}

/// tests/bench/walk.c.
struct Walk {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl Walk {
    fn start(host: &Host) -> Self {
        let mut command = Command::new(program("walk"));
        command.arg(OWN.to_string()).env("XENSTORED_PATH", host.xenstored.socket());
        let mut process = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let answers = BufReader::new(process.stdout.take().unwrap());
        Self { process, answers }
    }

    fn once(&mut self, domains: u16) -> f64 {
        self.process.stdin.as_ref().unwrap().write_all(b"\n").unwrap();
        let mut answer = String::new();
        self.answers.read_line(&mut answer).unwrap();
        let (nanoseconds, keys) = answer.trim_end().split_once(' ').expect("walk failed");
        // its own, too, from the second time on
        assert!(keys.parse::<u16>().unwrap() >= domains);
        nanoseconds.parse::<f64>().unwrap() / 1e3
    }
}

impl Drop for Walk {
    fn drop(&mut self) {
        drop(self.process.stdin.take()); // it ends with its input
        self.process.wait().unwrap();
    }
}

/// What src/launch.rs does for a pair: reads what is published, claims, publishes.
fn claim(host: &Host, domains: u16) -> f64 {
    let domid: Domid = OWN.to_string().parse().unwrap();
    let all: Set = "c0.c1023".parse().unwrap();
    let start = Instant::now();
    let store = host.store();
    let published = guest::published(&store, &Domains::read(&store).unwrap().all).unwrap();
    let found = published.len();
    let mut in_use = InUse::default();
    in_use.extend(published.into_iter().filter(|(other, _)| *other != domid).map(|(_, set)| set));
    let registry = Registry::open(&host.path("state")).unwrap();
    let holder = Holder { domid, vm: "v".into(), process: Process::own().unwrap() };
    let mut rng = StdRng::try_from_rng(&mut SysRng).unwrap();
    let draft = registry.draft(&Journal::of(&holder)).unwrap();
    let candidates = mcs::candidates(&all, &in_use, &mut rng);
    let (pair, claim): (Pair, _) = draft.claim(&registry, candidates).unwrap().unwrap();
    guest::publish(&store, domid, pair, |_| ()).unwrap();
    let took = start.elapsed();
    assert!(found >= usize::from(domains));
    claim.release().unwrap();
    took.as_secs_f64() * 1e6
}

/// What we do not do, for the reasons that src/guest.rs gives: the set is looked up in an index of those in use.
fn index(host: &Host) -> f64 {
    const ENTRY: &str = "/tool/svirt-interpose/c5-c9";
    let start = Instant::now();
    let store = host.store();
    let transaction = store.transaction().unwrap();
    assert!(transaction.read(ENTRY).is_err());
    transaction.write_with_permissions(ENTRY, &OWN.to_string(), &Permissions::dom0_only()).unwrap();
    transaction.commit().unwrap();
    let took = start.elapsed();
    store.rm(ENTRY).unwrap();
    took.as_secs_f64() * 1e6
}

/// Every key asked for, 64 at a time, and no answer looked at: what the daemon alone takes.
fn floor(host: &Host, domains: u16) -> f64 {
    const READ: u32 = 2;
    let start = Instant::now();
    let mut socket = UnixStream::connect(host.xenstored.socket()).unwrap();
    let (mut buffer, mut sent, mut answered, mut left) = (vec![0; 1 << 16], 0, 0, 0);
    let mut input = Vec::new();
    while answered < domains {
        let end = domains.min(answered + 64);
        let requests: Vec<u8> = (sent + 1..=end)
            .flat_map(|domid| message(READ, format!("/local/domain/{domid}/selinux-mcs\0").as_bytes()))
            .collect();
        socket.write_all(&requests).unwrap();
        sent = end;
        let length = socket.read(&mut buffer).unwrap();
        input.extend_from_slice(&buffer[..length]);
        while let Some(header) = input.get(left..left + 16) {
            let length = 16 + u32::from_ne_bytes(header[12..].try_into().unwrap()) as usize;
            if input.len() < left + length {
                break;
            }
            left += length;
            answered += 1;
        }
        input.drain(..left);
        left = 0;
    }
    start.elapsed().as_secs_f64() * 1e6
}
