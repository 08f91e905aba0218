//! Virtual addresses that an answer leaves out, because Docker did not tell what is in one of the networks.
//!
//! Problem: Docker fails now and then, or takes its time. Whoever calls an address that is not steered any more is Swarm's matter, with
//! all that Swarm does to it; whoever is steered by what was told long ago is sent to tasks that may have ended.
//! Approach: what was told last stands for a moment. After that, only what is told counts.

use std::time::Duration;

use steer_common::limits::SWARM_LEASE_SECS;

use super::Swarm;

/// How long what was told last stands: half of the kernel's lease, so that the lease does not end before something else is told.
pub const KEPT: Duration = Duration::from_secs(SWARM_LEASE_SECS as u64 / 2);

impl Swarm {
    /// Takes over the virtual addresses of the answer before if some are left out here; whether it does. `age`: of the last answer
    /// that left out none.
    pub fn keep_vips(&mut self, before: Option<&Self>, age: Option<Duration>) -> bool {
        let Some(before) = before.filter(|_| !self.untold.is_empty() && age.is_some_and(|age| age < KEPT)) else {
            return false;
        };
        self.vips.clone_from(&before.vips);
        self.running.clone_from(&before.running);
        if self.is_of_manager() {
            self.keep_vips_of_services();
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;
    use crate::model::swarm::Service;
    use crate::model::swarm::vips::Vip;

    /// A manager's answer, with the virtual addresses of these services.
    fn swarm(services: &[&str], vips: &[&str]) -> Swarm {
        let service = |name: &&str| Service { id: None, name: (*name).to_owned(), ports: Vec::new() };
        let vip = |name: &&str| Vip {
            network: "front".to_owned(),
            service: (*name).to_owned(),
            address: [10, 0, 1, 2].into(),
            tasks: BTreeMap::new(),
        };
        Swarm {
            services: services.iter().map(service).collect(),
            tasks: Some(BTreeMap::new()),
            vips: vips.iter().map(vip).collect(),
            running: Some(vips.iter().map(|name| format!("task of {name}")).collect()),
            ..Swarm::default()
        }
    }

    const YOUNG: Option<Duration> = Some(Duration::from_secs(1));

    #[rstest]
    #[case::all_are_told(&[], YOUNG, "api")]
    #[case::what_is_left_out_stands(&["back"], YOUNG, "api db")]
    #[case::not_for_long(&["back"], Some(KEPT), "api")]
    #[case::or_was_never_told(&["back"], None, "api")]
    fn what_was_told_last_stands_for_a_moment(
        #[case] untold: &[&str],
        #[case] age: Option<Duration>,
        #[case] expected: &str,
    ) {
        let before = swarm(&["api", "db", "gone"], &["api", "db", "gone"]);
        let untold = untold.iter().map(|name| (*name).to_owned()).collect();
        let mut now = Swarm { untold, ..swarm(&["api", "db"], &["api"]) };
        let is_kept = now.keep_vips(Some(&before), age);
        let vips: Vec<_> = now.vips.iter().map(|vip| vip.service.as_str()).collect();
        assert_eq!((vips.join(" ").as_str(), is_kept), (expected, expected.contains("db")));
        assert_eq!(now.running == before.running, is_kept, "one without the other leads nowhere");
        assert_eq!(now.services.len(), 2, "services are those of now");
    }

    #[test]
    fn nothing_was_told_before() {
        let mut now = Swarm { untold: vec!["back".to_owned()], ..swarm(&["api"], &["api"]) };
        assert!(!now.keep_vips(None, YOUNG));
        assert_eq!(now.vips.len(), 1);
    }
}
