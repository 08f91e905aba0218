//! A test for every row of the table in `steer`, and for what balancers are known to get wrong.
//!
//! Cilium's bugs named here: #19451 (traffic of a terminating backend cut), #20382 and #20407 (a client's port used again
//! follows the entry of the connection before it, to a backend that is going or gone).

mod gone;

use rstest::rstest;

use super::*;
use crate::fixtures::{
    ACK, CLIENT, FIN, HOST, RST, SYN, SYN_ACK, UPLINK, WEB, World, addr, backend_of, from_client, to,
};
use crate::limits::{ESTABLISHED_SECS, PENDING_SECS};
use crate::service::{AllowKey, ServiceEntry};
use crate::state::BackendState;
use crate::verdict::Counter::*;

fn pass(reason: Counter) -> Verdict {
    Verdict::Pass(reason)
}

fn drop(reason: Counter) -> Verdict {
    Verdict::Drop(reason)
}

// Not ours.

#[rstest]
#[case::another_port(Segment { dst_port: Port::new(22), ..from_client(40_000, SYN, 1) })]
#[case::another_address(Segment { dst: addr("10.0.0.77"), ..from_client(40_000, SYN, 1) })]
#[case::another_protocol(Segment { proto: crate::addr::UDP, ..from_client(40_000, SYN, 1) })]
fn what_is_for_no_frontend_passes_and_leaves_no_trace(#[case] segment: Segment) {
    let world = World::with_backends(&[1]);
    assert_eq!(world.send(segment, 1), pass(PassNotFrontend));
    assert_eq!(world.sizes(), (0, 0));
}

#[rstest]
#[case(ACK)]
#[case(FIN)]
#[case(RST)]
#[case(SYN_ACK)]
#[case(SYN.with(RST))]
fn what_opens_nothing_and_has_no_flow_passes(#[case] flags: TcpFlags) {
    let world = World::with_backends(&[1]);
    assert_eq!(world.client(40_000, flags, 1), pass(PassNoFlow));
    assert_eq!(world.sizes(), (0, 0));
}

#[test]
fn a_loopback_frontend_is_not_for_packets() {
    let mut world = World::with_backends(&[1]);
    world.publish("127.0.0.1", 9000, 0, FrontendEntry::LOOPBACK);
    let martian = Segment { dst: addr("127.0.0.1"), ..from_client(40_000, SYN, 1) };
    assert_eq!(world.send(martian, 1), pass(PassNotFrontend));
    assert_eq!(world.sizes(), (0, 0));
}

#[test]
fn a_frontend_whose_service_is_not_there_passes() {
    let mut world = World::with_backends(&[1]);
    world.services.clear();
    assert_eq!(world.syn(40_000, 1, 1), pass(PassNotFrontend));
}

// SYN.

#[test]
fn a_new_flow_is_steered_and_remembered() {
    let world = World::with_backends(&[1]);
    assert_eq!(world.syn(40_000, 7, 5), to(1, SteerNew));
    let (key, entry) = world.pending.borrow().first_key_value().map(|(key, entry)| (*key, *entry)).unwrap();
    assert_eq!(key, FlowKey::new(addr(CLIENT), Port::new(40_000), WEB, 6));
    let expected = FlowEntry {
        frontend: addr(HOST),
        frontend_port: Port::new(9000),
        backend: BackendId(1),
        generation: 1,
        isn: 7,
        uplink: UPLINK,
        last_seen: 5,
        port_index: 0,
        refusals: 0,
        refused: BackendId::NONE,
        marks: 0,
    };
    assert_eq!(entry, expected);
    assert_eq!(world.steered.borrow()[&BackendId(1)], 1);
    assert_eq!(world.live_of(1), 0, "a SYN is no connection");
}

#[test]
fn a_retransmitted_syn_goes_where_the_first_one_went() {
    let world = World::with_backends(&[1, 2, 3]);
    let first = backend_of(world.syn(40_000, 1, 0));
    for secs in [1, 3, 7, 15, 31, 63] {
        assert_eq!(world.syn(40_000, 1, secs), to(first, SteerRetransmit));
    }
    assert_eq!(world.steered.borrow()[&BackendId(first)], 1, "one flow, however many SYNs");
}

