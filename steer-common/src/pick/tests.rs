//! Who takes a new flow.

use rstest::rstest;
use std::collections::{BTreeMap, BTreeSet};
use std::vec::Vec;

use super::*;
use crate::fixtures::{SYN, WEB, World, addr, backend_addr, backend_of, from_client, to};
use crate::steer::Segment;
use crate::verdict::{Counter, Verdict};

/// New flows from these ports: how many went to whom.
fn split(world: &World, ports: core::ops::Range<u16>) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for port in ports {
        *counts.entry(backend_of(world.syn(port, 1, 0))).or_default() += 1;
    }
    counts
}

#[test]
fn three_backends_share_three_hundred_flows_evenly() {
    let world = World::with_backends(&[1, 2, 3]);
    assert_eq!(split(&world, 40_000..40_300), BTreeMap::from([(1, 100), (2, 100), (3, 100)]));
}

#[rstest]
#[case::every_slot_ready(&[1, 2, 3, 4, 5, 6, 7, 8], 8)]
#[case::one_of_many_behind_all_candidates(&[8], 8)]
#[case::one_beyond_what_one_look_at_the_slots_reaches(&[40], 40)]
fn a_ready_backend_is_found_wherever_it_stands(#[case] ready: &[u16], #[case] of: u16) {
    let mut world = World::with_backends(&(1..=of).collect::<Vec<_>>());
    for id in (1..=of).filter(|id| !ready.contains(id)) {
        world.set(id, BackendState::Unready);
    }
    let counts = split(&world, 40_000..40_000 + 8 * of);
    assert_eq!(counts.keys().copied().collect::<Vec<_>>(), ready);
}

#[test]
fn a_draining_backend_takes_new_flows_only_when_nothing_is_ready() {
    let mut world = World::with_backends(&[1, 2, 3]);
    world.set(2, BackendState::Draining);
    assert!(!split(&world, 40_000..40_100).contains_key(&2));
    for id in [1, 3] {
        world.set(id, BackendState::Unready);
    }
    assert_eq!(split(&world, 41_000..41_010), BTreeMap::from([(2, 10)]));
    // Also once the agent has dealt nothing, with the members left behind.
    world.slots.get_mut(&WEB).unwrap().len = 0;
    for balance in [Balance::RoundRobin, Balance::LeastConn, Balance::Maglev, Balance::Source] {
        world.balance(balance);
        assert_eq!(world.syn(42_000 + balance as u16, 1, 0), to(2, Counter::SteerNew), "{balance:?}");
    }
}

#[rstest]
#[case(BackendState::Gone)]
#[case(BackendState::Starting)]
#[case(BackendState::Unready)]
#[case(BackendState::Maintenance)]
fn nothing_else_ever_takes_new_flows(#[case] state: BackendState) {
    let mut world = World::with_backends(&[1, 2]);
    world.set(1, state);
    world.set(2, state);
    for balance in [Balance::RoundRobin, Balance::LeastConn, Balance::Maglev, Balance::Source] {
        world.balance(balance);
        assert_eq!(world.syn(40_000, 1, 0), Verdict::Reset(Counter::ResetNoBackend), "{balance:?}");
    }
}

#[test]
fn an_empty_table_gives_nothing() {
    let mut world = World::with_backends(&[1]);
    world.deal(&[]);
    assert_eq!(world.syn(40_000, 1, 0), Verdict::Reset(Counter::ResetNoBackend));
    world.slots.clear();
    assert_eq!(world.syn(40_000, 1, 0), Verdict::Reset(Counter::ResetNoBackend));
}

#[test]
fn a_table_that_still_names_an_id_of_another_service_now_does_not_give_it() {
    let mut world = World::with_backends(&[1, 2]);
    world.backends.get_mut(&BackendId(2)).unwrap().service = ServiceId(2);
    assert_eq!(split(&world, 40_000..40_020), BTreeMap::from([(1, 20)]));
    world.remove(1);
    assert_eq!(world.syn(40_100, 1, 0), Verdict::Reset(Counter::ResetNoBackend));
}

