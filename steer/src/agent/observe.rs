//! What Docker says of a container, taken in: known, refused, forgotten.

use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;
use steer_common::state::BackendState;

use super::tracked::{Stop, Tracked};
use super::{Agent, Source};
use crate::host::cgroup;
use crate::host::clock::since_boot;
use crate::host::netns::{Netns, enable_gro, other_ways, reach};
use crate::model::cause::{self, Cause};
use crate::model::desired::BackendKey;
use crate::model::labels::{answers_elsewhere, network_leg};
use crate::model::stops::{InitEvent, is_new};
use crate::model::swarm::Membership;
use crate::model::{Container, ContainerId, Problem, Reach, Spec};

impl Agent {
    /// Takes in what Docker says of a running container; `started` is the cause of one that was not known.
    pub(super) fn observe(&mut self, container: &Container, started: Cause) {
        self.take_place(container);
        self.learn_ports(container, false);
        let of_this_run = self.tracked.get(&container.id).filter(|tracked| tracked.run == container.started_at);
        // A service must not change while its container runs, only because that has got another name.
        let first_name = of_this_run.map_or(&container.name, |tracked| &tracked.first_name).clone();
        let spec = match self.asked_for(&first_name, container) {
            Ok(Some(spec)) => spec,
            Ok(None) => return self.forget(&container.id, Cause::label("no label steer.port, and no published port")),
            Err(problems) => return self.refuse_container(container, problems),
        };
        let address = match network_leg(&spec, container) {
            Ok(address) => address,
            Err(problem) => return self.refuse_container(container, vec![problem]),
        };
        if Membership::of(&container.labels).is_some()
            && let Some(problem) = answers_elsewhere(container, address, self.host_addresses.here())
        {
            return self.refuse_container(container, vec![problem]);
        }
        let stays = of_this_run.is_some_and(|tracked| tracked.address == address && !tracked.has_moved());
        if stays && let Some(tracked) = self.tracked.get_mut(&container.id) {
            tracked.has_problem = false;
            tracked.name.clone_from(&container.name);
            tracked.spec = spec;
            tracked.is_moved = false;
            tracked.paused = container.paused;
            // `starting` after `healthy` is dockerd's restart, not the container's; the lifecycle knows.
            tracked.health = container.health;
            self.problems.remove(&Source::Container(container.id.clone()));
            return self.settle_task(&container.id);
        }
        match self.track(container, first_name, spec, address, started) {
            Ok(tracked) => {
                self.problems.remove(&Source::Container(container.id.clone()));
                self.insert(tracked);
            }
            Err(error) => {
                let problem = Problem::of(container.name.clone(), format!("{error:#}"));
                self.keep_or_refuse(&container.id, problem, |before| before.run == container.started_at);
            }
        }
    }

    /// A container (or static backend) that could not be looked at. One that `is_same` as before, and whose way is still there, as far as
    /// can be seen, keeps its open connections: what has come and gone meanwhile may be another way, and the next look is another one.
    pub(super) fn keep_or_refuse(
        &mut self,
        id: &ContainerId,
        problem: Problem,
        is_same: impl FnOnce(&Tracked) -> bool,
    ) {
        let is_there = |before: &&mut Tracked| is_same(before) && before.has_way();
        match self.tracked.get_mut(id).filter(is_there) {
            Some(before) => {
                before.has_problem = true;
                before.is_moved = true;
                self.settle(id);
                self.say(Source::Container(id.clone()), vec![problem]);
            }
            None => self.refuse(id, vec![problem]),
        }
    }

