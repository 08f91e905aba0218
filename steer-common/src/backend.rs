//! Backends: containers that serve, their states, and how a reply finds the backend it came from.

use crate::addr::{Addr, Port};
use crate::limits::MAX_PORTS;
use crate::service::ServiceId;

/// Index of a backend in the maps. 0 is never valid, so a zeroed record never names a backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
#[repr(transparent)]
pub struct BackendId(pub u16);

/// Where a backend is and how to reach it. Value of `BACKENDS`, index [`BackendId`]; written by the agent only.
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
    /// Bits of [`BackendEntry::XDP`].
    pub flags: u8,
    pub pad0: u8,
    /// Share of new flows, `0..=`[`crate::limits::MAX_WEIGHT`]; the slot table already holds it, least-conn compares by it.
    pub weight: u16,
}

impl BackendEntry {
    /// The container's end takes packets straight from XDP (its NAPI runs).
    pub const XDP: u8 = 1;

    /// The container's port behind a port of the service, if it serves that one.
    #[inline(always)]
    pub fn target(&self, port_index: u8) -> Option<Port> {
        match self.targets.get(port_index as usize) {
            Some(&port) if port != Port::NONE => Some(port),
            _ => None,
        }
    }
}

/// Lifecycle of a backend, as the kernel needs it. Value of `BACKEND_STATES`, index [`BackendId`], as `u32`.
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

    /// The word used in output, labels of metrics and logs.
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

/// Counts of a backend, per CPU. Value of `BACKEND_STATS`, index [`BackendId`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct BackendStats {
    /// New flows given to this backend, with those of this host's own sockets.
    pub steered: u64,
    /// New flows that completed their handshake.
    pub established: u64,
}

/// Where a packet comes from that might be a reply. Key of `ENDPOINTS`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct EndpointKey {
    pub addr: Addr,
    /// Host end of the veth the packet came in on.
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
}

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
    /// How long a draining backend may keep flows, in milliseconds.
    pub drain_ms: u32,
}

const _: () = assert!(size_of::<BackendEntry>() == 64);
const _: () = assert!(size_of::<BackendStats>() == 16);
const _: () = assert!(size_of::<EndpointKey>() == 24);
const _: () = assert!(size_of::<EndpointEntry>() == 12);
const _: () = assert!(size_of::<BackendInfo>() == 128 + 128 + 96 + 8 + 16);
const _: () = assert!(MAX_PORTS <= 8, "EndpointEntry::ports has a bit per port");

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn states_cross_the_kernel_border_unchanged() {
        for state in BackendState::ALL {
            assert_eq!(BackendState::from_u32(state as u32), state);
        }
        assert_eq!(BackendState::from_u32(99), BackendState::Gone);
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
