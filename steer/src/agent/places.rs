//! The tasks of a swarm on this node, steered to or not: where they stand, and whether they may be asked for.
//!
//! A task that publishes ports is tracked as every backend is, and its state counts. Of one that publishes nothing, and is asked for by
//! its service's virtual address alone, this is all that is known.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Instant;

use super::Agent;
use crate::docker::EventKind;
use crate::host::clock::since_boot;
use crate::host::netns::{Netns, ReachError};
use crate::host::netns_ids::NetnsIds;
use crate::model::desired::BackendKey;
use crate::model::swarm::ports::Here;
use crate::model::swarm::standing::{Change, Standing};
use crate::model::swarm::vips::{Ended, Local, Place, netns_id};
use crate::model::swarm::{GATEWAY, Leaving, Membership, Serving, Swarm};
use crate::model::{Container, ContainerId};

/// The tasks on this node.
#[derive(Debug, Default)]
pub(super) struct Places {
    known: BTreeMap<ContainerId, KnownPlace>,
    ended: Ended<Instant>,
    /// Somebody came, or is in other networks: not all that may ask for one another have ids of one another.
    lack_ids: bool,
    /// The networks that they have them for.
    ids_in: BTreeSet<String>,
    /// The cookies of those whom not everybody sees who may ask for them.
    unseen: BTreeSet<u64>,
}

#[derive(Debug)]
struct KnownPlace {
    run: String,
    of: Membership,
    seen: Instant,
    place: Place,
    netns: Arc<Netns>,
    /// The cookies of those who have an id in its namespace.
    sees: BTreeSet<u64>,
    standing: Standing,
    /// The swarm wants it to end.
    leaving: Option<Leaving>,
}

impl KnownPlace {
    fn at(
        container: &Container,
        of: Membership,
        networks: BTreeSet<String>,
        standing: Standing,
    ) -> Result<Self, ReachError> {
        let netns = Arc::new(Netns::of_pid(container.pid)?);
        let place = Place { netns_cookie: netns.cookie()?, networks };
        let (run, seen) = (container.started_at.clone(), Instant::now());
        Ok(Self { run, of, seen, place, netns, sees: BTreeSet::new(), standing, leaving: None })
    }

    /// What others need to see it.
    fn seen_by(&self) -> (Place, Arc<Netns>) {
        (self.place.clone(), self.netns.clone())
    }
}

