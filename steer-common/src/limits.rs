//! Every bound of the data plane in one place. At each limit the behaviour is defined: see the item.

/// Version of the map layout. Part of the pin path, so an agent never adopts maps it would misread. Between versions connections are
/// known again by what their sockets remember.
pub const ABI: u32 = 6;

/// Version of what sockets remember of their flows ([`SocketEntry`](crate::flow::SocketEntry)). One of its own: what is in a socket can
/// be filled in at its handshake alone, and is what an agent with another [`ABI`] knows open connections by.
pub const SOCKETS_ABI: u32 = 1;

/// Services, counted by name: the size of the map, of which all but one are usable, since id 0 is never valid. One more is an error that
/// names the service; the others go on.
pub const MAX_SERVICES: u32 = 256;

/// Ports one service may publish. One more is an error that names the label.
pub const MAX_PORTS: usize = 8;

/// Frontends: services × ports × addresses of the host. When full, the frontend is an error that names it.
pub const MAX_FRONTENDS: u32 = 16_384;

/// Backends over all services, likewise. One more is an error that names the container.
pub const MAX_BACKENDS: u32 = 4_096;

/// Backends of one service. One more is an error that names the container.
pub const MAX_MEMBERS: usize = 256;

/// Positions of a slot table: the resolution of weights. A service's weights are scaled to fit.
pub const MAX_SLOTS: usize = 4_096;

/// Established flows. When the table is full the least recently used entry makes room (counted by user space: inserts minus
/// removals exceed what the table holds).
pub const MAX_FLOWS: u32 = 262_144;

/// Flows that open or close. A SYN flood can only thrash this table, never [`MAX_FLOWS`].
pub const MAX_PENDING: u32 = 65_536;

/// Connections of this host's own sockets, steered at `connect`.
pub const MAX_LOCAL_FLOWS: u32 = 65_536;

/// New flows that wait for a backend. When the table is full the least recently used one makes room: its client's own
/// retransmission opens the connection then.
pub const MAX_HELD: u32 = 8_192;

/// Connections that were open before steer came. When full, the oldest make room, and might be taken over.
pub const MAX_FOREIGN: u32 = 65_536;

/// Bytes of the ring `NOTICES`. When full, a notice is lost; the state it tells of stands in the maps all the same.
pub const NOTICES_BYTES: u32 = 1 << 16;

/// How often one connection may be steered to another backend after a refusal. Then the client hears the truth.
pub const MAX_REFUSALS: u8 = 2;

/// Packets of unknown connections, per second and CPU, for which the backends are asked whose they are. The others pass.
pub const MAX_SEARCHES: u32 = 50_000;

/// Virtual addresses of services, each counted once per overlay network. One more is left to Swarm, and told.
pub const MAX_VIPS: u32 = 512;

/// Tasks behind one virtual address. One more gets nothing by way of it, and that is told.
pub const MAX_VIP_MEMBERS: usize = 64;

/// Virtual addresses times the containers of this host that may ask for them. One more is left to Swarm, and told.
pub const MAX_VIP_KEYS: u32 = 32_768;

/// Seconds for which the agent's word about the swarm counts: its tasks on other nodes, or that there are none.
pub const SWARM_LEASE_SECS: u32 = 30;

/// Prefixes over all allow lists. One more is an error that names the service, which then admits nobody new.
pub const MAX_ALLOW: u32 = 4_096;

/// Slots tried for one new flow before the members of the service are looked through.
pub const MAX_CANDIDATES: u32 = 4;

/// Members looked through, from a rotating start, when no slot gave a ready backend.
pub const MAX_SCAN: u32 = 64;

/// Flows of one client address and port to different frontends of one service, at the same time.
/// One more is refused and counted as [`crate::verdict::Counter::DropLanes`].
pub const LANES: u8 = 4;

/// Bytes of a field that holds a name: of a service, a container, a backend. At least one zero ends it.
pub const NAME_FIELD: usize = 128;

/// Longest name of a service or backend, in bytes. A longer one is an error that names it.
pub const MAX_NAME: usize = NAME_FIELD - 1;

/// Weights are `0..=256`, as in HAProxy.
pub const MAX_WEIGHT: u16 = 256;

/// Seconds an unanswered SYN is remembered: Linux gives up after 127 s, but its sixth retry is 63 s after the first.
pub const PENDING_SECS: u32 = 64;

