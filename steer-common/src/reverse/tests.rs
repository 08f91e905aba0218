//! Replies, and flows that share a client's port.

use rstest::rstest;
use std::vec::Vec;

use super::*;
use crate::addr::{Addr, Port};
use crate::backend::BackendId;
use crate::fixtures::{
    ACK, FIN, HOST, HOST2, RST, SYN, SYN_ACK, UPLINK, WEB, World, addr, backend_of, from_backend, from_client, to,
};
use crate::limits::ESTABLISHED_SECS;
use crate::state::BackendState;
use crate::tcp::TcpFlags;
use crate::verdict::{Counter, Verdict};

const PORT: u16 = 40_000;

/// A packet of the client's port to that address of the host.
fn to_host(world: &World, host: &str, flags: TcpFlags, secs: u32) -> Verdict {
    world.send(Segment { dst: addr(host), ..from_client(PORT, flags, 1) }, secs)
}

/// A whole handshake with that address of the host.
#[track_caller]
fn connect(world: &World, host: &str, secs: u32) -> u16 {
    let id = backend_of(to_host(world, host, SYN, secs));
    assert_eq!(frontend(world, id, SYN_ACK, secs), Some(addr(host)));
    assert_eq!(to_host(world, host, ACK, secs), to(id, Counter::Follow));
    id
}

/// The address a packet of backend `id` seems to come from, once it is on its way to the client.
fn frontend(world: &World, id: u16, flags: TcpFlags, secs: u32) -> Option<Addr> {
    world.answer(id, PORT, flags, secs).map(|reply| reply.frontend)
}

/// A host with as many addresses, and as many backends.
fn with_hosts(hosts: &[&str], backends: &[u16]) -> World {
    let mut world = World::with_backends(backends);
    for host in hosts {
        world.publish(host, 9000, 0, 0);
    }
    world
}

#[test]
fn a_reply_comes_from_the_frontend_the_client_called_and_goes_out_where_the_client_came_in() {
    let world = World::with_backends(&[1, 2]);
    let id = world.connect(PORT, 1, 0);
    let reason = Counter::Reply;
    let expected = Reply { frontend: addr(HOST), frontend_port: Port::new(9000), uplink: UPLINK, reason };
    assert_eq!(world.answer(id, PORT, ACK, 1), Some(expected));
}

#[rstest]
#[case::of_a_flow_that_is_not_known(Segment { dst_port: Port::new(1), ..from_backend(1, PORT, ACK) }, 101)]
#[case::to_another_client(Segment { dst: addr("192.0.2.99"), ..from_backend(1, PORT, ACK) }, 101)]
#[case::of_another_port_of_the_container(Segment { src_port: Port::new(22), ..from_backend(1, PORT, ACK) }, 101)]
#[case::of_another_protocol(Segment { proto: crate::addr::UDP, ..from_backend(1, PORT, ACK) }, 101)]
#[case::with_a_backends_address_from_another_interface(from_backend(1, PORT, ACK), 102)]
#[case::of_another_backend(from_backend(2, PORT, ACK), 102)]
fn a_packet_that_is_no_reply_is_left_alone(#[case] segment: Segment, #[case] ifindex: u32) {
    let world = World::with_backends(&[1, 2]);
    assert_eq!(world.connect(PORT, 1, 0), 1);
    assert_eq!(world.back(&segment, ifindex, 0), None);
    assert_eq!(world.live_of(1), 1);
}

#[test]
fn replies_of_the_last_tenant_of_an_id_are_left_alone() {
    let mut world = World::with_backends(&[1]);
    world.connect(PORT, 1, 0);
    world.replace(1);
    assert_eq!(world.answer(1, PORT, ACK, 1), None);
    world.remove(1);
    assert_eq!(world.answer(1, PORT, ACK, 1), None);
}

#[test]
fn replies_of_a_draining_backend_go_on() {
    let mut world = World::with_backends(&[1, 2]);
    assert_eq!(world.connect(PORT, 1, 0), 1);
    world.set(1, BackendState::Draining);
    world.deal(&[2]);
    assert_eq!(frontend(&world, 1, ACK, 1), Some(addr(HOST)));
}

#[test]
fn one_port_to_two_addresses_goes_to_two_backends_and_replies_are_told_apart() {
    let world = World::with_backends(&[1, 2]);
    let (one, two) = (connect(&world, HOST, 0), connect(&world, HOST2, 0));
    assert_ne!(one, two);
    for secs in 1..10 {
        assert_eq!(to_host(&world, HOST, ACK, secs), to(one, Counter::Follow));
        assert_eq!(to_host(&world, HOST2, ACK, secs), to(two, Counter::Follow));
        assert_eq!(frontend(&world, one, ACK, secs), Some(addr(HOST)));
        assert_eq!(frontend(&world, two, ACK, secs), Some(addr(HOST2)));
    }
    assert_eq!((world.live_of(one), world.live_of(two)), (1, 1));
    assert_eq!(to_host(&world, HOST, RST, 10), to(one, Counter::Follow));
    assert_eq!((world.live_of(one), world.live_of(two)), (0, 1), "one ends, the other lives");
    assert_eq!(to_host(&world, HOST2, ACK, 10), to(two, Counter::Follow));
}

