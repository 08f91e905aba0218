//! `steer status --json`, as far as tests look at it. Unknown fields are ignored, missing ones get their default.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Deserializer};

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Status {
    pub agent: AgentStatus,
    pub services: Vec<Service>,
    /// Empty also while there is no agent, which alone knows them.
    #[serde(deserialize_with = "null_is_empty")]
    pub problems: Vec<Problem>,
    pub counters: BTreeMap<String, u64>,
}

/// Stop signals: who told of them first, and how much later Docker did.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Stops {
    pub kernel_first: u64,
    pub event_first: u64,
    pub lateness_us: Lateness,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Lateness {
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

fn null_is_empty<'de, D: Deserializer<'de>>(json: D) -> Result<Vec<Problem>, D::Error> {
    Option::deserialize(json).map(Option::unwrap_or_default)
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct AgentStatus {
    pub alive: bool,
    pub pid: Option<u32>,
    /// Version of the Docker it is connected to.
    pub docker: Option<String>,
    /// Not there while there is no agent, which alone counts them.
    pub stops: Option<Stops>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Service {
    pub name: String,
    pub frontends: Vec<String>,
    pub balance: String,
    pub backends: Vec<Backend>,
}

#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Backend {
    /// Container id.
    pub container: Option<String>,
    pub name: String,
    pub address: String,
    /// `starting`, `ready`, `unready`, `draining`, `drained`, `gone` or `maintenance`.
    pub state: String,
    pub cause: String,
    pub since: String,
    pub weight: u32,
    pub live_flows: u64,
    pub steered_total: u64,
    /// Only in `steer backends --json`.
    pub resteered_total: u64,
}

/// A container that is not steered as its labels ask, and why.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
#[serde(default)]
pub struct Problem {
    pub container: Option<String>,
    pub label: Option<String>,
    pub message: String,
}

impl Status {
    pub fn service(&self, name: &str) -> Option<&Service> {
        self.services.iter().find(|service| service.name == name)
    }

    /// A backend of any service, by container name.
    pub fn backend(&self, name: &str) -> Option<&Backend> {
        self.services.iter().flat_map(|service| &service.backends).find(|backend| backend.name == name)
    }
}

impl Service {
    /// How many backends are in a state.
    pub fn count(&self, state: &str) -> usize {
        self.backends.iter().filter(|backend| backend.state == state).count()
    }
}

/// One line per backend: what a failed wait shows.
impl fmt::Display for Status {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { agent, services, problems, counters: _ } = self;
        writeln!(f, "agent alive: {}, pid {:?}", agent.alive, agent.pid)?;
        for service in services {
            writeln!(f, "service {} on {:?}, {}", service.name, service.frontends, service.balance)?;
            for backend in &service.backends {
                let Backend { name, address, state, cause, weight, live_flows, steered_total, .. } = backend;
                writeln!(
                    f,
                    "  {name} {address} {state} ({cause}) weight {weight}, {live_flows} live of {steered_total}"
                )?;
            }
        }
        problems.iter().try_for_each(|problem| writeln!(f, "problem: {problem:?}"))
    }
}

#[cfg(test)]
mod tests {
    use super::Status;

    #[test]
    fn a_status_is_read_with_fields_missing_and_fields_unknown() {
        let text = r#"{"agent":{"alive":true,"pid":7},"new":1,"services":[{"name":"web","frontends":["0.0.0.0:9000/tcp"],
            "backends":[{"name":"web-1","state":"ready","weight":1}]}],
            "problems":[{"container":"x","label":"steer.port","message":"m"}]}"#;
        let status: Status = serde_json::from_str(text).unwrap();
        assert_eq!(status.service("web").unwrap().count("ready"), 1);
        assert_eq!(status.backend("web-1").unwrap().live_flows, 0);
        assert_eq!(status.agent.pid, Some(7));
    }
}
