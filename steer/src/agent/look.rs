//! What has to be looked at because nobody tells: a listener that comes up, a flow that ends.

use std::time::Duration;

use steer_common::state::BackendState;

use super::Agent;
use super::tracked::Tracked;
use crate::model::ContainerId;

impl Agent {
    /// Whether something changes that nobody tells of: a listener that comes up, a flow that ends.
    pub(super) fn has_to_look(&self) -> bool {
        self.closing
            || self.waiting.is_due()
            || self.tracked.values().any(|tracked| waits_for_listener(tracked) || tracked.is_stopping())
    }

    /// Looks; whether anything changed.
    pub(super) fn look(&mut self) -> bool {
        let mut changed = false;
        let waiting: Vec<ContainerId> = self
            .tracked
            .values()
            .filter(|tracked| waits_for_listener(tracked))
            .map(|tracked| tracked.id.clone())
            .collect();
        for id in waiting {
            if let Some(tracked) = self.tracked.get_mut(&id) {
                tracked.look();
            }
            changed |= self.settle_changed(&id);
        }
        changed |= self.look_at_flows();
        self.look_at_waiting();
        self.replay();
        changed
    }

    /// Looks at everybody whom listening decides about: a slow starter that is no longer watched closely, and one that has
    /// stopped to listen.
    pub(super) fn look_at_all(&mut self) {
        let ids: Vec<ContainerId> = self
            .tracked
            .values()
            .filter(|tracked| tracked.by_listening() && tracked.stopping.is_none())
            .map(|tracked| tracked.id.clone())
            .collect();
        for id in ids {
            if let Some(tracked) = self.tracked.get_mut(&id) {
                tracked.look();
            }
            self.settle(&id);
        }
    }
}

/// Whether a backend lacks nothing but its listener: that is looked for every 20 ms in its first two minutes, then at each resync.
fn waits_for_listener(tracked: &Tracked) -> bool {
    const EAGER: Duration = Duration::from_secs(120);
    tracked.by_listening()
        && tracked.stopping.is_none()
        && !tracked.paused
        && !tracked.has_problem
        && matches!(tracked.state, BackendState::Starting | BackendState::Unready)
        && tracked.lasting() < EAGER
}
