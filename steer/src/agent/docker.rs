//! What an event or a list of Docker's changes.

use std::collections::BTreeSet;
use std::time::Instant;

use steer_common::backend::BackendState;

use super::tracked::Tracked;
use super::{Agent, Source, applied_after, unix_micros};
use crate::docker::{Event, EventKind, Feed};
use crate::host::netns::{Netns, enable_gro, reach};
use crate::model::desired::BackendKey;
use crate::model::labels::{network_leg, spec};
use crate::model::lifecycle::is_stop;
use crate::model::plan::Op;
use crate::model::{Container, ContainerId, Problem};

impl Agent {
    pub(super) async fn on_feed(&mut self, feed: Feed) {
        match feed {
            Feed::Connected => {
                self.problems.remove(&Source::Docker);
                let Some(docker) = &self.settings.docker else { return };
                match docker.version().await {
                    Ok(version) => {
                        tracing::info!(docker = version.engine, api = %version.negotiated, "connected to Docker");
                        self.docker_version = Some(version.engine);
                    }
                    Err(error) => {
                        tracing::warn!(error = format!("{error:#}"), "asking Docker for its version failed");
                        self.docker_version = Some("of unknown version".to_owned());
                    }
                }
                self.list().await;
            }
            Feed::Lost(error) => {
                let message =
                    format!("{error:#}; what is steered stays as it is, and is read anew when Docker is back");
                tracing::error!(error = message, "Docker's event stream is lost");
                self.docker_version = None;
                let problem = Problem { container: "Docker".to_owned(), label: None, message };
                self.problems.insert(Source::Docker, vec![problem]);
            }
            Feed::Event(event) => self.on_event(event).await,
        }
    }

    async fn on_event(&mut self, event: Event) {
        let Event { container: id, kind, labels_say_steer, received, .. } = event;
        tracing::debug!(container = %id, event = ?kind, "event");
        match kind {
            EventKind::Kill { signal } => {
                if let Some(tracked) = self.tracked.get_mut(&id)
                    && is_stop(signal, tracked.stop_signal)
                {
                    tracked.stopping = Some(signal);
                    self.settle(&id);
                    applied_after(received, "kill");
                }
            }
            EventKind::Die { .. } | EventKind::Destroy => {
                self.forget(&id);
                applied_after(received, "die");
            }
            EventKind::Health(health) => {
                if let Some(tracked) = self.tracked.get_mut(&id) {
                    tracked.health = health;
                    self.settle(&id);
                    applied_after(received, "health");
                }
            }
            EventKind::Pause | EventKind::Unpause => {
                if let Some(tracked) = self.tracked.get_mut(&id) {
                    tracked.paused = kind == EventKind::Pause;
                    self.settle(&id);
                    applied_after(received, "pause");
                }
            }
            EventKind::Start => {
                if labels_say_steer {
                    self.inspect(&id).await;
                    applied_after(received, "start");
                }
            }
            EventKind::Rename { .. } | EventKind::NetworkConnect | EventKind::NetworkDisconnect => {
                if labels_say_steer || self.tracked.contains_key(&id) {
                    self.inspect(&id).await;
                }
            }
        }
    }

