//! Where the programs are that tests start.

use std::env;
use std::path::{Path, PathBuf};

/// What programs for other systems are built for.
const TARGET: &str = "x86_64-unknown-linux-musl";

/// The directory with `greeter` and `load`: `STEER_TESTS_BIN_DIR`, else where cargo puts them for the musl target.
fn bin_dir() -> PathBuf {
    match env::var_os("STEER_TESTS_BIN_DIR") {
        Some(dir) => dir.into(),
        None => target_dir().join(TARGET).join("release"),
    }
}

/// Cargo's target directory: this test runs from `<target>/<profile>/deps/`, or `<target>/<triple>/<profile>/deps/`.
fn target_dir() -> PathBuf {
    let own = env::current_exe().ok();
    let mut above = own.iter().flat_map(|path| path.ancestors().skip(3));
    let target = above.find(|dir| !dir.ends_with(TARGET)).map(Path::to_owned);
    target.unwrap_or_else(|| PathBuf::from("target"))
}

/// `greeter` or `load`, or words on how to build them.
pub(crate) fn built(name: &str) -> Result<PathBuf, String> {
    let path = bin_dir().join(name);
    if path.is_file() {
        return Ok(path);
    }
    let how = "cargo build --release -p steer-tests --no-default-features --bins --target x86_64-unknown-linux-musl";
    Err(format!("{} is not built ({how})", path.display()))
}

/// The product: `STEER_BIN`, else a release build, else a debug build.
pub(crate) fn steer() -> Result<PathBuf, String> {
    let candidates = match env::var_os("STEER_BIN") {
        Some(path) => vec![PathBuf::from(path)],
        None => ["release/steer", "debug/steer"].map(|path| target_dir().join(path)).to_vec(),
    };
    let names = format!("steer is not built ({})", candidates[0].display());
    candidates.into_iter().find(|path| path.is_file()).ok_or(names)
}

/// A program of the system.
pub(crate) fn find(name: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH").unwrap_or_default();
    let system = ["/usr/local/sbin", "/usr/sbin", "/sbin"].map(PathBuf::from);
    env::split_paths(&path).chain(system).map(|dir| dir.join(name)).find(|path| path.is_file())
}
