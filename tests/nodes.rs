//! A swarm of several machines, each with a kernel, a Docker and an `ip_vs` of its own, and with steer on all or some of them.
//!
//! Only `cargo xtask vm` has several machines. Without a label, the tests of `swarm.rs` are what one machine can show of it.
//!
//! | module | what is looked at |
//! |---|---|
//! | `mesh` | what steer leaves to the routing mesh, which is alive here |
//! | `update` | updates, scaling, a drained node, under load at every node |
//! | `vip` | tasks that call tasks on another machine |

#[path = "nodes/mesh.rs"]
mod mesh;
#[path = "nodes/update.rs"]
mod update;
#[path = "nodes/vip.rs"]
mod vip;

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use steer_tests::docker::{Engine, ServiceSpec};
use steer_tests::http::Http;
use steer_tests::nodes::Cluster;
use steer_tests::wait_until;
use steer_tests::world::CLIENT;

const PORT: u16 = 9000;
const ECHO: u16 = 9001;
const LIMIT: Duration = Duration::from_secs(30);

fn web() -> ServiceSpec {
    ServiceSpec::greeter("web").publish(PORT, 5000).publish(ECHO, 5001)
}

fn names(docker: &Engine) -> BTreeSet<String> {
    docker.task_containers("web").into_iter().map(|container| container.name).collect()
}

/// The tasks of every node.
fn all_names(cluster: &Cluster) -> BTreeSet<String> {
    cluster.nodes().into_iter().flat_map(|(_, docker)| names(docker)).collect()
}

/// Requests to a node, each on a connection of its own, by who answered. `kept`: all of them have seen the client's own address, or
/// none, since the mesh hides it.
#[track_caller]
fn split(cluster: &Cluster, node: Ipv4Addr, requests: u32, kept: bool) -> Result<BTreeMap<String, u32>, String> {
    let http = Http::new(&cluster.world.client, SocketAddr::from((node, PORT)));
    let mut split = BTreeMap::new();
    for _ in 0..requests {
        let reply = http.get("/").map_err(|failure| format!("GET / from {node}: {failure}"))?;
        if reply.body.contains(&format!(" {CLIENT}:")) != kept {
            return Err(format!("{node}, {}: {}", reply.backend, reply.body));
        }
        *split.entry(reply.backend).or_default() += 1;
    }
    Ok(split)
}

/// Every request to a node is answered by this node's own tasks, all of them, and with the client's own address.
#[track_caller]
fn is_steered(cluster: &Cluster, node: Ipv4Addr, docker: &Engine) {
    let own = names(docker);
    assert!(!own.is_empty(), "no task on {node}");
    let answered = split(cluster, node, 10 * own.len() as u32, true).unwrap_or_else(|why| panic!("{why}"));
    assert_eq!(answered.keys().cloned().collect::<BTreeSet<_>>(), own, "{node}: {answered:?}");
    assert!(answered.values().all(|requests| *requests == 10), "{node}: {answered:?}");
}

/// The mesh answers on a node: from these tasks, wherever they are. It learns of them a little later than Docker says so.
#[track_caller]
fn is_of_the_mesh(cluster: &Cluster, node: Ipv4Addr, tasks: &BTreeSet<String>) {
    wait_until(&format!("the mesh of {node} has {tasks:?}"), LIMIT, || {
        let answered = split(cluster, node, 4 * tasks.len() as u32, false)?;
        let who: BTreeSet<_> = answered.keys().cloned().collect();
        if who == *tasks { Ok(()) } else { Err(format!("{answered:?}")) }
    });
}

#[test]
fn each_machine_steers_to_its_own_tasks() {
    let Some(mut cluster) = Cluster::set() else { return };
    let nodes = cluster.nodes().len();
    cluster.manager.create_service(web().replicas(2 * nodes as i64));
    cluster.manager.wait_tasks("web", 2 * nodes, "greeter:v1");
    cluster.steer_all();
    cluster.agent().wait_ready("web", 2);
    cluster.workers.iter().for_each(|worker| drop(worker.wait_ready("web", 2)));
    for (address, docker) in cluster.nodes() {
        is_steered(&cluster, address, docker);
    }
    assert_eq!(cluster.agent().status().problems, []);
    for worker in &cluster.workers {
        assert_eq!(worker.status().problems, []);
        assert_eq!(worker.counter("pass_mesh"), 0);
    }
}
