//! From what was seen of a run to what people are told: pure.

use serde::Serialize;
use steer_common::backend::BackendId;
use steer_common::pick::Fit;
use steer_common::state::BackendState;
use steer_common::verdict::Counter;

use crate::commands::report;
use crate::dataplane::explain::{Action, Question, Run, WayIn};
use crate::dataplane::read::{BackendView, FlowView, ServiceView, Snapshot};
use crate::model::UnixMicros;

/// Where a packet would go, and why.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Explanation {
    client: String,
    frontend: String,
    /// `syn` or `ack`.
    packet: &'static str,
    interface: String,
    /// The program that was asked: `xdp` or `tc`.
    hook: &'static str,
    /// Whether that program is attached at the interface: if not, no packet meets it.
    attached: bool,
    /// XDP passed the packet on to tc, whose verdict this is.
    left_to_tc: bool,
    /// The client is this host itself, whose connections are steered at connect and not as packets.
    client_is_this_host: bool,
    /// `null`: not for a frontend.
    service: Option<String>,
    balance: Option<&'static str>,
    /// How many backends the service has.
    backends: usize,
    /// A frontend for this host's own sockets only, which no packet can reach.
    loopback: bool,
    /// This host's frontends with the same port, where the packet is for none.
    other_frontends: Vec<Other>,
    /// The flow that the packet belongs to, as it was before.
    flow: Option<Flow>,
    /// Flows of the same client port to other frontends of the service.
    other_flows: Vec<Flow>,
    /// The service's backends: those that were asked first, in their order.
    candidates: Vec<Candidate>,
    outcome: Outcome,
    /// Name of the counter that would have gone up.
    reason: &'static str,
    why: String,
    /// The backend the packet goes to.
    backend: Option<String>,
    address: Option<String>,
    /// Where no backend was found.
    none_ready: Option<NoneReady>,
}

/// A frontend.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
struct Other {
    frontend: String,
    service: String,
}

/// A flow.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
struct Flow {
    frontend: String,
    /// `null`: it is gone, or the routing mesh has the flow.
    backend: Option<String>,
    mesh: bool,
    /// State of that backend.
    backend_state: Option<&'static str>,
    state: &'static str,
    idle_seconds: u64,
    table: &'static str,
    lane: u8,
}

/// A backend of the service.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
struct Candidate {
    backend: String,
    container: Option<String>,
    address: Option<String>,
    /// `null`: it does not serve this frontend.
    port: Option<u16>,
    /// How it suits; `null`: it was not asked.
    fit: Option<&'static str>,
    state: Option<&'static str>,
    cause: Option<String>,
    /// When the state changed, RFC 3339.
    since: Option<String>,
    taken: bool,
    #[serde(skip)]
    words: String,
}

/// What becomes of the packet.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "kebab-case")]
enum Outcome {
    Forward,
    Hold,
    Drop,
    Reset,
    Pass,
}

/// New flows to the port find no backend.
#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
struct NoneReady {
    for_seconds: u64,
    /// How long new flows may wait.
    hold_seconds: u64,
    /// How long they wait from now on, if nobody gets ready.
    left_seconds: u64,
}

