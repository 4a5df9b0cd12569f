//! `svirtctl` while a thousand guests run, and after they are gone.

use std::fs;
use std::time::Instant;

use xenstore_rs::Xs as _;

use crate::common::host::{Host, Started, compiled, qdisk};
use crate::rounds::interleave;

const GUESTS: u16 = 1000;

pub(crate) fn run() {
    let host = Host::new();
    host.configure(&format!("qemu = '{}'", compiled("qemu").display()));
    let store = host.store();
    let running: Vec<Started> = (1..=GUESTS)
        .map(|domid| {
            let disk = qdisk(768, &host.image(&format!("{domid}.img")));
            host.domain(domid, &format!("00000000-0000-0000-0000-{domid:012}"), &[disk]);
            let started = host.launch(domid).unwrap();
            store.write(&format!("/local/domain/{domid}/image/device-model-pid"), &started.pid().to_string()).unwrap();
            started
        })
        .collect();
    println!("svirtctl: {GUESTS} guests of one disk\n");
    let [audit, reconcile] = interleave(5, [&mut || took(&host, "audit"), &mut || took(&host, "reconcile")]);
    let [audit_own, reconcile_own] = ["audit", "reconcile"].map(|command| own_time(&host, command));
    println!("                                                    ms   of its own");
    let row = |what, took, own| println!("  {what:42} {took:9.0} {own:12.0}");
    row("audit while they run", audit.median() / 1e3, audit_own);
    row("reconcile while they run", reconcile.median() / 1e3, reconcile_own);
    drop(running);
    (1..=GUESTS).for_each(|domid| host.destroy(domid));
    println!("  {:42} {:9.0}", "reconcile after they are gone", took(&host, "reconcile") / 1e3);
    assert!(host.claims().is_empty());
    println!();
}

/// The microseconds that one of its commands takes, and that it is content.
fn took(host: &Host, command: &str) -> f64 {
    let start = Instant::now();
    let output = host.svirtctl(&[command]);
    let took = start.elapsed();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    took.as_secs_f64() * 1e6
}

/// The milliseconds that it computes itself, and the kernel for it, without what xenstored does meanwhile.
fn own_time(host: &Host, command: &str) -> f64 {
    const TICKS_PER_SECOND: f64 = 100.0;
    let of_children = || -> u32 {
        let stat = fs::read_to_string("/proc/self/stat").unwrap();
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        fields.split(' ').skip(13).take(2).map(|ticks| ticks.parse::<u32>().unwrap()).sum()
    };
    let before = of_children();
    took(host, command);
    f64::from(of_children() - before) / TICKS_PER_SECOND * 1e3
}
