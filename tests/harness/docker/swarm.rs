//! Swarm mode: joining two Dockers, services, and what an operator does to them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use bollard::models::{
    EndpointSpec, HealthConfig, NodeSpec, NodeSpecAvailabilityEnum, NodeSpecRoleEnum, ServiceSpec as Body,
    ServiceSpecMode, ServiceSpecModeReplicated, SwarmInfo, SwarmInitRequest, SwarmJoinRequest,
};
use bollard::query_parameters::{
    InspectContainerOptions, InspectNetworkOptionsBuilder, ListContainersOptionsBuilder, ListTasksOptionsBuilder,
    UpdateNodeOptionsBuilder, UpdateServiceOptionsBuilder,
};

use super::engine::Engine;
use super::service::{ServiceSpec, ports, set_image, update_config};
use crate::docker::Container;
use crate::wait_until;

const LIMIT: Duration = Duration::from_secs(60);

/// Whether Swarm's own balancing works on this kernel: it has `ip_vs`, which Docker loads when it needs it.
pub fn has_mesh() -> bool {
    let may_load = || Command::new("modprobe").args(["--dry-run", "--quiet", "ip_vs"]).status();
    Path::new("/proc/net/ip_vs").exists() || may_load().is_ok_and(|status| status.success())
}

/// One task of a service on this Docker's node, or on any.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Task {
    pub id: String,
    pub state: String,
    pub desired: String,
    pub image: String,
    pub container: Option<String>,
}

/// What an operator does on a manager.
impl Engine {
    /// `docker swarm init`.
    #[track_caller]
    pub fn swarm_init(&self, address: Ipv4Addr) {
        let address = Some(address.to_string());
        let request = SwarmInitRequest {
            listen_addr: Some("0.0.0.0:2377".to_owned()),
            advertise_addr: address,
            ..Default::default()
        };
        self.wait("docker swarm init", self.api().init_swarm(request));
    }

    /// `docker swarm join`, of `manager`, as a worker.
    #[track_caller]
    pub fn swarm_join(&self, own: Ipv4Addr, manager: &Self, at: Ipv4Addr) {
        let swarm = manager.wait("docker swarm join-token worker", manager.api().inspect_swarm());
        let token = swarm.join_tokens.and_then(|tokens| tokens.worker);
        let request = SwarmJoinRequest {
            listen_addr: Some("0.0.0.0:2377".to_owned()),
            advertise_addr: Some(own.to_string()),
            remote_addrs: Some(vec![format!("{at}:2377")]),
            join_token: token,
            ..Default::default()
        };
        self.wait("docker swarm join", self.api().join_swarm(request));
    }

    #[track_caller]
    pub fn create_service(&self, spec: ServiceSpec) {
        let what = format!("docker service create {}", spec.name);
        self.wait(&what, self.api().create_service(spec.body(), None));
    }

    /// `docker service update`: `change` is given the service as it is.
    #[track_caller]
    pub fn update_service(&self, name: &str, change: impl Fn(&mut Body)) {
        self.send_update(name, change, None);
    }

    /// With another image.
    #[track_caller]
    pub fn update_image(&self, name: &str, image: &str) {
        self.update_service(name, |body| set_image(body, image));
    }

    /// With another image, and `--update-order …`.
    #[track_caller]
    pub fn update_image_in_order(&self, name: &str, image: &str, start_first: bool) {
        self.update_service(name, |body| {
            set_image(body, image);
            body.update_config = Some(update_config(start_first));
        });
    }

    #[track_caller]
    pub fn scale(&self, name: &str, replicas: i64) {
        self.update_service(name, |body| {
            let replicated = ServiceSpecModeReplicated { replicas: Some(replicas) };
            body.mode = Some(ServiceSpecMode { replicated: Some(replicated), ..Default::default() });
        });
    }

    /// `docker service update --publish-rm … --publish-add …`.
    #[track_caller]
    pub fn publish(&self, name: &str, publish: &[(u16, u16)]) {
        self.update_service(name, |body| {
            body.endpoint_spec = Some(EndpointSpec { ports: Some(ports(publish)), ..Default::default() });
        });
    }

    /// `docker service rollback`.
    #[track_caller]
    pub fn rollback(&self, name: &str) {
        self.send_update(name, |_| {}, Some("previous"));
    }

    #[track_caller]
    fn send_update(&self, name: &str, change: impl Fn(&mut Body), rollback: Option<&str>) {
        in_sequence(&format!("docker service update {name}"), || self.try_update(name, &change, rollback));
    }

