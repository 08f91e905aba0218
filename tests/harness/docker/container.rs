//! One container, and what a test does to it.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, HealthStatusEnum};
use bollard::query_parameters::{
    KillContainerOptionsBuilder, LogsOptionsBuilder, RestartContainerOptions, StartContainerOptions,
    StopContainerOptionsBuilder,
};
use futures_util::TryStreamExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use super::engine::Engine;
use super::spec::PORT;
use crate::netns::Ns;
use crate::wait_until;

/// Of a greeter: one for HTTP, one for its echo.
const LISTENERS: usize = 2;
const FLIP_LIMIT: Duration = Duration::from_secs(10);

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

    /// Has its greeter close its listeners, or open them again (`SIGUSR2`), and waits until that is done.
    #[track_caller]
    pub fn flip_listeners(&self) {
        let wanted = if self.listeners() == 0 { LISTENERS } else { 0 };
        kill(Pid::from_raw(self.pid), Signal::SIGUSR2)
            .unwrap_or_else(|error| panic!("{}: no first process to signal: {error}", self.name));
        wait_until(&self.what("open or close the listeners of"), FLIP_LIMIT, || match self.listeners() {
            now if now == wanted => Ok(()),
            now => Err(format!("{now} listeners")),
        });
    }

    /// How many connections were reset because the greeter closed its listeners while they waited in an accept queue, as it has logged:
    /// nobody at steer's layer can help them.
    ///
    /// Not with them are those that come between its last look into the queue and the closing: [`clients::BETWEEN`].
    ///
    /// [`clients::BETWEEN`]: crate::clients::BETWEEN
    #[track_caller]
    pub fn abandoned(&self) -> u64 {
        let options = LogsOptionsBuilder::new().stdout(true).build();
        let pieces = self.engine.api().logs(&self.id, Some(options)).try_collect::<Vec<_>>();
        let log: String = self.engine.wait(&self.what("logs"), pieces).iter().map(ToString::to_string).collect();
        let counted = log.lines().filter_map(|line| line.strip_prefix("abandoned: ")?.parse::<u64>().ok());
        counted.sum()
    }

    /// How many sockets listen in its network namespace, without Docker's own name server.
    fn listeners(&self) -> usize {
        const LISTEN: &str = "0A";
        const NAME_SERVER: &str = "0B00007F:";
        let table = |name| std::fs::read_to_string(format!("/proc/{}/net/{name}", self.pid)).unwrap_or_default();
        let rows = [table("tcp"), table("tcp6")].concat();
        let is_listener = |row: &&str| {
            let mut words = row.split_whitespace().skip(1);
            let (local, _remote, state) = (words.next(), words.next(), words.next());
            state == Some(LISTEN) && !local.is_some_and(|local| local.starts_with(NAME_SERVER))
        };
        rows.lines().filter(is_listener).count()
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
