//! Greeters behind one port: a replica is added, requests split evenly, one is stopped, the healthy one takes all.

use std::collections::BTreeMap;
use std::net::SocketAddr;

use steer_tests::agent::Attach;
use steer_tests::clients::Host;
use steer_tests::docker::ContainerSpec;
use steer_tests::http::Http;
use steer_tests::world::HOST;

fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000").label("steer.service", "greeter").healthcheck()
}

/// Requests, each on a connection of its own, by the backend that answered.
fn split(http: &Http, requests: u32) -> BTreeMap<String, u32> {
    let mut split = BTreeMap::new();
    for _ in 0..requests {
        let backend = http.backend();
        *split.entry(backend).or_default() += 1;
    }
    split
}

fn greeters(attach: Attach) {
    let Some(Host { world, docker, mut agent }) = Host::set(attach) else { return };
    let http = Http::new(&world.client, SocketAddr::from((HOST, 9000)));

    let first = docker.run(replica("one"));
    agent.wait_ready("greeter", 1);
    assert_eq!(split(&http, 10).len(), 1);

    docker.run(replica("two"));
    agent.wait_ready("greeter", 2);
    let even = split(&http, 100);
    assert_eq!(even.values().copied().collect::<Vec<_>>(), [50, 50], "{even:?}");

    first.stop(None);
    let after = split(&http, 40);
    assert_eq!(after.len(), 1, "{after:?}");
}

#[test]
fn greeters_over_tc() {
    greeters(Attach::Tc);
}

#[test]
fn greeters_over_xdp() {
    greeters(Attach::Xdp);
}
