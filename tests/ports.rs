//! Client ports used again right after close, and clients on the Docker host itself.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use socket2::SockRef;
use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::Host;
use steer_tests::docker::{Container, ContainerSpec, Docker};
use steer_tests::http::{Failure, Http};
use steer_tests::load::{self, Load};
use steer_tests::netns::Ns;
use steer_tests::pace;
use steer_tests::skip::{self, Need};
use steer_tests::wait_until;
use steer_tests::world::HOST;

const SERVICE: &str = "greeter";
const WEB: (Ipv4Addr, u16) = (HOST, 9000);
/// A lost SYN costs a second; this is far below, and far above what a busy machine needs.
const STALL: Duration = Duration::from_millis(240);

fn stall() -> Duration {
    pace::soon(STALL)
}

fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000").label("steer.service", SERVICE)
}

/// Connects and asks, and again while the client's own kernel still has the port in use: that counts as waiting, too.
#[track_caller]
fn ask<T>(what: &str, mut connect: impl FnMut() -> Result<T, Failure>) -> (T, Duration) {
    let begin = Instant::now();
    loop {
        match connect() {
            Ok(answer) => return (answer, begin.elapsed()),
            Err(Failure::Other(_)) if begin.elapsed() < stall() => std::thread::yield_now(),
            Err(failure) => panic!("{what}: {failure} after {:?}", begin.elapsed()),
        }
    }
}

fn reused_ports(attach: Attach) {
    let Some(Host { world, docker, mut agent }) = Host::set(attach) else { return };
    docker.run_all(["one", "two", "three"].map(replica));
    agent.wait_ready(SERVICE, 3);
    let http = Http::new(&world.client, WEB);

    let mut slowest = Duration::ZERO;
    for n in 0..2000 {
        let port = 20_000 + n % 20;
        let (_, took) = ask(&format!("connection {n}"), || http.clone().from_port(port).get("/"));
        slowest = slowest.max(took);
    }
    eprintln!("{}: 2000 connections over 20 ports, slowest {slowest:?}", attach.word());
    assert!(slowest < stall(), "20 ports in turn: {slowest:?}\n{}", agent.status());

    slowest = Duration::ZERO;
    for n in 0..500 {
        let (_, took) = ask(&format!("connection {n}"), || http.clone().from_port(21_000).get("/"));
        slowest = slowest.max(took);
    }
    eprintln!("{}: 500 connections from one port, slowest {slowest:?}", attach.word());
    assert!(slowest < stall(), "one port: {slowest:?}\n{}", agent.status());

    slowest = Duration::ZERO;
    for n in 0..500 {
        let (session, took) = ask(&format!("aborted connection {n}"), || {
            let mut session = http.clone().from_port(21_001).open()?;
            session.get("/").map(|_| session)
        });
        // Closing sends RST, and the port is free at once.
        SockRef::from(session.stream()).set_linger(Some(Duration::ZERO)).expect("a socket can linger");
        slowest = slowest.max(took);
    }
    eprintln!("{}: 500 aborted connections from one port, slowest {slowest:?}", attach.word());
    assert!(slowest < stall(), "one port, aborted: {slowest:?}\n{}", agent.status());

    let words = format!("--connections 10 --requests 10000 --source-ports 22000-22019 {}", load::patient());
    let report = Load::start(&world.client, WEB, &words).finish();
    eprintln!(
        "{}: {} connections at once over 20 ports, {:.0}/s, slowest {} ms",
        attach.word(),
        report.requests,
        report.requests_per_second,
        report.slowest_ms
    );
    assert_eq!((report.requests, report.failed), (10_000, 0), "{report:#?}");
    assert!(report.slowest_ms < stall().as_millis() as f64, "{report:#?}");
    no_flow_is_left(&agent, SERVICE);
}

#[test]
fn a_client_port_used_again_right_after_close_does_not_stall_over_tc() {
    reused_ports(Attach::Tc);
}

#[test]
fn a_client_port_used_again_right_after_close_does_not_stall_over_xdp() {
    reused_ports(Attach::Xdp);
}

fn live_flows(agent: &Agent, service: &str) -> u64 {
    let status = agent.status();
    let service = status.service(service).unwrap_or_else(|| panic!("no service {service}\n{status}"));
    service.backends.iter().map(|backend| backend.live_flows).sum()
}

