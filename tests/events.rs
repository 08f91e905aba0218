//! What `steer events` tells: every change of a backend, in order, by whom, and when.

use std::io::{BufRead as _, BufReader};
use std::process::{Child, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bollard::query_parameters::EventsOptionsBuilder;
use futures_util::TryStreamExt as _;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde::Deserialize;
use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::Host;
use steer_tests::docker::{Container, ContainerSpec, Docker};
use steer_tests::http::Http;
use steer_tests::pace;
use steer_tests::skip::{self, Need};
use steer_tests::world::HOST;
use steer_tests::{World, wait_until};

const NEEDS: [Need; 3] = [Need::Root, Need::Docker, Need::Steer];
const LIMIT: Duration = Duration::from_secs(30);

/// One line of `steer events --json`.
#[derive(Clone, Debug, Deserialize)]
struct Event {
    number: u64,
    time_us: u64,
    service: String,
    backend: String,
    from: String,
    to: String,
    source: String,
    cause: String,
    /// How many of the kind, within a second.
    count: u64,
}

impl Event {
    fn line(&self) -> String {
        let Self { backend, from, to, source, cause, .. } = self;
        format!("{backend}: {from} → {to} by {source}: {cause}")
    }
}

/// `steer events --follow --json`, and when each line was there.
struct Follow {
    child: Child,
    lines: Receiver<(Event, u64)>,
}

impl Follow {
    fn start(agent: &Agent) -> Self {
        let mut command = agent.command(&["events", "--follow", "--json"]);
        let mut child = command.stdout(Stdio::piped()).spawn().expect("steer can be started");
        let out = BufReader::new(child.stdout.take().expect("its output is a pipe"));
        let (sender, lines) = channel();
        std::thread::spawn(move || {
            for line in out.lines().map_while(Result::ok) {
                let event = serde_json::from_str(&line).unwrap_or_else(|err| panic!("{err} in: {line}"));
                if sender.send((event, now_us())).is_err() {
                    break;
                }
            }
        });
        Self { child, lines }
    }

    /// The next one that is as wanted, and how long after it happened it was there.
    #[track_caller]
    fn until(&self, wanted: impl Fn(&Event) -> bool) -> (Event, Duration) {
        loop {
            let (event, there) = self.lines.recv_timeout(pace::soon(LIMIT)).expect("steer events goes on");
            if wanted(&event) {
                let late = Duration::from_micros(there.saturating_sub(event.time_us));
                return (event, late);
            }
        }
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn now_us() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_micros() as u64)
}

fn events(agent: &Agent, words: &[&str]) -> Vec<Event> {
    let out = agent.steer_ok(&[&["events", "--json"], words].concat());
    out.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|err| panic!("{err} in: {line}"))).collect()
}

fn greeter(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000").label("steer.service", "web").healthcheck()
}

/// When dockerd says that it sent a container a signal, in microseconds of Unix time.
#[track_caller]
fn docker_killed(docker: &Docker, container: &Container) -> u64 {
    let filters = [("event", vec!["kill".to_owned()]), ("container", vec![container.id.clone()])];
    let options = EventsOptionsBuilder::new()
        .since("1")
        .until(&(now_us() / 1_000_000 + 1).to_string())
        .filters(&filters.into_iter().map(|(key, values)| (key.to_owned(), values)).collect())
        .build();
    let events: Vec<_> = docker.wait("docker events", docker.api().events(Some(options)).try_collect());
    let nanos = events.first().and_then(|event| event.time_nano).expect("there was a kill event");
    nanos as u64 / 1_000
}

