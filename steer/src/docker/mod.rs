//! Docker's containers and events, as the model's types.
//!
//! Problem: Docker tells changes, not state, and it may lose them; it answers for a container that is gone a moment
//! later.
//! Approach: [`Subscription`] says [`Feed::Connected`] once events flow, so whoever lists *then* misses nothing, and
//! says so again after every interruption. [`Docker::containers`] gives the whole state at once, with what vanished
//! meanwhile left out.
//!
//! | module | holds |
//! |---|---|
//! | [`events`] | events, and how Docker writes them |
//! | [`feed`] | the stream of events, and reconnecting |
//! | `inspect` | from Docker's description of a container to the model's |
//! | `swarm` | services and tasks of the swarm that it is part of |
//! | `http` | requests over Docker's socket |

pub mod events;
#[cfg(test)]
mod fake;
pub mod feed;
mod http;
mod inspect;
mod swarm;

use std::collections::{BTreeSet, HashMap};
use std::fmt;
use std::future::ready;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use bollard::errors::Error;
use bollard::query_parameters::{InspectContainerOptions, ListContainersOptionsBuilder};
use futures_util::future::{Either, select};
use futures_util::{StreamExt, stream};
use serde::Deserialize;
use tokio::time::timeout;

use self::http::Host;
use crate::model::swarm::{GATEWAY, LABEL as TASK_LABEL, Swarm, add_gateway};
use crate::model::{Container, ContainerId};

pub use self::events::{Event, EventKind};
pub use self::feed::{Feed, Subscription};
pub use self::swarm::Role;

/// A container without one of these labels is none of steer's business.
pub const LABELS: [&str; 2] = [crate::model::labels::PORT, TASK_LABEL];

/// Newest version of Docker's API that is spoken here.
const NEWEST_API: ApiVersion = ApiVersion(1, 53);

/// Containers inspected at once: enough to hide the latency, too few to burden dockerd.
const INSPECT_AT_ONCE: usize = 8;

/// After this, dockerd counts as hung.
const TIMEOUT: Duration = Duration::from_secs(30);

/// A Docker daemon. Cheap to clone; clones share what was negotiated.
#[derive(Clone, Debug)]
pub struct Docker {
    host: Host,
    session: Arc<Mutex<Option<Session>>>,
    /// Id of the network that leads to tasks, as it was found last.
    gateway: Arc<Mutex<Option<String>>>,
}

/// What holds until dockerd restarts, maybe as another version.
#[derive(Clone, Debug)]
struct Session {
    client: bollard::Docker,
    api: ApiVersion,
}

/// What a Docker daemon says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Version {
    /// Release, e.g. `28.5.2`.
    pub engine: String,
    /// Newest version of the API it speaks.
    pub api: ApiVersion,
    /// Version of the API that steer speaks with it.
    pub negotiated: ApiVersion,
}

/// Version of Docker's API, e.g. `1.41`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct ApiVersion(pub u16, pub u16);

impl fmt::Display for ApiVersion {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.0, self.1)
    }
}

impl ApiVersion {
    fn parse(text: &str) -> Option<Self> {
        let (major, minor) = text.split_once('.')?;
        Some(Self(major.parse().ok()?, minor.parse().ok()?))
    }
}

/// `GET /version`, as far as it is needed.
#[derive(Deserialize)]
struct VersionAnswer {
    #[serde(rename = "Version")]
    engine: String,
    #[serde(rename = "ApiVersion")]
    newest: String,
    #[serde(rename = "MinAPIVersion")]
    oldest: Option<String>,
}

/// What [`Docker::containers`] finds.
#[derive(Debug)]
pub struct Listed {
    /// Those that run, by name.
    pub containers: Vec<Container>,
    /// Those that are there, but that Docker did not describe, and why: a part taken for the whole would make them look gone.
    pub unknown: Vec<(ContainerId, anyhow::Error)>,
    /// Asked after the containers: each of them has its task there.
    pub swarm: Told,
}

