//! Backends: containers that serve, their states, and how a reply finds the backend it came from.

use core::hint::black_box;

use crate::addr::{Addr, Port};
use crate::limits::MAX_PORTS;
use crate::service::ServiceId;

/// Index of a backend in the maps. 0 is never valid, so a zeroed record never names a backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
#[repr(transparent)]
pub struct BackendId(pub u16);

/// Where a backend is and how to reach it. Value of `BACKENDS`, index [`BackendId`]; written by the agent, but for one flag
/// ([`BackendEntry::ENDED`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct BackendEntry {
    pub addr: Addr,
    /// Counts the uses of this id. A flow that began with another generation does not belong here. 0 = id is free.
    pub generation: u32,
    /// Host end of the container's veth.
    pub ifindex: u32,
    /// Cookie of the container's network namespace (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    /// Id of that namespace as the host's namespace counts (`IFLA_LINK_NETNSID`); -1 = not known.
    pub netns_id: i32,
    pub service: ServiceId,
    /// MAC address of the container's end.
    pub mac: [u8; 6],
    /// Port the container listens on, per port of the service; [`Port::NONE`] where it does not serve that one.
    pub targets: [Port; MAX_PORTS],
    /// Bits of [`BackendEntry::XDP`] and [`BackendEntry::ENDED`].
    pub flags: u8,
    pub pad0: u8,
    /// Share of new flows, `0..=`[`crate::limits::MAX_WEIGHT`]; the slot table already holds it, least-conn compares by it.
    pub weight: u16,
}

impl BackendEntry {
    /// The container's end takes packets straight from XDP (its NAPI runs).
    pub const XDP: u8 = 1;

    /// Its first process has ended: written by the kernel, and not in [`EdgeEntry`], so that packets of known flows need not look
    /// there. An agent that writes the entry at the same moment may undo it: that one is told of the end, and gives the id back.
    pub const ENDED: u8 = 2;

    /// See [`BackendEntry::ENDED`].
    #[inline(always)]
    pub const fn has_ended(&self) -> bool {
        self.flags & Self::ENDED != 0
    }

    /// The container's port behind a port of the service, if it serves that one.
    #[inline(always)]
    pub fn target(&self, port_index: u8) -> Option<Port> {
        // Opaque, so that the very register that is compared is the index: the verifier of Linux 6.1 does not see that a copy of its
        // lower half is as small.
        match self.targets.get(black_box(usize::from(port_index))) {
            Some(&port) if port != Port::NONE => Some(port),
            _ => None,
        }
    }
}

/// Lifecycle of a backend, as the kernel needs it: see [`StateEntry`].
///
/// Words are HAProxy's and Kubernetes'. Only `Ready` takes new flows; `Draining` takes them when nothing is ready
/// (Kubernetes KEP-1669: terminating endpoints that still serve).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
#[repr(u8)]
pub enum BackendState {
    /// No backend, or one that ended: its flows are dead.
    #[default]
    Gone = 0,
    /// Runs, not yet known to serve.
    Starting = 1,
    /// Takes new flows.
    Ready = 2,
    /// Alive, but said to be unable to serve now: keeps its flows, may come back.
    Unready = 3,
    /// Stopping: keeps its flows, gets new ones only if nothing is ready.
    Draining = 4,
    /// Taken out by the operator: keeps its flows, gets no new ones.
    Maintenance = 5,
    /// Stopping, and its last flow has ended.
    Drained = 6,
}

impl BackendState {
    /// Every state, in numeric order.
    pub const ALL: [Self; 7] =
        [Self::Gone, Self::Starting, Self::Ready, Self::Unready, Self::Draining, Self::Maintenance, Self::Drained];

    /// From a map record; unknown values count as gone, which takes nothing.
    #[inline(always)]
    pub const fn from_u32(value: u32) -> Self {
        match value {
            1 => Self::Starting,
            2 => Self::Ready,
            3 => Self::Unready,
            4 => Self::Draining,
            5 => Self::Maintenance,
            6 => Self::Drained,
            _ => Self::Gone,
        }
    }