#[test]
fn every_change_is_told_in_order_with_its_source_and_the_kernel_s_time() {
    let Some(Host { world: _world, docker, mut agent }) = Host::set(Attach::Tc) else { return };
    agent.wait_for("the agent knows Docker", |status| status.agent.docker.is_some());
    assert!(events(&agent, &[]).is_empty(), "nothing has happened");
    let follow = Follow::start(&agent);

    let one = docker.run(greeter("one"));
    agent.wait_state("one", "ready");
    one.pause();
    agent.wait_state("one", "unready");
    one.unpause();
    agent.wait_state("one", "ready");
    agent.steer_ok(&["drain", "one"]);
    agent.steer_ok(&["undrain", "one"]);
    agent.wait_state("one", "ready");
    one.stop(None);
    let (stop, late) = follow.until(|event| event.to == "draining");
    println!("seen {late:?} after the signal by steer events --follow");
    assert!(late < pace::soon(Duration::from_millis(500)), "{late:?} after the signal: {stop:?}");
    let killed = docker_killed(&docker, &one);
    println!("Docker's own time of it is {} µs after the kernel's", killed.abs_diff(stop.time_us));
    assert!(stop.time_us <= killed, "the kernel's time {} is not before Docker's {killed}", stop.time_us);

    // TERM is another order for this one, and it ends by itself.
    let two = docker.run(greeter("two").stop_signal("QUIT"));
    agent.wait_state("two", "ready");
    kill(Pid::from_raw(two.pid), Signal::SIGTERM).expect("its first process is there");
    two.wait_exit(LIMIT);
    agent.wait_state("two", "gone");
    follow.until(|event| event.backend == "two" && event.to == "gone");

    let all = events(&agent, &[]);
    // Whether a backend without connections is drained before it has ended is a matter of milliseconds.
    let lines: Vec<_> = all.iter().filter(|event| event.to != "drained").map(Event::line).collect();
    let lines: Vec<_> = lines.iter().map(|line| line.replace("drained → gone", "draining → gone")).collect();
    let expected = [
        "one: gone → starting by event: event: start",
        "one: starting → ready by health: health: healthy",
        "one: ready → unready by event: event: pause",
        "one: unready → ready by health: health: healthy",
        "one: ready → maintenance by operator: operator: drain",
        "one: maintenance → ready by operator: operator: undrain",
        "one: ready → draining by signal: signal: TERM",
        "one: draining → gone by exit: exit",
        "two: gone → starting by event: event: start",
        "two: starting → ready by health: health: healthy",
        "two: ready → gone by exit: exit",
    ];
    assert_eq!(lines, expected, "{all:#?}");
    assert!(all.iter().zip(1..).all(|(event, number)| event.number == number && event.service == "web"), "{all:#?}");
    let of_two = events(&agent, &["--backend", "two", "--service", "web"]);
    assert_eq!(of_two.len(), 3, "{of_two:#?}");
    println!("{}{}", agent.steer_ok(&["events"]), agent.steer_ok(&["status"]));

    let status: serde_json::Value = serde_json::from_str(&agent.steer_ok(&["status", "--json"])).expect("JSON");
    let stops = &status["agent"]["stops"];
    println!("{stops}");
    assert_eq!((stops["kernel_first"].as_u64(), stops["event_first"].as_u64()), (Some(1), Some(0)), "{stops}");
    assert_eq!(stops["lateness_us"]["count"], 1, "{stops}");

    agent.kill9();
    let mut follow = follow;
    assert_eq!(follow.child.wait().expect("it can be waited for").code(), Some(1), "who follows is told of the end");
    let output = agent.steer(&["events"]);
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{told}");
    assert!(told.contains("events live in the agent") && told.contains("`steer backends`"), "{told}");
}

/// Without a healthcheck: who listens is ready.
fn listener(name: &str) -> ContainerSpec {
    ContainerSpec { health: None, ..greeter(name) }
}

