//! What is told of a launch when it ends: one line of fixed keys in syslog, and the kernel's audit records.

use std::fmt;

use anyhow::Error;

use crate::argv::Domid;
use crate::audit;
use crate::config::Contexts;
use crate::guest::Guest;
use crate::log::{self, Severity};
use crate::mcs::Pair;

/// A launch, as far as it came.
#[derive(Debug, Default)]
pub struct Trail {
    /// The domain, as QEMU's arguments say.
    pub domid: Option<Domid>,
    /// What XenStore says of it.
    pub guest: Option<Guest>,
    /// What it was given.
    pub given: Option<Given>,
}

/// What a guest was given.
#[derive(Debug)]
pub struct Given {
    /// Its categories.
    pub pair: Pair,
    /// How many objects were labelled for it, or were already.
    pub objects: usize,
    /// The contexts to which the pair belongs.
    pub contexts: Contexts,
}

impl Trail {
    /// QEMU is about to run in the guest's own context.
    pub fn confined(&self) {
        log::record(Severity::LOG_INFO, &self.line("confined", self.given.as_ref(), 0, None));
        let contexts = self.given.as_ref().map(|Given { pair, contexts: Contexts { domain, image, .. }, .. }| {
            (domain.with_pair(*pair), image.with_pair(*pair))
        });
        if let (Some(guest), Some((domain, image))) = (&self.guest, &contexts) {
            audit::started(guest, Some((domain, image)));
        }
    }

    /// QEMU is about to run without one.
    pub fn unconfined(&self, domid: Domid, cause: &str) {
        log::say(&format!("warning: domain {domid} is not confined: {cause}"));
        log::record(Severity::LOG_WARNING, &self.line("unconfined", None, 0, Some(cause)));
        if let Some(guest) = &self.guest {
            audit::started(guest, None);
        }
    }

    /// QEMU does not run.
    pub fn refused(&self, status: u8, cause: &Error) {
        let cause = format!("{cause:#}");
        log::say(&cause);
        log::record(Severity::LOG_ERR, &self.line("refused", None, status, Some(&cause)));
        if let Some(guest) = &self.guest {
            audit::refused(guest);
        }
    }

    /// The same keys in the same order in every line, `?` for what is not known: see svirt-interpose(8).
    fn line(&self, result: &str, given: Option<&Given>, status: u8, cause: Option<&str>) -> String {
        let guest = self.guest.as_ref();
        let set = given.map(|given| given.pair);
        let context = given.map(|given| given.contexts.domain.with_pair(given.pair));
        format!(
            "launch result={result} domid={} vm={} name={} set={} objects={} context={} status={status} cause={}",
            known(self.domid),
            known(guest.map(|guest| quoted(&guest.vm))),
            known(guest.map(|guest| quoted(&guest.name))),
            known(set),
            known(given.map(|given| given.objects)),
            known(context),
            known(cause.map(quoted)),
        )
    }
}

/// In quotes, so that no value can add a key of its own.
fn quoted(text: &str) -> String {
    format!("{text:?}")
}

fn known(value: Option<impl fmt::Display>) -> String {
    value.map_or_else(|| "?".into(), |value| value.to_string())
}
