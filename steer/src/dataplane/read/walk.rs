//! Walking through a hash table that the kernel keeps changing.
//!
//! A walk begins anew when the key it stands on is removed under its feet, so it may come by a key twice. Each key is taken
//! once here, and the steps are bounded by the size the table has on this host. All keys come first, values later: the less
//! time between two steps, the less often a walk begins anew.

use std::collections::HashSet;
use std::hash::Hash;

use aya::Pod;
use aya::maps::{HashMap, IterableMap as _, MapData, MapError};

use crate::dataplane::absent::found;

/// The keys that are there, each once. One that comes or goes meanwhile may be among them or not.
pub(in crate::dataplane) fn keys<K: Pod + Eq + Hash, V: Pod>(
    map: &HashMap<MapData, K, V>,
) -> Result<HashSet<K>, MapError> {
    let size = map.map().info()?.max_entries();
    map.keys().take(steps(size)).collect()
}

/// The entries that are there, each once.
pub(in crate::dataplane) fn entries<K: Pod + Eq + Hash, V: Pod>(
    map: &HashMap<MapData, K, V>,
) -> Result<impl Iterator<Item = Result<(K, V), MapError>> + use<'_, K, V>, MapError> {
    Ok(keys(map)?.into_iter().filter_map(|key| Some(found(map.get(&key, 0)).transpose()?.map(|value| (key, value)))))
}

/// Whether there is such an entry: the first one will do.
pub(in crate::dataplane) fn any<K: Pod, V: Pod>(
    map: &HashMap<MapData, K, V>,
    is_it: impl Fn(&V) -> bool,
) -> Result<bool, MapError> {
    let size = map.map().info()?.max_entries();
    for key in map.keys().take(steps(size)) {
        if found(map.get(&key?, 0))?.is_some_and(|value| is_it(&value)) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Enough for a full table and for some walks that began anew.
const fn steps(size: u32) -> usize {
    4 * size as usize
}
