//! The core of steer: every type that crosses the kernel border, and every decision taken about a packet.
//!
//! The same source runs in three places: in the kernel (`steer-ebpf`), in the agent (`steer`), and in plain unit tests. So it
//! knows no clock, no map type and no packet pointer: time is an argument, tables are the [`tables::Tables`] trait, a packet
//! is a [`steer::Segment`].
//!
//! | module | holds |
//! |---|---|
//! | [`addr`] | addresses and ports, in network byte order; the only place that converts |
//! | [`limits`] | every bound, every map's size, the ABI version |
//! | [`service`] | frontends and services: what a client connects to |
//! | [`slot`] | the slot table: which backend takes the next flow |
//! | [`backend`] | backends: where they are |
//! | [`state`] | the state of a backend |
//! | [`edge`] | what the kernel sees happen to its processes |
//! | [`notice`] | what the kernel tells the agent |
//! | [`endpoint`] | how a reply finds its backend |
//! | [`flow`] | the record of one client connection |
//! | [`tcp`] | flags and the state machine of a steered connection |
//! | [`tables`] | the lookups and writes a decision needs |
//! | [`pick`] | which backend takes a new flow |
//! | [`open`] | how a new flow begins |
//! | [`mod@steer`] | client to backend: pass, steer or follow |
//! | [`recover`] | flows that were forgotten: the sockets tell |
//! | `mesh` | flows that Swarm's routing mesh has |
//! | [`reverse`] | backend to client: the way back |
//! | [`vip`] | virtual addresses of Swarm services, inside overlay networks |
//! | [`verdict`] | what comes out, and the counter of each reason |
//! | [`csum`] | incremental checksums (RFC 1624) |
//! | [`hash`] | the flow hash |

#![no_std]

#[cfg(test)]
extern crate std;

pub mod addr;
pub mod backend;
pub mod csum;
pub mod edge;
pub mod endpoint;
pub mod flow;
pub mod hash;
pub mod limits;
mod mesh;
pub mod notice;
pub mod open;
pub mod pick;
pub mod recover;
pub mod reverse;
pub mod service;
pub mod slot;
pub mod state;
pub mod steer;
pub mod tables;
pub mod tcp;
pub mod verdict;
pub mod vip;

#[cfg(test)]
mod fixtures;

/// Marks the map records as plain bytes for user space: `repr(C)`, integers only, no implicit padding.
#[cfg(feature = "user")]
macro_rules! pod {
    ($($record:ty),+ $(,)?) => {
        $(
            // SAFETY: the record is `repr(C)`, `Copy`, and made of integers with explicit padding (its size is asserted
            // beside its definition), so every byte pattern is a valid value and no byte is uninitialised.
            unsafe impl aya::Pod for $record {}
        )+
    };
}

#[cfg(feature = "user")]
pod!(
    addr::Addr,
    addr::Port,
    backend::BackendEntry,
    backend::BackendInfo,
    backend::BackendStats,
    edge::EdgeEntry,
    endpoint::EndpointEntry,
    endpoint::EndpointKey,
    edge::InitEntry,
    state::StateEntry,
    flow::FlowEntry,
    flow::FlowKey,
    flow::ForeignKey,
    flow::LocalFlow,
    flow::PendingEntry,
    flow::SocketEntry,
    service::AllowKey,
    service::FrontendEntry,
    service::FrontendKey,
    service::ServiceEntry,
    service::ServiceInfo,
    service::ServiceState,
    vip::VipEntry,
    vip::VipKey,
    slot::SlotTable,
);
