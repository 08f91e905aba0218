//! The configuration file: defaults of labels, services without Docker, settings of the agent.
//!
//! Everything in it is optional. Keys under `[defaults]` are the labels without their `steer.`; where a label is a
//! comma-separated list, the file has an array. An unknown key, or a value of the wrong kind, is an error that names the line;
//! a bad value one that names service, key and value. All bad values are told at once, and a file with one is not used.
//!
//! ```toml
//! # What holds for a container without the label. These are the built-in values.
//! [defaults]
//! weight = 1                      # 0 to 256; 0 = no new connections
//! balance = "round-robin"         # or "least-conn", "maglev", "source"
//! ready = "auto"                  # or "health", "listen", "manual"
//! drain = "30s"                   # how long `steer drain --wait` waits
//! hold = "10s"                    # how long new connections wait for a backend; "0" = refuse at once
//! allow = []                      # e.g. ["10.0.0.0/8", "192.0.2.7"]; none = everyone
//! # network = "front"             # for containers in several networks
//!
//! # What the options of `steer run` say otherwise.
//! [agent]
//! docker_host = "unix:///var/run/docker.sock"
//! interfaces = ["eth0"]           # where clients come in; none = those with a default route
//! attach = "auto"                 # or "xdp", "generic", "tc"
//! max_flows = 262144              # established connections remembered
//!
//! # A service whose backends are network namespaces of this host.
//! [[service]]
//! name = "echo"
//! ports = ["9000:5000", "10.0.0.1:9001:5001"]
//! balance = "least-conn"
//! hold = "0"
//!
//! [[service.backend]]
//! name = "a"                      # as `steer drain` calls it; unique in this file
//! netns = "a"                     # /run/netns/a, as `ip netns` makes it; or a whole path
//!
//! [[service.backend]]
//! name = "b"
//! netns = "/run/netns/b"
//! address = "10.0.0.2"            # none = the only IPv4 address there
//! weight = 3
//! ```

mod file;
#[cfg(test)]
mod tests;

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, bail};
use clap::ValueEnum as _;
use ipnet::IpNet;
use steer_common::limits::{MAX_FLOWS, MAX_MEMBERS, MAX_NAME};
use steer_common::service::Balance;

use crate::cli::AttachMode;
use crate::model::labels::{Defaults, value};
use crate::model::{ContainerId, PortSpec, ReadyPolicy, ServiceName, Spec};

/// Where `ip netns add` puts namespaces.
const NETNS_DIR: &str = "/run/netns";
/// Longest path of a namespace: what `BackendInfo::container` holds behind [`ContainerId::STATIC`].
const MAX_NETNS: usize = MAX_NAME - ContainerId::STATIC.len();
/// Bounds of `max_flows`: below, the table is too small to be of use; above, it takes gigabytes.
const FLOWS: std::ops::RangeInclusive<u32> = 1_024..=64 * MAX_FLOWS;

/// What the file says.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Config {
    /// What holds where a label is absent.
    pub defaults: Defaults,
    /// Services without Docker.
    pub services: Vec<StaticService>,
    /// What the options of `steer run` do not say.
    pub agent: AgentSettings,
}

impl Config {
    /// How many established connections are remembered: as the file says, or as many as by default.
    pub fn max_flows(&self) -> u32 {
        self.agent.max_flows.unwrap_or(MAX_FLOWS)
    }
}

/// Settings of the agent; `None` and empty = not set.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct AgentSettings {
    /// As `--docker-host` takes it.
    pub docker_host: Option<String>,
    /// Where clients come in.
    pub interfaces: Vec<String>,
    /// Which way in.
    pub attach: Option<AttachMode>,
    /// Established connections remembered, 1,024 to 16,777,216.
    pub max_flows: Option<u32>,
}

/// A service whose backends are network namespaces of this host. Defaults are filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StaticService {
    /// Unique in the file.
    pub name: ServiceName,
    /// Its frontends, and the port behind each.
    pub ports: Vec<PortSpec>,
    /// How a backend is chosen.
    pub balance: Balance,
    /// Never [`ReadyPolicy::Health`]: a namespace has no healthcheck.
    pub ready: ReadyPolicy,
    /// How long `steer drain --wait` waits, and the least time until who outlives its stop signal is put back.
    pub drain: Duration,
    /// How long new connections wait while no backend is ready; zero = not at all.
    pub hold: Duration,
    /// Empty = everyone.
    pub allow: Vec<IpNet>,
    /// At least one.
    pub backends: Vec<StaticBackend>,
}

