//! Flows that are known again: their entry was evicted, or the table is a new one, and the sockets tell.
//!
//! A packet of the client's names its frontend, and the backends are asked which of them has its socket ([`recover`]). A reply
//! names no frontend, but it is the socket itself that sends it: what that must know of its flow is put into its storage when
//! its handshake is complete ([`remember`]), and read when a reply has no flow ([`restore`]).

use core::ops::ControlFlow;

use crate::addr::{Addr, Port};
use crate::backend::BackendId;
use crate::endpoint::{EndpointEntry, EndpointKey};
use crate::flow::{FlowEntry, FlowKey, ForeignKey, SocketEntry};
use crate::limits::{LANES, MAX_SCAN};
use crate::open::{NewFlow, entry_of};
use crate::reverse::find;
use crate::service::{FrontendKey, ServiceId};
use crate::steer::{Nanos, Segment, lookup};
use crate::tables::{Connection, Remembers, Tables};
use crate::tcp::{Direction, TcpFlags, TcpState};
use crate::verdict::{Counter, Forward, Reply, Returned, Verdict};

/// A packet of a connection that is not known: its entry was evicted, or the table is a new one. The backends know: the one that
/// has the socket gets the packet, and the flow is known again. What Docker's own port mapping brought there before steer came
/// stays with Docker: of what was open then, steer's is only what a socket remembers as such.
#[inline(never)]
pub(crate) fn recover<T: Tables>(tables: &T, segment: &Segment, key: &mut FlowKey, lost: &mut NewFlow) {
    let NewFlow { frontend, uplink, now, ref mut verdict, .. } = *lost;
    let Some(slots) = tables.slots(key.service) else { return };
    let mut found = BackendId::NONE;
    tables.each(slots.members_len.min(MAX_SCAN), |i| {
        let Some(id) = slots.member(i) else { return ControlFlow::Break(()) };
        match connection(tables, segment, key.service, frontend.port_index, id) {
            Connection::None => ControlFlow::Continue(()),
            // An app may have forgotten to close its half of an older one from the same port.
            Connection::Closing => {
                if found.is_none() {
                    found = id;
                }
                ControlFlow::Continue(())
            }
            Connection::Open => {
                found = id;
                ControlFlow::Break(())
            }
        }
    });
    let Some(backend) = tables.backend(found) else { return };
    let Some(target) = backend.target(frontend.port_index) else { return };
    let generation = backend.generation;
    let foreign = ForeignKey { client: segment.src, client_port: segment.src_port, backend: found, generation };
    if tables.is_foreign(&foreign) {
        match tables.remembers(backend, target, segment.src, segment.src_port) {
            Remembers::Yes => {}
            Remembers::No => return,
            Remembers::Unknown => {
                *verdict = Verdict::Pass(Counter::PassToTc);
                return;
            }
        }
    }
    *verdict = Verdict::Forward(Forward { backend: found, target, reason: Counter::FollowRecovered });
    let state = TcpState::Established.advance(Direction::Forward, segment.flags);
    let entry = FlowEntry { marks: state.marks(), ..entry_of(segment, frontend, found, generation, uplink, now) };
    // One that ends with this very packet need not be known again.
    if state.is_live() && free_lane(tables, key) && tables.add_flow(key, &entry) {
        tables.count_established(found);
    }
}

/// What a member of the service has of a connection with the client's port.
#[inline(always)]
fn connection<T: Tables>(
    tables: &T,
    segment: &Segment,
    service: ServiceId,
    port_index: u8,
    id: BackendId,
) -> Connection {
    let Some(backend) = tables.backend(id) else { return Connection::None };
    let Some(target) = backend.target(port_index) else { return Connection::None };
    if backend.service != service {
        return Connection::None;
    }
    tables.connection(backend, target, segment.src, segment.src_port)
}

