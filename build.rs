//! Tells the program which commit it is built from: `SSM_COMMIT`, unset outside of a git checkout.

#![allow(clippy::print_stdout, reason = "how a build script speaks to cargo")]

use std::{fs, path::Path, process::Command};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let git = |arguments: &[&str]| -> Option<String> {
        let output = Command::new("git").arg("-C").arg(root).args(arguments).output().ok()?;
        let text = String::from_utf8(output.stdout).ok()?;
        output.status.success().then(|| text.trim().to_owned())
    };
    // An archive of the sources may lie inside of somebody else's checkout.
    let ours = git(&["rev-parse", "--show-toplevel"])
        .is_some_and(|top| fs::canonicalize(top).ok() == fs::canonicalize(root).ok());
    let Some(commit) = git(&["rev-parse", "HEAD"]).filter(|_| ours) else { return };
    for name in ["HEAD", "refs/heads", "packed-refs"] {
        let path = git(&["rev-parse", "--git-path", name]).map(|path| root.join(path));
        // A path that is not there would run this script for every build.
        if let Some(path) = path.filter(|path| path.exists()) {
            println!("cargo:rerun-if-changed={}", path.display());
        }
    }
    println!("cargo:rustc-env=SSM_COMMIT={commit}");
}