/// A network namespace that serves.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct StaticBackend {
    /// Unique in the file.
    pub name: String,
    /// Absolute; unique in the file.
    pub netns: PathBuf,
    /// `None` = the only IPv4 address there.
    pub address: Option<Ipv4Addr>,
    /// `0..=256`.
    pub weight: u16,
}

impl StaticService {
    /// The service as labels would ask for it, for one of its backends.
    pub fn spec(&self, backend: &StaticBackend) -> Spec {
        let Self { name, ports, balance, ready, drain, hold, allow, backends: _ } = self.clone();
        Spec {
            service: name,
            ports,
            network: None,
            weight: backend.weight,
            balance,
            ready,
            drain,
            hold,
            allow,
            mesh: false,
        }
    }
}

/// Reads a configuration file.
pub fn load(path: &Path) -> anyhow::Result<Config> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    parse(&text, path)
}

/// Reads the text of the configuration file at `path`.
pub fn parse(text: &str, path: &Path) -> anyhow::Result<Config> {
    let file: file::File = toml::from_str(text).with_context(|| path.display().to_string())?;
    let mut check = Check::default();
    let defaults = check.defaults(file.defaults);
    let agent = check.agent(file.agent);
    let services = file.service.into_iter().enumerate().filter_map(|(i, s)| check.service(i, s, &defaults)).collect();
    match check.faults.as_slice() {
        [] => Ok(Config { defaults, services, agent }),
        [fault] => bail!("{}: {fault}", path.display()),
        faults => bail!("{}: {} bad values\n  {}", path.display(), faults.len(), faults.join("\n  ")),
    }
}

/// Checks values and gathers what is wrong with them.
#[derive(Default)]
struct Check {
    faults: Vec<String>,
    services: BTreeSet<String>,
    backends: BTreeSet<String>,
    namespaces: BTreeSet<PathBuf>,
}

impl Check {
    /// The value, or a fault more.
    fn good<T>(&mut self, place: &str, key: &str, result: Result<T, String>) -> Option<T> {
        result.map_err(|message| self.faults.push(format!("{place}: {key}: {message}"))).ok()
    }

    /// The value read from `text`; `default` where there is none.
    fn or<V: AsRef<T>, T: ?Sized, R>(
        &mut self,
        place: &str,
        key: &str,
        text: Option<V>,
        parse: impl FnOnce(&T) -> Result<R, String>,
        default: R,
    ) -> R {
        text.and_then(|text| self.good(place, key, parse(text.as_ref()))).unwrap_or(default)
    }

    fn defaults(&mut self, file: file::Defaults) -> Defaults {
        let file::Defaults { network, weight, balance, ready, drain, hold, allow } = file;
        let built_in = Defaults::default();
        let place = "[defaults]";
        Defaults {
            network: network.and_then(|network| self.good(place, "network", value::network(&network))),
            weight: self.weight(place, weight, built_in.weight),
            balance: self.or(place, "balance", balance, value::balance, built_in.balance),
            ready: self.or(place, "ready", ready, value::ready, built_in.ready),
            drain: self.or(place, "drain", drain, value::duration, built_in.drain),
            hold: self.or(place, "hold", hold, value::duration, built_in.hold),
            allow: self.or(place, "allow", allow, |items: &[String]| value::allow_list(items), built_in.allow),
        }
    }

    fn agent(&mut self, file: file::Agent) -> AgentSettings {
        let file::Agent { docker_host, interfaces, attach, max_flows } = file;
        let place = "[agent]";
        AgentSettings {
            docker_host: docker_host.filter(|host| !host.trim().is_empty()),
            interfaces: interfaces.iter().filter_map(|name| self.good(place, "interfaces", interface(name))).collect(),
            attach: attach.and_then(|mode| self.good(place, "attach", attach_mode(&mode))),
            max_flows: max_flows.and_then(|flows| self.good(place, "max_flows", flow_count(flows))),
        }
    }

