//! What is typed. What it means is [`crate::config`]'s business.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};
use steer_common::limits::MAX_WEIGHT;

use crate::dataplane::paths::DEFAULT_INSTANCE;

/// Steers each new TCP connection to a ready container, in the kernel, and keeps every connection where it began.
#[derive(Parser, Debug)]
#[command(
    name = "steer",
    version,
    max_term_width = 100,
    after_help = "Exit codes: 0 done; 1 failed, or not reached in time; 2 wrong usage."
)]
pub struct Cli {
    /// Name of this agent's pins and socket, for more than one agent on a host: a-z, 0-9 and `-`.
    #[arg(long, global = true, value_name = "NAME", default_value = DEFAULT_INSTANCE, value_parser = instance)]
    pub instance: String,

    /// What is logged to standard error: error, warn, info, debug, trace, or per module, as `info,steer::docker=debug`.
    #[arg(long, global = true, value_name = "LEVEL", env = "STEER_LOG", default_value = "info", value_parser = log_filter)]
    pub log: String,

    /// What is to be done.
    #[command(subcommand)]
    pub command: Command,
}

/// What steer is asked to do.
#[derive(Subcommand, Debug)]
pub enum Command {
    /// Run the agent in the foreground: attach, watch Docker, keep the kernel's tables true.
    Run(RunArgs),
    /// Show the agent, the services and their backends, counters and problems. Works without a running agent.
    Status(ListArgs),
    /// List services: frontends, balance, backends, flows. Works without a running agent.
    Services(ListArgs),
    /// List backends: state, its cause and age, weight, flows. Works without a running agent.
    Backends(BackendsArgs),
    /// List connections and the backend each is on. Works without a running agent.
    Flows(FlowsArgs),
    /// Say where a packet would go and why, candidate by candidate. Changes nothing, and works without a running agent.
    Explain(ExplainArgs),
    /// Show what happened to backends, each change with its source and cause; needs a running agent, which keeps the last 1,000.
    Events(EventsArgs),
    /// Take a backend out: its connections go on, it gets no new ones.
    Drain(DrainArgs),
    /// Take a drained backend back in: it gets new connections as soon as it is ready.
    Undrain(TargetArgs),
    /// Change a backend's share of new connections.
    Weight(WeightArgs),
    /// Take steer off this host: programs, maps and pins are removed, containers are left alone.
    Detach(DetachArgs),
    /// Say, line by line, what this host offers and what is in the way, with the remedy.
    Doctor(DoctorArgs),
}

/// What `steer run` takes; what is absent, the configuration file may say.
#[derive(Args, Clone, PartialEq, Eq, Debug, Default)]
pub struct RunArgs {
    /// Interface that clients come in by; may be given more than once [default: those with a default route].
    #[arg(long = "interface", value_name = "NAME")]
    pub interfaces: Vec<String>,

    /// Where the programs are attached at those interfaces [default: auto].
    #[arg(long, value_enum, value_name = "MODE")]
    pub attach: Option<AttachMode>,

    /// Docker's socket, as `unix:///var/run/docker.sock` or `tcp://127.0.0.1:2375`.
    #[arg(long, value_name = "URL", env = "DOCKER_HOST")]
    pub docker_host: Option<String>,

    /// Do without Docker: only the static services of the configuration file are steered to.
    #[arg(long)]
    pub no_docker: bool,

    /// TOML file with defaults of labels, and static services.
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
}

/// Where the programs are attached at the uplinks.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum AttachMode {
    /// Native XDP where the driver has it and it helps, else tc.
    #[default]
    Auto,
    /// Native XDP, or an error that names the interface.
    Xdp,
    /// Generic XDP: for drivers without native XDP, slower than tc.
    Generic,
    /// tcx; clsact below Linux 6.6.
    Tc,
}

/// What a list takes.
#[derive(Args, Debug)]
pub struct ListArgs {
    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What `steer backends` takes.
#[derive(Args, Debug)]
pub struct BackendsArgs {
    /// Only the backends of this service.
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,

    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// What `steer flows` takes.
#[derive(Args, Debug)]
pub struct FlowsArgs {
    /// Only the connections to this service.
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,

    /// Only the connections on this backend: name, id, or a unique beginning of the id of its container.
    #[arg(long, value_name = "TARGET")]
    pub backend: Option<String>,

    /// At most so many connections [default: all].
    #[arg(long, value_name = "N")]
    pub limit: Option<usize>,

    /// Also connections that have ended, which are remembered for a while for their last packets.
    #[arg(long)]
    pub all: bool,

    /// Print JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

/// A packet.
#[derive(Args, Debug)]
pub struct ExplainArgs {
    /// Where the packet comes from, as `192.0.2.7:40000`.
    #[arg(value_name = "SRC:PORT", value_parser = endpoint)]
    pub client: SocketAddrV4,

