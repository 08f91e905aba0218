//! A rolling deploy under `ab`: the service scales down and up, every replica is replaced, and nobody notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::Host;
use steer_tests::docker::{Container, ContainerSpec, Docker};
use steer_tests::http::Http;
use steer_tests::load::{Ab, AbReport};
use steer_tests::skip::{self, Need};
use steer_tests::world::HOST;
use steer_tests::{World, pace, wait_until};

const SERVICE: &str = "greeter";
const REPLICAS: usize = 6;
/// A run of `ab`, as the users of a balancer test it: one client address, so client ports are used again and again.
#[derive(Clone, Copy, Debug)]
enum Run {
    KeepAlive,
    Close,
}

impl Run {
    /// What `ab` is started with. A machine that is slow has fewer clients as well: of more it would only be seen how they wait for it.
    fn words(self) -> String {
        let kept = match self {
            Self::KeepAlive => "-k",
            Self::Close => "",
        };
        format!("-c {} -l {kept} -n {}", pace::count(40), requests())
    }
}

/// How many requests a run has.
fn requests() -> u32 {
    pace::count(20_000)
}

fn replica(name: &str, version: &str, leave: Leave) -> ContainerSpec {
    let spec = ContainerSpec::greeter(name)
        .version(version)
        .label("steer.port", "9000:5000")
        .label("steer.service", SERVICE)
        .healthcheck();
    leave.fit(spec)
}

/// Runs of `ab`, one after the other, until it is told to stop.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<AbReport>>,
}

impl Traffic {
    fn start(world: &World, run: Run) -> Self {
        let (client, stop) = (world.client.clone(), Arc::new(AtomicBool::new(false)));
        let words = run.words();
        let stopped = stop.clone();
        let runs = move || {
            let mut reports = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let report = Ab::start(&client, SocketAddr::from((HOST, 9000)), &words).finish();
                let harmed = is_harmed(&report);
                reports.push(report);
                if harmed {
                    break;
                }
            }
            reports
        };
        Self { stop, thread: std::thread::spawn(runs) }
    }

    /// Panics when a run has failed: there is no point in going on.
    #[track_caller]
    fn is_unharmed(&self, step: &str) {
        assert!(!self.thread.is_finished(), "ab has failed until: {step}");
    }

    /// Lets the last run end; panics unless every run was as if nothing had happened.
    #[track_caller]
    fn finish(self) -> Vec<AbReport> {
        self.stop.store(true, Ordering::Relaxed);
        let reports = self.thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        for (run, report) in reports.iter().enumerate() {
            assert!(!is_harmed(report), "run {run} of {}: {}", reports.len(), report.text);
        }
        reports
    }
}

fn is_harmed(report: &AbReport) -> bool {
    let AbReport { complete, failed, non_2xx, longest_ms, .. } = report;
    let is_slow = Duration::from_millis(*longest_ms) >= pace::soon(Duration::from_secs(1));
    *complete != u64::from(requests()) || *failed > 0 || *non_2xx > 0 || is_slow
}

/// How a replica leaves.
#[derive(Clone, Copy)]
enum Leave {
    /// `steer drain --wait`, then `docker stop`: what a deploy script does.
    Drained,
    /// `docker stop` alone, of a program that ends its kept connections and goes on listening for a moment.
    Stopped,
}

impl Leave {
    /// A greeter that leaves so. Docker tells of a stop signal after it was delivered: who listens for half a second more still
    /// answers the connections that come until steer has heard of it.
    fn fit(self, spec: ContainerSpec) -> ContainerSpec {
        match self {
            Self::Drained => spec,
            Self::Stopped => {
                let moment = pace::lasting(Duration::from_millis(500));
                spec.args(&["--close-after", &moment.as_secs_f64().to_string()])
            }
        }
    }

    #[track_caller]
    fn go(self, agent: &Agent, container: &Container) {
        if let Self::Drained = self {
            // With keep-alive the last connection ends with the run of ab that it began in.
            let limit = format!("{}s", pace::soon_secs(30));
            agent.steer_ok(&["drain", &container.name, "--wait", "--timeout", &limit]);
        }
        container.stop(None);
    }
}

