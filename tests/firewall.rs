//! Docker's own firewall, and steering beside it.
//!
//! From Docker 28 on a rule before all others drops what comes to a container's own address from outside its bridge ("direct
//! access", moby#49325). A balancer that rewrites the destination before netfilter sees the packet runs into it, unless its
//! packets pass netfilter by.

use std::time::Duration;

use steer_tests::agent::Attach;
use steer_tests::clients::{Clients, Host, cut};
use steer_tests::docker::{Container, ContainerSpec};
use steer_tests::http::{Failure, Http};
use steer_tests::world::HOST;

/// The first version with the rule.
const DROPS_DIRECT_ACCESS: u32 = 28;

fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000").label("steer.service", "web")
}

/// Docker's rule for a container; an older Docker, which has none, is given the same.
fn drop_direct_access(host: &Host, container: &Container) {
    let ip = container.address().ip();
    let rule = format!("-d {ip}/32 ! -i docker0 -j DROP");
    let version = host.docker.wait("docker version", host.docker.api().version()).version.unwrap_or_default();
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).expect("a version has a number");
    if major < DROPS_DIRECT_ACCESS {
        host.world.host.output("iptables", &format!("-t raw -A PREROUTING {rule}"));
    }
    let rules = host.world.host.output("iptables", "-t raw -S PREROUTING");
    eprintln!("Docker {version}: {rules}");
    assert!(rules.lines().any(|line| line == format!("-A PREROUTING {rule}")), "Docker {version}: {rules}");
}

fn steered_beside_it(attach: Attach) {
    let Some(mut host) = Host::set(attach) else { return };
    let containers = host.docker.run_all(["one", "two"].map(replica));
    host.agent.wait_ready("web", 2);
    host.world.client.ip(&format!("route add 172.17.0.0/16 via {HOST}"));
    for container in &containers {
        drop_direct_access(&host, container);
        let direct = Http::new(&host.world.client, container.address()).within(Duration::from_millis(500));
        assert_eq!(direct.get("/"), Err(Failure::Timeout), "the rule holds for {}", container.name);
    }

    let clients = Clients::start(&host.world, 9000);
    clients.flow_on();
    let fared = clients.finish();
    eprintln!("{}: {fared}", attach.word());
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!((report.failed, report.stalled, cut(report)), (0, 0, 0), "{report:#?}");
        assert_eq!(report.backends.len(), 2, "{report:#?}");
    }
}

#[test]
fn dockers_drop_of_direct_access_is_no_hindrance_over_tc() {
    steered_beside_it(Attach::Tc);
}

#[test]
fn dockers_drop_of_direct_access_is_no_hindrance_over_xdp() {
    steered_beside_it(Attach::Xdp);
}
