//! The lookups and writes a decision needs.
//!
//! Two implementations: the BPF maps (`steer-ebpf/src/maps.rs`) and hash maps (`fixtures.rs`, tests). Writes take `&self`, as
//! maps do: other CPUs write at the same time, and each method is one atomic step of its own.

use core::ops::Deref;

use crate::backend::{BackendEntry, BackendId, BackendState, EndpointEntry, EndpointKey};
use crate::flow::{FlowEntry, FlowKey};
use crate::service::{AllowKey, FrontendEntry, FrontendKey, ServiceEntry, ServiceId};
use crate::slot::SlotTable;

/// Which table holds a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Table {
    /// Opening or closing: bounded, may be thrashed by a SYN flood.
    Pending,
    /// Established.
    Flows,
}

/// When new flows of a service found no backend; all zero while they do find one.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NoneSince {
    /// The first of them, in nanoseconds since boot.
    pub first: u64,
    /// The last of them, in seconds since boot.
    pub last_secs: u32,
}

/// The maps, as a decision sees them.
pub trait Tables {
    /// A flow entry in its table. Not copied out: the kernel's stack is small.
    type Flow<'a>: Deref<Target = FlowEntry>
    where
        Self: 'a;

    fn frontend(&self, key: &FrontendKey) -> Option<FrontendEntry>;
    fn service(&self, id: ServiceId) -> Option<&ServiceEntry>;
    /// Whether a prefix of the allow list covers the key.
    fn is_allowed(&self, key: &AllowKey) -> bool;
    fn slots(&self, id: ServiceId) -> Option<&SlotTable>;

    fn backend(&self, id: BackendId) -> Option<&BackendEntry>;
    fn backend_state(&self, id: BackendId) -> BackendState;
    /// Live flows of a backend.
    fn live(&self, id: BackendId) -> u64;
    fn endpoint(&self, key: &EndpointKey) -> Option<EndpointEntry>;

    /// The next turn of a service's round robin.
    fn turn(&self, id: ServiceId) -> u32;
    /// Lanes in use beyond the first, and the way to raise that number.
    fn extra_lanes(&self, id: ServiceId) -> u32;
    fn raise_extra_lanes(&self, id: ServiceId, lanes: u32);
    /// Since when new flows of the service have found no backend.
    fn none_since(&self, id: ServiceId) -> NoneSince;
    fn set_none_since(&self, id: ServiceId, since: NoneSince);

    /// An entry where it lies; what it shows may change while it is looked at.
    fn flow(&self, table: Table, key: &FlowKey) -> Option<Self::Flow<'_>>;
    /// Inserts or replaces; `false` when the table took nothing.
    fn put_flow(&self, table: Table, key: &FlowKey, entry: &FlowEntry) -> bool;
    /// Adds marks to an entry, in one atomic step, and notes the time and interface of the packet. Returns the marks after.
    fn mark_flow(&self, flow: &Self::Flow<'_>, marks: u64, secs: u32, uplink: u32) -> u64;
    /// `true` for exactly one caller per entry, however many try at once.
    fn remove_flow(&self, table: Table, key: &FlowKey) -> bool;

    /// A flow was given to the backend.
    fn count_steered(&self, id: BackendId);
    /// A flow of the backend became live.
    fn count_established(&self, id: BackendId);
    /// A live flow of the backend ended.
    fn count_ended(&self, id: BackendId);
}