impl Explanation {
    pub(super) fn of(question: &Question, way_in: &WayIn, run: &Run, snapshot: &Snapshot, now: UnixMicros) -> Self {
        let id = run.frontend.as_ref().filter(|frontend| !frontend.loopback).map(|frontend| frontend.service);
        let service = id.and_then(|id| snapshot.services.iter().find(|service| service.id == id));
        let outcome = outcome(run.action, run.reason);
        let target = |id| run.frontend.as_ref().and_then(|frontend| *frontend.targets.get(&id)?);
        let taken = match outcome {
            Outcome::Forward => run.backend.or_else(|| at(run, service, target)),
            _ => None,
        };
        let (own, others): (Vec<_>, Vec<_>) =
            run.flows.iter().partition(|flow| flow.frontend == question.frontend.into());
        let name = |id: BackendId| snapshot.backend(id).map_or_else(|| format!("#{}", id.0), |(_, b)| b.name.clone());
        Self {
            client: question.client.to_string(),
            frontend: question.frontend.to_string(),
            packet: if question.ack { "ack" } else { "syn" },
            interface: way_in.interface.name.clone(),
            hook: way_in.hook.name(),
            attached: way_in.is_attached,
            left_to_tc: run.left_to_tc,
            client_is_this_host: way_in.is_own,
            service: id.map(|id| service.map_or_else(|| format!("#{}", id.0), |service| service.name.clone())),
            balance: service.map(|service| service.balance.name()),
            backends: service.map_or(0, |service| service.backends.len()),
            loopback: run.frontend.as_ref().is_some_and(|frontend| frontend.loopback),
            other_frontends: run.others.iter().map(|(frontend, id)| other(frontend, *id, snapshot)).collect(),
            flow: own.first().map(|view| flow(view, snapshot)),
            other_flows: others.into_iter().filter(|view| view.is_current()).map(|view| flow(view, snapshot)).collect(),
            candidates: candidates(run, service, target, taken, now),
            outcome,
            reason: run.reason.name(),
            why: why(run),
            backend: taken.map(name),
            address: (outcome == Outcome::Forward).then(|| run.destination.to_string()),
            none_ready: none_ready(outcome, run, service),
        }
    }

    pub(super) fn text(&self) -> String {
        let mut lines = Vec::new();
        let packet = if self.packet == "syn" { "SYN" } else { "ACK" };
        let then = if self.left_to_tc && self.hook == "xdp" { ", which leaves it to tc," } else { "" };
        lines.push(format!(
            "{} → {} ({packet}, by {}{then} at {})",
            self.client, self.frontend, self.hook, self.interface
        ));
        if !self.attached {
            lines.push(format!("{} is not attached at {}: this is what it would do", self.hook, self.interface));
        }
        if self.client_is_this_host {
            lines.push("the client is this host itself: its connections are steered at connect, not as packets".into());
        }
        match (&self.service, self.balance) {
            (Some(service), Some(balance)) => lines.push(format!(
                "frontend {} of service {service}, balance {balance}, {}",
                self.frontend,
                report::count(self.backends as u64, "backend")
            )),
            (Some(service), None) => lines.push(format!("frontend {} of service {service}", self.frontend)),
            (None, _) => lines.push(self.no_frontend()),
        }
        lines.extend(self.flow.iter().map(|flow| format!("known flow: {}", flow.words())));
        let others = self.other_flows.iter();
        lines.extend(others.map(|flow| format!("the same client port to {}: {}", flow.frontend, flow.words())));
        if self.candidates.iter().any(|candidate| candidate.fit.is_some()) {
            lines.extend(table(&self.candidates));
        }
        lines.push(self.verdict());
        lines.join("\n") + "\n"
    }

    fn no_frontend(&self) -> String {
        let Self { frontend, other_frontends, .. } = self;
        if self.loopback {
            return format!("{frontend} is a frontend for this host's own sockets only");
        }
        let port = frontend.rsplit(':').next().unwrap_or_default();
        if other_frontends.is_empty() {
            return format!("{frontend} is no frontend, and none has port {port}");
        }
        let others: Vec<_> =
            other_frontends.iter().map(|other| format!("{} ({})", other.frontend, other.service)).collect();
        format!("{frontend} is no frontend; with port {port} there are: {}", others.join(", "))
    }

    fn verdict(&self) -> String {
        let Self { backend, address, reason, why, none_ready, .. } = self;
        let because = format!("{reason} ({why})");
        let (backend, address) = (backend.as_deref().unwrap_or("?"), address.as_deref().unwrap_or("?"));
        match (self.outcome, none_ready) {
            (Outcome::Forward, _) => format!("goes to {backend} {address}: {because}"),
            (Outcome::Hold, Some(none)) => format!(
                "held, for another {} at most: {because}; nobody has been ready for {}",
                report::span(none.left_seconds),
                report::span(none.for_seconds)
            ),
            (Outcome::Hold, None) => format!("held: {because}"),
            (Outcome::Reset, Some(none)) => format!(
                "answered with a reset: {because}; nobody has been ready for {}, a new flow is held for {}",
                report::span(none.for_seconds),
                report::span(none.hold_seconds)
            ),
            (Outcome::Reset, None) => format!("answered with a reset: {because}"),
            (Outcome::Drop, _) => format!("dropped: {because}"),
            (Outcome::Pass, _) => format!("passed on to the host, untouched: {because}"),
        }
    }
}