impl Places {
    /// The tasks of this node, as seen by who has `asked` the swarm then.
    pub(super) fn here(&self, asked: Instant) -> impl Iterator<Item = Here<'_>> {
        self.known.values().map(move |KnownPlace { of, seen, place, .. }| Here {
            of,
            is_older: asked >= *seen,
            networks: &place.networks,
        })
    }

    /// Whose task a container is.
    pub(super) fn of(&self, id: &ContainerId) -> Option<&Membership> {
        self.known.get(id).map(|known| &known.of)
    }

    /// The swarm has answered what it was `asked` then.
    pub(super) fn swarm_knows_ends(&mut self, asked: Instant) {
        self.ended.answered(&asked);
    }

    /// The networks whose virtual addresses are of use here.
    pub(super) fn networks(&self) -> BTreeSet<String> {
        self.known.values().flat_map(|known| known.place.networks.iter().cloned()).collect()
    }

    /// Who may ask.
    pub(super) fn askers(&self) -> Vec<Place> {
        self.with_ids().map(|(_, known)| known.place.clone()).collect()
    }

    /// The network namespace of one who may ask, by its cookie.
    pub(super) fn netns(&self, cookie: u64) -> Option<Arc<Netns>> {
        self.with_ids().find(|(_, known)| known.place.netns_cookie == cookie).map(|(_, known)| known.netns.clone())
    }

    /// Whether somebody here may ask for a task on another node.
    pub(super) fn has_remote(&self, swarm: &Swarm) -> bool {
        let local: BTreeSet<&str> = self.known.values().map(|known| known.of.task.as_str()).collect();
        swarm.vips.iter().flat_map(|vip| vip.tasks.keys()).any(|task| !local.contains(task.as_str()))
    }

    /// Takes in an event of a task.
    pub(super) fn on_event(&mut self, id: &ContainerId, event: &EventKind) {
        let said = match event {
            EventKind::Kill { signal } => Change::Signal(*signal),
            EventKind::Pause | EventKind::Unpause => Change::Paused(*event == EventKind::Pause),
            EventKind::Health(health) => Change::Health(*health),
            _ => return,
        };
        if let Some(known) = self.known.get_mut(id) {
            known.standing.take_in(said, since_boot());
        }
    }

    /// When this run of it began, as Docker writes it.
    pub(super) fn run(&self, id: &ContainerId) -> Option<&str> {
        self.known.get(id).map(|known| known.run.as_str())
    }

    /// A container has ended.
    pub(super) fn leave(&mut self, id: &ContainerId) {
        if let Some(known) = self.known.remove(id) {
            // It may have been the one who did not see somebody.
            self.lack_ids |= !self.unseen.is_empty();
            self.ended.note(known.of.task, Instant::now());
        }
    }

    /// Gives all who may ask for one another, in these networks, ids of one another, so that the kernel can look into the sockets of one
    /// for the other. Whoever gets none is asked for without being looked at.
    fn give_ids(&mut self, networks: &BTreeSet<&str>) {
        let is_known = self.ids_in.iter().map(String::as_str).eq(networks.iter().copied());
        if is_known && !self.lack_ids {
            return;
        }
        self.ids_in = networks.iter().map(|network| (*network).to_owned()).collect();
        self.lack_ids = false;
        self.unseen.clear();
        let others: Vec<(Place, Arc<Netns>)> = self.with_ids().map(|(_, known)| known.seen_by()).collect();
        self.forget_gone();
        for known in self.known.values_mut().filter(|known| !known.standing.left_alone) {
            let wanted = others.iter().filter(|(other, _)| {
                shares_any(&known.place, other, networks) && !known.sees.contains(&other.netns_cookie)
            });
            let wanted: Vec<_> = wanted.collect();
            if wanted.is_empty() {
                continue;
            }
            let mut ids = NetnsIds::inside(&known.netns).inspect_err(|error| {
                tracing::debug!(task = known.of.task, %error, "giving ids to other tasks' namespaces failed");
                self.lack_ids = true;
            });
            for (other, netns) in wanted {
                let given = match &mut ids {
                    Ok(ids) => ids.give(netns, netns_id(other.netns_cookie)).unwrap_or_else(|error| {
                        tracing::debug!(task = known.of.task, %error, "giving an id to another task's namespace failed");
                        self.lack_ids = true;
                        false
                    }),
                    Err(_) => false,
                };
                if given {
                    known.sees.insert(other.netns_cookie);
                } else {
                    self.unseen.insert(other.netns_cookie);
                }
            }
        }
    }

    /// An id is gone with its namespace: whoever saw one that is not there any more does not see it.
    fn forget_gone(&mut self) {
        let there: BTreeSet<u64> = self.known.values().map(|known| known.place.netns_cookie).collect();
        for known in self.known.values_mut() {
            known.sees.retain(|cookie| there.contains(cookie));
        }
    }

    /// Those who may ask and be asked for.
    fn with_ids(&self) -> impl Iterator<Item = (&ContainerId, &KnownPlace)> {
        self.known.iter().filter(|(_, known)| !known.standing.left_alone)
    }
}

impl Agent {
    /// Takes in where a task stands; one that has ended meanwhile is none.
    pub(super) fn take_place(&mut self, container: &Container) {
        let Some(of) = Membership::of(&container.labels) else { return };
        let standing = Standing::of(container, &self.settings.config.defaults);
        let Places { known, lack_ids, .. } = &mut self.places;
        let networks: BTreeSet<String> = networks(container).collect();
        if let Some(known) = known.get_mut(&container.id).filter(|known| known.run == container.started_at) {
            *lack_ids |= known.place.networks != networks;
            known.place.networks = networks;
            known.standing.describe(standing);
            return;
        }
        match KnownPlace::at(container, of, networks, standing) {
            Ok(place) => {
                known.insert(container.id.clone(), place);
                *lack_ids = true;
                self.settle_place(&container.id);
            }
            Err(error) => tracing::warn!(
                container = container.name,
                %error,
                "where a task stands is not known: it may not ask for virtual addresses, nor be asked for; the next resync tries again"
            ),
        }
    }

    /// Notes of each task here whether Swarm wants it to end.
    pub(super) fn settle_places(&mut self) {
        let ids: Vec<_> = self.places.known.keys().cloned().collect();
        ids.iter().for_each(|id| self.settle_place(id));
    }

    fn settle_place(&mut self, id: &ContainerId) {
        let Some(known) = self.places.known.get(id) else { return };
        let leaving = self.leaving(&known.of.task, known.seen, known.leaving);
        if let Some(known) = self.places.known.get_mut(id) {
            known.leaving = leaving;
        }
    }

