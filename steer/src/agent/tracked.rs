//! What is known of one container, and what follows from it.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use steer_common::backend::BackendState;

use crate::host::listen::is_listening_in;
use crate::host::netns::{Netns, other_ways, reach};
use crate::model::cause::{Cause, Source};
use crate::model::desired::BackendKey;
use crate::model::history::Transition;
use crate::model::lifecycle::{Facts, is_gated_by_listening, next};
use crate::model::swarm::Leaving;
use crate::model::{Candidate, ContainerId, Gate, Health, Reach, Spec, UnixMicros};

/// One run of a container (or one static backend) that is steered to.
pub struct Tracked {
    pub id: ContainerId,
    pub name: String,
    /// The name it had when this run of it was first seen: where no label names its service, that is the service's.
    pub first_name: String,
    /// When this run started, as Docker writes it.
    pub run: String,
    pub spec: Spec,
    pub netns: Netns,
    pub address: IpAddr,
    pub reach: Reach,
    /// Host ends of its other veths.
    pub other_ways: Vec<u32>,
    /// It was joined to a network or taken out of one: the way to it may be another one.
    pub is_moved: bool,
    pub health: Health,
    pub paused: bool,
    pub listening: Option<bool>,
    /// The container's own stop signal.
    pub stop_signal: i32,
    /// How long Docker gives it to stop; `None` = for ever.
    pub stop_timeout: Option<Duration>,
    /// What asked it to stop.
    pub stopping: Option<Stop>,
    /// When its first process ended, since boot.
    pub exited: Option<Duration>,
    /// Which task of the swarm it is; `None` = none.
    pub task: Option<String>,
    /// The swarm wants it to end.
    pub leaving: Option<Leaving>,
    /// Its first process as the host sees it; 0 = none that is known.
    pub pid: i32,
    /// The cgroup that it is in (version 2), if it is in one of its own.
    pub cgroup: Option<u64>,
    /// How many of the kernel's edges are taken into account.
    pub edges: u32,
    /// The signal that it was put back after.
    pub survived: Option<i32>,
    pub maintenance: bool,
    pub put_in: bool,
    /// What it asks for cannot be done any more.
    pub has_problem: bool,
    pub operator_weight: Option<u16>,
    pub flows: u64,
    pub state: BackendState,
    pub cause: Cause,
    pub since: UnixMicros,
    /// When it was first seen: how eagerly it is looked at.
    pub seen: Instant,
}

/// A stop signal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Stop {
    pub signal: i32,
    /// When the last one came, since boot.
    pub at: Duration,
    /// Docker told of it, and the kernel had not.
    pub by_event: bool,
}

impl Tracked {
    /// One that is seen for the first time.
    pub fn new(id: ContainerId, name: String, spec: Spec, netns: Netns, address: IpAddr, reach: Reach) -> Self {
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
            flows: 0,
            state: BackendState::Starting,
            cause: Cause::new(Source::Event, "start"),
            since: super::unix_micros(),
            seen: Instant::now(),
        }
    }

    /// Whether the way to it may be another one than is known.
    pub fn has_moved(&self) -> bool {
        let is_there = || nix::net::if_::if_indextoname(self.reach.ifindex).is_ok();
        let is_as_known = || {
            let reached = reach(&self.netns, Some(self.address)).is_ok_and(|(_, now)| now == self.reach);
            reached && other_ways(&self.netns, &self.reach).is_ok_and(|now| now == self.other_ways)
        };
        (self.is_moved || !is_there()) && !is_as_known()
    }

    /// What [`crate::model::lifecycle`] decides on.
    pub fn facts(&self) -> Facts {
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
    pub fn settle(&mut self) -> Option<Transition> {
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
            (Source::Exit, _) => self.exited.map(super::unix_at),
            (Source::Signal | Source::Event, BackendState::Draining) if !was_stopping => stopped.map(super::unix_at),
            _ => None,
        }
        .unwrap_or_else(super::unix_micros)
    }

    /// What happened to it, being in the state that it is in now.
    pub fn transition(&self, from: BackendState, cause: Cause, at: UnixMicros) -> Transition {
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
    pub fn lasting(&self) -> Duration {
        Duration::from_micros(super::unix_micros().0.saturating_sub(self.since.0))
    }

    /// Whether it is to end, so that its flows are counted down.
    pub fn is_stopping(&self) -> bool {
        self.stopping.is_some() || self.leaving.is_some()
    }

    /// Whether listening decides about it.
    pub fn by_listening(&self) -> bool {
        self.facts().by_listening()
    }

    /// Looks whether every port it serves has a listener.
    pub fn look(&mut self) {
        self.listening = Some(self.spec.ports.iter().all(|port| self.listens(port.target)));
    }

    /// Whether somebody listens on that port of it, now, as far as can be seen.
    pub fn listens(&self, target: u16) -> bool {
        is_listening_in(&self.netns, self.address, target).unwrap_or_else(|error| {
            tracing::debug!(backend = self.name, %error, "looking for listeners failed");
            false
        })
    }

    /// What goes into the kernel with its state.
    pub fn gate(&self) -> Gate {
        Gate { if_listening: is_gated_by_listening(self.state, &self.facts()), edges: self.edges }
    }

    /// What it is in the maps.
    pub fn key(&self) -> BackendKey {
        BackendKey { container: self.id.clone(), netns_cookie: self.reach.netns_cookie }
    }

    /// As [`crate::model::desired`] wants it.
    pub fn candidate(&self) -> Candidate {
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
        }
    }
}
