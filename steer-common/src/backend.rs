//! Backends: containers that serve, where they are, and what is told of them.

use core::hint::black_box;

use crate::addr::{Addr, Port};
use crate::limits::MAX_PORTS;
use crate::service::ServiceId;

/// Index of a backend in the maps. 0 is never valid, so a zeroed record never names a backend.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default, Debug)]
#[repr(transparent)]
pub struct BackendId(pub u16);

impl BackendId {
    /// No backend; in a record of a flow: nobody here has it. Where an `Option` would do, this stands for its `None` all the same: its
    /// empty half would be an undefined register, which the verifier does not take.
    pub const NONE: Self = Self(0);

    /// Whether it is [`BackendId::NONE`].
    #[inline(always)]
    pub const fn is_none(self) -> bool {
        self.0 == 0
    }
}

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

    /// Its first process has ended: written by the kernel, and not in [`crate::edge::EdgeEntry`], so that packets of known flows need not look
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

/// Counts of a backend, per CPU. Value of `BACKEND_STATS`, index [`BackendId`].
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct BackendStats {
    /// New flows given to this backend, with those of this host's own sockets.
    pub steered: u64,
    /// New flows that completed their handshake.
    pub established: u64,
    /// New flows that it refused and that went to another backend at once.
    pub resteered: u64,
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
    pub maintenance: u16,
    /// 1 = the operator put the backend in, which `steer.ready=manual` waits for; survives a restart of the agent.
    pub put_in: u16,
    /// Weight the label asks for.
    pub label_weight: u32,
    /// How long `steer drain --wait` waits for its flows, in milliseconds.
    pub drain_ms: u32,
}

const _: () = assert!(size_of::<BackendEntry>() == 64);
const _: () = assert!(size_of::<BackendStats>() == 24);
const _: () = assert!(size_of::<BackendInfo>() == 128 + 128 + 96 + 8 + 16);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_backend_serves_only_the_ports_it_has_a_target_for() {
        let mut backend = BackendEntry::default();
        backend.targets[1] = Port::new(5000);
        assert_eq!(backend.target(0), None);
        assert_eq!(backend.target(1), Some(Port::new(5000)));
        assert_eq!(backend.target(200), None);
    }
}
