//! The pinned maps of an agent, opened by a test: to look at what no command shows, and to lose what it holds.

use std::collections::BTreeMap;

use aya::maps::{Array, MapData};
use steer::dataplane::maps::Maps;
use steer::dataplane::paths::Paths;
use steer_common::edge::{EdgeEntry, InitEntry};

use super::{Agent, Backend};

impl Agent {
    /// `steer backends --json`, which reads the maps and asks no agent.
    #[track_caller]
    pub fn backends(&self) -> Vec<Backend> {
        let text = self.steer_ok(&["backends", "--json"]);
        serde_json::from_str(&text).unwrap_or_else(|err| panic!("steer backends --json: {err} in: {text}"))
    }

    /// One of them, by container name.
    #[track_caller]
    pub fn backend(&self, name: &str) -> Backend {
        let all = self.backends();
        let found = all.iter().find(|backend| backend.name == name).cloned();
        found.unwrap_or_else(|| panic!("no backend {name} in {all:#?}"))
    }

    /// Every counter of the data plane, by its name.
    #[track_caller]
    pub fn counters(&self) -> BTreeMap<String, u64> {
        self.status().counters
    }

    /// One of them.
    #[track_caller]
    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.counters();
        *counters.get(name).unwrap_or_else(|| panic!("no counter {name} in {counters:?}"))
    }

    /// The maps, opened for writing.
    #[track_caller]
    fn maps(&self) -> Maps {
        Maps::open(&Paths::of(&self.instance)).unwrap_or_else(|err| panic!("open the pinned maps: {err:#}"))
    }

    /// First processes that the kernel watches, by process id.
    #[track_caller]
    pub fn inits(&self) -> BTreeMap<u32, InitEntry> {
        self.maps().inits.iter().filter_map(Result::ok).collect()
    }

    /// What the kernel itself saw happen to backends, by their ids.
    #[track_caller]
    pub fn edges(&self) -> Array<MapData, EdgeEntry> {
        self.maps().backend_edges
    }

    /// Loses every flow that is known: established ones, and those that open or close. How many there were.
    #[track_caller]
    pub fn lose_flows(&self) -> (usize, usize) {
        let mut maps = self.maps();
        let lost = |removed: Vec<bool>| removed.into_iter().filter(|is_removed| *is_removed).count();
        // The keys first: a walk through a map that loses elements begins anew again and again.
        let keys: Vec<_> = maps.flows.keys().filter_map(Result::ok).collect();
        let flows = lost(keys.iter().map(|key| maps.flows.remove(key).is_ok()).collect());
        let keys: Vec<_> = maps.pending.keys().filter_map(Result::ok).collect();
        let pending = lost(keys.iter().map(|key| maps.pending.remove(key).is_ok()).collect());
        (flows, pending)
    }
}
