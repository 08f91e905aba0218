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
    pub const STATUS: &str = "/v1/status";
    pub const EVENTS: &str = "/v1/events";
    pub const DRAIN: &str = "/v1/drain";
    pub const UNDRAIN: &str = "/v1/undrain";
    pub const WEIGHT: &str = "/v1/weight";
    pub const DETACH: &str = "/v1/detach";
}

/// What only the agent knows; all else is in the maps.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct AgentStatus {
    pub pid: u32,
    pub version: String,
    /// When it started, RFC 3339.
    pub since: String,
    /// Version of the Docker it is connected to; `None` = not connected, or not told yet what runs.
    pub docker: Option<String>,
    pub attach: Vec<Attachment>,
    /// What is not steered, and why.
    pub problems: Vec<Problem>,
    #[serde(default)]
    pub stops: StopCounts,
}

/// One line of the answer to `/v1/events`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventLine {
    /// So many are no longer kept: they are too long ago, or this reader is too slow.
    Missed {
        missed: u64,
    },
    Event(Event),
}

/// Something that happened to a backend.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Event {
    /// Counts from 1 with each start of the agent.
    pub number: u64,
    /// Unix time in microseconds; the kernel's own where the kernel saw it.
    pub time_us: u64,
    pub service: String,
    pub backend: String,
    pub container: String,
    /// State before, `gone` = it was not there.
    pub from: String,
    pub to: String,
    /// `signal`, `listen`, `refused`, `exit`, `health`, `event`, `operator`, `resync` or `config`.
    pub source: String,
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
    pub interface: String,
    /// `xdp` or `tcx`.
    pub hook: String,
}

/// Names a container: its name, its id, or a unique beginning of its id.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Target {
    pub target: String,
}

/// The backends that drain now.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Drained {
    pub backends: Vec<DrainedBackend>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct DrainedBackend {
    /// Its id in the maps.
    pub id: u16,
    pub name: String,
    /// How long it may keep flows, in milliseconds.
    pub drain_ms: u64,
}

/// The backends that were changed.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Changed {
    pub backends: Vec<ChangedBackend>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ChangedBackend {
    /// Its id in the maps.
    pub id: u16,
    pub name: String,
    pub state: String,
    /// In force from now on.
    pub weight: u16,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NewWeight {
    pub target: String,
    /// `null` = back to the label's.
    #[serde(deserialize_with = "Option::deserialize")]
    pub weight: Option<u16>,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Detach {
    /// At once; else no new flows are taken, and the last one is waited for.
    pub now: bool,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Detaching {
    /// Flows that are waited for.
    pub live_flows: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct ErrorBody {
    pub error: String,
}

/// What the agent's loop is asked to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Action {
    Status,
    Drain {
        target: String,
    },
    Undrain {
        target: String,
    },
    /// `None` = back to the label's.
    Weight {
        target: String,
        weight: Option<u16>,
    },
    Detach {
        now: bool,
    },
}

/// One request, and where its answer goes.
#[derive(Debug)]
pub struct Request {
    pub action: Action,
    pub reply: oneshot::Sender<Result<serde_json::Value, ApiError>>,
}

/// A refusal, with its HTTP status.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ApiError {
    pub status: u16,
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
