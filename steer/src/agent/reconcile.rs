//! Desired, plan, apply.

use std::time::{Duration, Instant};

use steer_common::state::BackendState;

use super::takeover::Takeover;
use super::tracked::Tracked;
use super::{Agent, Source};
use crate::host::clock::{boot_secs, since_boot};
use crate::model::desired::desired;
use crate::model::plan::{Blocked, Op, in_handover_order, plan};
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
        let now = since_boot();
        let observed = self.observed(now);
        let (desired, problems) = desired(&observed, &self.applied.port_index());
        self.say(Source::Desired, problems);
        let (ops, problems) = plan(&desired, &self.applied, boot_secs());
        self.say(Source::Plan, problems);
        let is_first = matches!(self.takeover, Takeover::Waits(_)) && self.applied.backends.is_empty();
        let blocked = self.carry_out(if is_first { in_handover_order(ops) } else { ops });
        self.sync_swarm();
        self.tell_inits();
        self.replay();
        self.take_over(blocked.is_empty());
        self.wake = self.next_wake(&blocked, now);
    }

    /// All that the wanted state follows from.
    fn observed(&mut self, now: Duration) -> Observed {
        let mut candidates: Vec<_> = self.tracked.values().map(Tracked::candidate).collect();
        if self.settings.docker.is_some() && !self.undescribed.is_empty() {
            candidates.extend(self.inherited());
        }
        let remembered = self.memory.remember(&self.applied, &candidates, now);
        Observed {
            candidates,
            all_here: self.all_here(),
            moved: self.moved(),
            // Whoever leaves the host waits for connections that are open, not for new ones.
            remembered: if self.closing { Vec::new() } else { remembered },
            host_addresses: self.host_addresses.here().clone(),
            lost_addresses: self.host_addresses.lost(now),
            closing: self.closing,
        }
    }

    /// Carries out what was planned, but for what must not be done after an operation that failed.
    fn carry_out(&mut self, ops: Vec<Op>) -> Blocked {
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
        blocked
    }

    /// When to reconcile though nothing has happened.
    fn next_wake(&self, blocked: &Blocked, now: Duration) -> Option<Instant> {
        let again = (!blocked.is_empty()).then_some(AGAIN);
        let ends = [self.memory.next_end(now), self.host_addresses.next_end(now)];
        let ends = ends.into_iter().flatten().map(|end| end - now);
        let waits = again.into_iter().chain(ends).map(|wait| Instant::now() + wait);
        waits.chain(self.takeover.due()).min()
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
    pub(super) fn inherited(&self) -> impl Iterator<Item = Candidate> {
        let unknown = |candidate: &Candidate| {
            let id = &candidate.id;
            !id.is_static() && self.undescribed.contains(id) && !self.tracked.contains_key(id)
        };
        self.applied.candidates().into_iter().filter(unknown)
    }
}