/// What the swarm says.
#[derive(Debug)]
pub struct Told {
    /// When it was asked.
    pub asked: Instant,
    /// What part this Docker has in it; `None` = not known.
    pub role: Option<Role>,
    /// `Ok(None)` = it is part of none.
    pub swarm: anyhow::Result<Option<Swarm>>,
}

impl Docker {
    /// The daemon at `host`, else at `$DOCKER_HOST`, else at `unix:///var/run/docker.sock`. Nothing is sent yet.
    pub fn at(host: Option<&str>) -> anyhow::Result<Self> {
        let environment = std::env::var("DOCKER_HOST").unwrap_or_default();
        let host = host.filter(|host| !host.is_empty()).or(Some(environment.as_str()).filter(|host| !host.is_empty()));
        let host = Host::parse(host.unwrap_or(http::DEFAULT_HOST))?;
        Ok(Self { host, session: Arc::default(), gateway: Arc::default() })
    }

    /// Where the daemon is, as `--docker-host` takes it.
    pub fn host(&self) -> String {
        self.host.to_string()
    }

    /// Asks the daemon for its version, and settles which version of the API to speak from now on.
    pub async fn version(&self) -> anyhow::Result<Version> {
        // Without a version in the path: any daemon answers this, whatever versions it speaks.
        let body = self.host.get("/version").await?;
        let answer: VersionAnswer = serde_json::from_slice(&body)
            .with_context(|| format!("what answers at {} is not Docker (GET /version)", self.host))?;
        let newest = ApiVersion::parse(&answer.newest)
            .with_context(|| format!("Docker {} names an API version of `{}`", answer.engine, answer.newest))?;
        let oldest = answer.oldest.as_deref().and_then(ApiVersion::parse).unwrap_or(newest.min(NEWEST_API));
        if oldest > NEWEST_API {
            bail!(
                "Docker {} speaks API {oldest} to {newest}, this steer up to {NEWEST_API}: use a newer steer",
                answer.engine
            );
        }
        let api = newest.min(NEWEST_API);
        let client = self.host.client(api)?;
        *self.session.lock().unwrap_or_else(PoisonError::into_inner) = Some(Session { client, api });
        Ok(Version { engine: answer.engine, api: newest, negotiated: api })
    }

    async fn session(&self) -> anyhow::Result<Session> {
        if let Some(session) = self.settled() {
            return Ok(session);
        }
        self.version().await?;
        self.settled().context("Docker's API version is not settled")
    }

