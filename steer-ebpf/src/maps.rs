//! Every map, and the only code that touches one: [`Maps`] implements [`Tables`].
//!
//! All are pinned by name, so that they outlive the agent. Sizes and names are in `steer_common::limits`.

use core::marker::PhantomData;
use core::ops::Deref;

use aya_ebpf::btf_maps::lpm_trie::Key;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray};
use aya_ebpf::macros::btf_map;
use steer_common::backend::{
    BackendEntry, BackendId, BackendInfo, BackendState, BackendStats, EndpointEntry, EndpointKey,
};
use steer_common::flow::{FlowEntry, FlowKey, LocalFlow};
use steer_common::limits::{
    MAX_ALLOW, MAX_BACKENDS, MAX_FLOWS, MAX_FRONTENDS, MAX_LOCAL_FLOWS, MAX_PENDING, MAX_PORTS, MAX_SERVICES,
};
use steer_common::service::{AllowKey, FrontendEntry, FrontendKey, ServiceEntry, ServiceId, ServiceInfo, ServiceState};
use steer_common::slot::SlotTable;
use steer_common::tables::{NoneSince, Table, Tables};
use steer_common::verdict::Counter;

use crate::atomic;

/// Frontend → service and port.
#[btf_map]
static FRONTENDS: HashMap<FrontendKey, FrontendEntry, { MAX_FRONTENDS as usize }> = HashMap::new();

/// Service and source prefix → may open flows.
#[btf_map]
static ALLOW: LpmTrie<AllowKey, u32, { MAX_ALLOW as usize }> = LpmTrie::new();

/// Service → settings.
#[btf_map]
static SERVICES: Array<ServiceEntry, { MAX_SERVICES as usize }> = Array::new();

/// Service → what the kernel keeps of it.
#[btf_map]
static SERVICE_STATES: Array<ServiceState, { MAX_SERVICES as usize }> = Array::new();

/// Service → its name and ports, for people.
#[btf_map]
static SERVICE_INFO: Array<ServiceInfo, { MAX_SERVICES as usize }> = Array::new();

/// Service → slot table; swapped whole.
#[btf_map]
static SLOTS: ArrayOfMaps<Array<SlotTable, 1>, { MAX_SERVICES as usize }> = ArrayOfMaps::new();

/// Backend → where it is.
#[btf_map]
static BACKENDS: Array<BackendEntry, { MAX_BACKENDS as usize }> = Array::new();

/// Backend → lifecycle state.
#[btf_map]
static BACKEND_STATES: Array<u32, { MAX_BACKENDS as usize }> = Array::new();

/// Backend → live flows.
#[btf_map]
static BACKEND_LIVE: Array<u64, { MAX_BACKENDS as usize }> = Array::new();

/// Backend → counts, per CPU.
#[btf_map]
static BACKEND_STATS: PerCpuArray<BackendStats, { MAX_BACKENDS as usize }> = PerCpuArray::new();

/// Backend → its name and history, for people.
#[btf_map]
static BACKEND_INFO: Array<BackendInfo, { MAX_BACKENDS as usize }> = Array::new();

/// Container port → backend.
#[btf_map]
static ENDPOINTS: HashMap<EndpointKey, EndpointEntry, { MAX_BACKENDS as usize * MAX_PORTS }> = HashMap::new();

/// Established flows.
#[btf_map]
static FLOWS: LruHashMap<FlowKey, FlowEntry, { MAX_FLOWS as usize }> = LruHashMap::new();

/// Flows that open or close.
#[btf_map]
static PENDING: LruHashMap<FlowKey, FlowEntry, { MAX_PENDING as usize }> = LruHashMap::new();

/// Cookie of a socket of this host → its flow.
#[btf_map]
static LOCAL_FLOWS: LruHashMap<u64, LocalFlow, { MAX_LOCAL_FLOWS as usize }> = LruHashMap::new();

/// Reason → packets, per CPU.
#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// The maps as the tables of a decision.
pub(crate) struct Maps;

/// Adds one for a reason.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the element is this CPU's own, and a program is not preempted by another one of its kind.
        unsafe { *value += 1 };
    }
}

impl Maps {
    #[inline(always)]
    fn add_live(id: BackendId, change: i64) {
        if let Some(live) = BACKEND_LIVE.get_ptr_mut(id.0.into()) {
            // SAFETY: array elements are aligned to eight bytes, and this one is only changed atomically.
            unsafe { atomic::add(live, change as u64) };
        }
    }