    /// A container that was not known, or not this run of it, or not at this place.
    fn track(
        &mut self,
        container: &Container,
        first_name: String,
        mut spec: Spec,
        address: IpAddr,
        started: Cause,
    ) -> Result<Tracked> {
        let netns = Netns::of_pid(container.pid)?;
        if self.uplinks.has_xdp()
            && let Err(error) = enable_gro(&netns, address)
        {
            tracing::warn!(container = container.name, %error, "switching GRO on failed: reached through tc");
        }
        let (address, reach) = reach(&netns, Some(address))?;
        self.attach_backend(reach.ifindex)?;
        let other_ways = other_ways(&netns, &reach)?;
        for way in &other_ways {
            self.attach_backend(*way)?;
        }
        let key = BackendKey { container: container.id.clone(), netns_cookie: reach.netns_cookie };
        let mut first_name = first_name;
        // An earlier agent may have seen this run before it was renamed.
        if spec.service == first_name
            && let Some(service) = self.applied.service_of(&key)
        {
            spec.service.clone_from(service);
            first_name.clone_from(service);
        }
        let cgroup = cgroup::id(&self.settings.cgroup, container.pid).unwrap_or_else(|error| {
            tracing::warn!(container = container.name, %error, "its cgroup is not found: a pause is told by Docker alone");
            None
        });
        let mut tracked = Tracked {
            first_name,
            run: container.started_at.clone(),
            health: container.health,
            paused: container.paused,
            stop_signal: container.stop_signal,
            stop_timeout: container.stop_timeout,
            pid: container.pid,
            cgroup,
            task: Membership::of(&container.labels).map(|of| of.task),
            other_ways,
            cause: started,
            ..Tracked::new(container.id.clone(), container.name.clone(), spec, netns, address, reach)
        };
        self.go_on(&mut tracked);
        Ok(tracked)
    }

    /// Goes on where this agent was with the same run, or an earlier agent with this backend; and looks for its listeners, if they decide.
    pub(super) fn go_on(&mut self, tracked: &mut Tracked) {
        match self.tracked.get(&tracked.id).filter(|before| before.run == tracked.run) {
            // The same run at another place: what was asked of it still holds.
            Some(before) => tracked.go_on_from(before),
            None => self.resume(tracked),
        }
        if tracked.by_listening() {
            tracked.look();
        }
    }

    /// Goes on where an earlier agent was with this backend.
    fn resume(&mut self, tracked: &mut Tracked) {
        let Some(before) = self.applied.backends.get(&tracked.key()) else { return };
        tracked.state = before.state;
        tracked.cause = Cause::read(&before.info.cause);
        tracked.since = before.info.since;
        tracked.maintenance = before.info.maintenance;
        tracked.operator_weight = before.info.operator_weight;
        tracked.put_in = before.info.put_in;
        let is_stopping = matches!(before.state, BackendState::Draining | BackendState::Drained);
        tracked.leaving = tracked.cause.leaving().filter(|_| is_stopping);
        if is_stopping && tracked.leaving.is_none() {
            let by_event = tracked.cause.source == cause::Source::Event;
            tracked.stopping = Some(Stop { signal: tracked.stop_signal, at: since_boot(), by_event });
        }
        // What the kernel saw while there was no agent, and before this backend was known to this one.
        tracked.edges = before.gate.edges;
        match self.maps.edges(before.id) {
            Ok(edge) => {
                if is_new(&edge, tracked.edges)
                    && let Some(InitEvent::Signal(signal)) = InitEvent::of(&edge)
                {
                    self.stops.seen(&tracked.id, signal, Duration::from_nanos(edge.at_ns));
                }
                tracked.take_in(&edge);
                // Its stop signal came after the swarm's word, and changed nothing then.
                if tracked.leaving.is_some()
                    && let Some(InitEvent::Signal(signal)) = InitEvent::of(&edge)
                {
                    tracked.stopping = Some(Stop { signal, at: Duration::from_nanos(edge.at_ns), by_event: false });
                }
            }
            Err(error) => tracing::warn!(error = format!("{error:#}"), "reading what the kernel saw failed"),
        }
    }

