//! `cargo xtask <task>`: what a developer of steer types. This file only dispatches; each task has its own file.

mod bench;
mod check;
mod ci;
mod cmd;
mod demo;
mod packages;
mod programs;
mod progress;
mod purity;
mod retry;
mod setup;
mod tally;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::Result;
use clap::{Parser, Subcommand};

/// Sets up, checks and tests steer.
#[derive(Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Cli {
    #[command(subcommand)]
    task: Task,
}

#[derive(Subcommand)]
enum Task {
    /// Install what is missing to build and test steer, and say what was found
    Setup,
    /// Formatting, clippy (host and BPF), the purity rule, the verifier's ceiling (as root), licences of dependencies
    Check(check::Args),
    /// Every test tier, from plain unit tests to real Docker
    Test(test::Args),
    /// Steer at work: containers are scaled and replaced under load, and a table shows what goes where
    Demo(demo::Args),
    /// Measure steer beside no balancer, Docker's published port and HAProxy
    Bench(bench::Args),
    /// The same tests in virtual machines: Debian's kernels and Dockers
    Vm(vm::Args),
    /// What CI runs: setup, check, test
    Ci,
}

fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(err) => {
            eprintln!("error: {err:#}");
            ExitCode::FAILURE
        }
    }
}

/// False: the task ran and what it found is not good; it has said so itself.
fn run(cli: Cli) -> Result<bool> {
    match cli.task {
        Task::Setup => setup::run(),
        Task::Check(args) => check::run(&args),
        Task::Test(args) => {
            let outcome = test::run(&args)?;
            outcome.print();
            Ok(outcome.is_good())
        }
        Task::Demo(args) => demo::run(&args),
        Task::Bench(args) => bench::run(&args),
        Task::Vm(args) => vm::run(&args),
        Task::Ci => ci::run(),
    }
}
