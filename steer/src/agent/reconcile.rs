//! Desired, plan, apply; and what has to be looked at because nobody tells.

use std::time::{Duration, Instant};

use steer_common::backend::BackendState;

use super::docker::is_docker;
use super::takeover::{Takeover, at_one_go};
use super::{Agent, Source};
use crate::dataplane::attach;
use crate::dataplane::paths::LinkName;
use crate::host::clock::{boot_secs, since_boot};
use crate::model::desired::desired;
use crate::model::plan::{Blocked, Op, plan};
use crate::model::{Candidate, ContainerId, Observed, Problem};

/// How soon a write that failed is tried again.
const AGAIN: Duration = Duration::from_millis(500);

impl Agent {
    /// Brings the maps in line with what is known. Does nothing when they are, or while another version of steer has to go on.
    pub(super) fn reconcile(&mut self) {
        if self.must_wait() {
            // A moment that was waited for before would be over at every look.
            self.wake = self.takeover.due();
            return;
        }
        let mut candidates: Vec<_> = self.tracked.values().map(super::tracked::Tracked::candidate).collect();
        if self.settings.docker.is_some() && !self.undescribed.is_empty() {
            candidates.extend(self.inherited());
        }
        let now = since_boot();
        let remembered = self.memory.remember(&self.applied, &candidates, now);
        // Whoever leaves the host waits for connections that are open, not for new ones.
        let remembered = if self.closing { Vec::new() } else { remembered };
        let observed = Observed {
            candidates,
            all_here: self.all_here(),
            remembered,
            host_addresses: self.host_addresses.here().clone(),
            lost_addresses: self.host_addresses.lost(now),
            closing: self.closing,
        };
        let (desired, problems) = desired(&observed, &self.applied.port_index());
        self.say(Source::Desired, problems);
        let (ops, problems) = plan(&desired, &self.applied, boot_secs());
        self.say(Source::Plan, problems);
        let is_first = matches!(self.takeover, Takeover::Waits(_)) && self.applied.backends.is_empty();
        let ops = if is_first { at_one_go(ops) } else { ops };
        let mut removed = false;
        let mut blocked = Blocked::default();
        for op in ops {
            if blocked.waits(&op, &self.applied) {
                continue;
            }
            match self.apply(&op) {
                Ok(()) => {
                    if let Op::AddBackend { key, id, entry, .. } = &op {
                        // Before it gets the first flow, which it may be told to stop right after.
                        self.mark_foreign(key, *id, entry.generation);
                        self.tell_inits();
                    }
                    removed |= matches!(op, Op::RemoveBackend { .. });
                }
                Err(error) => {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "writing to the maps failed; tried again in {AGAIN:?}"
                    );
                    blocked.failed(&op, &self.applied);
                }
            }
        }
        if removed {
            self.drop_unused_veths();
        }
        self.sync_swarm();
        self.tell_inits();
        self.replay();
        self.take_over(blocked.is_empty());
        let again = (!blocked.is_empty()).then_some(AGAIN);
        let ends = [self.memory.next_end(now), self.host_addresses.next_end(now)];
        let ends = ends.into_iter().flatten().map(|end| end - now);
        let waits = again.into_iter().chain(ends).map(|wait| Instant::now() + wait);
        self.wake = waits.chain(self.takeover.due()).min();
    }

    /// Carries out one operation, and notes it. Whoever waits for a backend is sent on soon after one is ready, here or (for
    /// all that is known) behind the mesh.
    pub(super) fn apply(&mut self, op: &Op) -> anyhow::Result<()> {
        self.maps.apply(op)?;
        self.applied.note(op);
        match op {
            Op::SetState { state: BackendState::Ready, .. } => self.replay_soon(),
            Op::PutService { entry, .. } if entry.leaves_to_mesh(true) => self.replay_soon(),
            _ => {}
        }
        Ok(())
    }

    /// What an earlier agent left, as long as Docker has not described it: an agent that knows nothing changes nothing.
    fn inherited(&self) -> impl Iterator<Item = Candidate> {
        let unknown = |candidate: &Candidate| {
            let id = &candidate.id;
            is_docker(id) && self.undescribed.contains(id) && !self.tracked.contains_key(id)
        };
        self.applied.candidates().into_iter().filter(unknown)
    }

    /// Takes the programs off veths that no backend is behind any more, those that an earlier agent attached to as well.
    fn drop_unused_veths(&mut self) {
        let links = match attach::links(&self.settings.paths) {
            Ok(links) => links,
            Err(error) => return tracing::warn!(error = format!("{error:#}"), "looking for unused veths failed"),
        };
        let used = |ifindex| {
            self.applied.backends.values().any(|backend| backend.entry.ifindex == ifindex)
                || self.applied.endpoints.keys().any(|endpoint| endpoint.ifindex == ifindex)
                || self.tracked.values().any(|tracked| is_way(tracked, ifindex))
        };
        let veths = links.into_iter().filter_map(|name| match name {
            LinkName::Veth(ifindex) => Some(ifindex),
            _ => None,
        });
        let unused: Vec<_> = veths.filter(|ifindex| !used(*ifindex)).collect();
        for ifindex in unused {
            if let Err(error) = attach::remove(&self.settings.paths, &LinkName::Veth(ifindex)) {
                tracing::warn!(ifindex, error = format!("{error:#}"), "detaching from a veth failed");
            }
            self.uplinks.veths.remove(&ifindex);
        }
    }

    /// Keeps the problems of a source, and logs those that are new.
    pub(super) fn say(&mut self, source: Source, problems: Vec<Problem>) {
        let before = self.problems.get(&source);
        for problem in &problems {
            if before.is_none_or(|before| !before.contains(problem)) {
                tracing::error!(container = problem.container, label = problem.label, "{}", problem.message);
            }
        }
        if problems.is_empty() {
            self.problems.remove(&source);
        } else {
            self.problems.insert(source, problems);
        }
    }

    /// Attaches to the host end of a container's veth.
    pub(super) fn attach_backend(&mut self, ifindex: u32) -> anyhow::Result<()> {
        if self.uplinks.veths.contains(&ifindex) {
            return Ok(());
        }
        attach::backend(&mut self.bpf, &self.settings.paths, ifindex)?;
        self.uplinks.veths.insert(ifindex);
        Ok(())
    }

    /// Whether something changes that nobody tells of: a listener that comes up, a flow that ends.
    pub(super) fn has_to_look(&self) -> bool {
        self.closing
            || self.waiting.is_due()
            || self.tracked.values().any(|tracked| waits_for_listener(tracked) || tracked.is_stopping())
    }

    /// Looks; whether anything changed.
    pub(super) fn look(&mut self) -> bool {
        let mut changed = false;
        let waiting: Vec<ContainerId> = self
            .tracked
            .values()
            .filter(|tracked| waits_for_listener(tracked))
            .map(|tracked| tracked.id.clone())
            .collect();
        for id in waiting {
            if let Some(tracked) = self.tracked.get_mut(&id) {
                tracked.look();
            }
            changed |= self.settle_changed(&id);
        }
        changed |= self.look_at_flows();
        self.look_at_waiting();
        self.replay();
        changed
    }

    /// Looks at everybody whom listening decides about: a slow starter that is no longer watched closely, and one that has
    /// stopped to listen.
    pub(super) fn look_at_all(&mut self) {
        let ids: Vec<ContainerId> = self
            .tracked
            .values()
            .filter(|tracked| tracked.by_listening() && tracked.stopping.is_none())
            .map(|tracked| tracked.id.clone())
            .collect();
        for id in ids {
            if let Some(tracked) = self.tracked.get_mut(&id) {
                tracked.look();
            }
            self.settle(&id);
        }
    }

    pub(super) fn settle_changed(&mut self, id: &ContainerId) -> bool {
        let before = self.tracked.get(id).map(|tracked| tracked.state);
        self.settle(id);
        before != self.tracked.get(id).map(|tracked| tracked.state)
    }
}

