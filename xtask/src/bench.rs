//! `cargo xtask bench`: sets up, builds, and measures steer beside what it is compared with. What is measured, and how, is
//! `tests/src/bin/bench`.

use std::path::PathBuf;

use anyhow::{Context, Result};

use crate::programs;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Two short rounds instead of five: a first look
    #[arg(long)]
    quick: bool,
    /// Rounds; every way is measured once in each [default: 5, or 2 with --quick]
    #[arg(long)]
    rounds: Option<u32>,
    /// Measure only this: `kernel`
    #[arg(long, value_name = "PART")]
    only: Option<String>,
    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// Does not return when it has begun.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let Args { quick, rounds, only, json } = args;
    let mut words = Vec::new();
    words.extend(quick.then(|| "--quick".to_owned()));
    words.extend(rounds.map(|rounds| format!("--rounds={rounds}")));
    words.extend(only.as_ref().map(|part| format!("--only={part}")));
    if let Some(file) = json {
        // The program runs in another directory.
        let file = std::path::absolute(file).with_context(|| format!("--json {}", file.display()))?;
        words.push(format!("--json={}", file.display()));
    }
    programs::become_program("bench", &words)
}
