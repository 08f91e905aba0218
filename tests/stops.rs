//! The kernel sees a stop before the process does: by its own stop signal, with and without an agent, a thousand times.

use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use bollard::query_parameters::RenameContainerOptionsBuilder;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use steer_common::limits::ABI;
use steer_tests::agent::{Attach, Backend};
use steer_tests::clients::{BETWEEN, Clients, Host, cut};
use steer_tests::docker::{Container, ContainerSpec};
use steer_tests::http::Http;
use steer_tests::long_lived::LongLived;
use steer_tests::pace;
use steer_tests::wait_until;
use steer_tests::world::HOST;

const SERVICE: &str = "web";
const ECHO: (std::net::Ipv4Addr, u16) = (HOST, 9001);
const LIMIT: Duration = Duration::from_secs(30);

fn replica(name: &str) -> ContainerSpec {
    let spec = ContainerSpec::greeter(name).label("steer.port", "9000:5000,9001:5001").label("steer.service", SERVICE);
    // As without the label, on a real machine: whoever still serves then is put back.
    spec.label("steer.drain", &format!("{}s", pace::lasting_secs(30)))
}

/// Seconds for which a stubborn one serves on.
fn grace() -> u32 {
    pace::lasting_secs(60)
}

/// One that serves on after its stop signal: only the kernel's edge keeps new connections away.
fn stubborn(name: &str) -> ContainerSpec {
    replica(name).args(&["--on-term", "serve", "--grace", &grace().to_string()])
}

/// A victim that serves through its grace and two others, and long connections, of which so many are the victim's.
#[track_caller]
fn with_victim(attach: Attach) -> Option<(Host, Container, Vec<LongLived>, usize)> {
    let mut host = Host::set(attach)?;
    let victim = host.docker.run(stubborn("victim"));
    host.docker.run_all(["one", "two"].map(replica));
    host.agent.wait_ready(SERVICE, 3);
    let lives: Vec<_> = (0..6).map(|_| LongLived::start(&host.world.client, ECHO)).collect();
    let held = lives.iter().filter(|life| life.backend == "victim").count();
    assert!(held > 0, "{lives:?}");
    Some((host, victim, lives, held))
}

fn draining(attach: Attach, with_agent: bool) {
    let Some((mut host, victim, lives, held)) = with_victim(attach) else { return };
    let clients = Clients::start(&host.world, 9000);
    if !with_agent {
        host.agent.kill9();
    }

    // Not by Docker, which would send an event: nobody but the kernel sees this.
    kill(Pid::from_raw(victim.pid), Signal::SIGTERM).expect("the container's first process is there");
    let told = host.agent.backend("victim");
    if !with_agent {
        assert_eq!((told.state.as_str(), told.cause.as_str()), ("draining", "signal: TERM"), "{told:?}");
    }
    clients.flow_on();
    clients.flow_on();
    let later = host.agent.backend("victim");
    assert_eq!((later.state.as_str(), later.cause.as_str()), ("draining", "signal: TERM"), "{later:?}");
    assert_eq!(later.steered_total, told.steered_total, "new connections after the signal");
    let fared = clients.finish();
    eprintln!("{}, agent {with_agent}: {held} long ones on it; {fared}", attach.word());
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!((report.failed, report.stalled), (0, 0), "{report:#?}");
    }
    for life in lives {
        let life = life.finish_unharmed();
        assert!(life.slowest < pace::soon(Duration::from_secs(1)), "{life:?}");
    }
}

#[test]
fn connections_to_a_draining_backend_live_on_over_tc() {
    draining(Attach::Tc, true);
}

#[test]
fn connections_to_a_draining_backend_live_on_over_xdp() {
    draining(Attach::Xdp, true);
}

#[test]
fn the_kernel_drains_without_an_agent_over_tc() {
    draining(Attach::Tc, false);
}

#[test]
fn the_kernel_drains_without_an_agent_over_xdp() {
    draining(Attach::Xdp, false);
}

