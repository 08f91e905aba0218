//! Backends that leave, come and pause under load: nobody is refused, nobody waits, and what is open lives on with the process
//! that holds it.
//!
//! Each row does one thing to one of four replicas while clients ask for 1,200 new connections per second, others keep theirs,
//! and others yet are on the host itself, whose sockets are steered at `connect`. What it may cost is in [`Price`]; what it did cost is printed.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use steer_tests::agent::Attach;
use steer_tests::clients::{BETWEEN, CLIENTS, Clients, Fared, Host, KEEPERS, cut};
use steer_tests::docker::{Container, ContainerSpec};
use steer_tests::http::Http;
use steer_tests::pace;
use steer_tests::wait_until;

const SERVICE: &str = "web";
const LIMIT: Duration = Duration::from_secs(30);
/// How long a replica is paused: longer than a request takes that has not stalled.
const PAUSE: Duration = Duration::from_millis(1_500);

/// What decides about readiness.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ready {
    ByHealth,
    ByListening,
}

/// What a replica does when it is told to stop.
#[derive(Clone, Copy, Debug, PartialEq)]
enum App {
    /// Closes its listeners at once, whoever waits in their queues, and finishes what it has accepted.
    Closes,
    /// Serves old and new connections for a second.
    Serves,
    /// Nothing: Docker kills it after a second.
    Ignores,
}

impl App {
    fn spec(self, spec: ContainerSpec) -> ContainerSpec {
        match self {
            Self::Closes => spec.args(&["--on-term", "abandon"]),
            Self::Serves => spec.args(&["--on-term", "serve", "--grace", &pace::lasting_secs(1).to_string()]),
            Self::Ignores => spec.args(&["--on-term", "ignore"]).stop_timeout(pace::lasting_secs(1).into()),
        }
    }
}

/// What is done to a replica.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Act {
    Stop,
    Kill,
    Crash,
    OutOfMemory,
    Restart,
    Pause,
    /// One more comes, and listens two seconds later.
    ScaleUp,
}

const ROWS: [(Act, App); 11] = [
    (Act::Stop, App::Closes),
    (Act::Stop, App::Serves),
    (Act::Stop, App::Ignores),
    (Act::Restart, App::Closes),
    (Act::Restart, App::Serves),
    (Act::Restart, App::Ignores),
    (Act::Kill, App::Closes),
    (Act::Crash, App::Closes),
    (Act::OutOfMemory, App::Closes),
    (Act::Pause, App::Closes),
    (Act::ScaleUp, App::Closes),
];

/// What a row may cost its clients. Nobody may be refused, nor hear nothing, in any row.
#[derive(Clone, Copy, Debug)]
struct Price {
    /// Connections of one request that may be cut.
    cut: u64,
    /// Kept connections that may be cut.
    cut_kept: u64,
    /// Of clients of every kind together, where that is fewer than of each kind summed.
    cut_in_all: Option<u64>,
    /// Requests that may take a second or longer.
    stalled: u64,
}

impl Price {
    /// `abandoned`: what stood in the accept queue of a listener that closed.
    fn of(act: Act, app: App, abandoned: u64) -> Self {
        let nothing = Self { cut: 0, cut_kept: 0, cut_in_all: None, stalled: 0 };
        let in_between = abandoned + BETWEEN;
        match (act, app) {
            (Act::ScaleUp, _) => nothing,
            (Act::Stop | Act::Restart, App::Closes) => {
                Self { cut: in_between, cut_kept: in_between, cut_in_all: Some(in_between), ..nothing }
            }
            // By the end of its grace it has answered everything but those who keep their connections.
            (Act::Stop | Act::Restart, App::Serves | App::Ignores) => Self { cut_kept: KEEPERS, ..nothing },
            (Act::Kill | Act::Crash | Act::OutOfMemory, _) => Self { cut: CLIENTS, cut_kept: KEEPERS, ..nothing },
            // Who was with it; and with cgroup version 1, of which the kernel side hears nothing, who came until the agent saw it.
            (Act::Pause, _) => Self { stalled: CLIENTS + KEEPERS, ..nothing },
        }
    }

    /// What is dearer than that.
    fn exceeded(self, fared: &Fared) -> Vec<String> {
        let Self { cut: new, cut_kept, cut_in_all, stalled } = self;
        let mut wrong = Vec::new();
        if let Some(most) = cut_in_all
            && fared.cut() > most
        {
            wrong.push(format!("cut in all: {}, at most {most}", fared.cut()));
        }
        for report in [&fared.close, &fared.keepalive].into_iter().chain(&fared.local) {
            let cuts = if report.mode == "close" { new } else { cut_kept };
            let checks = [
                ("refused", report.failures.refused, 0),
                ("timeouts", report.failures.timeout, 0),
                ("neither answered nor cut", report.failures.status + report.failures.other, 0),
                ("cut", cut(report), cuts),
                ("stalled", report.stalled, stalled),
            ];
            wrong.extend(
                checks
                    .into_iter()
                    .filter(|(_, seen, allowed)| seen > allowed)
                    .map(|(what, seen, allowed)| format!("{}: {what} {seen}, at most {allowed}", report.mode)),
            );
            if report.connect_ms.max >= 1_000.0 {
                wrong.push(format!("{}: a connection took {} ms", report.mode, report.connect_ms.max));
            }
        }
        if !wrong.is_empty() {
            wrong.extend(fared.close.samples.iter().chain(&fared.keepalive.samples).cloned());
        }
        wrong
    }
}

