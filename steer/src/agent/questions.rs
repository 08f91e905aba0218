//! Questions to Docker. Each is a task of its own, so that a Docker that hangs keeps no event waiting.

use std::collections::{BTreeMap, BTreeSet};
use std::iter::repeat;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::sleep;

use super::bindings::Binding;
use crate::docker::{Docker, Event, EventKind, Listed, Role, Told};
use crate::host::netns::Netns;
use crate::host::resolver::addresses;
use crate::model::order::{Order, Turn};
use crate::model::swarm::vips::Vip;
use crate::model::{Container, ContainerId};

/// Answers that may wait for the agent; whoever brings another one waits.
const ANSWERS: usize = 64;
/// Containers asked about at once.
const AT_ONCE: usize = 8;
/// Events of one container that may wait for an answer.
const WAITING: usize = 64;
/// How long to wait before asking again what was not answered; then the next resync does.
const AGAIN: [Duration; 2] = [Duration::from_secs(1), Duration::from_secs(5)];

/// What Docker says.
pub(super) enum Answer {
    List(Turn, Result<Listed>),
    Container(ContainerId, Turn, Result<Option<Container>>),
    Swarm(Told),
    /// What its name server says of the tasks behind virtual addresses.
    Bindings {
        asked: Duration,
        bindings: Vec<Binding>,
    },
}

/// What is being asked.
pub(super) struct Questions {
    pub(super) order: Order,
    answers: mpsc::Sender<Answer>,
    at_once: Arc<Semaphore>,
    list: Option<(Turn, JoinHandle<()>)>,
    containers: BTreeMap<ContainerId, Asked>,
    swarm: Option<JoinHandle<()>>,
}

/// A question about one container.
pub(super) struct Asked {
    turn: Turn,
    /// Events of a container that is not known yet.
    pub(super) waiting: Vec<Event>,
    /// More came than may wait.
    overrun: bool,
}

impl Questions {
    pub(super) fn new() -> (Self, mpsc::Receiver<Answer>) {
        let (answers, receiver) = mpsc::channel(ANSWERS);
        let at_once = Arc::new(Semaphore::new(AT_ONCE));
        (
            Self { order: Order::default(), answers, at_once, list: None, containers: BTreeMap::new(), swarm: None },
            receiver,
        )
    }

    /// Asks for all containers, unless that is being done. `anew`: what was asked so far is not to be trusted.
    pub(super) fn list(&mut self, docker: &Docker, anew: bool) {
        if anew {
            self.order.lost();
        }
        if let Some((_, task)) = &self.list {
            if !anew && !task.is_finished() {
                return;
            }
            task.abort();
        }
        let (turn, docker, answers) = (self.order.ask(), docker.clone(), self.answers.clone());
        let task = tokio::spawn(async move {
            let answer = persist(|| {
                let docker = docker.clone();
                async move { docker.containers().await }
            })
            .await;
            let _ = answers.send(Answer::List(turn, answer)).await;
        });
        self.list = Some((turn, task));
    }

    /// Asks the swarm. Not again before there is an answer.
    pub(super) fn swarm(&mut self, docker: &Docker, role: Option<Role>, networks: BTreeSet<String>) {
        let (docker, answers) = (docker.clone(), self.answers.clone());
        self.swarm = Some(tokio::spawn(async move {
            let told = docker.swarm(role, &networks).await;
            let _ = answers.send(Answer::Swarm(told)).await;
        }));
    }

    /// Whether the swarm is being asked.
    pub(super) fn is_asking_swarm(&self) -> bool {
        self.swarm.as_ref().is_some_and(|task| !task.is_finished())
    }

    /// It has answered, though the task that brought the answer may not have ended yet.
    pub(super) fn swarm_answered(&mut self) {
        self.swarm = None;
    }

    /// Asks Docker's name server, inside a namespace, for the tasks behind virtual addresses.
    pub(super) fn bindings(&self, netns: Arc<Netns>, vips: Vec<Vip>, asked: Duration) {
        let answers = self.answers.clone();
        tokio::spawn(async move {
            let names: Vec<String> = vips.iter().map(Vip::name_of_tasks).collect();
            let found = addresses(netns, &names).await.unwrap_or_else(|error| {
                tracing::debug!(%error, "asking Docker's name server failed");
                Vec::new()
            });
            let found = found.into_iter().chain(repeat(None));
            let bindings = vips.into_iter().zip(found).map(|(vip, addresses)| Binding { vip, addresses }).collect();
            let _ = answers.send(Answer::Bindings { asked, bindings }).await;
        });
    }

    /// Asks about one container. If that is being done, it is done again when the answer comes: see [`Order::is_stale`].
    pub(super) fn inspect(&mut self, docker: &Docker, id: &ContainerId) {
        if !self.is_asked(id) {
            self.send(docker, id, Vec::new());
        }
    }