#[test]
fn a_syn_that_was_forgotten_is_steered_anew() {
    let world = World::with_backends(&[1, 2]);
    assert_eq!(world.syn(40_000, 1, 0), to(1, SteerNew));
    assert_eq!(world.syn(40_000, 1, PENDING_SECS + 1), to(2, SteerAgain));
}

#[rstest]
#[case(BackendState::Draining)]
#[case(BackendState::Unready)]
#[case(BackendState::Maintenance)]
#[case(BackendState::Gone)]
fn a_syn_without_answer_leaves_a_backend_that_is_no_longer_ready(#[case] state: BackendState) {
    let mut world = World::with_backends(&[1, 2]);
    assert_eq!(world.syn(40_000, 1, 0), to(1, SteerNew));
    world.set(1, state);
    assert_eq!(world.syn(40_000, 1, 1), to(2, SteerAgain));
    world.set(1, BackendState::Ready);
    assert_eq!(world.syn(40_000, 1, 3), to(2, SteerRetransmit), "and does not come back");
    assert_eq!(world.sizes(), (1, 0));
}

// Cilium #19451.
#[rstest]
#[case(BackendState::Draining)]
#[case(BackendState::Unready)]
#[case(BackendState::Maintenance)]
fn a_syn_that_was_answered_stays_though_the_backend_is_no_longer_ready(#[case] state: BackendState) {
    let mut world = World::with_backends(&[1, 2]);
    assert_eq!(world.syn(40_000, 1, 0), to(1, SteerNew));
    assert!(world.answer(1, 40_000, SYN_ACK, 0).is_some());
    world.set(1, state);
    assert_eq!(world.syn(40_000, 1, 1), to(1, SteerRetransmit), "the SYN-ACK was lost");
    assert_eq!(world.client(40_000, ACK, 2), to(1, Follow));
    assert_eq!(world.live_of(1), 1);
}

#[test]
fn another_syn_of_an_opening_flow_is_another_flow() {
    let world = World::with_backends(&[1, 2, 3]);
    assert_eq!(world.syn(40_000, 1, 0), to(1, SteerNew));
    assert_eq!(world.syn(40_000, 2, 1), to(2, SteerReuse), "nothing was answered");
    assert!(world.answer(2, 40_000, SYN_ACK, 1).is_some());
    assert_eq!(world.syn(40_000, 3, 2), to(3, SteerReuse), "answered");
    assert_eq!(world.sizes(), (1, 0));
}

#[rstest]
#[case::by_the_client(|world: &World, _| { let _ = world.client(40_000, FIN, 1); })]
#[case::by_the_backend(|world: &World, id| { let _ = world.answer(id, 40_000, FIN, 1); })]
fn another_syn_of_a_half_closed_flow_is_another_flow(#[case] half_close: fn(&World, u16)) {
    let world = World::with_backends(&[1, 2]);
    let id = world.connect(40_000, 1, 0);
    half_close(&world, id);
    assert_eq!(world.live_of(id), 1, "half closed is alive");
    assert_eq!(world.syn(40_000, 1, 2), to(id, SteerRetransmit), "a duplicate of its own SYN is not");
    assert_eq!(world.syn(40_000, 2, 2), to(2, SteerReuse));
    assert_eq!((world.live_of(id), world.sizes()), (0, (1, 0)), "the old flow is over");
}

#[test]
fn a_forged_syn_does_not_break_a_connection() {
    let mut world = World::with_backends(&[1, 2]);
    let id = world.connect(40_000, 1, 0);
    world.sockets.insert((BackendId(id), addr(CLIENT), Port::new(40_000)));
    assert_eq!(world.syn(40_000, 666, 1), to(id, SteerRetransmit));
    assert!(world.answer(id, 40_000, ACK, 1).is_some(), "the challenge");
    assert_eq!(world.client(40_000, ACK, 1), to(id, Follow));
    assert_eq!((world.live_of(id), world.sizes()), (1, (0, 1)));
}

