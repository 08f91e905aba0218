//! Virtual addresses of services: which containers of this node may ask for them, and what the kernel is told.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Instant;

use super::{Agent, Source};
use crate::host::clock::boot_secs;
use crate::host::netns::Netns;
use crate::model::desired::BackendKey;
use crate::model::swarm::ports::Here;
use crate::model::swarm::vips::{Ended, Ids, Local, Observed, Place, Tables, Vip, tables};
use crate::model::swarm::{GATEWAY, Membership, Serving, Swarm};
use crate::model::{Container, ContainerId};

/// The tasks on this node, steered to or not, and what the maps hold of virtual addresses.
#[derive(Debug, Default)]
pub(super) struct Vips {
    places: BTreeMap<ContainerId, KnownPlace>,
    ended: Ended<Instant>,
    ids: Ids,
    applied: Option<Tables>,
}

#[derive(Debug)]
struct KnownPlace {
    run: String,
    of: Membership,
    seen: Instant,
    place: Place,
}

impl Vips {
    /// The tasks of this node, as seen by who has `asked` the swarm then.
    pub(super) fn here(&self, asked: Instant) -> impl Iterator<Item = Here<'_>> {
        self.places.values().map(move |KnownPlace { of, seen, place, run: _ }| Here {
            of,
            is_older: asked >= *seen,
            networks: &place.networks,
        })
    }
}

impl Agent {
    /// Takes in where a task stands; one that has ended meanwhile is none.
    pub(super) fn take_place(&mut self, container: &Container) {
        let Some(of) = Membership::of(&container.labels) else { return };
        let networks: BTreeSet<String> = networks(container).collect();
        let known = self.vips.places.get_mut(&container.id).filter(|known| known.run == container.started_at);
        if let Some(known) = known {
            known.place.networks = networks;
            return;
        }
        match Netns::of_pid(container.pid).and_then(|netns| netns.cookie()) {
            Ok(netns_cookie) => {
                let place = Place { netns_cookie, networks };
                let (run, seen) = (container.started_at.clone(), Instant::now());
                let known = KnownPlace { run, of, seen, place };
                self.vips.places.insert(container.id.clone(), known);
            }
            Err(error) => tracing::debug!(container = container.name, %error, "where a task stands is not known"),
        }
    }

    /// A container has ended.
    pub(super) fn leave_place(&mut self, id: &ContainerId) {
        if let Some(known) = self.vips.places.remove(id) {
            self.vips.ended.note(known.of.task, Instant::now());
        }
    }

    /// Only these are left.
    pub(super) fn keep_places(&mut self, is_there: impl Fn(&Self, &ContainerId) -> bool) {
        let gone: Vec<_> = self.vips.places.keys().filter(|id| !is_there(self, id)).cloned().collect();
        gone.iter().for_each(|id| self.leave_place(id));
    }

    /// The swarm has answered what it was `asked` then.
    pub(super) fn swarm_knows_ends(&mut self, asked: Instant) {
        self.vips.ended.answered(&asked);
    }

    /// The networks whose virtual addresses are of use here.
    pub(super) fn networks(&self) -> BTreeSet<String> {
        self.vips.places.values().flat_map(|known| known.place.networks.iter().cloned()).collect()
    }

    /// Whether somebody here may ask for a task on another node.
    pub(super) fn has_remote(&self, swarm: &Swarm) -> bool {
        let local: BTreeSet<&str> = self.vips.places.values().map(|known| known.of.task.as_str()).collect();
        swarm.vips.iter().flat_map(|vip| vip.tasks.keys()).any(|task| !local.contains(task.as_str()))
    }

    /// The tasks here that are not about to end, steered to or not.
    pub(super) fn serving(&self) -> impl Iterator<Item = Serving<'_>> {
        let places = self.vips.places.iter().filter(|(_, known)| self.leaving(&known.of.task, known.seen).is_none());
        places.map(|(id, known)| {
            let steered = self.tracked.get(id).filter(|tracked| tracked.spec.mesh);
            Serving { service: &known.of.service, steered_as: steered.map(|tracked| tracked.spec.service.as_str()) }
        })
    }

    /// Brings the maps in line with what is known of virtual addresses.
    pub(super) fn sync_vips(&mut self, vips: &[Vip], running: Option<&BTreeSet<String>>) {
        // As long as Docker has not said what runs, what an earlier agent left stands.
        if self.undescribed.is_all() {
            return;
        }
        let local = self.local_tasks();
        let places: Vec<Place> = self.vips.places.values().map(|known| known.place.clone()).collect();
        // Whoever leaves the host takes nothing new.
        let vips = if self.closing { &[] } else { vips };
        let observed = Observed { vips, places: &places, local: &local, running };
        let (wanted, problems) = tables(&observed, &mut self.vips.ids);
        self.say(Source::Vips, problems);
        if let Err(error) = self.write_vips(&wanted) {
            tracing::error!(
                error = format!("{error:#}"),
                "writing virtual addresses failed; tried again with the next answer"
            );
        }
    }

    fn write_vips(&mut self, wanted: &Tables) -> anyhow::Result<()> {
        if self.vips.applied.is_none() {
            self.maps.clear_vips()?;
        }
        let applied = self.vips.applied.get_or_insert_default();
        self.maps.apply_vips(wanted, applied)
    }

    /// What the swarm says of other nodes is new.
    pub(super) fn renew_lease(&mut self) {
        if let Err(error) = self.maps.renew_lease(boot_secs()) {
            tracing::error!(
                error = format!("{error:#}"),
                "virtual addresses lead to this node's tasks only, and services that are on this node alone are left to the mesh"
            );
        }
    }

    fn local_tasks(&self) -> BTreeMap<String, Local> {
        let local = |(id, known): (&ContainerId, &KnownPlace)| {
            let tracked = self.tracked.get(id);
            let key = BackendKey { container: id.clone(), netns_cookie: known.place.netns_cookie };
            let backend = tracked.and_then(|_| self.applied.backends.get(&key));
            let backend = backend.map(|backend| (backend.id, backend.entry.generation));
            let is_leaving = self.leaving(&known.of.task, known.seen).is_some();
            (known.of.task.clone(), Local { backend, is_leaving })
        };
        self.vips.ended.tasks().chain(self.vips.places.iter().map(local)).collect()
    }
}

/// The networks that a task may share with others: not the one that leads to this host.
pub(super) fn networks(container: &Container) -> impl Iterator<Item = String> + use<'_> {
    container.legs.iter().map(|leg| leg.network.clone()).filter(|network| network != GATEWAY)
}
