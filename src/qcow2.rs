//! Which file a qcow2 image stands on, by its header.
//!
//! The header is read as QEMU reads it (`qcow2_do_open` and `qcow2_read_extensions` in block/qcow2.c) and not trusted:
//! a device model that was broken into can write any into its own image.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use serde::Deserialize;

/// How much of an image is looked at: the name of its backing file comes after a few hundred bytes of header.
pub const HEADER: u64 = 1 << 16;

/// The bounds of a cluster's size, as powers of two.
const CLUSTER_BITS: std::ops::RangeInclusive<u64> = 9..=21;

/// The longest name.
const NAME: u64 = 1023;

/// The incompatible feature of an image whose data is in another file.
const DATA_FILE: u64 = 1 << 2;

/// The header extensions that end the others and that name the backing file's format.
const END: u64 = 0;
const BACKING_FORMAT: u64 = 0xe279_2aca;

/// A file that an image stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layer {
    /// Where QEMU looks for it.
    pub path: PathBuf,
    /// Whether it is to be qcow2 itself, and so may stand on another.
    pub qcow2: bool,
}

/// Why it cannot be told what an image stands on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// It does not begin as a qcow2 image does.
    Magic,
    /// QEMU would refuse it too, or the header goes on beyond [`HEADER`] or the end of the image.
    Malformed(&'static str),
    /// Its data is in another file, which QEMU would write.
    DataFile,
    /// It does not say which format its backing file has, and QEMU would guess by what is in it (CVE-2010-2238).
    Format(String),
    /// The name is a path that starts where QEMU does, not at the image.
    Relative(String),
    /// A `json:` name of something else than a file and its format.
    Json(String),
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Magic => f.write_str("it is no qcow2 image of version 2 or 3"),
            Self::Malformed(what) => write!(f, "{what}"),
            Self::DataFile => {
                f.write_str("its data is in another file, which no launch labels: qemu-img convert it to one file")
            }
            Self::Format(name) => {
                write!(f, "it does not say which format its backing file {name:?} has: qemu-img rebase -u -F FORMAT")
            }
            Self::Relative(name) => write!(f, "its backing file {name:?} is no absolute path: qemu-img rebase -u"),
            Self::Json(name) => write!(f, "its backing file {name:?} names no file and its format: qemu-img rebase -u"),
        }
    }
}

impl std::error::Error for Refused {}

/// The file that an image stands on; `None` where it stands on nothing, or on nothing of this host (`nbd:`, `rbd:`).
/// `header` are its first bytes, and `image` the path that QEMU opens it by.
///
/// # Errors
/// [`Refused`].
pub fn below(image: &Path, header: &[u8]) -> Result<Option<Layer>, Refused> {
    let Some(Backing { name, qcow2 }) = backing(header)? else { return Ok(None) };
    let text = || String::from_utf8_lossy(name).into_owned();
    let (path, qcow2) = match protocol(name) {
        None => (image.parent().unwrap_or(image).join(OsStr::from_bytes(name)), qcow2),
        Some((b"file", path)) => (OsStr::from_bytes(path).into(), qcow2),
        Some((b"json", options)) => {
            let (path, driver) = json(options).ok_or_else(|| Refused::Json(text()))?;
            (path, qcow2.or(driver))
        }
        Some(_) => return Ok(None),
    };
    if !path.is_absolute() {
        return Err(Refused::Relative(text()));
    }
    let qcow2 = qcow2.ok_or_else(|| Refused::Format(text()))?;
    Ok(Some(Layer { path, qcow2 }))
}

/// What a header says of the backing file.
struct Backing<'a> {
    name: &'a [u8],
    /// Whether its format is qcow2; `None` where that is not said.
    qcow2: Option<bool>,
}