#[test]
fn a_port_used_again_right_after_a_reset_does_not_meet_the_socket_that_the_reset_has_not_reached() {
    let mut world = World::with_backends(&[1, 2]);
    let id = world.connect(40_000, 1, 0);
    world.sockets.insert((BackendId(id), addr(CLIENT), Port::new(40_000)));
    assert_eq!(world.client(40_000, RST, 1), to(id, Follow));
    assert_eq!(world.syn(40_000, 2, 1), to(2, SteerReuse));
}

#[test]
fn a_connection_that_its_backend_has_given_up_is_in_nobodys_way() {
    let mut world = World::with_backends(&[1, 2]);
    assert_eq!(world.connect(40_000, 1, 0), 1);
    world.set(1, BackendState::Draining);
    assert_eq!(world.syn(40_000, 9, 100), to(2, SteerReuse), "the client was away for long");
    assert_eq!(world.live_of(1), 0);
}

#[test]
fn a_connection_whose_socket_nobody_can_see_is_the_backends_to_challenge() {
    let mut world = World::with_backends(&[1, 2]);
    world.backends.get_mut(&BackendId(1)).unwrap().netns_id = -1;
    assert_eq!(world.connect(40_000, 1, 0), 1);
    assert_eq!(world.syn(40_000, 666, 1), to(1, SteerRetransmit));
}

#[test]
fn a_client_that_lost_its_memory_gets_through_by_the_challenge() {
    let mut world = World::with_backends(&[1, 2]);
    assert_eq!(world.connect(40_000, 1, 0), 1);
    let socket = (BackendId(1), addr(CLIENT), Port::new(40_000));
    world.sockets.insert(socket);
    assert_eq!(world.syn(40_000, 9, 100), to(1, SteerRetransmit));
    assert!(world.answer(1, 40_000, ACK, 100).is_some());
    assert_eq!(world.client(40_000, RST, 100), to(1, Follow));
    world.sockets.remove(&socket);
    assert_eq!(world.live_of(1), 0);
    assert_eq!(world.syn(40_000, 9, 101), to(2, SteerReuse), "its SYN again");
}

// Cilium #20382, #20407.
#[rstest]
#[case::closed(|world: &World, id| world.close(id, 40_000, 1))]
#[case::reset_by_the_client(|world: &World, _| { let _ = world.client(40_000, RST, 1); })]
#[case::reset_by_the_backend(|world: &World, id| { let _ = world.answer(id, 40_000, RST, 1); })]
#[case::closed_and_forgotten(|world: &World, id| { world.close(id, 40_000, 1); world.pending.borrow_mut().clear(); })]
fn a_port_used_again_is_steered_anew_and_never_to_the_old_backend_once_it_drains(#[case] end: fn(&World, u16)) {
    let mut world = World::with_backends(&[1, 2]);
    assert_eq!(world.connect(40_000, 1, 0), 1);
    end(&world, 1);
    world.set(1, BackendState::Draining);
    for isn in 2..6 {
        assert_eq!(backend_of(world.syn(40_000, isn, 1)), 2);
        assert!(world.answer(2, 40_000, SYN_ACK, 1).is_some());
        assert_eq!(world.client(40_000, ACK, 1), to(2, Follow));
        world.close(2, 40_000, 1);
    }
    assert_eq!((world.live_of(1), world.live_of(2)), (0, 0));
}

// Other packets of a flow.

#[rstest]
#[case(BackendState::Ready)]
#[case(BackendState::Unready)]
#[case(BackendState::Draining)]
#[case(BackendState::Maintenance)]
#[case(BackendState::Drained)]
fn a_flow_is_followed_whatever_becomes_of_its_backend_while_it_is_there(#[case] state: BackendState) {
    let mut world = World::with_backends(&[1, 2]);
    assert_eq!(world.connect(40_000, 1, 0), 1);
    world.set(1, state);
    world.deal(&[2]);
    for secs in 1..100 {
        assert_eq!(world.client(40_000, ACK, secs), to(1, Follow));
        assert!(world.answer(1, 40_000, ACK, secs).is_some());
    }
    world.close(1, 40_000, 100);
    assert_eq!(world.live_of(1), 0);
}

