//! What an event or an answer of Docker's changes.

use std::collections::BTreeSet;

use anyhow::Result;

use super::questions::Answer;
use super::{Agent, Source, applied_after};
use crate::docker::{Event, EventKind, Feed, Listed};
use crate::host::clock::since_boot;
use crate::model::cause::{self, Cause};
use crate::model::lifecycle::is_stop;
use crate::model::order::Turn;
use crate::model::swarm::Membership;
use crate::model::undescribed::Undescribed;
use crate::model::{Container, ContainerId, Problem};

/// How the agent stands with Docker.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) enum Link {
    #[default]
    Lost,
    /// Events flow, from a Docker of this version; what ran before them it has not said.
    Connected(String),
    /// It has said that, too.
    Listed(String),
}

impl Link {
    pub(super) fn is_connected(&self) -> bool {
        *self != Self::Lost
    }

    pub(super) fn is_listed(&self) -> bool {
        self.listed().is_some()
    }

    /// The version of a Docker all of which is known.
    pub(super) fn listed(&self) -> Option<&str> {
        if let Self::Listed(version) = self { Some(version) } else { None }
    }

    /// It has said what runs. Whoever says so after the connection was lost does not count.
    fn has_listed(&mut self) {
        if let Self::Connected(version) = self {
            *self = Self::Listed(std::mem::take(version));
        }
    }
}

impl Agent {
    pub(super) fn on_feed(&mut self, feed: Feed) {
        match feed {
            Feed::Connected(version) => {
                self.problems.remove(&Source::Docker);
                tracing::info!(docker = version.engine, api = %version.negotiated, "connected to Docker");
                self.docker = Link::Connected(version.engine);
                self.list(true);
            }
            Feed::Lost(error) => {
                let message =
                    format!("{error:#}; what is steered stays as it is, and is read anew when Docker is back");
                tracing::error!(error = message, "Docker's event stream is lost");
                self.docker = Link::Lost;
                let problem = Problem::of("Docker", message);
                self.problems.insert(Source::Docker, vec![problem]);
            }
            Feed::Event(Event { kind: EventKind::Swarm, .. }) => self.swarm_told(),
            Feed::Event(event) => {
                if event.labels_say_steer {
                    self.task_happened();
                }
                self.questions.order.event(&event.container);
                // Who is not known yet has nothing that an event could change: it waits for the answer that makes it known.
                let known = self.tracked.contains_key(&event.container) || self.places.run(&event.container).is_some();
                let event = match &self.settings.docker {
                    Some(docker) if !known => self.questions.wait(docker, event),
                    _ => Some(event),
                };
                if let Some(event) = event {
                    self.on_event(event);
                }
            }
        }
    }

    fn on_event(&mut self, event: Event) {
        tracing::debug!(container = %event.container, event = ?event.kind, "event");
        let tracked = self.tracked.get(&event.container).map(|tracked| tracked.run.as_str());
        let is_late = tracked.or(self.places.run(&event.container)).is_some_and(|run| event.is_before(run));
        let Event { container: id, kind, labels_say_steer, received, .. } = event;
        if is_late {
            // A clock may have been set back: Docker knows.
            tracing::debug!(container = %id, event = ?kind, "that was an earlier run of it");
            return self.ask(&id);
        }
        self.places.on_event(&id, &kind);
        match kind {
            EventKind::Kill { signal } => {
                if self.tracked.get(&id).is_some_and(|tracked| is_stop(signal, tracked.stop_signal)) {
                    self.take_kill(&id, signal, since_boot().saturating_sub(received.elapsed()));
                    applied_after(received, "kill");
                }
            }
            EventKind::Die | EventKind::Destroy => {
                let what = if kind == EventKind::Destroy { "destroy" } else { "die" };
                self.places.leave(&id);
                self.forget(&id, Cause::new(cause::Source::Event, what));
                applied_after(received, what);
            }
            EventKind::Health(health) => {
                if let Some(tracked) = self.tracked.get_mut(&id) {
                    tracked.health = health;
                    self.settle(&id);
                    applied_after(received, "health");
                }
            }
            EventKind::Pause | EventKind::Unpause => {
                if self.set_paused(&id, kind == EventKind::Pause) {
                    applied_after(received, "pause");
                }
            }
            EventKind::Start => {
                if labels_say_steer {
                    self.ask(&id);
                }
            }
            EventKind::Rename => self.ask(&id),
            // Not a container's.
            EventKind::Swarm => {}
            EventKind::NetworkConnect | EventKind::NetworkDisconnect => {
                if let Some(tracked) = self.tracked.get_mut(&id) {
                    // The same address may be on another interface.
                    tracked.is_moved = true;
                }
                // One that could not be reached for its networks is not tracked, nor is a task that publishes nothing.
                let is_known = self.tracked.contains_key(&id) || self.places.run(&id).is_some();
                if is_known || self.problems.contains_key(&Source::Container(id.clone())) {
                    self.ask(&id);
                }
            }
        }
    }

