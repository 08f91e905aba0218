//! Backend to client: the way back of a steered flow.

use crate::backend::EndpointKey;
use crate::flow::FlowKey;
use crate::limits::LANES;
use crate::steer::{Nanos, Segment, lookup, touch};
use crate::tables::Tables;
use crate::tcp::Direction;
use crate::verdict::Reply;

/// Where a packet that came out of a container goes, if it is a reply of a steered flow; `None` = leave it alone.
///
/// `ifindex` is the host end of the veth the packet came in on.
#[inline(always)]
pub fn reverse<T: Tables>(tables: &T, segment: &Segment, ifindex: u32, now: Nanos) -> Option<Reply> {
    let endpoint = tables.endpoint(&EndpointKey::new(segment.src, ifindex, segment.src_port, segment.proto))?;
    let mut key = FlowKey {
        client: segment.dst,
        client_port: segment.dst_port,
        service: endpoint.service,
        proto: segment.proto,
        lane: 0,
        pad: 0,
    };
    let extra_lanes = tables.extra_lanes(endpoint.service);
    for lane in 0..LANES {
        if u32::from(lane) > extra_lanes {
            break;
        }
        key.lane = lane;
        let Some((table, flow)) = lookup(tables, &key) else { continue };
        let ours = flow.backend == endpoint.backend
            && flow.generation == endpoint.generation
            && endpoint.serves(flow.port_index as u8);
        if ours {
            let reply = Reply { frontend: flow.frontend, frontend_port: flow.frontend_port, uplink: flow.uplink };
            let state = flow.tcp().advance(Direction::Reverse, segment.flags);
            touch(tables, &key, table, &flow, state, reply.uplink, now);
            return Some(reply);
        }
    }
    None
}

#[cfg(test)]
#[path = "reverse_tests.rs"]
mod tests;