#[test]
fn however_the_turn_stands_siblings_never_share_a_backend() {
    for turns in 0..7 {
        let world = World::with_backends(&[1, 2, 3]);
        for port in 0..turns {
            let _ = world.syn(1_000 + port, 1, 0);
        }
        assert_ne!(connect(&world, HOST, 0), connect(&world, HOST2, 0), "after {turns} turns");
    }
}

#[test]
fn a_syn_steered_again_keeps_away_from_its_siblings_backend() {
    let mut world = World::with_backends(&[1, 2, 3]);
    let one = connect(&world, HOST, 0);
    let two = backend_of(to_host(&world, HOST2, SYN, 0));
    world.set(two, BackendState::Draining);
    let verdict = to_host(&world, HOST2, SYN, 1);
    let third = 6 - one - two;
    assert_eq!(verdict, to(third, Counter::SteerAgain));
}

#[test]
fn two_ports_of_a_service_may_share_a_backend_since_its_ports_tell_them_apart() {
    let mut world = World::with_backends(&[1]);
    world.publish(HOST, 9001, 1, 0);
    world.backends.get_mut(&BackendId(1)).unwrap().targets[1] = Port::new(5001);
    assert_eq!(world.connect(PORT, 1, 0), 1);
    let second = |flags| world.send(Segment { dst_port: Port::new(9001), ..from_client(PORT, flags, 1) }, 0);
    assert_eq!(backend_of(second(SYN)), 1);
    for (source, expected) in [(5000, 9000), (5001, 9001)] {
        let reply = Segment { src_port: Port::new(source), ..from_backend(1, PORT, ACK) };
        let Some(Returned::Reply(reply)) = world.back(&reply, 101, 0) else { panic!("no reply") };
        assert_eq!(reply.frontend_port, Port::new(expected));
    }
}

#[test]
fn two_ports_with_one_target_do_not_share_a_backend() {
    let mut world = World::with_backends(&[1, 2]);
    world.publish(HOST, 9001, 1, 0);
    for id in [1, 2] {
        world.backends.get_mut(&BackendId(id)).unwrap().targets[1] = Port::new(5000);
    }
    assert_eq!(world.connect(PORT, 1, 0), 1);
    let second = world.send(Segment { dst_port: Port::new(9001), ..from_client(PORT, SYN, 1) }, 0);
    assert_eq!(second, to(2, Counter::SteerNew));
    assert_eq!(world.answer(1, PORT, ACK, 0).unwrap().frontend_port, Port::new(9000));
    assert_eq!(world.answer(2, PORT, SYN_ACK, 0).unwrap().frontend_port, Port::new(9001));
}

const HOSTS: [&str; 5] = ["10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.1.4", "10.0.1.5"];

#[test]
fn four_lanes_are_all_there_are() {
    let world = with_hosts(&HOSTS, &[1, 2, 3, 4, 5]);
    let mut ids: Vec<u16> = HOSTS[..4].iter().map(|host| connect(&world, host, 0)).collect();
    assert_eq!(to_host(&world, HOSTS[4], SYN, 0), Verdict::Drop(Counter::DropLanes));
    for (host, id) in HOSTS.iter().zip(&ids) {
        assert_eq!(to_host(&world, host, ACK, 1), to(*id, Counter::Follow));
        assert_eq!(frontend(&world, *id, ACK, 1), Some(addr(host)));
    }
    // The place of one that has ended is free for the next.
    assert_eq!(to_host(&world, HOSTS[1], RST, 2), to(ids[1], Counter::Follow));
    let fifth = connect(&world, HOSTS[4], 2);
    ids.remove(1);
    assert!(!ids.contains(&fifth));
    assert_eq!(to_host(&world, HOSTS[4], SYN, 3), to(fifth, Counter::SteerRetransmit));
    assert_eq!(to_host(&world, HOSTS[3], ACK, 3), to(ids[2], Counter::Follow));
}

#[test]
fn a_lane_of_an_idle_flow_is_free_after_its_time_and_its_count_goes_with_it() {
    let world = World::with_backends(&[1]);
    assert_eq!(connect(&world, HOST, 0), 1);
    assert_eq!(connect(&world, HOST2, ESTABLISHED_SECS + 1), 1);
    assert_eq!((world.live_of(1), world.sizes()), (1, (0, 1)));
}

#[test]
fn with_one_backend_a_second_frontend_waits_for_the_first_and_nobody_else_does() {
    let mut world = World::with_backends(&[1]);
    world.services.get_mut(&crate::fixtures::WEB).unwrap().hold_ns = 10_000_000_000;
    assert_eq!(connect(&world, HOST, 0), 1);
    for secs in [0, 1, 30] {
        assert_eq!(to_host(&world, HOST2, SYN, secs), Verdict::Drop(Counter::DropLanes), "{secs}");
    }
    assert_eq!(world.none_since_secs(), 0, "the service has a backend all the time");
    world.close(1, PORT, 31);
    assert_eq!(connect(&world, HOST2, 31), 1);
}