    /// Asks for all containers; `anew`: whatever the answers under way will say.
    pub(super) fn list(&mut self, anew: bool) {
        if let Some(docker) = &self.settings.docker
            && self.docker.is_connected()
        {
            self.questions.list(docker, anew);
        }
    }

    fn ask(&mut self, id: &ContainerId) {
        if let Some(docker) = &self.settings.docker {
            self.questions.inspect(docker, id);
        }
    }

    /// Takes in an answer; whether anything may follow from it.
    pub(super) fn on_answer(&mut self, answer: Answer) -> bool {
        let mut is_news = true;
        match answer {
            Answer::List(turn, Ok(listed)) => self.on_list(turn, listed),
            Answer::List(turn, Err(error)) => {
                if self.questions.listed(turn) && self.docker.is_connected() {
                    let message = format!("{error:#}; what is known stays, and the next resync asks again");
                    let problem = Problem::of("Docker", message);
                    self.say(Source::Docker, vec![problem]);
                }
            }
            Answer::Container(id, turn, answer) => self.on_container(&id, turn, answer),
            Answer::Swarm(told) => {
                self.questions.swarm_answered();
                if self.docker.is_connected() && self.take_swarm(told) {
                    self.list(false);
                }
            }
            // There are several in a second, and hardly ever news.
            Answer::Bindings { asked, bindings } => is_news = self.take_bindings(asked, &bindings),
        }
        self.questions.rest();
        is_news
    }

    fn on_container(&mut self, id: &ContainerId, turn: Turn, answer: Result<Option<Container>>) {
        let Some(docker) = &self.settings.docker else { return };
        let Some(asked) = self.questions.answered(docker, id, turn) else { return };
        match answer {
            Ok(Some(container)) if container.running => {
                self.undescribed.remove(id);
                if Membership::of(&container.labels).is_some() {
                    self.swarm_happened();
                }
                self.observe(&container, Cause::new(cause::Source::Event, "start"));
            }
            Ok(_) => {
                self.places.leave(id);
                self.forget(id, Cause::new(cause::Source::Resync, "not running"));
            }
            Err(error) => {
                tracing::warn!(error = format!("{error:#}"), "inspecting failed; the next resync tries again");
            }
        }
        for event in asked.waiting {
            self.on_event(event);
        }
    }

    /// Takes in a list, but for containers of which something newer is known, or will be.
    fn on_list(&mut self, turn: Turn, listed: Listed) {
        // One of a Docker that is lost: when it is back it is asked anew.
        if !self.questions.listed(turn) || !self.docker.is_connected() {
            return;
        }
        let Listed { containers, unknown, swarm } = listed;
        // What the containers are read by.
        let asked = swarm.asked;
        self.take_swarm(swarm);
        self.learn_listed_ports(&containers, asked);
        for (id, error) in &unknown {
            tracing::warn!(container = %id, error = format!("{error:#}"), "a container that is listed is not described");
        }
        let listed = containers.iter().map(|container| &container.id);
        let there: BTreeSet<_> = listed.chain(unknown.iter().map(|(id, _)| id)).collect();
        self.keep_places(|agent, id| there.contains(id) || agent.is_newer_than(turn, id));
        let with_problem = self.problems.keys().filter_map(|source| match source {
            Source::Container(id) => Some(id),
            _ => None,
        });
        let known = self.tracked.keys().chain(with_problem);
        let gone: BTreeSet<_> = known.filter(|id| !id.is_static() && !there.contains(id)).cloned().collect();
        for id in gone {
            if self.is_newer_than(turn, &id) {
                self.ask(&id);
            } else {
                self.forget(&id, Cause::new(cause::Source::Resync, "not listed"));
            }
        }
        // Before anybody is taken in who would change it.
        let newer = containers.iter().map(|container| &container.id).filter(|id| self.is_newer_than(turn, id));
        let undescribed: BTreeSet<_> = newer.chain(unknown.iter().map(|(id, _)| id)).cloned().collect();
        undescribed.iter().for_each(|id| self.ask(id));
        for container in containers.iter().filter(|container| !undescribed.contains(&container.id)) {
            self.observe(container, Cause::new(cause::Source::Resync, "listed"));
        }
        self.problems.remove(&Source::Docker);
        self.undescribed = Undescribed::Only(undescribed);
        self.docker.has_listed();
    }

    fn is_newer_than(&self, turn: Turn, id: &ContainerId) -> bool {
        self.questions.is_asked(id) || self.questions.order.is_stale(turn, id)
    }
}
