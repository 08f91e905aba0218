//! Weights, drain and health: an operator's hand on a running service, as with HAProxy's socket.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use steer_tests::agent::{Agent, Attach};
use steer_tests::docker::{Container, ContainerSpec, Docker};
use steer_tests::http::Http;
use steer_tests::long_lived::LongLived;
use steer_tests::pace;
use steer_tests::skip::{self, Need};
use steer_tests::world::HOST;
use steer_tests::{World, wait_until};

const SERVICE: &str = "greeter";

/// Two ready greeters, `one` and `two`. Fields are dropped in this order.
struct Stage {
    agent: Agent,
    one: Container,
    http: Http,
    _docker: Docker,
    world: World,
}

impl Stage {
    fn set(attach: Attach) -> Option<Self> {
        if skip::without(&[Need::Root, Need::Docker, Need::Steer]) {
            return None;
        }
        let world = attach.world();
        let docker = Docker::start(&world);
        docker.import_greeter();
        let mut agent = Agent::start(&world, &docker, attach);
        let replica = |name| {
            let ports = "9000:5000,9001:5001";
            ContainerSpec::greeter(name).label("steer.port", ports).label("steer.service", SERVICE).healthcheck()
        };
        let one = docker.run(replica("one"));
        docker.run(replica("two"));
        agent.wait_ready(SERVICE, 2);
        let http = Http::new(&world.client, SocketAddr::from((HOST, 9000)));
        Some(Self { agent, one, http, _docker: docker, world })
    }

    /// Requests, each on a connection of its own: how many `one` and `two` answered.
    #[track_caller]
    fn split(&self, requests: u32) -> [u32; 2] {
        let mut split = BTreeMap::new();
        for _ in 0..requests {
            *split.entry(self.http.backend()).or_default() += 1;
        }
        ["one", "two"].map(|name| split.get(name).copied().unwrap_or(0))
    }

    /// A connection that lives on `one`; round robin finds it at the second attempt.
    #[track_caller]
    fn live_on_one(&self) -> LongLived {
        let echo = SocketAddr::from((HOST, 9001));
        let found = (0..4).map(|_| LongLived::start(&self.world.client, echo)).find(|lived| lived.backend == "one");
        found.unwrap_or_else(|| panic!("no connection came to `one`\n{}", self.agent.status()))
    }

    /// Waits until a connection has moved more bytes, so that it has lived through what was done before.
    #[track_caller]
    fn exchanges(&self, lived: &LongLived) {
        let enough = moved(lived) + 3;
        wait_until("the connection goes on", Duration::from_secs(15), || match moved(lived) {
            _ if lived.is_over() => panic!("the connection broke after {} bytes", moved(lived)),
            now if now >= enough => Ok(()),
            now => Err(format!("{now} bytes")),
        });
    }

    fn live_flows(&self, name: &str) -> u64 {
        self.agent.status().backend(name).map_or(0, |backend| backend.live_flows)
    }
}

/// Bytes that a connection has sent and got back so far.
fn moved(lived: &LongLived) -> u64 {
    lived.counter().load(Ordering::Relaxed)
}

fn weights(attach: Attach) {
    let Some(stage) = Stage::set(attach) else { return };
    let Stage { agent, .. } = &stage;
    let lived = stage.live_on_one();

    agent.steer_ok(&["weight", "one", "3"]);
    assert_eq!(stage.split(80), [60, 20], "weights 3 and 1\n{}", agent.status());

    agent.steer_ok(&["weight", "one", "0"]);
    assert_eq!(stage.split(40), [0, 40], "weights 0 and 1\n{}", agent.status());
    stage.exchanges(&lived);
    let status = agent.status();
    let one = status.backend("one").expect("a backend of weight 0 is still one");
    assert_eq!((one.state.as_str(), one.weight, one.live_flows), ("ready", 0, 1), "{status}");

    agent.steer_ok(&["weight", "one", "default"]);
    assert_eq!(stage.split(40), [20, 20], "back to the label's weight\n{}", agent.status());
    lived.finish_unharmed();
}

