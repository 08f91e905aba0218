//! How a reply finds the backend it came from.

use crate::addr::{Addr, Port};
use crate::backend::BackendId;
use crate::limits::MAX_PORTS;
use crate::service::ServiceId;

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

const _: () = assert!(size_of::<EndpointKey>() == 24);
const _: () = assert!(size_of::<EndpointEntry>() == 12);
const _: () = assert!(MAX_PORTS <= 8, "EndpointEntry::ports has a bit per port");
