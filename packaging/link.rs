//! The build script: links the unwinder of libgcc statically, as `cc -static-libgcc` does. A library less is loaded, as root,
//! before every guest: a tenth of a millisecond.

use std::env;
use std::path::PathBuf;
use std::process::Command;

fn main() {
    println!("cargo::rerun-if-changed=packaging/link.rs");
    println!("cargo::rerun-if-env-changed=RUSTC_LINKER");
    // where the compiler has none, the shared one does as well
    if let Some(directory) = archive().as_deref().and_then(|archive| archive.parent()?.to_str()) {
        println!("cargo::rustc-link-search=native={directory}");
        println!("cargo::rustc-link-lib=static=gcc_eh");
    }
}

/// By its whole path: a compiler that does not have it answers with the bare name.
fn archive() -> Option<PathBuf> {
    let compiler = env::var_os("RUSTC_LINKER").unwrap_or_else(|| "cc".into());
    let output = Command::new(compiler).arg("-print-file-name=libgcc_eh.a").output().ok()?;
    let path = PathBuf::from(str::from_utf8(&output.stdout).ok()?.trim_end());
    Some(path).filter(|path| path.is_absolute())
}
