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
use crate::tcp::{TcpFlags, TcpState};

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

impl FlowKey {
    /// The key of a client's flow, at the first lane.
    #[inline(always)]
    pub const fn new(client: Addr, client_port: Port, service: ServiceId, proto: u8) -> Self {
        Self { client, client_port, service, proto, lane: 0, pad: 0 }
    }
}

/// Value of `FLOWS` (established), and the first part of that of `PENDING` (opening or closing).
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
    pub port_index: u8,
    /// How many backends have refused the flow so far.
    pub refusals: u8,
    /// The one that refused it before the present one, if any did: not asked again.
    pub refused: BackendId,
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
        self.tcp().has_ended() || self.is_expired(now_secs)
    }

    /// Whether it was left to Swarm's routing mesh: no backend here has it. Such flows stay in `PENDING` however long they live.
    #[inline(always)]
    pub const fn is_of_mesh(&self) -> bool {
        self.backend.is_none()
    }

    /// The backend it had has refused it: another one gets it.
    #[inline(always)]
    pub const fn again(&mut self, backend: BackendId, generation: u32, secs: u32) {
        self.refusals += 1;
        self.refused = self.backend;
        self.backend = backend;
        self.generation = generation;
        self.last_seen = secs;
    }

    /// Whether the flow belongs to this frontend.
    #[inline(always)]
    pub fn is_for(&self, frontend: Addr, port: Port) -> bool {
        self.frontend == frontend && self.frontend_port == port
    }
}

/// What is kept of a client's SYN, so that it can be sent again on the client's behalf: to another backend when the first one
/// refuses, or to the first one that gets ready. Ports, addresses and sequence number stand beside it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SynEntry {
    /// Window field, as on the wire.
    pub window: u16,
    /// TCP flags: SYN, and what it offers of ECN.
    pub flags: TcpFlags,
    /// Of the IP header.
    pub ttl: u8,
    /// Of the IP header.
    pub tos: u8,
    /// Bytes of `options` in use: a multiple of four.
    pub options_len: u8,
    pub pad: u16,
    /// TCP options as on the wire, in words; what is not in use is undefined.
    pub options: [u32; SYN_OPTIONS / 4],
}

/// Most that a TCP header has room for.
pub const SYN_OPTIONS: usize = 40;

/// Value of `PENDING` and `HELD`: a flow with its SYN. The flow comes first, so that both flow tables begin alike. In `HELD`
/// the flow has no backend yet, or that which refused it last.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct PendingEntry {
    pub flow: FlowEntry,
    pub syn: SynEntry,
}

/// A connection that was open before steer came, by way of Docker's own port mapping: never to be taken over, unless its socket
/// remembers that another version of steer brought it there. Key of `FOREIGN`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct ForeignKey {
    pub client: Addr,
    pub client_port: Port,
    pub backend: BackendId,
    /// Generation of the backend's id.
    pub generation: u32,
}

/// What the backend's own socket keeps of a flow. Value of `SOCKETS`, storage inside the socket: it is there for as long as the
/// connection is, whatever becomes of the flow tables, and no flood can push it out.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct SocketEntry {
    /// Address the client connected to: what replies must come from.
    pub frontend: Addr,
    pub frontend_port: Port,
    /// Which port of the service: index into [`crate::backend::BackendEntry::targets`].
    pub port_index: u8,
    pub pad: u8,
    /// Sequence number of the SYN, as on the wire.
    pub isn: u32,
    /// Interface the client's packets come in on.
    pub uplink: u32,
}

/// A connection of a socket that was steered at `connect`: one of this host's own, or of a container's to a service's virtual
/// address. Value of `LOCAL_FLOWS`, key: socket cookie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct LocalFlow {
    /// What the application asked for: what `getpeername` answers.
    pub frontend: Addr,
    pub frontend_port: Port,
    /// 0 = none of this host's.
    pub backend: BackendId,
    /// Generation of the backend's id when the flow began.
    pub generation: u32,
    /// What it was connected to.
    pub peer: Addr,
}

const _: () = assert!(size_of::<FlowKey>() == 24);
const _: () = assert!(size_of::<FlowEntry>() == 48);
const _: () = assert!(size_of::<SynEntry>() == 48);
const _: () = assert!(size_of::<PendingEntry>() == 96);
const _: () = assert!(size_of::<ForeignKey>() == 24);
const _: () = assert!(size_of::<SocketEntry>() == 28);
const _: () = assert!(size_of::<LocalFlow>() == 40);
