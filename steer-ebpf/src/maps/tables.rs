//! The maps as [`Tables`]: one lookup or write each.

use core::ffi::c_void;
use core::marker::PhantomData;
use core::mem::offset_of;
use core::ops::{ControlFlow, Deref};
use core::ptr::NonNull;

use aya_ebpf::bindings::BPF_NOEXIST;
use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::helpers::{bpf_ktime_get_ns, bpf_loop};
use steer_common::addr::{Addr, Port};
use steer_common::backend::{BackendEntry, BackendId, BackendStats};
use steer_common::endpoint::{EndpointEntry, EndpointKey};
use steer_common::flow::{FlowEntry, FlowKey, ForeignKey, PendingEntry, SocketEntry};
use steer_common::limits::{MAX_PORTS, MAX_REFUSALS, MAX_SEARCHES};
use steer_common::notice::{Notice, NoticeKind};
use steer_common::open::NewFlow;
use steer_common::pick::Fit;
use steer_common::service::{AllowKey, FrontendEntry, FrontendKey, NoneSince, ServiceEntry, ServiceId, ServiceState};
use steer_common::slot::SlotTable;
use steer_common::state::BackendState;
use steer_common::tables::{Connection, Listening, Remembers, Table, Tables};
use steer_common::verdict::{Counter, Verdict};
use steer_common::vip::VipMember;

use super::{
    ALLOW, BACKEND_EDGES, BACKEND_LIVE, BACKEND_STATES, BACKEND_STATS, BACKENDS, ENDPOINTS, EXPLAIN, FLOWS, FOREIGN,
    FRONTENDS, HELD, Maps, NOTICED, NOTICES, PENDING, SCRATCH, SEARCHES, SERVICE_STATES, SERVICES, SWARM_LEASE, TRACE,
    WORK,
};
use crate::atomic;
use crate::packet::{Packet, fill_syn};
use crate::socket;

/// How often the agent is told of one backend's listener.
const NOTICE_NS: u64 = 5_000_000;

impl<P> Maps<P> {
    #[inline(always)]
    fn add_live(id: BackendId, change: i64) {
        if let Some(live) = BACKEND_LIVE.get_ptr_mut(id.0.into()) {
            // SAFETY: array elements are aligned to eight bytes, and this one is only changed atomically.
            unsafe { atomic::add(live, change as u64) };
        }
    }

    /// Adds one to the figure at an offset in [`BackendStats`]. Once per connection, so always in one instruction, which no packet can
    /// interrupt when the connection is one of this host's own sockets.
    #[inline(always)]
    fn count(id: BackendId, offset: usize) {
        if let Some(stats) = BACKEND_STATS.get_ptr_mut(id.0.into()) {
            // SAFETY: a field of this CPU's own element, aligned to eight bytes.
            unsafe { atomic::add(stats.byte_add(offset).cast(), 1) };
        }
    }

    #[inline(always)]
    fn state(id: ServiceId) -> Option<*mut ServiceState> {
        SERVICE_STATES.get_ptr_mut(id.0.into())
    }

    #[inline(always)]
    fn none_since_at(id: ServiceId, port_index: u8) -> Option<*mut NoneSince> {
        // SAFETY: a place within the map value, which is mapped while the program runs.
        Self::state(id).map(|state| unsafe { &raw mut (*state).none_since[usize::from(port_index) % MAX_PORTS] })
    }
}

/// Tells the agent, of the same backend's listener not more often than every [`NOTICE_NS`].
#[inline(always)]
fn tell(kind: NoticeKind, id: BackendId, generation: u32) {
    let Some(noticed) = NOTICED.get_ptr_mut(id.0.into()) else { return };
    // SAFETY: a helper without arguments.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: an aligned word; two CPUs at once tell twice.
    unsafe {
        if at_ns - *noticed < NOTICE_NS && kind as u32 != NoticeKind::Refused as u32 {
            return;
        }
        *noticed = at_ns;
    }
    let notice = Notice { at_ns, generation, kind: kind as u32, backend: id, signal: 0, edges: 0 };
    let _ = NOTICES.output(notice, 0);
}

/// An element of a flow table. It stays mapped while the program runs; when the LRU recycles it for another flow meanwhile,
/// its frontend and backend tell.
#[derive(Clone, Copy)]
pub(crate) struct FlowRef<'a> {
    entry: NonNull<FlowEntry>,
    map: PhantomData<&'a ()>,
}