    fn settled(&self) -> Option<Session> {
        self.session.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// All running containers that carry one of [`LABELS`].
    pub async fn containers(&self) -> anyhow::Result<Listed> {
        let mut ids = BTreeSet::new();
        for label in LABELS {
            ids.extend(self.labelled(label).await?);
        }
        let inspect = |id: ContainerId| async move {
            let found = self.inspect_alone(&id).await;
            (id, found)
        };
        let found: Vec<_> = stream::iter(ids).map(inspect).buffer_unordered(INSPECT_AT_ONCE).collect().await;
        let (mut containers, mut unknown) = (Vec::new(), Vec::new());
        for (id, found) in found {
            match found {
                Ok(Some(container)) if container.running => containers.push(container),
                Ok(_) => {}
                Err(error) => unknown.push((id, error)),
            }
        }
        containers.sort_by(|a, b| a.name.cmp(&b.name));
        let tasks = containers.iter().filter(|container| is_task(container));
        let networks = tasks.flat_map(|task| task.legs.iter().map(|leg| leg.network.clone())).collect();
        let (containers, unreached) = self.reach_tasks(containers).await;
        unknown.extend(unreached);
        Ok(Listed { containers, unknown, swarm: self.swarm(None, &networks).await })
    }

    /// Puts the leg to this host into the description of each task. If it is not told, the tasks are not described; nobody else
    /// needs it.
    async fn reach_tasks(&self, mut containers: Vec<Container>) -> (Vec<Container>, Vec<(ContainerId, anyhow::Error)>) {
        if !containers.iter().any(is_task) {
            return (containers, Vec::new());
        }
        match self.gateway().await.with_context(|| format!("asking for the addresses in network {GATEWAY} failed")) {
            Ok(gateway) => {
                containers.iter_mut().for_each(|container| add_gateway(container, &gateway));
                (containers, Vec::new())
            }
            Err(error) => {
                let (tasks, others): (Vec<_>, _) = containers.into_iter().partition(is_task);
                let unreached = |task: Container| (task.id, anyhow::anyhow!("{error:#}"));
                (others, tasks.into_iter().map(unreached).collect())
            }
        }
    }

    async fn labelled(&self, label: &str) -> anyhow::Result<Vec<ContainerId>> {
        let filters = HashMap::from([("label", vec![label])]);
        let options = ListContainersOptionsBuilder::default().filters(&filters).build();
        let client = self.session().await?.client;
        let listed =
            timeout(TIMEOUT, client.list_containers(Some(options))).await.unwrap_or(Err(Error::RequestTimeoutError));
        let listed = listed.with_context(|| format!("cannot list the containers of Docker at {}", self.host))?;
        Ok(listed.into_iter().filter_map(|summary| summary.id).map(ContainerId).collect())
    }

    /// One container, running or not, with or without label; `None` = there is none of that id (or name).
    pub async fn inspect(&self, id: &ContainerId) -> anyhow::Result<Option<Container>> {
        // Both at once, since clients wait for this answer; but whoever is no task waits for its own description alone.
        let (inspected, gateway) = (pin!(self.inspect_alone(id)), pin!(self.gateway_of_last_time()));
        let (found, gateway) = match select(inspected, gateway).await {
            Either::Left((found, gateway)) => (found, Either::Left(gateway)),
            Either::Right((gateway, inspected)) => (inspected.await, Either::Right(ready(gateway))),
        };
        let mut found = found?;
        if let Some(container) = found.as_mut().filter(|container| is_task(container)) {
            let gateway = match gateway.await.filter(|gateway| gateway.contains_key(&container.id.0)) {
                Some(gateway) => gateway,
                None => self.gateway().await?,
            };
            add_gateway(container, &gateway);
        }
        Ok(found)
    }

    fn remembered_gateway(&self) -> Option<String> {
        self.gateway.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn remember_gateway(&self, id: Option<String>) {
        *self.gateway.lock().unwrap_or_else(PoisonError::into_inner) = id;
    }

    /// As Docker describes it, which for a task leaves out the leg to this host.
    async fn inspect_alone(&self, id: &ContainerId) -> anyhow::Result<Option<Container>> {
        let client = self.session().await?.client;
        let answer = timeout(TIMEOUT, client.inspect_container(&id.0, None::<InspectContainerOptions>)).await;
        match answer.unwrap_or(Err(Error::RequestTimeoutError)) {
            Ok(response) => Ok(inspect::container(response)),
            Err(Error::DockerResponseServerError { status_code: 404, .. }) => Ok(None),
            Err(error) => {
                let error = anyhow::Error::from(error);
                Err(error.context(format!("cannot inspect container {id} of Docker at {}", self.host)))
            }
        }
    }

    /// Events from now on. Opened once this returns; ends with the connection. [`Docker::subscribe`] also reconnects.
    pub async fn events(&self) -> anyhow::Result<feed::Events> {
        feed::Events::open(&self.host, self.session().await?.api).await
    }

    /// Events from now on, for as long as the subscription lives, over restarts of dockerd. Needs a tokio runtime.
    pub fn subscribe(&self) -> Subscription {
        Subscription::start(self.clone())
    }
}

fn is_task(container: &Container) -> bool {
    container.labels.contains_key(TASK_LABEL)
}

#[cfg(test)]
mod tests;
