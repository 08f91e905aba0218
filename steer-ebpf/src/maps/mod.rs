//! Every map, and the only code that touches one: [`Maps`] implements [`Tables`], over the packet at hand.
//!
//! What must outlive the agent is pinned by name (`steer_common::limits::names`, with the sizes); the rest is room to work in.

mod tables;

use core::ffi::c_void;
use core::ptr::null_mut;

use aya_ebpf::Global;
use aya_ebpf::bindings::BPF_SK_STORAGE_GET_F_CREATE;
use aya_ebpf::btf_maps::{Array, ArrayOfMaps, HashMap, LpmTrie, LruHashMap, PerCpuArray, RingBuf, SkStorage};
use aya_ebpf::helpers::{bpf_get_current_cgroup_id, bpf_ktime_get_ns, bpf_sk_storage_get};
use aya_ebpf::macros::btf_map;
use steer_common::backend::{BackendEntry, BackendInfo, BackendStats};
use steer_common::edge::{EdgeEntry, EdgeKind, InitEntry};
use steer_common::endpoint::{EndpointEntry, EndpointKey};
use steer_common::flow::{FlowEntry, FlowKey, ForeignKey, LocalFlow, PendingEntry, SocketEntry};
use steer_common::limits::{
    MAX_ALLOW, MAX_BACKENDS, MAX_FLOWS, MAX_FOREIGN, MAX_FRONTENDS, MAX_HELD, MAX_LOCAL_FLOWS, MAX_PENDING, MAX_PORTS,
    MAX_SERVICES, MAX_VIP_KEYS, MAX_VIPS, NOTICES_BYTES,
};
use steer_common::notice::Notice;
use steer_common::open::NewFlow;
use steer_common::service::{AllowKey, FrontendEntry, FrontendKey, ServiceEntry, ServiceId, ServiceInfo, ServiceState};
use steer_common::slot::SlotTable;
use steer_common::state::StateEntry;
use steer_common::verdict::Counter;
use steer_common::vip::{VipEntry, VipKey};

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

/// Service → slot table; swapped whole. The table's bytes, to BTF an array and not a structure: the tables that the agent swaps in
/// have no BTF, and Linux 6.1 takes them for maps of another kind where it has looked into a structure's fields (for timers).
#[btf_map]
static SLOTS: ArrayOfMaps<Array<SlotBytes, 1>, { MAX_SERVICES as usize }> = ArrayOfMaps::new();

/// As long and as aligned as a [`SlotTable`].
type SlotBytes = [u32; size_of::<SlotTable>() / 4];
const _: () =
    assert!(size_of::<SlotBytes>() == size_of::<SlotTable>() && align_of::<SlotBytes>() == align_of::<SlotTable>());

/// A service's slot table.
#[inline(always)]
fn slots(id: ServiceId) -> Option<&'static SlotTable> {
    let bytes: &'static SlotBytes = SLOTS.get_value(id.0.into(), &0)?;
    // SAFETY: of the same size and alignment, and any bits make a table of numbers.
    Some(unsafe { &*(&raw const *bytes).cast::<SlotTable>() })
}

/// Backend → where it is.
#[btf_map]
static BACKENDS: Array<BackendEntry, { MAX_BACKENDS as usize }> = Array::new();

/// Backend → lifecycle state, as the agent has it.
#[btf_map]
static BACKEND_STATES: Array<StateEntry, { MAX_BACKENDS as usize }> = Array::new();

/// Backend → what the kernel has seen happen to it.
#[btf_map]
static BACKEND_EDGES: Array<EdgeEntry, { MAX_BACKENDS as usize }> = Array::new();

/// First process of a container → backend.
#[btf_map]
static INITS: HashMap<u32, InitEntry, { MAX_BACKENDS as usize }> = HashMap::new();

/// Cgroup of a container → backend.
#[btf_map]
static CGROUPS: HashMap<u64, InitEntry, { MAX_BACKENDS as usize }> = HashMap::new();

/// What the agent is told.
#[btf_map]
static NOTICES: RingBuf<Notice, { NOTICES_BYTES as usize }> = RingBuf::new();

/// Backend → when the agent was last told of its listener, in nanoseconds since boot.
#[btf_map]
static NOTICED: Array<u64, { MAX_BACKENDS as usize }> = Array::new();

/// Backend → live flows.
#[btf_map]
static BACKEND_LIVE: Array<u64, { MAX_BACKENDS as usize }> = Array::new();

/// Backend → counts, per CPU.
#[btf_map]
static BACKEND_STATS: PerCpuArray<BackendStats, { MAX_BACKENDS as usize }> = PerCpuArray::new();