#[test]
fn an_expired_flow_is_followed_still_until_a_syn_takes_its_place() {
    let world = World::with_backends(&[1, 2]);
    assert_eq!(world.connect(40_000, 1, 0), 1);
    let later = ESTABLISHED_SECS + 1;
    assert_eq!(world.client(40_000, ACK, later), to(1, Follow), "better late than reset");
    assert_eq!(world.syn(40_000, 2, 2 * later + 1), to(2, SteerReuse));
    assert_eq!((world.live_of(1), world.live_of(2)), (0, 0));
    assert!(world.answer(2, 40_000, SYN_ACK, 2 * later + 1).is_some());
    assert_eq!(world.client(40_000, ACK, 2 * later + 1), to(2, Follow));
    assert_eq!((world.live_of(1), world.live_of(2)), (0, 1));
}

// Counts.

#[rstest]
#[case::client_first(&[(true, FIN), (false, ACK), (false, FIN), (true, ACK)])]
#[case::backend_first(&[(false, FIN), (true, ACK), (true, FIN), (false, ACK)])]
#[case::with_stragglers(&[(true, FIN), (false, FIN), (false, FIN), (true, FIN), (true, ACK), (false, ACK)])]
#[case::client_resets(&[(true, RST), (true, RST), (false, ACK), (false, RST)])]
#[case::backend_resets(&[(false, RST), (true, ACK), (false, RST)])]
#[case::reset_after_close(&[(true, FIN), (false, FIN), (true, RST)])]
#[case::close_after_reset(&[(true, RST), (false, FIN), (true, FIN)])]
fn a_flow_is_counted_once_when_it_begins_and_once_when_it_ends(#[case] end: &[(bool, TcpFlags)]) {
    let world = World::with_backends(&[1]);
    assert_eq!(world.syn(40_000, 1, 0), to(1, SteerNew));
    assert!(world.answer(1, 40_000, SYN_ACK, 0).is_some());
    assert_eq!((world.live_of(1), world.sizes()), (0, (1, 0)), "before the handshake is complete");
    for secs in [0, 0, 1, 2] {
        assert_eq!(world.client(40_000, ACK, secs), to(1, Follow));
        assert_eq!((world.live_of(1), world.sizes()), (1, (0, 1)));
    }
    for &(from_the_client, flags) in end {
        if from_the_client {
            assert_eq!(world.client(40_000, flags, 3), to(1, Follow));
        } else {
            assert!(world.answer(1, 40_000, flags, 3).is_some());
        }
    }
    assert_eq!((world.live_of(1), world.sizes()), (0, (1, 0)), "ended, known for its last packets");
}

#[test]
fn of_two_cpus_that_see_a_flow_begin_or_end_one_counts() {
    let world = World::with_backends(&[1]);
    assert_eq!(world.syn(40_000, 1, 0), to(1, SteerNew));
    assert!(world.answer(1, 40_000, SYN_ACK, 0).is_some());
    let (key, _) = world.pending.borrow().first_key_value().map(|(key, entry)| (*key, *entry)).unwrap();
    for (from, state, live) in [(Table::Pending, TcpState::Established, 1), (Table::Flows, TcpState::Reset, 0)] {
        let both = [world.flow(from, &key).unwrap(), world.flow(from, &key).unwrap()];
        for flow in both {
            touch(&world, &key, from, &flow, state, UPLINK, Nanos(0));
        }
        assert_eq!(world.live_of(1), live, "after {state:?}");
    }
}

#[test]
fn a_refused_connection_is_never_live() {
    let world = World::with_backends(&[1]);
    assert_eq!(world.syn(40_000, 1, 0), to(1, SteerNew));
    assert!(world.answer(1, 40_000, RST.with(ACK), 0).is_some());
    assert_eq!((world.live_of(1), world.sizes()), (0, (1, 0)));
}

