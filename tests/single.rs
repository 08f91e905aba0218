//! One replica that is stopped and started again: who comes meanwhile waits, and no longer than that.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use steer_tests::agent::Attach;
use steer_tests::clients::{BETWEEN, CLIENTS, Clients, Host, KEEPERS, cut};
use steer_tests::docker::{Container, ContainerSpec};
use steer_tests::http::Http;
use steer_tests::pace;
use steer_tests::wait_until;

const LIMIT: Duration = Duration::from_secs(30);
/// How much longer than the gap a connection may take.
const SLACK: Duration = Duration::from_millis(240);

fn replica(name: &str, port: u16) -> ContainerSpec {
    let spec = ContainerSpec::greeter(name).label("steer.port", &format!("{port}:5000"));
    // Longer than any gap.
    spec.label("steer.service", name).label("steer.hold", &format!("{}s", pace::lasting_secs(10)))
}

/// Stops it and starts it again; the time from the first word until it answers on its own address, or until Docker finds it healthy
/// where it is asked.
fn gap(host: &Host, one: &mut Container, has_health: bool) -> Duration {
    let begin = Instant::now();
    one.stop(None);
    one.start();
    if has_health {
        one.wait_healthy();
    } else {
        let direct = Http::new(&host.world.host, one.address());
        wait_until("it answers", LIMIT, || direct.get("/"));
    }
    begin.elapsed()
}

fn stopped_and_started(attach: Attach, has_health: bool) {
    let Some(mut host) = Host::set(attach) else { return };
    let (grace, delay) = (pace::lasting_secs(1).to_string(), pace::lasting_secs(2).to_string());
    let apps: [(&str, &[&str]); 4] = [
        ("closes", &["--on-term", "abandon"]),
        ("serves", &["--on-term", "serve", "--grace", &grace]),
        ("ignores", &["--on-term", "ignore"]),
        ("slow", &["--on-term", "abandon", "--listen-after", &delay]),
    ];
    for (port, (name, args)) in (9000..).zip(apps) {
        let spec = replica(name, port).args(args).stop_timeout(pace::lasting_secs(2).into());
        let mut one = host.docker.run(if has_health { spec.healthcheck() } else { spec });
        host.agent.wait_ready(name, 1);
        let clients = Clients::start(&host.world, port);
        let gap = gap(&host, &mut one, has_health);
        clients.flow_on();
        let fared = clients.finish();
        let health = if has_health { ", healthcheck" } else { "" };
        let abandoned = one.abandoned();
        let (word, ms) = (attach.word(), gap.as_millis());
        eprintln!("{word} {name}{health}: gap {ms} ms; {fared}; {abandoned} were in an accept queue");
        one.remove();
        // The only one takes connections for as long as it listens: who is with it when it ends is cut.
        let until_its_end = matches!(name, "serves" | "ignores");
        let may_be_cut = if until_its_end { CLIENTS + KEEPERS } else { abandoned + BETWEEN };
        assert!(fared.cut() <= may_be_cut, "{name}: more than {may_be_cut}: {fared:#?}");
        for report in [&fared.close, &fared.keepalive] {
            assert_eq!(report.failures.total(), cut(report), "{name}: {report:#?}");
            let slowest = Duration::from_secs_f64(report.slowest_ms / 1e3);
            assert!(slowest <= gap + pace::soon(SLACK), "{name}: the gap was {gap:?}: {report:#?}");
        }
    }
}

#[test]
fn clients_of_one_replica_wait_for_its_restart_over_tc() {
    stopped_and_started(Attach::Tc, false);
}

#[test]
fn clients_of_one_replica_wait_for_its_restart_over_xdp() {
    stopped_and_started(Attach::Xdp, false);
}

#[test]
fn clients_of_one_replica_with_a_healthcheck_wait_until_it_is_healthy_again_over_tc() {
    stopped_and_started(Attach::Tc, true);
}

#[test]
fn clients_of_one_replica_with_a_healthcheck_wait_until_it_is_healthy_again_over_xdp() {
    stopped_and_started(Attach::Xdp, true);
}

/// A connection that waits is in the very moment somebody listens, not at its next retransmission.
#[test]
fn who_waits_gets_through_at_once() {
    let Some(mut host) = Host::set(Attach::Tc) else { return };
    let mut one = host.docker.run(replica("one", 9000));
    host.agent.wait_ready("one", 1);
    one.stop(None);
    host.agent.wait_for("it is gone", |status| status.service("one").is_some_and(|one| one.backends.is_empty()));
    let held = |host: &Host| host.agent.counter("drop_hold");
    let before = held(&host);
    let http = Http::new(&host.world.client, SocketAddr::from(([10, 203, 0, 1], 9000))).within(pace::soon(LIMIT));
    let waiting = std::thread::spawn(move || http.get("/").map(|_| Instant::now()));
    // After its second retransmission it would try again in four seconds.
    wait_until("it has tried three times", LIMIT, || match held(&host) - before {
        tries @ ..3 => Err(tries),
        _ => Ok(()),
    });
    one.start();
    let started = Instant::now();
    let answered = waiting.join().expect("it does not panic").expect("it is answered");
    let late = answered.saturating_duration_since(started);
    eprintln!("answered {} ms after docker start came back", late.as_millis());
    assert!(late < pace::soon(Duration::from_millis(500)), "{late:?}");
}
