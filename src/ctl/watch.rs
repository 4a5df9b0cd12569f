//! `svirtctl watch`: relabels whatever libxl attaches to a running guest, as soon as it shows in XenStore.
//!
//! libxl runs a script for the disks of the kernel's backend alone, and none for those of QEMU's. QEMU is told of a
//! new disk in the same moment as we are: it tries in vain until the label is there, and then once more.
//!
//! Any device model may write to XenStore, so what stands there decides when to look and nothing else: a disk is
//! labelled if libxl itself has it on record.

use anyhow::Result;

use super::relabel::{self, tell};
use crate::argv::Domid;
use crate::config::Config;
use crate::guest::{self, Domains, Guest};
use crate::libxl::Record;
use crate::mcs::Pair;
use crate::xenstore::Connection;

/// Never returns but with an error.
///
/// # Errors
/// When XenStore or the configuration cannot be read: one disk's failure is told, and that is all.
pub(super) fn run() -> Result<bool> {
    let config = Config::load()?;
    let store = Connection::open()?;
    let backends = format!("/local/domain/{}/backend", Domains::read(&store)?.own);
    let mut changes = store.watch(&backends)?;
    loop {
        let change = changes.next_change()?;
        if *change == *backends {
            // at the start: what was attached while nobody watched
            let store = Connection::open()?;
            for domid in Domains::read(&store)?.all {
                attached(&config, domid, None);
            }
        } else if let Some((domid, device)) = device(&backends, &change) {
            attached(&config, domid, Some(device));
        }
    }
}

/// The domain and device that a backend's node belongs to that toolstacks write once for each disk and once more for
/// each medium.
fn device<'a>(backends: &str, path: &'a str) -> Option<(Domid, &'a str)> {
    let path: Vec<&str> = path.strip_prefix(backends)?.strip_prefix('/')?.split('/').collect();
    match path.as_slice() {
        [_kind, domid, device, "params"] => Some((domid.parse().ok()?, device)),
        _ => None,
    }
}

/// Labels what libxl attached to a guest that runs confined, and tells of it.
fn attached(config: &Config, domid: Domid, device: Option<&str>) {
    match look(domid) {
        Ok(None) => {}
        Ok(Some((guest, pair, record))) => {
            for vbd in guest.vbds.iter().filter(|vbd| device.is_none_or(|device| vbd.is(device))) {
                tell(&relabel::label(config, &guest, vbd, pair, Some(&record)));
            }
        }
        Err(error) => _ = tell(&Err(error)),
    }
}

/// `None` for a domain that does not run confined or is none of libxl's.
fn look(domid: Domid) -> Result<Option<(Guest, Pair, Record)>> {
    let store = Connection::open()?;
    let Some(pair) = guest::pair_of(&store, domid)? else { return Ok(None) };
    let guest = Guest::read(&store, domid)?;
    Ok(Record::of(domid, &guest.vm)?.map(|record| (guest, pair, record)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn looks_when_a_backend_gets_its_params() {
        let backends = "/local/domain/0/backend";
        let params = format!("{backends}/qdisk/7/51728/params");
        assert_eq!(device(backends, &params), Some(("7".parse().unwrap(), "51728")));
        for path in
            ["", "/vbd", "/vbd/7/1", "/vbd/7/1/state", "/vbd/7/1/params/x", "/vbd/0x7/1/params", "s/vbd/7/1/params"]
        {
            assert_eq!(device(backends, &format!("{backends}{path}")), None, "{path}");
        }
    }
}
