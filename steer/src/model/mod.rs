//! Decisions of the agent, pure: no tokio, Docker client, BPF, clock or environment here. Time is an argument.
//!
//! [`Observed`] is Docker's and the host's truth, [`Desired`] what the maps should hold, [`Applied`] what they do hold.
//! [`desired()`](desired::desired) makes the second from the first, [`plan()`](plan::plan) the way from the third to the second.
//!
//! | module | decides |
//! |---|---|
//! | [`addresses`] | which addresses are the host's, or may be again |
//! | [`labels`] | what a container's labels ask for |
//! | [`cause`] | who says why a backend is in its state |
//! | [`history`] | what has happened, and what of it is not told yet |
//! | [`stops`] | who told first of a stop signal |
//! | [`named`] | which container an operator means |
//! | [`swarm`] | which ports Swarm publishes, and which of its tasks leave |
//! | [`lifecycle`] | when a backend is ready, draining or gone |
//! | [`frontend`] | whether two labels want the same frontend |
//! | [`desired`] | which services and backends there should be |
//! | [`slots`] | which backend stands in which slot |
//! | [`memory`] | which services outlive their last backend |
//! | [`opening`] | how often it is looked for flows whose handshake is under way |
//! | [`order`] | whether an answer of Docker's is older than an event |
//! | [`takeover`] | how long another version goes on for containers that are not described |
//! | [`undescribed`] | of which containers nothing is known but what an earlier agent left |
//! | `inherit` | what of an earlier agent's stands meanwhile |
//! | [`plan`] | which map writes lead there, in which order |

pub mod addresses;
pub mod cause;
pub mod desired;
#[cfg(test)]
pub(crate) mod fixtures;
pub mod frontend;
pub mod history;
mod inherit;
pub mod labels;
pub mod lifecycle;
pub mod memory;
pub mod named;
pub mod opening;
pub mod order;
pub mod plan;
pub mod slots;
pub mod stops;
pub mod swarm;
pub mod takeover;
pub mod undescribed;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use steer_common::service::Balance;
use steer_common::state::BackendState;

use self::frontend::Frontend;

/// A container's id (64 hex digits), or `netns:<path>` for a static backend.
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(pub String);

impl ContainerId {
    /// What the id of a static backend begins with, before its namespace's path.
    pub const STATIC: &str = "netns:";

    /// The id of the static backend in a namespace.
    pub fn of_netns(path: &Path) -> Self {
        Self(format!("{}{}", Self::STATIC, path.display()))
    }

    /// Whether it is a static backend's, which Docker knows nothing of.
    pub fn is_static(&self) -> bool {
        self.0.starts_with(Self::STATIC)
    }

    /// The first twelve digits, as Docker prints them; all of a static backend's.
    pub fn short(&self) -> &str {
        self.0.get(..12).filter(|_| !self.is_static()).unwrap_or(&self.0)
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.short())
    }
}

/// A service's name: unique on the host.
pub type ServiceName = String;

/// A moment of Unix time, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct UnixMicros(pub u64);

/// Transport protocol of a frontend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

impl Protocol {
    /// IANA protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Tcp => steer_common::addr::TCP,
            Self::Udp => steer_common::addr::UDP,
        }
    }
}

/// One item of `steer.port`: `[address:]port:target[/udp]`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct PortSpec {
    /// `None` = every address of the host.
    pub address: Option<IpAddr>,
    pub port: u16,
    /// The container's port.
    pub target: u16,
    pub protocol: Protocol,
}

/// How readiness is known (`steer.ready`).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ReadyPolicy {
    /// The healthcheck where there is one, else listening.
    #[default]
    Auto,
    /// The healthcheck; a container without one is never ready.
    Health,
    /// Listening, whatever the healthcheck says.
    Listen,
    /// Only `steer undrain` makes it ready.
    Manual,
}

/// What a container asks for: its labels, read and checked, defaults filled in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Spec {
    pub service: ServiceName,
    /// At least one, at most [`steer_common::limits::MAX_PORTS`].
    pub ports: Vec<PortSpec>,
    /// Network whose address to use, as written; `None` = the only one.
    pub network: Option<String>,
    /// `0..=256`.
    pub weight: u16,
    pub balance: Balance,
    pub ready: ReadyPolicy,
    pub drain: Duration,
    pub hold: Duration,
    /// Empty = everyone.
    pub allow: Vec<IpNet>,
    /// Swarm publishes the ports too: what finds no ready backend here is its routing mesh's, and nobody waits, unless there are
    /// no tasks elsewhere.
    pub mesh: bool,
}