    /// All containers as Docker has them now. If Docker cannot say, what is known stays.
    pub(super) async fn list(&mut self) {
        let Some(docker) = &self.settings.docker else { return };
        if self.docker_version.is_none() {
            return;
        }
        let containers = match docker.containers().await {
            Ok(containers) => containers,
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "listing containers failed; what is known stays");
                return;
            }
        };
        let running: BTreeSet<_> = containers.iter().map(|container| container.id.clone()).collect();
        let gone: Vec<_> = self.docker_ids().filter(|id| !running.contains(*id)).cloned().collect();
        for id in gone {
            self.forget(&id);
        }
        self.problems
            .retain(|source, _| !matches!(source, Source::Container(id) if is_docker(id) && !running.contains(id)));
        for container in &containers {
            self.observe(container);
        }
        self.listed = true;
    }

    fn docker_ids(&self) -> impl Iterator<Item = &ContainerId> {
        self.tracked.keys().filter(|id| is_docker(id))
    }

    async fn inspect(&mut self, id: &ContainerId) {
        let Some(docker) = &self.settings.docker else { return };
        match docker.inspect(id).await {
            Ok(Some(container)) if container.running => self.observe(&container),
            Ok(_) => self.forget(id),
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "inspecting failed; the next resync tries again")
            }
        }
    }

    /// Takes in what Docker says of a running container.
    fn observe(&mut self, container: &Container) {
        let spec = match spec(&container.name, &container.labels, &self.settings.config.defaults) {
            Ok(Some(spec)) => spec,
            Ok(None) => return self.forget(&container.id),
            Err(problems) => return self.refuse(&container.id, problems),
        };
        let address = match network_leg(&spec, container) {
            Ok(address) => address,
            Err(problem) => return self.refuse(&container.id, vec![problem]),
        };
        if let Some(tracked) = self.tracked.get_mut(&container.id)
            && tracked.run == container.started_at
            && tracked.address == address
        {
            tracked.name.clone_from(&container.name);
            tracked.spec = spec;
            tracked.paused = container.paused;
            // `starting` after `healthy` is dockerd's restart, not the container's; the lifecycle knows.
            tracked.health = container.health;
            self.problems.remove(&Source::Container(container.id.clone()));
            return self.settle(&container.id);
        }
        match self.track(container, spec, address) {
            Ok(tracked) => {
                self.problems.remove(&Source::Container(container.id.clone()));
                self.tracked.insert(container.id.clone(), tracked);
                self.settle(&container.id);
            }
            Err(error) => {
                let problem = Problem { container: container.name.clone(), label: None, message: format!("{error:#}") };
                self.refuse(&container.id, vec![problem]);
            }
        }
    }

    /// A container that was not known, or not this run of it.
    fn track(
        &mut self,
        container: &Container,
        spec: crate::model::Spec,
        address: std::net::IpAddr,
    ) -> anyhow::Result<Tracked> {
        let netns = Netns::of_pid(container.pid)?;
        if self.uplinks.has_xdp()
            && let Err(error) = enable_gro(&netns, address)
        {
            tracing::warn!(container = container.name, %error, "switching GRO on failed: reached through tc");
        }
        let (address, reach) = reach(&netns, Some(address))?;
        self.attach_backend(reach.ifindex)?;
        let key = BackendKey { container: container.id.clone(), netns_cookie: reach.netns_cookie };
        let mut tracked = Tracked {
            id: container.id.clone(),
            name: container.name.clone(),
            run: container.started_at.clone(),
            spec,
            netns,
            address,
            reach,
            health: container.health,
            paused: container.paused,
            listening: None,
            stop_signal: container.stop_signal,
            stopping: None,
            maintenance: false,
            put_in: false,
            operator_weight: None,
            flows: 0,
            state: BackendState::Starting,
            cause: "event: start".to_owned(),
            since: unix_micros(),
            seen: Instant::now(),
        };
        self.resume(&key, &mut tracked);
        if tracked.by_listening() {
            tracked.look();
        }
        Ok(tracked)
    }

    /// Goes on where an earlier agent was with this backend.
    pub(super) fn resume(&self, key: &BackendKey, tracked: &mut Tracked) {
        let Some(before) = self.applied.backends.get(key) else { return };
        tracked.state = before.state;
        tracked.cause.clone_from(&before.info.cause);
        tracked.since = before.info.since;
        tracked.maintenance = before.info.maintenance;
        tracked.operator_weight = before.info.operator_weight;
        if matches!(before.state, BackendState::Draining | BackendState::Drained) {
            tracked.stopping = Some(tracked.stop_signal);
        }
    }

    /// A container that cannot be steered to: said once, and shown while it lasts.
    pub(super) fn refuse(&mut self, id: &ContainerId, problems: Vec<Problem>) {
        let source = Source::Container(id.clone());
        if self.problems.get(&source) != Some(&problems) {
            for problem in &problems {
                tracing::error!(container = problem.container, label = problem.label, "{}", problem.message);
            }
        }
        self.forget(id);
        self.problems.insert(source, problems);
    }

    pub(super) fn forget(&mut self, id: &ContainerId) {
        self.problems.remove(&Source::Container(id.clone()));
        if let Some(tracked) = self.tracked.remove(id) {
            tracing::info!(backend = tracked.name, service = tracked.spec.service, "backend gone");
            self.write_state(&tracked.key(), BackendState::Gone);
        }
    }

    /// Moves a backend to the state that follows from what is known, and writes that state at once: the plan that takes care of
    /// the rest comes after it.
    pub(super) fn settle(&mut self, id: &ContainerId) {
        let Some(tracked) = self.tracked.get_mut(id) else { return };
        if tracked.settle(unix_micros()) {
            let (key, state) = (tracked.key(), tracked.state);
            self.write_state(&key, state);
        }
    }

    /// The state alone, at once. A backend that is not in the maps yet gets its state with the rest.
    fn write_state(&mut self, tracked: &BackendKey, state: BackendState) {
        let Some(applied) = self.applied.backends.get(tracked) else { return };
        let op = Op::SetState { key: tracked.clone(), id: applied.id, state };
        match self.maps.apply(&op) {
            Ok(()) => self.applied.note(&op),
            Err(error) => tracing::error!(error = format!("{error:#}"), "writing a backend's state failed"),
        }
    }
}

pub(super) fn is_docker(id: &ContainerId) -> bool {
    !id.0.starts_with(super::statics::PREFIX)
}
