//! Client to backend: pass, steer or follow.
//!
//! | packet | flow entry | backend of the entry | verdict |
//! |---|---|---|---|
//! | not for a frontend | – | – | pass |
//! | SYN | none, expired, closed or reset | – | steer |
//! | SYN, same sequence number | opening | ready, or it has answered | the same backend |
//! | SYN, same sequence number | opening, no answer yet | no longer ready | steer again |
//! | SYN, another sequence number | opening or half-closed | any | steer anew, the entry is replaced |
//! | SYN, another sequence number | established | has its socket | follow: the backend answers with a challenge ACK (RFC 5961, 4), so nobody can break a connection by a forged SYN |
//! | SYN, another sequence number | established | has no such socket | steer anew |
//! | SYN | any | gone | steer anew |
//! | other | none | has its socket | follow, and the flow is known again |
//! | other | none | – | pass, counted |
//! | other | present | there, draining or not | follow |
//! | other | present | gone | reset, counted |
//! | other | present, of a connection that has ended | gone | pass, counted |
//! | other | present | its process has ended, and nothing is left of the connection | reset, counted |
//!
//! Where Swarm's routing mesh is behind the frontend too ([`ServiceEntry::MESH`](crate::service::ServiceEntry::MESH)), nobody waits and nothing is reset for want of
//! a backend: a SYN that finds no ready one, and a packet that no backend has a socket for, pass, and so does what follows: see `mesh`.
//! A SYN waits all the same where the mesh could only have what is not ready here ([`ServiceEntry::ALL_HERE`](crate::service::ServiceEntry::ALL_HERE)).

use crate::addr::{Addr, Port};
use crate::backend::{BackendEntry, BackendId};
use crate::flow::{FlowEntry, FlowKey};
use crate::limits::LANES;
use crate::mesh::{leave_open, pass_on};
use crate::open::{NewFlow, may_open, open};
use crate::pick::pick;
use crate::recover::recover;
use crate::service::{FrontendEntry, FrontendKey, ServiceId};
use crate::tables::{Connection, Table, Tables};
use crate::tcp::{Direction, TcpFlags, TcpState};
use crate::verdict::{Counter, Forward, Verdict};

/// What a decision needs to know of a packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Segment {
    pub src: Addr,
    pub dst: Addr,
    pub src_port: Port,
    pub dst_port: Port,
    /// TCP sequence number as on the wire.
    pub seq: u32,
    /// IANA protocol number.
    pub proto: u8,
    pub flags: TcpFlags,
}

/// A moment, in nanoseconds since boot.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Nanos(pub u64);

impl Nanos {
    /// Whole seconds since boot: the resolution of [`FlowEntry::last_seen`].
    #[inline(always)]
    pub const fn secs(self) -> u32 {
        (self.0 / 1_000_000_000) as u32
    }
}

/// Decides about a packet that came in on `uplink` at `now`, and writes down what was decided.
#[inline(always)]
pub fn steer<T: Tables>(tables: &T, segment: &Segment, uplink: u32, now: Nanos) -> Verdict {
    let frontend_key = FrontendKey::new(segment.dst, segment.dst_port, segment.proto);
    let Some(frontend) = tables.frontend(&frontend_key) else {
        return Verdict::Pass(Counter::PassNotFrontend);
    };
    if frontend.flags & FrontendEntry::LOOPBACK != 0 {
        return Verdict::Pass(Counter::PassNotFrontend);
    }
    let mut key = FlowKey::new(segment.src, segment.src_port, frontend.service, segment.proto);
    let Found { flow: found, table, is_shared, extra_lanes } = find(tables, &mut key, segment);
    if !segment.flags.opens()
        && let Some(flow) = found
    {
        return follow(tables, segment, &key, table, &flow, uplink, now);
    }
    let may_replace = is_shared || table == Table::Flows;
    tables.with_work(|new| {
        *new = NewFlow { frontend, uplink, now, may_replace, ..NewFlow::UNUSED };
        if !segment.flags.opens() {
            // Not at a closed one: what comes there anew is somebody else's, and may well have a socket of a backend, as by a port that
            // Docker publishes.
            if frontend.flags & FrontendEntry::CLOSED == 0 && tables.may_search(now.secs()) {
                recover(tables, segment, &mut key, new);
                if !is_shared && matches!(new.verdict, Verdict::Pass(Counter::PassNoFlow)) {
                    leave_open(tables, segment, &key, new);
                }
            }
            return;
        }
        if let Some(flow) = &found {
            let same_syn = flow.isn == segment.seq;
            if let Some(verdict) = again(tables, segment, flow, &frontend, uplink, now) {
                new.verdict = verdict;
                return;
            }
            new.reason = if same_syn && flow.tcp().is_opening() { Counter::SteerAgain } else { Counter::SteerReuse };
        }
        if is_shared {
            new.find_lane(tables, &mut key, segment, extra_lanes, found.is_some());
        }
        if may_open(tables, segment, &key, new) {
            // Called here and not in there: each frame that stands on the stack already, of 512 bytes, is room that `pick` lacks.
            let picked = pick(tables, &new.request);
            open(tables, segment, &key, new, picked.unwrap_or(BackendId::NONE));
        }
    })
}

