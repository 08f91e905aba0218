//! What backends that are to end still have: a lookup each, and now and then a walk through the opening flows.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use steer_common::backend::BackendId;
use steer_common::flow::PendingEntry;

use super::maps::Maps;
use super::read::walk;

/// Opening flows by backend and generation.
pub type Opening = BTreeMap<(BackendId, u32), u64>;

impl Maps {
    /// Live flows of a backend. The kernel counts up and down on several CPUs: for a moment that may be less than nothing.
    pub fn live(&self, id: BackendId) -> Result<u64> {
        let live = self.backend_live.get(&id.0.into(), 0).with_context(|| format!("reading BACKEND_LIVE[{}]", id.0))?;
        Ok(if live > i64::MAX as u64 { 0 } else { live })
    }

    /// Flows whose handshake is under way. `now_secs`: seconds since boot.
    pub fn opening(&self, now_secs: u32) -> Result<Opening> {
        let mut opening = Opening::new();
        for pair in walk::entries(&self.pending).context("reading PENDING")? {
            let (_, PendingEntry { flow, .. }) = pair.context("reading PENDING")?;
            if flow.tcp().is_opening() && !flow.is_expired(now_secs) {
                *opening.entry((flow.backend, flow.generation)).or_default() += 1;
            }
        }
        Ok(opening)
    }
}
