//! Which tasks on other nodes are to stop: nobody tells, but Docker's name server knows.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use super::Agent;
use crate::host::clock::since_boot;
use crate::model::swarm::vips::Vip;

/// What was said of the tasks behind a virtual address.
pub(super) struct Binding {
    /// As it was when that was asked.
    pub(super) vip: Vip,
    /// `None` = there was no answer, or none with addresses.
    pub(super) addresses: Option<BTreeSet<Ipv4Addr>>,
}

impl Agent {
    /// When Docker's name server is to be asked next.
    pub(super) fn bindings_due(&self) -> Option<Instant> {
        self.disabled.due().map(|due| Instant::now() + due.saturating_sub(since_boot()))
    }

    /// Asks it if it is time.
    pub(super) fn ask_bindings(&mut self) {
        let now = since_boot();
        for (netns_cookie, vips) in self.disabled.take(now) {
            match self.places.netns(netns_cookie) {
                Some(netns) => self.questions.bindings(netns, vips, now),
                // It has just ended.
                None => vips.iter().for_each(|vip| self.disabled.answered(vip, None, now)),
            }
        }
    }

    /// Takes in what was answered to what was `asked` then; whether that changes anything.
    pub(super) fn take_bindings(&mut self, asked: Duration, bindings: &[Binding]) -> bool {
        for Binding { vip, addresses } in bindings {
            self.disabled.answered(vip, addresses.as_ref(), asked);
        }
        let is_news = self.are_others_disabled();
        if is_news {
            tracing::debug!(tasks = ?self.disabled.tasks(since_boot()), "Swarm sends nothing new to these");
        }
        is_news
    }
}
