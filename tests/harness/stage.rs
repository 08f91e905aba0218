//! What tests of the agent's coming and going share: an agent, a Docker, replicas, and traffic that lives through it all.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::sync::atomic::Ordering;
use std::time::Duration;

use steer::dataplane::attach;
use steer_common::limits::ABI;

use crate::agent::{Agent, Attach, Status};
use crate::docker::{ContainerSpec, Docker};
use crate::http::Http;
use crate::load::{self, Load};
use crate::long_lived::LongLived;
use crate::pace;
use crate::report::Report;
use crate::skip::{self, Need};
use crate::world::HOST;
use crate::{World, wait_until};

/// Where every replica is reached by HTTP, and where it echoes.
pub const WEB: (Ipv4Addr, u16) = (HOST, 9000);
pub const ECHO: (Ipv4Addr, u16) = (HOST, 9001);
const LIMIT: Duration = Duration::from_secs(30);

/// An agent that steers clients to replicas of the service `greeter`. Fields are dropped in this order.
pub struct Stage {
    pub agent: Agent,
    pub docker: Docker,
    /// A client of [`WEB`].
    pub http: Http,
    pub world: World,
}

/// A greeter without a healthcheck: ready when it listens.
pub fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000,9001:5001").label("steer.service", "greeter")
}

impl Stage {
    /// With these replicas, and more arguments for dockerd; `None` where the test has to be skipped.
    pub fn set(attach: Attach, replicas: &[&str], dockerd: &[&str]) -> Option<Self> {
        Self::set_with(attach, dockerd, replicas.iter().map(|name| replica(name)))
    }

    /// The same, with containers of any kind.
    pub fn set_with(
        attach: Attach,
        dockerd: &[&str],
        specs: impl ExactSizeIterator<Item = ContainerSpec>,
    ) -> Option<Self> {
        if skip::without(&[Need::Root, Need::Docker, Need::Steer, Need::Program("bpftool")]) {
            return None;
        }
        let world = attach.world();
        let docker = Docker::start_with(&world, dockerd);
        docker.import_greeter();
        let mut agent = Agent::start(&world, &docker, attach);
        let replicas = specs.len();
        docker.run_all(specs);
        agent.wait_ready("greeter", replicas);
        let http = Http::new(&world.client, SocketAddr::from(WEB));
        Some(Self { agent, docker, http, world })
    }

    /// Requests, each on a connection of its own, by the backend that answered.
    #[track_caller]
    pub fn split(&self, requests: u32) -> BTreeMap<String, u32> {
        let mut split = BTreeMap::new();
        for _ in 0..requests {
            *split.entry(self.http.backend()).or_default() += 1;
        }
        split
    }

    /// Who answers, of enough requests for everybody's turn.
    #[track_caller]
    pub fn who(&self) -> Vec<String> {
        self.split(48).into_keys().collect()
    }

    /// Starts the agent and waits until it has taken in what Docker says.
    #[track_caller]
    pub fn restart(&mut self) -> Status {
        self.agent.restart();
        let pid = self.agent.pid();
        self.agent.wait_for("the new agent has asked Docker", |status| {
            status.agent.pid == Some(pid) && status.agent.docker.is_some()
        })
    }

