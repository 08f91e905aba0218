//! Which backend takes a new flow.
//!
//! The slot table proposes, the backend's state and its listening socket of this very instant dispose. The agent swaps the table
//! soon after a state has changed, so the first candidate is nearly always right; between the two, the next candidates are
//! tried, then all the service's members from a rotating start, every loop bounded. If nothing is ready, a draining backend is
//! better than none (Kubernetes KEP-1669), unless Swarm's mesh is there, which may have a ready one elsewhere.

use core::ops::ControlFlow;

use crate::addr::{Addr, Port};
use crate::backend::BackendId;
use crate::hash;
use crate::limits::{LANES, MAX_CANDIDATES, MAX_SCAN};
use crate::notice::NoticeKind;
use crate::service::{Balance, ServiceId};
use crate::slot::SlotTable;
use crate::state::BackendState;
use crate::tables::{Listening, Tables};

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
    /// Has refused this flow already; [`BackendId::NONE`]: nobody has.
    pub not: BackendId,
}

/// Endpoints that flows of the same client address and port use already, by way of other frontends.
#[derive(Clone, Copy, Debug)]
pub struct Taken {
    /// Backend id and port in one word each.
    endpoints: [u32; LANES as usize - 1],
}

impl Request {
    /// A place for one.
    pub const UNUSED: Self = Self {
        service: ServiceId(0),
        port_index: 0,
        client: Addr::UNSPECIFIED,
        client_port: Port::NONE,
        frontend_port: Port::NONE,
        taken: Taken::NONE,
        not: BackendId::NONE,
    };
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

/// The backend for a new flow: ready, or at worst draining where nobody else is behind the frontend; `None` when there is neither.
#[inline(always)]
pub fn pick<T: Tables>(tables: &T, request: &Request) -> Option<BackendId> {
    let found = choose(tables, request);
    (!found.is_none()).then_some(found)
}

/// A function of its own, for the sake of the stack: to be called where not much stands on it yet.
#[inline(never)]
fn choose<T: Tables>(tables: &T, request: &Request) -> BackendId {
    let (Some(service), Some(slots)) = (tables.service(request.service), tables.slots(request.service)) else {
        return BackendId::NONE;
    };
    let turn = tables.turn(request.service);
    let start = match Balance::from_u8(service.balance) {
        Balance::RoundRobin => turn,
        Balance::LeastConn => match better_of_two(tables, request, slots, turn) {
            BackendId::NONE => turn,
            backend => return backend,
        },
        Balance::Maglev => hash::of_flow(request.client, request.client_port, request.frontend_port),
        Balance::Source => hash::of_client(request.client),
    };
    for i in 0..MAX_CANDIDATES {
        let Some(candidate) = slots.at(start.wrapping_add(i)) else { break };
        if fit(tables, request, candidate) == Fit::Ready {
            return candidate;
        }
    }
    let (ready, draining) = scan(tables, request, slots, turn);
    // The mesh may have a ready one elsewhere.
    if !ready.is_none() || service.has_mesh() { ready } else { draining }
}

/// The first ready member, and the first draining one that was met before it.
#[inline(always)]
fn scan<T: Tables>(tables: &T, request: &Request, slots: &SlotTable, start: u32) -> (BackendId, BackendId) {
    let (mut ready, mut draining) = (BackendId::NONE, BackendId::NONE);
    tables.each(slots.members_len.min(MAX_SCAN), |i| {
        let Some(member) = slots.member(start.wrapping_add(i)) else { return ControlFlow::Break(()) };
        match fit(tables, request, member) {
            Fit::Ready => {
                ready = member;
                return ControlFlow::Break(());
            }
            Fit::Draining if draining.is_none() => draining = member,
            _ => {}
        }
        ControlFlow::Continue(())
    });
    (ready, draining)
}

/// Of two ready candidates the one with fewer live flows per weight ("power of two choices"), or [`BackendId::NONE`].
#[inline(always)]
fn better_of_two<T: Tables>(tables: &T, request: &Request, slots: &SlotTable, turn: u32) -> BackendId {
    let Some(first) = slots.at(turn) else { return BackendId::NONE };
    // A second candidate that walks the table with another step, so that the pairs differ from turn to turn.
    let Some(second) = slots.at(turn.wrapping_mul(0x9e37_79b1) >> 7) else { return BackendId::NONE };
    let ready = |id| fit(tables, request, id) == Fit::Ready;
    match (ready(first), ready(second)) {
        (true, true) => {
            let load = |id: BackendId, other: BackendId| {
                tables.live(id).wrapping_mul(tables.backend(other).map_or(1, |b| u64::from(b.weight)))
            };
            if load(second, first) < load(first, second) { second } else { first }
        }
        (true, false) => first,
        (false, true) => second,
        (false, false) => BackendId::NONE,
    }
}

/// How a candidate suits a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Fit {
    /// Takes it.
    Ready = 0,
    /// Takes it if nobody is ready.
    Draining = 1,
    /// Is of another service by now (its id was used again), or does not serve this port.
    Foreign = 2,
    /// Is the client itself: the reply would never leave it.
    Itself = 3,
    /// The client's port talks to this endpoint already, or it has refused this very flow.
    Taken = 4,
    /// Has weight 0.
    NoWeight = 5,
    /// Its state takes nothing.
    NotReady = 6,
    /// Nobody listens.
    NotListening = 7,
}

