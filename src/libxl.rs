//! libxl's own record of a domain's disks: a file that no device model may write, unlike XenStore. libxl writes it
//! before it shows a disk there (`device_disk_add` in `libxl_disk.c`), and leaves in it what is detached later.

use std::fs;
use std::path::PathBuf;
use std::slice;

use anyhow::{Context as _, Result};
use serde::Deserialize;

use crate::argv::Domid;
use crate::object::{self, Identity, Object};
use crate::optional;

/// `XEN_LIB_DIR`.
const DIRECTORY: &str = "/var/lib/xen";

/// A domain's configuration (`libxl_domain_config` in `libxl_types.idl`), as far as it matters here.
#[derive(Debug, Deserialize)]
struct Configuration {
    #[serde(default)]
    disks: Vec<Disk>,
}

#[derive(Debug, PartialEq, Eq, Deserialize)]
struct Disk {
    #[serde(default)]
    pdev_path: PathBuf,
    #[serde(default)]
    readwrite: u8,
}

/// What the disks of a domain are made of.
#[derive(Debug)]
pub struct Record(Vec<(Identity, bool)>);

impl Record {
    /// libxl's record of a domain; `None` where it keeps none, as with XAPI.
    ///
    /// # Errors
    /// When it cannot be read or makes no sense.
    pub fn of(domid: Domid, vm: &str) -> Result<Option<Self>> {
        let path = format!("{DIRECTORY}/userdata-d.{domid}.{vm}.libxl-json");
        let text = optional(fs::read(&path)).with_context(|| format!("cannot read {path}"))?;
        let Some(text) = text else { return Ok(None) };
        let disks = parse(&text).with_context(|| format!("cannot make sense of {path}"))?;
        let mut known = Vec::new();
        for Disk { pdev_path, readwrite } in &disks {
            // one that was detached may be gone
            let objects = object::open_all(slice::from_ref(pdev_path)).unwrap_or_default();
            known.extend(objects.iter().map(|object| (object.identity(), *readwrite != 0)));
        }
        Ok(Some(Self(known)))
    }

    /// Whether the object is part of a disk that the domain has to write, or at least to read.
    #[must_use]
    pub fn has(&self, object: &Object, to_write: bool) -> bool {
        self.0.iter().any(|(known, writable)| *known == object.identity() && (*writable || !to_write))
    }
}

fn parse(text: &[u8]) -> Result<Vec<Disk>> {
    let text = text.strip_suffix(&[0]).unwrap_or(text); // libxl writes the end of its string
    Ok(serde_json::from_slice::<Configuration>(text)?.disks)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_libxl_writes() {
        let text = br#"{
    "c_info": {"type": "pv", "domid": 4294967295},
    "disks": [
        {"pdev_path": "/images/p.raw", "vdev": "xvda", "backend": "qdisk", "format": "raw", "readwrite": 1},
        {"pdev_path": "/images/cd.iso", "vdev": "hdc", "removable": 1, "is_cdrom": 1},
        {"vdev": "hdd", "is_cdrom": 1}
    ],
    "on_soft_reset": "soft_reset"
}
"#;
        let text = [text.as_slice(), &[0]].concat();
        let disk = |path: &str, readwrite| Disk { pdev_path: path.into(), readwrite };
        assert_eq!(parse(&text).unwrap(), [disk("/images/p.raw", 1), disk("/images/cd.iso", 0), disk("", 0)]);
        assert_eq!(parse(b"{}").unwrap(), []);
        assert!(parse(b"").is_err());
    }
}