/// What is known of a packet from a client.
struct Found<F> {
    /// Not together with its table in one `Option`: where there is none, the verifier of Linux 6.1 wants to see a null pointer, and
    /// not one that nobody has written.
    flow: Option<F>,
    /// Where it stands; `Pending` if there is none.
    table: Table,
    /// Whether the client's port may have flows to other frontends of the service.
    is_shared: bool,
    /// How many lanes beside the first one are in use; not looked at where nobody needs to know.
    extra_lanes: u32,
}

/// The flow of a packet from a client; `key` is left at its lane, or at the first. Nearly always the first lane has this one or
/// there is none, and nothing else is to be looked for: how many lanes there are stands beside what each new connection writes, and no
/// packet of an open one is to wait for that.
#[inline(always)]
fn find<'t, T: Tables>(tables: &'t T, key: &mut FlowKey, segment: &Segment) -> Found<T::Flow<'t>> {
    let (mut is_shared, mut extra_lanes) = (false, 0);
    if segment.flags.opens() {
        extra_lanes = tables.extra_lanes(key.service);
    }
    for lane in 0..LANES {
        if lane == 1 {
            extra_lanes = tables.extra_lanes(key.service);
        }
        if u32::from(lane) > extra_lanes {
            break;
        }
        key.lane = lane;
        if let Some((table, flow)) = lookup(tables, key) {
            if flow.is_for(segment.dst, segment.dst_port) {
                return Found { flow: Some(flow), table, is_shared: is_shared || extra_lanes != 0, extra_lanes };
            }
            is_shared = true;
        }
    }
    is_shared |= extra_lanes != 0;
    key.lane = 0;
    Found { flow: None, table: Table::Pending, is_shared, extra_lanes }
}

/// The backend and container port of the flow that a packet *about* it names (an ICMP error quotes a packet that went to the
/// client: here turned round, as if it came from there). `None`: no flow of ours.
#[inline(always)]
pub fn flow_about<T: Tables>(tables: &T, turned: &Segment) -> Option<(BackendId, Port)> {
    let frontend = tables.frontend(&FrontendKey::new(turned.dst, turned.dst_port, turned.proto))?;
    let mut key = FlowKey::new(turned.src, turned.src_port, frontend.service, turned.proto);
    let flow = find(tables, &mut key, turned).flow?;
    Some((flow.backend, live_target(tables, &flow, frontend.service)?))
}

/// The flow at a key, from either table.
#[inline(always)]
pub(crate) fn lookup<'t, T: Tables>(tables: &'t T, key: &FlowKey) -> Option<(Table, T::Flow<'t>)> {
    match tables.flow(Table::Flows, key) {
        Some(flow) => Some((Table::Flows, flow)),
        None => Some((Table::Pending, tables.flow(Table::Pending, key)?)),
    }
}

/// A SYN of a flow that is known: the same backend (or the mesh), or `None` for a new one.
#[inline(always)]
fn again<T: Tables>(
    tables: &T,
    segment: &Segment,
    flow: &T::Flow<'_>,
    frontend: &FrontendEntry,
    uplink: u32,
    now: Nanos,
) -> Option<Verdict> {
    let same_syn = flow.isn == segment.seq;
    let verdict = if flow.is_of_mesh() {
        Verdict::Pass(Counter::PassMesh)
    } else {
        let target = target_left(tables, segment, flow, frontend.service)?;
        Verdict::Forward(Forward { backend: flow.backend, target, reason: Counter::SteerRetransmit })
    };
    let keep = match flow.tcp() {
        TcpState::SynSent => {
            let (state, if_listening) = tables.backend_state(flow.backend);
            same_syn && (flow.is_of_mesh() || state.takes_new(if_listening))
        }
        // Its SYN-ACK is on the way: moving now would let the client acknowledge one backend to another.
        TcpState::SynReceived | TcpState::FinForward | TcpState::FinReverse => same_syn,
        // Of whoever sent this SYN nobody knows whether it is the client: the backend's socket, if it is there, answers with a challenge
        // (RFC 5961), and if it is not, that connection is over.
        TcpState::Established => same_syn || is_open(tables, segment, flow.backend, flow.port_index),
        // Its socket may be there still, with the reset on the way to it: a client that uses its port again at once must not meet it.
        TcpState::Closed | TcpState::Reset => false,
    };
    if !keep || flow.is_expired(now.secs()) {
        return None;
    }
    tables.mark_flow(flow, 0, now.secs(), uplink);
    Some(verdict)
}

/// Whether a backend still has its connection with the sender of a SYN; it has where its sockets cannot be seen, and so has the mesh. Rare,
/// so not inlined: its variables would otherwise take stack in the path of every packet.
#[inline(never)]
fn is_open<T: Tables>(tables: &T, segment: &Segment, id: BackendId, port_index: u8) -> bool {
    let Some(backend) = tables.backend(id) else { return true };
    let Some(target) = backend.target(port_index) else { return true };
    if backend.netns_id < 0 {
        return true;
    }
    matches!(tables.connection(backend, target, segment.src, segment.src_port), Connection::Open)
}

