//! Ready is who listens, at that very instant: no healthcheck, no probe.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use steer_tests::agent::Attach;
use steer_tests::clients::{BETWEEN, Clients, Fared, Host, cut};
use steer_tests::docker::{Container, ContainerSpec, Health};
use steer_tests::greeter::Greeter;
use steer_tests::http::Http;
use steer_tests::pace;
use steer_tests::wait_until;
use steer_tests::world::HOST;

const SERVICE: &str = "web";
const LIMIT: Duration = Duration::from_secs(30);

fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000").label("steer.service", SERVICE)
}

fn listening(name: &str) -> ContainerSpec {
    replica(name).label("steer.ready", "listen")
}

/// Nobody was refused, nobody waited, and no more were reset than may be: who was in an accept queue that was closed.
#[track_caller]
fn is_unharmed(what: &str, fared: &Fared, may_be_cut: u64) {
    eprintln!("{what}: {fared}");
    assert!(fared.cut() <= may_be_cut, "more than {may_be_cut}: {fared:#?}");
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!(report.failures.total(), cut(report), "{report:#?}");
        assert_eq!(report.stalled, 0, "{report:#?}");
    }
}

/// Its greeter, asked inside its own namespace.
fn inside(container: &Container) -> Http {
    Http::new(&container.ns(), SocketAddr::from((Ipv4Addr::LOCALHOST, 5000)))
}

fn slow(attach: Attach) {
    let Some(mut host) = Host::set(attach) else { return };
    host.docker.run_all(["one", "two"].map(replica));
    host.agent.wait_ready(SERVICE, 2);
    let clients = Clients::start(&host.world, 9000);
    let delay = pace::lasting(Duration::from_millis(1_500)).as_secs_f64().to_string();
    let container = host.docker.run(listening("slow").args(&["--listen-after", &delay]));
    let direct = Http::new(&host.world.host, container.address());
    wait_until("it listens", LIMIT, || direct.get("/healthz"));
    let heard = SystemTime::now().duration_since(UNIX_EPOCH).expect("it is after 1970").as_secs_f64();
    host.agent.wait_for("it is asked", |status| status.backend("slow").is_some_and(|slow| slow.steered_total > 0));
    let late = host.agent.backend("slow");
    host.agent.wait_ready(SERVICE, 3);
    clients.flow_on();
    let fared = clients.finish();
    // Somebody asks at every moment: of one client alone it would be chance when it is the slow one's turn.
    let first = fared.close.first_answers.get("slow").unwrap_or_else(|| panic!("it has answered nobody: {fared:#?}"));
    let after = Duration::from_secs_f64((fared.close.began + first - heard).max(0.0));
    eprintln!("{}: asked {} ms after it was seen to listen", attach.word(), after.as_millis());
    assert!(after < pace::soon(Duration::from_millis(240)), "{after:?}");
    assert_eq!(late.resteered_total, 0, "somebody was sent there before it listened: {late:?}");
    is_unharmed(attach.word(), &fared, 0);
}

#[test]
fn a_slow_listener_gets_nothing_before_it_listens_and_all_from_then_on_over_tc() {
    slow(Attach::Tc);
}

#[test]
fn a_slow_listener_gets_nothing_before_it_listens_and_all_from_then_on_over_xdp() {
    slow(Attach::Xdp);
}

fn addresses(attach: Attach) {
    let Some(mut host) = Host::set(attach) else { return };
    let local = host.docker.run(listening("local").args(&["--bind", "127.0.0.1"]));
    wait_until("it listens, for itself", LIMIT, || inside(&local).get("/healthz"));
    host.docker.run_all([replica("one"), listening("dual").args(&["--bind", "::"])]);
    let status = host.agent.wait_ready(SERVICE, 2);
    let is = |name: &str| status.backend(name).map(|backend| backend.state.clone());
    assert_eq!(is("dual").as_deref(), Some("ready"), "{status}");
    assert_eq!(is("local").as_deref(), Some("starting"), "{status}");
    let clients = Clients::start(&host.world, 9000);
    clients.flow_on();
    let fared = clients.finish();
    is_unharmed(attach.word(), &fared, 0);
    let names: Vec<_> = fared.close.backends.keys().collect();
    assert_eq!(names, ["dual", "one"]);
    let local = host.agent.backend("local");
    assert_eq!((local.steered_total, local.resteered_total), (0, 0), "{local:?}");
}

#[test]
fn a_listener_for_itself_does_not_count_and_a_dual_stack_one_does_over_tc() {
    addresses(Attach::Tc);
}

#[test]
fn a_listener_for_itself_does_not_count_and_a_dual_stack_one_does_over_xdp() {
    addresses(Attach::Xdp);
}

