//! Virtual addresses of services: which containers of this node may ask for them, and what the kernel is told.

use std::collections::BTreeSet;

use super::{Agent, Source};
use crate::host::clock::since_boot;
use crate::model::swarm::Swarm;
use crate::model::swarm::disabled::doubts;
use crate::model::swarm::vips::{Ids, VipFacts, VipTables, tables};

/// What the maps hold of virtual addresses.
#[derive(Debug, Default)]
pub(super) struct Vips {
    ids: Ids,
    applied: Option<VipTables>,
    /// Tasks that they lack, since Swarm sends nothing new to them.
    disabled: BTreeSet<String>,
}

impl Agent {
    /// Brings the maps in line with what is known of virtual addresses.
    pub(super) fn sync_vips(&mut self, swarm: Option<&Swarm>) {
        // As long as Docker has not said what runs, what an earlier agent left stands.
        if self.undescribed.is_all() {
            return;
        }
        // Whoever leaves the host takes nothing new.
        let vips = swarm.filter(|_| !self.closing).map_or(&[][..], |swarm| &swarm.vips);
        let networks: BTreeSet<&str> = vips.iter().map(|vip| vip.network.as_str()).collect();
        let local = self.local_tasks(&networks);
        let places = self.places.askers();
        let running = swarm.and_then(|swarm| swarm.running.as_ref());
        let here = swarm.and_then(|swarm| swarm.tasks.as_ref());
        let observed = VipFacts { vips, places: &places, local: &local, running, here, disabled: &BTreeSet::new() };
        self.disabled.keep(doubts(&observed));
        let disabled = self.disabled.tasks(since_boot());
        let (wanted, problems) = tables(&VipFacts { disabled: &disabled, ..observed }, &mut self.vips.ids);
        self.vips.disabled = disabled;
        self.say(Source::Vips, problems);
        if let Err(error) = self.write_vips(&wanted) {
            tracing::error!(
                error = format!("{error:#}"),
                "writing virtual addresses failed; tried again with the next answer"
            );
        }
    }

    /// Whether Swarm sends nothing new to other tasks than the maps lack.
    pub(super) fn are_others_disabled(&self) -> bool {
        self.disabled.tasks(since_boot()) != self.vips.disabled
    }

    fn write_vips(&mut self, wanted: &VipTables) -> anyhow::Result<()> {
        if self.vips.applied.is_none() {
            self.maps.clear_vips()?;
        }
        let applied = self.vips.applied.get_or_insert_default();
        self.maps.apply_vips(wanted, applied)
    }
}