/// Health as Docker reports it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Health {
    /// No healthcheck.
    #[default]
    None,
    Starting,
    Healthy,
    Unhealthy,
}

/// A container's leg in one network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NetworkLeg {
    /// Full name, e.g. `project_default`.
    pub network: String,
    pub address: IpAddr,
    /// The addresses that it reaches there without a router; `None` = not known.
    pub subnet: Option<IpNet>,
    /// The router of that network, which of a bridge is this host; `None` = there is none (an overlay).
    pub gateway: Option<IpAddr>,
}

/// A container as Docker describes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Container {
    pub id: ContainerId,
    /// Without the leading slash.
    pub name: String,
    pub labels: BTreeMap<String, String>,
    pub running: bool,
    pub paused: bool,
    pub health: Health,
    /// Its first process as the host sees it; 0 when it does not run.
    pub pid: i32,
    /// The signal that asks it to stop; 15 unless its image or `--stop-signal` says otherwise.
    pub stop_signal: i32,
    /// How long it may take to stop before it is killed; `None` = for ever.
    pub stop_timeout: Option<Duration>,
    pub legs: Vec<NetworkLeg>,
    /// `HostConfig.NetworkMode`.
    pub network_mode: String,
    /// `State.StartedAt`, as Docker writes it: tells one run of a container from the next.
    pub started_at: String,
}

/// How the data plane reaches a container: read inside its network namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reach {
    /// Host end of the veth.
    pub ifindex: u32,
    /// MAC address of the container's end.
    pub mac: [u8; 6],
    /// Id of the namespace as the host's counts, -1 = not known.
    pub netns_id: i32,
    pub netns_cookie: u64,
    /// The container's end takes frames straight from XDP.
    pub xdp: bool,
}

/// What goes into the kernel with a backend's state.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Gate {
    /// Listening decides: the kernel may give it new flows from the moment it listens, before the agent has noticed.
    pub if_listening: bool,
    /// How many of the kernel's edges (signals, its end) the state takes into account.
    pub edges: u32,
}

/// Something that keeps a container or a frontend from being steered, in words for the user.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
pub struct Problem {
    /// Name of the container, or of the service of the configuration file.
    pub container: String,
    /// The label or setting at fault, where there is one.
    pub label: Option<String>,
    /// What is wrong, with the value, and what was expected.
    pub message: String,
}

impl Problem {
    /// One that is no label's.
    pub fn of(container: impl Into<String>, message: impl Into<String>) -> Self {
        Self { container: container.into(), label: None, message: message.into() }
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.label {
            Some(label) => write!(f, "{}: {label}: {}", self.container, self.message),
            None => write!(f, "{}: {}", self.container, self.message),
        }
    }
}

/// A backend with all that is known of it: a container that may be steered to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Candidate {
    pub id: ContainerId,
    /// When this run of the container started, as Docker writes it: of several versions the last one's settings count.
    pub run: String,
    pub name: String,
    pub spec: Spec,
    pub address: IpAddr,
    pub reach: Reach,
    /// Host ends of its other veths: replies may come out of those too.
    pub other_ways: Vec<u32>,
    pub state: BackendState,
    pub gate: Gate,
    pub cause: String,
    pub since: UnixMicros,
    /// Weight set by the operator, over the label's.
    pub operator_weight: Option<u16>,
    /// The operator took it out.
    pub maintenance: bool,
    /// The operator put it in.
    pub put_in: bool,
}

/// Input of [`desired()`](desired::desired).
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Observed {
    pub candidates: Vec<Candidate>,
    /// Swarm services whose tasks are all on this node: behind their frontends is nobody else.
    pub all_here: BTreeSet<ServiceName>,
    /// Frontends of services whose ports the mesh has given to another service since.
    pub moved: BTreeSet<(ServiceName, Frontend)>,
    /// Services in the maps that have no candidate and stay for now.
    pub remembered: Vec<memory::Remembered>,
    /// Addresses of this host, loopback left out.
    pub host_addresses: BTreeSet<IpAddr>,
    /// Those that it had not long ago: what is known is followed there.
    pub lost_addresses: BTreeSet<IpAddr>,
    /// steer is being detached: no new flows.
    pub closing: bool,
}
