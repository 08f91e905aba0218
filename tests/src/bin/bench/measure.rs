//! One measurement: new connections, keep-alive requests, bulk, one after the other, over one way.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use serde::Serialize;
use steer_tests::load::Load;
use steer_tests::netns::Ns;
use steer_tests::report::{Quantiles, Report};

use crate::stop_if_asked;

/// Somebody pressed Ctrl-C.
#[derive(Debug)]
pub(crate) struct Interrupted;

/// How long, and how hard.
#[derive(Clone, Copy, Debug, Serialize)]
pub(crate) struct Plan {
    pub(crate) rounds: u32,
    /// Of each of the three measurements.
    pub(crate) seconds: f64,
    /// Clients of mode `close`, each with one connection at a time, as fast as it goes.
    pub(crate) clients: u16,
    /// Keep-alive requests per second, all clients together: below what the slowest way can do, so that the latency is the
    /// way's and not the queue's.
    pub(crate) keep_alive_rate: u32,
    pub(crate) keep_alive_clients: u16,
    pub(crate) bulk_clients: u16,
    /// Changes of each kind, for the time from event to map.
    pub(crate) changes: u32,
    /// How long the agent is watched while nothing happens.
    pub(crate) idle_seconds: u64,
}

impl Plan {
    pub(crate) const FULL: Self = Self {
        rounds: 5,
        seconds: 4.0,
        clients: 32,
        keep_alive_rate: 4000,
        keep_alive_clients: 16,
        bulk_clients: 4,
        changes: 25,
        idle_seconds: 10,
    };
    pub(crate) const QUICK: Self = Self { rounds: 2, seconds: 1.5, changes: 8, ..Self::FULL };
}

/// What one round saw over one way.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Sample {
    pub(crate) connections_per_second: f64,
    pub(crate) close_ms: Quantiles,
    pub(crate) keep_alive_ms: Quantiles,
    pub(crate) bulk_mib_per_second: f64,
    /// Failed requests of all three.
    pub(crate) failed: u64,
    /// What failed, in words.
    pub(crate) failures: Vec<String>,
}

/// Drives the three loads from the client at these targets, taken in turn.
pub(crate) fn sample(client: &Ns, targets: &[SocketAddr], plan: &Plan) -> Result<Sample, Interrupted> {
    let Plan { seconds, clients, keep_alive_rate, keep_alive_clients, bulk_clients, .. } = plan;
    let run = |words: String| run(client, targets, &format!("--seconds {seconds} {words}"));
    let close = run(format!("--mode close --connections {clients}"))?;
    let keep = run(format!("--mode keepalive --connections {keep_alive_clients} --rate {keep_alive_rate}"))?;
    let bulk = run(format!("--mode bulk --connections {bulk_clients}"))?;
    Ok(Sample {
        connections_per_second: close.requests_per_second,
        close_ms: close.request_ms,
        keep_alive_ms: keep.request_ms,
        bulk_mib_per_second: bulk.mib_per_second,
        failed: close.failed + keep.failed + bulk.failed,
        failures: [close.samples, keep.samples, bulk.samples].concat(),
    })
}

fn run(client: &Ns, targets: &[SocketAddr], words: &str) -> Result<Report, Interrupted> {
    let [first, more @ ..] = targets else { panic!("a way leads somewhere") };
    let more: String = more.iter().map(|target| format!(" --target {target}")).collect();
    let mut load = Load::start(client, *first, &format!("{words}{more}"));
    while !load.is_over() {
        stop_if_asked()?;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(load.finish())
}
