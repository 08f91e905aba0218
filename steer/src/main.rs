//! The `steer` binary: parse, log, dispatch, exit.

use std::io::{IsTerminal as _, stderr};
use std::process::ExitCode;

use anyhow::Context as _;
use clap::Parser as _;
use steer::cli::{Cli, Command};
use steer::commands;
use tokio::runtime::Builder;
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let cli = Cli::parse();
    start(cli).unwrap_or_else(|error| {
        eprintln!("steer: {error:#}");
        ExitCode::FAILURE
    })
}

fn start(cli: Cli) -> anyhow::Result<ExitCode> {
    let filter = EnvFilter::try_new(&cli.log).with_context(|| format!("cannot log as --log {} says", cli.log))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(stderr).with_ansi(stderr().is_terminal()).init();
    let mut builder = match cli.command {
        Command::Run(_) => Builder::new_multi_thread(),
        _ => Builder::new_current_thread(),
    };
    let runtime = builder.worker_threads(2).enable_all().build().context("cannot start the async runtime")?;
    runtime.block_on(commands::execute(cli))
}
