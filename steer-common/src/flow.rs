//! The record of one client connection.
//!
//! One entry serves both directions. Its key is what a packet from the client and a reply both know: the client's address and
//! port, the service (from the frontend, or from the endpoint the reply comes from) and the protocol. The frontend itself
//! stands in the value. A client may use one source port for two frontends of one service at the same time (two addresses of
//! the host, or two ports): each such flow has its own *lane*, a small number in the key, and never the same endpoint as its
//! siblings, so that replies are told apart. A second entry per flow for the way back, as other balancers keep, would cost a
//! second insert for each new connection; the lanes cost nothing until two flows really meet.

use crate::addr::{Addr, Port};
use crate::backend::BackendId;
use crate::service::ServiceId;
use crate::tcp::TcpState;

/// Key of `FLOWS` and `PENDING`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct FlowKey {
    pub client: Addr,
    pub client_port: Port,
    pub service: ServiceId,
    /// IANA protocol number.
    pub proto: u8,
    /// `0..`[`crate::limits::LANES`].
    pub lane: u8,
    pub pad: u16,
}

/// Value of `FLOWS` (established) and `PENDING` (opening or closing).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct FlowEntry {
    /// Address the client connected to: what replies must come from.
    pub frontend: Addr,
    pub frontend_port: Port,
    pub backend: BackendId,
    /// Generation of the backend's id when the flow began.
    pub generation: u32,
    /// Sequence number of the SYN, as on the wire: the same number again is the same SYN, retransmitted or duplicated.
    pub isn: u32,
    /// Interface the client's packets come in on.
    pub uplink: u32,
    /// Seconds since boot of the last packet, either direction.
    pub last_seen: u32,
    /// Which port of the service: index into [`crate::backend::BackendEntry::targets`].
    pub port_index: u32,
    /// What was seen of the connection so far: [`TcpState::marks`]. A double word, since those can be changed atomically on
    /// every BPF instruction set.
    pub marks: u64,
}

impl FlowEntry {
    /// The state of the connection.
    #[inline(always)]
    pub const fn tcp(&self) -> TcpState {
        TcpState::from_marks(self.marks)
    }

    /// Whether the flow has been idle for longer than its state allows.
    #[inline(always)]
    pub const fn is_expired(&self, now_secs: u32) -> bool {
        now_secs.saturating_sub(self.last_seen) > self.tcp().timeout_secs()
    }

    /// Whether a new flow may take the place of this one: it ended, or its time is over.
    #[inline(always)]
    pub const fn is_over(&self, now_secs: u32) -> bool {
        matches!(self.tcp(), TcpState::Closed | TcpState::Reset) || self.is_expired(now_secs)
    }

    /// Whether the flow belongs to this frontend.
    #[inline(always)]
    pub fn is_for(&self, frontend: Addr, port: Port) -> bool {
        self.frontend == frontend && self.frontend_port == port
    }
}

/// A connection of one of this host's own sockets, steered at `connect`. Value of `LOCAL_FLOWS`, key: socket cookie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct LocalFlow {
    /// What the application asked for: what `getpeername` answers.
    pub frontend: Addr,
    pub frontend_port: Port,
    pub backend: BackendId,
    /// Generation of the backend's id when the flow began.
    pub generation: u32,
}

const _: () = assert!(size_of::<FlowKey>() == 24);
const _: () = assert!(size_of::<FlowEntry>() == 48);
const _: () = assert!(size_of::<LocalFlow>() == 24);
