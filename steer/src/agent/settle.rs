//! The state of a backend follows from what is known of it, and is written at once.

use steer_common::state::BackendState;

use super::Agent;
use crate::model::desired::BackendKey;
use crate::model::plan::Op;
use crate::model::{ContainerId, Gate};

impl Agent {
    /// Moves a backend to the state that follows from what is known, and writes that state at once: the plan that takes care of
    /// the rest comes after it.
    pub(super) fn settle(&mut self, id: &ContainerId) {
        let Some(tracked) = self.tracked.get_mut(id) else { return };
        let (key, gate) = (tracked.key(), tracked.gate());
        let transition = tracked.settle();
        if transition.is_some() || tracked.gate() != gate || self.applied.gate(&key) != Some(gate) {
            let (state, gate) = (tracked.state, tracked.gate());
            self.write_state(&key, state, gate);
        }
        if let Some(transition) = transition {
            self.tell(transition);
        }
    }

    /// The same; whether its state is another one now.
    pub(super) fn settle_changed(&mut self, id: &ContainerId) -> bool {
        let before = self.tracked.get(id).map(|tracked| tracked.state);
        self.settle(id);
        before != self.tracked.get(id).map(|tracked| tracked.state)
    }

    /// Notes that a container stands still, or goes on; whether it is known.
    pub(super) fn set_paused(&mut self, id: &ContainerId, paused: bool) -> bool {
        let Some(tracked) = self.tracked.get_mut(id) else { return false };
        tracked.paused = paused;
        self.settle(id);
        true
    }

    /// The state alone, at once. A backend that is not in the maps yet gets its state with the rest.
    pub(super) fn write_state(&mut self, key: &BackendKey, state: BackendState, gate: Gate) {
        let Some(applied) = self.applied.backends.get(key) else { return };
        let op = Op::SetState { key: key.clone(), id: applied.id, state, gate };
        if let Err(error) = self.apply(&op) {
            // The plan that follows has it again.
            tracing::error!(error = format!("{error:#}"), "writing a backend's state failed");
        }
    }
}
