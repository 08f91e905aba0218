//! Flows that nobody ended: clients that vanished, backends that are gone.
//!
//! The kernel removes a flow when it sees its end. What it never sees (a client that lost power) is found here, now and then,
//! and the live counts are compared with the tables: they agree unless a table has run over, or flows were removed here.

mod tally;

use std::collections::BTreeMap;

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::{HashMap, MapData, MapError};
use steer_common::backend::BackendId;
use steer_common::flow::FlowKey;

use self::tally::{Counts, Tally, Tenant};
use super::absent::{found, removed};
use super::maps::Maps;
use super::read::walk;

/// What a sweep found.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Swept {
    /// Established flows removed: their time was over, or their backend, or its port, is gone.
    pub removed: u64,
    /// The same of flows that open or close: mostly closed ones, remembered for their last packets.
    pub forgotten: u64,
    /// Per backend: the count in `BACKEND_LIVE` less what the tables hold, as far as that is certain while flows come and go.
    pub drift: BTreeMap<BackendId, i64>,
}

impl Swept {
    /// The drift that the sweep before has seen as well, as much of it as both have: it is no flow in passing.
    pub fn confirmed(&self, before: &BTreeMap<BackendId, i64>) -> impl Iterator<Item = (BackendId, i64)> {
        self.drift.iter().filter_map(|(backend, drift)| {
            let before = before.get(backend).filter(|before| before.signum() == drift.signum())?;
            Some((*backend, drift.signum() * drift.abs().min(before.abs())))
        })
    }
}

impl Maps {
    /// Removes what is over, and compares the counts. `now_secs`: seconds since boot.
    pub fn sweep(&mut self, now_secs: u32) -> Result<Swept> {
        // Only the agent changes who has an id, and it is here.
        let mut tally = Tally::new(self.tenants()?);
        let mut swept = Swept::default();
        for key in walk::keys(&self.flows).context("reading FLOWS")? {
            let Some(entry) = found(self.flows.get(&key, 0)).context("reading FLOWS")? else { continue };
            if tally.is_over(&key, &entry, now_secs) {
                swept.removed += remove(&mut self.flows, &key).context("removing from FLOWS")?;
            } else {
                tally.count(entry.backend);
            }
        }
        for key in walk::keys(&self.pending).context("reading PENDING")? {
            let Some(pending) = found(self.pending.get(&key, 0)).context("reading PENDING")? else { continue };
            if tally.is_over(&key, &pending.flow, now_secs) {
                swept.forgotten += remove(&mut self.pending, &key).context("removing from PENDING")?;
            }
        }
        for pair in walk::entries(&self.local_flows).context("reading LOCAL_FLOWS")? {
            let (_, flow) = pair.context("reading LOCAL_FLOWS")?;
            if tally.has(flow.backend, flow.generation) {
                tally.count(flow.backend);
            }
        }
        let mut after = BTreeMap::new();
        for backend in tally.backends() {
            after.insert(backend, self.counts(backend)?);
        }
        swept.drift = tally.drift(&after);
        Ok(swept)
    }

    /// Takes a drift off a count. Between reading and writing a flow may come or go: the next sweep sees that.
    pub fn correct_live(&mut self, backend: BackendId, drift: i64) -> Result<()> {
        let at = u32::from(backend.0);
        let counted = self.backend_live.get(&at, 0).context("reading BACKEND_LIVE")?;
        let corrected = (counted as i64 - drift).max(0) as u64;
        self.backend_live.set(at, corrected, 0).with_context(|| format!("writing BACKEND_LIVE[{}]", backend.0))
    }

    /// Who has an id, with the counts of this moment.
    fn tenants(&self) -> Result<BTreeMap<BackendId, Tenant>> {
        let mut tenants = BTreeMap::new();
        for at in 1..self.backends.len() {
            let entry = self.backends.get(&at, 0).with_context(|| format!("reading BACKENDS[{at}]"))?;
            if entry.generation != 0 {
                let id = BackendId(at as u16);
                // In the order opposite to the kernel's: whoever begins between the two has begun after the walk did.
                let established = self.established(id)?;
                tenants.insert(id, Tenant { entry, before: Counts { established, ..self.counts(id)? } });
            }
        }
        Ok(tenants)
    }

    fn counts(&self, id: BackendId) -> Result<Counts> {
        let at = u32::from(id.0);
        let live = self.backend_live.get(&at, 0).with_context(|| format!("reading BACKEND_LIVE[{at}]"))?;
        Ok(Counts { live, established: self.established(id)? })
    }

    fn established(&self, id: BackendId) -> Result<u64> {
        let at = u32::from(id.0);
        let stats = self.backend_stats.get(&at, 0).with_context(|| format!("reading BACKEND_STATS[{at}]"))?;
        Ok(stats.iter().map(|cpu| cpu.established).sum())
    }
}

/// Removes an entry that was judged just now, so that hardly a packet can have come between; how many there were, 0 or 1. Should
/// one have: an established flow is known again with its client's next packet, an opening one with the next retransmission.
fn remove<V: Pod>(map: &mut HashMap<MapData, FlowKey, V>, key: &FlowKey) -> Result<u64, MapError> {
    removed(map.remove(key)).map(u64::from)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_count_is_wrong_by_as_much_as_two_sweeps_have_seen() {
        let drift = |pairs: &[(u16, i64)]| pairs.iter().map(|(id, drift)| (BackendId(*id), *drift)).collect();
        let swept = Swept { drift: drift(&[(1, 2), (2, 5), (3, -3), (4, 7), (5, -2)]), ..Swept::default() };
        let confirmed: Vec<_> = swept.confirmed(&drift(&[(1, 2), (2, 4), (3, -4), (5, 2), (9, 7)])).collect();
        assert_eq!(confirmed, [(BackendId(1), 2), (BackendId(2), 4), (BackendId(3), -3)]);
        assert_eq!(swept.confirmed(&BTreeMap::new()).count(), 0, "the first one sees what it sees");
    }
}
