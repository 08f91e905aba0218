//! Docker's events about containers, and how Docker writes them. Pure.

use std::collections::HashMap;
use std::time::Instant;

use serde::Deserialize;

use super::LABELS;
use super::inspect::signal_number;
use crate::model::{ContainerId, Health};

/// Which events the server sends at all: without this, every health probe makes three more.
pub(super) const FILTERS: &str = concat!(
    r#"{"type":["container","network","service","node"],"event":["start","kill","die","pause","unpause","#,
    r#""health_status","rename","destroy","connect","disconnect","create","update","remove"]}"#
);

/// Something that happened to a container, or to the swarm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Event {
    /// Whose; of [`EventKind::Swarm`], the service or node.
    pub container: ContainerId,
    /// What.
    pub kind: EventKind,
    /// When dockerd says it happened, in nanoseconds of Unix time.
    pub time_ns: i64,
    /// It carries the label that makes it steer's; false for network events, which carry no labels: it may or may not.
    pub labels_say_steer: bool,
    /// When it was read from the socket.
    pub received: Instant,
}

impl Event {
    /// Whether it happened before this run of the container (its `StartedAt`) began: told late, it is about an earlier run. Both
    /// are dockerd's own clock.
    pub fn is_before(&self, run: &str) -> bool {
        let began = run.parse::<jiff::Timestamp>().map(jiff::Timestamp::as_nanosecond);
        began.is_ok_and(|began| i128::from(self.time_ns) < began)
    }
}

/// What happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum EventKind {
    /// Its first process was started; it need not listen yet.
    Start,
    /// A signal WAS sent to it, any signal: compare with the container's stop signal.
    Kill {
        /// Its number.
        signal: i32,
    },
    /// Its first process has ended; its address may already be another container's.
    Die,
    /// Its processes were frozen: it answers nothing, and its sockets stay.
    Pause,
    /// Its processes go on.
    Unpause,
    /// Its health has changed; there is no event for starting over.
    Health(Health),
    /// It is called otherwise.
    Rename,
    /// It was removed.
    Destroy,
    /// It was plugged into a network.
    NetworkConnect,
    /// It was taken out of a network.
    NetworkDisconnect,
    /// A service or a node of the swarm was made, changed or removed: its tasks, which have no events, will follow.
    Swarm,
}

#[derive(Deserialize)]
struct Message {
    #[serde(rename = "Type", default)]
    of: String,
    #[serde(rename = "Action", default)]
    action: String,
    #[serde(rename = "Actor")]
    actor: Option<Actor>,
    #[serde(rename = "timeNano", default)]
    time_ns: i64,
}

#[derive(Deserialize)]
struct Actor {
    #[serde(rename = "ID", default)]
    id: String,
    #[serde(rename = "Attributes")]
    attributes: Option<HashMap<String, String>>,
}

/// Reads one event as Docker writes it; `None` = it is none of steer's business.
pub fn parse(line: &[u8], received: Instant) -> Result<Option<Event>, serde_json::Error> {
    let Message { of, action, actor, time_ns } = serde_json::from_slice(line)?;
    let Some(Actor { id, attributes }) = actor else { return Ok(None) };
    let mut attributes = attributes.unwrap_or_default();
    let (container, labels_say_steer, kind) = match of.as_str() {
        "service" | "node" => (id, false, Some(EventKind::Swarm)),
        "container" if LABELS.iter().any(|label| attributes.contains_key(*label)) => {
            (id, true, container_event(&action, &attributes))
        }
        "network" => match attributes.remove("container") {
            Some(container) => (container, false, network_event(&action)),
            None => return Ok(None),
        },
        _ => return Ok(None),
    };
    let container = ContainerId(container);
    Ok(kind.map(|kind| Event { container, kind, time_ns, labels_say_steer, received }))
}

fn container_event(action: &str, attributes: &HashMap<String, String>) -> Option<EventKind> {
    // `health_status: healthy`: the state is part of the action's name.
    let (action, detail) = action.split_once(':').unwrap_or((action, ""));
    Some(match action {
        "start" => EventKind::Start,
        "kill" => EventKind::Kill { signal: attributes.get("signal").and_then(|signal| signal_number(signal))? },
        "die" => EventKind::Die,
        "pause" => EventKind::Pause,
        "unpause" => EventKind::Unpause,
        "health_status" => EventKind::Health(match detail.trim() {
            "healthy" => Health::Healthy,
            "unhealthy" => Health::Unhealthy,
            "starting" => Health::Starting,
            _ => return None,
        }),
        "rename" => EventKind::Rename,
        "destroy" => EventKind::Destroy,
        _ => return None,
    })
}

fn network_event(action: &str) -> Option<EventKind> {
    match action {
        "connect" => Some(EventKind::NetworkConnect),
        "disconnect" => Some(EventKind::NetworkDisconnect),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
