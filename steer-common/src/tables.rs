//! The lookups and writes a decision needs.
//!
//! Two implementations: the BPF maps (`steer-ebpf/src/maps/tables.rs`) and hash maps (`fixtures.rs`, tests). Writes take `&self`, as
//! maps do: other CPUs write at the same time, and each method is one atomic step of its own.

use core::ops::{ControlFlow, Deref};

use crate::addr::{Addr, Port};
use crate::backend::{BackendEntry, BackendId};
use crate::endpoint::{EndpointEntry, EndpointKey};
use crate::flow::{FlowEntry, FlowKey, ForeignKey, SocketEntry};
use crate::notice::NoticeKind;
use crate::open::NewFlow;
use crate::pick::Fit;
use crate::service::{AllowKey, FrontendEntry, FrontendKey, NoneSince, ServiceEntry, ServiceId};
use crate::slot::SlotTable;
use crate::state::BackendState;
use crate::verdict::Verdict;
use crate::vip::VipMember;

/// Which table holds a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// Opening or closing: bounded, may be thrashed by a SYN flood.
    Pending,
    /// Established.
    Flows,
}

/// What a backend has of a connection.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Connection {
    /// Nothing, or one that is over.
    None = 0,
    /// One of which a side has closed its half. Its client's port may long be in use for another.
    Closing = 1,
    /// One that is open, or whose handshake is under way.
    Open = 2,
}

/// Whether somebody listens.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Listening {
    Yes,
    No,
    /// It cannot be seen from here: the namespace has no id.
    Unknown,
}

/// Whether a backend's socket remembers a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Remembers {
    Yes,
    No,
    /// It cannot be seen from here: XDP may not look into sockets.
    Unknown,
}

/// The maps, as a decision sees them.
pub trait Tables {
    /// A flow entry in its table. Not copied out: the kernel's stack is small.
    type Flow<'a>: Deref<Target = FlowEntry>
    where
        Self: 'a;

    /// Works on a new flow somewhere that is not the stack, which is small in the kernel; returns the verdict it ends with.
    fn with_work(&self, work: impl FnOnce(&mut NewFlow)) -> Verdict;

    /// Calls `look` with 0, 1 and so on, below `n`, until it breaks. Not a plain loop: the kernel's verifier walks through each turn
    /// of one, which for the long ones is most of what it looks at, and on Linux 6.1 more than it is willing to.
    fn each(&self, n: u32, look: impl FnMut(u32) -> ControlFlow<()>);

    fn frontend(&self, key: &FrontendKey) -> Option<FrontendEntry>;
    fn service(&self, id: ServiceId) -> Option<&ServiceEntry>;
    /// Whether a prefix of the allow list covers the key.
    fn is_allowed(&self, key: &AllowKey) -> bool;
    fn slots(&self, id: ServiceId) -> Option<&SlotTable>;