    /// The word used in output and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
            Self::Drained => "drained",
        }
    }
}

/// The state the agent gives a backend. Value of `BACKEND_STATES`, index [`BackendId`]; written by the agent only.
///
/// The kernel may take a backend out by itself ([`EdgeEntry`]). Both write words of their own, so neither can undo the other
/// by accident: an edge counts until the agent writes a state that takes it into account.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct StateEntry {
    /// A [`BackendState`].
    pub state: u16,
    /// 1 = listening decides: takes new flows also while `state` is [`BackendState::Starting`] or [`BackendState::Unready`],
    /// as soon as the kernel finds a listener.
    pub if_listening: u16,
    /// How many edges of the backend this state takes into account: [`EdgeEntry::count`], cut to 32 bits.
    pub edges: u32,
}

/// What the kernel saw happen to a backend that takes it out at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum EdgeKind {
    /// Its first process was sent its stop signal.
    Stop = 1,
    /// Its first process was sent `KILL`.
    Kill = 2,
    /// Its first process ended.
    Exit = 3,
}

impl EdgeKind {
    /// From a map record.
    #[inline(always)]
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::Stop),
            2 => Some(Self::Kill),
            3 => Some(Self::Exit),
            _ => None,
        }
    }
}

/// The kernel's own demotion of a backend. Value of `BACKEND_EDGES`, index [`BackendId`]; written by the kernel, while the id is in
/// use. The agent zeroes it before it gives the id to a new backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct EdgeEntry {
    /// Edges so far. Raised last, so that the fields below belong to it.
    pub count: u64,
    /// When the last one came, in nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub at_ns: u64,
    /// The last one's [`EdgeKind`].
    pub kind: u32,
    /// The last one's signal; 0 for an exit.
    pub signal: u32,
    /// Since when its cgroup is frozen, in nanoseconds since boot; 0 = it is not. No edge: the kernel takes it back by itself.
    pub frozen_ns: u64,
}

impl StateEntry {
    /// What a new flow may take the backend for, now that the kernel has seen this. A stop signal makes it drain; one that is
    /// killed, has ended, or is frozen takes nothing.
    #[inline(always)]
    pub const fn for_new(self, edge: &EdgeEntry) -> BackendState {
        let state = BackendState::from_u32(self.state as u32);
        if edge.frozen_ns != 0 {
            return BackendState::Gone;
        }
        if edge.count as u32 == self.edges {
            return state;
        }
        match (EdgeKind::from_u32(edge.kind), state) {
            (Some(EdgeKind::Stop), BackendState::Ready | BackendState::Draining) => BackendState::Draining,
            _ => BackendState::Gone,
        }
    }
}

/// Which backend a process is the first one of. Value of `INITS`, key: its id in the host's pid namespace, as `u32`.
/// Written by the agent; the kernel removes it when the process ends, so a reused pid never stands for an old backend. Also value
/// of `CGROUPS`, likewise; key: the id of the cgroup (version 2) it is in, as `u64`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct InitEntry {
    /// Generation of the backend's id.
    pub generation: u32,
    pub backend: BackendId,
    /// The signal that asks the container to stop.
    pub stop_signal: u16,
}

/// What the kernel tells the agent, by way of the ring `NOTICES`: edges under their own numbers, and what else it saw.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum NoticeKind {
    /// The backend was sent its stop signal.
    Stop = EdgeKind::Stop as u8,
    /// The backend was sent `KILL`.
    Kill = EdgeKind::Kill as u8,
    /// The backend's first process ended.
    Exit = EdgeKind::Exit as u8,
    /// A new flow found the backend ready, but nobody listening.
    NotListening = 4,
    /// A new flow found somebody listening at a backend that the agent does not know to listen.
    Listening = 5,
    /// The backend answered a SYN with RST.
    Refused = 6,
    /// A client waits in `HELD`. No backend's: the notice is of id 0.
    Held = 7,
}

