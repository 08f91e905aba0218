//! Backend to client: the way back of a steered flow.

use crate::backend::BackendId;
use crate::endpoint::{EndpointEntry, EndpointKey};
use crate::flow::{FlowEntry, FlowKey};
use crate::limits::{LANES, MAX_REFUSALS};
use crate::notice::NoticeKind;
use crate::open::{is_for_mesh, may_hold};
use crate::pick::{Request, pick};
use crate::recover::{Lost, restore};
use crate::steer::{Nanos, Segment, lookup, touch};
use crate::tables::{Table, Tables};
use crate::tcp::{Direction, TcpFlags, TcpState};
use crate::verdict::{Counter, Forward, Reply, Returned, Verdict};

/// Where a packet that came out of a container goes, if it is a reply of a steered flow; `returned` stays `None` = leave it alone.
///
/// `ifindex` is the host end of the veth the packet came in on. The answer is left in memory, and this is a function of its own:
/// the verifier takes no register that only one of several paths fills, and the stack is small.
#[inline(never)]
pub fn reverse<T: Tables>(tables: &T, segment: &Segment, ifindex: u32, now: Nanos, returned: &mut Option<Returned>) {
    let at = EndpointKey::new(segment.src, ifindex, segment.src_port, segment.proto);
    let Some(endpoint) = tables.endpoint(&at) else { return };
    let mut key = FlowKey::new(segment.dst, segment.dst_port, endpoint.service, segment.proto);
    let Some((table, flow)) = find(tables, &mut key, &endpoint) else {
        restore(tables, &mut key, &Lost { endpoint, flags: segment.flags, now }, returned);
        return;
    };
    if segment.flags.has(TcpFlags::SYN) && is_over(&flow, now) {
        // It accepts a connection of the same client and port that came another way (the container's own address, a port that Docker
        // publishes): one by way of steer would have begun with a SYN in the place of this entry.
        forget(tables, &key);
        return;
    }
    if segment.flags.has(TcpFlags::RST) && flow.tcp() == TcpState::SynSent {
        let _: Verdict = tables.with_work(|new| {
            if may_try_again(tables, &key, &mut new.request) {
                let picked = pick(tables, &new.request);
                try_again(tables, &key, picked.unwrap_or(BackendId::NONE), now, returned);
            }
        });
        if returned.is_none() {
            tell(tables, &key, now, returned);
        }
        return;
    }
    *returned = Some(replied(tables, segment.flags, &key, table, &flow, now));
}

/// Whether a flow has ended, so that what its backend accepts is another connection.
#[inline(always)]
fn is_over(flow: &FlowEntry, now: Nanos) -> bool {
    match flow.tcp() {
        TcpState::Closed => true,
        // Whoever sent that reset, the backend may not have believed it.
        TcpState::Reset => flow.is_expired(now.secs()),
        _ => false,
    }
}

/// Forgets a flow that has ended. A function of its own, as those below.
#[inline(never)]
fn forget<T: Tables>(tables: &T, key: &FlowKey) {
    tables.remove_flow(Table::Pending, key);
}

/// A packet of a known flow goes to the client.
#[inline(always)]
fn replied<T: Tables>(
    tables: &T,
    flags: TcpFlags,
    key: &FlowKey,
    table: Table,
    flow: &T::Flow<'_>,
    now: Nanos,
) -> Returned {
    let FlowEntry { frontend, frontend_port, uplink, .. } = **flow;
    let state = flow.tcp().advance(Direction::Reverse, flags);
    touch(tables, key, table, flow, state, uplink, now);
    Returned::Reply(Reply { frontend, frontend_port, uplink, reason: Counter::Reply })
}

/// The flow that a packet of an endpoint is part of; `key` is left at its lane.
#[inline(always)]
pub(crate) fn find<'t, T: Tables>(
    tables: &'t T,
    key: &mut FlowKey,
    endpoint: &EndpointEntry,
) -> Option<(Table, T::Flow<'t>)> {
    let mut extra_lanes = 0;
    for lane in 0..LANES {
        if lane == 1 {
            // Not for every packet: see [`crate::steer`].
            extra_lanes = tables.extra_lanes(endpoint.service);
        }
        if u32::from(lane) > extra_lanes {
            break;
        }
        key.lane = lane;
        if let Some((table, flow)) = lookup(tables, key)
            && flow.backend == endpoint.backend
            && flow.generation == endpoint.generation
            && endpoint.serves(flow.port_index)
        {
            return Some((table, flow));
        }
    }
    None
}

/// A backend answered a SYN with RST: its listener closed after it was asked, or something inside the container rejects. Another
/// one gets the SYN, at most [`MAX_REFUSALS`] times; what is asked of it stands in `request` then. Functions of their own, as
/// [`crate::steer`]'s are.
#[inline(never)]
fn may_try_again<T: Tables>(tables: &T, key: &FlowKey, request: &mut Request) -> bool {
    let Some(flow) = tables.flow(Table::Pending, key) else { return false };
    let (by, refused, port_index) = (flow.backend, flow.refused, flow.port_index);
    if let Some(backend) = tables.backend(by) {
        tables.notice(NoticeKind::Refused, by, backend);
    }
    if flow.refusals >= MAX_REFUSALS {
        return false;
    }
    *request = Request::UNUSED;
    if let Some(target) = tables.backend(refused).and_then(|backend| backend.target(port_index)) {
        request.taken.add(refused, target);
    }
    request.service = key.service;
    request.port_index = port_index;
    request.client = key.client;
    request.client_port = key.client_port;
    request.frontend_port = flow.frontend_port;
    request.not = by;
    true
}

/// The client hears the truth.
#[inline(never)]
fn tell<T: Tables>(tables: &T, key: &FlowKey, now: Nanos, returned: &mut Option<Returned>) {
    let Some(flow) = tables.flow(Table::Pending, key) else { return };
    *returned = Some(replied(tables, TcpFlags::RST, key, Table::Pending, &flow, now));
}

/// Gives the refused SYN to the backend that was picked; with none the client waits, as it does when nobody is ready. `None`:
/// the client hears the truth.
#[inline(never)]
fn try_again<T: Tables>(tables: &T, key: &FlowKey, id: BackendId, now: Nanos, returned: &mut Option<Returned>) {
    let Some((by, port_index)) = tables.flow(Table::Pending, key).map(|flow| (flow.backend, flow.port_index)) else {
        return;
    };
    let Some(backend) = tables.backend(id) else {
        let may_wait = tables.service(key.service).is_some_and(|service| {
            // The mesh has another one, perhaps; but not for a SYN that has been here.
            !is_for_mesh(tables, service, now) && may_hold(tables, key.service, port_index, service, now)
        });
        if may_wait && tables.hold_again(key) {
            *returned = Some(Returned::Drop(Counter::DropRefused));
        }
        return;
    };
    let Some(target) = backend.target(port_index) else { return };
    if tables.give_again(key, id, backend.generation, now.secs()) {
        tables.count_resteered(by);
        tables.count_steered(id);
        let forward = Forward { backend: id, target, reason: Counter::SteerRefused };
        *returned = Some(Returned::Resteer { key: *key, forward });
    }
}

#[cfg(test)]
mod tests;
