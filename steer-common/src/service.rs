//! Frontends and services: what a client connects to.

use crate::addr::{Addr, Port};
use crate::limits::{MAX_PORTS, NAME_FIELD};

/// Index of a service in the maps. 0 is never valid, so a zeroed record never names a service.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
#[repr(transparent)]
pub struct ServiceId(pub u16);

/// What a client connects to. Key of `FRONTENDS`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct FrontendKey {
    pub addr: Addr,
    pub port: Port,
    /// IANA protocol number.
    pub proto: u8,
    pub pad: u8,
}

impl FrontendKey {
    /// The key of one frontend.
    #[inline(always)]
    pub const fn new(addr: Addr, port: Port, proto: u8) -> Self {
        Self { addr, port, proto, pad: 0 }
    }
}

/// The service behind a frontend. Value of `FRONTENDS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FrontendEntry {
    pub service: ServiceId,
    /// Which of the service's ports this is: index into [`crate::backend::BackendEntry::targets`].
    pub port_index: u8,
    /// Bits of [`FrontendEntry::LOOPBACK`] and [`FrontendEntry::CLOSED`].
    pub flags: u8,
}

impl FrontendEntry {
    /// Only this host's own sockets may use it (a loopback address): a packet that claims to come here is left to the
    /// kernel, which drops it as a martian.
    pub const LOOPBACK: u8 = 1;
    /// Takes no new flows: steer is being detached, or the host has lost that address. What is known is followed.
    pub const CLOSED: u8 = 2;
}

/// How the backend of a new flow is chosen.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(u8)]
pub enum Balance {
    /// Weighted round robin over the slot table.
    #[default]
    RoundRobin = 0,
    /// The better of two candidates by live flows per weight.
    LeastConn = 1,
    /// Consistent hash of client address, client port and frontend port.
    Maglev = 2,
    /// Consistent hash of the client address.
    Source = 3,
}

impl Balance {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::RoundRobin, Self::LeastConn, Self::Maglev, Self::Source];

    /// The word for it in labels, files and output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::RoundRobin => "round-robin",
            Self::LeastConn => "least-conn",
            Self::Maglev => "maglev",
            Self::Source => "source",
        }
    }

    /// From a map record; unknown values count as round robin.
    #[inline(always)]
    pub const fn from_u8(value: u8) -> Self {
        match value {
            1 => Self::LeastConn,
            2 => Self::Maglev,
            3 => Self::Source,
            _ => Self::RoundRobin,
        }
    }
}

/// Settings of a service. Value of `SERVICES`, index [`ServiceId`]; written by the agent only.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct ServiceEntry {
    /// How long new flows wait while no backend is ready, in nanoseconds.
    pub hold_ns: u64,
    /// A [`Balance`].
    pub balance: u8,
    /// Bits of [`ServiceEntry::ALLOW_LIST`], [`ServiceEntry::MESH`] and [`ServiceEntry::ALL_HERE`].
    pub flags: u8,
    pub pad: [u8; 6],
}

impl ServiceEntry {
    /// Only sources in the `ALLOW` map may open flows.
    pub const ALLOW_LIST: u8 = 1;
    /// There is somebody else behind its frontends, Swarm's routing mesh: a new flow that finds no ready backend here is not
    /// held or reset, nor given to a draining one, but left to the kernel.
    pub const MESH: u8 = 2;
    /// All tasks of the service are on this node. Whatever the mesh has for a new flow is a backend here, and is not ready: it
    /// would be refused, so it waits as where there is no mesh. It counts as long as the agent's word about the swarm does.
    pub const ALL_HERE: u8 = 4;

    /// Whether there is a mesh, which has connections of its own.
    #[inline(always)]
    pub const fn has_mesh(&self) -> bool {
        self.flags & Self::MESH != 0
    }

    /// Whether the mesh takes a new flow that finds no backend: it may have one on another node, or nobody is to wait. `is_current`:
    /// the agent has heard from the swarm not long ago (`SWARM_LEASE`).
    #[inline(always)]
    pub const fn leaves_to_mesh(&self, is_current: bool) -> bool {
        self.has_mesh() && (self.flags & Self::ALL_HERE == 0 || !is_current || self.hold_ns == 0)
    }
}

/// What the kernel keeps for a service. Value of `SERVICE_STATES`, index [`ServiceId`]; written by the kernel, and set to
/// nothing by the agent when the id goes to another service.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct ServiceState {
    /// Turns of the round robin so far.
    pub cursor: u64,
    /// Lanes in use so far beyond the first: how many more keys a flow may stand under (see [`crate::flow`]).
    pub extra_lanes: u32,
    pub pad: u32,
    /// By index of the port: whether one finds nobody says nothing of the others.
    pub none_since: [NoneSince; MAX_PORTS],
}

/// When new flows to a port of a service found no backend; all zero while they do find one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct NoneSince {
    /// The first of them, in nanoseconds since boot.
    pub first: u64,
    /// The last of them, in seconds since boot.
    pub last_secs: u32,
    pub pad: u32,
}

impl NoneSince {
    /// From the first of them to the last.
    #[inline(always)]
    pub const fn between(first: u64, last_secs: u32) -> Self {
        Self { first, last_secs, pad: 0 }
    }
}

/// One prefix of an allow list: data part of the key of the longest-prefix map `ALLOW`. The prefix counts from the first bit
/// of `service`, so a prefix of `n` address bits has length `32 + n`, with `n` counted in the IPv4-mapped form.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct AllowKey {
    /// The service id in network byte order, so that its bits come first.
    pub service_be: u32,
    pub addr: Addr,
}

impl AllowKey {
    /// Length of the part of the key before the address.
    pub const SERVICE_BITS: u32 = 32;

    /// The key to look a client up with.
    #[inline(always)]
    pub const fn new(service: ServiceId, addr: Addr) -> Self {
        Self { service_be: (service.0 as u32).to_be(), addr }
    }
}

/// What people call a service, kept beside the maps so that inspection needs no agent. Value of `SERVICE_INFO`.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct ServiceInfo {
    /// UTF-8, zero-padded; empty means the id is free.
    pub name: [u8; NAME_FIELD],
    /// Frontends as written, one per port; [`PortInfo::port`] 0 = none has this index.
    pub ports: [PortInfo; MAX_PORTS],
}

/// One published port of a service, as its label wrote it.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
#[repr(C)]
pub struct PortInfo {
    /// [`Addr::UNSPECIFIED`] stands for every address of the host.
    pub addr: Addr,
    pub port: Port,
    pub proto: u8,
    pub pad: u8,
}

const _: () = assert!(size_of::<FrontendKey>() == 20);
const _: () = assert!(size_of::<FrontendEntry>() == 4);
const _: () = assert!(size_of::<ServiceEntry>() == 16);
const _: () = assert!(size_of::<ServiceState>() == 16 + 16 * MAX_PORTS);
const _: () = assert!(size_of::<AllowKey>() == 20);
const _: () = assert!(size_of::<ServiceInfo>() == 128 + 20 * MAX_PORTS);