/// An agent that is there and does nothing is no better than none, and goes on as if nothing had been.
fn hung(attach: Attach) {
    let Some((mut host, victim, old, held)) = with_victim(attach) else { return };
    let clients = Clients::start(&host.world, 9000);

    host.agent.hang();
    // Among so many clients it is chance whose turn it is.
    let mut young = vec![LongLived::start(&host.world.client, ECHO)];
    while young.iter().all(|life| life.backend != "victim") {
        assert!(young.len() < 100, "{young:?}");
        young.push(LongLived::start(&host.world.client, ECHO));
    }
    clients.flow_on();
    std::thread::scope(|scope| {
        // As long as the container's own patience: Docker waits for its end.
        let stopping = scope.spawn(|| victim.stop(Some(grace() as i32)));
        let told = wait_until("the kernel has drained it", LIMIT, || match host.agent.backend("victim") {
            now if now.state == "draining" => Ok(now),
            now => Err(format!("{now:?}")),
        });
        assert_eq!(told.cause, "signal: TERM");
        clients.flow_on();
        clients.flow_on();
        let later = host.agent.backend("victim");
        assert_eq!((later.state.as_str(), later.steered_total), ("draining", told.steered_total), "{later:?}");
        let more: Vec<_> = (0..6).map(|_| LongLived::start(&host.world.client, ECHO)).collect();
        assert!(more.iter().all(|life| life.backend != "victim"), "{more:?}");
        for life in old.into_iter().chain(young).chain(more) {
            let life = life.finish_unharmed();
            assert!(life.slowest < pace::soon(Duration::from_secs(1)), "{life:?}");
        }

        host.agent.go_on();
        // It has heard of the stop by now, from the ring and from Docker, and of nothing that takes it back.
        host.docker.run(replica("three"));
        let status = host.agent.wait_ready(SERVICE, 3);
        let draining = status.backend("victim").map(|one| (one.state.as_str(), one.cause.as_str()));
        assert!(matches!(draining, Some(("draining" | "drained", "signal: TERM"))), "{status}");
        victim.kill("KILL");
        stopping.join().expect("it is stopped");
    });
    host.agent.wait_for("the victim is gone", |status| status.backend("victim").is_none());
    clients.flow_on();
    let fared = clients.finish();
    eprintln!("{}, agent hung: {held} long ones on the victim; {fared}", attach.word());
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!((report.failed, report.stalled), (0, 0), "{report:#?}");
    }
    assert!(fared.close.backends.contains_key("three"), "{fared:#?}");
}

#[test]
fn while_the_agent_hangs_the_kernel_steers_and_drains_over_tc() {
    hung(Attach::Tc);
}

#[test]
fn while_the_agent_hangs_the_kernel_steers_and_drains_over_xdp() {
    hung(Attach::Xdp);
}