impl Flow {
    fn words(&self) -> String {
        let Self { backend, mesh, backend_state, state, idle_seconds, .. } = self;
        let idle = report::span(*idle_seconds);
        match (backend, backend_state) {
            (Some(backend), Some(backend_state)) => format!("on {backend} ({backend_state}), {state}, idle {idle}"),
            _ if *mesh => format!("the routing mesh has it, {state}, idle {idle}"),
            _ => format!("its backend is gone, {state}, idle {idle}"),
        }
    }
}

fn outcome(action: Action, reason: Counter) -> Outcome {
    match (action, reason) {
        (Action::Pass, _) => Outcome::Pass,
        (Action::Drop, Counter::DropHold | Counter::DropRefused) => Outcome::Hold,
        (Action::Drop, _) => Outcome::Drop,
        (Action::Redirect, Counter::ResetNoBackend | Counter::ResetGone) => Outcome::Reset,
        (Action::Redirect, _) => Outcome::Forward,
    }
}

/// What the counter's own help says behind its verdict.
fn why(run: &Run) -> String {
    let help = run.reason.help().trim();
    let why = help.split_once(": ").map_or(help, |(_, why)| why).trim_end_matches('.');
    if run.reason == Counter::PassNoFlow && run.is_foreign {
        return "open before steer attached, by way of Docker's own port mapping".into();
    }
    if run.reason == Counter::PassNotFrontend && run.frontend.as_ref().is_some_and(|frontend| frontend.loopback) {
        return "a loopback address: only this host's own sockets may use it".into();
    }
    why.into()
}

/// The backend that the packet was addressed to in the end.
fn at(run: &Run, service: Option<&ServiceView>, target: impl Fn(BackendId) -> Option<u16>) -> Option<BackendId> {
    let is_there = |backend: &&BackendView| {
        backend.address == *run.destination.ip() && target(backend.id) == Some(run.destination.port())
    };
    service?.backends.iter().find(is_there).map(|backend| backend.id)
}

fn other(frontend: &std::net::SocketAddrV4, id: steer_common::service::ServiceId, snapshot: &Snapshot) -> Other {
    let service = snapshot.services.iter().find(|service| service.id == id);
    let service = service.map_or_else(|| format!("#{}", id.0), |service| service.name.clone());
    Other { frontend: frontend.to_string(), service }
}

fn flow(view: &FlowView, snapshot: &Snapshot) -> Flow {
    let backend = snapshot.backend(view.backend).map(|(_, backend)| backend);
    let backend = backend.filter(|backend| backend.generation == view.generation);
    Flow {
        frontend: view.frontend.to_string(),
        backend: backend.map(|backend| backend.name.clone()),
        mesh: view.is_of_mesh(),
        backend_state: backend.map(|backend| backend.state.name()),
        state: view.state.name(),
        idle_seconds: view.idle.unwrap_or_default().as_secs(),
        table: view.table.name(),
        lane: view.lane,
    }
}

fn none_ready(outcome: Outcome, run: &Run, service: Option<&ServiceView>) -> Option<NoneReady> {
    let is_it = matches!(outcome, Outcome::Hold | Outcome::Reset) && run.reason != Counter::ResetGone;
    let (waited, hold) = (run.none_for.filter(|_| is_it)?, service?.hold);
    Some(NoneReady {
        for_seconds: waited.as_secs(),
        hold_seconds: hold.as_secs(),
        // Not "0 s" for the last of them.
        left_seconds: hold.saturating_sub(waited).as_millis().div_ceil(1_000) as u64,
    })
}