#[test]
fn a_syn_flood_never_touches_established_flows() {
    let world = World::with_backends(&[1, 2]);
    let id = world.connect(40_000, 1, 0);
    let before = world.flows.borrow().clone();
    for port in 1024..11_024 {
        let _ = world.send(Segment { src: addr("203.0.113.9"), ..from_client(port, SYN, port.into()) }, 0);
    }
    assert_eq!(world.sizes(), (10_000, 1));
    // What the flood throws out of its table is not missed here.
    world.pending.borrow_mut().clear();
    assert_eq!(*world.flows.borrow(), before);
    assert_eq!(world.client(40_000, ACK, 1), to(id, Follow));
}

#[test]
fn a_full_table_refuses_new_flows_and_keeps_old_ones_where_they_are() {
    let mut world = World::with_backends(&[1]);
    assert_eq!(world.connect(40_000, 1, 0), 1);
    assert_eq!(world.syn(40_001, 1, 0), to(1, SteerNew));
    assert!(world.answer(1, 40_001, SYN_ACK, 0).is_some());
    world.full = Some(Table::Flows);
    assert_eq!(world.client(40_001, ACK, 0), to(1, Follow), "followed, though it stays pending");
    assert_eq!((world.live_of(1), world.sizes()), (1, (1, 1)));
    world.full = None;
    assert_eq!(world.client(40_001, ACK, 1), to(1, Follow));
    assert_eq!((world.live_of(1), world.sizes()), (2, (0, 2)), "promoted when there is room");
    world.full = Some(Table::Pending);
    assert_eq!(world.syn(40_002, 1, 1), drop(DropTableFull));
    world.close(1, 40_000, 1);
    assert_eq!(world.sizes(), (0, 2), "nowhere to go: stays, and is followed");
}

#[test]
fn packets_of_both_directions_keep_a_flow_alive_and_replies_go_the_way_the_client_came_last() {
    let world = World::with_backends(&[1]);
    world.connect(40_000, 1, 5);
    let seen = || world.flows.borrow().values().map(|flow| (flow.last_seen, flow.uplink)).next();
    assert_eq!(seen(), Some((5, UPLINK)));
    assert!(world.answer(1, 40_000, ACK, 8).is_some());
    assert_eq!(seen(), Some((8, UPLINK)));
    assert_eq!(steer(&world, &from_client(40_000, ACK, 0), 7, Nanos(8_999_999_999)), to(1, Follow));
    assert_eq!(seen(), Some((8, 7)));
    assert_eq!(world.answer(1, 40_000, ACK, 9).map(|reply| reply.uplink), Some(7));
}

// Who may come in, and when.

#[test]
fn a_closed_frontend_passes_new_flows_and_follows_old_ones() {
    let mut world = World::with_backends(&[1]);
    let id = world.connect(40_000, 1, 0);
    assert_eq!(world.syn(40_001, 1, 0), to(1, SteerNew));
    world.publish(HOST, 9000, 0, FrontendEntry::CLOSED);
    assert_eq!(world.syn(40_002, 1, 1), pass(PassClosed));
    assert_eq!(world.client(40_000, ACK, 1), to(id, Follow));
    assert_eq!(world.syn(40_001, 1, 1), to(1, SteerRetransmit), "an opening one goes on");
    assert!(world.answer(1, 40_001, SYN_ACK, 1).is_some());
    assert_eq!(world.client(40_001, ACK, 1), to(1, Follow));
    world.close(id, 40_000, 1);
    assert_eq!(world.syn(40_000, 2, 2), pass(PassClosed), "a port used again is new");
    assert_eq!(world.client(40_000, ACK, 2), pass(PassNoFlow), "and nothing of the old connection's");
}

#[test]
fn what_has_ended_is_reset_by_nobody_when_its_backend_has_gone() {
    for end in [FIN, RST] {
        let mut world = World::with_backends(&[1, 2]);
        let [over, open] = [40_000, 40_001].map(|port| (world.connect(port, 1, 0), port));
        assert_eq!(world.client(over.1, end, 1), to(over.0, Follow));
        if end == FIN {
            assert!(world.answer(over.0, over.1, FIN, 1).is_some());
        }
        [1, 2].into_iter().for_each(|id| world.remove(id));
        assert_eq!(world.client(open.1, ACK, 2), Verdict::Reset(ResetGone));
        assert_eq!(
            world.client(over.1, ACK, 2),
            pass(PassNoFlow),
            "another one may have come by a way that is not steer's"
        );
    }
}