#[test]
fn a_backend_that_does_not_serve_the_port_gets_none_of_its_flows() {
    let mut world = World::with_backends(&[1, 2]);
    world.publish(crate::fixtures::HOST, 9001, 1, 0);
    world.backends.get_mut(&BackendId(2)).unwrap().targets[1] = Port::new(5001);
    for port in 40_000..40_010 {
        let segment = Segment { dst_port: Port::new(9001), ..from_client(port, SYN, 1) };
        let Verdict::Forward(forward) = world.send(segment, 0) else { panic!("not steered") };
        assert_eq!((forward.backend, forward.target), (BackendId(2), Port::new(5001)));
    }
}

#[test]
fn a_container_that_calls_its_own_service_does_not_get_itself() {
    let world = World::with_backends(&[1, 2]);
    for port in 40_000..40_010 {
        let own = Segment { src: backend_addr(1), ..from_client(port, SYN, 1) };
        assert_eq!(backend_of(world.send(own, 0)), 2);
    }
}

#[test]
fn least_conn_prefers_the_emptier() {
    let mut world = World::with_backends(&[1, 2]);
    world.balance(Balance::LeastConn);
    world.live.borrow_mut().insert(BackendId(1), 100);
    let counts = split(&world, 40_000..40_200);
    assert!(counts[&2] > 140, "the better of two, where two different ones are looked at: {counts:?}");
}

#[test]
fn least_conn_evens_out_live_flows_by_weight() {
    let mut world = World::with_backends(&[1, 2]);
    world.balance(Balance::LeastConn);
    world.backends.get_mut(&BackendId(1)).unwrap().weight = 3;
    world.deal(&[1, 2, 1, 1]);
    for port in 40_000..40_400 {
        world.connect(port, 1, 0);
    }
    let (one, two) = (world.live_of(1), world.live_of(2));
    assert!((290..=310).contains(&one), "3 to 1, not {one} to {two}");
}

#[test]
fn least_conn_takes_the_one_candidate_that_is_ready() {
    let mut world = World::with_backends(&[1, 2, 3]);
    world.balance(Balance::LeastConn);
    world.set(2, BackendState::Unready);
    world.live.borrow_mut().insert(BackendId(3), 50);
    let counts = split(&world, 40_000..40_100);
    assert!(!counts.contains_key(&2), "{counts:?}");
}

#[rstest]
#[case::maglev(Balance::Maglev, true)]
#[case::source(Balance::Source, false)]
fn a_hash_gives_one_client_one_backend(#[case] balance: Balance, #[case] ports_count: bool) {
    let mut world = World::with_backends(&[1, 2, 3, 4, 5]);
    world.balance(balance);
    let of = |client: &str, port: u16| {
        let _ = world.pending.take();
        backend_of(world.send(Segment { src: addr(client), ..from_client(port, SYN, 1) }, 0))
    };
    for client in ["192.0.2.1", "192.0.2.2", "192.0.2.3"] {
        let first = of(client, 40_000);
        assert!((0..20).all(|_| of(client, 40_000) == first), "the same flow");
        let ports: BTreeSet<u16> = (40_000..40_200).map(|port| of(client, port)).collect();
        assert_eq!(ports.len(), if ports_count { 5 } else { 1 }, "over its ports");
    }
    let clients: BTreeSet<u16> = (1..=200).map(|i| of(&std::format!("192.0.2.{i}"), 40_000)).collect();
    assert_eq!(clients.len(), 5, "over clients");
}