fn candidates(
    run: &Run,
    service: Option<&ServiceView>,
    target: impl Fn(BackendId) -> Option<u16>,
    taken: Option<BackendId>,
    now: UnixMicros,
) -> Vec<Candidate> {
    let backends = service.map_or(&[][..], |service| &service.backends);
    let mut asked: Vec<(BackendId, Option<Fit>)> = Vec::new();
    for (id, fit) in &run.candidates {
        // One may be proposed by several slots.
        if asked.iter().all(|(known, _)| known != id) {
            asked.push((*id, Some(*fit)));
        }
    }
    let rest = backends.iter().filter(|backend| run.candidates.iter().all(|(id, _)| *id != backend.id));
    asked.extend(rest.map(|backend| (backend.id, None)).collect::<Vec<_>>());
    let candidate = |(id, fit): (BackendId, Option<Fit>)| {
        let view = backends.iter().find(|backend| backend.id == id);
        Candidate {
            backend: view.map_or_else(|| format!("#{}", id.0), |view| view.name.clone()),
            container: view.map(|view| view.container.0.clone()),
            address: view.map(|view| view.address.to_string()),
            port: target(id),
            fit: fit.map(Fit::name),
            state: view.map(|view| view.state.name()),
            cause: view.map(|view| view.cause.clone()),
            since: view.and_then(|view| report::rfc3339(view.since)),
            taken: taken == Some(id),
            words: words(fit, view, target(id), now),
        }
    };
    asked.into_iter().map(candidate).collect()
}

/// How a backend suits, for people.
fn words(fit: Option<Fit>, view: Option<&BackendView>, port: Option<u16>, now: UnixMicros) -> String {
    let state = |view: &BackendView| {
        let age = report::age(view.since, now);
        format!("{} ({}, {age} ago)", view.state.name(), view.cause)
    };
    let state = || view.map_or_else(|| "gone".to_owned(), state);
    let is = |wanted| view.is_some_and(|view| view.state == wanted);
    match fit {
        None => format!("not asked: {}", view.map_or("gone", |view| view.state.name())),
        Some(Fit::Ready) if is(BackendState::Ready) => "ready".into(),
        Some(Fit::Ready) => format!("listens, which makes it ready: {}", state()),
        Some(Fit::Draining) => state(),
        Some(Fit::Foreign) if view.is_some() && port.is_none() => "does not serve this port".into(),
        Some(Fit::Foreign) => "no longer of this service".into(),
        Some(Fit::Itself) => "is the client itself".into(),
        Some(Fit::Taken) => "has a connection with this client port already".into(),
        Some(Fit::NoWeight) => "weight 0".into(),
        Some(Fit::NotReady) => state(),
        Some(Fit::NotListening) if is(BackendState::Ready) => "not listening".into(),
        Some(Fit::NotListening) => format!("not listening: {}", state()),
    }
}

/// One line per candidate, in columns.
fn table(candidates: &[Candidate]) -> Vec<String> {
    let place = |candidate: &Candidate| match (&candidate.address, candidate.port) {
        (Some(address), Some(port)) => format!("{address}:{port}"),
        (Some(address), None) => address.clone(),
        (None, _) => "-".into(),
    };
    let width = |text: &dyn Fn(&Candidate) -> usize| candidates.iter().map(text).max().unwrap_or_default();
    let names = width(&|candidate| candidate.backend.chars().count());
    let places = width(&|candidate| place(candidate).len());
    let words = width(&|candidate| candidate.words.chars().count());
    let line = |candidate: &Candidate| {
        let Candidate { backend, words: text, taken, .. } = candidate;
        let mark = if *taken { "← taken" } else { "" };
        let line = format!("  {backend:names$}  {:places$}  {text:words$}  {mark}", place(candidate));
        line.trim_end().to_owned()
    };
    candidates.iter().map(line).collect()
}

#[cfg(test)]
#[path = "tests.rs"]
mod tests;
