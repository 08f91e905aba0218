//! Where the demo plays: a client beside a Docker host, which is either a private one or this very machine.
//!
//! A Docker that runs here is only borrowed: containers, network and image carry the run's own name and go with it, the
//! frontends exist on the uplink's own address alone, and a Docker with containers that ask to be steered is not touched:
//! they would be steered by the demo's agent too.

use std::collections::HashMap;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use bollard::models::NetworkCreateRequest;
use bollard::query_parameters::{
    ListContainersOptionsBuilder, RemoveContainerOptionsBuilder, RemoveImageOptionsBuilder,
};
use nix::net::if_::if_nametoindex;
use steer_tests::World;
use steer_tests::agent::Agent;
use steer_tests::docker::{ContainerSpec, Docker, Engine};

use crate::board::{Board, Stop};
use crate::{Args, Hook, Whose};

/// Of the greeters' HTTP, and of their echo.
const HTTP: u16 = 9000;
const ECHO: u16 = 9001;
const DEFAULT_SOCKET: &str = "/var/run/docker.sock";

/// Declared in the order in which things must go.
pub(crate) struct Stage {
    docker: Which,
    pub(crate) world: World,
}

enum Which {
    Private(Docker),
    Borrowed(Borrowed),
}

/// What this run has made in somebody else's Docker; dropping it takes that away.
struct Borrowed {
    engine: Engine,
    socket: PathBuf,
    tag: String,
}

impl Stage {
    pub(crate) fn build(args: &Args, board: &Board) -> Result<Self, Stop> {
        let running = match args.docker {
            Whose::Private => Err("a private one was asked for".to_owned()),
            Whose::Auto | Whose::Running => find_running(),
        };
        let stage = match (running, args.docker) {
            (Ok((engine, socket)), whose) => match Self::borrow(engine, socket, args.attach) {
                Err(reason) if whose == Whose::Auto => Self::private(args.attach, &reason, board)?,
                borrowed => borrowed.map_err(Stop::Failed)?,
            },
            (Err(reason), Whose::Running) => return Err(Stop::Failed(reason)),
            (Err(reason), _) => Self::private(args.attach, &reason, board)?,
        };
        board.check()?;
        board.step("making the image of the greeters")?;
        stage.engine().import_greeter_as(&stage.image());
        Ok(stage)
    }

    fn private(hook: Hook, why: &str, board: &Board) -> Result<Self, Stop> {
        board.step(format!("starting a private dockerd ({why})"))?;
        let world = hook.attach().world();
        let docker = Which::Private(Docker::start(&world));
        Ok(Self { docker, world })
    }

    fn borrow(engine: Engine, socket: PathBuf, hook: Hook) -> Result<Self, String> {
        let world = hook.attach().fit(World::beside_this_machine());
        let tag = world.tag().to_owned();
        let docker = Borrowed { engine, socket, tag: tag.clone() };
        let bridge = tag.chars().take(15).collect::<String>();
        let options = HashMap::from([("com.docker.network.bridge.name".to_owned(), bridge.clone())]);
        let request = NetworkCreateRequest { name: tag, options: Some(options), ..Default::default() };
        docker.engine.wait("create a network", docker.engine.api().create_network(request));
        // A rootless Docker, or one in a machine of its own, has its bridges where we cannot reach them.
        if if_nametoindex(bridge.as_str()).is_err() {
            return Err("the running Docker has its containers in another network namespace".to_owned());
        }
        Ok(Self { docker: Which::Borrowed(docker), world })
    }

    pub(crate) fn engine(&self) -> &Engine {
        match &self.docker {
            Which::Private(docker) => docker,
            Which::Borrowed(borrowed) => &borrowed.engine,
        }
    }

    fn image(&self) -> String {
        match &self.docker {
            Which::Private(_) => "greeter".to_owned(),
            Which::Borrowed(borrowed) => borrowed.tag.clone(),
        }
    }

    /// In words.
    pub(crate) fn docker(&self) -> String {
        let engine = self.engine();
        let version = engine.wait("ask Docker for its version", engine.api().version()).version;
        let whose = match &self.docker {
            Which::Private(_) => "private",
            Which::Borrowed(_) => "the running one",
        };
        format!("Docker {} ({whose})", version.unwrap_or_default())
    }