fn deploy(attach: Attach, run: Run, leave: Leave) {
    if skip::without(&[Need::Root, Need::Docker, Need::Steer, Need::Program("ab")]) {
        return;
    }
    let begin = Instant::now();
    let world = attach.world();
    let docker = Docker::start(&world);
    docker.import_greeter();
    let mut agent = Agent::start(&world, &docker, attach);
    let name = |version: &str, number: usize| format!("{version}-{number}");
    let mut replicas = docker.run_all((1..=REPLICAS).map(|number| replica(&name("v1", number), "v1", leave)));
    agent.wait_ready(SERVICE, REPLICAS);

    let traffic = Traffic::start(&world, run);
    wait_until("ab is under way", Duration::from_secs(10), || match agent.status().service(SERVICE) {
        Some(service) if service.backends.iter().all(|backend| backend.steered_total > 0) => Ok(()),
        _ => Err(agent.status().to_string()),
    });

    for container in replicas.drain(2..) {
        leave.go(&agent, &container);
        traffic.is_unharmed(&format!("scale down, {}", container.name));
    }
    agent.wait_ready(SERVICE, 2);

    replicas
        .extend(docker.run_all((REPLICAS + 1..REPLICAS + 5).map(|number| replica(&name("v1", number), "v1", leave))));
    agent.wait_ready(SERVICE, REPLICAS);
    traffic.is_unharmed("scale up");

    for (number, old) in replicas.into_iter().enumerate() {
        docker.run(replica(&name("v2", number + 1), "v2", leave));
        agent.wait_ready(SERVICE, REPLICAS + 1);
        leave.go(&agent, &old);
        traffic.is_unharmed(&format!("replace {}", old.name));
    }

    let status = agent.wait_ready(SERVICE, REPLICAS);
    let runs = traffic.finish();
    let total: u64 = runs.iter().map(|run| run.complete).sum();
    let slowest = runs.iter().map(|run| run.longest_ms).max().unwrap_or(0);
    let rate = runs.iter().map(|run| run.per_second).sum::<f64>() / runs.len() as f64;
    eprintln!(
        "{}: {} runs of ab ({run:?}), {total} requests, slowest {slowest} ms, {rate:.0}/s, {:.1} s\n{status}",
        attach.word(),
        runs.len(),
        begin.elapsed().as_secs_f64()
    );
}

#[test]
fn a_rolling_deploy_under_ab_loses_nothing_over_tc() {
    deploy(Attach::Tc, Run::Close, Leave::Drained);
}

#[test]
fn a_rolling_deploy_under_ab_loses_nothing_over_xdp() {
    deploy(Attach::Xdp, Run::Close, Leave::Drained);
}

#[test]
fn a_rolling_deploy_under_ab_with_keep_alive_loses_nothing_over_tc() {
    deploy(Attach::Tc, Run::KeepAlive, Leave::Drained);
}

#[test]
fn a_rolling_deploy_under_ab_with_keep_alive_loses_nothing_over_xdp() {
    deploy(Attach::Xdp, Run::KeepAlive, Leave::Drained);
}

#[test]
fn docker_stop_alone_of_replicas_that_leave_in_order_loses_nothing_over_tc() {
    deploy(Attach::Tc, Run::Close, Leave::Stopped);
}

#[test]
fn docker_stop_alone_of_replicas_that_leave_in_order_loses_nothing_over_xdp() {
    deploy(Attach::Xdp, Run::Close, Leave::Stopped);
}

#[test]
fn docker_stop_alone_of_replicas_that_end_kept_connections_in_order_loses_nothing_over_tc() {
    deploy(Attach::Tc, Run::KeepAlive, Leave::Stopped);
}

#[test]
fn docker_stop_alone_of_replicas_that_end_kept_connections_in_order_loses_nothing_over_xdp() {
    deploy(Attach::Xdp, Run::KeepAlive, Leave::Stopped);
}