/// The container port of a flow's backend, if that backend is still the one the flow began on.
#[inline(always)]
pub(crate) fn live_target<T: Tables>(tables: &T, flow: &FlowEntry, service: ServiceId) -> Option<Port> {
    live_backend(tables, flow, service)?.target(flow.port_index)
}

/// A flow's backend, if that is still the one the flow began on.
#[inline(always)]
fn live_backend<'t, T: Tables>(tables: &'t T, flow: &FlowEntry, service: ServiceId) -> Option<&'t BackendEntry> {
    let backend = tables.backend(flow.backend)?;
    (backend.generation == flow.generation && backend.service == service).then_some(backend)
}

/// The container port of such a backend, if it can still be reached: the process of a backend may have ended with no agent there to see it, and then a packet
/// to it would vanish without an answer.
#[inline(always)]
fn target_left<T: Tables>(tables: &T, segment: &Segment, flow: &FlowEntry, service: ServiceId) -> Option<Port> {
    let backend = live_backend(tables, flow, service)?;
    let target = backend.target(flow.port_index)?;
    if backend.has_ended() && !is_left(tables, segment, flow.backend, target) {
        return None;
    }
    Some(target)
}

/// Whether anything is left of a connection of a backend that has ended. Rare, so not inlined: its variables would otherwise take stack in
/// the path of every packet.
#[inline(never)]
fn is_left<T: Tables>(tables: &T, segment: &Segment, id: BackendId, target: Port) -> bool {
    let Some(backend) = tables.backend(id) else { return false };
    tables.is_left(backend, target, segment.src, segment.src_port)
}

/// A packet of a known flow goes where the flow began.
#[inline(always)]
fn follow<T: Tables>(
    tables: &T,
    segment: &Segment,
    key: &FlowKey,
    table: Table,
    flow: &T::Flow<'_>,
    uplink: u32,
    now: Nanos,
) -> Verdict {
    if flow.is_of_mesh() {
        return pass_on(tables, segment, flow, uplink, now);
    }
    let Some(target) = target_left(tables, segment, flow, key.service) else {
        // The entry stays, so that the next packet is answered likewise, until the agent sweeps it away.
        // A reset is never answered with a reset (RFC 9293, 3.5.2). And what has ended needs none: the port may be another connection's
        // by now, one that came while this was no frontend, and that is somebody else's.
        let is_over = segment.flags.has(TcpFlags::RST) || flow.tcp().has_ended();
        return if is_over { Verdict::Pass(Counter::PassNoFlow) } else { Verdict::Reset(Counter::ResetGone) };
    };
    let backend = flow.backend;
    let state = flow.tcp().advance(Direction::Forward, segment.flags);
    touch(tables, key, table, flow, state, uplink, now);
    Verdict::Forward(Forward { backend, target, reason: Counter::Follow })
}

/// Writes down what a packet changed: nothing for nearly all packets, so that a lookup is all they cost.
#[inline(always)]
pub(crate) fn touch<T: Tables>(
    tables: &T,
    key: &FlowKey,
    table: Table,
    flow: &T::Flow<'_>,
    state: TcpState,
    uplink: u32,
    now: Nanos,
) {
    let secs = now.secs();
    let marks = flow.marks | state.marks();
    if marks == flow.marks && secs == flow.last_seen && uplink == flow.uplink {
        return;
    }
    let marks = tables.mark_flow(flow, state.marks(), secs, uplink);
    let home = if TcpState::from_marks(marks).is_live() { Table::Flows } else { Table::Pending };
    if home != table {
        relocate(tables, key, flow, home);
    }
}

/// Moves an entry: into `FLOWS` when the handshake completes, out of it when the connection has ended and what may still come
/// (the last acknowledgement, retransmissions) is a pending matter. Of several CPUs that see it, the one that removes the old
/// entry counts. If the new table takes nothing, the entry stays where it is.
#[inline(never)]
fn relocate<T: Tables>(tables: &T, key: &FlowKey, flow: &T::Flow<'_>, home: Table) {
    let entry: FlowEntry = **flow;
    if !tables.put_flow(home, key, &entry) {
        return;
    }
    match home {
        Table::Flows => {
            if tables.remove_flow(Table::Pending, key) {
                tables.count_established(entry.backend);
            }
        }
        Table::Pending => remove(tables, Table::Flows, key, entry.backend, entry.generation),
    }
}

/// Removes an entry, and takes it off the count of its backend if it was live there.
#[inline(always)]
pub(crate) fn remove<T: Tables>(tables: &T, table: Table, key: &FlowKey, backend: BackendId, generation: u32) {
    if tables.remove_flow(table, key) && table == Table::Flows {
        // The id may have a new tenant, whose count this flow was never part of.
        if tables.backend(backend).is_some_and(|backend| backend.generation == generation) {
            tables.count_ended(backend);
        }
    }
}

#[cfg(test)]
mod tests;