    /// A greeter that asks to be steered.
    pub(crate) fn greeter(&self, name: &str, version: &str) -> ContainerSpec {
        let spec = ContainerSpec::greeter(name).version(version).healthcheck();
        match &self.docker {
            Which::Private(_) => {
                spec.label("steer.port", &format!("{HTTP}:5000, {ECHO}:5001")).label("steer.service", "greeter")
            }
            Which::Borrowed(Borrowed { tag, .. }) => {
                let address = self.world.host_address();
                let ports = format!("{address}:{HTTP}:5000, {address}:{ECHO}:5001");
                let mut spec = spec.network(tag).label("steer.port", &ports).label("steer.service", tag);
                spec.image = format!("{tag}:latest");
                spec.name = format!("{tag}-{name}");
                spec
            }
        }
    }

    pub(crate) fn http(&self) -> SocketAddr {
        (self.world.host_address(), HTTP).into()
    }

    pub(crate) fn echo(&self) -> SocketAddr {
        (self.world.host_address(), ECHO).into()
    }

    pub(crate) fn start_agent(&self, hook: Hook) -> Agent {
        let url = match &self.docker {
            Which::Private(docker) => docker.host_url(),
            Which::Borrowed(borrowed) => format!("unix://{}", borrowed.socket.display()),
        };
        Agent::start_with(&self.world, Some(&url), hook.attach(), &[])
    }
}

/// The Docker of this machine, or why it is not used.
fn find_running() -> Result<(Engine, PathBuf), String> {
    let host = std::env::var("DOCKER_HOST").unwrap_or_default();
    let socket = match host.strip_prefix("unix://") {
        Some(path) => PathBuf::from(path),
        None if host.is_empty() => PathBuf::from(DEFAULT_SOCKET),
        None => return Err(format!("DOCKER_HOST={host} is not a socket of this machine")),
    };
    let engine = Engine::connect(&socket).map_err(|_| format!("no Docker answers at {}", socket.display()))?;
    sweep(&engine, &socket);
    let filters = HashMap::from([("label", vec!["steer.port"])]);
    let options = ListContainersOptionsBuilder::new().filters(&filters).build();
    let steered = engine.wait("list containers", engine.api().list_containers(Some(options)));
    match steered.len() {
        0 => Ok((engine, socket)),
        n => Err(format!("{n} containers of the running Docker ask to be steered themselves")),
    }
}

/// Takes away what a demo that was killed has left in this Docker.
fn sweep(engine: &Engine, socket: &Path) {
    let networks = engine.try_wait(engine.api().list_networks(None)).unwrap_or_default();
    let stale = networks.into_iter().filter_map(|network| network.name).filter(|name| World::is_stale(name));
    stale.for_each(|tag| drop(Borrowed { engine: engine.clone(), socket: socket.to_owned(), tag }));
}

impl Drop for Borrowed {
    fn drop(&mut self) {
        let Self { engine, socket: _, tag } = self;
        let filters = HashMap::from([("network", vec![tag.as_str()])]);
        let options = ListContainersOptionsBuilder::new().all(true).filters(&filters).build();
        let complain = |err: bollard::errors::Error| eprintln!("demo: cleaning up Docker: {err}");
        let containers = engine.try_wait(engine.api().list_containers(Some(options))).map_err(complain);
        let ids = containers.unwrap_or_default().into_iter().filter_map(|container| container.id);
        let force = RemoveContainerOptionsBuilder::new().force(true).v(true).build();
        for id in ids {
            let _ = engine.try_wait(engine.api().remove_container(&id, Some(force.clone()))).map_err(complain);
        }
        let _ = engine.try_wait(engine.api().remove_network(tag)).map_err(complain);
        for version in ["latest", "v1", "v2"] {
            let options = RemoveImageOptionsBuilder::new().force(true).build();
            let image = format!("{tag}:{version}");
            // Not there if it was interrupted early.
            drop(engine.try_wait(engine.api().remove_image(&image, Some(options), None)));
        }
    }
}
