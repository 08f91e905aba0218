//! Compiles the BPF programs and leaves the object in `OUT_DIR`, where `dataplane::load` embeds it.
//!
//! Not by aya-build: it fixes the compiler's flags, and steer needs one more. Version 3 of the instruction set has the atomic
//! additions that the flow tables live on, and 32-bit registers, without which every program is a third longer.

use std::env;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

const TARGET: &str = "bpfel-unknown-none";

fn main() -> Result<()> {
    let out = PathBuf::from(env::var_os("OUT_DIR").context("OUT_DIR is not set")?);
    // Asked when it runs: clones that share a target directory share this program, compiled in one of them.
    let root = Path::new(&env::var_os("CARGO_MANIFEST_DIR").context("CARGO_MANIFEST_DIR is not set")?).join("..");
    for source in ["steer-ebpf", "steer-common/src", "steer-common/Cargo.toml"] {
        println!("cargo:rerun-if-changed=../{source}");
    }
    let arch = env::var("CARGO_CFG_TARGET_ARCH").context("CARGO_CFG_TARGET_ARCH is not set")?;
    // Apart from this build's own directory: cargo locks the one it builds in.
    let target_dir = out.join("bpf");
    let flags = [&format!("--cfg=bpf_target_arch=\"{arch}\""), "-Ctarget-cpu=v3", "-Cdebuginfo=2", "-Clink-arg=--btf"]
        .join("\x1f");
    let status = Command::new(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
        .current_dir(&root)
        .args(["build", "--quiet", "--release", "--package", "steer-ebpf", "--bins", "--target", TARGET])
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(&target_dir)
        // One toolchain builds both worlds: the pinned stable compiler opens `-Z` and BPF's core to who asks for it.
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", flags)
        // Set for the build of this crate, wrong for that one.
        .env_remove("RUSTC")
        .env_remove("RUSTC_WORKSPACE_WRAPPER")
        .env_remove("CARGO_BUILD_TARGET")
        .status()
        .context("starting cargo for steer-ebpf")?;
    ensure!(
        status.success(),
        "building steer-ebpf failed ({status}); is bpf-linker there? `cargo xtask setup` installs what is missing"
    );
    let object = target_dir.join(TARGET).join("release/steer");
    std::fs::copy(&object, out.join("steer.bpf.o")).with_context(|| format!("copying {}", object.display()))?;
    Ok(())
}