    fn send(&mut self, docker: &Docker, id: &ContainerId, waiting: Vec<Event>) {
        let (turn, docker, answers) = (self.order.ask(), docker.clone(), self.answers.clone());
        let (asked, at_once) = (id.clone(), self.at_once.clone());
        tokio::spawn(async move {
            let answer = {
                // Never closed.
                let _place = at_once.acquire().await;
                persist(|| {
                    let (docker, asked) = (docker.clone(), asked.clone());
                    async move { docker.inspect(&asked).await }
                })
                .await
            };
            let _ = answers.send(Answer::Container(asked, turn, answer)).await;
        });
        self.containers.insert(id.clone(), Asked { turn, waiting, overrun: false });
    }

    /// Whether nothing is being asked about containers.
    pub(super) fn are_answered(&self) -> bool {
        self.list.is_none() && self.containers.is_empty()
    }

    /// Whether a container is being asked about.
    pub(super) fn is_asked(&self, id: &ContainerId) -> bool {
        self.containers.contains_key(id)
    }

    /// Keeps an event of a container that is not known yet until the answer is there; gives it back if nothing is asked.
    pub(super) fn wait(&mut self, docker: &Docker, event: Event) -> Option<Event> {
        // A list may make it known, and no answer ever tells of a signal.
        if self.list.is_some() && event.labels_say_steer && matches!(event.kind, EventKind::Kill { .. }) {
            self.inspect(docker, &event.container);
        }
        let Some(asked) = self.containers.get_mut(&event.container) else { return Some(event) };
        if asked.waiting.len() < WAITING {
            asked.waiting.push(event);
        } else {
            asked.overrun = true;
        }
        None
    }

    /// The question that this answers, if the answer is to be used; if it is older than what is known, it is asked again.
    pub(super) fn answered(&mut self, docker: &Docker, id: &ContainerId, turn: Turn) -> Option<Asked> {
        let asked = self.containers.get(id).filter(|asked| asked.turn == turn)?;
        let again = asked.overrun || self.order.is_stale(turn, id);
        let asked = self.containers.remove(id)?;
        if !again {
            return Some(asked);
        }
        tracing::debug!(container = %id, "events came meanwhile: asking Docker again");
        let waiting = if asked.overrun { Vec::new() } else { asked.waiting };
        self.send(docker, id, waiting);
        None
    }

    /// Whether this is the list that was asked for last.
    pub(super) fn listed(&mut self, turn: Turn) -> bool {
        self.list.take_if(|(asked, _)| *asked == turn).is_some()
    }

    /// Forgets what only questions under way need.
    pub(super) fn rest(&mut self) {
        if self.are_answered() {
            self.order.rest();
        }
    }
}

/// Asks until there is an answer, or it is the resync's turn.
async fn persist<T, F: Future<Output = Result<T>>>(ask: impl Fn() -> F) -> Result<T> {
    for wait in AGAIN {
        match ask().await {
            Ok(answer) => return Ok(answer),
            Err(error) => tracing::debug!(error = format!("{error:#}"), again_in = ?wait, "Docker does not answer"),
        }
        sleep(wait).await;
    }
    ask().await
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    fn event(kind: EventKind, labels_say_steer: bool) -> Event {
        let container = ContainerId("a".to_owned());
        Event { container, kind, time_ns: 1, labels_say_steer, received: Instant::now() }
    }

    /// Questions of an agent that has begun, to a Docker that answers nothing.
    fn questions() -> (Questions, Docker, mpsc::Receiver<Answer>) {
        let (questions, answers) = Questions::new();
        (questions, Docker::at(Some("unix:///nowhere/docker.sock")).unwrap(), answers)
    }

    #[tokio::test]
    async fn a_signal_that_comes_while_a_list_is_under_way_waits_for_an_answer_that_is_younger() {
        let (mut questions, docker, _answers) = questions();
        questions.list(&docker, true);
        let (list, _) = questions.list.as_ref().expect("it is under way");
        let (list, kill) = (*list, event(EventKind::Kill { signal: 15 }, true));
        questions.order.event(&kill.container);
        assert_eq!(questions.wait(&docker, kill.clone()), None, "it is kept");
        assert!(questions.order.is_stale(list, &kill.container), "what the list says of it is not to be used");
        let turn = questions.containers[&kill.container].turn;
        let asked = questions.answered(&docker, &kill.container, turn).expect("nothing has come since");
        assert_eq!(asked.waiting, [kill]);
    }

    #[tokio::test]
    async fn nobody_is_asked_about_what_an_answer_tells_or_about_who_is_not_to_be_known() {
        let (mut questions, docker, _answers) = questions();
        let kill = event(EventKind::Kill { signal: 15 }, true);
        assert_eq!(questions.wait(&docker, kill.clone()), Some(kill), "no list could make it known");
        questions.list(&docker, true);
        for event in [event(EventKind::Kill { signal: 15 }, false), event(EventKind::Pause, true)] {
            assert_eq!(questions.wait(&docker, event.clone()), Some(event));
        }
        assert!(questions.containers.is_empty());
    }
}
