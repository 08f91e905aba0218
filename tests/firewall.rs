//! Docker's own firewall, and steering beside it.
//!
//! From Docker 28 on a rule before all others drops what comes to a container's own address from outside its bridge ("direct
//! access", moby#49325). A balancer that rewrites the destination before netfilter sees the packet runs into it, unless its
//! packets pass netfilter by.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use steer_tests::agent::Attach;
use steer_tests::clients::{Clients, Host, cut};
use steer_tests::docker::{ContainerSpec, ServiceSpec};
use steer_tests::http::{Failure, Http};
use steer_tests::world::HOST;

/// The first version with the rule.
const DROPS_DIRECT_ACCESS: u32 = 28;

fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000").label("steer.service", "web")
}

/// Docker's rule for a container at a bridge; where Docker has none, it is given the same.
fn drop_direct_access(host: &Host, ip: IpAddr, bridge: &str) {
    let rule = format!("-d {ip}/32 ! -i {bridge} -j DROP");
    let has_rule = || {
        let rules = host.world.host.output("iptables", "-t raw -S PREROUTING");
        rules.lines().any(|line| line == format!("-A PREROUTING {rule}"))
    };
    let is_dockers = has_rule();
    if !is_dockers {
        host.world.host.output("iptables", &format!("-t raw -A PREROUTING {rule}"));
    }
    assert!(has_rule(), "{rule}");
    let version = host.docker.wait("docker version", host.docker.api().version()).version.unwrap_or_default();
    eprintln!("Docker {version}, {rule}: {}", if is_dockers { "its own" } else { "ours" });
    let major: u32 = version.split('.').next().and_then(|major| major.parse().ok()).expect("a version has a number");
    assert!(is_dockers || major < DROPS_DIRECT_ACCESS || bridge != "docker0", "Docker {version} has it");
    let direct = Http::new(&host.world.client, SocketAddr::from((ip, 5000))).within(Duration::from_millis(500));
    assert_eq!(direct.get("/"), Err(Failure::Timeout), "the rule holds for {ip}");
}

/// Nobody is hindered, and all are reached.
fn unharmed(host: &Host, what: &str) {
    let clients = Clients::start(&host.world, 9000);
    clients.flow_on();
    let fared = clients.finish();
    eprintln!("{what}: {fared}");
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!((report.failed, report.stalled, cut(report)), (0, 0, 0), "{report:#?}");
        assert_eq!(report.backends.len(), 2, "{report:#?}");
    }
}

fn steered_beside_it(attach: Attach) {
    let Some(mut host) = Host::set(attach) else { return };
    let containers = host.docker.run_all(["one", "two"].map(replica));
    host.agent.wait_ready("web", 2);
    host.world.client.ip(&format!("route add 172.17.0.0/16 via {HOST}"));
    for container in &containers {
        drop_direct_access(&host, container.address().ip(), "docker0");
    }
    unharmed(&host, attach.word());
}

#[test]
fn dockers_drop_of_direct_access_is_no_hindrance_over_tc() {
    steered_beside_it(Attach::Tc);
}

#[test]
fn dockers_drop_of_direct_access_is_no_hindrance_over_xdp() {
    steered_beside_it(Attach::Xdp);
}

/// A task is reached by its leg at `docker_gwbridge`.
#[test]
fn dockers_drop_of_direct_access_is_no_hindrance_to_tasks() {
    let Some(mut host) = Host::set(Attach::Tc) else { return };
    host.docker.swarm_init(HOST);
    host.docker.create_service(ServiceSpec::greeter("web").publish(9000, 5000).replicas(2));
    let status = host.agent.wait_ready("web", 2);
    for task in &status.service("web").expect("it is ready").backends {
        let ip: IpAddr = task.address.parse().expect("an address");
        host.world.client.ip(&format!("route add {ip}/32 via {HOST}"));
        drop_direct_access(&host, ip, "docker_gwbridge");
    }
    unharmed(&host, "tasks");
}
