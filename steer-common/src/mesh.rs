//! Flows of Swarm's routing mesh, behind frontends that steer shares with it.
//!
//! The mesh has what was open when steer attached, and what came while no task of this node was ready. Such a flow stands in
//! `PENDING`, with no backend, for as long as its packets come: so that a retransmitted SYN opens no second connection here, and so
//! that the backends are asked once for a connection and not for each of its packets.
//!
//! | packet | flow entry | verdict |
//! |---|---|---|
//! | SYN | none, and no backend is ready | pass; the flow is the mesh's. Where every task of the service is on this node, the SYN waits |
//! | other | none, and no backend has its socket | pass; the flow is the mesh's |
//! | SYN, the same sequence number, or the flow is established | the mesh's | pass, whoever is ready by now |
//! | SYN, another sequence number | the mesh's, opening, half-closed or reset | steer anew |
//! | other | the mesh's | pass |

use crate::backend::BackendId;
use crate::flow::{FlowEntry, FlowKey};
use crate::open::{NewFlow, end_old, entry_of};
use crate::service::ServiceEntry;
use crate::steer::{Nanos, Segment};
use crate::tables::{Table, Tables};
use crate::tcp::{Direction, TcpFlags, TcpState};
use crate::verdict::{Counter, Verdict};

/// A new flow is the mesh's, and the packets that follow are too: a retransmitted SYN must not open a second connection here.
/// Should the table take nothing, it passes all the same.
#[inline(always)]
pub(crate) fn leave<T: Tables>(tables: &T, key: &FlowKey, entry: &FlowEntry, may_replace: bool) {
    if !tables.put_flow(Table::Pending, key, entry) {
        return;
    }
    if may_replace {
        end_old(tables, key);
    }
    if u32::from(key.lane) > tables.extra_lanes(key.service) {
        tables.raise_extra_lanes(key.service, key.lane.into());
    }
}

/// A packet of a connection that no backend knows: where there is a mesh, it has it, since before steer came or since its entry was
/// evicted. A function of its own, as [`crate::recover`]'s is.
#[inline(never)]
pub(crate) fn leave_open<T: Tables>(tables: &T, segment: &Segment, key: &FlowKey, new: &mut NewFlow) {
    let NewFlow { frontend, uplink, now, ref mut verdict, .. } = *new;
    if segment.flags.has(TcpFlags::RST) || !tables.service(frontend.service).is_some_and(ServiceEntry::has_mesh) {
        return;
    }
    let state = TcpState::Established.advance(Direction::Forward, segment.flags);
    let entry = FlowEntry { marks: state.marks(), ..entry_of(segment, frontend, BackendId::NONE, 0, uplink, now) };
    leave(tables, key, &entry, false);
    *verdict = Verdict::Pass(Counter::PassMeshFlow);
}

