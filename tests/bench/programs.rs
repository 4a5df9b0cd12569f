//! The C programs of this directory, compiled once.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

/// One of them by its name.
pub(crate) fn program(name: &str) -> PathBuf {
    static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();
    let directory = DIRECTORY.get_or_init(|| {
        let directory = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench");
        std::fs::create_dir_all(&directory).unwrap();
        for (name, option) in
            [("walk", "-lxenstore"), ("plain", "-lselinux"), ("spawn", "-static"), ("target", "-static")]
        {
            let source = format!("{}/tests/bench/{name}.c", env!("CARGO_MANIFEST_DIR"));
            let mut cc = Command::new("cc");
            let cc = cc.args(["-O2", "-Wall", "-Werror", "-o"]).arg(directory.join(name)).arg(&source).arg(option);
            assert!(cc.status().unwrap().success(), "cannot compile {source}");
        }
        directory
    });
    directory.join(name)
}
