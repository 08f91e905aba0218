//! What the socket asks for.

use anyhow::Result;
use serde::Serialize;
use serde_json::Value;

use super::Agent;
use super::takeover::Takeover;
use super::tracked::Tracked;
use crate::api::{Action, AgentStatus, ApiError, Changed, ChangedBackend, Detaching, Drained, DrainedBackend, Request};
use crate::dataplane::read::Reader;
use crate::model::ContainerId;
use crate::model::named::{NameError, resolve};

impl Agent {
    pub(super) fn on_request(&mut self, request: Request) {
        let Request { action, reply } = request;
        let detach_now = matches!(action, Action::Detach { now: true });
        let answer = match action {
            Action::Status => to_value(&self.status()),
            Action::Drain { target } => self.drain(&target),
            Action::Undrain { target } => self.undrain(&target),
            Action::Weight { target, weight } => self.weight(&target, weight),
            Action::Detach { now } => self.close(now),
        };
        // A caller that has gone away does not want the answer.
        let _ = reply.send(answer);
        if detach_now {
            self.detach();
        }
    }

    fn status(&self) -> AgentStatus {
        let since = jiff::Timestamp::try_from(self.since).map_or_else(|_| String::new(), |since| since.to_string());
        AgentStatus {
            pid: std::process::id(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            since,
            docker: self.docker.listed().map(str::to_owned),
            attach: self.uplinks.attachments(),
            problems: self.problems.values().flatten().cloned().collect(),
            stops: self.stops.counts(),
        }
    }

    fn drain(&mut self, target: &str) -> Result<Value, ApiError> {
        let id = self.find(target)?;
        self.change(&id, |tracked| tracked.maintenance = true);
        let backends = self.backends_of(&id, |id, tracked| DrainedBackend {
            id,
            name: tracked.name.clone(),
            drain_ms: tracked.spec.drain.as_millis() as u64,
            is_task: tracked.task.is_some(),
        });
        to_value(&Drained { backends })
    }

    fn undrain(&mut self, target: &str) -> Result<Value, ApiError> {
        let id = self.find(target)?;
        self.change(&id, |tracked| {
            tracked.maintenance = false;
            tracked.put_in = true;
            // The operator knows better than a signal that the container survived.
            tracked.stopping = None;
            if tracked.by_listening() {
                tracked.look();
            }
        });
        self.changed(&id)
    }

    fn weight(&mut self, target: &str, weight: Option<u16>) -> Result<Value, ApiError> {
        let id = self.find(target)?;
        self.change(&id, |tracked| tracked.operator_weight = weight);
        self.changed(&id)
    }

    /// Takes no new flows, and ends when the last one has; at once if need be.
    fn close(&mut self, now: bool) -> Result<Value, ApiError> {
        let live_flows = Reader::open(&self.settings.paths)
            .and_then(|reader| reader.snapshot())
            .map(|snapshot| snapshot.live_flows())
            .map_err(|error| ApiError::failed(error.to_string()))?;
        if !now {
            tracing::info!(live_flows, "detaching: no new flows; waiting for the last one");
            self.closing = true;
        }
        to_value(&Detaching { live_flows })
    }

    /// Changes a container and carries that to the maps before the answer goes out.
    fn change(&mut self, id: &ContainerId, change: impl FnOnce(&mut Tracked)) {
        if let Some(tracked) = self.tracked.get_mut(id) {
            change(tracked);
        }
        self.settle(id);
        self.reconcile();
    }

    fn changed(&self, id: &ContainerId) -> Result<Value, ApiError> {
        let backends = self.backends_of(id, |id, tracked| ChangedBackend {
            id,
            name: tracked.name.clone(),
            state: tracked.state.name().to_owned(),
            weight: tracked.operator_weight.unwrap_or(tracked.spec.weight),
        });
        to_value(&Changed { backends })
    }

    fn backends_of<T>(&self, id: &ContainerId, make: impl Fn(u16, &Tracked) -> T) -> Vec<T> {
        let Some(tracked) = self.tracked.get(id) else { return Vec::new() };
        let applied = self.applied.backends.get(&tracked.key());
        applied.map(|applied| make(applied.id.0, tracked)).into_iter().collect()
    }

    /// The container that is meant.
    fn find(&self, target: &str) -> Result<ContainerId, ApiError> {
        if matches!(self.takeover, Takeover::Waits(_)) {
            let why = "another version of steer steers until this one knows what runs: try again in a moment";
            return Err(ApiError::unavailable(why));
        }
        let there = self.tracked.values().map(|tracked| (tracked.name.as_str(), tracked.id.0.as_str()));
        resolve(target, there).map(|id| ContainerId(id.to_owned())).map_err(|error| match error {
            NameError::NotFound { .. } if self.is_inherited(target) => ApiError::unavailable(format!(
                "Docker has not described `{target}` to this agent yet, which has just begun: try again in a moment"
            )),
            NameError::NotFound { .. } => ApiError::not_found(error.to_string()),
            NameError::Ambiguous { .. } => ApiError::conflict(error.to_string()),
        })
    }

    /// Whether an earlier agent knew a container by that name or id, and this one does not yet.
    fn is_inherited(&self, target: &str) -> bool {
        let inherited: Vec<_> = self.inherited().collect();
        resolve(target, inherited.iter().map(|left| (left.name.as_str(), left.id.0.as_str()))).is_ok()
    }
}

fn to_value(value: &impl Serialize) -> Result<Value, ApiError> {
    serde_json::to_value(value).map_err(|error| ApiError::failed(error.to_string()))
}
