//! What is known of one container, and what follows from it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use steer_common::state::BackendState;

use crate::host::clock::{unix_at, unix_now};
use crate::host::listen::is_listening_in;
use crate::host::netns::{Netns, other_ways, reach};
use crate::model::cause::{Cause, Source};
use crate::model::desired::BackendKey;
use crate::model::history::Transition;
use crate::model::lifecycle::{Facts, is_gated_by_listening, next};
use crate::model::swarm::Leaving;
use crate::model::{Candidate, ContainerId, Gate, Health, Reach, Spec, UnixMicros};

/// One run of a container (or one static backend) that is steered to.
pub(super) struct Tracked {
    pub(super) id: ContainerId,
    pub(super) name: String,
    /// The name it had when this run of it was first seen: where no label names its service, that is the service's.
    pub(super) first_name: String,
    /// When this run started, as Docker writes it.
    pub(super) run: String,
    pub(super) spec: Spec,
    pub(super) netns: Netns,
    pub(super) address: IpAddr,
    pub(super) reach: Reach,
    /// Host ends of its other veths.
    pub(super) other_ways: Vec<u32>,
    /// It was joined to a network or taken out of one: the way to it may be another one.
    pub(super) is_moved: bool,
    pub(super) health: Health,
    pub(super) paused: bool,
    pub(super) listening: Option<bool>,
    /// The container's own stop signal.
    pub(super) stop_signal: i32,
    /// How long Docker gives it to stop; `None` = for ever.
    pub(super) stop_timeout: Option<Duration>,
    /// What asked it to stop.
    pub(super) stopping: Option<Stop>,
    /// When its first process ended, since boot.
    pub(super) exited: Option<Duration>,
    /// Which task of the swarm it is; `None` = none.
    pub(super) task: Option<String>,
    /// The swarm wants it to end.
    pub(super) leaving: Option<Leaving>,
    /// Its first process as the host sees it; 0 = none that is known.
    pub(super) pid: i32,
    /// The cgroup that it is in (version 2), if it is in one of its own.
    pub(super) cgroup: Option<u64>,
    /// How many of the kernel's edges are taken into account.
    pub(super) edges: u32,
    /// The signal that it was put back after.
    pub(super) survived: Option<i32>,
    pub(super) maintenance: bool,
    pub(super) put_in: bool,
    /// What it asks for cannot be done any more.
    pub(super) has_problem: bool,
    pub(super) operator_weight: Option<u16>,
    /// As counted last since it began to drain; `None` = not yet.
    pub(super) flows: Option<u64>,
    pub(super) state: BackendState,
    pub(super) cause: Cause,
    pub(super) since: UnixMicros,
    /// When it was first seen: how eagerly it is looked at.
    pub(super) seen: Instant,
}

/// A stop signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Stop {
    pub(super) signal: i32,
    /// When the last one came, since boot.
    pub(super) at: Duration,
    /// Docker told of it, and the kernel had not.
    pub(super) by_event: bool,
}

impl Tracked {
    /// One that is seen for the first time.
    pub(super) fn new(id: ContainerId, name: String, spec: Spec, netns: Netns, address: IpAddr, reach: Reach) -> Self {
        Self {
            first_name: name.clone(),
            id,
            name,
            run: String::new(),
            spec,
            netns,
            address,
            reach,
            other_ways: Vec::new(),
            is_moved: false,
            health: Health::None,
            paused: false,
            listening: None,
            stop_signal: 0,
            stop_timeout: None,
            stopping: None,
            exited: None,
            task: None,
            leaving: None,
            pid: 0,
            cgroup: None,
            edges: 0,
            survived: None,
            maintenance: false,
            put_in: false,
            has_problem: false,
            operator_weight: None,
            flows: None,
            state: BackendState::Starting,
            cause: Cause::new(Source::Event, "start"),
            since: unix_now(),
            seen: Instant::now(),
        }
    }

    /// Whether the way to it may be another one than is known.
    pub(super) fn has_moved(&self) -> bool {
        let is_as_known = || {
            let reached = reach(&self.netns, Some(self.address)).is_ok_and(|(_, now)| now == self.reach);
            reached && other_ways(&self.netns, &self.reach).is_ok_and(|now| now == self.other_ways)
        };
        (self.is_moved || !self.has_way()) && !is_as_known()
    }

