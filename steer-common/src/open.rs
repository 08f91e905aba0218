//! A flow that begins: whether it may, which lane it gets, and how it is written down.

use crate::backend::BackendId;
use crate::flow::{FlowEntry, FlowKey};
use crate::limits::{LANES, PENDING_SECS};
use crate::mesh::leave;
use crate::pick::Request;
use crate::service::{AllowKey, FrontendEntry, NoneSince, ServiceEntry, ServiceId};
use crate::steer::{Nanos, Segment, live_target, lookup, remove};
use crate::tables::{Table, Tables};
use crate::tcp::TcpState;
use crate::verdict::{Counter, Forward, Verdict};

/// A flow about to begin, or to be known again.
#[derive(Clone, Copy, Debug)]
pub struct NewFlow {
    pub(crate) frontend: FrontendEntry,
    pub(crate) uplink: u32,
    pub(crate) now: Nanos,
    /// Why it is steered, if it is.
    pub(crate) reason: Counter,
    /// What is asked of backends; here, since the stack is small.
    pub(crate) request: Request,
    /// Whether it has a lane to itself.
    pub(crate) has_lane: bool,
    /// Whether `FLOWS` may hold an entry where it will stand.
    pub(crate) may_replace: bool,
    pub(crate) verdict: Verdict,
}

impl NewFlow {
    /// A place for one.
    pub const UNUSED: Self = Self {
        frontend: FrontendEntry { service: ServiceId(0), port_index: 0, flags: 0 },
        uplink: 0,
        now: Nanos(0),
        reason: Counter::SteerNew,
        request: Request::UNUSED,
        has_lane: true,
        may_replace: false,
        verdict: Verdict::Pass(Counter::PassNoFlow),
    };

    /// The verdict so far.
    #[inline(always)]
    pub const fn verdict(&self) -> Verdict {
        self.verdict
    }

    /// Looks through the lanes for one that is free (unless the flow stands in one already) and for the endpoints that the
    /// client's other flows use.
    #[inline(always)]
    pub(crate) fn find_lane<T: Tables>(
        &mut self,
        tables: &T,
        key: &mut FlowKey,
        segment: &Segment,
        extra_lanes: u32,
        has_lane: bool,
    ) {
        let own = key.lane;
        let mut free = if has_lane { Some(own) } else { None };
        for lane in 0..LANES {
            if u32::from(lane) > extra_lanes {
                break;
            }
            key.lane = lane;
            let sibling = match lookup(tables, key) {
                Some((_, flow)) if flow.is_for(segment.dst, segment.dst_port) => continue,
                // The mesh's: no endpoint here, but its place.
                Some((_, flow)) if flow.is_of_mesh() && !flow.is_over(self.now.secs()) => continue,
                Some((_, flow)) if !flow.is_over(self.now.secs()) => {
                    live_target(tables, &flow, key.service).map(|target| (flow.backend, target))
                }
                _ => None,
            };
            match sibling {
                Some((backend, target)) => self.request.taken.add(backend, target),
                // Nothing, or what is left of a flow that has ended or lost its backend: a new flow may stand here.
                None if free.is_none() => free = Some(lane),
                None => {}
            }
        }
        // All lanes in use so far are taken: open one more, if there is one.
        let next = extra_lanes + 1;
        if free.is_none() && next < u32::from(LANES) {
            free = Some(next as u8);
        }
        self.has_lane = free.is_some();
        key.lane = free.unwrap_or(0);
    }
}

/// Whether a new flow may begin at all, with what is to be asked of backends; if not, the verdict says why. Once per connection,
/// and a function of its own, as those that follow: its variables would not fit on the stack beside those of the packets that
/// follow.
#[inline(never)]
pub(crate) fn may_open<T: Tables>(tables: &T, segment: &Segment, key: &FlowKey, new: &mut NewFlow) -> bool {
    let NewFlow { frontend, ref mut request, has_lane, may_replace, ref mut verdict, .. } = *new;
    if !has_lane {
        *verdict = Verdict::Drop(Counter::DropLanes);
        return false;
    }
    if frontend.flags & FrontendEntry::CLOSED != 0 {
        // Whoever takes it: what follows is not to meet what is left of an older connection from this port.
        tables.remove_flow(Table::Pending, key);
        if may_replace {
            end_old(tables, key);
        }
        *verdict = Verdict::Pass(Counter::PassClosed);
        return false;
    }
    let Some(service) = tables.service(frontend.service) else {
        *verdict = Verdict::Pass(Counter::PassNotFrontend);
        return false;
    };
    if service.flags & ServiceEntry::ALLOW_LIST != 0
        && !tables.is_allowed(&AllowKey::new(frontend.service, segment.src))
    {
        *verdict = Verdict::Drop(Counter::DropNotAllowed);
        return false;
    }
    request.service = key.service;
    request.port_index = frontend.port_index;
    request.client = segment.src;
    request.client_port = segment.src_port;
    request.frontend_port = segment.dst_port;
    true
}