    /// Where it goes, as `10.0.0.1:80`.
    #[arg(value_name = "DST:PORT", value_parser = endpoint)]
    pub frontend: SocketAddrV4,

    /// A packet of a connection that is there, instead of one that opens a connection.
    #[arg(long)]
    pub ack: bool,

    /// The program to ask [default: the first that is attached where the packet comes in].
    #[arg(long, value_enum, value_name = "HOOK")]
    pub hook: Option<HookArg>,

    /// Where the packet comes in [default: where steer is attached, and the route back to the client leads].
    #[arg(long, value_name = "NAME")]
    pub interface: Option<String>,

    /// Print JSON instead of text.
    #[arg(long)]
    pub json: bool,
}

/// A program at an uplink.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
pub enum HookArg {
    /// XDP.
    Xdp,
    /// tcx; clsact below Linux 6.6.
    Tc,
}

#[derive(Args, Debug)]
pub struct EventsArgs {
    /// Go on, and show what happens from now on.
    #[arg(long)]
    pub follow: bool,

    /// Only what happened to the backends of this service.
    #[arg(long, value_name = "NAME")]
    pub service: Option<String>,

    /// Only what happened to this backend: name, id, or a beginning of the id of its container.
    #[arg(long, value_name = "TARGET")]
    pub backend: Option<String>,

    /// Print lines of JSON instead of a table.
    #[arg(long)]
    pub json: bool,
}

#[derive(Args, Debug)]
pub struct TargetArgs {
    /// Container: its name, its id, or a unique beginning of its id.
    #[arg(value_name = "TARGET")]
    pub target: String,
}

/// What `steer drain` takes.
#[derive(Args, Debug)]
pub struct DrainArgs {
    /// Container: its name, its id, or a unique beginning of its id.
    #[arg(value_name = "TARGET")]
    pub target: String,

    /// Return when the last connection of the backend has ended.
    #[arg(long)]
    pub wait: bool,

    /// How long to wait at most, as `90s` or `5m`; then exit with 1 [default: the backend's steer.drain].
    #[arg(long, value_name = "DURATION", requires = "wait", value_parser = humantime::parse_duration)]
    pub timeout: Option<Duration>,
}

/// What `steer weight` takes.
#[derive(Args, Debug)]
pub struct WeightArgs {
    /// Container: its name, its id, or a unique beginning of its id.
    #[arg(value_name = "TARGET")]
    pub target: String,

    /// Share of new connections relative to the service's other backends, 0 (none) to 256; `default` = back to the label's.
    #[arg(value_name = "N|default", value_parser = weight)]
    pub weight: Weight,
}

/// A weight as typed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Weight {
    /// `0..=`[`MAX_WEIGHT`].
    Of(u16),
    /// What the label says.
    Label,
}

/// What `steer detach` takes.
#[derive(Args, Debug)]
pub struct DetachArgs {
    /// At once. Steered connections break; without this, no new ones are taken and the last one is waited for.
    #[arg(long)]
    pub now: bool,
}

/// What `steer doctor` takes.
#[derive(Args, Debug)]
pub struct DoctorArgs {
    /// Interface to look at; may be given more than once [default: those with a default route].
    #[arg(long = "interface", value_name = "NAME")]
    pub interfaces: Vec<String>,

    /// Docker's socket, as `unix:///var/run/docker.sock` or `tcp://127.0.0.1:2375`.
    #[arg(long, value_name = "URL", env = "DOCKER_HOST")]
    pub docker_host: Option<String>,

    /// Do not look for Docker.
    #[arg(long)]
    pub no_docker: bool,