#[test]
fn a_weight_is_a_share_of_new_connections_and_zero_keeps_the_old_ones_over_tc() {
    weights(Attach::Tc);
}

#[test]
fn a_weight_is_a_share_of_new_connections_and_zero_keeps_the_old_ones_over_xdp() {
    weights(Attach::Xdp);
}

fn drain(attach: Attach) {
    let Some(mut stage) = Stage::set(attach) else { return };
    let lived = stage.live_on_one();

    // Not in time: exit code 1, and how many are left.
    let output = stage.agent.steer(&["drain", "one", "--wait", "--timeout", "1s"]);
    let text = [output.stdout, output.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert_eq!(output.status.code(), Some(1), "{text}\n{}", stage.agent.status());
    assert!(text.contains("1 connection left on one"), "{text}\n{}", stage.agent.status());
    assert_eq!(stage.split(40), [0, 40], "drained\n{}", stage.agent.status());
    stage.exchanges(&lived);

    let limit = format!("{}s", pace::soon_secs(30));
    // In time: it returns when the last connection has ended, and not before.
    thread::scope(|scope| {
        let stage = &stage;
        let waiting = scope.spawn(|| {
            let out = stage.agent.steer_ok(&["drain", "one", "--wait", "--timeout", &limit]);
            (out, Instant::now())
        });
        stage.exchanges(&lived);
        assert_eq!(stage.live_flows("one"), 1, "{}", stage.agent.status());
        assert!(!waiting.is_finished(), "drain --wait returned with a connection left\n{}", stage.agent.status());
        let end = Instant::now();
        lived.finish_unharmed();
        let (out, returned) = waiting.join().expect("drain --wait succeeds");
        assert!(out.contains("one: drained after"), "{out}");
        assert!(
            returned.duration_since(end) < pace::soon(Duration::from_secs(2)),
            "{:?} late",
            returned.duration_since(end)
        );
    });
    assert_eq!(stage.live_flows("one"), 0, "{}", stage.agent.status());

    // Once more, with nothing left, it returns at once; a health probe does not put it back in.
    stage.agent.steer_ok(&["drain", "one", "--wait", "--timeout", &limit]);
    let status = stage.agent.wait_state("one", "maintenance");
    assert!(status.backend("one").is_some_and(|one| one.cause.contains("operator")), "{status}");

    let out = stage.agent.steer_ok(&["undrain", "one"]);
    assert!(out.contains("one is ready and takes new connections"), "{out}\n{}", stage.agent.status());
    assert_eq!(stage.split(40), [20, 20], "undrained\n{}", stage.agent.status());
}

#[test]
fn drain_waits_for_the_last_connection_or_says_how_many_are_left_over_tc() {
    drain(Attach::Tc);
}

#[test]
fn drain_waits_for_the_last_connection_or_says_how_many_are_left_over_xdp() {
    drain(Attach::Xdp);
}

fn health(attach: Attach) {
    let Some(mut stage) = Stage::set(attach) else { return };
    let lived = stage.live_on_one();

    // The greeter answers its healthcheck with 503 from now on; the signal itself is none of steer's business.
    stage.one.kill("USR1");
    // Both together: the agent writes the cause some milliseconds after the state, and a status read between them shows the
    // new state with the old cause.
    stage.agent.wait_for("one is unready by its health", |status| {
        status.backend("one").is_some_and(|one| one.state == "unready" && one.cause.contains("unhealthy"))
    });
    assert_eq!(stage.split(40), [0, 40], "unhealthy\n{}", stage.agent.status());
    stage.exchanges(&lived);

    stage.one.kill("USR1");
    stage.agent.wait_state("one", "ready");
    assert_eq!(stage.split(40), [20, 20], "healthy again\n{}", stage.agent.status());
    lived.finish_unharmed();
}

#[test]
fn an_unhealthy_backend_is_out_and_comes_back_while_its_connections_go_on_over_tc() {
    health(Attach::Tc);
}

#[test]
fn an_unhealthy_backend_is_out_and_comes_back_while_its_connections_go_on_over_xdp() {
    health(Attach::Xdp);
}
