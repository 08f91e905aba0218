//! What the swarm says, taken in: which ports a task serves, and whether it leaves.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use steer_common::service::ServiceEntry;
use steer_common::state::BackendState;

use super::places::networks;
use super::{Agent, Source};
use crate::docker::{Role, Told};
use crate::host::clock::since_boot;
use crate::model::frontend::Frontend;
use crate::model::labels::{spec, spec_of_task};
use crate::model::swarm::kept::KEPT;
use crate::model::swarm::moved::Backend;
use crate::model::swarm::polls::{Demand, Polls};
use crate::model::swarm::ports::{Here, Ports};
use crate::model::swarm::{Leaving, Membership, Swarm, Untold};
use crate::model::{Container, ContainerId, PortSpec, Problem, ServiceName, Spec};

/// What is known of the swarm that this Docker is part of.
#[derive(Debug, Default)]
pub(super) struct SwarmState {
    /// `None` = it is part of none, or has not answered yet.
    told: Option<Arc<Swarm>>,
    asked: Option<Instant>,
    /// When it was asked for the last answer that told of all virtual addresses.
    vips_asked: Option<Instant>,
    role: Option<Role>,
    /// The mesh's network, which need not be asked about.
    ingress: Option<String>,
    polls: Polls,
    ports: Ports,
}

impl Agent {
    /// Something happened that may be followed by what has no event.
    pub(super) fn swarm_happened(&mut self) {
        self.swarm.polls.happened(since_boot());
    }

    /// The swarm itself tells of something, which it does to managers alone: a worker that hears of it has been promoted.
    pub(super) fn swarm_told(&mut self) {
        self.swarm.role.take_if(|role| *role == Role::Worker);
        self.swarm_happened();
    }

    /// Something happened to a container, which need not be part of a swarm.
    pub(super) fn task_happened(&mut self) {
        if self.swarm.told.is_some() {
            self.swarm_happened();
        }
    }

    /// When the swarm is to be asked next.
    pub(super) fn swarm_due(&self) -> Option<Instant> {
        if !self.docker.is_connected() || self.questions.is_asking_swarm() {
            return None;
        }
        self.swarm.polls.due().map(|due| Instant::now() + due.saturating_sub(since_boot()))
    }

    /// Asks the swarm if it is time.
    pub(super) fn ask_swarm(&mut self) {
        if self.swarm_due().is_some()
            && let Some(docker) = &self.settings.docker
            && self.swarm.polls.take(since_boot())
        {
            // One that was outside may have joined.
            let role = self.swarm.role.clone().filter(|role| *role != Role::Outside);
            let mut networks = self.places.networks();
            networks.retain(|network| Some(network) != self.swarm.ingress.as_ref());
            self.questions.swarm(docker, role, networks);
        }
    }

    /// Takes in what the swarm says; whether tasks of this node serve other ports than was known.
    pub(super) fn take_swarm(&mut self, told: Told) -> bool {
        let Told { asked, role, swarm } = told;
        if self.swarm.asked.is_some_and(|newer| newer > asked) {
            return false;
        }
        self.swarm.role = role;
        let mut swarm = match swarm {
            Ok(swarm) => swarm,
            Err(error) => {
                let message =
                    format!("{error:#}; what is known of its services and tasks stays, and is asked for anew");
                self.say(Source::Swarm, vec![Problem::of("Swarm", message)]);
                return false;
            }
        };
        let keeps_vips = swarm.as_mut().is_some_and(|swarm| self.keep_vips(swarm, asked));
        let problems = swarm.iter().flat_map(|swarm| untold(swarm, keeps_vips)).collect();
        self.say(Source::Swarm, problems);
        let is_other = swarm.as_ref().is_some_and(|swarm| self.swarm.ports.answered(self.places.here(asked), swarm));
        if let Some(ingress) = swarm.as_ref().and_then(|swarm| swarm.ingress.clone()) {
            self.swarm.ingress = Some(ingress);
        }
        let demand = swarm.as_ref().map(|swarm| Demand {
            // What is not known yet is told sooner or later.
            is_updating: self.swarm.ports.are_doubted() || swarm.is_updating,
            has_remote: self.places.has_remote(swarm) || !swarm.untold.is_empty(),
            has_all_here: !swarm.all_here.is_empty(),
        });
        self.swarm.polls.answered(demand.unwrap_or_default(), since_boot());
        // What is kept is no younger for that, and names whoever has ended since.
        if !keeps_vips {
            self.renew_lease(asked);
            self.places.swarm_knows_ends(asked);
        }
        (self.swarm.told, self.swarm.asked) = (swarm.map(Arc::new), Some(asked));
        self.settle_tasks();
        is_other
    }

    /// Goes on with the virtual addresses that are known if not all are told; whether so.
    fn keep_vips(&mut self, swarm: &mut Swarm, asked: Instant) -> bool {
        let SwarmState { told: before, vips_asked, .. } = &mut self.swarm;
        if swarm.untold.is_empty() {
            *vips_asked = Some(asked);
        }
        swarm.keep_vips(before.as_deref(), vips_asked.map(|before| asked.saturating_duration_since(before)))
    }

    /// Virtual addresses lead to whoever is known now.
    pub(super) fn sync_swarm(&mut self) {
        let swarm = self.swarm.told.clone();
        self.sync_vips(swarm.as_deref());
    }

