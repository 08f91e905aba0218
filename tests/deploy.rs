//! A rolling deploy under `ab`: the service scales down and up, every replica is replaced, and nobody notices.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use steer_tests::agent::{Agent, Attach};
use steer_tests::docker::{Container, ContainerSpec, Docker};
use steer_tests::load::{Ab, AbReport};
use steer_tests::skip::{self, Need};
use steer_tests::world::HOST;
use steer_tests::{World, wait_until};

const SERVICE: &str = "greeter";
const REPLICAS: usize = 6;
/// A run of `ab`, as the users of a balancer test it: one client address, so client ports are used again and again.
const KEEP_ALIVE: &str = "-c 40 -n 20000 -l -k";
const CLOSE: &str = "-c 40 -n 20000 -l";

fn replica(name: &str, version: &str, leave: Leave) -> ContainerSpec {
    ContainerSpec::greeter(name)
        .version(version)
        .label("steer.port", "9000:5000")
        .label("steer.service", SERVICE)
        .args(leave.arguments())
        .healthcheck()
}

/// Runs of `ab`, one after the other, until it is told to stop.
struct Traffic {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<AbReport>>,
}

impl Traffic {
    fn start(world: &World, words: &'static str) -> Self {
        let (client, stop) = (world.client.clone(), Arc::new(AtomicBool::new(false)));
        let stopped = stop.clone();
        let runs = move || {
            let mut reports = Vec::new();
            while !stopped.load(Ordering::Relaxed) {
                let report = Ab::start(&client, SocketAddr::from((HOST, 9000)), words).finish();
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
    *complete != 20_000 || *failed > 0 || *non_2xx > 0 || *longest_ms >= 1000
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
    /// Of the greeter. Docker tells of a stop signal after it was delivered: who listens for half a second more still answers
    /// the connections that come until steer has heard of it.
    fn arguments(self) -> &'static [&'static str] {
        match self {
            Self::Drained => &[],
            Self::Stopped => &["--close-after", "0.5"],
        }
    }

    #[track_caller]
    fn go(self, agent: &Agent, container: &Container) {
        if let Self::Drained = self {
            // With keep-alive the last connection ends with the run of ab that it began in.
            agent.steer_ok(&["drain", &container.name, "--wait", "--timeout", "30s"]);
        }
        container.stop(None);
    }
}

fn deploy(attach: Attach, words: &'static str, leave: Leave) {
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

    let traffic = Traffic::start(&world, words);
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
        "{}: {} runs of ab {words}, {total} requests, slowest {slowest} ms, {rate:.0}/s, {:.1} s\n{status}",
        attach.word(),
        runs.len(),
        begin.elapsed().as_secs_f64()
    );
}

#[test]
fn a_rolling_deploy_under_ab_loses_nothing_over_tc() {
    deploy(Attach::Tc, CLOSE, Leave::Drained);
}

#[test]
fn a_rolling_deploy_under_ab_loses_nothing_over_xdp() {
    deploy(Attach::Xdp, CLOSE, Leave::Drained);
}

#[test]
fn a_rolling_deploy_under_ab_with_keep_alive_loses_nothing_over_tc() {
    deploy(Attach::Tc, KEEP_ALIVE, Leave::Drained);
}

#[test]
fn a_rolling_deploy_under_ab_with_keep_alive_loses_nothing_over_xdp() {
    deploy(Attach::Xdp, KEEP_ALIVE, Leave::Drained);
}

#[test]
fn docker_stop_alone_of_replicas_that_leave_in_order_loses_nothing_over_tc() {
    deploy(Attach::Tc, CLOSE, Leave::Stopped);
}

#[test]
fn docker_stop_alone_of_replicas_that_leave_in_order_loses_nothing_over_xdp() {
    deploy(Attach::Xdp, CLOSE, Leave::Stopped);
}

#[test]
fn docker_stop_alone_of_replicas_that_end_kept_connections_in_order_loses_nothing_over_tc() {
    deploy(Attach::Tc, KEEP_ALIVE, Leave::Stopped);
}

#[test]
fn docker_stop_alone_of_replicas_that_end_kept_connections_in_order_loses_nothing_over_xdp() {
    deploy(Attach::Xdp, KEEP_ALIVE, Leave::Stopped);
}