impl Deref for FlowRef<'_> {
    type Target = FlowEntry;

    #[inline(always)]
    fn deref(&self) -> &FlowEntry {
        // SAFETY: aligned as all map values are, and mapped while the program runs.
        unsafe { self.entry.as_ref() }
    }
}

impl<P: Packet> Maps<P> {
    /// Puts a flow together with the SYN of the packet at hand.
    #[inline(always)]
    fn with_syn(&self, entry: &FlowEntry) -> Option<&'static PendingEntry> {
        let scratch = SCRATCH.get_ptr_mut(0)?;
        // SAFETY: the element is this CPU's own, and nobody else refers to it while this program runs.
        unsafe {
            (*scratch).flow = *entry;
            fill_syn(&self.0, &raw mut (*scratch).syn);
            Some(&*scratch)
        }
    }
}

/// What the kernel calls for each turn of a loop over `F`.
#[inline(always)]
fn step_of<F: FnMut(u32) -> ControlFlow<()>>(_look: &F) -> *mut c_void {
    step::<F> as *mut c_void
}

/// One turn of a loop; 0 = go on.
///
/// # Safety
/// `look` points to an `F` that nobody else refers to.
unsafe extern "C" fn step<F: FnMut(u32) -> ControlFlow<()>>(turn: u64, look: *mut c_void) -> u64 {
    // SAFETY: by contract.
    let look = unsafe { &mut *look.cast::<F>() };
    u64::from(look(turn as u32).is_break())
}

impl<P: Packet> Tables for Maps<P> {
    type Flow<'a>
        = FlowRef<'a>
    where
        P: 'a;

    #[inline(always)]
    fn with_work(&self, work: impl FnOnce(&mut NewFlow)) -> Verdict {
        let Some(new) = WORK.get_ptr_mut(0) else { return Verdict::Pass(Counter::PassNoFlow) };
        // SAFETY: the element is this CPU's own, and it is written before it is read.
        let new = unsafe { &mut *new };
        work(new);
        new.verdict()
    }

    #[inline(always)]
    fn each(&self, n: u32, mut look: impl FnMut(u32) -> ControlFlow<()>) {
        let step = step_of(&look);
        // SAFETY: the kernel calls `step` while this call lasts, with the pointer to `look` that is given here.
        unsafe { bpf_loop(n, step, (&raw mut look).cast(), 0) };
    }

    #[inline(always)]
    fn frontend(&self, key: &FrontendKey) -> Option<FrontendEntry> {
        // SAFETY: copied out at once.
        unsafe { FRONTENDS.get(key) }.copied()
    }

    #[inline(always)]
    fn service(&self, id: ServiceId) -> Option<&ServiceEntry> {
        SERVICES.get(id.0.into())
    }

    #[inline(always)]
    fn is_allowed(&self, key: &AllowKey) -> bool {
        ALLOW.get(&Key::new(8 * size_of::<AllowKey>() as u32, *key)).is_some()
    }

