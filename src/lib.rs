//! sVirt for Xen: every guest's QEMU runs with a pair of MCS categories of its own, and so do its disks.

pub mod xenstore;