    fn service(&mut self, index: usize, file: file::Service, defaults: &Defaults) -> Option<StaticService> {
        let file::Service { name, ports, balance, ready, drain, hold, allow, backend } = file;
        let nth = format!("service {}", index + 1);
        let name = self.good(&nth, "name", value::name(&name))?;
        let place = format!("service `{name}`");
        if !self.services.insert(name.clone()) {
            self.faults.push(format!("{place}: name: another service has it already"));
        }
        // A namespace has no healthcheck, so `health` as the default becomes `auto`.
        let ready_default = if defaults.ready == ReadyPolicy::Health { ReadyPolicy::Auto } else { defaults.ready };
        let ports = self.good(&place, "ports", value::port_list(&ports)).unwrap_or_default();
        if backend.is_empty() || backend.len() > MAX_MEMBERS {
            self.faults.push(format!("{place}: backend: {} given, expected 1 to {MAX_MEMBERS}", backend.len()));
        }
        Some(StaticService {
            ports,
            balance: self.or(&place, "balance", balance, value::balance, defaults.balance),
            ready: self.or(&place, "ready", ready, static_ready, ready_default),
            drain: self.or(&place, "drain", drain, value::duration, defaults.drain),
            hold: self.or(&place, "hold", hold, value::duration, defaults.hold),
            allow: self.or(&place, "allow", allow, |items: &[String]| value::allow_list(items), defaults.allow.clone()),
            backends: backend.into_iter().filter_map(|b| self.backend(&place, b, defaults)).collect(),
            name,
        })
    }

    fn backend(&mut self, service: &str, file: file::Backend, defaults: &Defaults) -> Option<StaticBackend> {
        let file::Backend { name, netns, address, weight } = file;
        let name = self.good(service, "backend: name", value::name(&name))?;
        let place = format!("{service}: backend `{name}`");
        if !self.backends.insert(name.clone()) {
            self.faults.push(format!("{place}: name: another backend has it already"));
        }
        let netns = self.good(&place, "netns", netns_path(&netns))?;
        if !self.namespaces.insert(netns.clone()) {
            let path = netns.display();
            self.faults
                .push(format!("{place}: netns: another backend is in {path} already, expected one backend for each"));
        }
        let address = address.and_then(|address| self.good(&place, "address", ipv4(&address)));
        let weight = self.weight(&place, weight, defaults.weight);
        Some(StaticBackend { name, netns, address, weight })
    }

    fn weight(&mut self, place: &str, number: Option<i64>, default: u16) -> u16 {
        let Some(number) = number else { return default };
        let weight = value::weight_number(number).ok_or_else(|| value::no_weight(number));
        self.good(place, "weight", weight).unwrap_or(default)
    }
}

fn static_ready(text: &str) -> Result<ReadyPolicy, String> {
    match value::ready(text) {
        Ok(ReadyPolicy::Health) => {
            Err("`health`: a network namespace has no healthcheck, expected one of `auto`, `listen`, `manual`".into())
        }
        other => other,
    }
}

fn netns_path(text: &str) -> Result<PathBuf, String> {
    let path = match text {
        "" | "." | ".." => {
            return Err(format!("`{text}` is no network namespace, expected such as `a` or `/run/netns/a`"));
        }
        name if !name.contains('/') => Path::new(NETNS_DIR).join(name),
        path if path.starts_with('/') => PathBuf::from(path),
        _ => return Err(format!("`{text}` is not absolute, expected such as `a` or `/run/netns/a`")),
    };
    if path.as_os_str().len() > MAX_NETNS {
        return Err(format!("`{text}` is too long, {MAX_NETNS} bytes with its folder are the most"));
    }
    Ok(path)
}

fn ipv4(text: &str) -> Result<Ipv4Addr, String> {
    match text.parse() {
        Ok(std::net::IpAddr::V4(ip)) => Ok(ip),
        Ok(std::net::IpAddr::V6(_)) => Err(format!("`{text}`: IPv6 is not steered yet")),
        Err(_) => Err(format!("`{text}` is no IP address, expected such as `10.0.0.2`")),
    }
}

fn interface(text: &str) -> Result<String, String> {
    let fits = |c: char| !c.is_whitespace() && c != '/' && c != ':';
    if matches!(text, "" | "." | "..") || text.len() > 15 || !text.chars().all(fits) {
        return Err(format!("`{text}` is no name of an interface, expected such as `eth0`"));
    }
    Ok(text.to_owned())
}

fn attach_mode(text: &str) -> Result<AttachMode, String> {
    let named = |mode: &AttachMode| mode.to_possible_value().is_some_and(|word| word.get_name() == text);
    let found = AttachMode::value_variants().iter().find(|mode| named(mode)).copied();
    found.ok_or_else(|| format!("`{text}`: expected one of `auto`, `xdp`, `generic`, `tc`"))
}

fn flow_count(number: i64) -> Result<u32, String> {
    let (least, most) = (FLOWS.start(), FLOWS.end());
    let flows = u32::try_from(number).ok().filter(|flows| FLOWS.contains(flows));
    flows.ok_or_else(|| format!("{number} is out of bounds, expected {least} to {most}"))
}
