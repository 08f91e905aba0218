//! Desired, plan, apply.

use std::time::{Duration, Instant};

use steer_common::backend::BackendState;

use super::docker::is_docker;
use super::takeover::{Takeover, at_one_go};
use super::{Agent, Source};
use crate::host::clock::{boot_secs, since_boot};
use crate::model::desired::desired;
use crate::model::plan::{Blocked, Op, plan};
use crate::model::{Candidate, Observed};

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
}
