//! A flow stays where it began, until it ends or its backend is gone.

use steer_common::backend::BackendEntry;
use steer_common::service::Balance;
use steer_common::state::BackendState::{Drained, Draining, Gone, Maintenance, Ready, Starting, Unready};
use steer_common::tcp::TcpState::{Established, SynReceived, SynSent};
use steer_common::verdict::Counter::{
    Follow, PassNoFlow, ResetGone, SteerAgain, SteerNew, SteerRetransmit, SteerReuse,
};
use steer_tests::bpf::{Bench, CLIENT_PORT, FRONTEND, Flow, Hook, from_backend, from_client, ifindex};

use super::story::connect;

stories! {
    a_retransmitted_syn_goes_to_the_same_backend: [SteerNew, SteerRetransmit],
    a_draining_backend_keeps_its_flows_and_gets_no_new_ones: [SteerNew, Follow, Reply],
    a_flow_survives_every_state_its_backend_may_be_in: [SteerNew, Follow, Reply],
    new_backends_and_new_slots_move_no_flow: [SteerNew, Follow, Reply],
    a_syn_without_an_answer_leaves_a_backend_that_is_no_longer_ready: [SteerNew, SteerAgain, Reply, Follow],
    a_syn_that_was_answered_stays: [SteerNew, SteerRetransmit, Reply, Follow],
    packets_to_a_backend_that_is_gone_are_answered_with_a_reset: [SteerNew, Follow, Reply, ResetGone, PassToTc, PassNoFlow, SteerReuse],
    packets_to_a_backend_that_has_ended_are_answered_with_a_reset: [SteerNew, Follow, Reply, ResetGone, PassToTc, PassNoFlow, SteerReuse],
    a_reused_id_inherits_no_flows: [SteerNew, Follow, Reply, ResetGone, PassToTc],
}

fn a_retransmitted_syn_goes_to_the_same_backend(bench: &mut Bench) {
    bench.serve(&[1, 2, 3]);
    for (place, hooks) in [[Hook::Xdp, Hook::Xdp], [Hook::Xdp, Hook::Tc], [Hook::Tc, Hook::Xdp]].into_iter().enumerate()
    {
        let port = CLIENT_PORT + place as u16;
        let syn = from_client(port).syn(0xffff_fff0);
        let id = bench.send(hooks[0], &syn).goes_somewhere(SteerNew);
        for _ in 0..6 {
            bench.send(hooks[1], &syn).goes_to(id, SteerRetransmit);
        }
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, id, SynSent)));
    }
    assert_eq!((1..=3).map(|id| bench.stats(id).steered).collect::<Vec<_>>(), [1, 1, 1]);
}

fn a_draining_backend_keeps_its_flows_and_gets_no_new_ones(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        let old = connect(bench, hook, port);
        let other = 3 - old;
        // The kernel's word alone, then the agent's slot table.
        bench.set_state(old, Draining);
        for (step, table) in [&[1, 2][..], &[other]].into_iter().enumerate() {
            bench.deal_by(Balance::RoundRobin, &table.iter().map(|&id| (id, 1)).collect::<Vec<_>>(), &[old]);
            bench.send(hook, &from_client(port).payload(b"still here")).goes_to(old, Follow);
            bench.reply(old, &from_backend(old, port)).comes_from(FRONTEND);
            for new in 1..4 {
                let syn = from_client(port + 3 * step as u16 + new).syn(7);
                bench.send(hook, &syn).goes_to(other, SteerNew);
            }
        }
        assert_eq!(bench.live(old), 1);
        bench.set_state(old, Ready);
        bench.deal(&[1, 2]);
        // The other one gets the same treatment, flows of the first hook stay.
        bench.set_live(old, 0);
    }
}

fn a_flow_survives_every_state_its_backend_may_be_in(bench: &mut Bench) {
    bench.serve(&[1]);
    connect(bench, Hook::Xdp, CLIENT_PORT);
    // Also `Gone`: only the entry of the backend decides, since a state is written before anything else.
    for state in [Starting, Ready, Unready, Draining, Maintenance, Drained, Gone] {
        bench.set_state(1, state);
        for hook in Hook::BOTH {
            bench.send(hook, &from_client(CLIENT_PORT).payload(b"up")).goes_to(1, Follow);
        }
        bench.reply(1, &from_backend(1, CLIENT_PORT).payload(b"down")).comes_from(FRONTEND);
    }
    assert_eq!(bench.flows(), [Flow::of(CLIENT_PORT, 1, Established)]);
}

fn new_backends_and_new_slots_move_no_flow(bench: &mut Bench) {
    bench.serve(&[1]);
    connect(bench, Hook::Tc, CLIENT_PORT);
    (2..=6).for_each(|id| bench.add_backend(id));
    for (balance, ids) in [
        (Balance::RoundRobin, &[1, 2, 3, 4, 5, 6][..]),
        (Balance::Maglev, &[6, 5, 4]),
        (Balance::Source, &[2]),
        (Balance::LeastConn, &[]),
    ] {
        bench.deal_by(balance, &ids.iter().map(|&id| (id, 1)).collect::<Vec<_>>(), &[]);
        for hook in Hook::BOTH {
            bench.send(hook, &from_client(CLIENT_PORT).payload(b"up")).goes_to(1, Follow);
        }
        bench.reply(1, &from_backend(1, CLIENT_PORT)).comes_from(FRONTEND);
    }
}