    /// Whether the interface that leads to it is there.
    pub(super) fn has_way(&self) -> bool {
        nix::net::if_::if_indextoname(self.reach.ifindex).is_ok()
    }

    /// What [`crate::model::lifecycle`] decides on.
    pub(super) fn facts(&self) -> Facts {
        Facts {
            policy: self.spec.ready,
            health: self.health,
            listening: self.listening,
            paused: self.paused,
            stop_signal: self.stopping.map(|stop| stop.signal),
            stop_by_event: self.stopping.is_some_and(|stop| stop.by_event),
            exited: self.exited.is_some(),
            survived: self.survived,
            leaving: self.leaving,
            maintenance: self.maintenance,
            put_in: self.put_in,
            has_problem: self.has_problem,
            by: Some(self.cause.source),
            flows: self.flows,
        }
    }

    /// Moves to the state that follows from the facts; what changed, if anything did.
    pub(super) fn settle(&mut self) -> Option<Transition> {
        let (state, cause) = next(self.state, &self.facts());
        if state == self.state {
            return None;
        }
        tracing::info!(
            backend = self.name,
            service = self.spec.service,
            from = self.state.name(),
            to = state.name(),
            cause = cause.text,
            "backend changes"
        );
        let from = self.state;
        self.since = self.happened(from, state, cause.source);
        self.state = state;
        self.cause = cause;
        if state == BackendState::Draining && from != BackendState::Drained {
            self.flows = None;
        }
        if state != BackendState::Ready {
            self.survived = None;
        }
        Some(self.transition(from, self.cause.clone(), self.since))
    }

    /// When it changed: for what the kernel saw, when it saw it. That a backend has drained is nobody's signal.
    fn happened(&self, from: BackendState, to: BackendState, source: Source) -> UnixMicros {
        let was_stopping = matches!(from, BackendState::Draining | BackendState::Drained);
        let stopped = self.stopping.map(|stop| stop.at);
        match (source, to) {
            (Source::Exit, _) => self.exited.map(unix_at),
            (Source::Signal | Source::Event, BackendState::Draining) if !was_stopping => stopped.map(unix_at),
            _ => None,
        }
        .unwrap_or_else(unix_now)
    }

    /// What happened to it, being in the state that it is in now.
    pub(super) fn transition(&self, from: BackendState, cause: Cause, at: UnixMicros) -> Transition {
        Transition {
            at,
            service: self.spec.service.clone(),
            backend: self.name.clone(),
            container: self.id.clone(),
            from,
            to: self.state,
            cause,
            count: 1,
        }
    }

    /// How long it has been in its state.
    pub(super) fn lasting(&self) -> Duration {
        Duration::from_micros(unix_now().0.saturating_sub(self.since.0))
    }

    /// Whether it is to end, so that its flows are counted down.
    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.is_some() || self.leaving.is_some()
    }

    /// Whether listening decides about it.
    pub(super) fn by_listening(&self) -> bool {
        self.facts().by_listening()
    }

    /// Looks whether every port it serves has a listener.
    pub(super) fn look(&mut self) {
        self.listening = Some(self.spec.ports.iter().all(|port| self.listens(port.target)));
    }

    /// Whether somebody listens on that port of it, now, as far as can be seen.
    pub(super) fn listens(&self, target: u16) -> bool {
        is_listening_in(&self.netns, self.address, target).unwrap_or_else(|error| {
            tracing::debug!(backend = self.name, %error, "looking for listeners failed");
            false
        })
    }

    /// What goes into the kernel with its state.
    pub(super) fn gate(&self) -> Gate {
        Gate { if_listening: is_gated_by_listening(self.state, &self.facts()), edges: self.edges }
    }

    /// What it is in the maps.
    pub(super) fn key(&self) -> BackendKey {
        BackendKey { container: self.id.clone(), netns_cookie: self.reach.netns_cookie }
    }

    /// As [`crate::model::desired`] wants it.
    pub(super) fn candidate(&self) -> Candidate {
        Candidate {
            id: self.id.clone(),
            run: self.run.clone(),
            name: self.name.clone(),
            spec: self.spec.clone(),
            address: self.address,
            reach: self.reach,
            other_ways: self.other_ways.clone(),
            state: self.state,
            gate: self.gate(),
            cause: self.cause.text.clone(),
            since: self.since,
            operator_weight: self.operator_weight,
            maintenance: self.maintenance,
            put_in: self.put_in,
        }
    }
}
