//! What a guest's virtual block devices are made of, told from the backend nodes that dom0 owns.
//!
//! Never from `/local/domain/<domid>/device/vbd/*/backend`: the guest owns that node and may point it
//! anywhere (libxl gives the frontend directory to it, `libxl__device_generic_add` in `libxl_device.c`).
//! Nor from argv: a PV guest's QEMU has no disk there, and a disk beyond the four IDE slots never.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fmt;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

use crate::argv::Domid;

/// The kinds of backend a disk may have in dom0 (`libxl__device_kind` in `libxl_types_internal.idl`; vbd3 and
/// tap are XAPI's and OpenXT's).
pub const KINDS: &[&str] = &["vbd", "vbd3", "qdisk", "tap", "virtio_disk"];

/// The nodes of a backend that say what it is made of.
pub const NODES: &[&str] = &["params", "mode", "dev", "script", "physical-device-path", "node", "loop-device"];

/// The nodes of libxl's own record of a device, `/libxl/<domid>/device/<kind>/<devid>`.
pub const LISTED_NODES: &[&str] = &["backend", "params", "mode"];

/// Nodes of one directory by name; one that does not exist is not here.
pub type Nodes = BTreeMap<&'static str, Vec<u8>>;

/// One backend directory, `/local/domain/<own>/backend/<kind>/<domid>/<devid>`.
#[derive(Debug, Clone)]
pub struct Backend {
    /// The directory's own path.
    pub path: String,
    /// Those of [`NODES`] that it has.
    pub nodes: Nodes,
}

/// One virtual block device and the paths in dom0 that it stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Vbd {
    /// The backend's path in `XenStore`; its last part is the virtual device's number.
    pub backend: String,
    /// The virtual device's name as the toolstack was given it, `xvda` or `hdc`; empty where it keeps none.
    pub name: String,
    /// Whether the guest may write it.
    pub writable: bool,
    /// Whether QEMU takes it for qcow2: where the toolstack declared it so, never by what is in it.
    pub qcow2: bool,
    /// Where its content is, first of all the path QEMU opens; none for an empty CD drive or a network disk.
    pub paths: Vec<PathBuf>,
}

impl Vbd {
    /// Whether it is the one that an administrator calls by this number or name.
    #[must_use]
    pub fn is(&self, device: &str) -> bool {
        self.name == device || self.backend.rsplit('/').next() == Some(device)
    }
}

/// Why a guest's disks cannot be told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// `mode` is missing, or neither `r` nor `w`.
    Mode(String, String),
    /// A path that is not absolute: what it means depends on the reader.
    Relative(String, String),
    /// libxl's record and the backend say different things.
    Disagree(String, &'static str),
    /// libxl lists a backend of this domain that is not there.
    Gone(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mode(backend, mode) => write!(f, "{backend}/mode is {mode:?}, neither r nor w"),
            Self::Relative(backend, path) => {
                write!(f, "{backend}: {path:?} is no absolute path: give the disk's full path")
            }
            Self::Disagree(backend, node) => write!(f, "{backend}/{node} is not what libxl recorded"),
            Self::Gone(backend) => write!(f, "{backend} does not exist, but libxl recorded it"),
        }
    }
}

impl std::error::Error for Refused {}

/// Of the backends found, those that this domain really has.
///
/// Where libxl keeps its own record of a domain's devices (xenstore-paths(7), `/libxl/$DOMID/device`), a
/// backend it does not list is a leftover of an earlier domain of the same number, and one that it lists
/// must be there and say the same. XAPI keeps no such record: `listed` is empty and every backend counts.
///
/// # Errors
/// [`Refused::Gone`], [`Refused::Disagree`].
pub fn known(backends: Vec<Backend>, listed: &[Nodes], own: Domid) -> Result<Vec<Backend>, Refused> {
    if listed.is_empty() {
        return Ok(backends);
    }
    let ours = format!("/local/domain/{own}/backend/");
    let mut known = Vec::new();
    for record in listed {
        let path = String::from_utf8_lossy(record.get("backend").map_or(&[], Vec::as_slice));
        if !path.starts_with(&ours) {
            continue; // a driver domain's: nothing of it is in ours
        }
        let backend =
            backends.iter().find(|backend| backend.path == path).ok_or_else(|| Refused::Gone(path.clone().into()))?;
        if let Some(node) = ["params", "mode"].into_iter().find(|node| record.get(node) != backend.nodes.get(node)) {
            return Err(Refused::Disagree(backend.path.clone(), node));
        }
        known.push(backend.clone());
    }
    Ok(known)
}