    #[inline(always)]
    fn slots(&self, id: ServiceId) -> Option<&SlotTable> {
        super::slots(id)
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<&BackendEntry> {
        BACKENDS.get(id.0.into()).filter(|backend| backend.generation != 0)
    }

    #[inline(always)]
    fn backend_state(&self, id: BackendId) -> (BackendState, bool) {
        let (Some(entry), Some(edge)) = (BACKEND_STATES.get(id.0.into()), BACKEND_EDGES.get(id.0.into())) else {
            return (BackendState::Gone, false);
        };
        (entry.for_new(edge), entry.if_listening != 0)
    }

    #[inline(always)]
    fn listens(&self, backend: &BackendEntry, target: Port) -> Listening {
        socket::listens(self.0.ctx(), backend, target)
    }

    #[inline(always)]
    fn task_listens(&self, task: &VipMember, port: Port) -> Listening {
        socket::task_listens(self.0.ctx(), task, port)
    }

    #[inline(always)]
    fn connection(&self, backend: &BackendEntry, target: Port, client: Addr, client_port: Port) -> Connection {
        socket::connection(self.0.ctx(), backend, target, client, client_port)
    }

    #[inline(always)]
    fn is_left(&self, backend: &BackendEntry, target: Port, client: Addr, client_port: Port) -> bool {
        socket::is_left(self.0.ctx(), backend, target, client, client_port)
    }

    #[inline(always)]
    fn remembers(&self, backend: &BackendEntry, target: Port, client: Addr, client_port: Port) -> Remembers {
        if !P::SEES_MEMORY {
            return Remembers::Unknown;
        }
        if socket::remembers(self.0.ctx(), backend, target, client, client_port) {
            Remembers::Yes
        } else {
            Remembers::No
        }
    }

    #[inline(always)]
    fn remembered(&self) -> Option<SocketEntry> {
        // SAFETY: the packet's own.
        self.0.sender().and_then(|socket| unsafe { super::remembered(socket) })
    }

    #[inline(always)]
    fn is_foreign(&self, key: &ForeignKey) -> bool {
        // SAFETY: only whether it is there matters.
        unsafe { FOREIGN.get(key) }.is_some()
    }

    #[inline(always)]
    fn may_search(&self, now_secs: u32) -> bool {
        let Some(searches) = SEARCHES.get_ptr_mut(0) else { return false };
        // SAFETY: the element is this CPU's own.
        unsafe {
            if (*searches).secs != now_secs {
                (*searches).secs = now_secs;
                (*searches).count = 0;
            }
            (*searches).count += 1;
            (*searches).count <= MAX_SEARCHES
        }
    }

    #[inline(always)]
    fn is_lease_fresh(&self, now_secs: u32) -> bool {
        SWARM_LEASE.get(0).is_some_and(|until| *until > now_secs)
    }

    #[inline(always)]
    fn notice(&self, kind: NoticeKind, id: BackendId, backend: &BackendEntry) {
        tell(kind, id, backend.generation);
    }

    #[inline(always)]
    fn trace(&self, id: BackendId, fit: Fit) {
        if EXPLAIN.load() != 1 {
            return;
        }
        let Some(len) = TRACE.get_ptr_mut(0) else { return };
        // SAFETY: aligned words of a map that only one run at a time uses.
        unsafe {
            *len += 1;
            if let Some(place) = TRACE.get_ptr_mut(*len) {
                *place = (id.0 as u32) << 16 | fit as u32;
            }
        }
    }

    #[inline(always)]
    fn live(&self, id: BackendId) -> u64 {
        let live = BACKEND_LIVE.get(id.0.into()).copied().unwrap_or(0);
        // An end may be counted whose beginning was not: below nothing is nothing, and not the busiest of all.
        if live > i64::MAX as u64 { 0 } else { live }
    }

    #[inline(always)]
    fn endpoint(&self, key: &EndpointKey) -> Option<EndpointEntry> {
        // SAFETY: copied out at once.
        unsafe { ENDPOINTS.get(key) }.copied()
    }

    #[inline(always)]
    fn turn(&self, id: ServiceId) -> u32 {
        let Some(state) = Self::state(id) else { return 0 };
        // SAFETY: the field is aligned, lives as long as the map, and is only changed atomically.
        unsafe { atomic::add(&raw mut (*state).cursor, 1) as u32 }
    }

    #[inline(always)]
    fn extra_lanes(&self, id: ServiceId) -> u32 {
        // SAFETY: an aligned word that only ever grows.
        Self::state(id).map_or(0, |state| unsafe { (*state).extra_lanes })
    }

    #[inline(always)]
    fn raise_extra_lanes(&self, id: ServiceId, lanes: u32) {
        if let Some(state) = Self::state(id) {
            // SAFETY: an aligned word. Two CPUs that raise it at once write 1 and 2 at worst; the lower one is raised again by
            // the next flow that needs it, and until then the flow in the upper lane is not found: one connection that meets
            // three siblings at the same instant.
            unsafe { (*state).extra_lanes = lanes };
        }
    }

    #[inline(always)]
    fn none_since(&self, id: ServiceId, port_index: u8) -> NoneSince {
        // SAFETY: aligned words of a map value.
        Self::none_since_at(id, port_index).map_or_else(NoneSince::default, |since| unsafe { *since })
    }

    #[inline(always)]
    fn set_none_since(&self, id: ServiceId, port_index: u8, since: NoneSince) {
        if let Some(place) = Self::none_since_at(id, port_index) {
            // SAFETY: aligned words of a map value; of two CPUs that write at once either's moment will do.
            unsafe { *place = since };
        }
    }

    #[inline(always)]
    fn flow(&self, table: Table, key: &FlowKey) -> Option<FlowRef<'_>> {
        let entry = match table {
            Table::Flows => FLOWS.get_ptr_mut(key),
            Table::Pending => PENDING.get_ptr_mut(key).map(|pending| pending.cast::<FlowEntry>()),
        }?;
        Some(FlowRef { entry: NonNull::new(entry)?, map: PhantomData })
    }

