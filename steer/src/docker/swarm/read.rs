//! From Docker's answers about a swarm to the model's. Pure: unknown fields are ignored, missing ones get their default.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::Ipv4Addr;

use serde::{Deserialize, Deserializer};

use super::Role;
use crate::model::Protocol;
use crate::model::swarm::vips::Vip;
use crate::model::swarm::{DesiredState, Gateway, Service, Swarm, Task, published};

/// `GET /info`.
#[derive(Deserialize)]
pub(super) struct Info {
    #[serde(rename = "Swarm", default)]
    swarm: InfoSwarm,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct InfoSwarm {
    #[serde(rename = "NodeID")]
    node: String,
    local_node_state: String,
    control_available: bool,
}

/// One of `GET /services`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct ServiceAnswer {
    #[serde(rename = "ID")]
    id: String,
    spec: ServiceSpec,
    #[serde(default)]
    endpoint: Endpoint,
    update_status: Option<UpdateStatus>,
}

impl ServiceAnswer {
    /// Whether that is its id, or its name.
    pub(super) fn is_called(&self, name: &str) -> bool {
        self.id == name || self.spec.name == name
    }
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct ServiceSpec {
    name: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct Endpoint {
    #[serde(deserialize_with = "null_is_empty")]
    ports: Vec<PortAnswer>,
    #[serde(rename = "VirtualIPs", deserialize_with = "null_is_empty")]
    virtual_ips: Vec<VirtualIp>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct VirtualIp {
    #[serde(rename = "NetworkID")]
    network: String,
    /// With the length of the network's prefix.
    #[serde(rename = "Addr")]
    address: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct PortAnswer {
    protocol: String,
    target_port: u16,
    published_port: u16,
    publish_mode: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct UpdateStatus {
    state: String,
}

/// One of `GET /tasks`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct TaskAnswer {
    #[serde(rename = "ID")]
    id: String,
    #[serde(rename = "ServiceID", default)]
    service: String,
    /// Empty before it has one.
    #[serde(rename = "NodeID", default)]
    node: String,
    #[serde(default)]
    desired_state: String,
    #[serde(default)]
    status: TaskStatus,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct TaskStatus {
    state: String,
}

/// One of `GET /networks`, or `GET /networks/ID`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Network {
    #[serde(default)]
    pub(super) name: String,
    pub(super) id: String,
    #[serde(rename = "Ingress", default)]
    pub(super) is_ingress: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    containers: HashMap<String, Plugged>,
    #[serde(default, deserialize_with = "null_is_empty")]
    services: HashMap<String, NetworkService>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct Plugged {
    #[serde(rename = "IPv4Address")]
    address: String,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "PascalCase", default)]
struct NetworkService {
    #[serde(rename = "VIP")]
    vip: String,
    #[serde(deserialize_with = "null_is_empty")]
    ports: Vec<String>,
    #[serde(deserialize_with = "null_is_empty")]
    tasks: Vec<NetworkTask>,
}

#[derive(Deserialize, Default)]
#[serde(default)]
struct NetworkTask {
    #[serde(rename = "Name")]
    name: String,
    #[serde(rename = "EndpointIP")]
    address: String,
}

/// Go writes an empty list as null.
fn null_is_empty<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(json: D) -> Result<T, D::Error> {
    Option::deserialize(json).map(Option::unwrap_or_default)
}

pub(super) fn role(Info { swarm }: Info) -> Role {
    let InfoSwarm { node, local_node_state, control_available } = swarm;
    match (local_node_state.as_str(), control_available) {
        ("active", true) => Role::Manager(node),
        ("active", false) => Role::Worker,
        // `inactive`, `pending`, `error`, `locked`: nothing runs here that the swarm could tell of.
        _ => Role::Outside,
    }
}

pub(super) fn manager(services: Vec<ServiceAnswer>, tasks: Vec<TaskAnswer>) -> Swarm {
    let is_updating = |service: &ServiceAnswer| {
        let state = service.update_status.as_ref().map(|status| status.state.as_str());
        matches!(state, Some("updating" | "rollback_started"))
    };
    Swarm {
        is_updating: services.iter().any(is_updating),
        services: services.into_iter().map(service).collect(),
        tasks: Some(tasks.into_iter().map(|task| (task.id, Task { desired: desired(&task.desired_state) })).collect()),
        ..Swarm::default()
    }
}

/// The services, by their ids, that any of the tasks is of.
pub(super) fn services_of(tasks: &[TaskAnswer]) -> BTreeSet<String> {
    tasks.iter().map(|task| task.service.clone()).collect()
}

/// The names of the services that have `tasks`, none of them on another node.
pub(super) fn all_here(services: &[Service], tasks: Vec<TaskAnswer>, node: &str) -> BTreeSet<String> {
    let to_serve: Vec<_> =
        tasks.into_iter().filter(|task| desired(&task.desired_state) == DesiredState::Serve).collect();
    let is_it = |service: &Service| {
        let mut own = to_serve.iter().filter(|task| service.id.as_ref() == Some(&task.service)).peekable();
        own.peek().is_some() && own.all(|task| task.node.is_empty() || task.node == node)
    };
    services.iter().filter(|service| is_it(service)).map(|service| service.name.clone()).collect()
}

/// Those that serve: healthy, where they have a healthcheck. Their addresses are known before that.
pub(super) fn running(tasks: Vec<TaskAnswer>) -> BTreeSet<String> {
    let serves =
        |task: &TaskAnswer| desired(&task.desired_state) == DesiredState::Serve && task.status.state == "running";
    tasks.into_iter().filter(serves).map(|task| task.id).collect()
}

/// The virtual addresses of services by their names, and by the id of a network.
pub(super) type Addresses = BTreeMap<String, BTreeMap<String, Ipv4Addr>>;

/// Those of the services that are there now.
pub(super) fn addresses(services: &[ServiceAnswer]) -> Addresses {
    let own = |service: &ServiceAnswer| {
        let address = |at: &VirtualIp| Some((at.network.clone(), at.address.split('/').next()?.parse().ok()?));
        service.endpoint.virtual_ips.iter().filter_map(address).collect()
    };
    services.iter().map(|service| (service.spec.name.clone(), own(service))).collect()
}

/// The virtual addresses in a network with the tasks behind them. `now`: what a manager tells of services. A network knows them by
/// name alone, with the tasks of one that was removed until they have ended, and tells the address of whichever task it meets first.
pub(super) fn vips(network: Network, now: Option<&Addresses>) -> Vec<Vip> {
    let Network { name: network, id, services, .. } = network;
    let vip = |(service, found): (String, NetworkService)| {
        let address = match now {
            Some(now) => *now.get(&service)?.get(&id)?,
            // `<nil>` where a service has none (`--endpoint-mode dnsrr`), or where there is no service.
            None => found.vip.parse().ok()?,
        };
        let tasks = found.tasks.into_iter().filter_map(|task| Some((task_id(&task.name)?, task.address.parse().ok()?)));
        Some(Vip { network: network.clone(), service, address, tasks: tasks.collect() })
    };
    let mut vips: Vec<_> = services.into_iter().filter_map(vip).collect();
    vips.sort_by(|a, b| a.service.cmp(&b.service));
    vips
}

/// A task is called `<service>.<slot>.<id>`.
fn task_id(name: &str) -> Option<String> {
    name.rsplit_once('.').map(|(_, id)| id.to_owned()).filter(|id| !id.is_empty())
}

fn service(answer: ServiceAnswer) -> Service {
    let ServiceAnswer { id, spec, endpoint, .. } = answer;
    // One in host mode is published by the container's own port mapping, and is none of the mesh's.
    let by_mesh = endpoint.ports.into_iter().filter(|port| port.publish_mode != "host");
    let ports = by_mesh.map(|port| (port.published_port, port.target_port, protocol(&port.protocol)));
    Service { id: Some(id), name: spec.name, ports: published(ports) }
}

/// SCTP is as far from TCP as UDP is.
fn protocol(name: &str) -> Protocol {
    match name {
        "" | "tcp" => Protocol::Tcp,
        _ => Protocol::Udp,
    }
}

/// Of the states of a task (`new` … `running`, `complete`, `shutdown`, `failed`, `rejected`, `remove`, `orphaned`) what Swarm may
/// want is in the end one of these.
fn desired(state: &str) -> DesiredState {
    match state {
        "shutdown" | "failed" | "rejected" | "orphaned" => DesiredState::Shutdown,
        "remove" => DesiredState::Remove,
        _ => DesiredState::Serve,
    }
}

pub(super) fn worker(ingress: Network) -> Swarm {
    let mut swarm = Swarm { ingress: Some(ingress.name), ..Swarm::default() };
    // The mesh's own end has no name.
    for (name, service) in ingress.services.into_iter().filter(|(name, _)| !name.is_empty()) {
        let ports = service.ports.iter().filter_map(|text| port(text));
        let ports = published(ports.map(|(port, target)| (port, target, Protocol::Tcp)));
        // Docker looks through a service's tasks in any order, another one each time, and tells the ports of the first.
        if let Some(task) = service.tasks.first().and_then(|task| task_id(&task.name)) {
            swarm.served.insert(task, ports.clone());
        }
        swarm.services.push(Service { id: None, name, ports });
    }
    swarm
}

/// `Target: 5000, Publish: 9000`; the protocol is not told.
fn port(text: &str) -> Option<(u16, u16)> {
    let (target, publish) = text.split_once(',')?;
    let number = |part: &str, name: &str| part.trim().strip_prefix(name)?.trim().parse().ok();
    Some((number(publish, "Publish:")?, number(target, "Target:")?))
}

pub(super) fn gateway(network: Network) -> Gateway {
    let address = |plugged: &Plugged| plugged.address.split('/').next()?.parse().ok();
    network.containers.iter().filter_map(|(id, plugged)| Some((id.clone(), address(plugged)?))).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
