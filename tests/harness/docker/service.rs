//! What a service of a swarm is to be.

use std::collections::HashMap;
use std::time::Duration;

use bollard::models::{
    EndpointPortConfig, EndpointPortConfigPublishModeEnum, EndpointSpec, NetworkAttachmentConfig, ServiceSpec as Body,
    ServiceSpecMode, ServiceSpecModeReplicated, ServiceSpecUpdateConfig, ServiceSpecUpdateConfigOrderEnum, TaskSpec,
    TaskSpecContainerSpec, TaskSpecPlacement, TaskSpecRestartPolicy,
};

use super::spec::Health;
use crate::pace;

/// A service to be, as a builder that reads like `docker service create`; start from [`ServiceSpec::greeter`].
#[derive(Clone, Debug)]
pub struct ServiceSpec {
    pub name: String,
    pub image: String,
    /// `None` = one on each node.
    pub replicas: Option<i64>,
    /// Published port and container's port.
    pub publish: Vec<(u16, u16)>,
    /// The same, by the container itself (`mode=host`) and not by the mesh.
    pub publish_on_host: Vec<(u16, u16)>,
    /// Of the containers, not of the service.
    pub labels: Vec<(String, String)>,
    pub args: Vec<String>,
    pub health: Option<Health>,
    pub start_first: bool,
    pub networks: Vec<String>,
    /// `--constraint`, as `node.role==worker`.
    pub constraint: Option<String>,
    /// `--stop-grace-period`; ten seconds otherwise.
    pub stop_grace: Option<Duration>,
}

impl ServiceSpec {
    /// One greeter, which answers with the name of its container.
    pub fn greeter(name: &str) -> Self {
        Self {
            name: name.to_owned(),
            image: "greeter:v1".to_owned(),
            replicas: Some(1),
            publish: Vec::new(),
            publish_on_host: Vec::new(),
            labels: Vec::new(),
            args: Vec::new(),
            health: None,
            start_first: false,
            networks: Vec::new(),
            constraint: None,
            stop_grace: None,
        }
    }

    #[must_use]
    pub fn replicas(mut self, replicas: i64) -> Self {
        self.replicas = Some(replicas);
        self
    }

    #[must_use]
    pub fn global(mut self) -> Self {
        self.replicas = None;
        self
    }

    #[must_use]
    pub fn publish(mut self, port: u16, target: u16) -> Self {
        self.publish.push((port, target));
        self
    }

    #[must_use]
    pub fn publish_on_host(mut self, port: u16, target: u16) -> Self {
        self.publish_on_host.push((port, target));
        self
    }

    /// `--container-label`.
    #[must_use]
    pub fn label(mut self, key: &str, value: &str) -> Self {
        self.labels.push((key.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn args(mut self, args: &[&str]) -> Self {
        self.args.extend(args.iter().map(|word| (*word).to_owned()));
        self
    }

    /// After its stop signal it goes on serving for so long, in which a test looks at it; nobody kills it before.
    #[must_use]
    pub fn serves_on(self, seconds: u32) -> Self {
        let seconds = pace::lasting_secs(seconds);
        let grace = Duration::from_secs(2 * u64::from(seconds));
        self.args(&["--on-term", "serve", "--grace", &seconds.to_string()]).stop_grace(grace)
    }

    #[must_use]
    pub fn healthcheck(self) -> Self {
        self.health(Health::default())
    }

    #[must_use]
    pub fn health(mut self, health: Health) -> Self {
        self.health = Some(health);
        self
    }

    /// `--update-order start-first`; Docker's default is `stop-first`.
    #[must_use]
    pub fn start_first(mut self) -> Self {
        self.start_first = true;
        self
    }

    #[must_use]
    pub fn network(mut self, name: &str) -> Self {
        self.networks.push(name.to_owned());
        self
    }

    #[must_use]
    pub fn constraint(mut self, constraint: &str) -> Self {
        self.constraint = Some(constraint.to_owned());
        self
    }

    #[must_use]
    pub fn stop_grace(mut self, time: Duration) -> Self {
        self.stop_grace = Some(time);
        self
    }

    pub(super) fn body(self) -> Body {
        let Self {
            name,
            image,
            replicas,
            publish,
            publish_on_host,
            labels,
            args,
            health,
            start_first,
            networks,
            constraint,
            stop_grace,
        } = self;
        let mode = match replicas {
            Some(replicas) => ServiceSpecMode {
                replicated: Some(ServiceSpecModeReplicated { replicas: Some(replicas) }),
                ..Default::default()
            },
            None => ServiceSpecMode { global: Some(HashMap::new()), ..Default::default() },
        };
        let container = TaskSpecContainerSpec {
            image: Some(image),
            labels: Some(labels.into_iter().collect()),
            // As Docker names the container, and so steer the backend.
            env: Some(vec!["GREETER_NAME={{.Task.Name}}".to_owned()]),
            args: Some(args),
            health_check: health.map(Health::config),
            stop_grace_period: stop_grace.and_then(|time| i64::try_from(time.as_nanos()).ok()),
            ..Default::default()
        };
        let attach = |target: String| NetworkAttachmentConfig { target: Some(target), ..Default::default() };
        Body {
            name: Some(name),
            task_template: Some(TaskSpec {
                container_spec: Some(container),
                networks: Some(networks.into_iter().map(attach).collect()),
                placement: constraint
                    .map(|constraint| TaskSpecPlacement { constraints: Some(vec![constraint]), ..Default::default() }),
                // At once: five seconds otherwise.
                restart_policy: Some(TaskSpecRestartPolicy { delay: Some(100_000_000), ..Default::default() }),
                ..Default::default()
            }),
            mode: Some(mode),
            update_config: Some(update_config(start_first)),
            endpoint_spec: Some(EndpointSpec {
                ports: Some([ports(&publish), on_host(&publish_on_host)].concat()),
                ..Default::default()
            }),
            ..Default::default()
        }
    }
}

/// One task after the other.
pub(super) fn update_config(start_first: bool) -> ServiceSpecUpdateConfig {
    let order = if start_first {
        ServiceSpecUpdateConfigOrderEnum::START_FIRST
    } else {
        ServiceSpecUpdateConfigOrderEnum::STOP_FIRST
    };
    ServiceSpecUpdateConfig { parallelism: Some(1), order: Some(order), ..Default::default() }
}

pub(super) fn set_image(body: &mut Body, image: &str) {
    let container = body.task_template.as_mut().and_then(|task| task.container_spec.as_mut());
    container.expect("a service has containers").image = Some(image.to_owned());
}

/// Published ports as a service's endpoint has them.
pub(super) fn ports(publish: &[(u16, u16)]) -> Vec<EndpointPortConfig> {
    let port = |&(published, target): &(u16, u16)| EndpointPortConfig {
        published_port: Some(published.into()),
        target_port: Some(target.into()),
        ..Default::default()
    };
    publish.iter().map(port).collect()
}

fn on_host(publish: &[(u16, u16)]) -> Vec<EndpointPortConfig> {
    let mut ports = ports(publish);
    ports.iter_mut().for_each(|port| port.publish_mode = Some(EndpointPortConfigPublishModeEnum::HOST));
    ports
}