#[track_caller]
fn no_flow_is_left(agent: &Agent, service: &str) {
    wait_until("no flow is left", Duration::from_secs(5), || match live_flows(agent, service) {
        0 => Ok(()),
        left => Err(format!("{left} live\n{}", agent.status())),
    });
}

/// Calls a frontend from a namespace: it answers from the `expected` backends, its own address is what the client sees as
/// its peer, and the connection counts as live until it is closed.
#[track_caller]
fn calls(agent: &Agent, from: &str, ns: &Ns, target: SocketAddr, service: &str, expected: &[&str]) {
    let what = format!("{from} calls {target}");
    let http = Http::new(ns, target).within(pace::soon(Duration::from_secs(3)));
    let mut answered = BTreeSet::new();
    for n in 0..12 {
        let reply = http.get("/").unwrap_or_else(|failure| panic!("{what}, {n}: {failure}\n{}", agent.status()));
        assert!(reply.took < stall(), "{what}, {n}: {:?}", reply.took);
        answered.insert(reply.backend);
    }
    assert_eq!(answered.iter().map(String::as_str).collect::<Vec<_>>(), expected, "{what}\n{}", agent.status());
    no_flow_is_left(agent, service);

    let mut session = http.open().unwrap_or_else(|failure| panic!("{what}: {failure}"));
    session.get("/").unwrap_or_else(|failure| panic!("{what}: {failure}"));
    assert_eq!(session.stream().peer_addr().ok(), Some(target), "{what}: getpeername");
    assert_eq!(live_flows(agent, service), 1, "{what}\n{}", agent.status());
    session.get("/").unwrap_or_else(|failure| panic!("{what}, a second time: {failure}"));
    drop(session);
    no_flow_is_left(agent, service);
}

/// The host's address in a container's network.
fn gateway(docker: &Docker, container: &Container) -> IpAddr {
    let networks = docker.inspect(&container.id).network_settings.and_then(|settings| settings.networks);
    let gateways = networks.into_iter().flatten().filter_map(|(_, endpoint)| endpoint.gateway?.parse().ok());
    gateways.into_iter().next().unwrap_or_else(|| panic!("{} has no gateway", container.name))
}

fn local_clients(attach: Attach) {
    if skip::without(&[Need::Root, Need::Docker, Need::Steer]) {
        return;
    }
    let world = attach.world();
    let docker = Docker::start(&world);
    docker.import_greeter();
    docker.create_network("side");
    let mut agent = Agent::start(&world, &docker, attach);
    let backends = docker.run_all(["one", "two"].map(replica));
    let alone = docker.run(ContainerSpec::greeter("alone").label("steer.port", "9100:5000"));
    // Not steered to; without a label.
    let caller = docker.run(ContainerSpec::greeter("caller"));
    let aside = docker.run(ContainerSpec::greeter("aside").network("side"));
    agent.wait_ready(SERVICE, 2);
    agent.wait_ready("alone", 1);
    let bridge = gateway(&docker, &caller);
    let side = gateway(&docker, &aside);
    let at = |address: IpAddr| SocketAddr::new(address, 9000);
    let both = ["one", "two"];

    for address in [Ipv4Addr::LOCALHOST.into(), IpAddr::from(HOST), bridge, HOST.to_ipv6_mapped().into()] {
        calls(&agent, "the host", &world.host, at(address), SERVICE, &both);
    }
    for address in [bridge, side, HOST.into()] {
        calls(&agent, "a container", &caller.ns(), at(address), SERVICE, &both);
        calls(&agent, "a container of another network", &aside.ns(), at(address), SERVICE, &both);
        calls(&agent, "a backend", &backends[0].ns(), at(address), SERVICE, &["two"]);
        calls(&agent, "a backend alone", &alone.ns(), SocketAddr::new(address, 9100), "alone", &["alone"]);
    }
    // What a client outside sees is the same all the while.
    calls(&agent, "a client", &world.client, at(HOST.into()), SERVICE, &both);
}

#[test]
fn clients_on_the_host_and_in_containers_reach_a_frontend_at_every_address_over_tc() {
    local_clients(Attach::Tc);
}

#[test]
fn clients_on_the_host_and_in_containers_reach_a_frontend_at_every_address_over_xdp() {
    local_clients(Attach::Xdp);
}
