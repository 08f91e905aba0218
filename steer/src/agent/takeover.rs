//! Another version of steer is on this host, and this one takes its place: no connection breaks, none is refused.
//!
//! Its tables have another layout, so this version begins with empty ones, and until they are filled it must not decide anything.
//!
//! | when | this version | the other one |
//! |---|---|---|
//! | at the start | attached before the other one; with no frontends it passes everything on | steers, over tc where XDP was: that has room for one |
//! | Docker has said all that runs | its tables are filled at one go: it steers | has what this one passes on |
//! | [`LINGER`] later | steers | is removed |
//!
//! What the other one steered, this one finds by the sockets of the backends: see `steer_common::recover`. A connection whose handshake
//! is under way has no socket that remembers yet: its SYN-ACK is the other one's to send out, which is there long enough for that.
//! For as long as Docker does not answer, all stays as it is; one container that it does not describe is not waited for for ever: see
//! [`crate::model::takeover`].

use std::time::{Duration, Instant};

use anyhow::Result;

use super::{Agent, Source};
use crate::dataplane::others;
use crate::dataplane::paths::Paths;
use crate::model::takeover::{due, must_wait, problems};

/// For how long the other version stays attached behind this one, once this one steers.
const LINGER: Duration = Duration::from_secs(1);
/// How soon removing it is tried again.
const AGAIN: Duration = Duration::from_secs(30);

/// How far it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Takeover {
    /// There is no other version, or there was.
    Done,
    /// This one does not know yet what runs: the other one steers. Since when it only waits for containers that are not described.
    Waits(Option<Instant>),
    /// Both are attached, this one steers; the other one is removed then.
    Until(Instant),
}

impl Takeover {
    pub(super) fn of(paths: &Paths) -> Result<Self> {
        if !others::are_there(paths)? {
            return Ok(Self::Done);
        }
        tracing::info!("another version of steer is attached: it steers until this one knows what runs");
        Ok(Self::Waits(None))
    }

    /// When there is something to be done about it.
    pub(super) fn due(self) -> Option<Instant> {
        match self {
            Self::Until(end) => Some(end),
            Self::Waits(Some(since)) => due(since.elapsed()).map(|due| since + due),
            Self::Done | Self::Waits(None) => None,
        }
    }
}

impl Agent {
    /// Whether another version steers still, and must for now.
    pub(super) fn must_wait(&mut self) -> bool {
        let Takeover::Waits(mut since) = self.takeover else { return false };
        // When Docker was lost, its next list may describe them.
        let waited = self.docker.is_listed().then(|| since.get_or_insert_with(Instant::now).elapsed());
        self.takeover = Takeover::Waits(since);
        let must_wait = must_wait(self.knows_all(), waited);
        if let Some(waited) = waited.filter(|_| must_wait) {
            self.say(Source::Takeover, problems(self.undescribed.ids(), waited));
        }
        must_wait
    }

    fn knows_all(&self) -> bool {
        self.settings.docker.is_none() || self.undescribed.is_empty() && self.questions.are_answered()
    }

    /// The next step, now that the tables are filled; `are_filled`: all of what was to be written is.
    pub(super) fn take_over(&mut self, are_filled: bool) {
        let now = Instant::now();
        match self.takeover {
            Takeover::Waits(_) if are_filled => {
                self.takeover = Takeover::Until(now + LINGER);
                self.problems.remove(&Source::Takeover);
                for id in self.undescribed.ids() {
                    tracing::warn!(container = %id, "Docker has not described it in time: it is not steered to yet");
                }
                tracing::info!("this version steers");
            }
            Takeover::Until(end) if now >= end => match others::remove(&self.settings.paths) {
                Ok(()) => {
                    self.takeover = Takeover::Done;
                    tracing::info!("the other version is gone");
                }
                // What is left of it is behind this version, and has what that passes on: flows that only its tables know.
                Err(error) => {
                    self.takeover = Takeover::Until(now + AGAIN);
                    tracing::error!(
                        error = format!("{error:#}"),
                        "removing the other version failed; tried again in {AGAIN:?}"
                    );
                }
            },
            Takeover::Done | Takeover::Waits(_) | Takeover::Until(_) => {}
        }
    }
}
