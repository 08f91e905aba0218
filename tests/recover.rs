//! Every flow that is known is lost, under load: the backends' own sockets tell whose a packet is.

use std::time::Duration;

use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::{CLIENTS, Clients, Host, KEEPERS};
use steer_tests::docker::{ContainerSpec, Docker};
use steer_tests::long_lived::LongLived;
use steer_tests::pace;
use steer_tests::skip::{self, Need};
use steer_tests::wait_until;
use steer_tests::world::HOST;

const SERVICE: &str = "web";
const ECHO: (std::net::Ipv4Addr, u16) = (HOST, 9001);
const LIMIT: Duration = Duration::from_secs(30);

fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000,9001:5001").label("steer.service", SERVICE)
}

/// Waits until each has sent and got back a few bytes more.
#[track_caller]
fn go_on(lives: &[LongLived]) {
    let now = || lives.iter().map(|life| life.counter().load(std::sync::atomic::Ordering::Relaxed));
    let before: Vec<u64> = now().collect();
    wait_until("long connections go on", LIMIT, || {
        assert!(!lives.iter().any(LongLived::is_over), "one broke");
        let is_enough = now().zip(&before).all(|(now, before)| now >= before + 3);
        if is_enough { Ok(()) } else { Err("some have not moved") }
    });
}

fn lost(attach: Attach) {
    let Some(mut host) = Host::set(attach) else { return };
    host.docker.run_all(["one", "two", "three"].map(replica));
    host.agent.wait_ready(SERVICE, 3);
    let lives: Vec<_> = (0..9).map(|_| LongLived::start(&host.world.client, ECHO)).collect();
    let clients = Clients::start(&host.world, 9000);
    for round in 1..=5 {
        let before = host.agent.counter("follow_recovered");
        let (flows, pending) = host.agent.lose_flows();
        go_on(&lives);
        clients.flow_on();
        let recovered = host.agent.counter("follow_recovered") - before;
        eprintln!("{} round {round}: lost {flows} flows and {pending} pending, {recovered} recovered", attach.word());
        assert!(flows >= lives.len(), "{flows}");
        assert!(recovered >= lives.len() as u64, "{recovered}");
    }
    let fared = clients.finish();
    eprintln!("{}: {fared}", attach.word());
    for life in lives {
        let life = life.finish_unharmed();
        assert!(life.slowest < pace::soon(Duration::from_secs(1)), "{life:?}");
    }
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!(report.failures.refused, 0, "{report:#?}");
        // A reply does not say which frontend its client knows: what is on its way back at that very moment is lost, and with it
        // the client that has nothing more to say. Only who speaks is found again.
        assert!(report.failed <= 5 * (CLIENTS + KEEPERS), "{report:#?}");
    }
}

#[test]
fn losing_every_flow_breaks_no_connection_whose_client_speaks_over_tc() {
    lost(Attach::Tc);
}

#[test]
fn losing_every_flow_breaks_no_connection_whose_client_speaks_over_xdp() {
    lost(Attach::Xdp);
}

/// Connections that came in by Docker's own port mapping before steer did.
fn foreign(attach: Attach) {
    if skip::without(&[Need::Root, Need::Docker, Need::Steer]) {
        return;
    }
    let world = attach.world();
    let docker = Docker::start(&world);
    docker.import_greeter();
    docker.run(replica("one").publish(9000, 5000).publish(9001, 5001));
    let limit = Duration::from_secs(10);
    wait_until("somebody listens behind Docker's mapping", limit, || world.client.connect(ECHO.into(), None, limit));
    let lives: Vec<_> = (0..4).map(|_| LongLived::start(&world.client, ECHO)).collect();
    let mut agent = Agent::start(&world, &docker, attach);
    agent.wait_ready(SERVICE, 1);
    go_on(&lives);
    let own = LongLived::start(&world.client, ECHO);
    assert_eq!(agent.backend("one").steered_total, 1);
    for _ in 0..3 {
        agent.lose_flows();
        go_on(&lives);
        go_on(std::slice::from_ref(&own));
    }
    let recovered = agent.counter("follow_recovered");
    assert_eq!(recovered, 3, "one of steer's own, three times");
    own.finish_unharmed();
    agent.kill9();
    agent.restart();
    agent.wait_ready(SERVICE, 1);
    go_on(&lives);
    assert_eq!(agent.counter("follow_recovered"), recovered);
    // Not to wait for the last flow: the counts are wrong after such a loss, until two sweeps have seen that.
    agent.steer_ok(&["detach", "--now"]);
    assert!(agent.wait_exit().success());
    go_on(&lives);
    for life in lives {
        let life = life.finish_unharmed();
        assert!(life.slowest < pace::soon(Duration::from_secs(1)), "{life:?}");
    }
}

#[test]
fn connections_of_dockers_own_mapping_are_left_to_it_over_tc() {
    foreign(Attach::Tc);
}

#[test]
fn connections_of_dockers_own_mapping_are_left_to_it_over_xdp() {
    foreign(Attach::Xdp);
}