/// That nobody listens any more is seen by the next new connection, which is not the worse for it.
#[test]
fn a_listener_that_closes_and_opens_again_is_told_by_the_kernel() {
    let Some(Host { world, docker, mut agent }) = Host::set(Attach::Tc) else { return };
    let one = docker.run(listener("one"));
    agent.wait_state("one", "ready");
    docker.run(listener("two"));
    agent.wait_ready("web", 2);
    let follow = Follow::start(&agent);
    let http = Http::new(&world.client, (HOST, 9000));
    for (word, to) in [("closed", "unready"), ("opened", "ready")] {
        let begin = now_us();
        one.flip_listeners();
        // It is the turn of each in these.
        let answers = [http.backend(), http.backend()];
        let (event, late) = follow.until(|event| event.backend == "one" && event.to == to && event.time_us >= begin);
        let after = Duration::from_micros(event.time_us - begin);
        println!("it {word}: {answers:?}; {} {after:?} later, there after {late:?}", event.line());
        assert!(after < pace::soon(Duration::from_secs(1)), "{after:?}: {event:?}");
        if to == "unready" {
            assert_eq!(answers, ["two", "two"]);
        }
    }
    let of_one = events(&agent, &["--backend", "one"]);
    let lines: Vec<_> = of_one.iter().skip(1).map(Event::line).collect();
    let expected = [
        "one: starting → ready by listen: listen: listening",
        "one: ready → unready by listen: listen: not listening",
        "one: unready → ready by listen: listen: listening",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn refused_connections_are_told_and_counted() {
    const WANTED: u64 = 20;
    let Some(Host { world, docker, mut agent }) = Host::set(Attach::Tc) else { return };
    let replicas = docker.run_all(["one", "two"].map(listener));
    agent.wait_ready("web", 2);
    let follow = Follow::start(&agent);
    let (first, _) = follow.until(|event| event.to == "ready");
    assert_eq!(first.source, "listen", "{first:?}");
    replicas[0].ns().output("iptables", "-A INPUT -p tcp --dport 5000 --syn -j REJECT --reject-with tcp-reset");
    let http = Http::new(&world.client, (HOST, 9000));
    while agent.backend("one").resteered_total < WANTED {
        // Many between two looks: a look may take a second by itself.
        (0..WANTED).for_each(|_| assert_eq!(http.backend(), "two"));
    }
    let refused = agent.backend("one").resteered_total;
    let (mut told, mut lines) = (0, 0);
    while told < refused {
        let (event, late) = follow.until(|event| event.source == "refused");
        println!("{}, {} times, there after {late:?}", event.line(), event.count);
        assert_eq!(event.line(), "one: ready → ready by refused: refused: a new connection");
        (told, lines) = (told + event.count, lines + 1);
    }
    println!("{refused} refused, told in {lines} lines");
    assert_eq!(told, refused);
    assert!(lines > 1 && lines < refused, "at once, and then once a second");
}

#[test]
fn what_is_found_by_asking_docker_is_told_as_a_resync() {
    let Some(Host { world: _world, docker, mut agent }) = Host::set(Attach::Tc) else { return };
    let gone = docker.run(greeter("gone"));
    docker.run(greeter("stays"));
    agent.wait_ready("web", 2);
    agent.kill9();
    gone.remove();
    // Of one with a healthcheck Docker may tell something before it is asked.
    docker.run(listener("new"));

    agent.restart();
    agent.wait_state("new", "ready");
    // It is told after it is so.
    let all = wait_until("it is told", LIMIT, || match events(&agent, &[]) {
        all if all.iter().any(|event| event.to == "ready") => Ok(all),
        all => Err(format!("{all:#?}")),
    });
    let lines: Vec<_> = all.iter().map(Event::line).collect();
    // That one is gone the kernel saw, in nobody's time; and nothing has become of who stays.
    let expected =
        ["new: gone → starting by resync: resync: listed", "new: starting → ready by listen: listen: listening"];
    assert_eq!(lines, expected, "{all:#?}");
}

/// What was told, without that the last connection has ended: one that has none is drained when the agent looks.
fn causes(all: &[Event]) -> Vec<&str> {
    let told = all.iter().filter(|event| event.to != "drained" || event.from == event.to);
    told.map(|event| event.cause.as_str()).collect()
}

/// A container that goes on after its stop signal, and that the operator put back.
fn put_back(world: &World, docker: &Docker) -> Agent {
    docker.import_greeter();
    let mut agent = Agent::start(world, docker, Attach::Tc);
    agent.wait_for("the agent knows Docker", |status| status.agent.docker.is_some());
    let deaf = docker.run(greeter("deaf").args(&["--on-term", "ignore"]));
    agent.wait_state("deaf", "ready");
    deaf.kill("TERM");
    agent.wait_for("it was told to stop", |status| {
        status.backend("deaf").is_some_and(|deaf| deaf.cause == "signal: TERM")
    });
    deaf.kill("TERM");
    wait_until("that it was told so again is known", LIMIT, || {
        let all = events(&agent, &[]);
        let signals = causes(&all).into_iter().filter(|cause| *cause == "signal: TERM").count();
        if signals == 2 { Ok(()) } else { Err(format!("{all:#?}")) }
    });
    agent.steer_ok(&["undrain", "deaf"]);
    agent.wait_state("deaf", "ready");
    agent
}

#[test]
fn a_signal_that_was_dealt_with_is_not_told_again_to_the_next_agent() {
    if skip::without(&NEEDS) {
        return;
    }
    let world = Attach::Tc.world();
    let docker = Docker::start(&world);
    let mut agent = put_back(&world, &docker);
    let all = events(&agent, &[]);
    let expected = ["event: start", "health: healthy", "signal: TERM", "signal: TERM", "operator: undrain"];
    assert_eq!(causes(&all), expected, "the second signal is told though it changes nothing: {all:#?}");

    agent.restart();
    let pid = agent.pid();
    let status = agent.wait_for("the new agent has asked Docker", |status| {
        status.agent.pid == Some(pid) && status.agent.docker.is_some()
    });
    let deaf = status.backend("deaf").unwrap_or_else(|| panic!("{status}"));
    assert_eq!((deaf.state.as_str(), deaf.cause.as_str()), ("ready", "operator: undrain"), "{status}");
    let all = events(&agent, &[]);
    assert!(all.is_empty(), "nothing has happened since: {all:#?}");
}
