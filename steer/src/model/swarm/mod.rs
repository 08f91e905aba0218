//! What Swarm says, and what follows for the containers of this node that are its tasks.
//!
//! A service that publishes ports (in ingress mode) asks for no label: its tasks here serve those ports, on every address of the
//! node, in front of the routing mesh. A task whose desired state is `shutdown` takes nothing new, however its container runs on.
//! On a worker nobody tells desired states, nor which protocol a port is for.
//!
//! | module | decides |
//! |---|---|
//! | [`polls`] | when Docker is asked |
//! | [`ports`] | which ports a task serves |
//! | [`standing`] | whether a task that is no backend may be asked for |
//! | [`moved`] | which ports are another service's by now |
//! | [`kept`] | what goes on being believed when an answer does not come |
//! | [`vips`] | which tasks stand behind a virtual address |
//! | [`disabled`] | which tasks on other nodes take nothing new |

pub mod disabled;
pub mod kept;
pub mod moved;
pub mod polls;
pub mod ports;
pub mod standing;
pub mod vips;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use super::{Container, NetworkLeg, PortSpec, Protocol, ServiceName};

/// The network over which this host reaches its tasks: overlay networks end in a namespace of Docker's own.
pub const GATEWAY: &str = "docker_gwbridge";

const SERVICE_ID: &str = "com.docker.swarm.service.id";
pub(super) const SERVICE_NAME: &str = "com.docker.swarm.service.name";
const TASK_ID: &str = "com.docker.swarm.task.id";

/// Addresses in [`GATEWAY`], by container id.
pub type Gateway = BTreeMap<String, IpAddr>;

/// What makes a container a task.
pub const LABEL: &str = SERVICE_ID;

/// What a swarm says of itself, at one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Swarm {
    pub services: Vec<Service>,
    /// Of this node; `None` = nobody tells (a worker).
    pub tasks: Option<BTreeMap<String, Task>>,
    /// The names of services that are to have tasks, all of them on this node or on none yet; empty where nobody tells (a worker).
    pub all_here: BTreeSet<String>,
    /// A rolling update or rollback is under way somewhere: more changes without an event.
    pub is_updating: bool,
    /// What single tasks serve, on whatever node, by task; empty where that is not told (a manager).
    pub served: BTreeMap<String, Vec<PortSpec>>,
    /// The name of the mesh's network; `None` = not told: a manager is not asked for it but once.
    pub ingress: Option<String>,
    /// Of the networks that were asked about.
    pub vips: Vec<vips::Vip>,
    /// The tasks behind them that run and are to run, on whatever node; `None` = nobody tells (a worker).
    pub running: Option<BTreeSet<String>>,
    /// What was asked about virtual addresses and not answered.
    pub untold: Vec<Untold>,
}

/// A question about virtual addresses that was not answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Untold {
    /// `None` = it was about those of all networks.
    pub network: Option<String>,
    pub why: String,
}

impl Untold {
    /// Whether the virtual addresses of a network are not told for that.
    fn leaves_out(&self, network: &str) -> bool {
        self.network.as_ref().is_none_or(|untold| untold == network)
    }
}

/// A service of a swarm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Service {
    /// `None` = only its name is known (a worker).
    pub id: Option<String>,
    pub name: String,
    /// Those that it publishes by the mesh.
    pub ports: Vec<PortSpec>,
}

impl Service {
    /// Whether that is a task of it.
    fn has(&self, of: &Membership) -> bool {
        match &self.id {
            Some(id) => *id == of.service_id,
            None => self.name == of.service,
        }
    }

    /// Whether it publishes what others reach as this port, whatever its tasks call it.
    fn publishes(&self, port: &PortSpec) -> bool {
        self.ports.iter().any(|own| (own.port, own.protocol) == (port.port, port.protocol))
    }
}

/// A task of a swarm: one container to be, that is or that was.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Task {
    /// What becomes of it.
    pub desired: DesiredState,
}

/// What Swarm wants of a task.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DesiredState {
    /// To serve, sooner or later: `running`, and whatever comes before it.
    Serve,
    /// To end: `shutdown`.
    Shutdown,
    /// To be forgotten: `remove`.
    Remove,
}

/// Why a task takes nothing new, however its container runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Leaving {
    Shutdown,
    Remove,
    /// The swarm knows no such task.
    Unknown,
}