/// Reads one backend.
///
/// # Errors
/// [`Refused::Mode`], [`Refused::Relative`].
pub fn vbd(backend: &Backend) -> Result<Vbd, Refused> {
    let node = |name| backend.nodes.get(name).map(Vec::as_slice);
    let writable = match node("mode") {
        Some(b"w") => true,
        Some(b"r") => false,
        other => {
            let mode = String::from_utf8_lossy(other.unwrap_or_default()).into_owned();
            return Err(Refused::Mode(backend.path.clone(), mode));
        }
    };

    // a script of its own gives `params` a meaning of its own (block-iscsi's target, block-drbd's resource)
    let custom_script =
        node("script").is_some_and(|script| !matches!(file_name(script), b"block" | b"block-svirt" | b""));
    let mut paths = Vec::new();
    let mut add = |name| match node(name).map(place) {
        Some(Place::Local(path)) if !paths.contains(&path) => paths.push(path),
        _ => {}
    };
    add("loop-device"); // OpenXT's QEMU opens that, not the file below it
    if let Some(Place::Relative(path)) = node("params").map(place)
        && writable
        && !custom_script
    {
        return Err(Refused::Relative(backend.path.clone(), path));
    }
    add("params");
    // the socket of the daemon that serves the disk (xenopsd's block script), which is no disk
    if !node("params").is_some_and(|params| params.starts_with(b"nbd:unix:")) {
        add("physical-device-path");
        add("node");
    }
    // of the other kinds QEMU opens a device, which hides the format
    let is_qdisk = backend.path.rsplit('/').nth(2) == Some("qdisk");
    let qcow2 = is_qdisk && node("params").is_some_and(|params| params.starts_with(b"qcow2:"));
    let name = String::from_utf8_lossy(node("dev").unwrap_or_default()).into_owned();
    Ok(Vbd { backend: backend.path.clone(), name, writable, qcow2, paths })
}

fn file_name(path: &[u8]) -> &[u8] {
    path.rsplit(|byte| *byte == b'/').next().unwrap_or_default()
}

/// Where a value of `params` points.
#[derive(Debug, PartialEq, Eq)]
enum Place {
    Local(PathBuf),
    Relative(String),
    /// `rbd:`, `nbd:`, `iqn…:`, whatever names no file of ours.
    Remote,
    Nowhere,
}

/// The formats and types that toolstacks put before a path (`libxl__device_disk_string_of_format`, blktap2).
const PREFIXES: &[&[u8]] =
    &[b"aio", b"raw", b"qcow", b"qcow2", b"qed", b"vhd", b"vpc", b"tap", b"tap2", b"tapdisk", b"file", b"phy"];

