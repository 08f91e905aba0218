//! Published ports that the mesh has given to another service, while the old one's tasks still serve them here.
//!
//! Problem: ports of tasks never change ([`ports`](super::ports)), those of services do: the mesh sends whoever comes to the new service as
//! soon as Swarm has its ports, and the old one's tasks end later.
//! Approach: such a port is left to the mesh. What is open there stays.

use std::collections::BTreeSet;

use super::{Membership, Service, Swarm};
use crate::model::frontend::Frontend;
use crate::model::{PortSpec, ServiceName, Spec};

/// A backend on this node.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Backend<'a> {
    /// `None` = it is no task.
    pub of: Option<&'a Membership>,
    pub spec: &'a Spec,
    pub is_ready: bool,
}

impl Swarm {
    /// Frontends that the mesh has given to other services than the one whose backends serve there. None on a worker, where nobody tells.
    pub fn moved(&self, backends: &[Backend<'_>]) -> BTreeSet<(ServiceName, Frontend)> {
        if !self.is_of_manager() {
            return BTreeSet::new();
        }
        let (mut moved, mut stays) = (BTreeSet::new(), BTreeSet::new());
        for Backend { of, spec, .. } in backends {
            let of = of.filter(|_| spec.mesh);
            for port in &spec.ports {
                let has_moved = of.is_some_and(|of| self.has_moved(of, port, backends));
                let set = if has_moved { &mut moved } else { &mut stays };
                set.insert((spec.service.clone(), Frontend::of(port)));
            }
        }
        &moved - &stays
    }

    /// Whether another service publishes a port instead of a task's own. A task of one that was removed goes on for as long as nobody here
    /// is ready in its stead.
    fn has_moved(&self, of: &Membership, port: &PortSpec, backends: &[Backend<'_>]) -> bool {
        let is_ready = |service: &Service| {
            backends.iter().any(|backend| backend.is_ready && backend.of.is_some_and(|of| service.has(of)))
        };
        let mut publish = self.services.iter().filter(|service| service.publishes(port));
        match self.service(of) {
            Some(own) if own.publishes(port) => false,
            Some(_) => publish.next().is_some(),
            None => publish.any(is_ready),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use rstest::rstest;

    use super::*;
    use crate::model::Protocol;
    use crate::model::fixtures::candidate;
    use crate::model::swarm::published;

    /// What a manager says, of services as `id name port`.
    fn swarm(services: &[&str]) -> Swarm {
        let service = |text: &&str| {
            let [id, name, port] = text.split(' ').collect::<Vec<_>>().try_into().unwrap();
            let ports = published([(port.parse().unwrap(), 5000, Protocol::Tcp)]);
            Service { id: Some(id.to_owned()), name: name.to_owned(), ports }
        };
        let services = services.iter().map(service).collect();
        Swarm { services, tasks: Some(BTreeMap::new()), ..Swarm::default() }
    }

    /// Which frontends have moved from backends as `id name port`: tasks of that service (`-` = it is no task), which are steered as
    /// that name, at that port; `*` = it is ready.
    fn moved(swarm: &Swarm, backends: &[&str]) -> String {
        let backend = |text: &&str| {
            let [id, name, port] = text.trim_end_matches('*').split(' ').collect::<Vec<_>>().try_into().unwrap();
            let of = Membership { service_id: id.to_owned(), service: name.to_owned(), task: (*text).to_owned() };
            let spec = Spec { mesh: true, ..candidate(name, 1, &format!("{port}:5000")).spec };
            ((id != "-").then_some(of), spec, text.ends_with('*'))
        };
        let backends: Vec<_> = backends.iter().map(backend).collect();
        let backends =
            backends.iter().map(|(of, spec, is_ready)| Backend { of: of.as_ref(), spec, is_ready: *is_ready });
        let moved = swarm.moved(&backends.collect::<Vec<_>>());
        moved.iter().map(|(service, frontend)| format!("{service}:{}", frontend.port)).collect::<Vec<_>>().join(" ")
    }

    #[rstest]
    #[case::it_has_it_still(&["s1 web 80"], &["s1 web 80*"], "")]
    #[case::nobody_has_it(&["s1 web 81"], &["s1 web 80*"], "")]
    #[case::another_one_has_it(&["s1 web 81", "s2 api 80"], &["s1 web 80*"], "web:80")]
    #[case::but_not_the_new_one(&["s1 web 81", "s2 api 80"], &["s1 web 80", "s1 web 81*"], "web:80")]
    #[case::it_was_removed(&["s2 api 80"], &["s1 web 80*", "s2 api 80"], "")]
    #[case::and_the_other_one_is_ready(&["s2 api 80"], &["s1 web 80", "s2 api 80*"], "web:80")]
    #[case::it_is_there_anew_and_not_ready(&["s2 web 80"], &["s1 web 80*"], "")]
    #[case::both_are_steered_as_one(&["s2 web 80"], &["s1 web 80", "s2 web 80*"], "")]
    #[case::or_somebody_who_is_no_task_is(&["s1 web 81", "s2 api 80"], &["s1 web 80*", "- web 80*"], "")]
    fn a_port_moves_to_the_service_that_publishes_it_now(
        #[case] services: &[&str],
        #[case] backends: &[&str],
        #[case] expected: &str,
    ) {
        let swarm = swarm(services);
        assert_eq!(moved(&swarm, backends), expected);
        assert_eq!(moved(&Swarm { tasks: None, ..swarm }, backends), "", "a worker cannot know");
    }

    #[test]
    fn a_port_that_labels_ask_for_is_none_of_the_meshs() {
        let of = Membership { service_id: "s1".to_owned(), service: "web".to_owned(), task: "t1".to_owned() };
        let spec = candidate("web", 1, "80:5000").spec;
        let backend = Backend { of: Some(&of), spec: &spec, is_ready: true };
        assert!(!spec.mesh);
        assert_eq!(swarm(&["s1 web 81", "s2 api 80"]).moved(&[backend]), BTreeSet::new());
    }
}
