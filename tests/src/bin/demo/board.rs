//! What the demo's threads share: the scenario says what it does, the watcher what it sees, the screen shows both.
//!
//! Every wait of the scenario is a wait on the board, so a signal ends it at once.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use steer_tests::agent::{Agent, Status};
use steer_tests::load::Progress;
use steer_tests::report::Report;

/// How often the watcher looks.
const EVERY: Duration = Duration::from_millis(200);
/// Rates are means over so many looks: one second.
const WINDOW: usize = 6;

/// Why a run ended early.
#[derive(Debug)]
pub(crate) enum Stop {
    Interrupted,
    Failed(String),
}

pub(crate) struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

pub(crate) struct State {
    pub(crate) started: Instant,
    /// What this run is about: hook, Docker, kernel.
    pub(crate) title: String,
    pub(crate) step: usize,
    pub(crate) doing: String,
    pub(crate) replicas: Vec<Replica>,
    pub(crate) status: Status,
    /// Why there is no status.
    pub(crate) blind: String,
    pub(crate) long: Option<Long>,
    /// All loads together.
    pub(crate) total: Report,
    loads: Vec<Progress>,
    looks: VecDeque<(Instant, BTreeMap<String, u64>)>,
    interrupted: bool,
    closed: bool,
    failure: Option<String>,
}

/// A container this run has started.
#[derive(Clone, Debug)]
pub(crate) struct Replica {
    /// Of the container.
    pub(crate) name: String,
    /// The name in the table.
    pub(crate) label: String,
    pub(crate) version: String,
    pub(crate) stopped: bool,
}

/// The connection that lives long.
pub(crate) struct Long {
    pub(crate) backend: String,
    pub(crate) exchanged: Arc<AtomicU64>,
    pub(crate) closed: bool,
}

impl Long {
    pub(crate) fn exchanged(&self) -> u64 {
        self.exchanged.load(Ordering::Relaxed)
    }
}

impl Board {
    pub(crate) fn new() -> Self {
        let state = State {
            started: Instant::now(),
            title: String::new(),
            step: 0,
            doing: "getting ready".to_owned(),
            replicas: Vec::new(),
            status: Status::default(),
            blind: "the agent has not answered yet".to_owned(),
            long: None,
            total: Report::default(),
            loads: Vec::new(),
            looks: VecDeque::new(),
            interrupted: false,
            closed: false,
            failure: None,
        };
        Self { state: Mutex::new(state), changed: Condvar::new() }
    }

    /// A thread that panicked with the lock held has left nothing half done: all changes are assignments.
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn read<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.lock())
    }

    pub(crate) fn change(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    /// The next step begins.
    pub(crate) fn step(&self, doing: impl Into<String>) -> Result<(), Stop> {
        self.change(|state| {
            state.step += 1;
            state.doing = doing.into();
        });
        self.check()
    }

    pub(crate) fn interrupt(&self) {
        self.change(|state| {
            state.interrupted = true;
            state.doing = "interrupted: cleaning up".to_owned();
        });
    }

    pub(crate) fn close(&self) {
        self.change(|state| state.closed = true);
    }

    /// The first failure is the one that tells.
    pub(crate) fn fail(&self, words: &str) {
        self.change(|state| {
            state.failure.get_or_insert_with(|| words.to_owned());
            state.closed = true;
        });
    }

    pub(crate) fn failure(&self) -> Option<String> {
        self.lock().failure.clone()
    }

    pub(crate) fn check(&self) -> Result<(), Stop> {
        if self.lock().interrupted { Err(Stop::Interrupted) } else { Ok(()) }
    }

    /// Lets the time pass; what happens meanwhile is the demo.
    pub(crate) fn pause(&self, time: Duration) -> Result<(), Stop> {
        let (state, _) = self.wait_while(time, |state| !state.interrupted);
        if state.interrupted { Err(Stop::Interrupted) } else { Ok(()) }
    }

    /// Waits until the board is as wanted.
    pub(crate) fn wait(&self, what: &str, limit: Duration, wanted: impl Fn(&State) -> bool) -> Result<(), Stop> {
        let (state, late) = self.wait_while(limit, |state| !state.interrupted && !wanted(state));
        match (state.interrupted, late) {
            (true, _) => Err(Stop::Interrupted),
            (false, false) => Ok(()),
            (false, true) => {
                let State { status, blind, .. } = &*state;
                Err(Stop::Failed(format!("{what}: not within {limit:?}; {blind}\n{status}")))
            }
        }
    }

    /// For the screen: waits for its next turn, which comes early when something else is being done; false when there is
    /// none.
    pub(crate) fn turn(&self, every: Duration, doing: &str) -> bool {
        let (state, _) = self.wait_while(every, |state| !state.closed && state.doing == doing);
        !state.closed
    }

    fn wait_while(&self, limit: Duration, go_on: impl Fn(&State) -> bool) -> (MutexGuard<'_, State>, bool) {
        let waited = self.changed.wait_timeout_while(self.lock(), limit, |state| go_on(state));
        let (state, timeout) = waited.unwrap_or_else(PoisonError::into_inner);
        (state, timeout.timed_out())
    }

    pub(crate) fn watch_load(&self, load: Progress) {
        self.change(|state| state.loads.push(load));
    }

    /// The watcher: looks at the agent and at the loads until `go_on` says no.
    pub(crate) fn watch(&self, agent: &Agent, go_on: impl Fn() -> bool) {
        while go_on() {
            let status = agent.try_status();
            self.change(|state| state.look(status));
            drop(self.wait_while(EVERY, |_| go_on()));
        }
    }

    /// Wakes whoever waits, to look again at something that is not on the board.
    pub(crate) fn nudge(&self) {
        self.changed.notify_all();
    }
}

impl State {
    fn look(&mut self, status: Result<Status, String>) {
        match status {
            Ok(status) if status.agent.alive => (self.status, self.blind) = (status, String::new()),
            Ok(_) => self.blind = "the agent does not answer".to_owned(),
            Err(words) => self.blind = words,
        }
        self.total = merge(self.loads.iter().map(Progress::latest));
        self.looks.push_back((Instant::now(), self.total.backends.clone()));
        if self.looks.len() > WINDOW {
            self.looks.pop_front();
        }
    }

    /// Requests per second that a backend answered lately.
    pub(crate) fn rate(&self, backend: &str) -> f64 {
        let (Some((from, before)), Some((to, after))) = (self.looks.front(), self.looks.back()) else { return 0.0 };
        let count = |counts: &BTreeMap<String, u64>| counts.get(backend).copied().unwrap_or(0);
        let seconds = to.duration_since(*from).as_secs_f64();
        if seconds > 0.0 { (count(after) - count(before)) as f64 / seconds } else { 0.0 }
    }

    pub(crate) fn are_ready(&self, names: &[&str]) -> bool {
        let is_ready = |name: &&str| self.status.backend(name).is_some_and(|backend| backend.state == "ready");
        self.blind.is_empty() && names.iter().all(is_ready)
    }
}

/// Several loads as one, as far as the demo looks at them.
pub(crate) fn merge(reports: impl IntoIterator<Item = Report>) -> Report {
    let mut total = Report::default();
    for report in reports {
        let Report { requests, failed, failures, connections, slowest_ms, backends, samples, seconds, .. } = report;
        total.requests += requests;
        total.failed += failed;
        total.connections += connections;
        total.slowest_ms = total.slowest_ms.max(slowest_ms);
        total.seconds = total.seconds.max(seconds);
        total.failures += failures;
        total.samples.extend(samples);
        for (backend, count) in backends {
            *total.backends.entry(backend).or_default() += count;
        }
    }
    total
}