fn place(mut params: &[u8]) -> Place {
    loop {
        if params.is_empty() {
            return Place::Nowhere;
        }
        let path = PathBuf::from(OsString::from_vec(params.to_vec()));
        if Path::new(&path).is_absolute() {
            return Place::Local(path);
        }
        match params.iter().position(|byte| matches!(byte, b':' | b'/')).map(|at| params.split_at(at)) {
            Some((prefix, [b':', rest @ ..])) if PREFIXES.contains(&prefix) => params = rest,
            Some((_, [b':', ..])) => return Place::Remote,
            _ => return Place::Relative(path.to_string_lossy().into_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn nodes(nodes: &[(&'static str, &str)]) -> Nodes {
        nodes.iter().map(|(name, value)| (*name, value.as_bytes().to_vec())).collect()
    }

    fn backend(path: &str, values: &[(&'static str, &str)]) -> Backend {
        Backend { path: format!("/local/domain/0/backend/{path}"), nodes: nodes(values) }
    }

    fn paths(values: &[(&'static str, &str)]) -> Vec<PathBuf> {
        vbd(&backend("vbd/2/768", values)).unwrap().paths
    }

    #[test]
    fn reads_what_libxl_writes() {
        let phy_file = [
            ("params", "/images/h1.raw"),
            ("mode", "w"),
            ("script", "/etc/xen/scripts/block"),
            ("node", "/dev/loop1"),
            ("physical-device-path", "/dev/loop1"),
        ];
        assert_eq!(paths(&phy_file), ["/images/h1.raw", "/dev/loop1"].map(PathBuf::from));
        assert_eq!(
            paths(&[("params", "/dev/vg/lv"), ("mode", "w"), ("physical-device-path", "/dev/vg/lv")]),
            [PathBuf::from("/dev/vg/lv")]
        );
        assert_eq!(paths(&[("params", "aio:/images/h2.raw"), ("mode", "w")]), [PathBuf::from("/images/h2.raw")]);
        assert_eq!(paths(&[("params", "qcow2:/images/h2.qcow2"), ("mode", "r")]), [PathBuf::from("/images/h2.qcow2")]);
        assert_eq!(paths(&[("params", "tap:vhd:/images/a"), ("mode", "w")]), [PathBuf::from("/images/a")]);
        assert_eq!(paths(&[("params", "/images/vhd:x"), ("mode", "w")]), [PathBuf::from("/images/vhd:x")]);
    }

    #[test]
    fn an_empty_drive_and_a_network_disk_have_no_path() {
        for params in
            ["", "aio:", "rbd:pool/image", "nbd+unix:///?socket=/s", "iqn.2001-04.com.example:storage", "json:{}"]
        {
            assert_eq!(paths(&[("params", params), ("mode", "w")]), Vec::<PathBuf>::new(), "{params}");
        }
        assert_eq!(paths(&[("mode", "r")]), Vec::<PathBuf>::new());
    }

    #[test]
    fn openxts_qemu_opens_the_loop_device_first_of_all() {
        let values = [("params", "/storage/swap.raw"), ("mode", "w"), ("loop-device", "/dev/loop3")];
        assert_eq!(paths(&values), ["/dev/loop3", "/storage/swap.raw"].map(PathBuf::from));
    }

    #[test]
    fn the_socket_of_a_daemon_is_no_disk() {
        let socket = "/run/nbd.sock";
        let values =
            [("params", "nbd:unix:/run/nbd.sock:exportname=a"), ("mode", "w"), ("physical-device-path", socket)];
        assert_eq!(paths(&values), Vec::<PathBuf>::new());
    }

    #[test]
    fn a_script_disk_is_the_device_its_script_made() {
        let values = [
            ("params", "resource0"),
            ("mode", "w"),
            ("script", "/etc/xen/scripts/block-drbd"),
            ("physical-device-path", "/dev/drbd1"),
        ];
        assert_eq!(paths(&values), [PathBuf::from("/dev/drbd1")]);
    }

    #[test]
    fn is_qcow2_only_where_qemu_is_told_so() {
        for (path, params, qcow2) in [
            ("qdisk/2/768", "qcow2:/images/a", true),
            ("qdisk/2/768", "aio:/images/a.qcow2", false),
            ("qdisk/2/768", "qcow:/images/a", false),
            ("qdisk/2/768", "/images/qcow2:a", false),
            ("tap/2/768", "qcow2:/images/a", false),
            ("vbd/2/768", "qcow2:/images/a", false),
        ] {
            let found = vbd(&backend(path, &[("params", params), ("mode", "w")])).unwrap();
            assert_eq!(found.qcow2, qcow2, "{path} {params}");
        }
    }

    #[test]
    fn refuses_a_relative_path_and_a_missing_mode() {
        for params in ["h1.raw", "aio:h1.raw", "../etc/shadow", "a/b:c"] {
            assert!(
                matches!(
                    vbd(&backend("qdisk/2/768", &[("params", params), ("mode", "w")])),
                    Err(Refused::Relative(..))
                ),
                "{params}"
            );
        }
        for mode in ["", "w!", "rw", "W"] {
            assert!(
                matches!(vbd(&backend("qdisk/2/768", &[("params", "/a"), ("mode", mode)])), Err(Refused::Mode(..))),
                "{mode}"
            );
        }
        assert!(matches!(vbd(&backend("qdisk/2/768", &[("params", "/a")])), Err(Refused::Mode(..))));
    }

    #[test]
    fn believes_only_backends_that_libxl_recorded() {
        let dom0 = "0".parse().unwrap();
        let ours = backend("vbd/2/768", &[("params", "/a"), ("mode", "w")]);
        let leftover = backend("vbd/2/832", &[("params", "/b"), ("mode", "w")]);
        let record = nodes(&[("backend", "/local/domain/0/backend/vbd/2/768"), ("params", "/a"), ("mode", "w")]);
        let remote = nodes(&[("backend", "/local/domain/5/backend/vbd/2/51712"), ("params", "/c"), ("mode", "w")]);
        let found = known(vec![ours.clone(), leftover.clone()], &[record.clone(), remote], dom0).unwrap();
        assert_eq!(found.iter().map(|b| &b.path).collect::<Vec<_>>(), [&ours.path]);
        assert_eq!(known(vec![ours.clone(), leftover], &[], dom0).unwrap().len(), 2);

        let changed = nodes(&[("backend", "/local/domain/0/backend/vbd/2/768"), ("params", "/z"), ("mode", "w")]);
        assert!(matches!(known(vec![ours], &[changed], dom0), Err(Refused::Disagree(_, "params"))));
        assert!(matches!(known(vec![], &[record], dom0), Err(Refused::Gone(_))));
    }

    proptest! {
        #[test]
        fn every_path_found_is_absolute(params in proptest::collection::vec(any::<u8>(), 0..40)) {
            if let Place::Local(path) = place(&params) {
                prop_assert!(path.is_absolute());
            }
        }
    }
}
