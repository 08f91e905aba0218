//! Flows whose backend is gone, or has ended, or serves their port no more.

use super::*;

#[test]
fn a_flow_whose_backend_is_gone_is_reset_as_often_as_it_asks() {
    let mut world = World::with_backends(&[1, 2]);
    assert_eq!(world.connect(40_000, 1, 0), 1);
    world.remove(1);
    for _ in 0..2 {
        assert_eq!(world.client(40_000, ACK, 1), Verdict::Reset(ResetGone));
    }
    assert_eq!(world.client(40_000, RST, 1), pass(PassNoFlow), "but no reset with a reset");
}

#[test]
fn a_flow_whose_backend_has_ended_with_no_agent_there_is_reset_when_nothing_is_left_of_it() {
    let mut world = World::with_backends(&[1, 2]);
    assert_eq!(world.connect(40_000, 1, 0), 1);
    assert_eq!(world.connect(40_001, 1, 0), 2);
    world.end(1);
    world.sockets.insert((BackendId(1), addr(CLIENT), Port::new(40_000)));
    assert_eq!(world.client(40_000, ACK, 1), to(1, Follow), "its last words are not out yet");
    world.sockets.clear();
    assert_eq!(world.client(40_000, ACK, 1), Verdict::Reset(ResetGone));
    assert_eq!(world.client(40_000, RST, 1), pass(PassNoFlow));
    assert_eq!(world.client(40_001, ACK, 1), to(2, Follow), "nobody looks at those of a backend that lives");
    assert_eq!(world.syn(40_000, 2, 1), to(2, SteerReuse));
}

#[test]
fn a_syn_that_was_answered_by_a_backend_that_has_ended_since_is_steered_anew() {
    let mut world = World::with_backends(&[1, 2]);
    assert_eq!(world.syn(40_000, 1, 0), to(1, SteerNew));
    assert!(world.answer(1, 40_000, SYN_ACK, 0).is_some());
    world.end(1);
    assert_eq!(world.syn(40_000, 1, 1), to(2, SteerAgain));
}

#[test]
fn a_syn_to_a_backend_that_is_gone_is_steered_anew() {
    let mut world = World::with_backends(&[1, 2]);
    assert_eq!(world.connect(40_000, 1, 0), 1);
    world.remove(1);
    assert_eq!(world.syn(40_000, 2, 1), to(2, SteerReuse));
    assert_eq!(world.sizes(), (1, 0));
}

#[test]
fn an_id_used_again_inherits_neither_flows_nor_counts() {
    let mut world = World::with_backends(&[1]);
    assert_eq!(world.connect(40_000, 1, 0), 1);
    assert_eq!(world.syn(40_001, 1, 0), to(1, SteerNew));
    assert_eq!(world.connect(40_002, 1, 0), 1);
    world.replace(1);
    assert_eq!(world.client(40_000, ACK, 1), Verdict::Reset(ResetGone), "established");
    assert_eq!(world.answer(1, 40_002, ACK, 1), None, "no way back either");
    assert_eq!(world.syn(40_001, 1, 1), to(1, SteerAgain), "opening: a flow of the new tenant");
    assert_eq!(world.syn(40_002, 1, 1), to(1, SteerReuse));
    assert_eq!(world.live_of(1), 0, "ends of old flows are not the new tenant's");
    assert_eq!(world.connect(40_003, 1, 1), 1);
    assert_eq!(world.live_of(1), 1);
}

#[test]
fn a_backend_that_gave_up_the_port_keeps_no_flow_of_it() {
    let mut world = World::with_backends(&[1]);
    assert_eq!(world.connect(40_000, 1, 0), 1);
    assert_eq!(world.syn(40_001, 1, 0), to(1, SteerNew));
    world.backends.get_mut(&BackendId(1)).unwrap().targets[0] = Port::NONE;
    for port in [40_000, 40_001] {
        assert_eq!(world.client(port, ACK, 1), Verdict::Reset(ResetGone));
    }
    assert_eq!(world.live_of(1), 1, "until the agent sweeps it away");
}