fn replica(name: &str, ready: Ready) -> ContainerSpec {
    let spec = ContainerSpec::greeter(name).label("steer.port", "9000:5000").label("steer.service", SERVICE);
    match ready {
        Ready::ByHealth => spec.healthcheck(),
        Ready::ByListening => spec,
    }
}

/// Asks a greeter, inside its own namespace and past steer.
fn inside(container: &Container) -> Http {
    Http::new(&container.ns(), SocketAddr::from((Ipv4Addr::LOCALHOST, 5000)))
}

/// Does it to a replica, and returns when it is done.
fn act(host: &mut Host, clients: &Clients, act: Act, victim: &mut Container) {
    match act {
        Act::Stop => victim.stop(None),
        Act::Kill => victim.kill("KILL"),
        Act::Crash => {
            inside(victim).get("/crash").expect_err("nobody answers this");
            victim.wait_exit(LIMIT);
        }
        Act::OutOfMemory => {
            inside(victim).within(pace::soon(LIMIT)).get("/oom").expect_err("nobody answers this");
            victim.wait_exit(LIMIT);
        }
        Act::Restart => {
            victim.restart();
            host.agent.wait_ready(SERVICE, 4);
        }
        Act::Pause => {
            victim.pause();
            host.agent.wait_ready(SERVICE, 3);
            let paused = Instant::now();
            clients.flow_on();
            wait_until("it has been paused for long enough", LIMIT, || {
                match paused.elapsed() >= pace::lasting(PAUSE) {
                    true => Ok(()),
                    false => Err("not yet"),
                }
            });
            victim.unpause();
            host.agent.wait_ready(SERVICE, 4);
        }
        Act::ScaleUp => unreachable!("nothing is done to a replica that is there"),
    }
}

/// One row, its words, and what was wrong.
fn row(host: &mut Host, ready: Ready, (what, app): (Act, App)) -> (String, Vec<String>) {
    let name = format!("{what:?}-{app:?}").to_lowercase();
    let mut spec = app.spec(replica(&name, ready));
    if what == Act::OutOfMemory {
        spec = spec.memory(24 << 20);
    }
    let (fared, victim) = if what == Act::ScaleUp {
        let clients = Clients::start_with_local(&host.world, 9000);
        let victim = host.docker.run(spec.args(&["--listen-after", &pace::lasting_secs(2).to_string()]));
        host.agent.wait_ready(SERVICE, 4);
        clients.flow_on();
        (clients.finish(), victim)
    } else {
        let mut victim = host.docker.run(spec);
        host.agent.wait_ready(SERVICE, 4);
        let clients = Clients::start_with_local(&host.world, 9000);
        act(host, &clients, what, &mut victim);
        clients.flow_on();
        (clients.finish(), victim)
    };
    let abandoned = victim.abandoned();
    victim.remove();
    host.agent.wait_ready(SERVICE, 3);
    let mut wrong = Price::of(what, app, abandoned).exceeded(&fared);
    if !fared.close.backends.contains_key(&name) {
        wrong.push("it was given nothing".to_owned());
    }
    (format!("{name}: {fared}; {abandoned} were in an accept queue"), wrong)
}

fn every_row(attach: Attach, ready: Ready) {
    let Some(mut host) = Host::set(attach) else { return };
    host.docker.run_all(["one", "two", "three"].map(|name| replica(name, ready)));
    host.agent.wait_ready(SERVICE, 3);
    let has_memory = host.docker.wait("info", host.docker.api().info()).memory_limit == Some(true);
    let mut failed = Vec::new();
    for (what, app) in ROWS {
        if what == Act::OutOfMemory && !has_memory {
            eprintln!("row {what:?} is left out: no memory cgroup here");
            continue;
        }
        let (words, wrong) = row(&mut host, ready, (what, app));
        eprintln!("{} {ready:?} {words}", attach.word());
        if !wrong.is_empty() {
            eprintln!("    WRONG: {}", wrong.join("\n    "));
            failed.push(format!("{words}\n    {}", wrong.join("\n    ")));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn replicas_that_are_ready_by_listening_leave_and_come_over_tc() {
    every_row(Attach::Tc, Ready::ByListening);
}

#[test]
fn replicas_that_are_ready_by_listening_leave_and_come_over_xdp() {
    every_row(Attach::Xdp, Ready::ByListening);
}

#[test]
fn replicas_with_a_healthcheck_leave_and_come_over_tc() {
    every_row(Attach::Tc, Ready::ByHealth);
}

#[test]
fn replicas_with_a_healthcheck_leave_and_come_over_xdp() {
    every_row(Attach::Xdp, Ready::ByHealth);
}
