//! A connection's life: what its packets make of its entry, when it counts as live, and what a client port may be used for
//! when it has ended.

use steer_common::tcp::TcpState::{Closed, Established, FinForward, FinReverse, Reset, SynReceived, SynSent};
use steer_common::verdict::Counter::{Follow, SteerNew, SteerRetransmit, SteerReuse};
use steer_tests::bpf::{Bench, CLIENT_PORT, FRONTEND, Flow, Hook, from_backend, from_client};

use super::story::{close, connect};

stories! {
    a_flow_is_live_from_its_handshake_to_its_close: [SteerNew, Follow, Reply],
    the_backend_may_close_first: [SteerNew, Follow, Reply],
    a_reset_from_either_side_ends_a_flow: [SteerNew, Follow, Reply],
    live_flows_are_counted_exactly: [SteerNew, Follow, Reply],
    a_client_port_is_free_after_both_sides_closed: [SteerNew, SteerReuse, Follow, Reply],
    a_client_port_is_free_after_a_reset: [SteerNew, SteerReuse, Follow, Reply],
    a_client_port_that_was_never_closed_is_taken_over_where_half_is_closed: [SteerNew, SteerReuse, Follow, Reply],
    a_forged_syn_does_not_move_an_established_flow: [SteerNew, SteerRetransmit, Follow, Reply],
    another_syn_before_any_answer_is_another_connection: [SteerNew, SteerReuse],
}

fn a_flow_is_live_from_its_handshake_to_its_close(bench: &mut Bench) {
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let state = |bench: &Bench| bench.flows().last().map(|flow| (flow.client_port, flow.state, bench.live(1)));
        let client = || from_client(port);
        let backend = || from_backend(1, port);
        bench.send(hook, &client().syn(7)).goes_to(1, SteerNew);
        assert_eq!(state(bench), Some((port, SynSent, 0)));
        bench.reply(1, &backend().syn_ack()).comes_from(FRONTEND);
        assert_eq!(state(bench), Some((port, SynReceived, 0)));
        bench.send(hook, &client()).goes_to(1, Follow);
        assert_eq!(state(bench), Some((port, Established, 1)));
        bench.send(hook, &client().fin()).goes_to(1, Follow);
        assert_eq!(state(bench), Some((port, FinForward, 1)));
        bench.reply(1, &backend().payload(b"the rest of it")).comes_from(FRONTEND);
        assert_eq!(state(bench), Some((port, FinForward, 1)));
        bench.reply(1, &backend().fin()).comes_from(FRONTEND);
        assert_eq!(state(bench), Some((port, Closed, 0)));
        // The last acknowledgement, and a FIN whose acknowledgement got lost.
        bench.send(hook, &client()).goes_to(1, Follow);
        bench.reply(1, &backend().fin()).comes_from(FRONTEND);
        bench.send(hook, &client()).goes_to(1, Follow);
        assert_eq!(state(bench), Some((port, Closed, 0)));
        assert_eq!(bench.established(), 0);
    }
}

fn the_backend_may_close_first(bench: &mut Bench) {
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        connect(bench, hook, port);
        bench.reply(1, &from_backend(1, port).fin()).comes_from(FRONTEND);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, 1, FinReverse)));
        bench.send(hook, &from_client(port).payload(b"thanks")).goes_to(1, Follow);
        assert_eq!(bench.live(1), 1);
        bench.send(hook, &from_client(port).fin()).goes_to(1, Follow);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, 1, Closed)));
        assert_eq!(bench.live(1), 0);
        bench.reply(1, &from_backend(1, port)).comes_from(FRONTEND);
    }
}

fn a_reset_from_either_side_ends_a_flow(bench: &mut Bench) {
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        connect(bench, hook, port);
        bench.send(hook, &from_client(port).rst()).goes_to(1, Follow);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, 1, Reset)));
        connect(bench, hook, port + 1);
        bench.reply(1, &from_backend(1, port + 1).rst()).comes_from(FRONTEND);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port + 1, 1, Reset)));
        // Also the refusal of a SYN: the client hears of it.
        bench.send(hook, &from_client(port + 2).syn(7)).goes_to(1, SteerNew);
        bench.reply(1, &from_backend(1, port + 2).rst()).comes_from(FRONTEND);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port + 2, 1, Reset)));
        assert_eq!((bench.live(1), bench.established()), (0, 0));
    }
}