/// Backend → its name and history, for people.
#[btf_map]
static BACKEND_INFO: Array<BackendInfo, { MAX_BACKENDS as usize }> = Array::new();

/// Container port, as seen from its veth and from inside → backend.
#[btf_map]
static ENDPOINTS: HashMap<EndpointKey, EndpointEntry, { 2 * MAX_BACKENDS as usize * MAX_PORTS }> = HashMap::new();

/// Established flows.
#[btf_map]
static FLOWS: LruHashMap<FlowKey, FlowEntry, { MAX_FLOWS as usize }> = LruHashMap::new();

/// Flows that open or close.
#[btf_map]
static PENDING: LruHashMap<FlowKey, PendingEntry, { MAX_PENDING as usize }> = LruHashMap::new();

/// Flows that wait for a backend.
#[btf_map]
static HELD: LruHashMap<FlowKey, PendingEntry, { MAX_HELD as usize }> = LruHashMap::new();

/// Connections that were open before steer came.
#[btf_map]
static FOREIGN: LruHashMap<ForeignKey, u32, { MAX_FOREIGN as usize }> = LruHashMap::new();

/// What sockets of backends remember of their flows.
#[btf_map]
static SOCKETS: SkStorage<SocketEntry> = SkStorage::new();

/// Where a pending entry is put together: it would not fit on the stack. Programs at packets do not interrupt each other.
#[btf_map]
static SCRATCH: PerCpuArray<PendingEntry, 1> = PerCpuArray::new();

/// Where a new flow is worked on, likewise.
#[btf_map]
static WORK: PerCpuArray<NewFlow, 1> = PerCpuArray::new();

/// Searches of this second, per CPU.
#[btf_map]
static SEARCHES: PerCpuArray<Searches, 1> = PerCpuArray::new();

/// Candidates of one run, for `steer explain`: the first word counts them, each other one is a backend id and a [`Fit`].
#[btf_map]
static TRACE: Array<u32, 128> = Array::new();

/// 1 in the copy of the programs that `steer explain` runs. Else a value that no other constant has: equal constants share one
/// place, so whatever is written here would be theirs too (at first this was 0, and so the key of the slot tables was 1).
#[unsafe(no_mangle)]
static EXPLAIN: Global<u32> = Global::new(0x6e6f_7065);

/// A second, and how many searches it has seen.
#[repr(C)]
struct Searches {
    secs: u32,
    count: u32,
}

/// Cookie of a socket of this host → its flow.
#[btf_map]
static LOCAL_FLOWS: LruHashMap<u64, LocalFlow, { MAX_LOCAL_FLOWS as usize }> = LruHashMap::new();

/// Virtual address, as a namespace sees it → which.
#[btf_map]
static VIP_KEYS: HashMap<VipKey, u32, { MAX_VIP_KEYS as usize }> = HashMap::new();

/// Virtual address → the tasks behind it.
#[btf_map]
static VIPS: Array<VipEntry, { MAX_VIPS as usize }> = Array::new();

/// Virtual address → turns so far.
#[btf_map]
static VIP_TURNS: Array<u64, { MAX_VIPS as usize }> = Array::new();

/// Until when the agent's word about the swarm counts: its tasks on other nodes, or that there are none.
#[btf_map]
static SWARM_LEASE: Array<u32, 1> = Array::new();

/// Reason → packets, per CPU.
#[btf_map]
static COUNTERS: PerCpuArray<u64, { Counter::ALL.len() }> = PerCpuArray::new();

/// The maps as the tables of a decision about a packet (or a socket).
pub(crate) struct Maps<P>(pub(crate) P);

/// Adds one for the reason of a packet.
#[inline(always)]
pub(crate) fn count(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: the element is this CPU's own, and no program for packets interrupts another.
        unsafe { *value += 1 };
    }
}

/// Adds one for the reason of a system call, between any two instructions of which another one may come on the same CPU.
#[inline(always)]
pub(crate) fn count_call(counter: Counter) {
    if let Some(value) = COUNTERS.get_ptr_mut(counter as u32) {
        // SAFETY: array elements are aligned to eight bytes; whatever comes between comes before or after the one instruction.
        unsafe { atomic::add(value, 1) };
    }
}

/// The backend that a process is the first one of, if it is one.
#[inline(always)]
pub(crate) fn init(pid: u32) -> Option<InitEntry> {
    // SAFETY: copied out at once.
    unsafe { INITS.get(pid) }.copied()
}