/// Whether a backend lacks nothing but its listener: that is looked for every 20 ms in its first two minutes, then at each resync.
fn waits_for_listener(tracked: &super::tracked::Tracked) -> bool {
    const EAGER: Duration = Duration::from_secs(120);
    tracked.by_listening()
        && tracked.stopping.is_none()
        && !tracked.paused
        && !tracked.has_problem
        && matches!(tracked.state, BackendState::Starting | BackendState::Unready)
        && tracked.lasting() < EAGER
}

/// Whether an interface is one of the host's ends that lead to a backend.
fn is_way(tracked: &super::tracked::Tracked, ifindex: u32) -> bool {
    tracked.reach.ifindex == ifindex || tracked.other_ways.contains(&ifindex)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::is_way;
    use crate::agent::tracked::Tracked;
    use crate::host::netns::Netns;
    use crate::model::labels::{Defaults, spec};
    use crate::model::{ContainerId, Reach};

    #[test]
    fn a_backend_that_is_not_in_the_maps_yet_has_all_of_its_ways() {
        let labels = BTreeMap::from([("steer.port".to_owned(), "80:8080".to_owned())]);
        let spec = spec("web", &labels, &Defaults::default()).unwrap().unwrap();
        let netns = Netns::at("/proc/self/ns/net").unwrap();
        let reach = Reach { ifindex: 3, mac: [0; 6], netns_id: -1, netns_cookie: 1, xdp: false };
        let id = ContainerId("a".to_owned());
        let mut tracked = Tracked::new(id, "web".to_owned(), spec, netns, [172, 17, 0, 2].into(), reach);
        tracked.other_ways = vec![5, 7];
        let ways: Vec<u32> = (1..9).filter(|ifindex| is_way(&tracked, *ifindex)).collect();
        assert_eq!(ways, [3, 5, 7]);
    }
}
