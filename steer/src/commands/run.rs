//! `steer run`: the agent, in the foreground.

use anyhow::{Context as _, Result, anyhow, bail};
use tokio::sync::mpsc;

use super::lock::lock;
use crate::agent::{Agent, Settings, check_interfaces};
use crate::api::server;
use crate::cli::RunArgs;
use crate::config::{self, Config};
use crate::dataplane::load::{self, Options};
use crate::dataplane::maps::Maps;
use crate::dataplane::paths::Paths;
use crate::dataplane::{attach, kernel_log, prepare};
use crate::docker::Docker;
use crate::host::btf::Offsets;
use crate::host::netns::own_cookie;
use crate::host::privileges::{self, raise_open_files};

/// Runs the agent until it is told to end.
pub async fn run(args: RunArgs, instance: &str) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("steer run loads BPF programs and enters network namespaces: run it as root");
    }
    let missing = privileges::capabilities().map(privileges::missing).unwrap_or_default();
    if !missing.is_empty() {
        bail!(
            "steer run misses {}: run it as root on the host itself, or in a container with `--privileged`",
            missing.join(", ")
        );
    }
    let paths = Paths::of(instance);
    let config = match &args.config {
        Some(path) => config::load(path)?,
        None => Config::default(),
    };
    let interfaces = if args.interfaces.is_empty() { config.agent.interfaces.clone() } else { args.interfaces };
    check_interfaces(&interfaces)?;
    let docker_host = args.docker_host.or_else(|| config.agent.docker_host.clone());
    let docker = if args.no_docker { None } else { Some(Docker::at(docker_host.as_deref())?) };
    let attach_mode = args.attach.or(config.agent.attach).unwrap_or_default();
    let _lock = lock(&paths)?.map_err(|holder| {
        anyhow!(
            "another steer agent is alive (instance {instance}, pid {holder}): stop it first, or run this one with another \
             `--instance`"
        )
    })?;

    prepare::bpffs()?;
    prepare::directories(&paths)?;
    let run_dir = paths.lock.parent().context("the lock file has no directory")?;
    let cgroup = prepare::cgroup2(run_dir)?;
    let options = Options { host_netns: own_cookie()?, max_flows: config.max_flows(), offsets: Offsets::read()? };
    let mut bpf = load::load(&paths, options)?;
    if let Err(error) = raise_open_files() {
        tracing::warn!(%error, "raising the limit of open files failed: each container takes one or two");
    }
    let messages = kernel_log::follow(&mut bpf)?;
    attach::sockets(&mut bpf, &paths, &cgroup)?;
    attach::tracepoints(&mut bpf, &paths)?;
    let maps = Maps::open(&paths)?;

    let (sender, requests) = mpsc::channel(16);
    let settings = Settings { paths: paths.clone(), cgroup, config, interfaces, attach: attach_mode, docker };
    let agent = Agent::adopt(settings, bpf, maps)?;
    let history = agent.history();
    let ended = tokio::select! {
        ended = agent.run(requests) => ended,
        failed = server::serve(&paths, sender, history) => failed.with_context(|| format!("serving the agent's socket {}", paths.socket.display())),
    };
    messages.abort();
    ended
}
