//! How it went, as the clients saw it.

use std::collections::BTreeMap;
use std::fmt;

use steer_tests::long_lived::Life;
use steer_tests::report::{Failures, Report};

pub(crate) struct Summary {
    /// All loads together.
    pub(crate) total: Report,
    /// Requests by backend.
    pub(crate) split: BTreeMap<String, u64>,
    pub(crate) long: Option<LongLife>,
    /// What else went wrong.
    pub(crate) problems: Vec<String>,
}

/// How the long-lived connection fared.
pub(crate) struct LongLife {
    pub(crate) backend: String,
    /// It ended on another backend than it began on.
    pub(crate) moved: bool,
    pub(crate) life: Life,
}

impl Summary {
    pub(crate) fn is_good(&self) -> bool {
        let Self { total, split: _, long, problems } = self;
        let unharmed = long.as_ref().is_some_and(LongLife::is_unharmed);
        total.requests > 0 && total.failed == 0 && unharmed && problems.is_empty()
    }
}

impl LongLife {
    fn is_unharmed(&self) -> bool {
        !self.moved && self.life.error.is_none() && self.life.exchanged > 0
    }
}

impl fmt::Display for Summary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { total, split, long, problems } = self;
        let Report { requests, failed, failures, connections, seconds, slowest_ms, samples, .. } = total;
        writeln!(f, "\nrequests     {requests} over {connections} connections in {seconds:.1} s")?;
        let Failures { refused, reset, timeout, closed, status, other } = failures;
        writeln!(
            f,
            "failed       {failed} (refused {refused}, reset {reset}, timeout {timeout}, closed {closed}, \
             status {status}, other {other})"
        )?;
        writeln!(f, "slowest      {slowest_ms:.1} ms")?;
        for (index, (backend, count)) in split.iter().enumerate() {
            let head = if index == 0 { "by backend" } else { "" };
            let share = *count as f64 * 100.0 / (*requests).max(1) as f64;
            writeln!(f, "{head:12} {backend:8} {count:>8}  {share:4.1} %")?;
        }
        if let Some(LongLife { backend, life, .. }) = long {
            let fate = match (&life.error, long.as_ref().is_some_and(LongLife::is_unharmed)) {
                (Some(error), _) => format!("broken: {error}"),
                (None, true) => format!("unharmed, slowest echo {:.1} ms", life.slowest.as_secs_f64() * 1e3),
                (None, false) => format!("moved to {}", life.backend.as_deref().unwrap_or("nowhere")),
            };
            writeln!(f, "long-lived   {} bytes there and back on {backend}, {fate}", life.exchanged)?;
        }
        samples.iter().try_for_each(|sample| writeln!(f, "failure      {sample}"))?;
        problems.iter().try_for_each(|problem| writeln!(f, "problem      {problem}"))?;
        writeln!(f, "\ndemo: {}", if self.is_good() { "nothing was lost" } else { "FAILED" })
    }
}
