//! Every flow that is known is lost, under load: the backends' own sockets tell whose a packet is, and where a reply goes.

use std::io::{Read as _, Write as _};
use std::time::Duration;

use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::{Clients, Host};
use steer_tests::docker::{ContainerSpec, Docker};
use steer_tests::long_lived::{LongLived, go_on};
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

fn lost(attach: Attach) {
    let Some(mut host) = Host::set(attach) else { return };
    host.docker.run_all(["one", "two", "three"].map(replica));
    host.agent.wait_ready(SERVICE, 3);
    let lives: Vec<_> = (0..9).map(|_| LongLived::start(&host.world.client, ECHO)).collect();
    let clients = Clients::start(&host.world, 9000);
    for round in 1..=5 {
        let before = recovered(&host.agent);
        let (flows, pending) = host.agent.lose_flows();
        go_on(&lives);
        clients.flow_on();
        let [by_packets, by_replies] = recovered(&host.agent);
        let [by_packets, by_replies] = [by_packets - before[0], by_replies - before[1]];
        eprintln!(
            "{} round {round}: lost {flows} flows and {pending} pending, known again by a packet {by_packets}, by a reply \
             {by_replies}",
            attach.word()
        );
        assert!(flows >= lives.len(), "{flows}");
        assert!(by_packets + by_replies >= lives.len() as u64, "{by_packets} and {by_replies}");
    }
    let fared = clients.finish();
    eprintln!("{}: {fared}", attach.word());
    for life in lives {
        let life = life.finish_unharmed();
        assert!(life.slowest < pace::soon(Duration::from_secs(1)), "{life:?}");
    }
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!(report.failed, 0, "{report:#?}");
    }
}

/// Flows that were known again so far: by a packet of their client, and by a reply.
fn recovered(agent: &Agent) -> [u64; 2] {
    ["follow_recovered", "reply_recovered"].map(|name| agent.counter(name))
}

#[test]
fn losing_every_flow_breaks_no_connection_over_tc() {
    lost(Attach::Tc);
}

#[test]
fn losing_every_flow_breaks_no_connection_over_xdp() {
    lost(Attach::Xdp);
}

/// A client that waits for its answer and says nothing more, while its flow is lost.
fn waits(attach: Attach) {
    let Some(mut host) = Host::set(attach) else { return };
    let one = host.docker.run(replica("one"));
    host.agent.wait_ready(SERVICE, 1);
    let limit = pace::soon(LIMIT);
    let mut stream = host.world.client.connect(ECHO.into(), None, limit).expect("somebody listens");
    stream.set_read_timeout(Some(limit)).expect("a socket has a time limit");
    let mut name = [0; 4];
    for loss in 1..=5 {
        // Its kernel takes the question in, and the greeter answers when it is no longer paused.
        one.pause();
        stream.write_all(b"?").expect("it is open");
        let before = recovered(&host.agent);
        assert_eq!(host.agent.lose_flows().0, 1);
        one.unpause();
        stream.read_exact(&mut name).unwrap_or_else(|err| panic!("no answer after loss {loss}: {err}"));
        assert_eq!(&name, b"one\n");
        assert_eq!(recovered(&host.agent), [before[0], before[1] + 1], "known again by the reply, and once");
    }
}

#[test]
fn a_client_that_waits_for_its_answer_gets_it_though_its_flow_was_lost_over_tc() {
    waits(Attach::Tc);
}

#[test]
fn a_client_that_waits_for_its_answer_gets_it_though_its_flow_was_lost_over_xdp() {
    waits(Attach::Xdp);
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
    wait_until("somebody listens behind Docker's mapping", limit, || {
        world.client.connect(ECHO.into(), None, pace::soon(limit))
    });
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
    let known_again = recovered(&agent);
    assert_eq!(known_again.iter().sum::<u64>(), 3, "one of steer's own, three times: {known_again:?}");
    own.finish_unharmed();
    agent.kill9();
    agent.restart();
    agent.wait_ready(SERVICE, 1);
    go_on(&lives);
    assert_eq!(recovered(&agent), known_again);
    // Nor does a version that can read none of the tables take it for its own.
    agent.kill9();
    agent.grow_old();
    agent.restart();
    agent.wait_alone();
    go_on(&lives);
    assert_eq!(recovered(&agent), [0, 0]);
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