impl Leaving {
    /// The word behind `swarm:`.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Shutdown => "shutdown",
            Self::Remove => "remove",
            Self::Unknown => "no such task",
        }
    }

    /// The one of that name.
    pub fn named(name: &str) -> Option<Self> {
        [Self::Shutdown, Self::Remove, Self::Unknown].into_iter().find(|leaving| leaving.name() == name)
    }
}

/// A container's place in its swarm, by its labels.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Membership {
    pub service_id: String,
    pub service: String,
    pub task: String,
}

impl Membership {
    /// `None` = no task.
    pub fn of(labels: &BTreeMap<String, String>) -> Option<Self> {
        let label = |name| labels.get(name).cloned();
        Some(Self { service_id: label(SERVICE_ID)?, service: label(SERVICE_NAME)?, task: label(TASK_ID)? })
    }
}

/// A task that serves on this node, for all that the mesh knows.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Serving<'a> {
    pub service: &'a str,
    /// The service of steer's that it is a backend of, at the ports that Swarm publishes; `None` = steer leaves it alone.
    pub steered_as: Option<&'a str>,
}

impl Swarm {
    /// Whether it was a manager who said so: it knows of everything, and what is to be.
    pub const fn is_of_manager(&self) -> bool {
        self.tasks.is_some()
    }

    /// Leaves out the virtual addresses of services that are not there any more: a network knows them until their last task has ended,
    /// and a question about tasks of a service that is not there is refused as a whole.
    pub fn keep_vips_of_services(&mut self) {
        let names: BTreeSet<&str> = self.services.iter().map(|service| service.name.as_str()).collect();
        self.vips.retain(|vip| names.contains(vip.service.as_str()));
    }

    /// The services whose tasks are all on this node, all of them backends of the service of that name and of no other: behind
    /// their frontends the mesh has nobody whom steer has not.
    pub fn all_steered<'a>(&self, serving: impl IntoIterator<Item = Serving<'a>>) -> BTreeSet<ServiceName> {
        let mut all = self.all_here.clone();
        for Serving { service, steered_as } in serving {
            if steered_as != Some(service) {
                for name in [Some(service), steered_as].into_iter().flatten() {
                    all.remove(name);
                }
            }
        }
        all
    }

    /// The ports that a task's service publishes; `None` = there is no such service.
    pub fn ports(&self, of: &Membership) -> Option<&[PortSpec]> {
        self.service(of).map(|service| service.ports.as_slice())
    }

    fn service(&self, of: &Membership) -> Option<&Service> {
        self.services.iter().find(|service| service.has(of))
    }

    /// Whether a task must take nothing new, and why.
    pub fn leaving(&self, task: &str) -> Option<Leaving> {
        match self.tasks.as_ref()?.get(task).map(|task| task.desired) {
            Some(DesiredState::Serve) => None,
            Some(DesiredState::Shutdown) => Some(Leaving::Shutdown),
            Some(DesiredState::Remove) => Some(Leaving::Remove),
            None => Some(Leaving::Unknown),
        }
    }
}

/// What a service publishes, as its tasks ask for it: TCP alone, the rest stays with the mesh.
pub fn published(ports: impl IntoIterator<Item = (u16, u16, Protocol)>) -> Vec<PortSpec> {
    let tcp = ports.into_iter().filter(|(.., protocol)| *protocol == Protocol::Tcp);
    // Each once, and in an order that does not hang on Docker's.
    let pairs: BTreeSet<_> = tcp.map(|(port, target, _)| (port, target)).filter(|(port, _)| *port != 0).collect();
    let spec = |(port, target)| PortSpec { address: None, port, target, protocol: Protocol::Tcp };
    pairs.into_iter().map(spec).collect()
}

/// Puts the leg to the host into a task's description, which names its overlay networks only.
pub fn add_gateway(container: &mut Container, gateway: &Gateway) {
    if let Some(address) = gateway.get(&container.id.0) {
        container.legs.retain(|leg| leg.network != GATEWAY);
        container.legs.push(NetworkLeg { network: GATEWAY.to_owned(), address: *address, subnet: None, gateway: None });
        container.legs.sort_by(|a, b| a.network.cmp(&b.network));
    }
}

#[cfg(test)]
mod tests;