#[test]
fn what_is_left_of_a_dead_backends_flow_is_in_nobodys_way() {
    let mut world = World::with_backends(&[1]);
    assert_eq!(connect(&world, HOST, 0), 1);
    world.replace(1);
    assert_eq!(connect(&world, HOST2, 1), 1, "the id is another backend's now");
    assert_eq!(world.live_of(1), 1);
}

#[test]
fn closing_in_one_lane_does_not_end_another() {
    let world = World::with_backends(&[1, 2]);
    let (one, two) = (connect(&world, HOST, 0), connect(&world, HOST2, 0));
    assert_eq!(to_host(&world, HOST2, FIN, 1), to(two, Counter::Follow));
    assert_eq!(frontend(&world, two, FIN, 1), Some(addr(HOST2)));
    assert_eq!((world.live_of(one), world.live_of(two), world.sizes()), (1, 0, (1, 1)));
    assert_eq!(frontend(&world, one, ACK, 2), Some(addr(HOST)));
    assert_eq!(frontend(&world, two, ACK, 2), Some(addr(HOST2)), "its last acknowledgement");
}

/// A SYN that goes to backend 1 of these.
fn sent(backends: &[u16], hold_secs: u64) -> World {
    let mut world = World::with_backends(backends);
    world.services.get_mut(&WEB).unwrap().hold_ns = hold_secs * 1_000_000_000;
    assert_eq!(world.syn(PORT, 7, 0), to(1, Counter::SteerNew));
    world
}

fn resteered(world: &World, by: u16) -> Option<u16> {
    match world.returned(by, PORT, RST, 0) {
        Some(Returned::Resteer { key: FlowKey { service: WEB, lane: 0, .. }, forward }) => Some(forward.backend.0),
        Some(Returned::Reply(_)) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_refused_syn_goes_to_another_backend_and_no_further_than_two() {
    let world = sent(&[1, 2, 3, 4], 0);
    let second = resteered(&world, 1).expect("there are others");
    let third = resteered(&world, second).expect("there are others");
    assert!(second != 1 && third != 1 && third != second, "{second}, {third}");
    assert_eq!(resteered(&world, third), None, "then the client hears the truth");
    assert_eq!(world.resteered.borrow().values().sum::<u64>(), 2);
    assert!(world.notices.borrow().contains(&(NoticeKind::Refused, BackendId(1))));
}

#[test]
fn a_refused_flow_goes_on_where_it_was_given_again() {
    let world = sent(&[1, 2], 0);
    assert_eq!(resteered(&world, 1), Some(2));
    assert_eq!(world.syn(PORT, 7, 0), to(2, Counter::SteerRetransmit), "the client's own retransmission too");
    assert!(world.answer(2, PORT, SYN_ACK, 0).is_some());
    assert_eq!(world.client(PORT, ACK, 0), to(2, Counter::Follow));
    assert_eq!((world.live_of(1), world.live_of(2)), (0, 1));
}

#[rstest]
#[case::the_client_waits(10, true)]
#[case::unless_nobody_may(0, false)]
fn with_no_other_backend(#[case] hold_secs: u64, #[case] waits: bool) {
    let world = sent(&[1], hold_secs);
    let returned = world.returned(1, PORT, RST, 0);
    if waits {
        assert_eq!(returned, Some(Returned::Drop(Counter::DropRefused)));
        assert_eq!((world.held.borrow().len(), world.sizes()), (1, (0, 0)));
    } else {
        assert!(matches!(returned, Some(Returned::Reply(_))), "{returned:?}");
    }
}

#[test]
fn a_reset_after_an_answer_is_the_clients_to_hear() {
    let world = sent(&[1, 2], 10);
    assert!(world.answer(1, PORT, SYN_ACK, 0).is_some());
    assert!(world.answer(1, PORT, RST, 0).is_some());
}

/// A client's port may be used again for the same container, by another way than a frontend.
#[test]
fn what_a_backend_accepts_after_a_flow_has_ended_is_another_connection() {
    let world = World::with_backends(&[1]);
    let id = world.connect(PORT, 1, 0);
    world.close(id, PORT, 1);
    assert!(world.answer(id, PORT, ACK, 2).is_some(), "its last words");
    assert_eq!(world.returned(id, PORT, SYN_ACK, 3), None);
    assert_eq!(world.returned(id, PORT, ACK, 3), None, "and so is what follows");
}

#[test]
fn one_that_goes_on_being_refused_hears_it_in_the_end() {
    let world = sent(&[1], 10);
    for times in 1..=2 {
        assert_eq!(world.returned(1, PORT, RST, 0), Some(Returned::Drop(Counter::DropRefused)), "time {times}");
        // The client's own retransmission, or the agent's.
        assert_eq!(world.syn(PORT, 7, 0), to(1, Counter::SteerNew));
    }
    assert!(matches!(world.returned(1, PORT, RST, 0), Some(Returned::Reply(_))));
    assert_eq!(world.syn(PORT, 8, 0), to(1, Counter::SteerReuse), "another connection begins anew");
    assert_eq!(world.returned(1, PORT, RST, 0), Some(Returned::Drop(Counter::DropRefused)));
}
