//! A backend answers a SYN with a reset: another one gets the SYN, and the client sees nothing of it.

use steer_common::service::ServiceEntry;
use steer_common::state::BackendState::Unready;
use steer_common::tcp::TcpState::{Reset, SynSent};
use steer_common::verdict::Counter::{DropRefused, Follow, SteerNew, SteerRetransmit};
use steer_tests::bpf::{Bench, CLIENT_PORT, FRONTEND, Flow, Hook, from_backend, from_client};

stories! {
    a_refused_syn_goes_to_another_backend: [SteerNew, SteerRefused, SteerRetransmit, Reply, Follow],
    a_syn_without_options_is_steered_again_too: [SteerNew, SteerRefused],
    a_client_hears_the_truth_after_two_tries: [SteerNew, SteerRefused, Reply],
    with_nobody_else_the_client_waits: [SteerNew, DropRefused],
    without_a_time_to_hold_the_client_hears_the_truth: [SteerNew, Reply],
    a_reset_behind_a_syn_ack_is_the_backends_own: [SteerNew, Reply],
}

fn a_refused_syn_goes_to_another_backend(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let syn = from_client(port).syn(0xfedc_ba98);
        let first = bench.send(hook, &syn).goes_somewhere(SteerNew);
        let second = 3 - first;
        bench.reply(first, &from_backend(first, port).rst()).becomes_syn(&syn, second);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, second, SynSent)));
        // The client's own retransmission finds it there.
        bench.send(hook, &syn).goes_to(second, SteerRetransmit);
        bench.reply(second, &from_backend(second, port).syn_ack()).comes_from(FRONTEND);
        bench.send(hook, &from_client(port)).goes_to(second, Follow);
        assert_eq!(bench.live(second), 1);
        bench.send(hook, &from_client(port).rst()).goes_to(second, Follow);
    }
    assert_eq!((1..=2).map(|id| bench.stats(id).resteered).sum::<u64>(), 2);
}

fn a_syn_without_options_is_steered_again_too(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let mut syn = from_client(port).syn(7);
        syn.tcp.set_options(&[]).expect("none fit");
        let first = bench.send(hook, &syn).goes_somewhere(SteerNew);
        bench.reply(first, &from_backend(first, port).rst()).becomes_syn(&syn, 3 - first);
    }
}

fn a_client_hears_the_truth_after_two_tries(bench: &mut Bench) {
    bench.serve(&[1, 2, 3]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let syn = from_client(port).syn(7);
        let mut asked = vec![bench.send(hook, &syn).goes_somewhere(SteerNew)];
        for _ in 0..2 {
            let last = asked[asked.len() - 1];
            asked.push(bench.reply(last, &from_backend(last, port).rst()).becomes_some_syn(&syn));
        }
        let third = asked[2];
        asked.sort_unstable();
        assert_eq!(asked, [1, 2, 3], "nobody is asked twice");
        bench.reply(third, &from_backend(third, port).rst()).comes_from(FRONTEND);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, third, Reset)));
    }
}

fn with_nobody_else_the_client_waits(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    bench.settings(ServiceEntry { hold_ns: 3_600_000_000_000, ..ServiceEntry::default() });
    bench.set_state(2, Unready);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        bench.send(hook, &from_client(port).syn(7)).goes_to(1, SteerNew);
        bench.reply(1, &from_backend(1, port).rst()).is_dropped(DropRefused);
        assert_eq!(bench.held(), [port]);
        bench.forget_held();
    }
    assert_eq!(bench.flows(), []);
}

fn without_a_time_to_hold_the_client_hears_the_truth(bench: &mut Bench) {
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        bench.send(hook, &from_client(port).syn(7)).goes_to(1, SteerNew);
        bench.reply(1, &from_backend(1, port).rst()).comes_from(FRONTEND);
    }
}

fn a_reset_behind_a_syn_ack_is_the_backends_own(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let id = bench.send(hook, &from_client(port).syn(7)).goes_somewhere(SteerNew);
        bench.reply(id, &from_backend(id, port).syn_ack()).comes_from(FRONTEND);
        bench.reply(id, &from_backend(id, port).rst()).comes_from(FRONTEND);
    }
}
