//! A swarm of several machines, as `cargo xtask vm` has them: each node with a kernel of its own.
//!
//! ```text
//!   machine 0: the manager, and the tests      machine 1, 2, …: a worker
//!   eth0  host    10.203.0.1                   eth0  host    10.203.0.11, .12, …
//!   eth1  own     10.203.0.100                 eth1  own     10.203.0.101, …
//!   eth2  client  10.203.0.2                   eth2
//! ```
//!
//! All interfaces are plugged into one wire. As in every [`World`](crate::World), the node lives in a namespace `host`, and clients in
//! another one, so that each test begins with an empty network, even if its machine is not new. What a test asks of a worker
//! goes by `eth1` to the program [`serve`] there ([`words`]), and Docker's API to the node itself.

mod serve;
mod words;
mod worker;

use std::env;
use std::net::Ipv4Addr;
use std::time::Duration;

pub use self::serve::serve;
pub use self::worker::Worker;
use crate::agent::{Agent, Attach};
use crate::docker::Docker;
use crate::skip::{self, Need};
use crate::world::HOST;
use crate::{World, wait_until};

const LIMIT: Duration = Duration::from_secs(60);
/// Of the node, the harness, and a client.
pub(crate) const NODE_NIC: &str = "eth0";
const HARNESS_NIC: &str = "eth1";
pub(crate) const CLIENT_NIC: &str = "eth2";
/// Where a worker's program listens, and where its dockerd does.
const HARNESS_PORT: u16 = 7000;
const DOCKER_PORT: u16 = 2375;

/// How many machines there are for one swarm; one by itself is none.
pub(crate) fn machines() -> Option<u8> {
    env::var("STEER_TESTS_NODES").ok().map(|count| count.parse().unwrap_or_else(|err| panic!("{count}: {err}")))
}

/// A node's address; 0 is the manager's.
fn node_address(number: u8) -> Ipv4Addr {
    if number == 0 { HOST } else { Ipv4Addr::new(10, 203, 0, 10 + number) }
}

/// The address of the harness beside a node.
fn harness_address(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 203, 0, 100 + number)
}

/// A swarm of all machines. Nobody has an agent yet. Fields are dropped in this order.
pub struct Cluster {
    /// The manager's.
    pub agent: Option<Agent>,
    pub workers: Vec<Worker>,
    pub manager: Docker,
    pub world: World,
}

impl Cluster {
    /// `None`, with the reason printed, where there is one machine alone.
    #[track_caller]
    pub fn set() -> Option<Self> {
        if skip::without(&[Need::Root, Need::Docker, Need::Steer, Need::Machines]) {
            return None;
        }
        // While the workers start theirs.
        let calls: Vec<_> = (1..machines().unwrap_or_default()).map(Worker::call).collect();
        let world = World::at_the_wire(HOST, true);
        let manager = Docker::start(&world);
        manager.import_greeter();
        manager.swarm_init(HOST);
        let workers: Vec<_> = calls.into_iter().map(worker::Call::answered).collect();
        for worker in &workers {
            worker.docker.import_greeter();
            worker.docker.swarm_join(worker.address, &manager, HOST);
        }
        wait_until("all nodes are ready", LIMIT, || {
            let nodes = manager.nodes();
            let ready = nodes.iter().filter(|state| *state == "ready").count();
            if ready == 1 + workers.len() { Ok(()) } else { Err(format!("{nodes:?}")) }
        });
        Some(Self { agent: None, workers, manager, world })
    }

    /// Starts an agent on the manager.
    #[track_caller]
    pub fn steer_manager(&mut self) -> &mut Agent {
        self.agent.insert(Agent::start(&self.world, &self.manager, Attach::Tc))
    }

    /// Starts an agent on every node.
    #[track_caller]
    pub fn steer_all(&mut self) {
        self.steer_manager();
        self.workers.iter_mut().for_each(Worker::start_agent);
    }

    /// The manager's agent.
    #[track_caller]
    pub fn agent(&mut self) -> &mut Agent {
        self.agent.as_mut().expect("the test has started it")
    }

    /// Every node: its address and its Docker.
    pub fn nodes(&self) -> Vec<(Ipv4Addr, &crate::docker::Engine)> {
        let workers = self.workers.iter().map(|worker| (worker.address, &worker.docker));
        [(HOST, &*self.manager)].into_iter().chain(workers).collect()
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::world::CLIENT;

    #[test]
    fn nobody_at_the_wire_has_the_address_of_another() {
        let mut all: Vec<Ipv4Addr> =
            (0..8).flat_map(|number| [node_address(number), harness_address(number)]).collect();
        all.push(CLIENT);
        assert_eq!(all.iter().collect::<BTreeSet<_>>().len(), all.len(), "{all:?}");
    }
}