impl NoticeKind {
    /// From a record of the ring.
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::Stop),
            2 => Some(Self::Kill),
            3 => Some(Self::Exit),
            4 => Some(Self::NotListening),
            5 => Some(Self::Listening),
            6 => Some(Self::Refused),
            7 => Some(Self::Held),
            _ => None,
        }
    }
}

/// One record of the ring `NOTICES`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Notice {
    /// When, in nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub at_ns: u64,
    /// Generation of the backend's id.
    pub generation: u32,
    /// A [`NoticeKind`].
    pub kind: u32,
    pub backend: BackendId,
    /// The signal, where there is one.
    pub signal: u16,
    /// [`EdgeEntry::count`] with this edge, where it is one.
    pub edges: u32,
}

impl Notice {
    /// The edge that it tells of, if it is of one: [`NoticeKind`] begins with the numbers of [`EdgeKind`].
    pub fn edge(&self) -> Option<EdgeEntry> {
        let Self { at_ns, kind, signal, edges, .. } = *self;
        EdgeKind::from_u32(kind).map(|_| EdgeEntry {
            count: edges.into(),
            at_ns,
            kind,
            signal: signal.into(),
            ..EdgeEntry::default()
        })
    }

    /// From the bytes of a record, in this machine's byte order; `None` where they are too few.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            at_ns: u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?),
            generation: word(8)?,
            kind: word(12)?,
            backend: BackendId(half(16)?),
            signal: half(18)?,
            edges: word(20)?,
        })
    }
}

/// Counts of a backend, per CPU. Value of `BACKEND_STATS`, index [`BackendId`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct BackendStats {
    /// New flows given to this backend, with those of this host's own sockets.
    pub steered: u64,
    /// New flows that completed their handshake.
    pub established: u64,
    /// New flows that it refused and that were steered to another backend.
    pub resteered: u64,
}

/// Where a packet comes from that might be a reply. Key of `ENDPOINTS`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct EndpointKey {
    pub addr: Addr,
    /// Host end of the veth the packet came in on; or [`EndpointKey::inside`] the namespace.
    pub ifindex: u32,
    pub port: Port,
    pub proto: u8,
    pub pad: u8,
}

impl EndpointKey {
    /// The key of one container port.
    #[inline(always)]
    pub const fn new(addr: Addr, ifindex: u32, port: Port, proto: u8) -> Self {
        Self { addr, ifindex, port, proto, pad: 0 }
    }

    /// What stands for the interface where a namespace's own sockets are asked, which see none: no interface has such an index
    /// (the kernel's are positive), and cookies are counted from one.
    #[inline(always)]
    pub const fn inside(netns_cookie: u64) -> u32 {
        INSIDE | netns_cookie as u32
    }

    /// Whether it is of a namespace's own sockets.
    pub const fn is_inside(&self) -> bool {
        self.ifindex & INSIDE != 0
    }
}

/// See [`EndpointKey::inside`].
const INSIDE: u32 = 1 << 31;

/// The backend at an endpoint. Value of `ENDPOINTS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct EndpointEntry {
    /// Generation of the backend's id.
    pub generation: u32,
    pub backend: BackendId,
    pub service: ServiceId,
    /// Bit `n` set: this container port is the target of port `n` of the service.
    pub ports: u8,
    pub pad: [u8; 3],
}

impl EndpointEntry {
    /// Whether this container port is the target of that port of the service.
    #[inline(always)]
    pub const fn serves(&self, port_index: u8) -> bool {
        (self.ports >> (port_index & 7)) & 1 == 1
    }
}

