//! Whatever comes from outside, as libFuzzer makes it up. `$FUZZ_TARGET` names the parser that gets it.

#![no_main]

mod parsers;
mod xenstored;

use std::sync::OnceLock;

use libfuzzer_sys::fuzz_target;

type Target = fn(&[u8]);

const TARGETS: [(&str, Target); 7] = [
    ("argv", parsers::argv),
    ("config", parsers::config),
    ("context", parsers::context),
    ("journal", parsers::journal),
    ("qcow2", parsers::qcow2),
    ("vbd", parsers::vbd),
    ("xenstore", xenstored::answers),
];

fuzz_target!(|data: &[u8]| {
    static TARGET: OnceLock<Target> = OnceLock::new();
    TARGET.get_or_init(|| {
        let wanted = std::env::var("FUZZ_TARGET").unwrap_or_default();
        let target = TARGETS.into_iter().find(|(name, _)| *name == wanted);
        target.unwrap_or_else(|| panic!("FUZZ_TARGET names no target: {wanted:?}")).1
    })(data);
});
