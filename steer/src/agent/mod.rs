//! The agent: one loop owns all state. It observes, decides with [`crate::model`], and applies.
//!
//! | module | does |
//! |---|---|
//! | [`tracked`] | what is known of each container, and what follows from it |
//! | `docker` | what an event or a list of Docker's changes in that |
//! | `statics` | the same for the static services of the configuration file |
//! | `uplinks` | where clients come in: attach, follow the host's interfaces and addresses |
//! | `reconcile` | desired, plan, apply |
//! | `operator` | what the socket asks for |

mod docker;
mod operator;
mod reconcile;
mod statics;
pub mod tracked;
mod uplinks;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use futures_util::FutureExt as _;
use steer_common::backend::BackendId;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::mpsc;
use tokio::time::{MissedTickBehavior, interval, sleep_until};

use crate::api::Request;
use crate::cli::AttachMode;
use crate::config::Config;
use crate::dataplane::maps::Maps;
use crate::dataplane::paths::Paths;
use crate::docker::{Docker, Feed, Subscription};
use crate::host::addresses::{HostChange, Watch, watch};
use crate::model::memory::Memory;
use crate::model::plan::Applied;
use crate::model::{ContainerId, Problem, UnixMicros};
use tracked::Tracked;
pub use uplinks::check as check_interfaces;

/// How often everything is read anew, whatever events said.
const RESYNC: Duration = Duration::from_secs(30);
/// How often flows are looked through that nobody ended.
const SWEEP: Duration = Duration::from_secs(60);
/// How often it is looked whether the namespaces of static services are still those that are steered to.
const NAMESPACES: Duration = Duration::from_secs(1);
/// How often it is looked whether a starting container listens, and whether a draining one has drained.
const WATCH: Duration = Duration::from_millis(20);

/// What the agent is told once, at its start.
#[derive(Debug)]
pub struct Settings {
    pub paths: Paths,
    pub config: Config,
    /// Interfaces by name; empty = those with a default route.
    pub interfaces: Vec<String>,
    pub attach: AttachMode,
    /// `None` = without Docker.
    pub docker: Option<Docker>,
}

/// All that the agent knows.
pub struct Agent {
    settings: Settings,
    bpf: Ebpf,
    maps: Maps,
    applied: Applied,
    tracked: BTreeMap<ContainerId, Tracked>,
    host_addresses: BTreeSet<IpAddr>,
    uplinks: uplinks::Uplinks,
    /// Problems by where they come from, so that each source replaces its own.
    problems: BTreeMap<Source, Vec<Problem>>,
    docker_version: Option<String>,
    /// Docker has said at least once which containers there are.
    listed: bool,
    /// Which services outlive their last backend.
    memory: Memory,
    /// When to reconcile though nothing has happened.
    wake: Option<Instant>,
    closing: bool,
    done: bool,
    since: SystemTime,
    /// Drift of live counts seen by the last sweep.
    drift: BTreeMap<BackendId, i64>,
}

/// Where problems come from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Source {
    Docker,
    Container(ContainerId),
    Uplink,
    Desired,
    Plan,
}

impl Agent {
    /// An agent that goes on from what the maps hold.
    pub fn adopt(settings: Settings, bpf: Ebpf, maps: Maps) -> Result<Self> {
        let applied = maps.applied().context("reading what an earlier agent applied")?;
        if !applied.backends.is_empty() {
            tracing::info!(backends = applied.backends.len(), services = applied.services.len(), "adopted");
        }
        Ok(Self {
            settings,
            bpf,
            maps,
            applied,
            tracked: BTreeMap::new(),
            host_addresses: BTreeSet::new(),
            uplinks: uplinks::Uplinks::default(),
            problems: BTreeMap::new(),
            docker_version: None,
            listed: false,
            memory: Memory::default(),
            wake: None,
            closing: false,
            done: false,
            since: SystemTime::now(),
            drift: BTreeMap::new(),
        })
    }

