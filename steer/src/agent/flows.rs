//! What nobody tells: flows that end while their backend stops, and containers that outlive their stop signal.

use std::time::{Duration, Instant};

use steer_common::backend::BackendId;
use steer_common::state::BackendState;

use super::Agent;
use super::takeover::Takeover;
use super::tracked::Tracked;
use crate::dataplane::count::FlowCounts;
use crate::dataplane::detach;
use crate::host::clock::{boot_secs, since_boot};
use crate::model::ContainerId;
use crate::model::lifecycle::{has_survived, patience};
use crate::model::opening::{EAGER, look_again};

/// How often it is looked whether a container that should have ended still listens.
const SURVIVORS: Duration = Duration::from_secs(1);

/// What was seen of flows, and when.
#[derive(Debug, Default)]
pub(super) struct LastLooks {
    opening: Option<(Instant, FlowCounts)>,
    survivors: Option<Instant>,
}

impl Agent {
    /// Counts the flows of who is stopping, and of all when steer is being detached; whether that changed anything.
    pub(super) fn look_at_flows(&mut self) -> bool {
        if self.closing && self.takeover == Takeover::Done {
            let all: Vec<_> =
                self.applied.backends.values().map(|backend| (backend.id, backend.entry.generation)).collect();
            if self.are_without_flows(&all) {
                self.detach();
                return false;
            }
        }
        let mut changed = self.look_at_survivors();
        let mut stopping = Vec::new();
        for tracked in self.tracked.values().filter(|tracked| tracked.is_stopping()) {
            let applied = self.applied.backends.get(&tracked.key());
            let backend = applied.map(|applied| (applied.id, applied.entry.generation));
            stopping.push((tracked.id.clone(), backend, look_again(drained_for(tracked))));
        }
        for (container, backend, again) in stopping {
            // One that is not in the maps has none.
            let flows = match backend {
                Some((id, generation)) => self.flows(id, generation, again),
                None => Some(0),
            };
            if let Some(tracked) = self.tracked.get_mut(&container)
                && flows.is_some()
            {
                tracked.flows = flows;
            }
            changed |= self.settle_changed(&container);
        }
        changed
    }

    fn are_without_flows(&mut self, backends: &[(BackendId, u32)]) -> bool {
        backends.iter().all(|(id, generation)| self.flows(*id, *generation, EAGER) == Some(0))
    }

    /// Live flows, or if there are none, those that are opening, as they were so long ago at most; `None` = cannot be counted.
    fn flows(&mut self, id: BackendId, generation: u32, again: Duration) -> Option<u64> {
        match self.count(id, generation, again) {
            Ok(flows) => Some(flows),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "counting flows failed");
                None
            }
        }
    }

    fn count(&mut self, id: BackendId, generation: u32, again: Duration) -> anyhow::Result<u64> {
        let live = self.maps.live(id)?;
        if live > 0 {
            return Ok(live);
        }
        if self.last_looks.opening.as_ref().is_none_or(|(when, _)| when.elapsed() >= again) {
            let opening = self.maps.opening(boot_secs())?;
            // From its end: what takes long must not take all the time.
            self.last_looks.opening = Some((Instant::now(), opening));
        }
        let opening = self.last_looks.opening.as_ref().and_then(|(_, opening)| opening.get(&(id, generation)));
        // The live ones last: one that became established meanwhile is among them.
        Ok(opening.copied().unwrap_or_default() + self.maps.live(id)?)
    }

    /// Puts back who outlived its stop signal.
    fn look_at_survivors(&mut self) -> bool {
        let now = since_boot();
        let overdue: Vec<ContainerId> = self
            .tracked
            .values()
            .filter(|tracked| self.is_overdue(tracked, now))
            .map(|tracked| tracked.id.clone())
            .collect();
        if overdue.is_empty() || self.last_looks.survivors.is_some_and(|when| when.elapsed() < SURVIVORS) {
            return false;
        }
        self.last_looks.survivors = Some(Instant::now());
        let mut changed = false;
        for id in overdue {
            let patience = self.tracked.get(&id).and_then(|tracked| self.patience(tracked));
            let Some(tracked) = self.tracked.get_mut(&id) else { continue };
            if tracked.by_listening() {
                tracked.look();
            }
            let Some(stop) = tracked.stopping else { continue };
            if has_survived(&tracked.facts(), now.saturating_sub(stop.at), patience) {
                tracked.stopping = None;
                tracked.survived = Some(stop.signal);
                changed |= self.settle_changed(&id);
            }
        }
        changed
    }

    /// Leaves the host, and ends.
    pub(super) fn detach(&mut self) {
        match detach::now(&self.settings.paths) {
            Ok(()) => tracing::info!("detached"),
            Err(error) => tracing::error!(error = format!("{error:#}"), "detaching left something behind"),
        }
        self.done = true;
    }

    /// How long it is waited for the end of one that got its stop signal; `None` = for ever.
    fn patience(&self, tracked: &Tracked) -> Option<Duration> {
        let may_be_swarms = tracked.task.is_some() && !self.is_swarms_will_told();
        patience(tracked.spec.drain, tracked.stop_timeout, may_be_swarms)
    }

    fn is_overdue(&self, tracked: &Tracked, now: Duration) -> bool {
        let over = |patience| tracked.stopping.is_some_and(|stop| now.saturating_sub(stop.at) >= patience);
        self.patience(tracked).is_some_and(over)
    }
}

/// How long a backend has been drained; `None` = it is not.
fn drained_for(tracked: &Tracked) -> Option<Duration> {
    (tracked.state == BackendState::Drained).then(|| tracked.lasting())
}
