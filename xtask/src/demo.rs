//! `cargo xtask demo`: sets up, builds, and shows steer at work. What is shown is `tests/src/bin/demo`.

use anyhow::Result;
use clap::ValueEnum;

use crate::programs;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Where steer attaches at the uplink
    #[arg(long, value_enum, default_value_t = Hook::Tc)]
    attach: Hook,
    /// Which Docker runs the containers
    #[arg(long, value_enum, default_value_t = Whose::Auto)]
    docker: Whose,
    /// How long the pauses between the steps are, relative to the usual
    #[arg(long, default_value_t = 1.0)]
    seconds_scale: f64,
    /// Requests per second, half of them each on a connection of its own
    #[arg(long, default_value_t = 4000)]
    rate: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Hook {
    Tc,
    Xdp,
}

#[derive(Clone, Copy, ValueEnum)]
enum Whose {
    /// The one that runs on this machine, if it can be used, else a private one
    Auto,
    /// The one that runs on this machine, or an error
    Running,
    /// A throwaway dockerd in a network namespace of its own
    Private,
}

/// False: something that it needs is still missing. Otherwise this process becomes the demo, and what was lost is its exit code.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let Args { attach, docker, seconds_scale, rate } = args;
    let words = [
        format!("--attach={}", word(attach)),
        format!("--docker={}", word(docker)),
        format!("--seconds-scale={seconds_scale}"),
        format!("--rate={rate}"),
    ];
    programs::become_program("demo", &words)
}

/// A value as it is typed.
fn word(value: &impl ValueEnum) -> String {
    value.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default()
}
