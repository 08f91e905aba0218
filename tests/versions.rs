//! Two versions of one service side by side, and a connection that lives through all that is done around it.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::Duration;

use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::Host;
use steer_tests::docker::ContainerSpec;
use steer_tests::http::Http;
use steer_tests::load::{self, Load};
use steer_tests::long_lived::LongLived;
use steer_tests::pace;
use steer_tests::wait_until;
use steer_tests::world::HOST;

const SERVICE: &str = "greeter";
const WEB: (Ipv4Addr, u16) = (HOST, 9000);
const ECHO: (Ipv4Addr, u16) = (HOST, 9001);

fn v1(name: &str) -> ContainerSpec {
    let ports = "9000:5000,9001:5001";
    ContainerSpec::greeter(name).label("steer.port", ports).label("steer.service", SERVICE).healthcheck()
}

/// The next version listens elsewhere, and its own label says where.
fn v2(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name)
        .version("v2")
        .env("GREETER_PORT", "6000")
        .env("GREETER_ECHO_PORT", "6001")
        .label("steer.port", "9000:6000,9001:6001")
        .label("steer.service", SERVICE)
        .healthcheck()
}

/// Waits until every backend of the service has answered more requests of a load that runs.
#[track_caller]
fn all_are_steered_to(agent: &Agent) {
    let total = |status: &steer_tests::agent::Status, name: &str| {
        status.backend(name).map_or(0, |backend| backend.steered_total)
    };
    let before = agent.status();
    wait_until("each backend gets connections", Duration::from_secs(10), || {
        let now = agent.status();
        let backends = &now.service(SERVICE).expect("the service is there").backends;
        let steered = |name: &str| total(&now, name) > total(&before, name);
        if backends.iter().all(|backend| steered(&backend.name)) { Ok(()) } else { Err(now.to_string()) }
    });
}

fn two_versions(attach: Attach) {
    let Some(Host { world, docker, mut agent }) = Host::set(attach) else { return };
    let old = docker.run_all([v1("v1-1"), v1("v1-2")]);
    agent.wait_ready(SERVICE, 2);
    let (rate, seconds, patient) = (pace::rate(2_000), pace::lasting_secs(80), load::patient());
    let words = format!("--connections 20 --seconds {seconds} --rate {rate} {patient}");
    let fresh = Load::start(&world.client, WEB, &words);
    let kept = Load::start(&world.client, WEB, &format!("{words} --mode keepalive"));

    docker.run_all([v2("v2-1"), v2("v2-2")]);
    agent.wait_ready(SERVICE, 4);
    all_are_steered_to(&agent);
    for container in &old {
        // Kept connections end when the old version says so, at its stop signal: waiting for them would be in vain.
        agent.steer_ok(&["drain", &container.name]);
    }
    let http = Http::new(&world.client, SocketAddr::from(WEB));
    let versions: Vec<String> = (0..20).map(|_| http.get("/").expect("v2 answers").version).collect();
    assert!(versions.iter().all(|version| version == "v2"), "{versions:?}\n{}", agent.status());
    old.iter().for_each(|container| container.stop(None));
    let status = agent.wait_ready(SERVICE, 2);
    all_are_steered_to(&agent);

    for (what, report) in [("close", fresh.stop()), ("keep-alive", kept.stop())] {
        eprintln!(
            "{} {what}: {} requests, slowest {} ms, {:?}",
            attach.word(),
            report.requests,
            report.slowest_ms,
            report.backends
        );
        assert_eq!((report.failed, report.stalled), (0, 0), "{what}: {report:#?}\n{status}");
        let names: Vec<&str> = report.backends.keys().map(String::as_str).collect();
        assert_eq!(names, ["v1-1", "v1-2", "v2-1", "v2-2"], "{what}: {report:#?}");
    }
}

#[test]
fn a_second_version_on_another_port_takes_over_and_nothing_is_lost_over_tc() {
    two_versions(Attach::Tc);
}

#[test]
fn a_second_version_on_another_port_takes_over_and_nothing_is_lost_over_xdp() {
    two_versions(Attach::Xdp);
}

/// Bytes that a connection has sent and got back so far.
fn moved(lived: &LongLived) -> u64 {
    lived.counter().load(Ordering::Relaxed)
}

fn lives_through_all(attach: Attach) {
    let Some(Host { world, docker, mut agent }) = Host::set(attach) else { return };
    let first = docker.run(v1("first"));
    agent.wait_ready(SERVICE, 1);
    let remote = LongLived::start(&world.client, ECHO);
    let local = LongLived::start(&world.host, ECHO);
    assert_eq!([&remote.backend, &local.backend], ["first", "first"]);
    let go_on = |what: &str| {
        let enough = [&remote, &local].map(|lived| moved(lived) + 2);
        wait_until(what, Duration::from_secs(15), || {
            assert!(!remote.is_over() && !local.is_over(), "a connection broke: {what}");
            let now = [moved(&remote), moved(&local)];
            if now[0] >= enough[0] && now[1] >= enough[1] { Ok(()) } else { Err(format!("{now:?} bytes")) }
        });
    };

    let mut others = docker.run_all([v1("v1-1"), v1("v1-2"), v1("v1-3")]);
    agent.wait_ready(SERVICE, 4);
    go_on("scaled up");

    for container in others.drain(1..) {
        container.stop(None);
    }
    agent.wait_ready(SERVICE, 2);
    go_on("scaled down");

    for (target, weight) in [("first", "0"), ("v1-1", "200"), ("first", "256"), ("first", "default")] {
        agent.steer_ok(&["weight", target, weight]);
        go_on(&format!("{target} has weight {weight}"));
    }

    agent.restart();
    agent.wait_ready(SERVICE, 2);
    go_on("the agent was restarted");
    agent.kill9();
    go_on("the agent was killed");
    agent.restart();
    agent.wait_ready(SERVICE, 2);
    go_on("the agent is back");

    docker.run_all([v2("v2-1"), v2("v2-2")]);
    agent.wait_ready(SERVICE, 4);
    let [limit, last] = [10, 5].map(|seconds| format!("{}s", pace::soon_secs(seconds)));
    for container in &others {
        agent.steer_ok(&["drain", &container.name, "--wait", "--timeout", &limit]);
        container.remove();
    }
    agent.wait_ready(SERVICE, 3);
    go_on("the others were deployed");

    agent.steer_ok(&["drain", "first"]);
    go_on("its own backend drains");
    let status = agent.status();
    assert_eq!(status.backend("first").map(|first| first.live_flows), Some(2), "{status}");

    for (what, lived) in [("remote", remote), ("local", local)] {
        let life = lived.finish_unharmed();
        eprintln!("{} {what}: {} bytes, slowest {:?}", attach.word(), life.exchanged, life.slowest);
    }
    agent.steer_ok(&["drain", "first", "--wait", "--timeout", &last]);
    first.stop(None);
    agent.wait_ready(SERVICE, 2);
}

#[test]
fn a_connection_lives_through_all_of_it_on_its_first_backend_over_tc() {
    lives_through_all(Attach::Tc);
}

#[test]
fn a_connection_lives_through_all_of_it_on_its_first_backend_over_xdp() {
    lives_through_all(Attach::Xdp);
}
