//! Counting: histograms, failures by kind, requests per backend, and the report made of them.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use hdrhistogram::Histogram;
use steer_tests::report::{Failures, Quantiles, Report};

use crate::response::Response;

/// Failures that are kept in words.
const MAX_SAMPLES: usize = 20;
/// A connection that took this long was asked for twice: the kernel repeats a SYN after a second, however slow the machine is.
const SYN_REPEATED: Duration = Duration::from_secs(1);
/// Microseconds up to two minutes, three digits.
const LONGEST: u64 = 120_000_000;

/// One thread counts, so a `RefCell` is all the locking there is.
pub(crate) struct Tally {
    /// From here on a request has stalled.
    stall: Duration,
    inner: RefCell<Inner>,
}

struct Inner {
    began: SystemTime,
    started: Instant,
    ended: Option<Instant>,
    connect: Histogram<u64>,
    request: Histogram<u64>,
    connections: u64,
    requests: u64,
    bytes: u64,
    slowest: Duration,
    stalled: u64,
    failures: Failures,
    /// A handful of backends: looking through a list beats hashing.
    backends: Vec<Known>,
    /// Fewer still: by the backend that had answered before.
    broken: Vec<(String, u64)>,
    /// By client: who has answered on the connection that it keeps; empty where it keeps none.
    kept: Vec<String>,
    samples: Vec<String>,
    shown: Shown,
}

/// How long a request took.
#[derive(Clone, Copy)]
pub(crate) struct Took {
    pub(crate) all: Duration,
    /// Of that, until its connection was established; zero where it was open already.
    pub(crate) connecting: Duration,
}

impl Took {
    fn has_stalled(self, stall: Duration) -> bool {
        self.all >= stall || self.connecting >= SYN_REPEATED
    }
}

/// A backend that has answered.
struct Known {
    name: String,
    requests: u64,
    first: Duration,
}

/// What the progress line before this one knew.
struct Shown {
    at: Instant,
    requests: u64,
    failed: u64,
    slowest: Duration,
}

impl Tally {
    pub(crate) fn new(stall: Duration, clients: u16) -> Self {
        let histogram =
            || Histogram::new_with_max(LONGEST, 3).expect("three digits up to two minutes is a valid histogram");
        let started = Instant::now();
        let shown = Shown { at: started, requests: 0, failed: 0, slowest: Duration::ZERO };
        let inner = Inner {
            began: SystemTime::now(),
            started,
            ended: None,
            connect: histogram(),
            request: histogram(),
            connections: 0,
            requests: 0,
            bytes: 0,
            slowest: Duration::ZERO,
            stalled: 0,
            failures: Failures::default(),
            backends: Vec::new(),
            broken: Vec::new(),
            kept: vec![String::new(); clients.into()],
            samples: Vec::new(),
            shown,
        };
        Self { stall, inner: RefCell::new(inner) }
    }

    pub(crate) fn connected(&self, took: Duration) {
        let mut inner = self.inner.borrow_mut();
        inner.connections += 1;
        inner.connect.saturating_record(micros(took));
    }

    pub(crate) fn success(&self, response: &Response, took: Took) {
        let mut inner = self.inner.borrow_mut();
        inner.slow(took, self.stall);
        if response.status != 200 {
            inner.failures.status += 1;
            inner.sample(None, &format!("status {} from {}", response.status, response.backend));
            return;
        }
        inner.requests += 1;
        inner.bytes += response.body;
        inner.request.saturating_record(micros(took.all));
        match inner.backends.iter_mut().find(|known| known.name == response.backend) {
            Some(known) => known.requests += 1,
            None => {
                let first = inner.started.elapsed();
                inner.backends.push(Known { name: response.backend.clone(), requests: 1, first });
            }
        }
    }

    /// `backend`: who has answered on this connection before, if anybody has.
    pub(crate) fn failure(&self, err: &io::Error, backend: &str, local: Option<SocketAddr>, took: Took) {
        let mut inner = self.inner.borrow_mut();
        inner.slow(took, self.stall);
        let Failures { refused, reset, timeout, closed, status: _, other } = &mut inner.failures;
        *match err.kind() {
            ErrorKind::ConnectionRefused => refused,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => reset,
            ErrorKind::TimedOut => timeout,
            ErrorKind::UnexpectedEof => closed,
            _ => other,
        } += 1;
        if had_begun(err.kind()) {
            match inner.broken.iter_mut().find(|(name, _)| name == backend) {
                Some((_, count)) => *count += 1,
                None => inner.broken.push((backend.to_owned(), 1)),
            }
        }
        inner.sample(local, &format!("{err} after {:.1} ms", millis(took.all)));
    }

    /// The backend to which a client keeps its connection, if it does, until it says otherwise.
    pub(crate) fn keeps(&self, client: u16, backend: Option<&String>) {
        let place = &mut self.inner.borrow_mut().kept[usize::from(client)];
        match backend {
            // No allocation in the long run.
            Some(backend) => place.clone_from(backend),
            None => place.clear(),
        }
    }

    /// Stops the clock.
    pub(crate) fn end(&self) {
        self.inner.borrow_mut().ended = Some(Instant::now());
    }

