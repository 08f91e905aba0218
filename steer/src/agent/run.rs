//! The loop: whatever happens first is taken in, then the maps follow.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::FutureExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::Agent;
use super::questions::Answer;
use super::tracked::Tracked;
use crate::api::Request;
use crate::docker::{Docker, Feed, Subscription};
use crate::host::addresses::{HostChange, Watch, watch};
use crate::host::clock::boot_secs;

/// How often everything is read anew, whatever events said.
const RESYNC: Duration = Duration::from_secs(30);
/// How often flows are looked through that nobody ended.
const SWEEP: Duration = Duration::from_secs(60);
/// The same while somebody waits for flows to end: a count that is too high would keep them waiting.
const SWEEP_DRAINING: Duration = Duration::from_secs(3);
/// How often it is looked whether the namespaces of static services are still those that are steered to.
const NAMESPACES: Duration = Duration::from_secs(1);
/// How often it is looked whether a second of refused connections is over.
const REFUSALS: Duration = Duration::from_millis(200);
/// How often it is looked whether a starting container listens, and whether a draining one has drained.
const WATCH: Duration = Duration::from_millis(20);

/// How soon the host is watched again after the kernel has refused.
const WATCH_AGAIN: Duration = Duration::from_secs(1);

/// Where the agent hears from.
struct Sources {
    feed: Option<Subscription>,
    host: HostWatch,
    requests: mpsc::Receiver<Request>,
    terminate: Signal,
    interrupt: Signal,
}

/// What came first.
enum Next {
    Feed(Feed),
    Answer(Box<Answer>),
    Request(Request),
    Host(HostChange),
    /// The kernel has something to tell.
    Notices,
    /// A moment that something waits for.
    Wake,
    End,
}

impl Agent {
    /// Attaches, then watches until it is told to end. The data plane stays behind, unless it was detached.
    pub async fn run(mut self, requests: mpsc::Receiver<Request>) -> Result<()> {
        let host = HostWatch { watch: Some(watch()?), again: Instant::now() };
        let terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        let interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
        self.read_host(HostChange::ALL)?;
        self.read_statics();
        self.reconcile();
        let feed = self.settings.docker.as_ref().map(Docker::subscribe);
        let mut sources = Sources { feed, host, requests, terminate, interrupt };
        let mut resync = ticks(RESYNC);
        let mut sweep = ticks(SWEEP_DRAINING);
        let mut namespaces = ticks(NAMESPACES);
        let mut look = ticks(WATCH);
        let mut refusals = ticks(REFUSALS);
        tracing::info!(instance = self.settings.paths.instance, "steering");
        while !self.done {
            self.tell_systemd();
            self.ask_swarm();
            self.ask_bindings();
            tokio::select! {
                next = self.next(&mut sources) => {
                    // Whatever it is that woke the agent: the kernel's word first, every time, and never only that.
                    self.take_notices();
                    if !self.handle(next) {
                        break;
                    }
                    // What came at the same time is applied at the same time.
                    while let Some(more) = sources.feed.as_mut().and_then(|feed| feed.next().now_or_never()) {
                        self.take_notices();
                        self.on_feed(more);
                    }
                    self.reconcile();
                }
                _ = resync.tick() => {
                    self.take_notices();
                    self.resync();
                    self.reconcile();
                }
                _ = sweep.tick() => self.sweep_if_due(),
                _ = namespaces.tick(), if self.has_statics() => {
                    if self.statics_changed() {
                        self.read_statics();
                        self.reconcile();
                    }
                }
                _ = refusals.tick(), if !self.refusals.is_empty() => self.tell_refusals(),
                _ = look.tick(), if self.has_to_look() => {
                    // One that has ended has not drained.
                    let told = self.take_notices();
                    if self.look() || told {
                        self.reconcile();
                    }
                }
            }
        }
        tracing::info!(detached = self.done, "agent ends; what is attached goes on steering unless detached");
        Ok(())
    }