/// The backend that a cgroup is that of, if it is one's.
#[inline(always)]
pub(crate) fn in_cgroup(id: u64) -> Option<InitEntry> {
    // SAFETY: copied out at once.
    unsafe { CGROUPS.get(id) }.copied()
}

/// A process has ended, the one at work: its id may be used again. Its cgroup's never is, but ends too.
#[inline(always)]
pub(crate) fn forget_init(pid: u32) {
    let _ = INITS.remove(pid);
    // SAFETY: a helper without arguments.
    let _ = CGROUPS.remove(unsafe { bpf_get_current_cgroup_id() });
}

/// Where the kernel writes down what it sees of a backend, if that is still the one that is meant.
#[inline(always)]
fn edge_of(init: &InitEntry) -> Option<*mut EdgeEntry> {
    let is_current = BACKENDS.get(init.backend.0.into()).is_some_and(|backend| backend.generation == init.generation);
    BACKEND_EDGES.get_ptr_mut(init.backend.0.into()).filter(|_| is_current)
}

/// Takes a backend out for as long as it is frozen. The agent is told by Docker, as long as it was Docker.
#[inline(always)]
pub(crate) fn freeze(init: &InitEntry, is_frozen: bool) {
    let Some(edge) = edge_of(init) else { return };
    // SAFETY: a helper without arguments.
    let since = if is_frozen { unsafe { bpf_ktime_get_ns() } } else { 0 };
    // SAFETY: an aligned word of a map value, which only these two tracepoints write, one at a time (`cgroup_mutex`).
    unsafe { (*edge).frozen_ns = since };
}

/// Takes a backend out, and tells the agent.
#[inline(always)]
pub(crate) fn demote(init: &InitEntry, kind: EdgeKind, signal: u32) {
    let Some(edge) = edge_of(init) else { return };
    // SAFETY: a helper without arguments.
    let at_ns = unsafe { bpf_ktime_get_ns() };
    // SAFETY: aligned words of a map value. Two edges at once (a signal from each of two CPUs) may mix their words: both take the
    // backend out.
    let edges = unsafe {
        // An end is the last thing that is told of a process.
        (*edge).kind = kind as u32;
        (*edge).signal = signal;
        (*edge).at_ns = at_ns;
        atomic::add(&raw mut (*edge).count, 1) as u32 + 1
    };
    if kind == EdgeKind::Exit
        && let Some(backend) = BACKENDS.get_ptr_mut(init.backend.0.into())
    {
        // SAFETY: an aligned byte of a map value; see `BackendEntry::ENDED` for who else writes it.
        unsafe { (*backend).flags |= BackendEntry::ENDED };
    }
    let notice = Notice {
        at_ns,
        generation: init.generation,
        kind: kind as u32,
        backend: init.backend,
        signal: signal as u16,
        edges,
    };
    let _ = NOTICES.output(notice, 0);
}

/// A flow that opens or closes, with its SYN.
#[inline(always)]
pub(crate) fn pending(key: &FlowKey) -> Option<*mut PendingEntry> {
    PENDING.get_ptr_mut(key)
}

/// What a socket remembers; a socket that has completed its handshake.
///
/// # Safety
/// `socket` comes from the context of the program that runs.
#[inline(always)]
pub(crate) unsafe fn remembered(socket: *mut c_void) -> Option<SocketEntry> {
    // SAFETY: by contract; copied out at once.
    unsafe {
        let entry = bpf_sk_storage_get(sockets(), socket, null_mut(), 0).cast::<SocketEntry>();
        entry.as_ref().copied()
    }
}

/// Lets a socket remember.
///
/// # Safety
/// As for [`remembered`].
#[inline(always)]
pub(crate) unsafe fn remember(socket: *mut c_void, entry: &SocketEntry) {
    let entry = core::ptr::from_ref(entry).cast_mut().cast();
    // SAFETY: by contract; the helper copies the value.
    unsafe { bpf_sk_storage_get(sockets(), socket, entry, BPF_SK_STORAGE_GET_F_CREATE.into()) };
}

fn sockets() -> *mut c_void {
    (&raw const SOCKETS).cast_mut().cast()
}

/// The tasks behind a virtual address, and whose turn it is; `None` = it is none.
#[inline(always)]
pub(crate) fn vip(key: &VipKey) -> Option<(&'static VipEntry, u32)> {
    // SAFETY: copied out at once.
    let at = unsafe { VIP_KEYS.get(key) }.copied()?;
    let turns = VIP_TURNS.get_ptr_mut(at)?;
    // SAFETY: array elements are aligned to eight bytes, and this one is only changed atomically.
    let turn = unsafe { atomic::add(turns, 1) } as u32;
    Some((VIPS.get(at)?, turn))
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
