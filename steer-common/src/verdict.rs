//! What comes out of a decision, and the counter of each reason.

use crate::addr::{Addr, Port};
use crate::backend::BackendId;
use crate::flow::FlowKey;

/// What to do with a packet from a client.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a verdict that is not carried out loses the packet's fate"]
pub enum Verdict {
    /// Leave it to the kernel, untouched.
    Pass(Counter),
    /// Send it to that backend's container port.
    Forward(Forward),
    /// Drop it.
    Drop(Counter),
    /// Answer it with a reset.
    Reset(Counter),
}

/// What to do with a packet that came out of a container and is part of a steered flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use = "a verdict that is not carried out loses the packet's fate"]
pub enum Returned {
    /// Send it to the client.
    Reply(Reply),
    /// It is a refusal that the client need not see: drop it, and send the client's SYN to another backend.
    Resteer {
        /// Of the flow: where its SYN is kept.
        key: FlowKey,
        forward: Forward,
    },
    /// It is a refusal that the client need not see: drop it; its SYN waits.
    Drop(Counter),
}

/// Where a packet from a client goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Forward {
    pub backend: BackendId,
    /// The container's port.
    pub target: Port,
    /// Why: one of the `Steer…` counters, or [`Counter::Follow`].
    pub reason: Counter,
}

/// Where a reply goes, and whom it must come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Reply {
    /// Source the client expects.
    pub frontend: Addr,
    pub frontend_port: Port,
    /// Interface the client's packets come in on.
    pub uplink: u32,
    /// Why: [`Counter::Reply`] or [`Counter::ReplyRecovered`].
    pub reason: Counter,
}

macro_rules! counters {
    ($($(#[doc = $doc:literal])+ $name:ident = $label:literal),+ $(,)?) => {
        /// Index into the per-CPU array `COUNTERS`: every pass, steer, follow and drop has its reason.
        #[derive(Clone, Copy, PartialEq, Eq, Debug, Hash, PartialOrd, Ord)]
        #[repr(u32)]
        pub enum Counter {
            $($(#[doc = $doc])+ $name),+
        }

        impl Counter {
            /// Every counter, in index order.
            pub const ALL: &[Self] = &[$(Self::$name),+];

            /// The word used in output.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $label),+
                }
            }

            /// What it counts, for help texts.
            pub const fn help(self) -> &'static str {
                match self {
                    $(Self::$name => concat!($($doc),+)),+
                }
            }
        }
    };
}

counters! {
    /// Passed: not for a frontend.
    PassNotFrontend = "pass_not_frontend",
    /// Passed: for a frontend, but no flow of ours (open before steer attached, or long over).
    PassNoFlow = "pass_no_flow",
    /// Passed: a new flow to a frontend that is closed (steer is being detached, or the host has lost that address).
    PassClosed = "pass_closed",
    /// Answered with a reset: a new flow, no backend, and the time to hold is over.
    ResetNoBackend = "reset_no_backend",
    /// Answered with a reset: the backend of the flow is gone.
    ResetGone = "reset_gone",
    /// Passed: a TCP packet that is an IP fragment or has IP options, to whatever address.
    PassUnparsed = "pass_unparsed",
    /// Passed by XDP: the backend is reached through tc (its veth takes no frames from XDP yet).
    PassToTc = "pass_to_tc",
    /// Steered: a new flow.
    SteerNew = "steer_new",
    /// Steered: a SYN again, to the same backend.
    SteerRetransmit = "steer_retransmit",
    /// Steered: a SYN again, to another backend since the first is no longer ready.
    SteerAgain = "steer_again",
    /// Steered: a client port used again for a new connection.
    SteerReuse = "steer_reuse",
    /// Steered: a SYN that a backend refused, to another one.
    SteerRefused = "steer_refused",
    /// Followed: a packet of a flow that was not known, to the backend that has its socket; the flow is known again.
    FollowRecovered = "follow_recovered",
    /// Followed: a packet of a known flow.
    Follow = "follow",
    /// Sent back: a reply of a backend.
    Reply = "reply",
    /// Sent back: a reply of a flow that was not known, whose socket remembers it; the flow is known again.
    ReplyRecovered = "reply_recovered",
    /// Delivered: an ICMP error about a flow.
    FollowIcmp = "follow_icmp",
    /// Held: a new flow, and no backend is ready. Its SYN is sent again as soon as one is.
    DropHold = "drop_hold",
    /// Held: a backend refused a new flow, and no other is ready. Its SYN is sent again as soon as one is.
    DropRefused = "drop_refused",
    /// Dropped: the client is not on the service's allow list.
    DropNotAllowed = "drop_not_allowed",
    /// Dropped: the client uses one port for more frontends of the service at once than there are lanes, or free backends.
    DropLanes = "drop_lanes",
    /// Dropped: the flow table took no entry.
    DropTableFull = "drop_table_full",
    /// Dropped: the packet could not be rewritten.
    DropRewrite = "drop_rewrite",
    /// Connections of this host's own sockets, steered at connect.
    SteerLocal = "steer_local",
    /// Connections of this host's own sockets left alone: no backend was ready.
    PassLocalNoBackend = "pass_local_no_backend",
    /// Passed: a new flow of a Swarm service that has no ready task on this node: the routing mesh takes it.
    PassMesh = "pass_mesh",
    /// Passed: a packet of a flow that the routing mesh has.
    PassMeshFlow = "pass_mesh_flow",
    /// Connections to a Swarm service's virtual address, steered to a task at connect.
    SteerVip = "steer_vip",
    /// Connections to a Swarm service's virtual address, left to Swarm: no task was ready.
    PassVip = "pass_vip",
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn counters_are_numbered_in_order_and_named_apart() {
        let mut names = HashSet::new();
        for (index, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, index);
            assert!(names.insert(counter.name()), "{} twice", counter.name());
        }
    }
}
