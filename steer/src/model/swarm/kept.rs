//! Virtual addresses that an answer leaves out, because Docker did not tell what is in one of the networks.
//!
//! Problem: Docker fails now and then, or takes its time. Whoever calls an address that is not steered any more is Swarm's matter, with
//! all that Swarm does to it; whoever is steered by what was told long ago is sent to tasks that may have ended.
//! Approach: what was told last of those networks stands for a moment. After that, only what is told counts.

use std::collections::BTreeSet;
use std::time::Duration;

use steer_common::limits::SWARM_LEASE_SECS;

use super::Swarm;
use super::vips::Vip;

/// How long what was told last stands: half of the kernel's lease, so that the lease does not end before something else is told.
pub const KEPT: Duration = Duration::from_secs(SWARM_LEASE_SECS as u64 / 2);

impl Swarm {
    /// Takes over the virtual addresses of the answer before if some are left out here; whether it does. `age`: of the last answer
    /// that left out none.
    pub fn keep_vips(&mut self, before: Option<&Self>, age: Option<Duration>) -> bool {
        let Some(before) = before.filter(|_| !self.untold.is_empty() && age.is_some_and(|age| age < KEPT)) else {
            return false;
        };
        let is_untold = |vip: &&Vip| self.untold.iter().any(|untold| untold.leaves_out(&vip.network));
        let kept: Vec<_> = before.vips.iter().filter(is_untold).cloned().collect();
        if let Some(before) = &before.running {
            // Which tasks of a service run is told of all its networks at once.
            let services: BTreeSet<&str> = self.vips.iter().map(|vip| vip.service.as_str()).collect();
            let of_untold = kept.iter().filter(|vip| !services.contains(vip.service.as_str()));
            let tasks = of_untold.flat_map(|vip| vip.tasks.keys()).filter(|task| before.contains(*task));
            self.running.get_or_insert_default().extend(tasks.cloned());
        }
        self.vips.extend(kept);
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
    use crate::model::swarm::{Service, Untold};

    /// A manager's answer, with virtual addresses as `network/service:task,task`, and those of the tasks that run.
    fn swarm(vips: &str, running: &str) -> Swarm {
        let service = |name: &str| Service { id: None, name: name.to_owned(), ports: Vec::new() };
        let vip = |text: &str| {
            let (network, rest) = text.split_once('/').unwrap();
            let (service, tasks) = rest.split_once(':').unwrap();
            let tasks = tasks.split(',').map(|task| (task.to_owned(), [10, 0, 1, 3].into())).collect();
            let (network, service) = (network.to_owned(), service.to_owned());
            Vip { network, service, address: [10, 0, 1, 2].into(), tasks }
        };
        Swarm {
            services: ["api", "db"].map(service).into(),
            tasks: Some(BTreeMap::new()),
            vips: vips.split_whitespace().map(vip).collect(),
            running: (!running.is_empty()).then(|| running.split_whitespace().map(str::to_owned).collect()),
            ..Swarm::default()
        }
    }

    /// As [`swarm`] reads it: addresses by network and service, and who runs.
    fn text(swarm: &Swarm) -> (String, String) {
        let vip = |vip: &Vip| {
            let tasks: Vec<_> = vip.tasks.keys().map(String::as_str).collect();
            format!("{}/{}:{}", vip.network, vip.service, tasks.join(","))
        };
        let running = swarm.running.iter().flatten().map(String::as_str).collect::<Vec<_>>();
        (swarm.vips.iter().map(vip).collect::<Vec<_>>().join(" "), running.join(" "))
    }

    const YOUNG: Option<Duration> = Some(Duration::from_secs(1));
    const BEFORE: (&str, &str) = ("front/api:a1,a2 back/api:a1,a2 back/db:d1,d2 back/gone:g1", "a1 a2 d1 g1");

    #[rstest]
    #[case::all_are_told(&[], YOUNG, "front/api:a1 back/api:a1", "a1", None)]
    #[case::what_is_left_out_stands(
        &["back"],
        YOUNG,
        "front/api:a1",
        "a1",
        Some(("front/api:a1 back/api:a1,a2 back/db:d1,d2", "a1 d1 g1"))
    )]
    #[case::not_for_long(&["back"], Some(KEPT), "front/api:a1", "a1", None)]
    #[case::or_was_never_told(&["back"], None, "front/api:a1", "a1", None)]
    #[case::nobody_tells_who_runs(
        &["*"],
        YOUNG,
        "",
        "",
        Some(("front/api:a1,a2 back/api:a1,a2 back/db:d1,d2", "a1 a2 d1 g1"))
    )]
    fn what_was_told_last_of_a_network_stands_for_a_moment(
        #[case] untold: &[&str],
        #[case] age: Option<Duration>,
        #[case] vips: &str,
        #[case] running: &str,
        #[case] kept: Option<(&str, &str)>,
    ) {
        let untold = untold.iter().map(|name| {
            let network = (*name != "*").then(|| (*name).to_owned());
            Untold { network, why: "no answer".to_owned() }
        });
        let mut now = Swarm { untold: untold.collect(), ..swarm(vips, running) };
        let is_kept = now.keep_vips(Some(&swarm(BEFORE.0, BEFORE.1)), age);
        assert_eq!(is_kept, kept.is_some());
        let (vips, running) = kept.unwrap_or((vips, running));
        assert_eq!(text(&now), (vips.to_owned(), running.to_owned()));
    }

    #[test]
    fn nothing_was_told_before() {
        let untold = vec![Untold { network: Some("back".to_owned()), why: "no answer".to_owned() }];
        let mut now = Swarm { untold, ..swarm("front/api:a1", "a1") };
        assert!(!now.keep_vips(None, YOUNG));
        assert_eq!(now.vips.len(), 1);
    }
}