    #[inline(always)]
    fn stats(id: BackendId) -> Option<&'static mut BackendStats> {
        // SAFETY: the element is this CPU's own, and no other reference to it exists while this one does.
        BACKEND_STATS.get_ptr_mut(id.0.into()).map(|stats| unsafe { &mut *stats })
    }

    #[inline(always)]
    fn state(id: ServiceId) -> Option<*mut ServiceState> {
        SERVICE_STATES.get_ptr_mut(id.0.into())
    }

    /// The flow of a socket of this host.
    #[inline(always)]
    pub(crate) fn local_flow(cookie: u64) -> Option<LocalFlow> {
        // SAFETY: copied out at once; a recycled element would give another socket's flow for one call, never a bad pointer.
        unsafe { LOCAL_FLOWS.get(cookie) }.copied()
    }

    #[inline(always)]
    pub(crate) fn put_local_flow(cookie: u64, flow: &LocalFlow) -> bool {
        LOCAL_FLOWS.insert(cookie, flow, 0).is_ok()
    }

    #[inline(always)]
    pub(crate) fn remove_local_flow(cookie: u64) -> bool {
        LOCAL_FLOWS.remove(cookie).is_ok()
    }
}

/// An element of a flow table. It stays mapped while the program runs; when the LRU recycles it for another flow meanwhile,
/// its frontend and backend tell.
#[derive(Clone, Copy)]
pub(crate) struct FlowRef<'a> {
    entry: *mut FlowEntry,
    map: PhantomData<&'a Maps>,
}

impl Deref for FlowRef<'_> {
    type Target = FlowEntry;

    #[inline(always)]
    fn deref(&self) -> &FlowEntry {
        // SAFETY: not null, aligned as all map values are, and mapped while the program runs.
        unsafe { &*self.entry }
    }
}

impl Tables for Maps {
    type Flow<'a> = FlowRef<'a>;

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
        SLOTS.get_value(id.0.into(), &0)
    }

    #[inline(always)]
    fn backend(&self, id: BackendId) -> Option<&BackendEntry> {
        BACKENDS.get(id.0.into()).filter(|backend| backend.generation != 0)
    }

    #[inline(always)]
    fn backend_state(&self, id: BackendId) -> BackendState {
        BACKEND_STATES.get(id.0.into()).map_or(BackendState::Gone, |&state| BackendState::from_u32(state))
    }

    #[inline(always)]
    fn live(&self, id: BackendId) -> u64 {
        BACKEND_LIVE.get(id.0.into()).copied().unwrap_or(0)
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
    fn none_since(&self, id: ServiceId) -> NoneSince {
        let Some(state) = Self::state(id) else { return NoneSince::default() };
        // SAFETY: aligned words.
        unsafe { NoneSince { first: (*state).none_since, last_secs: (*state).none_last_secs } }
    }

    #[inline(always)]
    fn set_none_since(&self, id: ServiceId, since: NoneSince) {
        if let Some(state) = Self::state(id) {
            // SAFETY: aligned words; of two CPUs that write at once either's moment will do.
            unsafe {
                (*state).none_since = since.first;
                (*state).none_last_secs = since.last_secs;
            }
        }
    }

    #[inline(always)]
    fn flow(&self, table: Table, key: &FlowKey) -> Option<FlowRef<'_>> {
        let entry = match table {
            Table::Flows => FLOWS.get_ptr_mut(key),
            Table::Pending => PENDING.get_ptr_mut(key),
        }?;
        Some(FlowRef { entry, map: PhantomData })
    }

    #[inline(always)]
    fn put_flow(&self, table: Table, key: &FlowKey, entry: &FlowEntry) -> bool {
        match table {
            Table::Flows => FLOWS.insert(key, entry, 0),
            Table::Pending => PENDING.insert(key, entry, 0),
        }
        .is_ok()
    }

    #[inline(always)]
    fn mark_flow(&self, flow: &FlowRef<'_>, marks: u64, secs: u32, uplink: u32) -> u64 {
        let entry = flow.entry;
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
    fn count_steered(&self, id: BackendId) {
        if let Some(stats) = Self::stats(id) {
            stats.steered += 1;
        }
    }

    #[inline(always)]
    fn count_established(&self, id: BackendId) {
        Self::add_live(id, 1);
        if let Some(stats) = Self::stats(id) {
            stats.established += 1;
        }
    }

    #[inline(always)]
    fn count_ended(&self, id: BackendId) {
        Self::add_live(id, -1);
    }
}
