//! The loop: whatever happens first is taken in, then the maps follow.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::FutureExt as _;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use super::questions::Answer;
use super::{Agent, sweep};
use crate::api::Request;
use crate::docker::{Docker, Feed, Subscription};
use crate::host::addresses::{HostChange, Watch, watch};

/// How often everything is read anew, whatever events said.
const RESYNC: Duration = Duration::from_secs(30);
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

/// What is to be done after it.
enum Then {
    /// Something may have changed: the maps follow.
    Reconcile,
    Rest,
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
        let mut sweep = ticks(sweep::OFTEN);
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
                    let told = self.take_notices();
                    let mut is_news = match self.handle(next) {
                        Then::Reconcile => true,
                        Then::Rest => told,
                        Then::End => break,
                    };
                    // What came at the same time is applied at the same time.
                    while let Some(more) = sources.feed.as_mut().and_then(|feed| feed.next().now_or_never()) {
                        self.take_notices();
                        self.on_feed(more);
                        is_news = true;
                    }
                    if is_news {
                        self.reconcile();
                    }
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

    fn handle(&mut self, next: Next) -> Then {
        match next {
            Next::Feed(feed) => self.on_feed(feed),
            Next::Answer(answer) => {
                if !self.on_answer(*answer) {
                    return Then::Rest;
                }
            }
            Next::Request(request) => self.on_request(request),
            Next::Host(change) => self.on_host(change),
            // Whoever asks, or tells systemd, looks at the clock; the maps follow where it is their moment.
            Next::Wake => {
                let is_due = self.wake.is_some_and(|wake| wake <= Instant::now());
                return if is_due || self.are_others_disabled() { Then::Reconcile } else { Then::Rest };
            }
            // They are taken in by then.
            Next::Notices => return Then::Rest,
            Next::End => return Then::End,
        }
        Then::Reconcile
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
