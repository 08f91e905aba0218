//! Everything that was measured: what `--json` writes and the table is made of.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::kernel::KernelResults;
use crate::measure::{Plan, Sample};
use crate::ways::Way;

#[derive(Debug, Serialize)]
pub(crate) struct Results {
    pub(crate) machine: Machine,
    pub(crate) plan: Plan,
    pub(crate) rounds: u32,
    pub(crate) ways: BTreeMap<Way, Vec<Sample>>,
    /// What `packet-cost` printed, or why there is nothing.
    pub(crate) packet: Result<serde_json::Value, String>,
    pub(crate) agent: Option<AgentResults>,
    pub(crate) kernel: Option<KernelResults>,
}

#[derive(Debug, Serialize)]
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) docker: String,
}

#[derive(Debug, Serialize)]
pub(crate) struct AgentResults {
    /// Microseconds from the arrival of Docker's event to the map written, by kind of event.
    pub(crate) applied_micros: BTreeMap<String, Vec<u64>>,
    pub(crate) idle: Idle,
}

/// The agent while nothing happens.
#[derive(Debug, Serialize)]
pub(crate) struct Idle {
    pub(crate) seconds: f64,
    pub(crate) cpu_ms: f64,
    pub(crate) resident_mib: f64,
}

impl Results {
    pub(crate) fn new(machine: Machine, plan: Plan, rounds: u32) -> Self {
        let packet = Err("not measured".to_owned());
        Self { machine, plan, rounds, ways: BTreeMap::new(), packet, agent: None, kernel: None }
    }

    pub(crate) fn add(&mut self, way: Way, sample: Sample) {
        self.ways.entry(way).or_default().push(sample);
    }
}
