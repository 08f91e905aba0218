//! A backend that listens and refuses all the same: its refusals are not the client's.

use std::time::{Duration, Instant};

use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::{Clients, Host};
use steer_tests::docker::{Container, ContainerSpec};
use steer_tests::http::{Failure, Http};
use steer_tests::pace;
use steer_tests::world::HOST;

const SERVICE: &str = "web";

fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000").label("steer.service", SERVICE)
}

/// From now on the kernel answers SYNs to a container's greeter with RST; `which` of them, in the words of iptables.
fn refuse(container: &Container, which: &str) {
    let rule = format!("-A INPUT -p tcp --dport 5000 --syn {which} -j REJECT --reject-with tcp-reset");
    container.ns().output("iptables", &rule);
}

fn resteered(agent: &Agent) -> u64 {
    agent.backends().iter().map(|backend| backend.resteered_total).sum()
}

fn one_refuses(attach: Attach, which: &str) {
    let Some(mut host) = Host::set(attach) else { return };
    let replicas = host.docker.run_all(["one", "two", "three"].map(replica));
    host.agent.wait_ready(SERVICE, 3);
    let clients = Clients::start(&host.world, 9000);
    refuse(&replicas[0], which);
    let before = host.agent.backend("one").resteered_total;
    clients.flow_on();
    clients.flow_on();
    let fared = clients.finish();
    let one = host.agent.backend("one");
    let moved = one.resteered_total - before;
    eprintln!(
        "{} {which}: {moved} steered again; connected p99 {} ms; {fared}",
        attach.word(),
        fared.close.connect_ms.p99
    );
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!(report.failed, 0, "{report:#?}");
        assert_eq!(report.stalled, 0, "{report:#?}");
        let p99 = Duration::from_secs_f64(report.connect_ms.p99 / 1e3);
        assert!(p99 < pace::soon(Duration::from_millis(200)), "{report:#?}");
    }
    assert!(moved > 50, "{one:?}");
}

#[test]
fn refusals_of_one_backend_are_not_seen_over_tc() {
    one_refuses(Attach::Tc, "");
}

#[test]
fn refusals_of_one_backend_are_not_seen_over_xdp() {
    one_refuses(Attach::Xdp, "");
}

#[test]
fn refusals_of_every_second_syn_are_not_seen_over_tc() {
    one_refuses(Attach::Tc, "-m statistic --mode nth --every 2 --packet 0");
}

#[test]
fn refusals_of_every_second_syn_are_not_seen_over_xdp() {
    one_refuses(Attach::Xdp, "-m statistic --mode nth --every 2 --packet 0");
}

/// Whether three refuse or more: two tries with others, then the truth.
fn all_refuse(attach: Attach) {
    let Some(mut host) = Host::set(attach) else { return };
    let names = ["one", "two", "three", "four"];
    let replicas = host.docker.run_all(names.map(replica));
    host.agent.wait_ready(SERVICE, names.len());
    replicas.iter().for_each(|one| refuse(one, ""));
    let http = Http::new(&host.world.client, (HOST, 9000));
    for left in [4, 3] {
        host.agent.wait_ready(SERVICE, left);
        let before = resteered(&host.agent);
        let begin = Instant::now();
        let answer = http.get("/");
        let took = begin.elapsed();
        let tries = resteered(&host.agent) - before;
        eprintln!("{} {left} backends, all refuse: {answer:?} after {took:?}, {tries} tries", attach.word());
        assert_eq!(answer, Err(Failure::Refused), "{left} backends");
        assert!(took < pace::soon(Duration::from_millis(200)), "{left} backends: {took:?}");
        assert_eq!(tries, 2, "{left} backends");
        replicas[left - 1].remove();
    }
    // With nobody left to ask the client waits, as when nobody is ready; but not for ever.
    for left in [2, 1] {
        host.agent.wait_ready(SERVICE, left);
        let begin = Instant::now();
        let limit = pace::soon(Duration::from_secs(20));
        let answer = Http::new(&host.world.client, (HOST, 9000)).within(limit).get("/");
        let took = begin.elapsed();
        eprintln!("{} {left} backends, all refuse: {answer:?} after {took:?}", attach.word());
        assert_eq!(answer, Err(Failure::Refused), "{left} backends");
        assert!(took < pace::soon(Duration::from_secs(8)), "{left} backends: {took:?}");
        replicas[left - 1].remove();
    }
}

#[test]
fn when_everybody_refuses_the_client_hears_it_over_tc() {
    all_refuse(Attach::Tc);
}

#[test]
fn when_everybody_refuses_the_client_hears_it_over_xdp() {
    all_refuse(Attach::Xdp);
}