fn live_flows_are_counted_exactly(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    let ports = CLIENT_PORT..CLIENT_PORT + 20;
    let ids: Vec<u16> = ports.clone().map(|port| connect(bench, Hook::BOTH[usize::from(port % 2)], port)).collect();
    let flows: Vec<Flow> = ports.clone().zip(&ids).map(|(port, &id)| Flow::of(port, id, Established)).collect();
    assert_eq!(bench.flows(), flows);
    assert_eq!((bench.live(1), bench.live(2)), (10, 10));
    for (done, (port, id)) in ports.zip(ids).enumerate() {
        // Whichever hook ends it, and however often the end is seen.
        close(bench, Hook::BOTH[done / 10], port, id);
        bench.send(Hook::Tc, &from_client(port).rst()).goes_to(id, Follow);
        assert_eq!(bench.live(1) + bench.live(2), 19 - done as u64);
    }
    for id in [1, 2] {
        assert_eq!((bench.stats(id).steered, bench.stats(id).established), (10, 10));
    }
}

fn a_client_port_is_free_after_both_sides_closed(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let first = connect(bench, hook, port);
        close(bench, hook, port, first);
        let second = bench.send(hook, &from_client(port).syn(2)).goes_somewhere(SteerReuse);
        assert_ne!(first, second, "it was the other one's turn");
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, second, SynSent)));
        bench.reply(second, &from_backend(second, port).syn_ack()).comes_from(FRONTEND);
        bench.send(hook, &from_client(port)).goes_to(second, Follow);
        assert_eq!((bench.live(first), bench.live(second)), (0, 1));
        close(bench, hook, port, second);
        // Even with the same sequence number it is a new connection now.
        bench.send(hook, &from_client(port).syn(2)).goes_to(first, SteerReuse);
    }
}

fn a_client_port_is_free_after_a_reset(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let first = connect(bench, hook, port);
        bench.send(hook, &from_client(port).rst()).goes_to(first, Follow);
        let second = bench.send(hook, &from_client(port).syn(2)).goes_somewhere(SteerReuse);
        assert_ne!(first, second, "it was the other one's turn");
        bench.reply(second, &from_backend(second, port).syn_ack()).comes_from(FRONTEND);
        bench.reply(second, &from_backend(second, port).rst()).comes_from(FRONTEND);
        bench.send(hook, &from_client(port).syn(2)).goes_to(first, SteerReuse);
        assert_eq!((bench.live(1), bench.live(2)), (0, 0));
    }
}

fn a_client_port_that_was_never_closed_is_taken_over_where_half_is_closed(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let first = connect(bench, hook, port);
        bench.reply(first, &from_backend(first, port).fin()).comes_from(FRONTEND);
        assert_eq!(bench.live(first), 1);
        let second = bench.send(hook, &from_client(port).syn(2)).goes_somewhere(SteerReuse);
        assert_ne!(first, second, "it was the other one's turn");
        assert_eq!((bench.live(1), bench.live(2), bench.established()), (0, 0, 0));
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, second, SynSent)));
    }
}

fn a_forged_syn_does_not_move_an_established_flow(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let id = connect(bench, hook, port);
        // The backend answers with a challenge ACK (RFC 5961); a client that did restart then sends RST.
        bench.send(hook, &from_client(port).syn(0xbad)).goes_to(id, SteerRetransmit);
        bench.reply(id, &from_backend(id, port)).comes_from(FRONTEND);
        bench.send(hook, &from_client(port).payload(b"unmoved")).goes_to(id, Follow);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, id, Established)));
        assert_eq!(bench.live(id), 1);
    }
}

fn another_syn_before_any_answer_is_another_connection(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let first = bench.send(hook, &from_client(port).syn(1)).goes_somewhere(SteerNew);
        let second = bench.send(hook, &from_client(port).syn(2)).goes_somewhere(SteerReuse);
        assert_ne!(first, second, "it was the other one's turn");
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, second, SynSent)));
    }
}
