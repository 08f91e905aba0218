//! The agent: one loop owns all state. It observes, decides with [`crate::model`], and applies.
//!
//! | module | does |
//! |---|---|
//! | `tracked` | what is known of each container, and what follows from it |
//! | `run` | the loop |
//! | `docker` | what an event or an answer of Docker's changes in that |
//! | `questions` | asking Docker, beside the loop |
//! | `observe` | taking in what Docker says of a container |
//! | `swarm` | what the swarm says of its services and tasks |
//! | `places` | the tasks here, also those that publish nothing |
//! | `bindings` | tasks on other nodes that are to stop, or are unhealthy: Docker's name server is asked |
//! | `vips` | virtual addresses inside overlay networks |
//! | `statics` | the same for the static services of the configuration file |
//! | `uplinks` | where clients come in: attach, follow the host's interfaces and addresses |
//! | `takeover` | the place of another version of steer |
//! | `settle` | the state of a backend, which is written at once |
//! | `reconcile` | desired, plan, apply |
//! | `look` | what has to be looked at because nobody tells |
//! | `veths` | the host's ends of containers' veths |
//! | `problems` | what is wrong, by who found it |
//! | `edges` | what the kernel saw happen to backends |
//! | `waiting` | the clients that wait for a backend |
//! | `happened` | what is told of backends: the history, and who told first of a stop |
//! | `flows` | backends that stop: their flows, and those that do not stop |
//! | `sweep` | flows that nobody ended, and counts that are wrong |
//! | `notify` | what systemd is told |
//! | `operator` | what the socket asks for |

mod bindings;
mod docker;
mod edges;
mod flows;
mod happened;
mod look;
mod notify;
mod observe;
mod operator;
mod places;
mod problems;
mod questions;
mod reconcile;
mod run;
mod settle;
mod statics;
mod swarm;
mod sweep;
mod takeover;
mod tracked;
mod uplinks;
mod veths;
mod vips;
mod waiting;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Instant, SystemTime};

use anyhow::{Context as _, Result};
use aya::Ebpf;
use tokio::sync::{mpsc, watch};

use crate::cli::AttachMode;
use crate::config::Config;
use crate::dataplane::maps::Maps;
use crate::dataplane::paths::Paths;
use crate::docker::Docker;
use crate::host::clock;
use crate::model::addresses::HostAddresses;
use crate::model::history::{History, Refusals};
use crate::model::memory::Memory;
use crate::model::plan::Applied;
use crate::model::stops::Stops;
use crate::model::swarm::disabled::Disabled;
use crate::model::undescribed::Undescribed;
use crate::model::{ContainerId, Problem};
use problems::Source;
use tracked::Tracked;
pub use uplinks::check as check_interfaces;

/// What the agent is told once, at its start.
#[derive(Debug)]
pub struct Settings {
    pub paths: Paths,
    /// Where the hierarchy of cgroups (version 2) is mounted.
    pub cgroup: PathBuf,
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
    host_addresses: HostAddresses,
    uplinks: uplinks::Uplinks,
    /// Problems by where they come from, so that each source replaces its own.
    problems: BTreeMap<Source, Vec<Problem>>,
    docker: docker::Link,
    swarm: swarm::SwarmState,
    places: places::Places,
    vips: vips::Vips,
    disabled: Disabled,
    questions: questions::Questions,
    answers: mpsc::Receiver<questions::Answer>,
    last_looks: flows::LastLooks,
    edges: edges::Edges,
    waiting: waiting::Waiting,
    history: watch::Sender<History>,
    refusals: Refusals,
    stops: Stops,
    notify: notify::Notify,
    undescribed: Undescribed,
    /// Which services outlive their last backend.
    memory: Memory,
    takeover: takeover::Takeover,
    /// When to reconcile though nothing has happened.
    wake: Option<Instant>,
    closing: bool,
    done: bool,
    since: SystemTime,
    sweeps: sweep::Sweeps,
}

impl Agent {
    /// An agent that goes on from what the maps hold.
    pub fn adopt(settings: Settings, bpf: Ebpf, maps: Maps) -> Result<Self> {
        let applied = maps.applied().context("reading what an earlier agent applied")?;
        if !applied.backends.is_empty() {
            tracing::info!(backends = applied.backends.len(), services = applied.services.len(), "adopted");
        }
        let mut problems = BTreeMap::new();
        let (wanted, there) = (settings.config.max_flows(), maps.max_flows()?);
        if wanted != there {
            let message = format!(
                "max_flows = {wanted} is not in force: the flow table that is there has room for {there}; it takes effect after \
                 `steer detach`"
            );
            tracing::warn!("{message}");
            problems.insert(Source::Settings, vec![Problem::of("steer", message)]);
        }
        let host_addresses = HostAddresses::of_earlier(applied.wildcard_addresses(), clock::since_boot());
        let (questions, answers) = questions::Questions::new();
        let edges = edges::Edges::open(&settings.paths)?;
        let takeover = takeover::Takeover::of(&settings.paths)?;
        Ok(Self {
            settings,
            bpf,
            maps,
            applied,
            tracked: BTreeMap::new(),
            host_addresses,
            uplinks: uplinks::Uplinks::default(),
            problems,
            docker: docker::Link::default(),
            swarm: swarm::SwarmState::default(),
            places: places::Places::default(),
            vips: vips::Vips::default(),
            disabled: Disabled::default(),
            questions,
            answers,
            last_looks: flows::LastLooks::default(),
            edges,
            waiting: waiting::Waiting::new(),
            history: watch::Sender::default(),
            refusals: Refusals::default(),
            stops: Stops::default(),
            notify: notify::Notify::default(),
            undescribed: Undescribed::All,
            memory: Memory::default(),
            takeover,
            wake: None,
            closing: false,
            done: false,
            since: SystemTime::now(),
            sweeps: sweep::Sweeps::default(),
        })
    }
}

/// Logs how long a change took from its arrival to the map.
fn applied_after(received: Instant, what: &str) {
    tracing::debug!(what, micros = received.elapsed().as_micros() as u64, "applied");
}
