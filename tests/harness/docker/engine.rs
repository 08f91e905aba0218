//! Docker's API for tests: blocking, from any thread, panicking with Docker's own words.

use std::fmt;
use std::future::Future;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::models::{ContainerInspectResponse, EventMessage};
use bollard::query_parameters::{
    CreateContainerOptionsBuilder, EventsOptionsBuilder, InspectContainerOptions, RemoveContainerOptionsBuilder,
    StartContainerOptions,
};
use futures_util::StreamExt;
use futures_util::future::join_all;
use tokio::runtime::Runtime;

use super::container::Container;
use super::spec::ContainerSpec;
use crate::pace;

const CALL_LIMIT_SECONDS: u32 = 120;

/// A handle on a Docker; clones can go to other threads.
#[derive(Clone)]
pub struct Engine {
    api: bollard::Docker,
    runtime: Arc<Runtime>,
}

impl Engine {
    /// Connects, agrees on a version, and pings.
    pub fn connect(socket: &Path) -> Result<Self, bollard::errors::Error> {
        let path = socket.display().to_string();
        let limit = pace::soon_secs(CALL_LIMIT_SECONDS).into();
        Self::agree(|| bollard::Docker::connect_with_unix(&path, limit, bollard::API_DEFAULT_VERSION))
    }

    /// The same, with a Docker in another machine.
    pub(crate) fn connect_tcp(address: SocketAddr) -> Result<Self, bollard::errors::Error> {
        let url = format!("tcp://{address}");
        let limit = pace::soon_secs(CALL_LIMIT_SECONDS).into();
        Self::agree(|| bollard::Docker::connect_with_http(&url, limit, bollard::API_DEFAULT_VERSION))
    }

    fn agree(
        connect: impl FnOnce() -> Result<bollard::Docker, bollard::errors::Error>,
    ) -> Result<Self, bollard::errors::Error> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.expect("a tokio runtime can be built");
        let api = runtime.block_on(async { connect()?.negotiate_version().await })?;
        runtime.block_on(api.ping())?;
        Ok(Self { api, runtime: Arc::new(runtime) })
    }

    /// For what has no helper here, together with [`Engine::wait`].
    pub fn api(&self) -> &bollard::Docker {
        &self.api
    }

    /// Waits for an answer of Docker; panics with `what` when it is an error.
    #[track_caller]
    pub fn wait<T>(&self, what: &str, call: impl Future<Output = Result<T, bollard::errors::Error>>) -> T {
        self.try_wait(call).unwrap_or_else(|err| panic!("{what}: {err}"))
    }

    /// Waits for an answer of Docker.
    pub fn try_wait<T>(
        &self,
        call: impl Future<Output = Result<T, bollard::errors::Error>>,
    ) -> Result<T, bollard::errors::Error> {
        self.runtime.block_on(call)
    }

    /// Creates and starts a container.
    #[track_caller]
    pub fn run(&self, spec: ContainerSpec) -> Container {
        let what = format!("run {}", spec.name);
        self.wait(&what, self.create_and_start(spec))
    }

    /// Creates and starts containers side by side.
    #[track_caller]
    pub fn run_all(&self, specs: impl IntoIterator<Item = ContainerSpec>) -> Vec<Container> {
        let all = join_all(specs.into_iter().map(|spec| self.create_and_start(spec)));
        let outcomes = self.runtime.block_on(all);
        outcomes.into_iter().map(|outcome| outcome.unwrap_or_else(|err| panic!("run containers: {err}"))).collect()
    }

    async fn create_and_start(&self, spec: ContainerSpec) -> Result<Container, bollard::errors::Error> {
        let options = CreateContainerOptionsBuilder::new().name(&spec.name).build();
        let name = spec.name.clone();
        let id = self.api.create_container(Some(options), spec.body()).await?.id;
        self.api.start_container(&id, None::<StartContainerOptions>).await?;
        let facts = self.api.inspect_container(&id, None::<InspectContainerOptions>).await?;
        Ok(Container::new(self.clone(), id, name, &facts))
    }

    /// Creates a bridge network.
    #[track_caller]
    pub fn create_network(&self, name: &str) {
        let request = bollard::models::NetworkCreateRequest { name: name.to_owned(), ..Default::default() };
        self.wait(&format!("create network {name}"), self.api.create_network(request));
    }

    #[track_caller]
    pub fn inspect(&self, id: &str) -> ContainerInspectResponse {
        self.wait(&format!("inspect {id}"), self.api.inspect_container(id, None::<InspectContainerOptions>))
    }

    /// Removes a container and whatever runs in it.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        let options = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        self.wait(&format!("remove {id}"), self.api.remove_container(id, Some(options)));
    }

    /// Looks at a container now and after each of its events, until `look` finds what it looks for.
    #[track_caller]
    pub fn wait_container<T>(
        &self,
        id: &str,
        what: &str,
        limit: Duration,
        look: impl Fn(&ContainerInspectResponse) -> Option<T>,
    ) -> T {
        let limit = pace::soon(limit);
        // Docker replays events since a moment before the first look, so none can fall between look and subscription.
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs().saturating_sub(1);
        let filters = [("container", vec![id]), ("type", vec!["container"])];
        let options = EventsOptionsBuilder::new().since(&since.to_string()).filters(&filters.into()).build();
        let looking = async {
            let mut events = std::pin::pin!(self.api.events(Some(options)));
            loop {
                let facts = self.api.inspect_container(id, None::<InspectContainerOptions>).await?;
                if let Some(found) = look(&facts) {
                    return Ok(found);
                }
                while is_probe(events.next().await.transpose()?.as_ref()) {}
            }
        };
        let found: Result<Result<T, bollard::errors::Error>, _> =
            self.runtime.block_on(async { tokio::time::timeout(limit, looking).await });
        match found {
            Ok(Ok(found)) => found,
            Ok(Err(err)) => panic!("{id} {what}: {err}"),
            Err(_) => panic!("{id} {what}: not within {limit:?}; {:#?}", self.inspect(id).state),
        }
    }
}

/// The exec events of a healthcheck tell nothing; its `health_status` event does.
fn is_probe(event: Option<&EventMessage>) -> bool {
    let action = event.and_then(|event| event.action.as_deref());
    action.is_some_and(|action| action.starts_with("exec_"))
}

impl fmt::Debug for Engine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Engine").finish_non_exhaustive()
    }
}