#[test]
fn a_hash_goes_on_to_the_next_slot_when_its_own_is_not_ready() {
    let mut world = World::with_backends(&[1, 2, 3]);
    world.balance(Balance::Source);
    let first = backend_of(world.syn(40_000, 1, 0));
    world.set(first, BackendState::Unready);
    let second: BTreeSet<u16> = (41_000..41_050).map(|port| backend_of(world.syn(port, 1, 0))).collect();
    assert_eq!(second.len(), 1, "all flows of the client to the same other one");
    assert!(!second.contains(&first));
}

#[test]
fn one_that_does_not_listen_is_passed_over_and_the_agent_told() {
    let mut world = World::with_backends(&[1, 2]);
    world.deaf.insert(BackendId(1));
    for balance in [Balance::RoundRobin, Balance::LeastConn, Balance::Maglev, Balance::Source] {
        world.balance(balance);
        for port in 0..8 {
            assert_eq!(world.syn(41_000 + 10 * balance as u16 + port, 1, 0), to(2, Counter::SteerNew), "{balance:?}");
        }
    }
    assert!(world.notices.borrow().iter().all(|told| *told == (NoticeKind::NotListening, BackendId(1))));
    assert!(!world.notices.borrow().is_empty());
}

#[test]
fn with_nobody_listening_nobody_is_asked_in_vain() {
    let mut world = World::with_backends(&[1, 2]);
    world.deaf.extend([BackendId(1), BackendId(2)]);
    world.set(2, BackendState::Draining);
    assert_eq!(world.syn(40_000, 1, 0), Verdict::Reset(Counter::ResetNoBackend));
    let looked_at: Vec<_> = world.traced.borrow().iter().map(|(_, fit)| *fit).collect();
    assert!(looked_at.iter().all(|fit| *fit == Fit::NotListening), "{looked_at:?}");
}

#[rstest]
#[case::as_soon_as_it_listens(BackendState::Starting, true, true, true)]
#[case::not_before(BackendState::Starting, true, false, false)]
#[case::listening_again(BackendState::Unready, true, true, true)]
#[case::the_healthcheck_decides(BackendState::Starting, false, true, false)]
fn where_listening_decides_the_agent_need_not_have_noticed(
    #[case] state: BackendState,
    #[case] if_listening: bool,
    #[case] listens: bool,
    #[case] taken: bool,
) {
    let mut world = World::with_backends(&[1]);
    world.set(1, state);
    world.if_listening.extend(if_listening.then_some(BackendId(1)));
    world.deaf.extend((!listens).then_some(BackendId(1)));
    let expected = if taken { to(1, Counter::SteerNew) } else { Verdict::Reset(Counter::ResetNoBackend) };
    assert_eq!(world.syn(40_000, 1, 0), expected);
    assert_eq!(world.notices.borrow().contains(&(NoticeKind::Listening, BackendId(1))), taken);
    if taken {
        assert_eq!(world.syn(40_000, 1, 1), to(1, Counter::SteerRetransmit), "the same packet, the same answer");
    }
}

#[test]
fn where_nobody_can_see_the_state_alone_decides() {
    let mut world = World::with_backends(&[1]);
    world.unseen.insert(BackendId(1));
    assert_eq!(world.syn(40_000, 1, 0), to(1, Counter::SteerNew));
    world.set(1, BackendState::Starting);
    world.if_listening.insert(BackendId(1));
    assert_eq!(world.syn(40_001, 1, 0), Verdict::Reset(Counter::ResetNoBackend));
}

#[test]
fn without_weight_nobody_takes_anything() {
    let mut world = World::with_backends(&[1]);
    world.backends.get_mut(&BackendId(1)).unwrap().weight = 0;
    assert_eq!(world.syn(40_000, 1, 0), Verdict::Reset(Counter::ResetNoBackend));
}

#[test]
fn how_a_candidate_fits_is_known_by_its_number() {
    for (number, fit) in Fit::ALL.into_iter().enumerate() {
        assert_eq!((fit as usize, Fit::from_u16(number as u16)), (number, Some(fit)));
    }
    assert_eq!(Fit::from_u16(Fit::ALL.len() as u16), None);
}
