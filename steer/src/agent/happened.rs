//! What is told of backends: every transition, for whoever asks or follows, and who told first of a stop.

use std::time::Duration;

use steer_common::edge::EdgeEntry;
use steer_common::state::BackendState;
use tokio::sync::watch;

use super::Agent;
use super::tracked::{Stop, Tracked};
use crate::host::clock::{unix_at, unix_now};
use crate::model::ContainerId;
use crate::model::cause::Cause;
use crate::model::history::{History, Transition, refused};
use crate::model::lifecycle::stop_cause;
use crate::model::stops::{InitEvent, is_new};

impl Agent {
    /// What has happened, for the socket: read there, with no question to the loop.
    pub fn history(&self) -> watch::Receiver<History> {
        self.history.subscribe()
    }

    pub(super) fn tell(&self, transition: Transition) {
        self.history.send_modify(|history| history.push(transition));
    }

    /// A backend that was not there before, in its first state.
    pub(super) fn tell_of_new(&self, tracked: &Tracked) {
        self.tell(tracked.transition(BackendState::Gone, tracked.cause.clone(), tracked.since));
    }

    /// A backend that is there no more.
    pub(super) fn tell_of_gone(&mut self, tracked: &Tracked, cause: Cause) {
        self.stops.forget(&tracked.id);
        self.refusals.forget(&tracked.id);
        if tracked.state != BackendState::Gone {
            let gone = tracked.transition(tracked.state, cause, unix_now());
            self.tell(Transition { to: BackendState::Gone, ..gone });
        }
    }

    /// Takes in what the kernel saw, told by the ring or read from the table; a backend goes where that leads.
    pub(super) fn take_edge(&mut self, id: &ContainerId, edge: &EdgeEntry) {
        let Some(tracked) = self.tracked.get_mut(id) else { return };
        let at = Duration::from_nanos(edge.at_ns);
        let Some(seen) = InitEvent::of(edge) else {
            if edge.count > 0 {
                tracing::warn!(
                    backend = tracked.name,
                    kind = edge.kind,
                    "the kernel tells of an edge that is not known"
                );
            }
            return;
        };
        let corrects = match seen {
            InitEvent::Signal(signal) => self.stops.seen(id, signal, at),
            InitEvent::End => false,
        };
        let is_new = is_new(edge, tracked.edges);
        let was_stopping = tracked.stopping.is_some();
        tracked.take_in(edge);
        self.settle(id);
        let (Some(tracked), InitEvent::Signal(signal)) = (self.tracked.get_mut(id), seen) else { return };
        if corrects {
            tracked.correct(signal, at);
        }
        // The first one has made a transition, any other is told as well.
        if corrects || (is_new && was_stopping) {
            let again = tracked.transition(tracked.state, stop_cause(signal, false), unix_at(at));
            self.tell(again);
        }
    }

    /// Docker's event of a stop signal arrived, so long after boot.
    pub(super) fn take_kill(&mut self, id: &ContainerId, signal: i32, arrived: Duration) {
        if self.stops.told(id, signal, arrived).is_some() {
            // The kernel has told already, and the state has followed.
            return self.settle(id);
        }
        let Some(tracked) = self.tracked.get_mut(id) else { return };
        let was_stopping = tracked.stopping.is_some();
        tracked.stopping = Some(Stop { signal, at: arrived, by_event: true });
        self.settle(id);
        if was_stopping && let Some(tracked) = self.tracked.get(id) {
            self.tell(tracked.transition(tracked.state, stop_cause(signal, true), unix_at(arrived)));
        }
    }

    /// A backend refused a connection.
    pub(super) fn take_refusal(&mut self, id: &ContainerId, at: Duration) {
        let at = unix_at(at);
        if self.refusals.refused(id, at) {
            self.tell_of_refusals(id, 1, at);
        }
    }

    /// Refused connections of a second that is over.
    pub(super) fn tell_refusals(&mut self) {
        for (id, count, at) in self.refusals.due(unix_now()) {
            self.tell_of_refusals(&id, count, at);
        }
    }

    fn tell_of_refusals(&self, id: &ContainerId, count: u64, at: crate::model::UnixMicros) {
        if let Some(tracked) = self.tracked.get(id) {
            self.tell(Transition { count, ..tracked.transition(tracked.state, refused(), at) });
        }
    }
}

impl Tracked {
    /// Takes in what the kernel saw, if it is more than what is known so far.
    pub(super) fn take_in(&mut self, edge: &EdgeEntry) {
        if !is_new(edge, self.edges) {
            return;
        }
        self.edges = edge.count as u32;
        let at = Duration::from_nanos(edge.at_ns);
        match InitEvent::of(edge) {
            Some(InitEvent::Signal(signal)) => self.stopping = Some(Stop { signal, at, by_event: false }),
            Some(InitEvent::End) => self.exited = Some(at),
            None => {}
        }
    }

    /// The kernel saw a signal before the event that was taken for the first to tell of it.
    fn correct(&mut self, signal: i32, at: Duration) {
        if let Some(stop) = &mut self.stopping
            && stop.signal == signal
        {
            *stop = Stop { signal, at, by_event: false };
        }
        if self.cause == stop_cause(signal, true) {
            self.cause = stop_cause(signal, false);
            self.since = unix_at(at);
        }
    }
}
