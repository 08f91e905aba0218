//! Swarm services, taken over without a label: by a manager, in front of the routing mesh.
//!
//! Nothing here assumes that the mesh is dead, as it is on a kernel without `ip_vs`, except the test that says so by its name.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::{Clients, Host, cut};
use steer_tests::docker::ServiceSpec;
use steer_tests::http::Http;
use steer_tests::world::{CLIENT, HOST};

const PORT: u16 = 9000;

/// A manager with an agent.
fn manager(attach: Attach) -> Option<Host> {
    let host = Host::set(attach)?;
    host.docker.swarm_init(HOST);
    Some(host)
}

fn web() -> ServiceSpec {
    ServiceSpec::greeter("web").publish(PORT, 5000)
}

fn client(host: &Host) -> Http {
    Http::new(&host.world.client, SocketAddr::from((HOST, PORT)))
}

/// Requests, each on a connection of its own, by the task that answered; each task must have seen the client's own address.
fn split(http: &Http, requests: u32) -> BTreeMap<String, u32> {
    let mut split = BTreeMap::new();
    for _ in 0..requests {
        let reply = http.get("/").unwrap_or_else(|failure| panic!("{failure}"));
        assert!(reply.body.contains(&format!(" {CLIENT}:")), "the client's address is kept: {}", reply.body);
        *split.entry(reply.backend).or_default() += 1;
    }
    split
}

fn published(attach: Attach) {
    let Some(mut host) = manager(attach) else { return };
    host.docker.create_service(web().replicas(2));
    host.agent.wait_ready("web", 2);
    let even = split(&client(&host), 40);
    assert_eq!(even.values().copied().collect::<Vec<_>>(), [20, 20], "{even:?}");
    let status = host.agent.status();
    assert!(even.keys().all(|name| status.backend(name).is_some()), "{status}");
    // The host's own sockets, too.
    let local = Http::new(&host.world.host, SocketAddr::from(([127, 0, 0, 1], PORT)));
    assert!(even.contains_key(&local.backend()));
}

#[test]
fn a_published_port_is_steered_without_a_label_over_tc() {
    published(Attach::Tc);
}

#[test]
fn a_published_port_is_steered_without_a_label_over_xdp() {
    published(Attach::Xdp);
}
