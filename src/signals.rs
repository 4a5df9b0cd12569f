//! Signals that would end the launch halfway: held back until what was done can be undone.

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};

/// SIGHUP, SIGTERM and SIGINT, held back. libxl ends a device model by SIGHUP (`libxl__kill` in
/// `libxl_aoutils.c`), also one that is still being launched.
#[derive(Debug)]
pub struct Held {
    arrived: SignalFd,
    before: SigSet,
}

impl Held {
    /// Holds them back from now on.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub fn hold() -> Result<Self> {
        let what = "cannot hold signals back";
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, None, Some(&mut before)).context(what)?;
        let mut held = SigSet::empty();
        // one that the toolstack blocked is QEMU's to find
        [Signal::SIGHUP, Signal::SIGTERM, Signal::SIGINT]
            .into_iter()
            .filter(|signal| !before.contains(*signal))
            .for_each(|signal| held.add(signal));
        let arrived = SignalFd::with_flags(&held, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK).context(what)?;
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(&held), None).context(what)?;
        Ok(Self { arrived, before })
    }

    /// Lets them go, with the mask as it was.
    ///
    /// # Errors
    /// When one of them arrived meanwhile: the launch is to end.
    pub fn release(self) -> Result<()> {
        let arrived = self.arrived.read_signal().context("cannot read held signals")?;
        if let Some(signal) =
            arrived.and_then(|info| i32::try_from(info.ssi_signo).ok()).and_then(|number| Signal::try_from(number).ok())
        {
            bail!("stopped by {signal}");
        }
        pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None).context("cannot restore the signal mask")
    }
}