#[test]
fn only_clients_of_the_allow_list_open_flows() {
    let mut world = World::with_backends(&[1]);
    let old = world.connect(40_000, 1, 0);
    world.services.get_mut(&WEB).unwrap().flags = ServiceEntry::ALLOW_LIST;
    assert_eq!(world.syn(40_001, 1, 1), drop(DropNotAllowed));
    assert_eq!(world.client(40_000, ACK, 1), to(old, Follow), "an open connection is not cut");
    world.allowed.push(AllowKey::new(ServiceId(WEB.0 + 1), addr(CLIENT)));
    assert_eq!(world.syn(40_001, 1, 1), drop(DropNotAllowed), "another service's list does not count");
    world.allowed.push(AllowKey::new(WEB, addr(CLIENT)));
    assert_eq!(world.syn(40_001, 1, 1), to(1, SteerNew));
}

#[test]
fn without_a_backend_the_client_is_held_and_then_refused() {
    let mut world = World::with_backends(&[1]);
    world.services.get_mut(&WEB).unwrap().hold_ns = 10_000_000_000;
    world.set(1, BackendState::Unready);
    for (secs, expected) in [
        (100, drop(DropHold)),
        (101, drop(DropHold)),
        (109, drop(DropHold)),
        (110, Verdict::Reset(ResetNoBackend)),
        (170, Verdict::Reset(ResetNoBackend)),
    ] {
        assert_eq!(world.syn(40_000, 1, secs), expected, "at {secs} s");
    }
    assert_eq!((world.none_since_secs(), world.sizes()), (100, (0, 0)));
    world.set(1, BackendState::Ready);
    assert_eq!(world.syn(40_000, 1, 201), to(1, SteerNew));
    assert_eq!(world.none_since_secs(), 0, "there is one again");
    world.set(1, BackendState::Unready);
    assert_eq!(world.syn(40_001, 1, 300), drop(DropHold), "the next time begins anew");
}

#[test]
fn each_port_of_a_service_waits_by_itself() {
    let mut world = World::with_backends(&[1]);
    world.services.get_mut(&WEB).unwrap().hold_ns = 10_000_000_000;
    world.backends.get_mut(&BackendId(1)).unwrap().targets[1] = Port::NONE;
    world.publish(HOST, 9001, 1, 0);
    let unserved =
        |world: &World, secs| world.send(Segment { dst_port: Port::new(9001), ..from_client(40_000, SYN, 1) }, secs);
    for secs in 100..110 {
        assert_eq!(unserved(&world, secs), drop(DropHold), "at {secs} s");
        assert_eq!(world.syn(41_000 + secs as u16, 1, secs), to(1, SteerNew), "at {secs} s");
    }
    assert_eq!(unserved(&world, 110), Verdict::Reset(ResetNoBackend), "the other port's clients do not make it longer");
    world.set(1, BackendState::Unready);
    assert_eq!(world.syn(42_000, 1, 111), drop(DropHold), "nor is their own time over");
}

#[test]
fn an_outage_long_after_another_holds_anew_though_nobody_came_while_there_was_a_backend() {
    let mut world = World::with_backends(&[1]);
    world.services.get_mut(&WEB).unwrap().hold_ns = 10_000_000_000;
    world.set(1, BackendState::Unready);
    assert_eq!(world.syn(40_000, 1, 100), drop(DropHold));
    world.set(1, BackendState::Ready);
    world.set(1, BackendState::Unready);
    assert_eq!(world.syn(40_001, 1, 3_700), drop(DropHold));
    assert_eq!(world.syn(40_001, 1, 3_711), Verdict::Reset(ResetNoBackend));
}

#[test]
fn a_service_that_holds_nobody_refuses_at_once() {
    let mut world = World::with_backends(&[1]);
    world.set(1, BackendState::Starting);
    assert_eq!(world.syn(40_000, 1, 100), Verdict::Reset(ResetNoBackend));
}