    /// Print JSON instead of lines.
    #[arg(long)]
    pub json: bool,
}

fn instance(text: &str) -> Result<String, String> {
    let fits = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    if text.is_empty() || text.len() > 64 || text.starts_with('-') || !text.chars().all(fits) {
        return Err("expected 1 to 64 characters of a-z, 0-9 and `-`, not beginning with `-`".into());
    }
    Ok(text.into())
}

fn log_filter(text: &str) -> Result<String, String> {
    match tracing_subscriber::EnvFilter::try_new(text) {
        Ok(_) => Ok(text.into()),
        Err(error) => Err(format!("{error}; expected error, warn, info, debug or trace")),
    }
}

fn endpoint(text: &str) -> Result<SocketAddrV4, String> {
    match text.parse::<SocketAddrV4>() {
        Ok(endpoint) if endpoint.port() != 0 => Ok(endpoint),
        _ => Err("expected an IPv4 address and a port, as 192.0.2.7:40000".into()),
    }
}

fn weight(text: &str) -> Result<Weight, String> {
    match text.parse() {
        Ok(weight) if weight <= MAX_WEIGHT => Ok(Weight::Of(weight)),
        _ if text == "default" => Ok(Weight::Label),
        _ => Err(format!("expected 0 to {MAX_WEIGHT}, or `default`")),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;
    use clap::error::ErrorKind;
    use rstest::rstest;
    use steer_common::state::BackendState;

    use super::*;

    fn parse(line: &str) -> Result<Cli, clap::Error> {
        Cli::try_parse_from(line.split_whitespace())
    }

    #[test]
    fn the_definition_is_sound_and_every_option_is_explained() {
        let mut command = Cli::command();
        command.build();
        command.clone().debug_assert();
        for sub in command.get_subcommands() {
            assert!(sub.get_about().is_some(), "{}", sub.get_name());
            for arg in sub.get_arguments() {
                assert!(arg.get_help().is_some(), "{} {}", sub.get_name(), arg.get_id());
            }
        }
    }

    const README: &str = include_str!("../../README.md");

    #[test]
    fn the_readme_names_every_command_and_option() {
        let mut command = Cli::command();
        command.build();
        for sub in command.get_subcommands().filter(|sub| sub.get_name() != "help") {
            assert!(README.contains(&format!("`steer {}", sub.get_name())), "{}", sub.get_name());
            for long in sub.get_arguments().filter_map(|arg| arg.get_long()).filter(|long| *long != "help") {
                assert!(README.contains(&format!("--{long}")), "{} --{long}", sub.get_name());
            }
        }
    }

    #[test]
    fn the_readme_names_every_state() {
        for state in BackendState::ALL {
            assert!(README.contains(&format!("\n| `{}` |", state.name())), "{state:?}");
        }
    }

    #[test]
    fn run_takes_interfaces_more_than_once() {
        let cli =
            parse("steer run --interface eth0 --interface eth1 --attach xdp --no-docker --instance blue").unwrap();
        let Command::Run(run) = cli.command else { panic!("{:?}", cli.command) };
        assert_eq!(run.interfaces, ["eth0", "eth1"]);
        assert_eq!(run.attach, Some(AttachMode::Xdp));
        assert!(run.no_docker);
        assert_eq!(cli.instance, "blue");
    }

    #[rstest]
    #[case("steer drain web-1", false, None)]
    #[case("steer drain --wait web-1", true, None)]
    #[case("steer drain web-1 --wait --timeout 1m30s", true, Some(90))]
    fn drain_waits_when_asked(#[case] line: &str, #[case] waits: bool, #[case] timeout: Option<u64>) {
        let Command::Drain(drain) = parse(line).unwrap().command else { panic!("{line}") };
        assert_eq!((drain.wait, drain.timeout), (waits, timeout.map(Duration::from_secs)));
    }

    #[rstest]
    #[case("0", Weight::Of(0))]
    #[case("256", Weight::Of(256))]
    #[case("default", Weight::Label)]
    fn weights_are_numbers_or_the_label_s(#[case] text: &str, #[case] expected: Weight) {
        assert_eq!(weight(text), Ok(expected));
    }

    #[rstest]
    #[case("steer", ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand)]
    #[case("steer wieght web-1 1", ErrorKind::InvalidSubcommand)]
    #[case("steer weight web-1 257", ErrorKind::ValueValidation)]
    #[case("steer weight web-1 -1", ErrorKind::UnknownArgument)]
    #[case("steer weight web-1 some", ErrorKind::ValueValidation)]
    #[case("steer drain web-1 --timeout 5s", ErrorKind::MissingRequiredArgument)]
    #[case("steer drain web-1 --wait --timeout soon", ErrorKind::ValueValidation)]
    #[case("steer explain 192.0.2.7 10.0.0.1:80", ErrorKind::ValueValidation)]
    #[case("steer explain 192.0.2.7:0 10.0.0.1:80", ErrorKind::ValueValidation)]
    #[case("steer explain [::1]:1 10.0.0.1:80", ErrorKind::ValueValidation)]
    #[case("steer explain 192.0.2.7:1", ErrorKind::MissingRequiredArgument)]
    #[case("steer run --attach ebpf", ErrorKind::InvalidValue)]
    #[case("steer status --instance Blue", ErrorKind::ValueValidation)]
    #[case("steer status --instance ../x", ErrorKind::ValueValidation)]
    #[case("steer status --log loud=x=y", ErrorKind::ValueValidation)]
    fn wrong_usage_exits_with_2(#[case] line: &str, #[case] kind: ErrorKind) {
        let error = parse(line).unwrap_err();
        assert_eq!((error.kind(), error.exit_code()), (kind, 2), "{error}");
    }
}