/// Gives a new flow to the backend that was picked for it, if one was.
#[inline(never)]
pub(crate) fn open<T: Tables>(tables: &T, segment: &Segment, key: &FlowKey, new: &mut NewFlow, id: BackendId) {
    let NewFlow { frontend, uplink, now, reason, ref request, may_replace, ref mut verdict, .. } = *new;
    let picked = tables.backend(id);
    // One entry for all that may become of it: the kernel's stack is small.
    let (id, generation) = picked.map_or((BackendId::NONE, 0), |backend| (id, backend.generation));
    let entry = entry_of(segment, frontend, id, generation, uplink, now);
    let Some(backend) = picked else {
        let Some(service) = tables.service(frontend.service) else { return };
        *verdict = if is_for_mesh(tables, service, now) {
            leave(tables, key, &entry, may_replace);
            Verdict::Pass(Counter::PassMesh)
        } else if request.taken.is_empty() {
            on_none(tables, key, &entry, service, now, may_replace)
        } else {
            // Others find a backend, this client's port must wait for its other flow to end: no matter of the service's.
            Verdict::Drop(Counter::DropLanes)
        };
        return;
    };
    let Some(target) = backend.target(frontend.port_index) else { return };
    if tables.none_since(frontend.service, frontend.port_index).first != 0 {
        tables.set_none_since(frontend.service, frontend.port_index, NoneSince::default());
    }
    if !tables.put_opening(key, &entry) {
        *verdict = Verdict::Drop(Counter::DropTableFull);
        return;
    }
    if may_replace {
        end_old(tables, key);
    }
    if u32::from(key.lane) > tables.extra_lanes(frontend.service) {
        tables.raise_extra_lanes(frontend.service, key.lane.into());
    }
    tables.count_steered(id);
    *verdict = Verdict::Forward(Forward { backend: id, target, reason });
}

/// What stood here before (a client port used again, or a flow that nobody ended) is over.
#[inline(always)]
pub(crate) fn end_old<T: Tables>(tables: &T, key: &FlowKey) {
    if let Some(old) = tables.flow(Table::Flows, key) {
        remove(tables, Table::Flows, key, old.backend, old.generation);
    }
}

/// The record of a flow that begins.
#[inline(always)]
pub(crate) fn entry_of(
    segment: &Segment,
    frontend: FrontendEntry,
    backend: BackendId,
    generation: u32,
    uplink: u32,
    now: Nanos,
) -> FlowEntry {
    FlowEntry {
        frontend: segment.dst,
        frontend_port: segment.dst_port,
        backend,
        generation,
        isn: segment.seq,
        uplink,
        last_seen: now.secs(),
        port_index: frontend.port_index,
        refusals: 0,
        refused: BackendId::NONE,
        marks: TcpState::SynSent.marks(),
    }
}

/// No backend: the client waits (its SYN is kept), but not for longer than the service says. Where there is a mesh it has the last word:
/// it may know of a listener that cannot be seen from here.
#[inline(always)]
fn on_none<T: Tables>(
    tables: &T,
    key: &FlowKey,
    entry: &FlowEntry,
    service: &ServiceEntry,
    now: Nanos,
    may_replace: bool,
) -> Verdict {
    if may_hold(tables, key.service, entry.port_index, service, now) {
        tables.hold(key, entry);
        Verdict::Drop(Counter::DropHold)
    } else if service.has_mesh() {
        leave(tables, key, entry, may_replace);
        Verdict::Pass(Counter::PassMesh)
    } else {
        Verdict::Reset(Counter::ResetNoBackend)
    }
}

/// Whether the mesh takes a new flow that finds no backend.
#[inline(always)]
pub(crate) fn is_for_mesh<T: Tables>(tables: &T, service: &ServiceEntry, now: Nanos) -> bool {
    service.leaves_to_mesh(tables.is_lease_fresh(now.secs()))
}

/// Whether a new flow to a port that finds no backend may still wait.
#[inline(always)]
pub(crate) fn may_hold<T: Tables>(
    tables: &T,
    id: ServiceId,
    port_index: u8,
    service: &ServiceEntry,
    now: Nanos,
) -> bool {
    let NoneSince { first, last_secs, .. } = tables.none_since(id, port_index);
    // Nobody has asked for so long that backends may have come and gone meanwhile, unseen from here: a wait of its own.
    let hold_secs = (service.hold_ns / 1_000_000_000) as u32;
    let is_new = first == 0 || now.secs().saturating_sub(last_secs) > hold_secs.saturating_add(PENDING_SECS);
    let first = if is_new { now.0 } else { first };
    tables.set_none_since(id, port_index, NoneSince::between(first, now.secs()));
    now.0.saturating_sub(first) < service.hold_ns
}