    /// Attaches, then watches until it is told to end. The data plane stays behind, unless it was detached.
    pub async fn run(mut self, mut requests: mpsc::Receiver<Request>) -> Result<()> {
        let mut host = watch()?;
        let mut terminate = signal(SignalKind::terminate()).context("waiting for SIGTERM")?;
        let mut interrupt = signal(SignalKind::interrupt()).context("waiting for SIGINT")?;
        self.read_host(HostChange::ALL)?;
        self.read_statics();
        self.reconcile();
        let mut feed = self.settings.docker.as_ref().map(Docker::subscribe);
        let mut resync = ticks(RESYNC);
        let mut sweep = ticks(SWEEP);
        let mut namespaces = ticks(NAMESPACES);
        let mut look = ticks(WATCH);
        sd_notify_ready();
        tracing::info!(instance = self.settings.paths.instance, "steering");
        while !self.done {
            let wake = self.wake;
            let next = self.next(&mut feed, &mut host, &mut requests, &mut terminate, &mut interrupt);
            tokio::select! {
                next = next => {
                    if !self.handle(next).await? {
                        break;
                    }
                    // What came at the same time is applied at the same time.
                    while let Some(Some(more)) = feed.as_mut().and_then(|feed| feed.next().now_or_never()) {
                        self.on_feed(more).await;
                    }
                    self.reconcile();
                }
                _ = resync.tick() => {
                    self.resync().await;
                    self.reconcile();
                }
                _ = sweep.tick() => self.sweep(),
                _ = namespaces.tick(), if self.has_statics() => {
                    if self.statics_changed() {
                        self.read_statics();
                        self.reconcile();
                    }
                }
                () = sleep_until(wake.unwrap_or_else(Instant::now).into()), if wake.is_some() => self.reconcile(),
                _ = look.tick(), if self.has_to_look() => {
                    if self.look() {
                        self.reconcile();
                    }
                }
            }
        }
        tracing::info!(detached = self.done, "agent ends; what is attached goes on steering unless detached");
        Ok(())
    }

    /// Waits for whatever happens first.
    async fn next(
        &self,
        feed: &mut Option<Subscription>,
        host: &mut Watch,
        requests: &mut mpsc::Receiver<Request>,
        terminate: &mut Signal,
        interrupt: &mut Signal,
    ) -> Next {
        let docker = async {
            match feed {
                Some(feed) => feed.next().await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            biased;
            item = docker => item.map_or(Next::End, Next::Feed),
            Some(request) = requests.recv() => Next::Request(request),
            change = host.changed() => Next::Host(change.unwrap_or(HostChange::ALL)),
            _ = terminate.recv() => Next::End,
            _ = interrupt.recv() => Next::End,
        }
    }

    /// `false` = the agent ends.
    async fn handle(&mut self, next: Next) -> Result<bool> {
        match next {
            Next::Feed(feed) => self.on_feed(feed).await,
            Next::Request(request) => self.on_request(request),
            Next::Host(change) => {
                if let Err(error) = self.read_host(change) {
                    tracing::warn!(error = format!("{error:#}"), "reading the host's interfaces failed");
                }
            }
            Next::End => return Ok(false),
        }
        Ok(true)
    }

    /// Everything anew.
    async fn resync(&mut self) {
        self.list().await;
        self.read_statics();
        self.look_at_all();
        if let Err(error) = self.read_host(HostChange::ALL) {
            tracing::warn!(error = format!("{error:#}"), "reading the host's interfaces failed");
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

enum Next {
    Feed(Feed),
    Request(Request),
    Host(HostChange),
    End,
}

fn ticks(period: Duration) -> tokio::time::Interval {
    let mut ticks = interval(period);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    ticks
}

/// Seconds of the clock that the kernel side uses (`bpf_ktime_get_coarse_ns`: monotonic).
fn boot_secs() -> u32 {
    since_boot().as_secs() as u32
}

/// The same, finer.
fn since_boot() -> Duration {
    nix::time::clock_gettime(nix::time::ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

fn unix_micros() -> UnixMicros {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    UnixMicros(since.as_micros() as u64)
}

/// Logs how long a change took from its arrival to the map.
fn applied_after(received: Instant, what: &str) {
    tracing::debug!(what, micros = received.elapsed().as_micros() as u64, "applied");
}

fn sd_notify_ready() {
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::debug!(%error, "telling systemd failed");
    }
}