/// What the socket at an endpoint must remember of its flow; `None`: it is none of steer's, or came in past it.
#[inline(always)]
pub fn remember<T: Tables>(tables: &T, at: &EndpointKey, client: Addr, client_port: Port) -> Option<SocketEntry> {
    let endpoint = tables.endpoint(at)?;
    let mut key = FlowKey::new(client, client_port, endpoint.service, at.proto);
    let (_, flow) = find(tables, &mut key, &endpoint)?;
    let FlowEntry { frontend, frontend_port, port_index, isn, uplink, .. } = *flow;
    Some(SocketEntry { frontend, frontend_port, port_index, pad: 0, isn, uplink })
}

/// A reply that has no flow.
pub(crate) struct Lost {
    /// Where it comes from.
    pub endpoint: EndpointEntry,
    pub flags: TcpFlags,
    pub now: Nanos,
}

/// A reply of a flow that is not known, by what its socket remembers. What passes steer by (a client that talks to the container
/// itself, connections from before steer) has a socket that remembers nothing.
#[inline(never)]
pub(crate) fn restore<T: Tables>(tables: &T, key: &mut FlowKey, lost: &Lost, returned: &mut Option<Returned>) {
    let Some(known) = tables.remembered() else { return };
    let Lost { endpoint, flags, now } = *lost;
    let SocketEntry { frontend, frontend_port, port_index, pad: _, isn, uplink } = known;
    let at = FrontendKey::new(frontend, frontend_port, key.proto);
    let port_index = port_index_now(tables, &at, endpoint.service, port_index);
    if !endpoint.serves(port_index) || is_reused(tables, key, frontend, frontend_port, now) {
        return;
    }
    let reason = Counter::ReplyRecovered;
    *returned = Some(Returned::Reply(Reply { frontend, frontend_port, uplink, reason }));
    let state = TcpState::Established.advance(Direction::Reverse, flags);
    let entry = FlowEntry {
        frontend,
        frontend_port,
        backend: endpoint.backend,
        generation: endpoint.generation,
        isn,
        uplink,
        last_seen: now.secs(),
        port_index,
        refusals: 0,
        refused: BackendId::NONE,
        marks: state.marks(),
    };
    if state.is_live() && free_lane(tables, key) && tables.add_flow(key, &entry) {
        tables.count_established(endpoint.backend);
    }
}

/// Which port of the service is behind a frontend: another version of steer may have counted them in another order than this one.
/// `otherwise` where that is not to be said by now. A function of its own: the verifier wants no register that one path alone fills.
#[inline(never)]
fn port_index_now<T: Tables>(tables: &T, at: &FrontendKey, service: ServiceId, otherwise: u8) -> u8 {
    let Some(now) = tables.frontend(at) else { return otherwise };
    if now.service == service { now.port_index } else { otherwise }
}

