//! The configuration file as it is written: kinds of values, nothing checked.

use serde::Deserialize;

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields, default)]
pub(super) struct File {
    pub(super) defaults: Defaults,
    pub(super) agent: Agent,
    pub(super) service: Vec<Service>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Defaults {
    pub(super) network: Option<String>,
    pub(super) weight: Option<i64>,
    pub(super) balance: Option<String>,
    pub(super) ready: Option<String>,
    pub(super) drain: Option<String>,
    pub(super) hold: Option<String>,
    pub(super) allow: Option<Vec<String>>,
}

#[derive(Deserialize, Default)]
#[serde(deny_unknown_fields)]
pub(super) struct Agent {
    pub(super) docker_host: Option<String>,
    #[serde(default)]
    pub(super) interfaces: Vec<String>,
    pub(super) attach: Option<String>,
    pub(super) max_flows: Option<i64>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Service {
    pub(super) name: String,
    pub(super) ports: Vec<String>,
    pub(super) balance: Option<String>,
    pub(super) ready: Option<String>,
    pub(super) drain: Option<String>,
    pub(super) hold: Option<String>,
    pub(super) allow: Option<Vec<String>>,
    #[serde(default)]
    pub(super) backend: Vec<Backend>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) netns: String,
    pub(super) address: Option<String>,
    pub(super) weight: Option<i64>,
}
