//! `cargo xtask check`: everything that is known without steering a packet. All checks run, also behind one that failed.

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};

use crate::{
    cmd::{self, Privilege},
    programs::{self, PACKAGE, TestBuild},
    purity,
    test::{self, NO_SKIP},
};

/// Directories that hold decisions only (rule: `purity`).
const PURE: [&str; 2] = ["steer/src/model", "steer-common/src"];
const CRATES: [&str; 5] = ["steer", "steer-common", "steer-ebpf", "tests", "xtask"];
/// What the compiler of the BPF programs is told: the same as by `steer/build.rs`.
const BPF_FLAGS: [&str; 4] =
    ["--cfg=bpf_target_arch=\"x86_64\"", "-Ctarget-cpu=v3", "-Cdebuginfo=2", "-Clink-arg=--btf"];
/// The test binary that has this kernel's verifier look at every program, and holds a ceiling of instructions.
const VERIFIER: &str = "verifier";
/// A longer file should be split.
const MAX_LINES: usize = 500;

#[derive(clap::Args, Default)]
pub(crate) struct Args {
    /// Also look dependencies up in the advisory database, which is not reachable everywhere
    #[arg(long)]
    advisories: bool,
    /// The verifier's test is built as for virtual machines, static and optimised
    #[arg(long)]
    portable: bool,
}

impl Args {
    /// What is built serves the tests that follow.
    pub(crate) fn for_ci() -> Self {
        Self { portable: true, ..Self::default() }
    }
}

/// True when every check passed.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let checks: [(&str, &dyn Fn() -> Result<()>); 6] = [
        ("formatting", &|| cmd::run(&mut cmd::cargo(["fmt", "--all", "--check"]))),
        ("purity of the deciding code", &pure),
        ("clippy for the host", &clippy_host),
        ("clippy for BPF", &clippy_bpf),
        ("the verifier's ceiling", &|| verifier(TestBuild::of(args.portable), Privilege::of_this_process())),
        ("licences, bans and sources of dependencies", &|| deny(args.advisories)),
    ];
    let mut failed = Vec::new();
    for (what, check) in checks {
        println!("== check: {what}");
        if let Err(error) = check() {
            eprintln!("{error:#}");
            failed.push(what);
        }
    }
    warn_of_long_files()?;
    if failed.is_empty() {
        println!("check: all good");
    } else {
        println!("check: FAILED: {}", failed.join("; "));
    }
    Ok(failed.is_empty())
}

fn clippy_host() -> Result<()> {
    let mut clippy = cmd::cargo(["clippy", "--workspace", "--exclude", "steer-ebpf", "--all-targets"]);
    cmd::run(clippy.args(["--", "-D", "warnings"]))
}

/// With the flags that `steer/build.rs` compiles with, in a target directory of its own: other flags would throw away the host's
/// work.
fn clippy_bpf() -> Result<()> {
    let mut clippy = cmd::cargo(["clippy", "-p", "steer-ebpf", "--release", "--target", "bpfel-unknown-none"]);
    clippy
        .args(["-Z", "build-std=core", "--target-dir"])
        .arg(cmd::target_dir().join("clippy-bpf"))
        .args(["--", "-D", "warnings"])
        .env("RUSTC_BOOTSTRAP", "1")
        .env("CARGO_ENCODED_RUSTFLAGS", BPF_FLAGS.join("\u{1f}"));
    cmd::run(&mut clippy)
}

/// Built as for `cargo xtask test`, which then has it already.
fn verifier(build: TestBuild, privilege: Privilege) -> Result<()> {
    if privilege == Privilege::None {
        println!("skipped: the verifier's ceiling needs root");
        return Ok(());
    }
    let mut cargo = build.cargo();
    cargo.args(["--test", VERIFIER]);
    let tests = programs::build(cargo)?;
    let mut binaries = test::binaries(&tests, &test::test_package()?).into_iter();
    let (_, _, path) = binaries
        .find(|(_, name, _)| name == VERIFIER)
        .with_context(|| format!("{PACKAGE} has no test called {VERIFIER}"))?;
    cmd::run(&mut privilege.command(path.as_os_str(), &[(NO_SKIP, "1".into())]))
}

fn deny(advisories: bool) -> Result<()> {
    let mut deny = cmd::cargo(["deny", "--all-features", "check", "licenses", "bans", "sources"]);
    if advisories {
        deny.arg("advisories");
    }
    cmd::run(&mut deny)
}

fn pure() -> Result<()> {
    let mut found = Vec::new();
    for dir in PURE {
        for (path, text) in rust_files(dir)? {
            for (line, what) in purity::violations(&path, &text) {
                found.push(format!("{path}:{line}: names {what}; move this to the edge, or pass it in"));
            }
        }
    }
    if !found.is_empty() {
        bail!("{}", found.join("\n"));
    }
    Ok(())
}

fn warn_of_long_files() -> Result<()> {
    for dir in CRATES {
        for (path, text) in rust_files(dir)? {
            let lines = text.lines().count();
            if lines > MAX_LINES {
                println!("warning: {path} has {lines} lines; split it (the limit is {MAX_LINES})");
            }
        }
    }
    Ok(())
}

/// Every Rust file below a directory of the workspace: path from the root, and text.
fn rust_files(dir: &str) -> Result<Vec<(String, String)>> {
    let root = cmd::root();
    let mut files = Vec::new();
    let mut dirs = vec![PathBuf::from(dir)];
    while let Some(dir) = dirs.pop() {
        for entry in fs::read_dir(root.join(&dir)).with_context(|| format!("reading {}", dir.display()))? {
            let entry = entry.with_context(|| format!("reading {}", dir.display()))?;
            let path = dir.join(entry.file_name());
            if entry.file_type().with_context(|| format!("looking at {}", path.display()))?.is_dir() {
                if path.file_name() != Some("target".as_ref()) {
                    dirs.push(path);
                }
            } else if path.extension() == Some("rs".as_ref()) {
                files.push((path.display().to_string(), read(&root.join(&path))?));
            }
        }
    }
    files.sort();
    Ok(files)
}

fn read(path: &Path) -> Result<String> {
    fs::read_to_string(path).with_context(|| cmd::redact(&format!("reading {}", path.display())))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clippy_sees_the_programs_as_the_build_does() {
        let build = include_str!("../../steer/build.rs");
        for flag in BPF_FLAGS.iter().filter(|flag| !flag.starts_with("--cfg")) {
            assert!(build.contains(&format!("\"{flag}\"")), "{flag} is not in steer/build.rs");
        }
        assert_eq!(build.matches("\"-C").count(), BPF_FLAGS.len() - 1, "steer/build.rs has flags that clippy has not");
    }

    #[test]
    fn the_verifiers_test_is_there() {
        assert!(include_str!("../../tests/Cargo.toml").contains(&format!("name = \"{VERIFIER}\"")));
        verifier(TestBuild::Debug, Privilege::None).unwrap();
    }
}