#[test]
fn one_of_two_listeners_on_a_port_is_enough() {
    let Some(mut host) = Host::set(Attach::Tc) else { return };
    let pair = host.docker.run(replica("pair").args(&["--reuse-port"]));
    host.docker.run(replica("one"));
    let before = host.agent.wait_ready(SERVICE, 2);
    let second = Greeter::start(&pair.ns(), "second", &["--reuse-port"]);
    let clients = Clients::start(&host.world, 9000);
    let http = Http::new(&host.world.client, (HOST, 9000));
    wait_until("both take connections", LIMIT, || match http.backend().as_str() {
        "second" => Ok(()),
        other => Err(other.to_owned()),
    });
    assert!(second.terminate().success());
    clients.flow_on();
    // It takes what waits before it closes.
    is_unharmed("two listeners, one closes", &clients.finish(), BETWEEN);
    let after = host.agent.status();
    let since =
        |status: &steer_tests::agent::Status| status.backend("pair").map(|one| (one.state.clone(), one.since.clone()));
    assert_eq!(since(&after), since(&before), "{after}");
}

fn reopened(attach: Attach) {
    const ROUNDS: u64 = 5;
    let Some(mut host) = Host::set(attach) else { return };
    let replicas = host.docker.run_all(["one", "two", "three"].map(replica));
    host.agent.wait_ready(SERVICE, 3);
    let clients = Clients::start(&host.world, 9000);
    for round in 0..ROUNDS {
        replicas[0].kill("USR2");
        // By the time that a look inside finds nobody, nobody is sent there.
        wait_until("it has closed", LIMIT, || match inside(&replicas[0]).get("/healthz") {
            Err(_) => Ok(()),
            Ok(_) => Err("it still answers"),
        });
        let closed = host.agent.backend("one").steered_total;
        clients.flow_on();
        // The cause is written after the state.
        let still = host.agent.wait_for("the agent has heard, and told why", |status| {
            let one = status.backend("one");
            one.is_some_and(|one| one.state == "unready" && one.cause == "listen: not listening")
        });
        let one = still.backend("one").expect("it was just seen");
        assert_eq!(one.steered_total, closed, "round {round}: somebody was sent there: {still}");
        replicas[0].kill("USR2");
        host.agent.wait_ready(SERVICE, 3);
    }
    clients.flow_on();
    is_unharmed(attach.word(), &clients.finish(), replicas[0].abandoned() + ROUNDS * BETWEEN);
}

#[test]
fn a_listener_that_closes_and_opens_again_costs_nothing_over_tc() {
    reopened(Attach::Tc);
}

#[test]
fn a_listener_that_closes_and_opens_again_costs_nothing_over_xdp() {
    reopened(Attach::Xdp);
}

/// The only replica closes its listener for a moment, again and again, and its state need not change by that. Who asks meanwhile
/// waits, and is in as soon as it is open: its next SYN would come a second after its first.
#[track_caller]
fn closed_for_a_moment(spec: ContainerSpec, state: &str) {
    let Some(mut host) = Host::set(Attach::Tc) else { return };
    let one = host.docker.run(spec.label("steer.hold", &format!("{}s", pace::lasting_secs(10))));
    host.agent.wait_state("one", state);
    let http = Http::new(&host.world.client, (HOST, 9000)).within(pace::soon(LIMIT));
    wait_until("it answers", LIMIT, || http.get("/"));
    let held = |host: &Host| host.agent.counter("drop_hold");
    let mut slowest = Duration::ZERO;
    for _ in 0..10 {
        one.flip_listeners();
        let (before, http) = (held(&host), http.clone());
        let asking = std::thread::spawn(move || http.get("/").map(|_| Instant::now()));
        wait_until("it waits", LIMIT, || if held(&host) > before { Ok(()) } else { Err("nobody does") });
        one.flip_listeners();
        let opened = Instant::now();
        let answered = asking.join().expect("it does not panic").expect("it is answered");
        slowest = slowest.max(answered.saturating_duration_since(opened));
    }
    eprintln!("{state}: answered at most {} ms after it was open again", slowest.as_millis());
    assert!(slowest < pace::soon(Duration::from_millis(500)), "{slowest:?}");
}

#[test]
fn who_waits_for_a_listener_gets_through_when_it_opens_where_a_healthcheck_decides() {
    // It stays healthy.
    let health = Health { retries: 1_000, ..Health::default() };
    closed_for_a_moment(replica("one").health(health), "ready");
}

#[test]
fn who_waits_for_a_listener_gets_through_when_it_opens_where_listening_decides() {
    closed_for_a_moment(listening("one"), "ready");
}

#[test]
fn who_waits_for_a_listener_gets_through_when_it_opens_though_another_port_has_none() {
    closed_for_a_moment(listening("one").label("steer.port", "9000:5000,9001:5999"), "starting");
}