/// What people call a backend, and how it came into its state: kept beside the maps so that inspection needs no agent.
/// Value of `BACKEND_INFO`, index [`BackendId`]; written by the agent only.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct BackendInfo {
    /// Container id (64 hex digits), or `netns:<path>` for a static backend. UTF-8, zero-padded.
    pub container: [u8; 128],
    /// Container name. UTF-8, zero-padded.
    pub name: [u8; 128],
    /// Cause of the last change of state, e.g. `health: healthy`. UTF-8, zero-padded.
    pub cause: [u8; 96],
    /// When the state changed, in microseconds of Unix time.
    pub since_us: u64,
    /// Weight set by the operator, or -1: the label's.
    pub operator_weight: i32,
    /// 1 = the operator took the backend out; survives a restart of the agent.
    pub maintenance: u32,
    /// Weight the label asks for.
    pub label_weight: u32,
    /// How long `steer drain --wait` waits for its flows, in milliseconds.
    pub drain_ms: u32,
}

const _: () = assert!(size_of::<BackendEntry>() == 64);
const _: () = assert!(size_of::<BackendStats>() == 24);
const _: () = assert!(size_of::<StateEntry>() == 8);
const _: () = assert!(size_of::<EdgeEntry>() == 32);
const _: () = assert!(size_of::<InitEntry>() == 8);
const _: () = assert!(size_of::<Notice>() == 24);
const _: () = assert!(size_of::<EndpointKey>() == 24);
const _: () = assert!(size_of::<EndpointEntry>() == 12);
const _: () = assert!(size_of::<BackendInfo>() == 128 + 128 + 96 + 8 + 16);
const _: () = assert!(MAX_PORTS <= 8, "EndpointEntry::ports has a bit per port");

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn states_cross_the_kernel_border_unchanged() {
        for state in BackendState::ALL {
            assert_eq!(BackendState::from_u32(state as u32), state);
        }
        assert_eq!(BackendState::from_u32(99), BackendState::Gone);
    }

    #[rstest]
    #[case::nothing_new(BackendState::Ready, 3, EdgeKind::Stop, BackendState::Ready)]
    #[case::a_stop_signal_drains(BackendState::Ready, 4, EdgeKind::Stop, BackendState::Draining)]
    #[case::a_killed_one_takes_nothing(BackendState::Ready, 4, EdgeKind::Kill, BackendState::Gone)]
    #[case::nor_does_one_that_ended(BackendState::Draining, 4, EdgeKind::Exit, BackendState::Gone)]
    #[case::a_stop_signal_puts_nobody_in(BackendState::Maintenance, 4, EdgeKind::Stop, BackendState::Gone)]
    #[case::the_count_goes_round(BackendState::Ready, (1 << 32) + 3, EdgeKind::Kill, BackendState::Ready)]
    fn an_edge_counts_until_the_agent_has_taken_it_in(
        #[case] state: BackendState,
        #[case] count: u64,
        #[case] kind: EdgeKind,
        #[case] expected: BackendState,
    ) {
        let entry = StateEntry { state: state as u16, if_listening: 0, edges: 3 };
        let edge = EdgeEntry { count, at_ns: 1, kind: kind as u32, signal: 15, ..EdgeEntry::default() };
        assert_eq!(entry.for_new(&edge), expected);
    }

    #[test]
    fn a_frozen_one_takes_nothing_for_as_long_as_it_is() {
        for state in BackendState::ALL {
            let entry = StateEntry { state: state as u16, if_listening: 1, edges: 0 };
            assert_eq!(entry.for_new(&EdgeEntry { frozen_ns: 1, ..EdgeEntry::default() }), BackendState::Gone);
            assert_eq!(entry.for_new(&EdgeEntry::default()), state);
        }
    }

    #[test]
    fn a_backend_serves_only_the_ports_it_has_a_target_for() {
        let mut backend = BackendEntry::default();
        backend.targets[1] = Port::new(5000);
        assert_eq!(backend.target(0), None);
        assert_eq!(backend.target(1), Some(Port::new(5000)));
        assert_eq!(backend.target(200), None);
    }
}
