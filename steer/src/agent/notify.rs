//! What systemd is told: ready, and in a line what there is.
//!
//! Units that come after steer rely on what it steers to, so it is ready when it knows what runs: when Docker has told once. A
//! Docker that is not there must not keep them waiting for ever.

use std::time::{Duration, Instant};

use sd_notify::NotifyState;

use super::Agent;

/// How long readiness waits for Docker.
const PATIENCE: Duration = Duration::from_secs(10);

/// What was told.
#[derive(Debug)]
pub(super) struct Notify {
    deadline: Instant,
    ready: bool,
    status: String,
}

impl Default for Notify {
    fn default() -> Self {
        Self { deadline: Instant::now() + PATIENCE, ready: false, status: String::new() }
    }
}

impl Notify {
    /// When readiness waits no longer; `None` = it has been told.
    pub(super) fn deadline(&self) -> Option<Instant> {
        (!self.ready).then_some(self.deadline)
    }
}

impl Agent {
    /// Tells what has changed since it was told last.
    pub(super) fn tell_systemd(&mut self) {
        let docker = match (&self.settings.docker, self.docker.is_connected()) {
            (None, _) => Standing::Unwanted,
            (Some(_), _) if self.undescribed.is_all() => Standing::Awaited,
            (Some(_), true) => Standing::Known,
            (Some(_), false) => Standing::Lost,
        };
        let ready = !self.notify.ready && (docker != Standing::Awaited || Instant::now() >= self.notify.deadline);
        let status = status(docker, self.applied.services.len(), self.applied.backends.len());
        let mut news = Vec::new();
        if ready {
            news.push(NotifyState::Ready);
        }
        if status != self.notify.status {
            news.push(NotifyState::Status(&status));
        }
        if news.is_empty() {
            return;
        }
        if let Err(error) = sd_notify::notify(&news) {
            tracing::debug!(%error, "telling systemd failed");
        }
        self.notify.ready |= ready;
        self.notify.status = status;
    }
}

/// How steer stands with Docker.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Standing {
    Unwanted,
    /// It has not told yet what runs.
    Awaited,
    Known,
    Lost,
}

fn status(docker: Standing, services: usize, backends: usize) -> String {
    let docker = match docker {
        Standing::Unwanted | Standing::Known => "",
        Standing::Awaited => ", waiting for Docker",
        Standing::Lost => ", Docker is lost",
    };
    format!("steering: services {services}, backends {backends}{docker}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_status_says_how_it_stands_with_docker() {
        for (docker, said) in [
            (Standing::Unwanted, "steering: services 2, backends 5"),
            (Standing::Known, "steering: services 2, backends 5"),
            (Standing::Awaited, "steering: services 2, backends 5, waiting for Docker"),
            (Standing::Lost, "steering: services 2, backends 5, Docker is lost"),
        ] {
            assert_eq!(status(docker, 2, 5), said);
        }
    }
}