    #[inline(always)]
    fn put_opening(&self, key: &FlowKey, entry: &FlowEntry) -> bool {
        self.with_syn(entry).is_some_and(|pending| PENDING.insert(key, pending, 0).is_ok())
    }

    #[inline(always)]
    fn hold(&self, key: &FlowKey, entry: &FlowEntry) {
        if let Some(pending) = self.with_syn(entry) {
            let _ = HELD.insert(key, pending, 0);
            tell(NoticeKind::Held, BackendId::NONE, 0);
        }
    }

    #[inline(always)]
    fn hold_again(&self, key: &FlowKey) -> bool {
        let Some(pending) = PENDING.get_ptr_mut(key) else { return false };
        // SAFETY: entries in place: see `FlowRef`.
        let held = unsafe {
            let before = match HELD.get(key) {
                Some(held) if held.flow.isn == (*pending).flow.isn => held.flow.refusals,
                _ => 0,
            };
            if before >= MAX_REFUSALS {
                return false;
            }
            (*pending).flow.refusals = before + 1;
            let pending: &PendingEntry = &*pending;
            HELD.insert(key, pending, 0)
        };
        tell(NoticeKind::Held, BackendId::NONE, 0);
        held.is_ok() && PENDING.remove(key).is_ok()
    }

    #[inline(always)]
    fn give_again(&self, key: &FlowKey, backend: BackendId, generation: u32, secs: u32) -> bool {
        let Some(pending) = PENDING.get_ptr_mut(key) else { return false };
        // SAFETY: see `FlowRef`. A packet of the client that reads it just now sees the old backend's words or the new one's; a
        // mixture of both has a generation that is not the backend's, and is steered anew.
        unsafe { (*pending).flow.again(backend, generation, secs) };
        true
    }

    #[inline(always)]
    fn put_flow(&self, table: Table, key: &FlowKey, entry: &FlowEntry) -> bool {
        match table {
            Table::Flows => FLOWS.insert(key, entry, 0).is_ok(),
            Table::Pending => {
                let Some(scratch) = SCRATCH.get_ptr_mut(0) else { return false };
                // SAFETY: as in `with_syn`. What stands there of another flow's SYN is never looked at: this one is past that.
                let pending = unsafe {
                    (*scratch).flow = *entry;
                    &*scratch
                };
                PENDING.insert(key, pending, 0).is_ok()
            }
        }
    }

    #[inline(always)]
    fn add_flow(&self, key: &FlowKey, entry: &FlowEntry) -> bool {
        FLOWS.insert(key, entry, BPF_NOEXIST.into()).is_ok()
    }

    #[inline(always)]
    fn mark_flow(&self, flow: &FlowRef<'_>, marks: u64, secs: u32, uplink: u32) -> u64 {
        let entry = flow.entry.as_ptr();
        // SAFETY: see `FlowRef`. Should the element be recycled just now, its new flow gets a mark and a time that are not its
        // own: a wrong timeout, never a wrong backend.
        unsafe {
            (*entry).last_seen = secs;
            (*entry).uplink = uplink;
            if marks == 0 {
                return (*entry).marks;
            }
            atomic::or(&raw mut (*entry).marks, marks) | marks
        }
    }

    #[inline(always)]
    fn remove_flow(&self, table: Table, key: &FlowKey) -> bool {
        match table {
            Table::Flows => FLOWS.remove(key),
            Table::Pending => PENDING.remove(key),
        }
        .is_ok()
    }

    #[inline(always)]
    fn count_resteered(&self, id: BackendId) {
        Self::count(id, offset_of!(BackendStats, resteered));
    }

    #[inline(always)]
    fn count_steered(&self, id: BackendId) {
        Self::count(id, offset_of!(BackendStats, steered));
    }

    #[inline(always)]
    fn count_established(&self, id: BackendId) {
        Self::add_live(id, 1);
        Self::count(id, offset_of!(BackendStats, established));
    }

    #[inline(always)]
    fn count_ended(&self, id: BackendId) {
        Self::add_live(id, -1);
    }
}
