//! A Docker of one's own: containerd and dockerd in a world's `host` namespace, everything below the world's directory.
//!
//! Problem: tests must not meet each other, nor a Docker that the machine may already run. Approach: both daemons are
//! started by hand with their own sockets, state, bridge and cgroup parent. containerd is started too, since dockerd
//! would otherwise share the system's one where there is one. Dropping the guard kills without asking; the containers
//! are throwaway.

mod container;
mod engine;
mod image;
mod proxy;
mod service;
mod spec;
mod swarm;

use std::fs::File;
use std::ops::Deref;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use self::container::Container;
pub use self::engine::Engine;
pub use self::proxy::Proxy;
pub use self::service::ServiceSpec;
pub use self::spec::{ContainerSpec, Health};
pub use self::swarm::{Task, has_mesh};
use crate::netns::Ns;
use crate::{World, cleanup, wait_until};

const START_LIMIT: Duration = Duration::from_secs(60);

/// The guard of a private dockerd; everything one does with a Docker is in [`Engine`].
#[derive(Debug)]
pub struct Docker {
    engine: Engine,
    daemon: Option<Child>,
    containerd: Child,
    start: Start,
    tag: String,
    /// From `exec` to the first answered ping.
    pub started_in: Duration,
}

/// What it takes to start dockerd once more.
#[derive(Debug)]
struct Start {
    host: Ns,
    dir: PathBuf,
    arguments: Vec<String>,
}

impl Docker {
    /// Starts a dockerd and waits until it answers. One per world.
    pub fn start(world: &World) -> Self {
        Self::start_with(world, &[])
    }

    /// Like [`Docker::start`] with more arguments for dockerd, such as `--live-restore`.
    pub fn start_with(world: &World, more: &[&str]) -> Self {
        Self::start_in(world, &world.host, "docker", more)
    }

    /// A second one on the machine behind the host. It goes before the first one does.
    pub fn start_on_other(world: &World) -> Self {
        Self::start_in(world, world.other(), "docker2", &[])
    }

    fn start_in(world: &World, ns: &Ns, name: &str, more: &[&str]) -> Self {
        let begin = Instant::now();
        let dir = world.dir().join(name);
        std::fs::create_dir_all(&dir).unwrap_or_else(|err| panic!("create {}: {err}", dir.display()));
        let at = |name: &str| dir.join(name).display().to_string();
        let tag = format!("{}-{name}", world.tag());
        let containerd = spawn_containerd(ns, &dir);
        let mut arguments: Vec<String> = [
            "--host",
            &format!("unix://{}", at("docker.sock")),
            "--containerd",
            &at("containerd.sock"),
            "--data-root",
            &at("data"),
            "--exec-root",
            &at("exec"),
            "--pidfile",
            &at("docker.pid"),
            // The default bridge's usual network: namespaces keep worlds apart, and tests may name the addresses they
            // expect.
            "--bip=172.17.0.1/16",
            "--iptables=true",
            "--storage-driver=overlay2",
            // The cgroup parent is a path, and what is left below it can be found and removed.
            "--exec-opt=native.cgroupdriver=cgroupfs",
            // Each world's below its own, and each Docker's below that.
            &format!("--cgroup-parent=/{}/{tag}", world.tag()),
        ]
        .map(str::to_owned)
        .to_vec();
        arguments.extend(more.iter().map(|word| (*word).to_owned()));
        let start = Start { host: ns.clone(), dir, arguments };
        let mut daemon = start.dockerd();
        let engine = start.wait_ready(&mut daemon);
        Self { engine, daemon: Some(daemon), containerd, start, tag, started_in: begin.elapsed() }
    }

    /// What `--docker-host` takes.
    pub fn host_url(&self) -> String {
        format!("unix://{}", self.start.dir.join("docker.sock").display())
    }

