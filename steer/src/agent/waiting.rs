//! Clients that wait for a backend, sent on as soon as there is one for them.
//!
//! A backend that gets ready is one; so is a listener that opens, which changes nobody's state where a healthcheck decides, where it was
//! closed for a moment only, or where another port of the container has none. So whoever waits is looked after until nobody does.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use steer_common::service::ServiceId;

use super::Agent;
use super::tracked::Tracked;
use crate::dataplane::replay;
use crate::host::clock::boot_secs;

/// How long after a backend got ready clients are looked for that wait: one may have asked in the very moment.
const REPLAY_FOR: Duration = Duration::from_millis(100);
/// How long after somebody waited it is looked whether anybody does: the kernel does not tell of each one.
const LOOK_FOR: Duration = Duration::from_millis(100);

/// Until when there is something to be done about clients that wait.
#[derive(Debug)]
pub(super) struct Waiting {
    replay_until: Option<Instant>,
    look_until: Option<Instant>,
}

impl Waiting {
    /// An earlier agent may have left some.
    pub(super) fn new() -> Self {
        Self { replay_until: None, look_until: Some(Instant::now()) }
    }

    /// The kernel tells that somebody does.
    pub(super) fn somebody_waits(&mut self) {
        self.look_until = Some(Instant::now() + LOOK_FOR);
    }

    /// Whether some are to be sent on, or may have to.
    pub(super) fn is_due(&self) -> bool {
        self.replay_until.is_some() || self.look_until.is_some()
    }
}

impl Agent {
    /// Clients that wait are to be sent on.
    pub(super) fn replay_soon(&mut self) {
        self.waiting.replay_until = Some(Instant::now() + REPLAY_FOR);
    }

    /// Looks whether somebody listens by now for those who wait.
    pub(super) fn look_at_waiting(&mut self) {
        let Some(until) = self.waiting.look_until else { return };
        match replay::waiting(&self.maps, boot_secs()) {
            Ok(waiting) if waiting.is_empty() => {
                if Instant::now() >= until {
                    self.waiting.look_until = None;
                }
            }
            Ok(waiting) => {
                self.waiting.somebody_waits();
                if self.tracked.values().any(|tracked| self.has_listener(tracked, &waiting)) {
                    self.replay_soon();
                }
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "looking for clients that wait failed");
                self.waiting.look_until = None;
            }
        }
    }

    /// Whether somebody listens at a backend that takes new flows of one of these: a service, and the index of its port.
    fn has_listener(&self, tracked: &Tracked, waiting: &BTreeSet<(ServiceId, u8)>) -> bool {
        let Some(backend) = self.applied.backends.get(&tracked.key()) else { return false };
        let mut targets = waiting.iter().filter_map(|(service, port)| backend.takes(*service, *port));
        targets.any(|target| tracked.listens(target))
    }

    /// Sends on the clients that wait: their SYNs come in once more, and find the backend that is ready now.
    pub(super) fn replay(&mut self) {
        let Some(until) = self.waiting.replay_until else { return };
        match replay::replay(&mut self.bpf, &mut self.maps, boot_secs()) {
            Ok(0) => {}
            Ok(sent) => tracing::debug!(clients = sent, "clients that waited are sent on"),
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "sending on clients that wait failed: they try again by themselves"
            ),
        }
        if Instant::now() >= until {
            self.waiting.replay_until = None;
        }
    }
}
