//! The agent's unix socket: HTTP/1 with JSON, so that `curl --unix-socket` speaks it too.
//!
//! | route | body | answer |
//! |---|---|---|
//! | `GET /v1/status` | – | [`AgentStatus`] |
//! | `GET /v1/events?after=N&follow=true` | – | lines of [`EventLine`], without end with `follow` |
//! | `POST /v1/drain` | [`Target`] | [`Drained`] |
//! | `POST /v1/undrain` | [`Target`] | [`Changed`] |
//! | `POST /v1/weight` | [`NewWeight`] | [`Changed`] |
//! | `POST /v1/detach` | [`Detach`] | [`Detaching`] |
//!
//! Anything but success is a status of 4xx or 5xx with an [`ErrorBody`].

pub mod client;
mod events;
pub mod server;

use serde::{Deserialize, Serialize};
use tokio::sync::oneshot;

use crate::model::Problem;
use crate::model::history::Transition;
use crate::model::stops::StopCounts;

/// Paths of the routes.
pub mod routes {
    /// `GET`: what only the agent knows.
    pub const STATUS: &str = "/v1/status";
    /// `GET`, as lines of JSON: what has happened to backends.
    pub const EVENTS: &str = "/v1/events";
    /// `POST`: no new flows for a container.
    pub const DRAIN: &str = "/v1/drain";
    /// `POST`: a drained container is back in, as soon as it is ready.
    pub const UNDRAIN: &str = "/v1/undrain";
    /// `POST`: another share of new flows.
    pub const WEIGHT: &str = "/v1/weight";
    /// `POST`: steer leaves this host.
    pub const DETACH: &str = "/v1/detach";
}

/// What only the agent knows; all else is in the maps.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    /// The agent's process id, in its own pid namespace.
    pub pid: u32,
    /// steer's version, as `steer --version` says it.
    pub version: String,
    /// When it started, RFC 3339.
    pub since: String,
    /// Version of the Docker it is connected to; `None` = not connected, or not told yet what runs.
    pub docker: Option<String>,
    /// What is attached at the interfaces that clients come in by, Docker's bridges among them.
    pub attach: Vec<Attachment>,
    /// What is not steered, and why.
    pub problems: Vec<Problem>,
    /// Who told first of stop signals, and how much later Docker did.
    #[serde(default)]
    pub stops: StopCounts,
}

/// One line of the answer to `/v1/events`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventLine {
    /// So many are no longer kept: they are too long ago, or this reader is too slow.
    Missed {
        /// How many.
        missed: u64,
    },
    /// Something happened.
    Event(Event),
}

/// Something that happened to a backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1 with each start of the agent.
    pub number: u64,
    /// Unix time in microseconds; the kernel's own where the kernel saw it.
    pub time_us: u64,
    /// Name of its service.
    pub service: String,
    /// Name of the container.
    pub backend: String,
    /// Full container id, or `netns:<path>`.
    pub container: String,
    /// State before, `gone` = it was not there.
    pub from: String,
    /// State now; the same where only a refused connection or another stop signal is told.
    pub to: String,
    /// `signal`, `listen`, `refused`, `exit`, `frozen`, `health`, `event`, `operator`, `resync`, `swarm` or `config`.
    pub source: String,
    /// Why, as `signal: TERM`.
    pub cause: String,
    /// How many times, where several are told as one.
    pub count: u64,
}

impl Event {
    pub fn new(number: u64, transition: &Transition) -> Self {
        let Transition { at, service, backend, container, from, to, cause, count } = transition;
        Self {
            number,
            time_us: at.0,
            service: service.clone(),
            backend: backend.clone(),
            container: container.0.clone(),
            from: from.name().to_owned(),
            to: to.name().to_owned(),
            source: cause.source.name().to_owned(),
            cause: cause.text.clone(),
            count: *count,
        }
    }
}

/// A program at an uplink.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Attachment {
    /// Name of the interface.
    pub interface: String,
    /// `xdp`, `tcx`, or `clsact` where the kernel has no tcx.
    pub hook: String,
}

/// Names a container: its name, its id, or a unique beginning of its id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    /// As it was typed. One that names nobody is a 404, the beginning of several ids a 409.
    pub target: String,
}

/// The backends that drain now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drained {
    /// The container's own; none while it is not in the tables.
    pub backends: Vec<DrainedBackend>,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DrainedBackend {
    /// Its id in the maps.
    pub id: u16,
    /// The container's name.
    pub name: String,
    /// How long `steer drain --wait` waits for its flows, in milliseconds.
    pub drain_ms: u64,
    /// It is a task of Swarm's, which goes on sending it connections of its own.
    #[serde(default)]
    pub is_task: bool,
}

/// The backends that were changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Changed {
    /// The container's own; none while it is not in the tables.
    pub backends: Vec<ChangedBackend>,
}

/// One of them, as it is now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChangedBackend {
    /// Its id in the maps.
    pub id: u16,
    /// The container's name.
    pub name: String,
    /// Word for its state: `ready`, `draining`, …
    pub state: String,
    /// Share of new flows, `0..=256`; in force from now on.
    pub weight: u16,
}

/// Another share of new flows for a container.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewWeight {
    /// As in [`Target`].
    pub target: String,
    /// `0..=256`, more is a 400; `null` = back to the label's.
    #[serde(deserialize_with = "Option::deserialize")]
    pub weight: Option<u16>,
}

/// How steer shall leave this host.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// At once; else no new flows are taken, and the last one is waited for.
    pub now: bool,
}

/// That steer leaves. The answer comes before it has.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Detaching {
    /// Flows that are waited for.
    pub live_flows: u64,
}

/// Why a request was refused.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    /// A sentence for people.
    pub error: String,
}

/// What the agent's loop is asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    /// Answered by an [`AgentStatus`].
    Status,
    /// No new flows for a container. Answered by [`Drained`].
    Drain {
        /// As in [`Target`].
        target: String,
    },
    /// A drained container is back in. Answered by [`Changed`].
    Undrain {
        /// As in [`Target`].
        target: String,
    },
    /// Another share of new flows. Answered by [`Changed`].
    Weight {
        /// As in [`Target`].
        target: String,
        /// `0..=256`; `None` = back to the label's.
        weight: Option<u16>,
    },
    /// steer leaves this host. Answered by [`Detaching`].
    Detach {
        /// As in [`Detach::now`].
        now: bool,
    },
}

/// One request, and where its answer goes.
#[derive(Debug)]
pub struct Request {
    /// What is asked.
    pub action: Action,
    /// Takes the answer as JSON, or the refusal; who asked may have gone.
    pub reply: oneshot::Sender<Result<serde_json::Value, ApiError>>,
}

/// A refusal, with its HTTP status.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiError {
    /// 4xx or 5xx.
    pub status: u16,
    /// A sentence for people.
    pub message: String,
}

impl ApiError {
    /// The request makes no sense.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self { status: 400, message: message.into() }
    }

    /// It names something that is not there.
    pub fn not_found(message: impl Into<String>) -> Self {
        Self { status: 404, message: message.into() }
    }

    /// It names more than one thing, or contradicts what is going on.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self { status: 409, message: message.into() }
    }

    /// The agent could not do it.
    pub fn failed(message: impl Into<String>) -> Self {
        Self { status: 500, message: message.into() }
    }

    /// The agent does not answer.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self { status: 503, message: message.into() }
    }
}