    /// Only these are left.
    pub(super) fn keep_places(&mut self, is_there: impl Fn(&Self, &ContainerId) -> bool) {
        let gone: Vec<_> = self.places.known.keys().filter(|id| !is_there(self, id)).cloned().collect();
        gone.iter().for_each(|id| self.places.leave(id));
    }

    /// The tasks here that are not about to end, steered to or not.
    pub(super) fn serving(&self) -> impl Iterator<Item = Serving<'_>> {
        let places = self.places.known.iter().filter(|(_, known)| known.leaving.is_none());
        places.map(|(id, known)| {
            let steered = self.tracked.get(id).filter(|tracked| tracked.spec.mesh && !tracked.has_problem);
            Serving { service: &known.of.service, steered_as: steered.map(|tracked| tracked.spec.service.as_str()) }
        })
    }

    /// The tasks here, as somebody to be asked in these networks.
    pub(super) fn local_tasks(&mut self, networks: &BTreeSet<&str>) -> BTreeMap<String, Local> {
        self.places.give_ids(networks);
        let (now, is_told) = (since_boot(), self.is_swarms_will_told());
        let local = |(id, known): (&ContainerId, &KnownPlace)| {
            let KnownPlace { of, place, standing, leaving, .. } = known;
            // One with a problem is left to Swarm by the node's port; in its own networks it is as good as any other.
            let tracked = self.tracked.get(id).filter(|tracked| !tracked.has_problem);
            let key = BackendKey { container: id.clone(), netns_cookie: place.netns_cookie };
            let backend = tracked.and_then(|_| self.applied.backends.get(&key));
            // A backend's state has all that Docker says of it; its weight is no state.
            let is_out = match tracked.filter(|_| backend.is_some()) {
                Some(tracked) => tracked.operator_weight.unwrap_or(tracked.spec.weight) == 0,
                None => standing.is_out(now, is_told),
            };
            let local = Local {
                backend: backend.map(|backend| (backend.id, backend.entry.generation)),
                netns_id: (!self.places.unseen.contains(&place.netns_cookie)).then(|| netns_id(place.netns_cookie)),
                is_out: is_out || leaving.is_some(),
                is_left_alone: standing.left_alone,
            };
            (of.task.clone(), local)
        };
        self.places.ended.tasks().chain(self.places.known.iter().map(local)).collect()
    }
}

fn shares_any(one: &Place, other: &Place, networks: &BTreeSet<&str>) -> bool {
    one.networks.intersection(&other.networks).any(|network| networks.contains(network.as_str()))
}

/// The networks that a task may share with others: not the one that leads to this host.
pub(super) fn networks(container: &Container) -> impl Iterator<Item = String> + use<'_> {
    container.legs.iter().map(|leg| leg.network.clone()).filter(|network| network != GATEWAY)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::fixtures::container;
    use crate::model::labels::Defaults;

    /// A task with this cookie, which sees all of these.
    fn place(netns_cookie: u64, sees: &[u64]) -> (ContainerId, KnownPlace) {
        let id = ContainerId(netns_cookie.to_string());
        let container = container(&id.0, &format!("api.{netns_cookie}"));
        let of = Membership { service_id: "s".to_owned(), service: "api".to_owned(), task: id.0.clone() };
        let known = KnownPlace {
            run: String::new(),
            of,
            seen: Instant::now(),
            place: Place { netns_cookie, networks: ["front".to_owned()].into() },
            netns: Arc::new(Netns::at("/proc/self/ns/net").unwrap()),
            sees: sees.iter().copied().collect(),
            standing: Standing::of(&container, &Defaults::default()),
            leaving: None,
        };
        (id, known)
    }

    #[test]
    fn who_has_gone_is_seen_by_nobody() {
        let known = [place(1, &[1, 2, 3, 4]), place(2, &[1, 2, 3]), place(3, &[1, 2, 3])].into();
        let mut places = Places { known, lack_ids: true, ..Places::default() };
        // The fourth has run anew, and the third ends: neither namespace comes back.
        places.leave(&ContainerId("3".to_owned()));
        places.give_ids(&["front"].into());
        let seen: Vec<_> = places.known.values().map(|known| known.sees.iter().copied().collect::<Vec<_>>()).collect();
        assert_eq!(seen, [[1, 2], [1, 2]]);
    }
}