/// A packet of a flow that the mesh has. Only the client's direction is seen from here: an acknowledgement means that there was
/// something to acknowledge.
#[inline(always)]
pub(crate) fn pass_on<T: Tables>(
    tables: &T,
    segment: &Segment,
    flow: &T::Flow<'_>,
    uplink: u32,
    now: Nanos,
) -> Verdict {
    let state = match flow.tcp() {
        TcpState::SynSent => TcpState::SynReceived,
        state => state,
    };
    let marks = state.advance(Direction::Forward, segment.flags).marks();
    if flow.marks | marks != flow.marks || now.secs() != flow.last_seen {
        tables.mark_flow(flow, marks, now.secs(), uplink);
    }
    Verdict::Pass(Counter::PassMeshFlow)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Port;
    use crate::fixtures::{ACK, CLIENT, FIN, HOST2, RST, WEB, World, addr, backend_of, from_client, to};
    use crate::limits::{ESTABLISHED_SECS, PENDING_SECS};
    use crate::state::BackendState::{Draining, Ready, Unready};
    use crate::verdict::Counter::{DropHold, FollowRecovered, PassMesh, PassMeshFlow, SteerNew, SteerReuse};

    const PORT: u16 = 40_000;
    const TO_MESH: Verdict = Verdict::Pass(PassMesh);
    const OF_MESH: Verdict = Verdict::Pass(PassMeshFlow);

    /// A service that Swarm publishes too, with two tasks here.
    fn swarm() -> World {
        let mut world = World::with_backends(&[1, 2]);
        world.services.get_mut(&WEB).unwrap().flags = ServiceEntry::MESH;
        world
    }

    /// The same, and neither task is ready.
    fn nobody() -> World {
        let mut world = swarm();
        [1, 2].into_iter().for_each(|id| world.set(id, Unready));
        world
    }

    #[test]
    fn whoever_is_ready_here_gets_it() {
        assert_eq!(backend_of(swarm().syn(PORT, 1, 1)), 1);
    }

    #[test]
    fn nobody_ready_here_is_nothing_to_wait_for() {
        let mut world = nobody();
        world.services.get_mut(&WEB).unwrap().hold_ns = 10_000_000_000;
        assert_eq!(world.syn(PORT, 1, 1), TO_MESH);
        assert!(world.held.borrow().is_empty());
        assert_eq!(world.none_since_secs(), 0);
    }

    #[test]
    fn where_the_mesh_has_nobody_else_clients_wait() {
        let mut world = nobody();
        world.services.get_mut(&WEB).unwrap().flags |= ServiceEntry::ALL_HERE;
        assert_eq!(world.syn(PORT, 1, 1), TO_MESH, "steer.hold=0: nobody is to wait");
        world.services.get_mut(&WEB).unwrap().hold_ns = 10_000_000_000;
        assert_eq!(world.syn(PORT + 1, 1, 1), Verdict::Drop(DropHold));
        world.set(1, Draining);
        assert_eq!(
            world.syn(PORT + 1, 1, 2),
            Verdict::Drop(DropHold),
            "who is to end gets nothing new, however it serves on"
        );
        assert_eq!(world.client(PORT + 2, ACK, 2), OF_MESH, "what is open through the mesh stays there");
        world.set(2, Ready);
        assert_eq!(world.syn(PORT + 1, 1, 3), to(2, SteerNew));
        world.set(2, Unready);
        assert_eq!(world.syn(PORT + 3, 1, 4), Verdict::Drop(DropHold));
        assert_eq!(world.syn(PORT + 3, 1, 14), TO_MESH, "not for longer than the service says");
        world.lease_over = true;
        assert_eq!(world.syn(PORT + 4, 1, 15), TO_MESH, "who knows where they are by now");
        world.lease_over = false;
        world.services.get_mut(&WEB).unwrap().flags = ServiceEntry::MESH;
        assert_eq!(world.syn(PORT + 5, 1, 15), TO_MESH, "there is one on another node now");
    }

    #[test]
    fn who_drains_gets_nothing_new() {
        let mut world = nobody();
        world.set(1, Draining);
        assert_eq!(world.syn(PORT, 1, 1), TO_MESH);
        world.set(2, Ready);
        assert_eq!(world.syn(PORT + 1, 1, 1), to(2, SteerNew));
    }

    #[test]
    fn a_retransmitted_syn_stays_with_the_mesh() {
        let mut world = nobody();
        assert_eq!(world.syn(PORT, 7, 1), TO_MESH);
        world.set(1, Ready);
        assert_eq!(world.syn(PORT, 7, 2), TO_MESH, "the mesh may have answered the first one");
        assert_eq!(world.client(PORT, ACK, 2), OF_MESH);
        assert_eq!(world.syn(PORT, 8, 3), TO_MESH, "established: a forged SYN must not move it");
        assert_eq!(world.client(PORT, FIN, 4), OF_MESH);
        assert_eq!(world.syn(PORT, 9, 5), to(1, SteerReuse));
    }

    #[test]
    fn a_connection_that_the_mesh_refused_is_tried_here_next_time() {
        let mut world = nobody();
        assert_eq!(world.syn(PORT, 7, 1), TO_MESH);
        world.set(1, Ready);
        assert_eq!(world.syn(PORT, 8, 2), to(1, SteerReuse));
    }

    #[test]
    fn a_syn_that_nobody_answered_for_a_minute_is_a_new_one() {
        let mut world = nobody();
        assert_eq!(world.syn(PORT, 7, 1), TO_MESH);
        world.set(1, Ready);
        assert!(matches!(world.syn(PORT, 7, 2 + PENDING_SECS), Verdict::Forward(_)));
    }

    #[test]
    fn what_was_open_when_steer_came_is_asked_about_once() {
        let mut world = swarm();
        assert_eq!(world.client(PORT, ACK, 1), OF_MESH);
        // From here on the backends are not asked: they would be found.
        world.sockets.insert((BackendId(2), addr(CLIENT), Port::new(PORT)));
        assert_eq!(world.client(PORT, ACK, ESTABLISHED_SECS), OF_MESH);
        assert_eq!(world.client(PORT, ACK, 2 * ESTABLISHED_SECS), OF_MESH);
        assert_eq!(world.sizes(), (1, 0), "and takes no place of a flow that is steered");
        assert_eq!(world.syn(PORT, 9, 2 * ESTABLISHED_SECS), TO_MESH, "it is open");
        assert_eq!(world.client(PORT, RST, 2 * ESTABLISHED_SECS), OF_MESH);
        assert_eq!(backend_of(world.syn(PORT, 9, 2 * ESTABLISHED_SECS)), 1);
    }

    #[test]
    fn a_flow_of_ours_that_was_forgotten_is_recovered_all_the_same() {
        let mut world = swarm();
        world.sockets.insert((BackendId(2), addr(CLIENT), Port::new(PORT)));
        assert_eq!(world.client(PORT, ACK, 1), to(2, FollowRecovered));
    }

    #[test]
    fn a_client_port_that_was_steered_before_may_go_to_the_mesh() {
        let mut world = swarm();
        let id = world.connect(PORT, 1, 1);
        assert_eq!(world.client(PORT, FIN, 2), to(id, crate::verdict::Counter::Follow));
        [1, 2].into_iter().for_each(|id| world.set(id, Unready));
        assert_eq!(world.syn(PORT, 9, 3), TO_MESH);
        assert_eq!(world.client(PORT, ACK, 3), OF_MESH, "the old entry is gone");
        assert_eq!((world.live_of(id), world.sizes()), (0, (1, 0)));
    }

    #[test]
    fn a_full_table_lets_it_pass() {
        let mut world = nobody();
        world.full = Some(Table::Pending);
        assert_eq!(world.syn(PORT, 1, 1), TO_MESH);
        assert_eq!(world.client(PORT, ACK, 1), OF_MESH);
        assert_eq!(world.sizes(), (0, 0));
    }

    #[test]
    fn two_flows_of_one_client_port_have_a_lane_each_whoever_has_them() {
        let mut world = nobody();
        world.publish(HOST2, 9000, 0, 0);
        let second = |flags| Segment { dst: addr(HOST2), ..from_client(PORT, flags, 2) };
        assert_eq!(world.syn(PORT, 1, 1), TO_MESH);
        assert_eq!(world.send(second(TcpFlags::SYN), 1), TO_MESH);
        assert_eq!(world.sizes(), (2, 0));
        [1, 2].into_iter().for_each(|id| world.set(id, Ready));
        // Neither has taken the other's place, and both are found again.
        assert_eq!(world.syn(PORT, 1, 2), TO_MESH);
        assert_eq!(world.send(second(TcpFlags::SYN), 2), TO_MESH);
        assert_eq!(world.client(PORT, ACK, 2), OF_MESH);
        assert_eq!(world.send(second(ACK), 2), OF_MESH);
    }
}