    pub(crate) fn print_progress(&self) {
        let mut inner = self.inner.borrow_mut();
        let now = Instant::now();
        let (failed, since) = (inner.failures.total(), now.duration_since(inner.shown.at).as_secs_f64());
        let rate = (inner.requests - inner.shown.requests) as f64 / since;
        eprintln!(
            "{:4.0} s {rate:8.0} req/s {:6} failed, slowest {:.1} ms, {} backends",
            now.duration_since(inner.started).as_secs_f64(),
            failed - inner.shown.failed,
            millis(inner.shown.slowest),
            inner.backends.len()
        );
        inner.shown = Shown { at: now, requests: inner.requests, failed, slowest: Duration::ZERO };
    }

    pub(crate) fn report(&self, mode: &str) -> Report {
        let inner = self.inner.borrow();
        let seconds = inner.ended.unwrap_or_else(Instant::now).duration_since(inner.started).as_secs_f64();
        let mut kept = BTreeMap::new();
        for backend in inner.kept.iter().filter(|backend| !backend.is_empty()) {
            *kept.entry(backend.clone()).or_default() += 1;
        }
        let first_answers = inner.backends.iter().map(|known| (known.name.clone(), known.first.as_secs_f64()));
        Report {
            mode: mode.to_owned(),
            seconds,
            requests: inner.requests,
            failed: inner.failures.total(),
            failures: inner.failures.clone(),
            connections: inner.connections,
            requests_per_second: inner.requests as f64 / seconds,
            bytes: inner.bytes,
            mib_per_second: inner.bytes as f64 / f64::from(1 << 20) / seconds,
            slowest_ms: millis(inner.slowest),
            stalled: inner.stalled,
            connect_ms: quantiles(&inner.connect),
            request_ms: quantiles(&inner.request),
            backends: inner.backends.iter().map(|known| (known.name.clone(), known.requests)).collect(),
            began: inner.began.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64(),
            first_answers: first_answers.collect(),
            broken: inner.broken.iter().cloned().collect(),
            kept,
            samples: inner.samples.clone(),
        }
    }
}

impl Inner {
    fn slow(&mut self, took: Took, stall: Duration) {
        self.slowest = self.slowest.max(took.all);
        self.stalled += u64::from(took.has_stalled(stall));
        self.shown.slowest = self.shown.slowest.max(took.all);
    }

    fn sample(&mut self, local: Option<SocketAddr>, words: &str) {
        if self.samples.len() < MAX_SAMPLES {
            let client = local.map(|local| format!("{local}: ")).unwrap_or_default();
            self.samples.push(format!("{:.3} s: {client}{words}", self.started.elapsed().as_secs_f64()));
        }
    }
}

/// The connection was established, and ended before its answer did.
fn had_begun(kind: ErrorKind) -> bool {
    use ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
    matches!(kind, ConnectionReset | ConnectionAborted | BrokenPipe | UnexpectedEof)
}

fn micros(took: Duration) -> u64 {
    u64::try_from(took.as_micros()).unwrap_or(u64::MAX)
}

fn millis(took: Duration) -> f64 {
    took.as_secs_f64() * 1e3
}

fn quantiles(histogram: &Histogram<u64>) -> Quantiles {
    let at = |quantile| histogram.value_at_quantile(quantile) as f64 / 1e3;
    Quantiles { p50: at(0.5), p99: at(0.99), p999: at(0.999), max: histogram.max() as f64 / 1e3 }
}

/// The report for a person.
pub(crate) fn text(report: &Report) -> String {
    let Report { mode, seconds, requests, failed, failures, connections, requests_per_second, .. } = report;
    let mut out = String::new();
    let mut line = |words: String| out.extend([words.as_str(), "\n"]);
    line(format!(
        "{requests} requests over {connections} connections in {seconds:.1} s, mode {mode}: \
         {requests_per_second:.0} per second"
    ));
    if report.mode == "bulk" {
        line(format!("{:.0} MiB/s", report.mib_per_second));
    }
    line(format!("{failed} failed, slowest {:.1} ms, {} stalled", report.slowest_ms, report.stalled));
    if *failed > 0 {
        line(format!("  {failures:?}"));
        report.samples.iter().for_each(|sample| line(format!("  {sample}")));
    }
    for (what, q) in [("connect", report.connect_ms), ("request", report.request_ms)] {
        line(format!("{what:8} p50 {:.2} ms  p99 {:.2} ms  p99.9 {:.2} ms  max {:.2} ms", q.p50, q.p99, q.p999, q.max));
    }
    for (backend, count) in &report.backends {
        line(format!("{backend:20} {count:8}  {:.1} %", *count as f64 * 100.0 / (*requests).max(1) as f64));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_stalls_once_by_itself_or_by_its_connection() {
        let tally = Tally::new(Duration::from_secs(4), 1);
        let response = Response { status: 200, backend: "web-1".to_owned(), body: 7, stays: true };
        // The connection was open; it was opened; its SYN was lost; that and a slow answer; given up while it connected.
        for (all, connecting) in [(3900, 0), (900, 800), (1100, 1050), (5000, 1050)] {
            let [all, connecting] = [all, connecting].map(Duration::from_millis);
            tally.success(&response, Took { all, connecting });
        }
        let given_up = Took { all: Duration::from_secs(10), connecting: Duration::ZERO };
        tally.failure(&ErrorKind::TimedOut.into(), "", None, given_up);
        let report = tally.report("keepalive");
        assert_eq!((report.requests, report.failures.timeout, report.stalled), (4, 1, 3));
        assert_eq!(report.slowest_ms, 10_000.0);
    }
}
