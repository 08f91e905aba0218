//! Virtual addresses in the maps: the difference between what they hold and what they should hold.

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};
use steer_common::limits::SWARM_LEASE_SECS;
use steer_common::vip::VipKey;

use super::absent::removed;
use super::maps::Maps;
use super::read::walk;
use crate::model::swarm::vips::VipTables;

impl Maps {
    /// Forgets what an earlier agent wrote: indices may mean others now. Until they are written anew, Swarm has the addresses.
    pub fn clear_vips(&mut self) -> Result<()> {
        clear(&mut self.vip_keys)
    }

    /// Writes what is not as wanted; `applied` is what the maps hold, and is kept to that also where a write fails.
    pub fn apply_vips(&mut self, wanted: &VipTables, applied: &mut VipTables) -> Result<()> {
        // No address may ever lead to another one's tasks: keys go first and come last.
        let stale: Vec<_> =
            applied.keys.iter().filter(|(key, at)| wanted.keys.get(key) != Some(at)).map(|(key, _)| *key).collect();
        for key in stale {
            remove(&mut self.vip_keys, &key)?;
            applied.keys.remove(&key);
        }
        applied.entries.retain(|at, _| wanted.entries.contains_key(at));
        for (at, entry) in &wanted.entries {
            if applied.entries.get(at) != Some(entry) {
                self.vips.set(*at, **entry, 0).with_context(|| format!("writing VIPS[{at}]"))?;
                applied.entries.insert(*at, entry.clone());
            }
        }
        for (key, at) in &wanted.keys {
            if applied.keys.get(key) != Some(at) {
                self.vip_keys.insert(*key, *at, 0).context("writing VIP_KEYS")?;
                applied.keys.insert(*key, *at);
            }
        }
        Ok(())
    }

    /// What the swarm was asked then is good for a while. `asked_secs`: seconds since boot.
    pub fn renew_lease(&mut self, asked_secs: u32) -> Result<()> {
        self.swarm_lease.set(0, asked_secs.saturating_add(SWARM_LEASE_SECS), 0).context("writing SWARM_LEASE")
    }
}

/// Leaves every virtual address to Swarm.
pub(super) fn clear(keys: &mut HashMap<MapData, VipKey, u32>) -> Result<()> {
    let all = walk::keys(keys).context("reading VIP_KEYS")?;
    all.iter().try_for_each(|key| remove(keys, key))
}

fn remove(keys: &mut HashMap<MapData, VipKey, u32>, key: &VipKey) -> Result<()> {
    removed(keys.remove(key)).map(drop).context("removing from VIP_KEYS")
}
