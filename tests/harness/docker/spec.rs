//! What a container shall be, as a builder that reads like `docker run`.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{ContainerCreateBody, HealthConfig, HostConfig, PortBinding};

use crate::pace;

/// The HTTP port of a greeter.
pub(crate) const PORT: u16 = 5000;
/// Seconds that a probe may take: for its request, and for all of it, with the start of its process.
const PROBE_LIMITS: [u32; 2] = [2, 3];

/// A container to be; start from [`ContainerSpec::greeter`].
#[derive(Clone, Debug)]
pub struct ContainerSpec {
    pub name: String,
    pub image: String,
    pub labels: Vec<(String, String)>,
    pub env: Vec<String>,
    /// Arguments of the greeter.
    pub args: Vec<String>,
    pub health: Option<Health>,
    /// Seconds between the stop signal and SIGKILL; Docker's default is 10.
    pub stop_timeout: Option<i64>,
    pub stop_signal: Option<String>,
    /// Host port to container port, as `-p`.
    pub publish: Vec<(u16, u16)>,
    /// A network's name, `none` or `host`; Docker's default is its bridge.
    pub network: Option<String>,
    /// Bytes of memory, as `--memory`.
    pub memory: Option<i64>,
}

/// A healthcheck that runs `/greeter health`.
#[derive(Clone, Copy, Debug)]
pub struct Health {
    pub interval: Duration,
    pub retries: i64,
    pub start_period: Duration,
    /// Between probes until the first success within `start_period`; Docker 25 and later.
    pub start_interval: Option<Duration>,
}

impl Default for Health {
    /// Twice a second, unhealthy after two failures. Each probe is an exec: more would keep two cores busy.
    fn default() -> Self {
        let interval = pace::lasting(Duration::from_millis(500));
        Self { interval, retries: 2, start_period: Duration::ZERO, start_interval: None }
    }
}

impl ContainerSpec {
    /// A greeter that answers as `name`, without a healthcheck.
    pub fn greeter(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: "greeter:latest".to_owned(),
            labels: Vec::new(),
            env: Vec::new(),
            args: Vec::new(),
            health: None,
            stop_timeout: None,
            stop_signal: None,
            publish: Vec::new(),
            network: None,
            memory: None,
        }
    }

    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    /// `GREETER_VERSION`: in the greeting and in `X-Version`.
    #[must_use]
    pub fn version(self, version: &str) -> Self {
        self.env("GREETER_VERSION", version)
    }

    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.env.push(format!("{key}={value}"));
        self
    }

    /// Arguments for the greeter, as in `args(&["--listen-after", "2"])`.
    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|word| (*word).to_owned()));
        self
    }

    /// With the default [`Health`].
    #[must_use]
    pub fn healthcheck(self) -> Self {
        self.health(Health::default())
    }

    #[must_use]
    pub fn health(mut self, health: Health) -> Self {
        self.health = Some(health);
        self
    }

    #[must_use]
    pub fn stop_timeout(mut self, seconds: i64) -> Self {
        self.stop_timeout = Some(seconds);
        self
    }

    #[must_use]
    pub fn stop_signal(mut self, signal: &str) -> Self {
        self.stop_signal = Some(signal.to_owned());
        self
    }

    #[must_use]
    pub fn publish(mut self, host: u16, container: u16) -> Self {
        self.publish.push((host, container));
        self
    }

    #[must_use]
    pub fn network(mut self, name: &str) -> Self {
        self.network = Some(name.to_owned());
        self
    }

    #[must_use]
    pub fn memory(mut self, bytes: i64) -> Self {
        self.memory = Some(bytes);
        self
    }

    /// The body of Docker's create request.
    pub(crate) fn body(self) -> ContainerCreateBody {
        let Self { name, image, labels, env, args, health, stop_timeout, stop_signal, publish, network, memory } = self;
        let tcp = |port: u16| format!("{port}/tcp");
        let binding = |port: u16| vec![PortBinding { host_ip: None, host_port: Some(port.to_string()) }];
        let bindings: HashMap<_, _> = publish.iter().map(|&(host, inner)| (tcp(inner), Some(binding(host)))).collect();
        // A container in the host's UTS namespace cannot have a name of its own.
        let hostname = (network.as_deref() != Some("host")).then(|| name.clone());
        ContainerCreateBody {
            hostname,
            image: Some(image),
            labels: Some(labels.into_iter().collect()),
            env: Some(std::iter::once(format!("GREETER_NAME={name}")).chain(env).collect()),
            cmd: Some(args),
            healthcheck: health.map(Health::config),
            stop_timeout,
            stop_signal,
            exposed_ports: Some(publish.iter().map(|&(_, inner)| tcp(inner)).collect()),
            host_config: Some(HostConfig {
                port_bindings: Some(bindings),
                network_mode: network,
                memory,
                // And no swap beyond.
                memory_swap: memory,
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

impl Health {
    pub(crate) fn config(self) -> HealthConfig {
        let nanos = |time: Duration| i64::try_from(time.as_nanos()).ok();
        let [request, whole] = PROBE_LIMITS.map(pace::soon_secs);
        HealthConfig {
            // CMD, not CMD-SHELL: there is no shell in the image.
            test: Some(["CMD", "/greeter", "health", "--limit", &request.to_string()].map(str::to_owned).to_vec()),
            interval: nanos(self.interval),
            timeout: nanos(Duration::from_secs(whole.into())),
            retries: Some(self.retries),
            start_period: nanos(self.start_period),
            start_interval: self.start_interval.and_then(nanos),
        }
    }
}