    /// Ends dockerd alone, as `systemctl stop docker` (SIGTERM) or a crash (SIGKILL). With `--live-restore`, or after a
    /// crash, the containers run on.
    pub fn stop_daemon(&mut self, signal: Signal) {
        let Some(mut daemon) = self.daemon.take() else { return };
        kill(Pid::from_raw(daemon.id() as i32), signal).expect("dockerd can be signalled while it is not reaped");
        daemon.wait().expect("dockerd can be waited for");
    }

    /// Starts dockerd again after [`Docker::stop_daemon`], with the same state.
    pub fn start_daemon(&mut self) {
        assert!(self.daemon.is_none(), "dockerd still runs");
        let mut daemon = self.start.dockerd();
        self.engine = self.start.wait_ready(&mut daemon);
        self.daemon = Some(daemon);
    }

    /// What dockerd has logged.
    pub fn log(&self) -> String {
        self.start.log("dockerd.log")
    }
}

impl Deref for Docker {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        &self.engine
    }
}

impl Drop for Docker {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of dockerd's log\n{}", tail(&self.log(), 30));
        }
        // The daemons go first: they would start or report what the rest of the clean-up ends.
        for child in self.daemon.iter_mut().chain([&mut self.containerd]) {
            drop(child.kill());
            drop(child.wait());
        }
        // Containers, shims and proxies. The agent of the same world is dropped before; the world's own end takes the
        // rest.
        cleanup::end_processes(&[], Some(&self.tag));
        cleanup::unmount_below(&self.start.dir);
    }
}

impl Start {
    fn dockerd(&self) -> Child {
        let mut command = self.host.command_dying_by("dockerd", Signal::SIGTERM);
        command.args(&self.arguments);
        spawn_logged(&mut command, &self.dir.join("dockerd.log"))
    }

    fn wait_ready(&self, daemon: &mut Child) -> Engine {
        let socket = self.dir.join("docker.sock");
        wait_until("dockerd answers", START_LIMIT, || {
            if let Ok(Some(status)) = daemon.try_wait() {
                panic!("dockerd ended with {status}:\n{}", tail(&self.log("dockerd.log"), 30));
            }
            Engine::connect(&socket)
        })
    }

    fn log(&self, name: &str) -> String {
        std::fs::read_to_string(self.dir.join(name)).unwrap_or_default()
    }
}

fn spawn_containerd(ns: &Ns, dir: &Path) -> Child {
    let dir_name = dir.display();
    // No CRI and no snapshotter but the plain ones: it starts in 50 ms, and touches nothing outside its directories.
    let config = format!(
        r#"version = 2
root = "{dir_name}/containerd/root"
state = "{dir_name}/containerd/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.aufs",
    "io.containerd.snapshotter.v1.btrfs", "io.containerd.snapshotter.v1.devmapper", "io.containerd.snapshotter.v1.zfs"]
[grpc]
  address = "{dir_name}/containerd.sock"
"#
    );
    let file = dir.join("containerd.toml");
    std::fs::write(&file, &config).unwrap_or_else(|err| panic!("write {}: {err}", file.display()));
    let mut command = ns.command_dying_by("containerd", Signal::SIGTERM);
    command.arg("--config").arg(file);
    let mut child = spawn_logged(&mut command, &dir.join("containerd.log"));
    // dockerd waits for the socket's service, but not for the socket.
    wait_until("containerd's socket", START_LIMIT, || match child.try_wait() {
        Ok(Some(status)) => panic!("containerd ended with {status}"),
        _ => dir.join("containerd.sock").exists().then_some(()).ok_or("no socket"),
    });
    child
}

fn spawn_logged(command: &mut Command, log: &Path) -> Child {
    let out = File::options().create(true).append(true).open(log);
    let out = out.unwrap_or_else(|err| panic!("open {}: {err}", log.display()));
    let err = out.try_clone().expect("a descriptor can be cloned");
    command.stdin(Stdio::null()).stdout(out).stderr(err);
    command.spawn().unwrap_or_else(|err| panic!("start {:?}: {err}", command.get_program()))
}

/// The last lines of a text.
pub(crate) fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
