//! What the `load` program prints with `--json`, written by it and read by the tests.

use std::collections::BTreeMap;
use std::ops::AddAssign;

use serde::{Deserialize, Serialize};

/// The line on standard error that says that a run has begun.
pub const STARTED: &str = "load: started";

/// The result of one run of `load`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Report {
    /// `close`, `keepalive` or `bulk`.
    pub mode: String,
    /// How long the run took.
    pub seconds: f64,
    /// Requests that got a whole answer with status 200.
    pub requests: u64,
    /// The sum of `failures`.
    pub failed: u64,
    pub failures: Failures,
    /// Connections opened.
    pub connections: u64,
    pub requests_per_second: f64,
    /// Bytes of bodies received.
    pub bytes: u64,
    pub mib_per_second: f64,
    /// The slowest request, failed ones included.
    pub slowest_ms: f64,
    /// Requests that took as long as `--stall` says or longer, failed ones included, or waited a second for their connection.
    #[serde(default)]
    pub stalled: u64,
    /// Time to an established connection.
    pub connect_ms: Quantiles,
    /// A whole request: from the SYN where it opens a connection, from the first byte sent otherwise.
    pub request_ms: Quantiles,
    /// Requests per `X-Backend`.
    pub backends: BTreeMap<String, u64>,
    /// When the run began, in seconds since 1970.
    #[serde(default)]
    pub began: f64,
    /// When each of these had answered for the first time, in seconds of the run.
    #[serde(default)]
    pub first_answers: BTreeMap<String, f64>,
    /// Established connections that ended before their answer did (`reset` and `closed`), by the backend that had answered on them
    /// before; without a name where none had.
    #[serde(default)]
    pub broken: BTreeMap<String, u64>,
    /// Connections that clients keep at the time of the report, by the backend that has answered on them.
    #[serde(default)]
    pub kept: BTreeMap<String, u64>,
    /// The first failures in words: second of the run, client address, what happened.
    pub samples: Vec<String>,
}

/// Failed requests by kind.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Failures {
    /// RST in answer to a SYN.
    pub refused: u64,
    /// RST later.
    pub reset: u64,
    /// No answer within the limit.
    pub timeout: u64,
    /// The connection ended before the answer did.
    pub closed: u64,
    /// An answer that is not 200.
    pub status: u64,
    /// Anything else: no route, no port left, not HTTP.
    pub other: u64,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Quantiles {
    pub p50: f64,
    pub p99: f64,
    pub p999: f64,
    pub max: f64,
}

impl AddAssign for Failures {
    fn add_assign(&mut self, other: Self) {
        let Self { refused, reset, timeout, closed, status, other: unknown } = other;
        self.refused += refused;
        self.reset += reset;
        self.timeout += timeout;
        self.closed += closed;
        self.status += status;
        self.other += unknown;
    }
}

impl Failures {
    pub fn total(&self) -> u64 {
        let Self { refused, reset, timeout, closed, status, other } = self;
        refused + reset + timeout + closed + status + other
    }
}