    /// Waits for whatever happens first. Events before answers: an answer may be older.
    async fn next(&mut self, sources: &mut Sources) -> Next {
        let waits = self.wake.into_iter().chain(self.notify.deadline());
        let wake = waits.chain(self.swarm_due()).chain(self.bindings_due()).min();
        let Sources { feed, host, requests, terminate, interrupt } = sources;
        let docker = async {
            match feed {
                Some(feed) => feed.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            item = docker => Next::Feed(item),
            Some(answer) = self.answers.recv() => Next::Answer(Box::new(answer)),
            Some(request) = requests.recv() => Next::Request(request),
            change = host.changed() => Next::Host(change),
            _ = terminate.recv() => Next::End,
            _ = interrupt.recv() => Next::End,
            () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => Next::Wake,
            // Last: a flood of them must not keep the others waiting, who take them along.
            () = self.edges.ready() => Next::Notices,
        }
    }

    /// `false` = the agent ends.
    fn handle(&mut self, next: Next) -> bool {
        match next {
            Next::Feed(feed) => self.on_feed(feed),
            Next::Answer(answer) => self.on_answer(*answer),
            Next::Request(request) => self.on_request(request),
            Next::Host(change) => self.on_host(change),
            // Notices are taken in by then; and whoever waits for this moment looks at the clock.
            Next::Notices | Next::Wake => {}
            Next::End => return false,
        }
        true
    }

    /// Everything anew.
    fn resync(&mut self) {
        self.list(false);
        self.read_statics();
        self.look_at_edges();
        self.look_at_all();
        self.on_host(HostChange::ALL);
    }

    fn on_host(&mut self, change: HostChange) {
        if let Err(error) = self.read_host(change) {
            tracing::warn!(error = format!("{error:#}"), "reading the host's interfaces failed");
        }
    }

    fn sweep_if_due(&mut self) {
        let is_waited = |tracked: &Tracked| {
            let live = self.applied.backends.get(&tracked.key()).map(|applied| self.maps.live(applied.id));
            (tracked.is_stopping() || tracked.maintenance) && live.is_some_and(|live| live.is_ok_and(|live| live > 0))
        };
        let is_waited = self.closing || self.tracked.values().any(is_waited);
        let period = if is_waited { SWEEP_DRAINING } else { SWEEP };
        if self.swept.is_none_or(|swept| swept.elapsed() >= period) {
            self.swept = Some(Instant::now());
            self.sweep();
        }
    }

    fn sweep(&mut self) {
        match self.maps.sweep(boot_secs()) {
            Ok(swept) => {
                if swept.removed > 0 {
                    tracing::info!(flows = swept.removed, "removed flows that nobody ended");
                }
                // A drift that two sweeps agree on is no flow in passing.
                for (backend, drift) in &swept.drift {
                    if self.drift.get(backend) == Some(drift) {
                        tracing::debug!(backend = backend.0, drift, "live count corrected");
                        if let Err(error) = self.maps.correct_live(*backend, *drift) {
                            tracing::warn!(error = format!("{error:#}"), "correcting a live count failed");
                        }
                    }
                }
                self.drift = swept.drift;
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "looking through the flow table failed"),
        }
    }
}

/// What changes on this host; if the kernel refuses to tell, everything may have changed, and it is asked again.
struct HostWatch {
    watch: Option<Watch>,
    again: Instant,
}

impl HostWatch {
    /// Cancel-safe.
    async fn changed(&mut self) -> HostChange {
        loop {
            if let Some(watch) = &mut self.watch {
                match watch.changed().await {
                    Ok(change) => return change,
                    Err(error) => self.fail(&error.into()),
                }
            }
            sleep_until(self.again.into()).await;
            match watch() {
                Ok(watch) => {
                    self.watch = Some(watch);
                    return HostChange::ALL;
                }
                Err(error) => self.fail(&error),
            }
        }
    }

    fn fail(&mut self, error: &anyhow::Error) {
        tracing::warn!(
            error = format!("{error:#}"),
            "watching this host's interfaces failed; tried again in {WATCH_AGAIN:?}"
        );
        self.watch = None;
        self.again = Instant::now() + WATCH_AGAIN;
    }
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}
