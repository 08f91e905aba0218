//! What the swarm says, taken in: which ports a task serves, and whether it leaves.

use std::collections::BTreeSet;
use std::time::Instant;

use steer_common::service::ServiceEntry;

use super::{Agent, Source};
use crate::docker::{Role, Told};
use crate::host::clock::since_boot;
use crate::model::labels::{spec, spec_of_task};
use crate::model::swarm::polls::Polls;
use crate::model::swarm::{Leaving, Membership, Swarm};
use crate::model::{Container, ContainerId, PortSpec, Problem, ServiceName, Spec};

/// What is known of the swarm that this Docker is part of.
#[derive(Debug, Default)]
pub(super) struct Known {
    /// `None` = it is part of none, or has not answered yet.
    swarm: Option<Swarm>,
    asked: Option<Instant>,
    role: Option<Role>,
    polls: Polls,
}

impl Agent {
    /// Something happened that may be followed by what has no event.
    pub(super) fn swarm_happened(&mut self) {
        self.known.polls.happened(since_boot());
    }

    /// The same for a container, which need not be part of a swarm.
    pub(super) fn task_happened(&mut self) {
        if self.known.swarm.is_some() {
            self.swarm_happened();
        }
    }

    /// When the swarm is to be asked next.
    pub(super) fn swarm_due(&self) -> Option<Instant> {
        if self.docker_version.is_none() || self.questions.is_asking_swarm() {
            return None;
        }
        self.known.polls.due().map(|due| Instant::now() + due.saturating_sub(since_boot()))
    }

    /// Asks the swarm if it is time.
    pub(super) fn ask_swarm(&mut self) {
        if self.swarm_due().is_some()
            && let Some(docker) = &self.settings.docker
            && self.known.polls.take(since_boot())
        {
            // One that was outside may have joined.
            let role = self.known.role.clone().filter(|role| *role != Role::Outside);
            self.questions.swarm(docker, role, self.networks());
        }
    }

    /// Takes in what the swarm says; whether its services are others than before.
    pub(super) fn take_swarm(&mut self, told: Told) -> bool {
        let Told { asked, role, swarm } = told;
        if self.known.asked.is_some_and(|newer| newer > asked) {
            return false;
        }
        self.known.role = role;
        let swarm = match swarm {
            Ok(swarm) => swarm,
            Err(error) => {
                let message =
                    format!("{error:#}; what is known of its services and tasks stays, and is asked for anew");
                self.say(Source::Swarm, vec![Problem { container: "Swarm".to_owned(), label: None, message }]);
                return false;
            }
        };
        self.problems.remove(&Source::Swarm);
        let is_updating = swarm.as_ref().is_some_and(|swarm| swarm.is_updating);
        let has_remote = swarm.as_ref().is_some_and(|swarm| self.has_remote(swarm));
        self.known.polls.answered(is_updating, has_remote, since_boot());
        self.renew_vips();
        self.swarm_knows_ends(asked);
        let services = |swarm: &Option<Swarm>| swarm.as_ref().map(|swarm| swarm.services.clone());
        let is_other = services(&self.known.swarm) != services(&swarm);
        (self.known.swarm, self.known.asked) = (swarm, Some(asked));
        self.settle_tasks();
        is_other
    }

    /// Virtual addresses lead to whoever is known now.
    pub(super) fn sync_swarm(&mut self) {
        let (vips, running) = match &self.known.swarm {
            Some(Swarm { vips, running, .. }) => (vips.clone(), running.clone()),
            None => Default::default(),
        };
        self.sync_vips(&vips, running.as_ref());
    }

    /// The Swarm services whose tasks are all on this node, and backends. As long as nobody has told, what is in the maps.
    pub(super) fn all_here(&self) -> BTreeSet<ServiceName> {
        match &self.known.swarm {
            Some(swarm) => swarm.all_steered(self.serving()),
            None => {
                let has_it = |entry: &ServiceEntry| entry.flags & ServiceEntry::ALL_HERE != 0;
                let services = self.applied.services.iter().filter(|(_, service)| has_it(&service.entry));
                services.map(|(name, _)| name.clone()).collect()
            }
        }
    }

    /// Who leaves gets nothing new from now on.
    fn settle_tasks(&mut self) {
        let tasks =
            self.tracked.values().filter_map(|tracked| Some((tracked.id.clone(), tracked.task.clone()?, tracked.seen)));
        let tasks: Vec<(ContainerId, String, Instant)> = tasks.collect();
        for (id, task, seen) in tasks {
            let leaving = self.leaving(&task, seen);
            if let Some(tracked) = self.tracked.get_mut(&id) {
                tracked.leaving = leaving;
            }
            self.settle(&id);
        }
    }

    /// Whether a task must take nothing new. That the swarm knows no such task means something only if it was asked after the
    /// task's container was `seen`: the task was there before it.
    pub(super) fn leaving(&self, task: &str, seen: Instant) -> Option<Leaving> {
        let leaving = self.known.swarm.as_ref()?.leaving(task)?;
        let is_known = leaving != Leaving::Unknown || self.known.asked.is_some_and(|asked| asked >= seen);
        is_known.then_some(leaving)
    }

    /// What a container asks for: by its labels, or because its service publishes ports.
    pub(super) fn asked_for(&self, name: &str, container: &Container) -> Result<Option<Spec>, Vec<Problem>> {
        let defaults = &self.settings.config.defaults;
        let Some(of) = Membership::of(&container.labels) else { return spec(name, &container.labels, defaults) };
        spec_of_task(name, &container.labels, &self.ports_of(&of, container), defaults)
    }

    /// The ports of a task. They never change: Swarm replaces the tasks of a service whose ports do, and what is open to the old ones
    /// stays. On a worker a service's ports may be told late, so there the latest word counts, as long as there is one.
    fn ports_of(&self, of: &Membership, container: &Container) -> Vec<PortSpec> {
        let swarm = self.known.swarm.as_ref();
        let told = swarm.and_then(|swarm| swarm.ports(of)).map(<[_]>::to_vec);
        let is_manager = swarm.is_some_and(|swarm| swarm.tasks.is_some());
        let known = self.known_ports(container);
        if is_manager { known.or(told) } else { told.or(known) }.unwrap_or_default()
    }

    /// The ports by which this run of a container is known to this agent, or was to the one before.
    fn known_ports(&self, container: &Container) -> Option<Vec<PortSpec>> {
        let tracked = self.tracked.get(&container.id);
        let spec = match tracked {
            Some(tracked) => (tracked.run == container.started_at).then(|| tracked.spec.clone()),
            None if !self.applied.backends.keys().any(|key| key.container == container.id) => None,
            None => self.applied.candidates().into_iter().find(|left| left.id == container.id).map(|left| left.spec),
        }?;
        spec.mesh.then_some(spec.ports)
    }
}