    fn try_update(
        &self,
        name: &str,
        change: impl Fn(&mut Body),
        rollback: Option<&str>,
    ) -> Result<(), bollard::errors::Error> {
        let service = self.wait(&format!("inspect service {name}"), self.api().inspect_service(name, None));
        let version = service.version.and_then(|version| version.index).unwrap_or_default();
        let mut body = service.spec.unwrap_or_default();
        if let Some(container) = body.task_template.as_mut().and_then(|task| task.container_spec.as_mut()) {
            // Docker writes it as `Healthcheck`; the client reads `HealthCheck`, and an update would take it away.
            container.health_check = container.health_check.take().or_else(|| self.healthcheck(name));
        }
        change(&mut body);
        let mut options = UpdateServiceOptionsBuilder::new().version(i32::try_from(version).unwrap_or_default());
        if let Some(rollback) = rollback {
            options = options.rollback(rollback);
        }
        self.try_wait(self.api().update_service(name, body, options.build(), None)).map(drop)
    }

    /// `docker service rm`.
    #[track_caller]
    pub fn remove_service(&self, name: &str) {
        self.wait(&format!("docker service rm {name}"), self.api().delete_service(name));
    }

    /// `docker node update --availability drain` (or back to `active`), of this Docker's own node.
    #[track_caller]
    pub fn drain_node(&self, drain: bool) {
        self.drain_other_node(&self.node_id(), drain);
    }

    /// This Docker's own node.
    #[track_caller]
    pub fn node_id(&self) -> String {
        self.swarm_info().node_id.unwrap_or_default()
    }

    /// The same, of any node.
    #[track_caller]
    pub fn drain_other_node(&self, id: &str, drain: bool) {
        let availability = if drain { NodeSpecAvailabilityEnum::DRAIN } else { NodeSpecAvailabilityEnum::ACTIVE };
        self.update_node(id, |spec| spec.availability = Some(availability));
    }

    /// `docker node promote`.
    #[track_caller]
    pub fn promote(&self, id: &str) {
        self.update_node(id, |spec| spec.role = Some(NodeSpecRoleEnum::MANAGER));
    }

    /// `docker node demote`.
    #[track_caller]
    pub fn demote(&self, id: &str) {
        self.update_node(id, |spec| spec.role = Some(NodeSpecRoleEnum::WORKER));
    }

    #[track_caller]
    fn update_node(&self, id: &str, change: impl Fn(&mut NodeSpec)) {
        in_sequence("docker node update", || {
            let node = self.wait("inspect a node", self.api().inspect_node(id));
            let version = node.version.and_then(|version| version.index).unwrap_or_default();
            let mut spec = node.spec.unwrap_or_default();
            change(&mut spec);
            let options = UpdateNodeOptionsBuilder::new().version(i64::try_from(version).unwrap_or_default()).build();
            self.try_wait(self.api().update_node(id, spec, options))
        });
    }

    /// `docker node ls`: the states of all nodes.
    #[track_caller]
    pub fn nodes(&self) -> Vec<String> {
        let nodes = self.wait("docker node ls", self.api().list_nodes(None));
        let state = |node: bollard::models::Node| node.status?.state.map(|state| state.to_string());
        nodes.into_iter().filter_map(state).collect()
    }

    /// Whether this Docker says that it is a manager.
    #[track_caller]
    pub fn is_manager(&self) -> bool {
        self.swarm_info().control_available.unwrap_or_default()
    }

    #[track_caller]
    fn swarm_info(&self) -> SwarmInfo {
        self.wait("docker info", self.api().info()).swarm.unwrap_or_default()
    }

    /// Whether this Docker, as a manager, answers that.
    pub fn try_nodes(&self) -> Result<usize, String> {
        self.try_wait(self.api().list_nodes(None)).map(|nodes| nodes.len()).map_err(|err| err.to_string())
    }

    /// `docker network create -d overlay`.
    #[track_caller]
    pub fn create_overlay(&self, name: &str) {
        let request = bollard::models::NetworkCreateRequest {
            name: name.to_owned(),
            driver: Some("overlay".to_owned()),
            ..Default::default()
        };
        self.wait(&format!("create overlay network {name}"), self.api().create_network(request));
    }

    #[track_caller]
    pub fn network_id(&self, name: &str) -> String {
        let found = self.wait(&format!("inspect network {name}"), self.api().inspect_network(name, None));
        found.id.unwrap_or_default()
    }

