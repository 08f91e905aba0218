//! The ways from the client to the containers, and the place where they are.
//!
//! What is fair: the same four containers behind each way, connections spread evenly over them (the client itself takes
//! turns where nothing balances), no healthcheck (each probe would cost more than all packets of its interval), offloads as
//! Docker and the kernel leave them. One difference cannot be avoided: XDP cannot see checksums that a local veth left
//! partial, so the client's checksum offload, and with it segmentation offload, is off for that row, as on a wire.

use std::fmt;
use std::fs::File;
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::Duration;

use clap::ValueEnum;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Serialize;
use steer_tests::World;
use steer_tests::agent::{Agent, Attach};
use steer_tests::docker::{Container, ContainerSpec, Docker};
use steer_tests::http::Http;
use steer_tests::wait_until;
use steer_tests::world::HOST;

use crate::measure::{Interrupted, Plan, Sample, sample};

const CONTAINERS: u16 = 4;
const FRONTEND: u16 = 9000;
const PUBLISHED: u16 = 8080;
const HAPROXY: u16 = 9100;
const LIMIT: Duration = Duration::from_secs(30);
/// The service of the four containers.
pub(crate) const SERVICE: &str = "bench";

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, ValueEnum)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Way {
    Routed,
    Published,
    Haproxy,
    SteerTc,
    SteerXdp,
}

impl fmt::Display for Way {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Routed => "routed, no balancer",
            Self::Published => "docker run -p",
            Self::Haproxy => "HAProxy, mode tcp",
            Self::SteerTc => "steer, tcx",
            Self::SteerXdp => "steer, XDP",
        })
    }
}

impl Way {
    /// The first is what the others are compared with.
    pub(crate) const ALL: [Self; 5] = [Self::Routed, Self::Published, Self::Haproxy, Self::SteerTc, Self::SteerXdp];

    pub(crate) fn measure(self, site: &Site, plan: &Plan) -> Result<Sample, Interrupted> {
        let host = |port: u16| SocketAddr::from((HOST, port));
        let client = &site.world.client;
        let go = |targets: &[SocketAddr]| {
            targets.iter().for_each(|target| site.wait_answer(*target));
            sample(client, targets, plan)
        };
        site.as_usual();
        // Ports that no other way uses: TCP's timestamps depend on the address that the client connects to, so a container
        // that remembers a port from another way may take its next SYN for an old duplicate, and stall it for a second.
        let first = 10_000 * (1 + self as u16);
        client.sysctl("net/ipv4/ip_local_port_range", &format!("{first} {}", first + 9_999));
        match self {
            Self::Routed => go(&site.containers.iter().map(Container::address).collect::<Vec<_>>()),
            Self::Published => go(&(0..CONTAINERS).map(|index| host(PUBLISHED + index)).collect::<Vec<_>>()),
            Self::Haproxy => {
                let _haproxy = Haproxy::start(site);
                go(&[host(HAPROXY)])
            }
            Self::SteerTc => {
                let _agent = site.agent(Attach::Tc, "warn");
                go(&[host(FRONTEND)])
            }
            Self::SteerXdp => {
                client.output("ethtool", "-K c0 tx off");
                let _agent = site.agent(Attach::Xdp, "warn");
                go(&[host(FRONTEND)])
            }
        }
    }
}

/// A Docker host with four containers, and a client beside it.
pub(crate) struct Site {
    pub(crate) containers: Vec<Container>,
    pub(crate) docker: Docker,
    pub(crate) world: World,
}

impl Site {
    pub(crate) fn build() -> Self {
        let world = World::new();
        let docker = Docker::start(&world);
        docker.import_greeter();
        let spec = |index: u16| {
            ContainerSpec::greeter(&format!("bench-{index}"))
                .label("steer.port", &format!("{FRONTEND}:5000"))
                .label("steer.service", SERVICE)
                .publish(PUBLISHED + index, 5000)
        };
        let containers = docker.run_all((0..CONTAINERS).map(spec));
        let site = Self { containers, docker, world };
        // From version 28 on Docker drops what is routed to a container past its published ports.
        if site.docker_version().split('.').next().and_then(|major| major.parse::<u32>().ok()) >= Some(28) {
            site.world.host.output("iptables", "-t raw -I PREROUTING -i u0 -j ACCEPT");
            site.world.host.output("iptables", "-I DOCKER-USER -i u0 -j ACCEPT");
        }
        site
    }

    pub(crate) fn docker_version(&self) -> String {
        let version = self.docker.wait("ask Docker for its version", self.docker.api().version());
        version.version.unwrap_or_default()
    }

    /// An agent whose backends are all ready; it goes, and its programs with it, when the guard is dropped.
    pub(crate) fn agent(&self, attach: Attach, log: &str) -> Agent {
        let more = ["--log", log];
        let mut agent = Agent::start_with(&self.world, Some(&self.docker.host_url()), attach, &more);
        agent.wait_ready(SERVICE, self.containers.len());
        agent
    }

    /// Offloads as they are without steer: an agent of an earlier row may have changed those of the containers.
    fn as_usual(&self) {
        self.world.client.output("ethtool", "-K c0 tx on");
        for container in &self.containers {
            let words = format!("-t {} -n ethtool -K eth0 gro off", container.pid);
            self.world.host.output("nsenter", &words);
        }
    }

    fn wait_answer(&self, target: SocketAddr) {
        let http = Http::new(&self.world.client, target);
        wait_until(&format!("{target} answers"), LIMIT, || http.get("/"));
    }
}

/// The guard of an HAProxy in the host's namespace, in front of the four containers.
struct Haproxy(Child);

impl Haproxy {
    fn start(site: &Site) -> Self {
        let servers: String = site
            .containers
            .iter()
            .map(|container| format!("    server {} {}\n", container.name, container.address()))
            .collect();
        let config = format!(
            "global\n    maxconn 4000\n\
             defaults\n    mode tcp\n    timeout connect 5s\n    timeout client 60s\n    timeout server 60s\n\
             listen bench\n    bind :{HAPROXY}\n    balance roundrobin\n{servers}"
        );
        let file = site.world.file("haproxy.cfg", &config);
        let log = site.world.file("haproxy.log", "");
        let stderr = File::options().append(true).open(&log).expect("the world's directory can be written");
        let mut command = site.world.host.command("haproxy");
        command.args(["-db", "-f"]).arg(file).stdin(Stdio::null()).stdout(Stdio::null()).stderr(stderr);
        let mut haproxy = Self(command.spawn().unwrap_or_else(|err| panic!("start haproxy: {err}")));
        let http = Http::new(&site.world.host, SocketAddr::from((HOST, HAPROXY)));
        wait_until("haproxy answers", LIMIT, || {
            if let Ok(Some(status)) = haproxy.0.try_wait() {
                panic!("haproxy ended with {status}:\n{}", std::fs::read_to_string(&log).unwrap_or_default());
            }
            http.get("/")
        });
        haproxy
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        // In master-worker setups a killed master would leave its worker; with -db there is one process, which a SIGTERM
        // ends at once.
        let _ = kill(Pid::from_raw(self.0.id() as i32), Signal::SIGTERM);
        drop(self.0.wait());
    }
}