#[test]
fn only_its_own_stop_signal_and_kill_drain_a_container() {
    let Some(mut host) = Host::set(Attach::Tc) else { return };
    // For so long it has to drain.
    let grace = pace::lasting_secs(8).to_string();
    let ignores = ["--on-term", "ignore", "--grace", &grace];
    let nginx = host.docker.run(replica("nginx").stop_signal("SIGQUIT").args(&ignores));
    let deaf = host.docker.run(replica("deaf").args(&["--on-term", "ignore"]));
    host.docker.run(replica("one"));
    host.agent.wait_ready(SERVICE, 3);
    let watched = host.agent.inits();
    assert!(watched.contains_key(&(nginx.pid as u32)), "{watched:?}");

    let http = Http::new(&host.world.client, (HOST, 9000));
    // QUIT is what a greeter leaves by: it cannot be tried on one that is to stay.
    for (container, signals) in [(&nginx, ["TERM", "HUP", "USR1"].as_slice()), (&deaf, &["HUP", "USR1"])] {
        for signal in signals {
            container.kill(signal);
            let told = host.agent.backend(&container.name);
            assert_eq!(told.state, "ready", "after {signal}: {told:?}");
            wait_until("it is given connections", LIMIT, || match http.backend() {
                name if name == container.name => Ok(()),
                other => Err(other),
            });
        }
    }
    let pair = |name: &str| {
        let told = host.agent.backend(name);
        (told.state, told.cause)
    };
    // Kept open, so that it drains for as long as one looks.
    let lives: Vec<_> = (0..3).map(|_| LongLived::start(&host.world.client, ECHO)).collect();
    assert!(lives.iter().any(|life| life.backend == "nginx"), "{lives:?}");
    kill(Pid::from_raw(nginx.pid), Signal::SIGQUIT).expect("it is there");
    wait_until("it drains", LIMIT, || match pair("nginx") {
        (state, cause) if state == "draining" && cause == "signal: QUIT" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    kill(Pid::from_raw(deaf.pid), Signal::SIGTERM).expect("it is there");
    wait_until("it drains", LIMIT, || match pair("deaf") {
        (state, cause) if state == "draining" && cause == "signal: TERM" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let status = host.agent.status();
    assert_eq!(status.service(SERVICE).map(|web| web.count("ready")), Some(1), "{status}");
}

#[test]
fn a_process_that_ended_is_forgotten_by_the_kernel_itself() {
    let Some(mut host) = Host::set(Attach::Tc) else { return };
    let replicas = host.docker.run_all(["one", "two", "three"].map(replica));
    host.agent.wait_ready(SERVICE, 3);
    let pids = |host: &Host| host.agent.inits().into_keys().collect::<Vec<_>>();
    let mut expected: Vec<u32> = replicas.iter().map(|one| one.pid as u32).collect();
    expected.sort_unstable();
    let mut told = pids(&host);
    told.sort_unstable();
    assert_eq!(told, expected);

    // With nobody who could write: whoever gets that id next is none of steer's business.
    host.agent.kill9();
    replicas[0].stop(None);
    replicas[1].kill("KILL");
    replicas[1].wait_exit(LIMIT);
    assert_eq!(pids(&host), [replicas[2].pid as u32]);
    let states = ["one", "two", "three"].map(|name| host.agent.backend(name).state);
    assert_eq!(states, ["gone", "gone", "ready"]);
}

/// A process that is none of steer's business, with this id, which is free.
#[track_caller]
fn stranger(pid: i32) -> Child {
    const TRIES: u32 = 200;
    for _ in 0..TRIES {
        // The kernel gives the next id to who comes next; somebody else may be quicker.
        std::fs::write("/proc/sys/kernel/ns_last_pid", (pid - 1).to_string()).expect("the last process id can be set");
        // Waits for words that never come.
        let mut child = Command::new("cat").stdin(Stdio::piped()).spawn().expect("cat can be started");
        if child.id() == pid as u32 {
            return child;
        }
        child.kill().and_then(|()| child.wait()).expect("it ends");
    }
    panic!("no process with id {pid} after {TRIES} tries");
}

#[test]
fn whoever_gets_the_process_id_of_a_container_that_ended_is_none_of_its_business() {
    let Some(mut host) = Host::set(Attach::Tc) else { return };
    let mut replicas = host.docker.run_all(["one", "two"].map(replica));
    host.agent.wait_ready(SERVICE, 2);
    let edges = |host: &Host| {
        let edges = host.agent.edges();
        edges.iter().map(|edge| edge.expect("an edge is read").count).collect::<Vec<_>>()
    };
    let clients = Clients::start(&host.world, 9000);
    for with_agent in [true, false] {
        if !with_agent {
            host.agent.kill9();
        }
        for signal in [Signal::SIGTERM, Signal::SIGKILL] {
            let one = &mut replicas[0];
            let old = one.pid;
            one.stop(None);
            if with_agent {
                one.start();
                host.agent.wait_ready(SERVICE, 2);
                assert_ne!(one.pid, old);
            }
            let before = (edges(&host), host.agent.backends());
            let mut stranger = stranger(old);
            assert!(!host.agent.inits().contains_key(&(old as u32)));
            kill(Pid::from_raw(old), signal).expect("it is there");
            stranger.wait().expect("it ends by that");
            clients.flow_on();
            let after = (edges(&host), host.agent.backends());
            assert_eq!(after.0, before.0, "{signal} to {old}, agent {with_agent}");
            let states = |backends: &[Backend]| backends.iter().map(|one| one.state.clone()).collect::<Vec<_>>();
            assert_eq!(states(&after.1), states(&before.1), "{signal} to {old}, agent {with_agent}");
            if !with_agent {
                break;
            }
        }
    }
    let fared = clients.finish();
    eprintln!("{fared}");
    assert_eq!((fared.close.failures.refused, fared.close.stalled), (0, 0), "{fared:#?}");
}

#[test]
fn a_container_that_was_renamed_is_drained_like_any_other() {
    let Some(mut host) = Host::set(Attach::Tc) else { return };
    let shop = host.docker.run(stubborn("shop"));
    host.docker.run(replica("one"));
    host.agent.wait_ready(SERVICE, 2);
    let options = RenameContainerOptionsBuilder::new().name("shop-old").build();
    host.docker.wait("rename", host.docker.api().rename_container(&shop.id, options));
    host.agent.wait_for("the new name is shown", |status| status.backend("shop-old").is_some());
    let clients = Clients::start(&host.world, 9000);
    shop.kill("TERM");
    let told = host.agent.backend("shop-old");
    assert_eq!(told.state, "draining", "{told:?}");
    clients.flow_on();
    let later = host.agent.backend("shop-old");
    assert_eq!((later.steered_total, later.cause.as_str()), (told.steered_total, "signal: TERM"), "{later:?}");
    let fared = clients.finish();
    eprintln!("{fared}");
    assert_eq!((fared.close.failed, fared.keepalive.failed), (0, 0), "{fared:#?}");
}

/// How many stops, one after the other: `STEER_TESTS_STOPS`.
fn wanted_stops() -> u64 {
    let asked = std::env::var("STEER_TESTS_STOPS").ok();
    asked.map_or(60, |words| words.parse().unwrap_or_else(|err| panic!("STEER_TESTS_STOPS={words}: {err}")))
}

#[test]
fn every_stop_is_seen_by_the_kernel_first() {
    let Some(mut host) = Host::set(Attach::Tc) else { return };
    let leaving = |name: &str| replica(name).args(&["--on-term", "abandon"]);
    let mut replicas = host.docker.run_all(["one", "two", "three"].map(leaving));
    host.agent.wait_ready(SERVICE, 3);
    let clients = Clients::start(&host.world, 9000);
    let wanted = wanted_stops();
    let begin = Instant::now();
    for stop in 0..wanted {
        let one = &mut replicas[stop as usize % 3];
        one.stop(None);
        one.start();
        host.agent.wait_ready(SERVICE, 3);
    }
    let took = begin.elapsed();
    let fared = clients.finish();
    let cuts = fared.cut();
    let abandoned: u64 = replicas.iter().map(Container::abandoned).sum();
    let opened = fared.close.connections + fared.keepalive.connections;
    let log = host.agent.log();
    let drained = |cause: &str| {
        let words = format!(r#"from="ready" to="draining" cause="{cause}"#);
        log.lines().filter(|line| line.contains(&words)).count() as u64
    };
    let (by_kernel, by_event) = (drained("signal: TERM"), drained("event: kill"));
    let stops = host.agent.status().agent.stops;
    eprintln!(
        "{wanted} stops in {:.0} s: {by_kernel} seen by the kernel first, {by_event} by Docker's event first; {stops:?}; \
         {cuts} of {opened} connections cut ({:.4} %), {abandoned} were in an accept queue; {fared}",
        took.as_secs_f64(),
        cuts as f64 * 100.0 / opened as f64,
    );
    assert_eq!(by_kernel + by_event, wanted, "stops that nobody saw");
    assert_eq!(by_event, 0, "stops that Docker told of first");
    if let Some(stops) = stops {
        assert_eq!((stops.kernel_first, stops.event_first), (wanted, 0), "{stops:?}");
    }
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!(report.failures.total(), cut(report), "{report:#?}");
        assert_eq!(report.stalled, 0, "{report:#?}");
    }
    // Seldom in so many closings does one come in between.
    assert!(cuts <= abandoned + BETWEEN.max(wanted / 20), "{cuts} of {opened}, {abandoned} in accept queues");
}

/// Docker's event is what is left where the kernel's word is missing: late, but who serves through its grace loses nobody.
#[test]
fn without_the_kernels_tracepoints_dockers_event_takes_a_backend_out() {
    let Some(mut host) = Host::set(Attach::Tc) else { return };
    let grace = pace::lasting_secs(1).to_string();
    let serving = |name: &str| replica(name).args(&["--on-term", "serve", "--grace", &grace]);
    let replicas = host.docker.run_all(["one", "two"].map(serving));
    host.agent.wait_ready(SERVICE, 2);
    let links = host.agent.pins().join(format!("v{ABI}/links"));
    let tracepoints: Vec<_> = host.agent.links().into_iter().filter(|link| link.starts_with("tracepoint-")).collect();
    assert!(!tracepoints.is_empty(), "{:?}", host.agent.links());
    for link in tracepoints {
        std::fs::remove_file(links.join(&link)).unwrap_or_else(|error| panic!("{link}: {error}"));
    }
    let clients = Clients::start(&host.world, 9000);
    replicas[0].stop(None);
    host.agent.wait_ready(SERVICE, 1);
    clients.flow_on();
    let fared = clients.finish();
    eprintln!("{fared}");
    let log = host.agent.log();
    assert!(log.contains(r#"from="ready" to="draining" cause="event: kill"#), "{log}");
    let stops = host.agent.status().agent.stops.expect("there was a stop");
    assert_eq!((stops.kernel_first, stops.event_first), (0, 1), "{stops:?}");
    assert_eq!((fared.close.failed, fared.keepalive.failures.total()), (0, cut(&fared.keepalive)), "{fared:#?}");
}

/// Writes until that fails by a reset, and tells how long it took. Where the backend's own end came through, the answer to that
/// was reset already.
fn reset_after(mut stream: &TcpStream) -> Result<Duration, String> {
    let (begin, limit) = (Instant::now(), pace::soon(Duration::from_secs(3)));
    // What nobody takes fills its buffer.
    stream.set_write_timeout(Some(limit)).expect("a socket has a time limit");
    while begin.elapsed() < limit {
        match stream.write_all(b"x") {
            Ok(()) => std::thread::yield_now(),
            Err(err) if matches!(err.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe) => {
                return Ok(begin.elapsed());
            }
            Err(err) => return Err(err.to_string()),
        }
    }
    Err(format!("silence for {limit:?}"))
}

/// Waits until nothing on the host leads to a container any more.
#[track_caller]
fn wait_unplugged(host: &Host, ifindex: &str) {
    wait_until("its veth is gone", LIMIT, || {
        let links = host.world.host.output("ip", "-o link");
        let is_there = links.lines().any(|line| line.split(": ").next() == Some(ifindex));
        if is_there { Err(links) } else { Ok(()) }
    });
}

/// An idle connection to a backend that dies; `silent`: its end does not reach the client.
fn dead(attach: Attach, silent: bool, with_agent: bool) {
    let Some(mut host) = Host::set(attach) else { return };
    let one = host.docker.run(replica("one"));
    host.agent.wait_ready(SERVICE, 1);
    host.docker.run(replica("two"));
    host.agent.wait_ready(SERVICE, 2);
    host.agent.steer_ok(&["drain", "two"]);
    let idle = host.world.client.connect(ECHO.into(), None, pace::soon(LIMIT)).expect("somebody listens");
    (&idle).write_all(b"?").expect("it is open");
    let mut name = [0; 4];
    (&idle).read_exact(&mut name).expect("the greeter tells its name");
    assert_eq!(&name, b"one\n");
    host.agent.steer_ok(&["undrain", "two"]);
    // `2: eth0@if7: ...`: 7 is the host's end.
    let link = one.ns().output("ip", "-o link show eth0");
    let ifindex = link.split("@if").nth(1).and_then(|rest| rest.split(':').next()).expect("eth0 has another end");
    if !with_agent {
        host.agent.kill9();
    }
    if silent {
        one.ns().output("ip", "link set eth0 down");
    }
    one.kill("KILL");
    if with_agent {
        host.agent.wait_state("one", "gone");
    } else {
        wait_unplugged(&host, ifindex);
        assert_eq!(host.agent.backend("one").state, "gone");
    }
    let took = reset_after(&idle);
    eprintln!("{} silent {silent}, agent {with_agent}: {took:?}", attach.word());
    assert!(took.as_ref().is_ok_and(|took| *took < pace::soon(Duration::from_millis(200))), "{took:?}");
}

#[test]
fn a_dead_backend_answers_with_a_reset_over_tc() {
    dead(Attach::Tc, false, true);
    dead(Attach::Tc, true, true);
}

#[test]
fn a_dead_backend_answers_with_a_reset_over_xdp() {
    dead(Attach::Xdp, false, true);
    dead(Attach::Xdp, true, true);
}

#[test]
fn a_dead_backend_answers_with_a_reset_also_without_an_agent_over_tc() {
    dead(Attach::Tc, false, false);
    dead(Attach::Tc, true, false);
}

#[test]
fn a_dead_backend_answers_with_a_reset_also_without_an_agent_over_xdp() {
    dead(Attach::Xdp, false, false);
    dead(Attach::Xdp, true, false);
}
