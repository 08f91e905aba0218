//! Flows that nobody ended: clients that vanished, backends that are gone.
//!
//! The kernel removes a flow when it sees its end. What it never sees (a client that lost power) is found here, now and then,
//! and the live counts are compared with the table: they agree unless the table has run over.

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use steer_common::backend::BackendId;
use steer_common::flow::{FlowEntry, LocalFlow};
use steer_common::limits::{MAX_FLOWS, MAX_LOCAL_FLOWS};

use super::maps::Maps;

/// What a sweep found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Entries removed: their time was over, or their backend is gone.
    pub removed: u64,
    /// Per backend: the count in `BACKEND_LIVE` less what the tables hold.
    pub drift: BTreeMap<BackendId, i64>,
}

impl Maps {
    /// Removes what is over, and compares the counts. `now_secs`: seconds since boot.
    pub fn sweep(&mut self, now_secs: u32) -> Result<Swept> {
        let mut swept = Swept::default();
        let mut live: BTreeMap<BackendId, i64> = BTreeMap::new();
        let mut over = Vec::new();
        // The table changes while it is walked; the bound makes the walk end all the same.
        for pair in self.flows.iter().take(2 * MAX_FLOWS as usize) {
            let (key, entry) = pair.context("reading FLOWS")?;
            let FlowEntry { backend, generation, .. } = entry;
            if self.generation(backend)? != generation {
                over.push(key);
            } else if entry.is_expired(now_secs) {
                over.push(key);
                *live.entry(backend).or_default() += 0;
            } else {
                *live.entry(backend).or_default() += 1;
            }
        }
        for key in over {
            if self.flows.remove(&key).is_ok() {
                swept.removed += 1;
            }
        }
        for pair in self.local_flows.iter().take(2 * MAX_LOCAL_FLOWS as usize) {
            let (_, LocalFlow { backend, generation, .. }) = pair.context("reading LOCAL_FLOWS")?;
            if self.generation(backend)? == generation {
                *live.entry(backend).or_default() += 1;
            }
        }
        for (backend, live) in live {
            let counted = self.backend_live.get(&backend.0.into(), 0).context("reading BACKEND_LIVE")?;
            let drift = counted as i64 - live;
            if drift != 0 {
                swept.drift.insert(backend, drift);
            }
        }
        Ok(swept)
    }

    /// Takes a drift off a count. Between reading and writing a flow may come or go: the next sweep sees that.
    pub fn correct_live(&mut self, backend: BackendId, drift: i64) -> Result<()> {
        let at = u32::from(backend.0);
        let counted = self.backend_live.get(&at, 0).context("reading BACKEND_LIVE")?;
        let corrected = (counted as i64 - drift).max(0) as u64;
        self.backend_live.set(at, corrected, 0).with_context(|| format!("writing BACKEND_LIVE[{}]", backend.0))
    }

    fn generation(&self, backend: BackendId) -> Result<u32> {
        let entry =
            self.backends.get(&backend.0.into(), 0).with_context(|| format!("reading BACKENDS[{}]", backend.0))?;
        Ok(entry.generation)
    }
}
