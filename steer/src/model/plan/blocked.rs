//! What must not be done after an operation has failed.

use std::collections::BTreeSet;

use steer_common::service::ServiceId;
use steer_common::state::BackendState;

use super::{Applied, Op};
use crate::model::desired::BackendKey;

/// Of whom operations have failed. The rest of a plan may rely on these: it waits for the next plan. Other services do not.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Blocked {
    services: BTreeSet<ServiceId>,
    backends: BTreeSet<BackendKey>,
}

impl Blocked {
    /// Notes that an operation has failed.
    pub fn failed(&mut self, op: &Op, applied: &Applied) {
        let (service, backend) = concerns(op, applied);
        self.services.extend(service);
        self.backends.extend(backend.cloned());
    }

    /// Whether an operation may rely on one that has failed. A demotion relies on nothing.
    pub fn waits(&self, op: &Op, applied: &Applied) -> bool {
        if matches!(op, Op::SetState { state, .. } if *state != BackendState::Ready) {
            return false;
        }
        let (service, backend) = concerns(op, applied);
        service.is_some_and(|service| self.services.contains(&service))
            || backend.is_some_and(|backend| self.backends.contains(backend))
    }

    /// Whether nothing has failed.
    pub fn is_empty(&self) -> bool {
        self.services.is_empty() && self.backends.is_empty()
    }
}

/// The service and the backend that an operation is about.
fn concerns<'a>(op: &'a Op, applied: &Applied) -> (Option<ServiceId>, Option<&'a BackendKey>) {
    let service_of = |key: &BackendKey| applied.backends.get(key).map(|backend| backend.entry.service);
    match op {
        Op::AddBackend { key, entry, .. } | Op::PutBackend { key, entry, .. } => (Some(entry.service), Some(key)),
        Op::PutInfo { key, .. } | Op::SetState { key, .. } | Op::RemoveBackend { key, .. } => {
            (service_of(key), Some(key))
        }
        Op::PutEndpoint { entry, .. } => (Some(entry.service), None),
        Op::RemoveEndpoint { key } => (applied.endpoints.get(key).map(|entry| entry.service), None),
        Op::PutService { id, .. } | Op::SwapSlots { id, .. } | Op::RemoveService { id, .. } => (Some(*id), None),
        Op::PutAllow { service, .. } | Op::RemoveAllow { service, .. } => (Some(*service), None),
        Op::PutFrontend { entry, .. } => (Some(entry.service), None),
        Op::RemoveFrontend { key } => (applied.frontends.get(key).map(|entry| entry.service), None),
    }
}
