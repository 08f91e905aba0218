//! One file per subcommand.
//!
//! Each reads what it needs (the pinned maps, the agent's socket), hands plain values to pure functions that make text or
//! JSON of them ([`report`]), and prints.

pub mod backends;
pub mod detach;
pub mod doctor;
pub mod drain;
pub mod events;
pub mod explain;
pub mod flows;
mod lock;
pub mod report;
pub mod run;
pub mod services;
pub mod status;
pub mod undrain;
pub mod weight;

use std::io::{self, Write as _};
use std::process::ExitCode;

use anyhow::bail;
use serde::Serialize;

use crate::api::Changed;
use crate::cli::{Cli, Command};
use crate::dataplane::paths::Paths;

/// Does what was asked for.
pub async fn execute(Cli { instance, log: _, command }: Cli) -> anyhow::Result<ExitCode> {
    let paths = Paths::of(&instance);
    match command {
        Command::Run(args) => run::run(args, &instance).await?,
        Command::Status(args) => status::status(&args, &paths).await?,
        Command::Services(args) => services::services(&args, &paths)?,
        Command::Backends(args) => backends::backends(&args, &paths)?,
        Command::Flows(args) => flows::flows(&args, &paths)?,
        Command::Explain(args) => explain::explain(&args, &paths)?,
        Command::Events(args) => events::events(&args, &paths).await?,
        Command::Drain(args) => drain::drain(&args, &paths).await?,
        Command::Undrain(args) => undrain::undrain(&args, &paths).await?,
        Command::Weight(args) => weight::weight(&args, &paths).await?,
        Command::Detach(args) => detach::detach(&args, &paths).await?,
        Command::Doctor(args) => return doctor::doctor(&args, &paths).await,
    }
    Ok(ExitCode::SUCCESS)
}

/// Nothing comes of a change to a container that nobody is sent to.
fn ensure_steered_to(target: &str, changed: &Changed) -> anyhow::Result<()> {
    if changed.backends.is_empty() {
        bail!("{target} is known, and not steered to: `steer status` says why");
    }
    Ok(())
}

/// Prints text as it is. A reader that has seen enough (`| head`) is no failure.
fn print(text: &str) -> anyhow::Result<()> {
    print_on(text).map(drop)
}

/// The same; whether there still is a reader.
fn print_on(text: &str) -> anyhow::Result<bool> {
    let mut out = io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Ok(()) => Ok(true),
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    print(&format!("{}\n", serde_json::to_string_pretty(value)?))
}