impl Fit {
    /// All of them, by their number.
    pub const ALL: [Self; 8] = [
        Self::Ready,
        Self::Draining,
        Self::Foreign,
        Self::Itself,
        Self::Taken,
        Self::NoWeight,
        Self::NotReady,
        Self::NotListening,
    ];

    /// The word for it in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Draining => "draining",
            Self::Foreign => "foreign",
            Self::Itself => "itself",
            Self::Taken => "taken",
            Self::NoWeight => "no-weight",
            Self::NotReady => "not-ready",
            Self::NotListening => "not-listening",
        }
    }

    /// From a trace; `None` = there is no such number.
    pub fn from_u16(value: u16) -> Option<Self> {
        Self::ALL.get(usize::from(value)).copied()
    }
}

/// How a candidate suits a request, at this very instant. Once per candidate, and a function of its own: the verifier walks
/// through every copy of it.
#[inline(never)]
fn fit<T: Tables>(tables: &T, request: &Request, id: BackendId) -> Fit {
    let fit = judge(tables, request, id);
    tables.trace(id, fit);
    fit
}

#[inline(always)]
fn judge<T: Tables>(tables: &T, request: &Request, id: BackendId) -> Fit {
    let Some(backend) = tables.backend(id) else { return Fit::Foreign };
    let Some(target) = backend.target(request.port_index) else { return Fit::Foreign };
    if backend.service != request.service {
        return Fit::Foreign;
    }
    if backend.addr == request.client {
        return Fit::Itself;
    }
    if request.taken.has(id, target) || request.not == id {
        return Fit::Taken;
    }
    if backend.weight == 0 {
        return Fit::NoWeight;
    }
    match tables.backend_state(id) {
        (BackendState::Ready, _) => match tables.listens(backend, target) {
            Listening::Yes | Listening::Unknown => Fit::Ready,
            Listening::No => {
                tables.notice(NoticeKind::NotListening, id, backend);
                Fit::NotListening
            }
        },
        (BackendState::Draining | BackendState::Drained, _) => match tables.listens(backend, target) {
            Listening::Yes | Listening::Unknown => Fit::Draining,
            Listening::No => Fit::NotListening,
        },
        (BackendState::Starting | BackendState::Unready, true) => match tables.listens(backend, target) {
            Listening::Yes => {
                tables.notice(NoticeKind::Listening, id, backend);
                Fit::Ready
            }
            Listening::No | Listening::Unknown => Fit::NotListening,
        },
        _ => Fit::NotReady,
    }
}

#[cfg(test)]
mod tests;