fn backing(header: &[u8]) -> Result<Option<Backing<'_>>, Refused> {
    let part = |at: u64, length: u64| {
        let end = at.checked_add(length).and_then(|end| usize::try_from(end).ok());
        let part = usize::try_from(at).ok().zip(end).and_then(|(at, end)| header.get(at..end));
        part.ok_or(Refused::Malformed("its header is cut off"))
    };
    let text = |at, length| Ok(part(at, length)?.split(|byte| *byte == 0).next().unwrap_or_default());
    let number = |at, length| Ok(part(at, length)?.iter().fold(0, |number, byte| number << 8 | u64::from(*byte)));
    let within = |what, within| if within { Ok(()) } else { Err(Refused::Malformed(what)) };

    let version = if header.starts_with(b"QFI\xfb") { number(4, 4)? } else { 0 };
    let (length, features) = match version {
        2 => (72, 0),
        3 => (number(100, 4)?, number(72, 8)?),
        _ => return Err(Refused::Magic),
    };
    let (name_at, name_length, cluster_bits) = (number(8, 8)?, number(16, 4)?, number(20, 4)?);
    within("its cluster size is out of bounds", CLUSTER_BITS.contains(&cluster_bits))?;
    let cluster = 1 << cluster_bits;
    within("the length of its header is out of bounds", version == 2 || (104..=cluster).contains(&length))?;
    if features & DATA_FILE != 0 {
        return Err(Refused::DataFile);
    }
    if name_at == 0 {
        return Ok(None);
    }
    let room = cluster.saturating_sub(name_at);
    within("the name of its backing file is out of bounds", name_length <= room.min(NAME))?;

    let mut qcow2 = None;
    let mut at = length;
    while at < name_at {
        let (kind, length) = (number(at, 4)?, number(at + 4, 4)?);
        at += 8;
        within("a header extension is out of bounds", at + length <= name_at)?;
        match kind {
            END => break,
            BACKING_FORMAT => qcow2 = Some(text(at, length)? == b"qcow2"),
            _ => {}
        }
        at += length.next_multiple_of(8);
    }
    let name = text(name_at, name_length)?;
    Ok((!name.is_empty()).then_some(Backing { name, qcow2 }))
}

/// What stands before and after the colon of a name that is no path (`path_has_protocol` in QEMU's block.c).
fn protocol(name: &[u8]) -> Option<(&[u8], &[u8])> {
    let at = name.iter().position(|byte| matches!(byte, b':' | b'/'))?;
    match name.split_at(at) {
        (protocol, [b':', rest @ ..]) => Some((protocol, rest)),
        _ => None,
    }
}