fn a_syn_without_an_answer_leaves_a_backend_that_is_no_longer_ready(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let syn = from_client(port).syn(7);
        let first = bench.send(hook, &syn).goes_somewhere(SteerNew);
        let second = 3 - first;
        bench.set_state(first, Unready);
        bench.send(hook, &syn).goes_to(second, SteerAgain);
        // Its late answer comes from nowhere any more.
        bench.reply(first, &from_backend(first, port).syn_ack()).is_left_alone();
        bench.reply(second, &from_backend(second, port).syn_ack()).comes_from(FRONTEND);
        bench.send(hook, &from_client(port)).goes_to(second, Follow);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, second, Established)));
        bench.set_state(first, Ready);
    }
}

fn a_syn_that_was_answered_stays(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let syn = from_client(port).syn(7);
        let id = bench.send(hook, &syn).goes_somewhere(SteerNew);
        bench.reply(id, &from_backend(id, port).syn_ack()).comes_from(FRONTEND);
        bench.set_state(id, Draining);
        // Its SYN-ACK may be on the way: another backend's would be another sequence number.
        bench.send(hook, &syn).goes_to(id, SteerRetransmit);
        bench.reply(id, &from_backend(id, port).syn_ack()).comes_from(FRONTEND);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, id, SynReceived)));
        bench.send(hook, &from_client(port)).goes_to(id, Follow);
        bench.set_state(id, Ready);
    }
}

fn packets_to_a_backend_that_is_gone_are_answered_with_a_reset(bench: &mut Bench) {
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        connect(bench, hook, port);
        connect(bench, hook, port + 1);
        bench.deal(&[]);
        bench.remove_backend(1);
        for _ in 0..2 {
            bench.send(hook, &from_client(port).payload(b"anyone?")).is_reset(ResetGone);
        }
        // Never with a reset to a reset.
        bench.send(hook, &from_client(port).rst()).passes(PassNoFlow);
        bench.reply(1, &from_backend(1, port)).is_left_alone();
        // A new connection from a port whose old one never heard of it.
        bench.add_backend(2);
        bench.deal(&[2]);
        bench.send(hook, &from_client(port + 1).syn(8)).goes_to(2, SteerReuse);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port + 1, 2, SynSent)));
        assert_eq!((bench.live(1), bench.live(2)), (0, 0));
        bench.remove_backend(2);
        bench.add_backend(1);
        bench.deal(&[1]);
    }
}

/// With no agent there: the kernel alone has seen its end.
fn packets_to_a_backend_that_has_ended_are_answered_with_a_reset(bench: &mut Bench) {
    /// No namespace has this id, no interface this index.
    const NOBODY: i32 = 4_000;
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        let packet = from_client(port).payload(b"anyone?");
        connect(bench, hook, port);
        // Its interface is there, and its sockets cannot be seen: it may still have something to say.
        bench.change_backend(1, |entry| entry.flags |= BackendEntry::ENDED);
        bench.set_state(1, Gone);
        bench.send(hook, &packet).goes_to(1, Follow);
        let whole = |entry: &mut BackendEntry| (entry.netns_id, entry.ifindex) = (-1, ifindex(1));
        for part in [
            (|entry: &mut BackendEntry| entry.netns_id = NOBODY) as fn(&mut BackendEntry),
            |entry: &mut BackendEntry| entry.ifindex = NOBODY as u32,
        ] {
            bench.change_backend(1, part);
            for _ in 0..2 {
                bench.send(hook, &packet).is_reset(ResetGone);
            }
            bench.send(hook, &from_client(port).rst()).passes(PassNoFlow);
            bench.change_backend(1, whole);
            bench.send(hook, &packet).goes_to(1, Follow);
        }
        // A new connection from that port goes to somebody else.
        bench.change_backend(1, |entry| entry.netns_id = NOBODY);
        bench.add_backend(2);
        bench.deal(&[2]);
        bench.send(hook, &from_client(port).syn(8)).goes_to(2, SteerReuse);
        bench.remove_backend(2);
        bench.remove_backend(1);
        bench.add_backend(1);
        bench.deal(&[1]);
    }
}

fn a_reused_id_inherits_no_flows(bench: &mut Bench) {
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        connect(bench, hook, port);
        let flow = *bench.flows().last().expect("it is established");
        bench.remove_backend(1);
        let generation = flow.generation + 1;
        bench.add_backend_with(1, |entry| entry.generation = generation);
        bench.reply(1, &from_backend(1, port)).is_left_alone();
        bench.send(hook, &from_client(port).payload(b"for the old one")).is_reset(ResetGone);
        bench.send(hook, &from_client(port)).is_reset(ResetGone);
        // The old flow was never the new tenant's, and is not taken off its count.
        assert_eq!(bench.live(1), 0);
        bench.send(hook, &from_client(port + 1).syn(7)).goes_to(1, SteerNew);
        let new = Flow { generation, ..Flow::of(port + 1, 1, SynSent) };
        assert_eq!(bench.flows().last(), Some(&new));
        bench.remove_backend(1);
        bench.add_backend(1);
    }
}
