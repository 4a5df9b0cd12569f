//! What an object is to a launch, by the type in its label.

use anyhow::Result;

use crate::config::Contexts;
use crate::context::Context;
use crate::selinux;

/// The types of the base policy that disks have while no guest has them, as our module declares them. The policy is not
/// asked about these, for a launch to be fast.
const DISK_TYPES: &[&str] = &["fixed_disk_device_t", "virt_image_t", "xen_image_t"];

/// Types that QEMU may read wherever it finds them, and that no launch changes: `/usr/share/virtio-win`.
const READABLE_TYPES: &[&str] = &["usr_t"];

/// Whose right it is to make a disk a guest's, whoever asks: an administrator's own domain may relabel everything.
const INTERPOSER: &str = "system_u:system_r:svirt_interpose_t:s0";

/// What an object is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// A disk, or what one was made of by a launch.
    Disk,
    /// What the policy lets every guest's QEMU use as the guest wants to, with the label it has: a file on NFS, which
    /// keeps no labels, while `svirt_xen_use_nfs` is on.
    Open,
    /// Neither. A path that leads to `/etc/shadow` or to dom0's own system is a mistake or an attack.
    Other,
}

impl Kind {
    /// What has this label: a block device or a file, that the guest may write or only read.
    ///
    /// # Errors
    /// When the policy cannot be asked.
    pub fn of(label: &Context, device: bool, writable: bool, contexts: &Contexts) -> Result<Self> {
        let Contexts { domain, image, content, shared } = contexts;
        let type_ = label.type_();
        if DISK_TYPES.contains(&type_) || [image, content, shared].map(Context::type_).contains(&type_) {
            return Ok(Self::Disk);
        }
        if !writable && READABLE_TYPES.contains(&type_) {
            return Ok(Self::Open);
        }
        let class = if device { "blk_file" } else { "file" };
        let may = |subject: &Context, permission| {
            selinux::decide(subject, label, class, permission).map(|decision| decision.allowed)
        };
        if may(&INTERPOSER.parse()?, "relabelfrom")? {
            return Ok(Self::Disk);
        }
        for permission in ["open", "read", "write"].into_iter().take(if writable { 3 } else { 2 }) {
            if !may(domain, permission)? {
                return Ok(Self::Other);
            }
        }
        Ok(Self::Open)
    }
}
