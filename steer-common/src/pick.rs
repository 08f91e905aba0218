//! Which backend takes a new flow.
//!
//! The slot table proposes, the backend's state of this very instant disposes. The agent swaps the table soon after a state
//! has changed, so the first candidate is nearly always right; between the two, the next candidates are tried, then all the
//! service's members from a rotating start, every loop bounded. If nothing is ready, a draining backend is better than none
//! (Kubernetes KEP-1669).

use crate::addr::{Addr, Port};
use crate::backend::{BackendId, BackendState};
use crate::hash;
use crate::limits::{LANES, MAX_CANDIDATES, MAX_SCAN};
use crate::service::{Balance, ServiceId};
use crate::slot::SlotTable;
use crate::tables::Tables;

/// A new flow that needs a backend.
#[derive(Clone, Copy, Debug)]
pub struct Request {
    pub service: ServiceId,
    pub port_index: u8,
    pub client: Addr,
    pub client_port: Port,
    pub frontend_port: Port,
    /// Endpoints the client already talks to from this very port.
    pub taken: Taken,
}

/// Endpoints that flows of the same client address and port use already, by way of other frontends.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Backend id and port in one word each.
    endpoints: [u32; LANES as usize - 1],
}

impl Taken {
    /// A free place: port 0 is nobody's. Not all bits zero, since a run of zeros becomes a call of `memset` in the kernel.
    const FREE: u32 = Self::word(BackendId(1), Port::NONE);
    /// No endpoint.
    pub const NONE: Self = Self { endpoints: [Self::FREE; LANES as usize - 1] };

    #[inline(always)]
    const fn word(backend: BackendId, target: Port) -> u32 {
        (backend.0 as u32) << 16 | target.0 as u32
    }

    /// Adds an endpoint; beyond the last lane it is not needed any more.
    #[inline(always)]
    pub fn add(&mut self, backend: BackendId, target: Port) {
        if let Some(place) = self.endpoints.iter_mut().find(|place| **place == Self::FREE) {
            *place = Self::word(backend, target);
        }
    }

    /// Whether there is none.
    #[inline(always)]
    pub const fn is_empty(&self) -> bool {
        // Places are taken in order.
        let [first, ..] = self.endpoints;
        first == Self::FREE
    }

    #[inline(always)]
    fn has(&self, backend: BackendId, target: Port) -> bool {
        self.endpoints.contains(&Self::word(backend, target))
    }
}

/// The backend for a new flow: ready, or at worst draining; `None` when there is neither.
#[inline(always)]
pub fn pick<T: Tables>(tables: &T, request: &Request) -> Option<BackendId> {
    let service = tables.service(request.service)?;
    let slots = tables.slots(request.service)?;
    let turn = tables.turn(request.service);
    let start = match Balance::from_u8(service.balance) {
        Balance::RoundRobin => turn,
        Balance::LeastConn => match better_of_two(tables, request, slots, turn) {
            Some(backend) => return Some(backend),
            None => turn,
        },
        Balance::Maglev => hash::of_flow(request.client, request.client_port, request.frontend_port),
        Balance::Source => hash::of_client(request.client),
    };
    for i in 0..MAX_CANDIDATES {
        let Some(candidate) = slots.at(start.wrapping_add(i)) else { break };
        if state_for(tables, request, candidate) == BackendState::Ready {
            return Some(candidate);
        }
    }
    scan(tables, request, slots, turn)
}

/// The first ready member, else the first draining one.
#[inline(always)]
fn scan<T: Tables>(tables: &T, request: &Request, slots: &SlotTable, start: u32) -> Option<BackendId> {
    let mut draining = None;
    for i in 0..MAX_SCAN {
        if i >= slots.members_len {
            break;
        }
        let member = slots.member(start.wrapping_add(i))?;
        match state_for(tables, request, member) {
            BackendState::Ready => return Some(member),
            BackendState::Draining if draining.is_none() => draining = Some(member),
            _ => {}
        }
    }
    draining
}

/// Of two ready candidates the one with fewer live flows per weight ("power of two choices").
#[inline(always)]
fn better_of_two<T: Tables>(tables: &T, request: &Request, slots: &SlotTable, turn: u32) -> Option<BackendId> {
    let first = slots.at(turn)?;
    // A second candidate that walks the table with another step, so that the pairs differ from turn to turn.
    let second = slots.at(turn.wrapping_mul(0x9e37_79b1) >> 7)?;
    let ready = |id| state_for(tables, request, id) == BackendState::Ready;
    match (ready(first), ready(second)) {
        (true, true) => {
            let load = |id: BackendId, other: BackendId| {
                tables.live(id).wrapping_mul(tables.backend(other).map_or(1, |b| u64::from(b.weight)))
            };
            Some(if load(second, first) < load(first, second) { second } else { first })
        }
        (true, false) => Some(first),
        (false, true) => Some(second),
        (false, false) => None,
    }
}

/// The backend's state, if it is one for this request: of this service (an id may have been reused since the table was
/// built), serving this port, and not the client itself (a container that calls its own service: the reply would never leave
/// it), nor an endpoint the client's port already talks to.
#[inline(always)]
fn state_for<T: Tables>(tables: &T, request: &Request, id: BackendId) -> BackendState {
    let Some(backend) = tables.backend(id) else { return BackendState::Gone };
    let Some(target) = backend.target(request.port_index) else { return BackendState::Gone };
    if backend.service != request.service || backend.addr == request.client || request.taken.has(id, target) {
        return BackendState::Gone;
    }
    tables.backend_state(id)
}

#[cfg(test)]
#[path = "pick_tests.rs"]
mod tests;
