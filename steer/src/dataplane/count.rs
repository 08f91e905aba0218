//! What backends that are to end still have: a lookup each, and now and then a walk through the opening flows.

use std::collections::HashMap;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap as Table, MapData, MapError};
use steer_common::backend::BackendId;
use steer_common::flow::{FlowKey, PendingEntry};

use super::maps::Maps;
use super::read::walk;

/// Flows by backend and generation.
pub type FlowCounts = HashMap<(BackendId, u32), u64>;

/// A count of live flows. The kernel adds and subtracts on several CPUs: an end may be counted a moment before its beginning.
pub(super) const fn live_count(live: u64) -> u64 {
    if live > i64::MAX as u64 { 0 } else { live }
}

/// Flows of `PENDING` whose handshake is under way. `now_secs`: seconds since boot.
pub(super) fn opening(pending: &Table<MapData, FlowKey, PendingEntry>, now_secs: u32) -> Result<FlowCounts, MapError> {
    let mut opening = FlowCounts::new();
    for pair in walk::entries(pending)? {
        let (_, PendingEntry { flow, .. }) = pair?;
        if flow.tcp().is_opening() && !flow.is_expired(now_secs) {
            *opening.entry((flow.backend, flow.generation)).or_default() += 1;
        }
    }
    Ok(opening)
}

impl Maps {
    /// Live flows of a backend.
    pub fn live(&self, id: BackendId) -> Result<u64> {
        let live = self.backend_live.get(&id.0.into(), 0).with_context(|| format!("reading BACKEND_LIVE[{}]", id.0))?;
        Ok(live_count(live))
    }

    /// Whether there are established flows whose packets come in by an interface, as far as the last one told.
    pub fn has_flows_by(&self, uplink: u32) -> Result<bool> {
        walk::any(&self.flows, |flow| flow.uplink == uplink).context("reading FLOWS")
    }

    /// Flows whose handshake is under way. `now_secs`: seconds since boot.
    pub fn opening(&self, now_secs: u32) -> Result<FlowCounts> {
        opening(&self.pending, now_secs).context("reading PENDING")
    }
}