/// One replica that is stopped before the next one starts, as Compose does it.
fn single_replica(attach: Attach) {
    let Some(Host { world, docker, mut agent }) = Host::set(attach) else { return };
    let spec = |name: &str, service: &str, port: &str, hold: &str| {
        ContainerSpec::greeter(name).label("steer.port", port).label("steer.service", service).label("steer.hold", hold)
    };
    let [long, short] = [20, 2].map(|seconds| format!("{}s", pace::lasting_secs(seconds)));
    let one = docker.run(spec("one", "single", "9000:5000", &long));
    let brief = docker.run(spec("brief", "brief", "9001:5000", &short));
    let none = docker.run(spec("none", "none", "9002:5000", "0"));
    ["single", "brief", "none"].into_iter().for_each(|service| drop(agent.wait_ready(service, 1)));
    let frontends = |agent: &Agent| agent.status().service("single").map(|service| service.frontends.clone());
    let before = frontends(&agent);

    [&one, &brief, &none].into_iter().for_each(|container| container.kill("KILL"));
    agent.wait_for("a service without hold goes at once", |status| status.service("none").is_none());
    let gone = agent.wait_for("who has lost its last backend stays", |status| {
        status.service("single").is_some_and(|service| service.backends.is_empty())
    });
    let since = Instant::now();
    assert!(gone.service("brief").is_some_and(|service| service.backends.is_empty()), "{gone}");
    assert_eq!(frontends(&agent), before);
    assert!(agent.steer_ok(&["status"]).contains("no backends"));
    assert!(agent.steer_ok(&["services"]).contains("0/0"));

    // A connection of this moment waits, over the agent's restart too.
    let limit = pace::soon(Duration::from_secs(15));
    let waiting = Http::new(&world.client, SocketAddr::from((HOST, 9000))).within(limit);
    let waiting = std::thread::spawn(move || waiting.get("/"));
    agent.restart();
    docker.run(spec("two", "single", "9000:5000", &long));
    agent.wait_ready("single", 1);
    let answer = waiting.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    assert_eq!(answer.map(|reply| reply.backend).map_err(|failure| failure.to_string()), Ok("two".to_owned()));
    assert_eq!(frontends(&agent), before);

    agent.wait_for("nobody has come in time", |status| status.service("brief").is_none());
    assert!(since.elapsed() < pace::soon(Duration::from_secs(10)), "{:?}", since.elapsed());

    // Whoever leaves the host waits for nobody.
    docker.remove(&agent.status().backend("two").and_then(|two| two.container.clone()).expect("it is a container"));
    agent.wait_for("empty again", |status| status.service("single").is_some_and(|one| one.backends.is_empty()));
    agent.steer_ok(&["detach"]);
    assert!(agent.wait_exit().success());
}

#[test]
fn a_service_waits_for_its_next_replica_over_tc() {
    single_replica(Attach::Tc);
}

#[test]
fn a_service_waits_for_its_next_replica_over_xdp() {
    single_replica(Attach::Xdp);
}

#[test]
fn who_ignores_its_stop_signal_is_put_back() {
    let Some(Host { world: _world, docker, mut agent }) = Host::set(Attach::Tc) else { return };
    let spec = ContainerSpec::greeter("deaf").label("steer.port", "9000:5000").label("steer.service", SERVICE);
    let deaf = docker.run(spec.label("steer.drain", "1s").args(&["--on-term", "ignore"]));
    agent.wait_ready(SERVICE, 1);
    let begin = Instant::now();
    deaf.kill("TERM");
    agent.wait_for("it drains", |status| status.service(SERVICE).is_some_and(|service| service.count("ready") == 0));
    agent.wait_ready(SERVICE, 1);
    assert!(begin.elapsed() >= Duration::from_secs(9), "{:?}", begin.elapsed());
    // The cause is written after the state.
    agent.wait_for("it is told why", |status| {
        status.backend("deaf").is_some_and(|deaf| deaf.state == "ready" && deaf.cause == "survived: TERM")
    });
}
