//! Looking through the flow tables: for flows that nobody ended, and for counts that are wrong.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use steer_common::backend::BackendId;

use super::Agent;
use super::tracked::Tracked;
use crate::host::clock::boot_secs;

/// How often, while nobody waits.
const SELDOM: Duration = Duration::from_secs(60);
/// The same while somebody waits for flows to end: a count that is too high would keep them waiting.
pub(super) const OFTEN: Duration = Duration::from_secs(3);

/// What was seen of it so far.
#[derive(Debug, Default)]
pub(super) struct Sweeps {
    last: Option<Instant>,
    /// By how much each backend's live count was wrong then.
    drift: BTreeMap<BackendId, i64>,
}

impl Agent {
    pub(super) fn sweep_if_due(&mut self) {
        let is_waited = |tracked: &Tracked| {
            let live = self.applied.backends.get(&tracked.key()).map(|applied| self.maps.live(applied.id));
            (tracked.is_stopping() || tracked.maintenance) && live.is_some_and(|live| live.is_ok_and(|live| live > 0))
        };
        let is_waited = self.closing || self.tracked.values().any(is_waited);
        let period = if is_waited { OFTEN } else { SELDOM };
        if self.sweeps.last.is_none_or(|last| last.elapsed() >= period) {
            self.sweep();
            // From its end: what takes long must not take all the time.
            self.sweeps.last = Some(Instant::now());
        }
    }

    fn sweep(&mut self) {
        let swept = match self.maps.sweep(boot_secs()) {
            Ok(swept) => swept,
            Err(error) => {
                return tracing::warn!(error = format!("{error:#}"), "looking through the flow tables failed");
            }
        };
        tracing::debug!(flows = swept.forgotten, "forgot flows that never opened, or have ended");
        if swept.removed > 0 {
            tracing::info!(flows = swept.removed, "removed flows that nobody ended");
        }
        let confirmed: BTreeMap<_, _> = swept.confirmed(&self.sweeps.drift).collect();
        self.sweeps.drift = swept.drift;
        for (backend, drift) in confirmed {
            tracing::debug!(backend = backend.0, drift, "live count corrected");
            // What is seen next is seen for the first time.
            self.sweeps.drift.remove(&backend);
            if let Err(error) = self.maps.correct_live(backend, drift) {
                tracing::warn!(error = format!("{error:#}"), "correcting a live count failed");
            }
        }
    }
}