    /// Everything the maps say of services and backends: ids, generations, weights, states and their causes.
    pub fn tables(&self) -> BTreeMap<&'static str, String> {
        let dump = |name| (name, bpftool(&["map", "dump", "pinned", &self.pin(&format!("maps/{name}"))]));
        ["BACKENDS", "BACKEND_STATES", "BACKEND_INFO", "ENDPOINTS", "FRONTENDS", "SERVICES", "SERVICE_INFO"]
            .map(dump)
            .into_iter()
            .collect()
    }

    fn pin(&self, name: &str) -> String {
        self.agent.pins().join(format!("v{ABI}")).join(name).display().to_string()
    }

    /// Program and link ids by pinned link; where there is no tcx, the program is pinned in the link's place, and the link is 0.
    pub fn programs(&self) -> BTreeMap<String, (u64, u64)> {
        let ids = |name: String| {
            let pin = self.pin(&format!("links/{name}"));
            let is_tc = name.starts_with("tcx-") || name.starts_with("veth-");
            let kind = if is_tc && attach::ingress_hook() == "clsact" { "prog" } else { "link" };
            let told = bpftool(&["-j", kind, "show", "pinned", &pin]);
            let told: serde_json::Value = serde_json::from_str(&told).unwrap_or_else(|err| panic!("{err}: {told}"));
            let id = |key: &str| told[key].as_u64().unwrap_or_else(|| panic!("no {key} in {told}"));
            (name, if kind == "prog" { (id("id"), 0) } else { (id("prog_id"), id("id")) })
        };
        self.agent.links().into_iter().map(ids).collect()
    }
}

fn bpftool(words: &[&str]) -> String {
    let output = Command::new("bpftool").args(words).output().unwrap_or_else(|err| panic!("bpftool: {err}"));
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    // bpftool 7.5 (Debian 13) tells all of a cgroup's link, and exits with an error.
    let has_told = words.contains(&"link") && told.contains("\"prog_id\"");
    assert!(output.status.success() || has_told, "bpftool {words:?}: {told}");
    told
}

/// Clients that open a connection for each request, clients that keep theirs, and one connection that just lives.
pub struct Traffic {
    close: Load,
    keepalive: Load,
    long: LongLived,
}

impl Traffic {
    /// Begins, and waits until all of it flows.
    #[track_caller]
    pub fn start(world: &World) -> Self {
        // Enough to notice any gap, little enough for two cores that also run a dockerd.
        let (rate, seconds, patient) = (pace::rate(300), pace::lasting_secs(90), load::patient());
        let words = format!("--connections 8 --rate {rate} --seconds {seconds} {patient}");
        let load = |mode| Load::watch(&world.client, WEB, &format!("--mode {mode} {words}"));
        let (close, keepalive) = (load("close"), load("keepalive"));
        let long = LongLived::start(&world.client, ECHO);
        let traffic = Self { close, keepalive, long };
        traffic.flows_on();
        traffic
    }

    /// Waits until every kind of traffic has moved on, so that it lived through what was done before.
    #[track_caller]
    pub fn flows_on(&self) {
        let now = || {
            let echoed = self.long.counter().load(Ordering::Relaxed);
            [self.close.progress().latest().requests, self.keepalive.progress().latest().requests, echoed]
        };
        let before = now();
        let enough = [100, 100, 3];
        wait_until("traffic flows on", LIMIT, || {
            let moved: Vec<u64> = now().iter().zip(before).map(|(now, before)| now - before).collect();
            let is_over = self.long.is_over();
            assert!(!is_over, "the long connection broke");
            if moved.iter().zip(enough).all(|(moved, enough)| *moved >= enough) {
                Ok(())
            } else {
                Err(format!("{moved:?}"))
            }
        });
    }

    /// Ends it; nothing may have failed.
    #[track_caller]
    pub fn finish_unharmed(self, what: &str) {
        let Self { close, keepalive, long } = self;
        let life = long.finish_unharmed();
        for report in [close.stop(), keepalive.stop()] {
            let Report { mode, requests, slowest_ms, connections, .. } = &report;
            eprintln!("{what}: {mode}: {requests} requests, {connections} connections, slowest {slowest_ms:.1} ms");
            assert_eq!(report.failed, 0, "{report:#?}");
            assert!(
                Duration::from_secs_f64(report.slowest_ms / 1e3) < pace::soon(Duration::from_secs(1)),
                "{report:#?}"
            );
        }
        eprintln!("{what}: long connection: {} bytes, slowest {:?}", life.exchanged, life.slowest);
        assert!(life.slowest < pace::soon(Duration::from_secs(1)), "{life:?}");
    }
}
