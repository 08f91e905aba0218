//! Services that outlive their last backend.
//!
//! Problem: who runs one replica stops it and starts the next. If the service went with its last backend, its frontends would
//! go too, and the host would refuse the connections of that moment.
//! Approach: the service stays in the maps as it is, without backends, for as long as new connections may wait for one
//! (`steer.hold`): the kernel holds them. What is to be known of it is in the maps; only the moment is remembered, so a new agent
//! counts from its own start.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ipnet::IpNet;
use steer_common::service::Balance;

use super::plan::{Applied, AppliedService};
use super::{Candidate, ServiceName};

/// A service without backends that stays as it is; its ports are those it has in the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Remembered {
    pub name: ServiceName,
    pub balance: Balance,
    pub hold: Duration,
    pub allow: Vec<IpNet>,
    pub mesh: bool,
}

/// When services lost their last backend.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Memory {
    left: BTreeMap<ServiceName, Left>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Left {
    since: Duration,
    hold: Duration,
}

impl Memory {
    /// The services in the maps that no candidate is of, and that stay for now. `now`: by a clock that only goes forward.
    pub fn remember(&mut self, applied: &Applied, candidates: &[Candidate], now: Duration) -> Vec<Remembered> {
        let alive: BTreeSet<&str> = candidates.iter().map(|candidate| candidate.spec.service.as_str()).collect();
        let empty = |name: &ServiceName| applied.services.contains_key(name) && !alive.contains(name.as_str());
        self.left.retain(|name, _| empty(name));
        let mut remembered = Vec::new();
        for (name, service) in applied.services.iter().filter(|(name, _)| empty(name)) {
            // The mesh takes over at once.
            let hold_ns = if service.entry.leaves_to_mesh(true) { 0 } else { service.entry.hold_ns };
            let left = self.left.entry(name.clone()).or_insert(Left { since: now, hold: Duration::ZERO });
            left.hold = Duration::from_nanos(hold_ns);
            if now.saturating_sub(left.since) < left.hold {
                remembered.push(told(applied, name, service));
            }
        }
        remembered
    }

    /// When the next service goes that is remembered at `now`.
    pub fn next_end(&self, now: Duration) -> Option<Duration> {
        self.left.values().map(|left| left.since.saturating_add(left.hold)).filter(|end| *end > now).min()
    }
}

fn told(applied: &Applied, name: &ServiceName, service: &AppliedService) -> Remembered {
    let AppliedService { id, entry, ports: _, slots: _ } = service;
    Remembered {
        name: name.clone(),
        balance: Balance::from_u8(entry.balance),
        hold: Duration::from_nanos(entry.hold_ns),
        allow: applied.allow.iter().filter(|(of, _)| of == id).map(|(_, net)| *net).collect(),
        mesh: entry.has_mesh(),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use steer_common::service::{ServiceEntry, ServiceId};

    use super::*;
    use crate::model::fixtures::candidate;

    /// What the maps hold: one service `web` that holds connections for that many seconds.
    fn web(hold: u64) -> Applied {
        let entry = ServiceEntry { hold_ns: hold * 1_000_000_000, ..ServiceEntry::default() };
        let service = AppliedService { id: ServiceId(1), entry, ports: Vec::new(), slots: None };
        Applied { services: [("web".to_owned(), service)].into(), ..Applied::default() }
    }

    /// Seconds, and who has a container then; the last round counts.
    #[rstest]
    #[case::at_once(10, &[(100, "")], true, Some(110))]
    #[case::until_the_hold_is_over(10, &[(100, ""), (109, "")], true, Some(110))]
    #[case::and_then_it_goes(10, &[(100, ""), (110, "")], false, None)]
    #[case::it_counts_from_the_last_backend_on(10, &[(100, "web"), (105, "web"), (106, ""), (115, "")], true, Some(116))]
    #[case::a_new_backend_ends_it(10, &[(100, ""), (105, "web")], false, None)]
    #[case::and_the_next_gap_counts_anew(10, &[(100, ""), (105, "web"), (109, ""), (115, "")], true, Some(119))]
    #[case::no_hold_no_memory(0, &[(100, "")], false, None)]
    #[case::of_another_service(10, &[(100, "api")], true, Some(110))]
    fn a_service_outlives_its_last_backend_for_its_hold(
        #[case] hold: u64,
        #[case] rounds: &[(u64, &str)],
        #[case] stays: bool,
        #[case] until: Option<u64>,
    ) {
        let mut memory = Memory::default();
        let mut remembered = Vec::new();
        let mut now = Duration::ZERO;
        for (at, alive) in rounds {
            now = Duration::from_secs(*at);
            let candidates: Vec<_> = alive.split_whitespace().map(|service| candidate(service, 1, "80:1")).collect();
            remembered = memory.remember(&web(hold), &candidates, now);
        }
        let names: Vec<_> = remembered.iter().map(|service| service.name.as_str()).collect();
        assert_eq!(names, if stays { vec!["web"] } else { Vec::new() });
        assert_eq!(memory.next_end(now), until.map(Duration::from_secs));
    }

    /// A mesh that may have a task elsewhere needs no memory; as long as it has none, clients wait as everywhere.
    #[rstest]
    #[case::it_may(ServiceEntry::MESH, false)]
    #[case::it_cannot(ServiceEntry::MESH | ServiceEntry::ALL_HERE, true)]
    fn a_swarm_service_is_left_to_the_mesh_at_once(#[case] flags: u8, #[case] stays: bool) {
        let mut applied = web(10);
        applied.services.get_mut("web").unwrap().entry.flags = flags;
        let remembered = Memory::default().remember(&applied, &[], Duration::from_secs(1));
        assert_eq!(remembered.len(), usize::from(stays));
    }

    #[test]
    fn what_is_not_in_the_maps_any_more_is_forgotten() {
        let mut memory = Memory::default();
        memory.remember(&web(10), &[], Duration::from_secs(1));
        memory.remember(&Applied::default(), &[], Duration::from_secs(2));
        assert_eq!(memory, Memory::default());
    }
}
