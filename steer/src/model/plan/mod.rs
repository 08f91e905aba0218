//! Which map writes lead from what the maps hold to what they should hold, in an order that is right at every step: a backend is
//! known before a slot names it, a slot is gone before its backend is, and whoever must get no new flows is demoted first.
//!
//! | module | holds |
//! |---|---|
//! | `applied` | what the maps hold, and how an operation changes that |
//! | `blocked` | what must not be done after an operation has failed |
//! | `planner` | the difference, and its order |
//! | `frontends` | which addresses lead to which port of which service |

mod applied;
mod blocked;
mod frontends;
mod planner;
#[cfg(test)]
mod tests;

use ipnet::IpNet;
use steer_common::backend::{BackendEntry, BackendId};
use steer_common::endpoint::{EndpointEntry, EndpointKey};
use steer_common::service::{FrontendEntry, FrontendKey, ServiceEntry, ServiceId};
use steer_common::state::BackendState;

use super::desired::{BackendKey, Desired};
use super::frontend::Frontend;
use super::{Gate, Problem, ServiceName};

pub use applied::{Applied, AppliedBackend, AppliedService, Info, SlotRecipe};
pub use blocked::Blocked;

/// One map write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// A backend that was not there: its counts start at zero, its state at `Starting`.
    AddBackend {
        key: BackendKey,
        id: BackendId,
        entry: BackendEntry,
        info: Info,
    },
    /// A backend that changed its place or weight.
    PutBackend {
        key: BackendKey,
        id: BackendId,
        entry: BackendEntry,
    },
    PutInfo {
        key: BackendKey,
        id: BackendId,
        info: Info,
    },
    SetState {
        key: BackendKey,
        id: BackendId,
        state: BackendState,
        gate: Gate,
    },
    RemoveBackend {
        key: BackendKey,
        id: BackendId,
    },
    PutEndpoint {
        key: EndpointKey,
        entry: EndpointEntry,
    },
    RemoveEndpoint {
        key: EndpointKey,
    },
    PutService {
        name: ServiceName,
        id: ServiceId,
        entry: ServiceEntry,
        ports: Vec<Option<Frontend>>,
    },
    SwapSlots {
        name: ServiceName,
        id: ServiceId,
        slots: SlotRecipe,
    },
    RemoveService {
        name: ServiceName,
        id: ServiceId,
    },
    PutAllow {
        service: ServiceId,
        net: IpNet,
    },
    RemoveAllow {
        service: ServiceId,
        net: IpNet,
    },
    PutFrontend {
        key: FrontendKey,
        entry: FrontendEntry,
    },
    RemoveFrontend {
        key: FrontendKey,
    },
}

/// The operations that lead from `applied` to `desired`; none when they agree. `now_secs` (seconds since boot) starts the
/// generations of a new agent beyond all those an earlier one gave out.
pub fn plan(desired: &Desired, applied: &Applied, now_secs: u32) -> (Vec<Op>, Vec<Problem>) {
    planner::Planner::new(desired, applied, now_secs).plan()
}

/// Operations on empty tables, in such an order that both directions of a connection change hands in the same moment: who sees one
/// of them alone would never see it end. All that takes long comes first.
pub fn in_handover_order(mut ops: Vec<Op>) -> Vec<Op> {
    ops.sort_by_key(|op| match op {
        Op::PutEndpoint { .. } => 1,
        Op::PutFrontend { .. } => 2,
        _ => 0,
    });
    ops
}