/// Whether the client's port has a newer flow to that frontend: what an older one's backend still sends must not be taken for its.
#[inline(always)]
fn is_reused<T: Tables>(tables: &T, key: &mut FlowKey, frontend: Addr, frontend_port: Port, now: Nanos) -> bool {
    for lane in 0..LANES {
        key.lane = lane;
        if let Some((_, flow)) = lookup(tables, key)
            && flow.is_for(frontend, frontend_port)
            && !flow.is_over(now.secs())
        {
            return true;
        }
    }
    false
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
    use crate::addr::TCP;
    use crate::fixtures::{
        ACK, CLIENT, FIN, HOST2, RST, SYN_ACK, UPLINK, WEB, World, addr, backend_addr, from_client, to,
    };
    use crate::service::ServiceEntry;
    use crate::state::BackendState;
    use crate::verdict::Counter::{Follow, FollowRecovered, PassMeshFlow, PassNoFlow, PassToTc, ReplyRecovered};

    const PORT: u16 = 40_000;

    /// Backend 2 of three has a connection with the client's port, and nobody knows of it.
    fn forgotten() -> World {
        let mut world = World::with_backends(&[1, 2, 3]);
        world.sockets.insert((BackendId(2), addr(CLIENT), Port::new(PORT)));
        world
    }

    #[test]
    fn what_is_left_of_an_older_connection_from_the_same_port_is_not_taken_for_the_one_that_is_open() {
        for (left, open) in [(1, 3), (3, 1)] {
            let mut world = World::with_backends(&[1, 2, 3]);
            let of = |backend: u16, port: u16| (BackendId(backend), addr(CLIENT), Port::new(port));
            world.half_closed.extend([of(left, PORT), of(left, PORT + 1)]);
            world.sockets.insert(of(open, PORT));
            assert_eq!(world.client(PORT, ACK, 1), to(open, FollowRecovered));
            assert_eq!(
                world.client(PORT + 1, FIN, 1),
                to(left, FollowRecovered),
                "where there is no other, it is that"
            );
        }
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
        let mut world = marked();
        assert_eq!(world.client(PORT, ACK, 1), Verdict::Pass(PassNoFlow));
        // The id has a new tenant, which is another matter.
        world.replace(2);
        assert_eq!(world.client(PORT, ACK, 1), to(2, FollowRecovered));
    }

    /// As an agent finds it that comes upon connections of a version whose tables it cannot read.
    fn marked() -> World {
        let mut world = forgotten();
        let (client, client_port) = (addr(CLIENT), Port::new(PORT));
        world.foreign.insert(ForeignKey { client, client_port, backend: BackendId(2), generation: 1 });
        world
    }

    #[test]
    fn what_a_version_with_other_tables_steered_is_steered_on_if_its_socket_remembers() {
        let mut world = marked();
        world.remembers = Some(Remembers::Yes);
        assert_eq!(world.client(PORT, ACK, 1), to(2, FollowRecovered));
        assert_eq!(world.client(PORT, ACK, 1), to(2, Follow));
    }

    #[test]
    fn where_nobody_can_look_into_the_socket_tc_has_the_last_word() {
        let mut world = marked();
        world.services.get_mut(&WEB).unwrap().flags = ServiceEntry::MESH;
        world.remembers = Some(Remembers::Unknown);
        assert_eq!(world.client(PORT, ACK, 1), Verdict::Pass(PassToTc));
        assert_eq!(world.sizes(), (0, 0), "nothing is decided yet, neither that it is the mesh's");
        world.remembers = Some(Remembers::No);
        assert_eq!(world.client(PORT, ACK, 1), Verdict::Pass(PassMeshFlow));
        assert_eq!(world.client(PORT, ACK, 1), Verdict::Pass(PassMeshFlow));
    }

    #[test]
    fn beyond_so_many_searches_a_second_packets_pass() {
        let mut world = forgotten();
        world.search_exhausted = true;
        assert_eq!(world.client(PORT, ACK, 1), Verdict::Pass(PassNoFlow));
    }

    /// The socket of a backend remembers what it can of its connection with the client's port.
    fn remembers(world: &World, id: u16) -> Option<SocketEntry> {
        let at = EndpointKey::new(backend_addr(id), 100 + u32::from(id), Port::new(5000), TCP);
        let entry = remember(world, &at, addr(CLIENT), Port::new(PORT));
        *world.remembered.borrow_mut() = entry;
        entry
    }

    fn loses_all(world: &World) {
        world.flows.borrow_mut().clear();
        world.pending.borrow_mut().clear();
        // As the agent's sweep finds it.
        world.live.borrow_mut().clear();
    }

    #[test]
    fn a_reply_of_a_forgotten_flow_comes_from_the_frontend_its_socket_remembers_and_the_flow_is_known_again() {
        let world = World::with_backends(&[1, 2, 3]);
        let id = world.connect(PORT, 7, 1);
        let known = remembers(&world, id).expect("it has a flow");
        loses_all(&world);
        let reply = world.answer(id, PORT, ACK, 2).expect("it is a reply");
        assert_eq!((reply.frontend, reply.uplink, reply.reason), (known.frontend, UPLINK, ReplyRecovered));
        assert_eq!((world.sizes(), world.live_of(id)), ((0, 1), 1));
        assert_eq!(world.client(PORT, ACK, 2), to(id, Follow));
        assert_eq!(world.answer(id, PORT, ACK, 2).map(|reply| reply.reason), Some(Counter::Reply));
        world.close(id, PORT, 3);
        assert_eq!(world.live_of(id), 0);
    }

    #[test]
    fn a_socket_remembers_the_very_address_its_client_knows() {
        let world = World::with_backends(&[1]);
        let second = |flags| Segment { dst: addr(HOST2), ..from_client(PORT, flags, 7) };
        assert_eq!(world.send(second(TcpFlags::SYN), 1), to(1, Counter::SteerNew));
        assert!(world.answer(1, PORT, SYN_ACK, 1).is_some());
        assert_eq!(world.send(second(ACK), 1), to(1, Follow));
        assert_eq!(remembers(&world, 1).map(|entry| entry.frontend), Some(addr(HOST2)));
        loses_all(&world);
        assert_eq!(world.answer(1, PORT, ACK, 2).map(|reply| reply.frontend), Some(addr(HOST2)));
    }

    #[test]
    fn one_last_reply_need_not_be_known() {
        let world = World::with_backends(&[1]);
        world.connect(PORT, 7, 1);
        remembers(&world, 1);
        loses_all(&world);
        assert_eq!(world.answer(1, PORT, RST, 2).map(|reply| reply.reason), Some(ReplyRecovered));
        assert_eq!((world.sizes(), world.live_of(1)), ((0, 0), 0));
    }

    #[test]
    fn who_talks_to_a_container_itself_is_left_alone() {
        let world = World::with_backends(&[1]);
        assert_eq!(remembers(&world, 1), None, "no flow, nothing to remember");
        assert_eq!(world.returned(1, PORT, SYN_ACK, 1), None);
        assert_eq!(world.returned(1, PORT, ACK, 1), None);
        assert_eq!(world.sizes(), (0, 0));
    }

    #[test]
    fn a_port_that_is_served_no_more_has_no_replies() {
        let mut world = World::with_backends(&[1]);
        world.connect(PORT, 7, 1);
        let known = remembers(&world, 1).expect("it has a flow");
        let frontends = core::mem::take(&mut world.frontends);
        *world.remembered.borrow_mut() = Some(SocketEntry { port_index: 3, ..known });
        loses_all(&world);
        assert_eq!(world.returned(1, PORT, ACK, 2), None);
        world.frontends = frontends;
        world.set(1, BackendState::Draining);
        *world.remembered.borrow_mut() = Some(known);
        assert!(world.answer(1, PORT, ACK, 2).is_some(), "a draining one keeps its flows");
    }

    #[test]
    fn an_agent_may_count_the_ports_of_a_service_in_another_order_than_the_one_before() {
        let world = World::with_backends(&[1]);
        world.connect(PORT, 7, 1);
        let known = remembers(&world, 1).expect("it has a flow");
        *world.remembered.borrow_mut() = Some(SocketEntry { port_index: 3, ..known });
        loses_all(&world);
        assert!(world.answer(1, PORT, ACK, 2).is_some(), "its frontend says which it is by now");
        assert_eq!(world.client(PORT, ACK, 2), to(1, Follow));
    }

    #[test]
    fn what_an_older_connection_s_backend_still_sends_is_not_taken_for_a_newer_one_s() {
        let mut world = World::with_backends(&[1, 2]);
        let old = world.connect(PORT, 7, 1);
        remembers(&world, old);
        loses_all(&world);
        world.set(old, BackendState::Draining);
        let new = world.connect(PORT, 8, 2);
        assert_ne!(new, old);
        assert_eq!(world.returned(old, PORT, ACK, 3), None);
        assert_eq!((world.sizes(), world.live_of(old), world.live_of(new)), ((0, 1), 0, 1));
    }

    #[test]
    fn of_a_reply_and_a_packet_at_the_same_moment_one_counts() {
        let world = World::with_backends(&[1]);
        world.connect(PORT, 7, 1);
        remembers(&world, 1);
        let key = *world.flows.borrow().keys().next().unwrap();
        let entry = world.flows.borrow()[&key];
        loses_all(&world);
        assert!(world.add_flow(&key, &entry));
        assert!(!world.add_flow(&key, &entry));
    }
}