/// A file and its format as block device options, nested or flat.
fn json(text: &[u8]) -> Option<(PathBuf, Option<bool>)> {
    #[derive(Deserialize)]
    struct Options {
        driver: Option<String>,
        #[serde(alias = "file.filename")]
        filename: Option<PathBuf>,
        file: Option<File>,
    }
    #[derive(Deserialize)]
    struct File {
        filename: PathBuf,
    }
    let options: Options = serde_json::from_slice(text).ok()?;
    let path = options.filename.or(options.file.map(|file| file.filename))?;
    Some((path, options.driver.map(|driver| driver == "qcow2")))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// An image of that version as far as its backing file's name.
    fn image(version: u32, extensions: &[(u64, &[u8])], name: &[u8]) -> Vec<u8> {
        let mut all = vec![0; if version == 2 { 72 } else { 112 }];
        let mut set = |at: usize, bytes: &[u8]| all[at..at + bytes.len()].copy_from_slice(bytes);
        set(0, b"QFI\xfb");
        set(4, &version.to_be_bytes());
        set(20, &16u32.to_be_bytes());
        if version == 3 {
            set(100, &112u32.to_be_bytes());
        }
        for (kind, data) in extensions {
            all.extend(&kind.to_be_bytes()[4..]);
            all.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
            all.extend(*data);
            all.resize(all.len().next_multiple_of(8), 0);
        }
        all.extend([0; 8]);
        let at = u64::try_from(all.len()).unwrap();
        all[8..16].copy_from_slice(&at.to_be_bytes());
        all[16..20].copy_from_slice(&u32::try_from(name.len()).unwrap().to_be_bytes());
        all.extend(name);
        all
    }

    /// An image of version 3 that says the format of its backing file.
    fn standing_on(name: &str, format: &str) -> Vec<u8> {
        image(3, &[(BACKING_FORMAT, format.as_bytes())], name.as_bytes())
    }

    fn read(header: &[u8]) -> Result<Option<Layer>, Refused> {
        below(Path::new("/images/a.qcow2"), header)
    }

    fn layer(path: &str, qcow2: bool) -> Layer {
        Layer { path: path.into(), qcow2 }
    }

    fn from_hex(text: &str) -> Vec<u8> {
        let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
        digits.chunks(2).map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap()).collect()
    }

    #[test]
    fn reads_what_qemu_img_writes() {
        // qemu-img create -f qcow2 -o compat=0.10 -b mid.qcow2 -F qcow2
        let version_2 = from_hex(
            "514649fb 00000002 0000000000000060 00000009 00000010 0000000000100000 00000000 00000001 0000000000030000
             0000000000010000 00000001 00000000 0000000000000000 e2792aca 00000005 71636f7732000000 00000000 00000000
             6d69642e71636f7732",
        );
        assert_eq!(read(&version_2), Ok(Some(layer("/images/mid.qcow2", true))));
        // qemu-img create -f qcow2 -o cluster_size=512 -b base.raw -F raw
        let version_3 = from_hex(
            "514649fb 00000003 0000000000000088 00000008 00000009 0000000000100000 00000000 00000020 0000000000000600
             0000000000000200 00000001 00000000 0000000000000000 0000000000000000 0000000000000000 0000000000000000
             00000004 00000070 0000000000000000 e2792aca 00000003 7261770000000000 00000000 00000000 626173652e726177",
        );
        assert_eq!(read(&version_3), Ok(Some(layer("/images/base.raw", false))));
    }

    #[test]
    fn finds_the_format_among_other_extensions() {
        let features = [0; 384];
        let extensions: [(u64, &[u8]); 3] =
            [(0x6803_f857, &features), (BACKING_FORMAT, b"qcow2"), (0x1234_5678, b"unknown")];
        for version in [2, 3] {
            assert_eq!(read(&image(version, &extensions, b"/b")), Ok(Some(layer("/b", true))));
        }
    }

    #[test]
    fn a_name_means_what_it_means_to_qemu() {
        for (name, path) in [
            ("b.qcow2", "/images/b.qcow2"),
            ("../templates/b", "/images/../templates/b"),
            ("./a:b", "/images/./a:b"),
            ("/b:c", "/b:c"),
            ("file:/b", "/b"),
            (r#"json:{"driver":"qcow2","file":{"driver":"file","filename":"/b"}}"#, "/b"),
            (r#"json:{"file.filename": "/b"}"#, "/b"),
            (r#"json:{"driver":"file","filename":"/b"}"#, "/b"),
        ] {
            assert_eq!(read(&standing_on(name, "raw")), Ok(Some(layer(path, false))), "{name}");
        }
    }

    #[test]
    fn the_header_says_the_format_or_else_the_name_does() {
        let name = r#"json:{"driver":"qcow2","file":{"filename":"/b"}}"#;
        assert_eq!(read(&image(3, &[], name.as_bytes())), Ok(Some(layer("/b", true))));
        assert_eq!(read(&standing_on(name, "raw")), Ok(Some(layer("/b", false))));
    }

    #[test]
    fn what_is_not_on_this_host_ends_the_chain() {
        for name in ["nbd:host:10809", "nbd+unix:///?socket=/s", "rbd:pool/image", "https://host/b", ":", "a:b"] {
            assert_eq!(read(&standing_on(name, "raw")), Ok(None), "{name}");
        }
        for name in ["", "\0b"] {
            assert_eq!(read(&standing_on(name, "raw")), Ok(None), "{name:?}");
        }
        assert_eq!(read(&standing_on("/b\0c", "qcow2\0")), Ok(Some(layer("/b", true))));
    }

    #[test]
    fn refuses_a_format_that_qemu_would_guess() {
        assert_eq!(read(&image(3, &[], b"b")), Err(Refused::Format("b".into())));
        let name = r#"json:{"file.filename":"/b"}"#;
        assert_eq!(read(&image(3, &[], name.as_bytes())), Err(Refused::Format(name.into())));
    }

    #[test]
    fn refuses_a_name_that_means_no_file() {
        for name in ["file:b", r#"json:{"driver":"qcow2","file":{"filename":"b"}}"#] {
            assert_eq!(read(&standing_on(name, "raw")), Err(Refused::Relative(name.into())));
        }
        for name in [
            "json:",
            "json:{}",
            "json:[]",
            r#"json:{"driver":"qcow2","file":"node"}"#,
            r#"json:{"driver":"nbd","host":"h"}"#,
            r#"json:{"driver":"throttle","file":{"driver":"qcow2","file":{"filename":"/b"}}}"#,
            r#"json:{"filename":"/a","filename":"/b"}"#,
        ] {
            assert_eq!(read(&standing_on(name, "raw")), Err(Refused::Json(name.into())));
        }
    }

    #[test]
    fn refuses_data_in_another_file() {
        let mut header = standing_on("b", "raw");
        header[79] = 4;
        assert_eq!(read(&header), Err(Refused::DataFile));
    }

    #[test]
    fn refuses_what_qemu_refuses() {
        let broken = |at: usize, bytes: &[u8]| {
            let mut header = standing_on("b", "raw");
            header[at..at + bytes.len()].copy_from_slice(bytes);
            read(&header).unwrap_err()
        };
        assert_eq!(broken(0, b"QFI\xfa"), Refused::Magic);
        assert_eq!(broken(4, &[0, 0, 0, 1]), Refused::Magic);
        assert_eq!(broken(4, &[0, 0, 0, 4]), Refused::Magic);
        for (at, bytes, what) in [
            (8, &[0, 0, 0, 0, 0, 1, 0, 1][..], "the name of its backing file"),
            (8, &[0xff; 8], "the name of its backing file"),
            (20, &[0, 0, 0, 8], "its cluster size"),
            (20, &[0, 0, 0, 22], "its cluster size"),
            (100, &[0, 0, 0, 103], "the length of its header"),
            (100, &[0, 1, 0, 1], "the length of its header"),
            (116, &[0, 0, 0, 17], "a header extension"),
            (116, &[0xff; 4], "a header extension"),
        ] {
            let refused = broken(at, bytes).to_string();
            assert_eq!(refused, format!("{what} is out of bounds"), "{bytes:x?} at {at}");
        }
    }

    #[test]
    fn a_name_is_as_long_as_qemu_lets_it_be() {
        const LONG: Refused = Refused::Malformed("the name of its backing file is out of bounds");
        let name = "n".repeat(1024);
        assert_eq!(read(&standing_on(&name, "raw")), Err(LONG));
        assert_eq!(read(&standing_on(&name[1..], "raw")), Ok(Some(layer(&format!("/images/{}", &name[1..]), false))));
        // it ends with the cluster, whatever comes after that
        let in_cluster = |length: usize| {
            let mut header = standing_on(&name[..length], "raw");
            let room = 512 - (header.len() - length);
            header[23] = 9;
            header.resize(1024, b'n');
            (read(&header), room)
        };
        let (_, room) = in_cluster(1);
        assert!(in_cluster(room).0.is_ok());
        assert_eq!(in_cluster(room + 1).0, Err(LONG));
    }

    #[test]
    fn nothing_counts_after_the_last_extension() {
        let header = image(3, &[(END, b""), (BACKING_FORMAT, b"qcow2")], b"b");
        assert_eq!(read(&header), Err(Refused::Format("b".into())));
    }

    proptest! {
        #[test]
        fn any_bytes_are_read_or_refused(
            version in 2..4u32,
            extension in 0..1u64 << 32,
            data in proptest::collection::vec(any::<u8>(), 0..40),
            name in "(json:|file:|nbd:|/|\\.\\./)?[{}\":a-z./]{0,30}",
            changes in proptest::collection::vec((0..112usize, any::<u8>()), 0..4),
            cut in 0..200usize,
        ) {
            let mut header = image(version, &[(BACKING_FORMAT, b"qcow2"), (extension, &data)], name.as_bytes());
            for (at, byte) in changes {
                let at = at % header.len();
                header[at] = byte;
            }
            let whole = read(&header);
            if let Ok(Some(layer)) = &whole {
                prop_assert!(layer.path.is_absolute());
            }
            header.truncate(cut);
            if let Ok(part) = read(&header) {
                prop_assert_eq!(Ok(part), whole, "what is cut off is no other image");
            }
        }

        #[test]
        fn noise_is_read_or_refused(noise in proptest::collection::vec(any::<u8>(), 0..300)) {
            let _ = read(&noise);
            let _ = read(&[b"QFI\xfb\0\0\0\x03", &noise[..]].concat());
        }
    }
}
