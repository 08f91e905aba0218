//! Flows that are known again: their entry was evicted, or the table is a new one, and the sockets tell.

use core::ops::ControlFlow;

use crate::backend::BackendId;
use crate::flow::{FlowEntry, FlowKey, ForeignKey};
use crate::limits::{LANES, MAX_SCAN};
use crate::service::ServiceId;
use crate::steer::{NewFlow, Segment, entry_of, lookup};
use crate::tables::{Table, Tables};
use crate::tcp::{Direction, TcpState};
use crate::verdict::{Counter, Forward, Verdict};

/// A packet of a connection that is not known: its entry was evicted, or the table is a new one. The backends know: the one that
/// has the socket gets the packet, and the flow is known again. What Docker's own port mapping brought there before steer came
/// stays with Docker.
#[inline(never)]
pub(crate) fn recover<T: Tables>(tables: &T, segment: &Segment, key: &mut FlowKey, lost: &mut NewFlow) {
    let NewFlow { frontend, uplink, now, ref mut verdict, .. } = *lost;
    let Some(slots) = tables.slots(key.service) else { return };
    let mut found = BackendId(0);
    tables.each(slots.members_len.min(MAX_SCAN), |i| {
        let Some(id) = slots.member(i) else { return ControlFlow::Break(()) };
        if !has_socket(tables, segment, key.service, frontend.port_index, id) {
            return ControlFlow::Continue(());
        }
        found = id;
        ControlFlow::Break(())
    });
    let Some(backend) = tables.backend(found) else { return };
    let Some(target) = backend.target(frontend.port_index) else { return };
    let generation = backend.generation;
    let foreign = ForeignKey { client: segment.src, client_port: segment.src_port, backend: found, generation };
    if tables.is_foreign(&foreign) {
        return;
    }
    *verdict = Verdict::Forward(Forward { backend: found, target, reason: Counter::FollowRecovered });
    let state = TcpState::Established.advance(Direction::Forward, segment.flags);
    let entry = FlowEntry { marks: state.marks(), ..entry_of(segment, frontend, found, generation, uplink, now) };
    // One that ends with this very packet need not be known again.
    if state.is_live() && free_lane(tables, key) && tables.put_flow(Table::Flows, key, &entry) {
        tables.count_established(found);
    }
}

/// Whether a member of the service has a connection with the client's port.
#[inline(always)]
fn has_socket<T: Tables>(tables: &T, segment: &Segment, service: ServiceId, port_index: u8, id: BackendId) -> bool {
    let Some(backend) = tables.backend(id) else { return false };
    let Some(target) = backend.target(port_index) else { return false };
    backend.service == service && tables.is_connected(backend, target, segment.src, segment.src_port)
}

/// Leaves the key at a lane where nothing stands, if there is one.
#[inline(always)]
fn free_lane<T: Tables>(tables: &T, key: &mut FlowKey) -> bool {
    for lane in 0..LANES {
        key.lane = lane;
        if lookup(tables, key).is_none() {
            if u32::from(lane) > tables.extra_lanes(key.service) {
                tables.raise_extra_lanes(key.service, lane.into());
            }
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Port;
    use crate::fixtures::{ACK, CLIENT, FIN, RST, World, addr, to};
    use crate::verdict::Counter::{Follow, FollowRecovered, PassNoFlow};

    const PORT: u16 = 40_000;

    /// Backend 2 of three has a connection with the client's port, and nobody knows of it.
    fn forgotten() -> World {
        let mut world = World::with_backends(&[1, 2, 3]);
        world.sockets.insert((BackendId(2), addr(CLIENT), Port::new(PORT)));
        world
    }

    #[test]
    fn a_packet_of_a_forgotten_flow_goes_to_whoever_has_its_socket_and_the_flow_is_known_again() {
        let world = forgotten();
        assert_eq!(world.client(PORT, ACK, 1), to(2, FollowRecovered));
        assert_eq!((world.sizes(), world.live_of(2)), ((0, 1), 1));
        assert!(world.answer(2, PORT, ACK, 1).is_some(), "replies find their way again");
        assert_eq!(world.client(PORT, ACK, 1), to(2, Follow));
        world.close(2, PORT, 2);
        assert_eq!(world.live_of(2), 0);
    }

    #[test]
    fn one_that_ends_with_this_packet_need_not_be_known() {
        let world = forgotten();
        assert_eq!(world.client(PORT, RST, 1), to(2, FollowRecovered));
        assert_eq!((world.sizes(), world.live_of(2)), ((0, 0), 0));
        assert_eq!(world.client(PORT, FIN, 1), to(2, FollowRecovered), "half of it is open still");
        assert_eq!((world.sizes(), world.live_of(2)), ((0, 1), 1));
    }

    #[test]
    fn what_nobody_has_a_socket_for_passes() {
        let world = World::with_backends(&[1, 2]);
        assert_eq!(world.client(PORT, ACK, 1), Verdict::Pass(PassNoFlow));
        assert_eq!(world.sizes(), (0, 0));
    }

    #[test]
    fn what_was_there_before_steer_passes() {
        let mut world = forgotten();
        let (client, client_port) = (addr(CLIENT), Port::new(PORT));
        world.foreign.insert(ForeignKey { client, client_port, backend: BackendId(2), generation: 1 });
        assert_eq!(world.client(PORT, ACK, 1), Verdict::Pass(PassNoFlow));
        // The id has a new tenant, which is another matter.
        world.replace(2);
        assert_eq!(world.client(PORT, ACK, 1), to(2, FollowRecovered));
    }

    #[test]
    fn beyond_so_many_searches_a_second_packets_pass() {
        let mut world = forgotten();
        world.search_exhausted = true;
        assert_eq!(world.client(PORT, ACK, 1), Verdict::Pass(PassNoFlow));
    }
}