    /// The names of a service's tasks, on whatever node, as this Docker lists them in a network.
    #[track_caller]
    pub fn listed_tasks(&self, network: &str, service: &str) -> Vec<String> {
        let verbose = InspectNetworkOptionsBuilder::new().verbose(true).build();
        let found =
            self.wait(&format!("inspect network {network}"), self.api().inspect_network(network, Some(verbose)));
        let found = found.services.and_then(|mut services| services.remove(service)).unwrap_or_default();
        let tasks = found["Tasks"].as_array().into_iter().flatten();
        tasks.filter_map(|task| task["Name"].as_str().map(str::to_owned)).collect()
    }

    /// The tasks of a service, on whatever node, those of the past too.
    #[track_caller]
    pub fn tasks(&self, service: &str) -> Vec<Task> {
        let filters = HashMap::from([("service", vec![service])]);
        let options = ListTasksOptionsBuilder::new().filters(&filters).build();
        let tasks = self.wait("list tasks", self.api().list_tasks(Some(options)));
        let word = |state: Option<String>| state.unwrap_or_default();
        let task = |task: bollard::models::Task| {
            let status = task.status.unwrap_or_default();
            Task {
                id: task.id.unwrap_or_default(),
                state: word(status.state.map(|state| state.to_string())),
                desired: word(task.desired_state.map(|state| state.to_string())),
                image: word(task.spec.and_then(|spec| spec.container_spec).and_then(|spec| spec.image)),
                container: status.container_status.and_then(|container| container.container_id),
            }
        };
        tasks.into_iter().map(task).collect()
    }

    /// Waits until exactly `n` tasks of a service run as they should, of this image, and no other is left running.
    #[track_caller]
    pub fn wait_tasks(&self, service: &str, n: usize, image: &str) -> Vec<Task> {
        wait_until(&format!("{n} tasks of {service} run {image}"), LIMIT, || {
            let tasks = self.tasks(service);
            let running = |task: &&Task| task.state == "running";
            let good = tasks.iter().filter(running).filter(|task| task.desired == "running" && task.image == image);
            let good: Vec<Task> = good.cloned().collect();
            if good.len() == n && tasks.iter().filter(running).count() == n {
                Ok(good)
            } else {
                Err(format!("{tasks:#?}"))
            }
        })
    }

    /// The running containers of a service on this Docker's own node.
    #[track_caller]
    pub fn task_containers(&self, service: &str) -> Vec<Container> {
        let container = |id: String| {
            let facts = self.inspect(&id);
            let name = facts.name.clone().unwrap_or_default().trim_start_matches('/').to_owned();
            Container::new(self.clone(), id, name, &facts)
        };
        self.task_container_ids(service).map(container).collect()
    }

    #[track_caller]
    fn task_container_ids(&self, service: &str) -> impl Iterator<Item = String> + use<> {
        let label = format!("com.docker.swarm.service.name={service}");
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::new().filters(&filters).build();
        let listed = self.wait("list containers", self.api().list_containers(Some(options)));
        listed.into_iter().filter_map(|container| container.id)
    }

    /// The healthcheck of a service's tasks, as their containers on this Docker's own node have it.
    #[track_caller]
    fn healthcheck(&self, service: &str) -> Option<HealthConfig> {
        // One that ends meanwhile has nothing to say.
        let facts = |id: String| self.try_wait(self.api().inspect_container(&id, None::<InspectContainerOptions>)).ok();
        self.task_container_ids(service).find_map(facts)?.config?.healthcheck
    }

    /// Addresses of a service's VIPs, by network id.
    #[track_caller]
    pub fn vips(&self, service: &str) -> HashMap<String, IpAddr> {
        let found = self.wait("inspect a service", self.api().inspect_service(service, None));
        let vips = found.endpoint.and_then(|endpoint| endpoint.virtual_ips).unwrap_or_default();
        let vip = |vip: bollard::models::ServiceEndpointVirtualIps| {
            let address = vip.addr?.split('/').next()?.parse().ok()?;
            Some((vip.network_id?, address))
        };
        vips.into_iter().filter_map(vip).collect()
    }
}

/// Sends an update of what was looked at just before; once more where Swarm has meanwhile written something down itself, such as how
/// the update before this one went.
#[track_caller]
fn in_sequence(what: &str, send: impl Fn() -> Result<(), bollard::errors::Error>) {
    let sent = wait_until(what, LIMIT, || match send() {
        Err(err) if err.to_string().contains("update out of sequence") => Err(err),
        outcome => Ok(outcome),
    });
    if let Err(err) = sent {
        panic!("{what}: {err}");
    }
}