    /// What the swarm said then of other nodes is good for a while.
    fn renew_lease(&mut self, asked: Instant) {
        // As old as the question: the answer may have taken its time.
        let asked_secs = since_boot().saturating_sub(asked.elapsed()).as_secs();
        if let Err(error) = self.maps.renew_lease(u32::try_from(asked_secs).unwrap_or(u32::MAX)) {
            tracing::error!(
                error = format!("{error:#}"),
                "virtual addresses lead to this node's tasks only, and services that are on this node alone are left to the mesh"
            );
        }
    }

    /// The Swarm services whose tasks are all on this node, and backends. As long as nobody has told, what is in the maps.
    pub(super) fn all_here(&self) -> BTreeSet<ServiceName> {
        match &self.swarm.told {
            Some(swarm) => swarm.all_steered(self.serving()),
            None => {
                let has_it = |entry: &ServiceEntry| entry.flags & ServiceEntry::ALL_HERE != 0;
                let services = self.applied.services.iter().filter(|(_, service)| has_it(&service.entry));
                services.map(|(name, _)| name.clone()).collect()
            }
        }
    }

    /// Frontends whose ports the mesh has given to another service.
    pub(super) fn moved(&self) -> BTreeSet<(ServiceName, Frontend)> {
        let Some(swarm) = &self.swarm.told else { return BTreeSet::new() };
        let backends = self.tracked.values().map(|tracked| Backend {
            of: self.places.of(&tracked.id),
            spec: &tracked.spec,
            is_ready: tracked.state == BackendState::Ready,
        });
        swarm.moved(&backends.collect::<Vec<_>>())
    }

    /// Who leaves gets nothing new from now on.
    fn settle_tasks(&mut self) {
        let tasks = self.tracked.values().filter(|tracked| tracked.task.is_some());
        let tasks: Vec<ContainerId> = tasks.map(|tracked| tracked.id.clone()).collect();
        tasks.iter().for_each(|id| self.settle_task(id));
        self.settle_places();
    }

    /// Moves a backend to the state that follows from what is known, what Swarm wants of it included.
    pub(super) fn settle_task(&mut self, id: &ContainerId) {
        if let Some(tracked) = self.tracked.get(id)
            && let Some(task) = &tracked.task
        {
            let leaving = self.leaving(task, tracked.seen, tracked.leaving);
            if let Some(tracked) = self.tracked.get_mut(id) {
                tracked.leaving = leaving;
            }
        }
        self.settle(id);
    }

    /// Whether a task must take nothing new; `before`: as was known, which stands as long as no manager says otherwise. That the swarm
    /// knows no such task means something only if it was asked after the task's container was `seen`: the task was there before it.
    pub(super) fn leaving(&self, task: &str, seen: Instant, before: Option<Leaving>) -> Option<Leaving> {
        let Some(swarm) = self.swarm.told.as_ref().filter(|swarm| swarm.is_of_manager()) else { return before };
        let is_younger = self.swarm.asked.is_none_or(|asked| asked < seen);
        match swarm.leaving(task) {
            Some(Leaving::Unknown) if is_younger => None,
            leaving => leaving,
        }
    }

    /// Whether it is known what Swarm wants of the tasks here: not on a worker.
    pub(super) fn is_swarms_will_told(&self) -> bool {
        self.swarm.told.as_ref().is_some_and(|swarm| swarm.is_of_manager())
    }

    /// What a container asks for: by its labels, or because its service publishes ports.
    pub(super) fn asked_for(&self, name: &str, container: &Container) -> Result<Option<Spec>, Vec<Problem>> {
        let defaults = &self.settings.config.defaults;
        let Some(of) = Membership::of(&container.labels) else { return spec(name, &container.labels, defaults) };
        let ports = self.swarm.ports.of(&of.task).unwrap_or_default();
        spec_of_task(name, &container.labels, ports, defaults)
    }

    /// The tasks of a list, which the swarm was `asked` after.
    pub(super) fn learn_listed_ports(&mut self, containers: &[Container], asked: Instant) {
        let is_older = self.swarm.asked.is_some_and(|known| known >= asked);
        containers.iter().for_each(|container| self.learn_ports(container, is_older));
    }

    /// What a task that is new here serves: as an earlier agent knew, or as the swarm has said. `is_older`: it was there before the
    /// swarm was asked.
    pub(super) fn learn_ports(&mut self, container: &Container, is_older: bool) {
        let Some(of) = Membership::of(&container.labels) else { return };
        if self.swarm.ports.of(&of.task).is_some() {
            return;
        }
        if let Some(ports) = self.left_ports(&container.id) {
            self.swarm.ports.inherit(&of.task, ports);
        }
        let SwarmState { told, ports, .. } = &mut self.swarm;
        if let Some(swarm) = told {
            let networks = &networks(container).collect();
            ports.take_in(Here { of: &of, is_older, networks }, swarm);
        }
    }

    /// The published ports that a container serves according to the maps.
    fn left_ports(&self, id: &ContainerId) -> Option<Vec<PortSpec>> {
        let left = self.applied.candidate_of(id)?;
        left.spec.mesh.then_some(left.spec.ports)
    }
}

/// What the swarm did not tell, and what that means.
fn untold(swarm: &Swarm, is_kept: bool) -> impl Iterator<Item = Problem> {
    let outcome = if is_kept {
        format!("what was told last of virtual addresses stands for {KEPT:?}")
    } else {
        "callers of the virtual addresses that were not told are left to Swarm".to_owned()
    };
    let problem = move |Untold { why, .. }: &Untold| {
        let message = format!("{why}; {outcome}, and it is asked for anew");
        Problem::of("Swarm", message)
    };
    swarm.untold.iter().map(problem)
}
