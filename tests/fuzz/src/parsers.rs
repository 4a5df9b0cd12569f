//! The parsers of values: each refuses its input, or makes something of it that holds.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;

use svirt_interpose::argv::{self, Target};
use svirt_interpose::claim::{Journal, Name};
use svirt_interpose::config::Config;
use svirt_interpose::context::Context;
use svirt_interpose::mcs::{InUse, Pair, Set};
use svirt_interpose::object::Identity;
use svirt_interpose::qcow2;
use svirt_interpose::vbd::{self, Backend, Nodes};

/// The words of a command line, a NUL between each two.
pub(crate) fn argv(data: &[u8]) {
    let args: Vec<OsString> = data.split(|byte| *byte == 0).map(|word| OsStr::from_bytes(word).into()).collect();
    if let Ok(Target::Guest(domid)) = argv::target(&args) {
        assert!(!domid.is_dom0());
        let digits = domid.to_string();
        assert!(args.iter().any(|word| String::from_utf8_lossy(word.as_bytes()).contains(&digits)));
    }
}

pub(crate) fn config(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    match text.parse::<Config>() {
        Ok(config) => {
            let paths = [&config.qemu, &config.state_dir].into_iter().chain(&config.backing_dirs);
            assert!(paths.into_iter().all(|path| path.is_absolute()));
        }
        Err(error) => assert!(!format!("{error:#}").contains('\n')),
    }
}

/// A context, a set, a pair, the name of a claim, an object's identity: what is read back is what was meant.
pub(crate) fn context(data: &[u8]) {
    let Ok(text) = str::from_utf8(data) else { return };
    let first: Pair = "c0,c1".parse().unwrap();
    if let Ok(context) = text.parse::<Context>() {
        assert_eq!(context.to_string().parse::<Context>().as_ref(), Ok(&context));
        let given = context.with_pair(first);
        assert!(given.is_single_level() && *given.categories() == first.set());
    }
    if let Ok(set) = text.parse::<Set>() {
        assert_eq!(set.to_string().parse::<Set>().as_ref(), Ok(&set));
        assert_eq!(set.comparable(&first.set()), first.set().comparable(&set));
        let mut in_use = InUse::default();
        in_use.extend([set.clone()]);
        assert_eq!(in_use.collides(first), set.comparable(&first.set()));
    }
    if let Ok(pair) = text.parse::<Pair>() {
        assert_eq!((pair.to_string().parse(), Pair::of(&pair.set())), (Ok(pair), Some(pair)));
    }
    if let Ok(name) = text.parse::<Name>() {
        assert_eq!(name.to_string(), text);
    }
    if let Ok(identity) = text.parse::<Identity>() {
        assert_eq!(identity.to_string(), text);
    }
}

/// A claim: read, written anew and read again it says the same, and a torn line behind it says nothing.
pub(crate) fn journal(data: &[u8]) {
    let Ok(journal) = Journal::parse(data) else { return };
    let says = |journal: &Journal| (journal.holders.clone(), journal.labels.clone());
    assert_eq!(says(&Journal::parse(journal.text().as_bytes()).unwrap()), says(&journal));
    let Some(end) = data.iter().rposition(|byte| *byte == b'\n').map(|end| end + 1) else { return };
    let torn = [&data[..end], b"holder domid=1 vm"].concat();
    assert_eq!(Journal::parse(&torn).unwrap(), Journal::parse(&data[..end]).unwrap());
}

pub(crate) fn qcow2(data: &[u8]) {
    if let Ok(Some(layer)) = qcow2::below(Path::new("/images/disk"), data) {
        assert!(layer.path.is_absolute());
    }
}

/// A backend's nodes and libxl's record of it, in the order of their lists, a NUL between each two.
pub(crate) fn vbd(data: &[u8]) {
    let mut values = data.split(|byte| *byte == 0).map(<[u8]>::to_vec);
    let mut nodes = |names: &[&'static str]| -> Nodes { names.iter().copied().zip(values.by_ref()).collect() };
    let backend = Backend { path: "/local/domain/0/backend/qdisk/1/768".into(), nodes: nodes(vbd::NODES) };
    let listed = [nodes(vbd::LISTED_NODES)];
    if let Ok(vbd) = vbd::vbd(&backend) {
        assert!(vbd.paths.iter().all(|path| path.is_absolute()));
    }
    let known = vbd::known(vec![backend], &listed, "0".parse().unwrap());
    assert!(known.is_err() || known.unwrap().len() <= listed.len());
}
