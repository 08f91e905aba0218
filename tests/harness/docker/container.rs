//! One container, and what a test does to it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, HealthStatusEnum};
use bollard::query_parameters::{
    KillContainerOptionsBuilder, RestartContainerOptions, StartContainerOptions, StopContainerOptionsBuilder,
};

use super::engine::Engine;
use super::spec::PORT;
use crate::netns::Ns;

/// A started container. A handle, not a guard: what is not removed goes with the [`Docker`](super::Docker).
#[derive(Clone, Debug)]
pub struct Container {
    engine: Engine,
    pub id: String,
    pub name: String,
    /// Of its init process, in this machine's process ids, at its last start.
    pub pid: i32,
    /// Its first address, unless its network gives none.
    pub ip: Option<IpAddr>,
}

impl Container {
    pub(crate) fn new(engine: Engine, id: String, name: String, facts: &ContainerInspectResponse) -> Self {
        let mut container = Self { engine, id, name, pid: 0, ip: None };
        container.learn(facts);
        container
    }

    fn learn(&mut self, facts: &ContainerInspectResponse) {
        let pid = facts.state.as_ref().and_then(|state| state.pid).unwrap_or(0);
        self.pid = i32::try_from(pid).unwrap_or(0);
        let networks = facts.network_settings.as_ref().and_then(|settings| settings.networks.as_ref());
        let addresses = networks.into_iter().flatten().filter_map(|(_, endpoint)| endpoint.ip_address.as_deref());
        self.ip = addresses.filter_map(|address| address.parse().ok()).next();
    }

    /// Where its greeter listens.
    pub fn address(&self) -> SocketAddr {
        let ip = self.ip.unwrap_or_else(|| panic!("{} has no address", self.name));
        SocketAddr::new(ip, PORT)
    }

    /// Its network namespace, to act as a program inside it would.
    pub fn ns(&self) -> Ns {
        Ns::of_process(self.pid)
    }

    /// `docker stop`; `seconds` overrides the container's own stop timeout.
    #[track_caller]
    pub fn stop(&self, seconds: Option<i32>) {
        let options = StopContainerOptionsBuilder::new();
        let options = seconds.map(|seconds| options.clone().t(seconds)).unwrap_or(options).build();
        self.engine.wait(&self.what("stop"), self.engine.api().stop_container(&self.id, Some(options)));
    }

    /// `docker kill -s`, as in `kill("KILL")`.
    #[track_caller]
    pub fn kill(&self, signal: &str) {
        let options = KillContainerOptionsBuilder::new().signal(signal).build();
        self.engine.wait(&self.what("kill"), self.engine.api().kill_container(&self.id, Some(options)));
    }

    #[track_caller]
    pub fn pause(&self) {
        self.engine.wait(&self.what("pause"), self.engine.api().pause_container(&self.id));
    }

    #[track_caller]
    pub fn unpause(&self) {
        self.engine.wait(&self.what("unpause"), self.engine.api().unpause_container(&self.id));
    }

    /// `docker start` after a stop; pid and address may be others then.
    #[track_caller]
    pub fn start(&mut self) {
        let start = self.engine.api().start_container(&self.id, None::<StartContainerOptions>);
        self.engine.wait(&self.what("start"), start);
        self.learn(&self.engine.inspect(&self.id));
    }

    #[track_caller]
    pub fn restart(&mut self) {
        let restart = self.engine.api().restart_container(&self.id, None::<RestartContainerOptions>);
        self.engine.wait(&self.what("restart"), restart);
        self.learn(&self.engine.inspect(&self.id));
    }

    /// `docker rm -f`.
    #[track_caller]
    pub fn remove(&self) {
        self.engine.remove(&self.id);
    }

    /// Waits for a health status, by Docker's events.
    #[track_caller]
    pub fn wait_health(&self, wanted: HealthStatusEnum, limit: Duration) {
        self.engine.wait_container(&self.id, &format!("becomes {wanted}"), limit, |facts| {
            let health = facts.state.as_ref()?.health.as_ref()?.status;
            (health == Some(wanted)).then_some(())
        });
    }

    #[track_caller]
    pub fn wait_healthy(&self) {
        self.wait_health(HealthStatusEnum::HEALTHY, Duration::from_secs(30));
    }

    /// Waits for its end and returns the exit code.
    #[track_caller]
    pub fn wait_exit(&self, limit: Duration) -> i64 {
        self.engine.wait_container(&self.id, "ends", limit, |facts| {
            let state = facts.state.as_ref()?;
            (state.running == Some(false)).then_some(state.exit_code.unwrap_or(-1))
        })
    }

    fn what(&self, verb: &str) -> String {
        format!("docker {verb} {}", self.name)
    }
}