    fn backend(&self, id: BackendId) -> Option<&BackendEntry>;
    /// What a new flow may take the backend for, and whether listening decides (see [`crate::state::StateEntry`]).
    fn backend_state(&self, id: BackendId) -> (BackendState, bool);
    /// Whether there is a listener behind that port of a backend, at this very instant.
    fn listens(&self, backend: &BackendEntry, target: Port) -> Listening;
    /// The same of a task behind a virtual address, seen from the namespace of who asks for it.
    fn task_listens(&self, task: &VipMember, port: Port) -> Listening;
    /// Whether a backend has a connection with that client at that port.
    fn connection(&self, backend: &BackendEntry, target: Port, client: Addr, client_port: Port) -> Connection;
    /// Whether anything is left of a connection with that client, of a backend whose process has ended: an interface that leads to it,
    /// and a socket, which may have the last words still to say. Where sockets cannot be seen: the interface.
    fn is_left(&self, backend: &BackendEntry, target: Port, client: Addr, client_port: Port) -> bool;
    /// Whether its socket for that connection remembers a flow: steer brought it there, in this life or an earlier one.
    fn remembers(&self, backend: &BackendEntry, target: Port, client: Addr, client_port: Port) -> Remembers;
    /// What the socket that sent the packet at hand remembers of its flow, if it does.
    fn remembered(&self) -> Option<SocketEntry>;
    /// Whether that connection was there when the backend was first seen: before steer came, or by a version of steer whose tables
    /// cannot be read.
    fn is_foreign(&self, key: &ForeignKey) -> bool;
    /// Whether backends may be asked whose a connection is, once more: bounded per second.
    fn may_search(&self, now_secs: u32) -> bool;
    /// Whether the agent has heard from the swarm not long ago.
    fn is_lease_fresh(&self, now_secs: u32) -> bool;
    /// Tells the agent.
    fn notice(&self, kind: NoticeKind, id: BackendId, backend: &BackendEntry);
    /// Tells of a candidate that was looked at; only the program behind `steer explain` listens.
    fn trace(&self, id: BackendId, fit: Fit);
    /// Live flows of a backend.
    fn live(&self, id: BackendId) -> u64;
    fn endpoint(&self, key: &EndpointKey) -> Option<EndpointEntry>;

    /// The next turn of a service's round robin.
    fn turn(&self, id: ServiceId) -> u32;
    /// Lanes in use beyond the first, and the way to raise that number.
    fn extra_lanes(&self, id: ServiceId) -> u32;
    fn raise_extra_lanes(&self, id: ServiceId, lanes: u32);
    /// Since when new flows to a port of the service have found no backend.
    fn none_since(&self, id: ServiceId, port_index: u8) -> NoneSince;
    fn set_none_since(&self, id: ServiceId, port_index: u8, since: NoneSince);

    /// An entry where it lies; what it shows may change while it is looked at.
    fn flow(&self, table: Table, key: &FlowKey) -> Option<Self::Flow<'_>>;
    /// Inserts or replaces a new flow, together with the SYN of the packet at hand; `false` when the table took nothing.
    fn put_opening(&self, key: &FlowKey, entry: &FlowEntry) -> bool;
    /// Keeps the SYN of the packet at hand until a backend is ready.
    fn hold(&self, key: &FlowKey, entry: &FlowEntry);
    /// Keeps the SYN of a pending flow that was refused, likewise, and forgets the flow; `false` when that has happened to this very
    /// SYN [`MAX_REFUSALS`](crate::limits::MAX_REFUSALS) times already.
    fn hold_again(&self, key: &FlowKey) -> bool;
    /// Gives a pending flow, with the SYN that is kept of it, to another backend, once more refused by the one it had; `false`
    /// when it is not there any more.
    fn give_again(&self, key: &FlowKey, backend: BackendId, generation: u32, secs: u32) -> bool;
    /// Inserts or replaces; `false` when the table took nothing.
    fn put_flow(&self, table: Table, key: &FlowKey, entry: &FlowEntry) -> bool;
    /// Inserts an established flow where there is none; `false` where there is one, or the table took nothing.
    fn add_flow(&self, key: &FlowKey, entry: &FlowEntry) -> bool;
    /// Adds marks to an entry, in one atomic step, and notes the time and interface of the packet. Returns the marks after.
    fn mark_flow(&self, flow: &Self::Flow<'_>, marks: u64, secs: u32, uplink: u32) -> u64;
    /// `true` for exactly one caller per entry, however many try at once.
    fn remove_flow(&self, table: Table, key: &FlowKey) -> bool;

    /// The backend refused a flow, which goes on to another one.
    fn count_resteered(&self, id: BackendId);
    /// A flow was given to the backend.
    fn count_steered(&self, id: BackendId);
    /// A flow of the backend became live.
    fn count_established(&self, id: BackendId);
    /// A live flow of the backend ended.
    fn count_ended(&self, id: BackendId);
}