/// Seconds a closed flow is remembered for its last packets: twice Linux's TIME_WAIT.
pub const CLOSING_SECS: u32 = 120;

/// Seconds an established flow may be idle: Linux's keepalive (7200 s, then 9 probes 75 s apart) and some more.
pub const ESTABLISHED_SECS: u32 = 9_000;

/// Seconds a half-closed flow may be idle.
pub const HALF_CLOSED_SECS: u32 = 1_800;

/// Names of the maps: of the statics in `steer-ebpf/src/maps` and of their pins.
pub mod names {
    /// `FrontendKey` → `FrontendEntry`.
    pub const FRONTENDS: &str = "FRONTENDS";
    /// Longest-prefix map of `AllowKey` → `u32`.
    pub const ALLOW: &str = "ALLOW";
    /// `ServiceId` → `ServiceEntry`.
    pub const SERVICES: &str = "SERVICES";
    /// `ServiceId` → `ServiceState`.
    pub const SERVICE_STATES: &str = "SERVICE_STATES";
    /// `ServiceId` → `ServiceInfo`.
    pub const SERVICE_INFO: &str = "SERVICE_INFO";
    /// `ServiceId` → array of one `SlotTable`.
    pub const SLOTS: &str = "SLOTS";
    /// `BackendId` → `BackendEntry`.
    pub const BACKENDS: &str = "BACKENDS";
    /// `BackendId` → `StateEntry`.
    pub const BACKEND_STATES: &str = "BACKEND_STATES";
    /// `BackendId` → live flows, `u64`.
    pub const BACKEND_LIVE: &str = "BACKEND_LIVE";
    /// `BackendId` → `BackendStats` per CPU.
    pub const BACKEND_STATS: &str = "BACKEND_STATS";
    /// `BackendId` → `BackendInfo`.
    pub const BACKEND_INFO: &str = "BACKEND_INFO";
    /// `EndpointKey` → `EndpointEntry`.
    pub const ENDPOINTS: &str = "ENDPOINTS";
    /// `FlowKey` → `FlowEntry`, established.
    pub const FLOWS: &str = "FLOWS";
    /// `FlowKey` → `PendingEntry`, opening or closing.
    pub const PENDING: &str = "PENDING";
    /// Socket cookie, `u64` → `LocalFlow`.
    pub const LOCAL_FLOWS: &str = "LOCAL_FLOWS";
    /// `BackendId` → `EdgeEntry`.
    pub const BACKEND_EDGES: &str = "BACKEND_EDGES";
    /// Process id, `u32` → `InitEntry`.
    pub const INITS: &str = "INITS";
    /// Id of a cgroup, `u64` → `InitEntry`.
    pub const CGROUPS: &str = "CGROUPS";
    /// `FlowKey` → `PendingEntry`, waiting.
    pub const HELD: &str = "HELD";
    /// `ForeignKey` → `u32`.
    pub const FOREIGN: &str = "FOREIGN";
    /// Ring of `Notice`.
    pub const NOTICES: &str = "NOTICES";
    /// Socket → `SocketEntry`, in the socket's own storage.
    pub const SOCKETS: &str = "SOCKETS";
    /// `Counter` → `u64` per CPU.
    pub const COUNTERS: &str = "COUNTERS";
    /// `VipKey` → index into `VIPS`, `u32`.
    pub const VIP_KEYS: &str = "VIP_KEYS";
    /// Array of `VipEntry`.
    pub const VIPS: &str = "VIPS";
    /// One `u32`: until when, in seconds since boot, the agent's word about the swarm counts.
    pub const SWARM_LEASE: &str = "SWARM_LEASE";
    /// Every map that is pinned.
    pub const ALL: [&str; 26] = [
        FRONTENDS,
        ALLOW,
        SERVICES,
        SERVICE_STATES,
        SERVICE_INFO,
        SLOTS,
        BACKENDS,
        BACKEND_STATES,
        BACKEND_LIVE,
        BACKEND_STATS,
        BACKEND_INFO,
        ENDPOINTS,
        FLOWS,
        PENDING,
        LOCAL_FLOWS,
        BACKEND_EDGES,
        INITS,
        CGROUPS,
        HELD,
        FOREIGN,
        NOTICES,
        SOCKETS,
        VIP_KEYS,
        VIPS,
        SWARM_LEASE,
        COUNTERS,
    ];
}
