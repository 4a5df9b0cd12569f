//! sVirt for Xen: every guest's QEMU runs with a pair of MCS categories of its own, and so do its disks.
//!
//! A launch is told top to bottom in [`launch`], and what becomes of its disks in [`disks`]. What is decided stands in
//! modules of values without any I/O ([`argv`], [`mcs`], [`context`], [`vbd`], [`qcow2`], [`plan`]); what is done stands
//! in modules of one kind of effect each ([`xenstore`], [`guest`], [`claim`], [`owner`], [`selinux`], [`object`],
//! [`kind`], [`backing`], [`boot`], [`policy`], [`environment`], [`exec`], [`signals`], [`log`], [`audit`], [`config`],
//! [`libxl`]); [`confinement`] remembers it, to undo it, and [`trail`], to tell of it. `svirtctl`'s commands are in [`ctl`].

pub mod argv;
pub mod audit;
pub mod backing;
pub mod boot;
pub mod claim;
pub mod config;
pub mod confinement;
pub mod context;
pub mod ctl;
pub mod disks;
pub mod environment;
pub mod exec;
pub mod guest;
pub mod kind;
pub mod launch;
pub mod libxl;
pub mod log;
pub mod mcs;
pub mod object;
pub mod owner;
pub mod plan;
pub mod policy;
pub mod qcow2;
pub mod selinux;
pub mod signals;
pub mod trail;
pub mod vbd;
pub mod xenstore;

use std::io;

/// `None` for what does not exist, and only for that.
fn optional<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        result => result.map(Some),
    }
}