    /// A container that cannot be steered to as it is now. Its open connections go on for as long as it is reached the same way.
    fn refuse_container(&mut self, container: &Container, problems: Vec<Problem>) {
        let id = &container.id;
        let Some((first_name, spec, address, reach)) = self.steered_before(container) else {
            return self.refuse(id, problems);
        };
        // Once more: it may answer by other ways now.
        match self.track(container, first_name, spec, address, Cause::problem()) {
            Ok(mut tracked) if is_same_place(&tracked.reach, &reach) => {
                tracked.has_problem = true;
                self.insert(tracked);
            }
            // A way that has come and gone meanwhile, perhaps: the next look is another one.
            Err(error) if self.tracked.get(id).is_some_and(Tracked::has_way) => {
                tracing::warn!(container = container.name, error = format!("{error:#}"), "looking at it failed");
                if let Some(tracked) = self.tracked.get_mut(id) {
                    tracked.has_problem = true;
                }
                self.settle(id);
            }
            _ => return self.refuse(id, problems),
        }
        self.say(Source::Container(id.clone()), problems);
    }

    /// How this run of a container was steered to before there was a problem, by this agent or an earlier one.
    fn steered_before(&self, container: &Container) -> Option<(String, Spec, IpAddr, Reach)> {
        if let Some(before) = self.tracked.get(&container.id) {
            let as_before = || (before.first_name.clone(), before.spec.clone(), before.address, before.reach);
            return (before.run == container.started_at).then(as_before);
        }
        // Of another run, its namespace is another one too.
        let left = self.applied.candidate_of(&container.id)?;
        Some((container.name.clone(), left.spec, left.address, left.reach))
    }

    /// A container that cannot be steered to: said once, and shown while it lasts.
    pub(super) fn refuse(&mut self, id: &ContainerId, problems: Vec<Problem>) {
        let said = self.problems.remove(&Source::Container(id.clone()));
        self.forget(id, Cause::problem());
        self.problems.extend(said.map(|said| (Source::Container(id.clone()), said)));
        self.say(Source::Container(id.clone()), problems);
    }

    pub(super) fn forget(&mut self, id: &ContainerId, cause: Cause) {
        self.problems.remove(&Source::Container(id.clone()));
        self.undescribed.remove(id);
        self.forget_freezer(id);
        if let Some(tracked) = self.tracked.remove(id) {
            tracing::info!(backend = tracked.name, service = tracked.spec.service, "backend gone");
            self.write_state(&tracked.key(), BackendState::Gone, tracked.gate());
            self.tell_of_gone(&tracked, cause);
        }
    }

    /// One that was not known, or not at this place.
    pub(super) fn insert(&mut self, tracked: Tracked) {
        let id = tracked.id.clone();
        let before = self.tracked.remove(&id);
        if let Some(before) = before.as_ref().filter(|before| before.run != tracked.run) {
            self.forget_freezer(&id);
            self.tell_of_gone(before, Cause::new(cause::Source::Resync, "another run"));
        }
        let goes_on = before.is_some_and(|before| before.run == tracked.run);
        if !goes_on && !self.applied.backends.contains_key(&tracked.key()) {
            self.tell_of_new(&tracked);
        }
        let pid = tracked.pid;
        self.tracked.insert(id.clone(), tracked);
        if pid > 0 {
            self.watch_freezer(&id, pid);
        }
        self.settle_task(&id);
    }
}

/// Whether the same interface leads to the same namespace.
pub(super) fn is_same_place(one: &Reach, other: &Reach) -> bool {
    (one.ifindex, one.netns_cookie) == (other.ifindex, other.netns_cookie)
}

impl Tracked {
    /// Takes over what was known of the same run.
    fn go_on_from(&mut self, before: &Self) {
        self.state = before.state;
        self.cause = before.cause.clone();
        self.since = before.since;
        self.stopping = before.stopping;
        self.leaving = before.leaving;
        self.exited = before.exited;
        self.edges = before.edges;
        self.survived = before.survived;
        self.maintenance = before.maintenance;
        self.put_in = before.put_in;
        self.operator_weight = before.operator_weight;
        self.flows = before.flows;
        self.seen = Instant::min(self.seen, before.seen);
    }
}
