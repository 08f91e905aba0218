//! New flows that nobody takes, or may take: dropped or passed, always with a reason.

use std::net::{Ipv4Addr, SocketAddrV4};

use steer_common::service::{FrontendEntry, ServiceEntry};
use steer_common::state::BackendState::{Gone, Maintenance, Ready, Starting, Unready};
use steer_common::tcp::TcpState::SynSent;
use steer_common::verdict::Counter::{
    DropHold, DropNotAllowed, Follow, PassClosed, PassNoFlow, ResetNoBackend, SteerNew, SteerRetransmit,
};
use steer_tests::bpf::{Bench, CLIENT_PORT, FRONTEND, Flow, Hook, from_backend, from_client};

use super::story::{close, connect};

stories! {
    new_flows_wait_while_no_backend_is_ready: [DropHold, SteerNew],
    each_port_of_a_service_waits_by_itself: [DropHold, SteerNew],
    no_state_but_ready_or_draining_takes_new_flows: [DropHold, SteerNew],
    the_wait_is_over_after_the_time_to_hold: [DropHold, ResetNoBackend, PassToTc, SteerNew],
    without_a_time_to_hold_the_host_refuses_at_once: [ResetNoBackend, PassToTc],
    only_the_sources_on_the_list_may_connect: [SteerNew, DropNotAllowed],
    a_source_taken_off_the_list_keeps_its_connections: [SteerNew, Follow, Reply, DropNotAllowed],
    a_service_that_admits_nobody_admits_nobody: [DropNotAllowed, PassNoFlow],
    a_closed_frontend_takes_no_new_flows_and_keeps_the_old: [SteerNew, SteerRetransmit, Follow, Reply, PassClosed, PassNoFlow],
}

const HOUR: u64 = 3_600_000_000_000;

fn hold(bench: &mut Bench, hold_ns: u64) {
    bench.settings(ServiceEntry { hold_ns, ..ServiceEntry::default() });
}

fn new_flows_wait_while_no_backend_is_ready(bench: &mut Bench) {
    bench.serve(&[1]);
    hold(bench, HOUR);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let syn = from_client(port).syn(7);
        bench.deal(&[]);
        bench.send(hook, &syn).is_dropped(DropHold);
        let since = bench.service_state().none_since[0].first;
        assert_ne!(since, 0);
        bench.send(hook, &syn).is_dropped(DropHold);
        assert_eq!(bench.service_state().none_since[0].first, since, "it began with the first");
        // The client tries again, and now there is one.
        bench.deal(&[1]);
        bench.send(hook, &syn).goes_to(1, SteerNew);
        assert_eq!(bench.service_state().none_since[0].first, 0);
    }
    assert_eq!(bench.flows(), [Flow::of(CLIENT_PORT, 1, SynSent), Flow::of(CLIENT_PORT + 1, 1, SynSent)]);
}

fn each_port_of_a_service_waits_by_itself(bench: &mut Bench) {
    bench.serve(&[1]);
    hold(bench, HOUR);
    let unserved = SocketAddrV4::new(*FRONTEND.ip(), FRONTEND.port() + 1);
    bench.publish(unserved, 1, 0);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        bench.send(hook, &from_client(port).syn(7).to(unserved)).is_dropped(DropHold);
        let since = bench.service_state().none_since;
        assert_ne!(since[1].first, 0);
        bench.send(hook, &from_client(port + 1).syn(7)).goes_to(1, SteerNew);
        assert_eq!(bench.service_state().none_since, since, "somebody serves another port");
        assert_eq!(since[0].first, 0, "and its clients never waited");
    }
}

fn no_state_but_ready_or_draining_takes_new_flows(bench: &mut Bench) {
    bench.serve(&[1]);
    hold(bench, HOUR);
    for hook in Hook::BOTH {
        for state in [Gone, Starting, Unready, Maintenance] {
            bench.set_state(1, state);
            bench.send(hook, &from_client(CLIENT_PORT).syn(7)).is_dropped(DropHold);
        }
    }
    assert_eq!(bench.flows(), []);
    bench.set_state(1, Ready);
    bench.send(Hook::Xdp, &from_client(CLIENT_PORT).syn(7)).goes_to(1, SteerNew);
}

fn the_wait_is_over_after_the_time_to_hold(bench: &mut Bench) {
    bench.serve(&[1]);
    bench.set_state(1, Unready);
    hold(bench, 1_000_000);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let syn = from_client(port).syn(7);
        bench.none_since(0);
        bench.send(hook, &syn).is_dropped(DropHold);
        // Since the first nanosecond this host was up.
        bench.none_since(1);
        bench.send(hook, &syn).is_reset(ResetNoBackend);
    }
    bench.set_state(1, Ready);
    bench.send(Hook::Tc, &from_client(CLIENT_PORT).syn(7)).goes_to(1, SteerNew);
    bench.set_state(1, Unready);
    bench.send(Hook::Tc, &from_client(CLIENT_PORT + 2).syn(7)).is_dropped(DropHold);
}

fn without_a_time_to_hold_the_host_refuses_at_once(bench: &mut Bench) {
    bench.serve(&[]);
    for hook in Hook::BOTH {
        bench.send(hook, &from_client(CLIENT_PORT).syn(7)).is_reset(ResetNoBackend);
    }
    assert_eq!(bench.flows(), []);
}

fn from(address: [u8; 4], port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from(address), port)
}

fn only_the_sources_on_the_list_may_connect(bench: &mut Bench) {
    bench.serve(&[1]);
    bench.settings(ServiceEntry { flags: ServiceEntry::ALLOW_LIST, ..ServiceEntry::default() });
    for net in ["192.0.2.0/24", "198.51.100.7/32", "10.128.0.0/9"] {
        bench.allow(net);
    }
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        let syn = |address| from_client(0).syn(7).from(from(address, port));
        for inside in [[192, 0, 2, 0], [192, 0, 2, 255], [198, 51, 100, 7], [10, 128, 0, 1], [10, 255, 0, 1]] {
            bench.send(hook, &syn(inside)).goes_to(1, SteerNew);
        }
        for outside in [[192, 0, 1, 255], [192, 0, 3, 0], [198, 51, 100, 6], [10, 127, 0, 1], [0, 0, 0, 0]] {
            bench.send(hook, &syn(outside)).is_dropped(DropNotAllowed);
        }
    }
    assert_eq!(bench.flows().len(), 10);
}

fn a_source_taken_off_the_list_keeps_its_connections(bench: &mut Bench) {
    bench.serve(&[1]);
    bench.settings(ServiceEntry { flags: ServiceEntry::ALLOW_LIST, ..ServiceEntry::default() });
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        bench.allow("10.203.0.0/24");
        connect(bench, hook, port);
        bench.disallow("10.203.0.0/24");
        bench.send(hook, &from_client(port + 1).syn(7)).is_dropped(DropNotAllowed);
        bench.send(hook, &from_client(port).payload(b"still here")).goes_to(1, Follow);
        bench.reply(1, &from_backend(1, port)).comes_from(FRONTEND);
    }
}

fn a_service_that_admits_nobody_admits_nobody(bench: &mut Bench) {
    bench.serve(&[1]);
    bench.settings(ServiceEntry { flags: ServiceEntry::ALLOW_LIST, ..ServiceEntry::default() });
    for hook in Hook::BOTH {
        bench.send(hook, &from_client(CLIENT_PORT).syn(7)).is_dropped(DropNotAllowed);
        bench.send(hook, &from_client(CLIENT_PORT)).passes(PassNoFlow);
    }
    assert_eq!(bench.flows(), []);
}

fn a_closed_frontend_takes_no_new_flows_and_keeps_the_old(bench: &mut Bench) {
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 10]) {
        connect(bench, hook, port);
        bench.send(hook, &from_client(port + 1).syn(7)).goes_to(1, SteerNew);
        bench.publish(FRONTEND, 0, FrontendEntry::CLOSED);
        bench.send(hook, &from_client(port + 2).syn(7)).passes(PassClosed);
        bench.send(hook, &from_client(port).payload(b"still here")).goes_to(1, Follow);
        // One whose SYN was steered already may complete its handshake.
        bench.send(hook, &from_client(port + 1).syn(7)).goes_to(1, SteerRetransmit);
        bench.reply(1, &from_backend(1, port + 1).syn_ack()).comes_from(FRONTEND);
        bench.send(hook, &from_client(port + 1)).goes_to(1, Follow);
        close(bench, hook, port, 1);
        bench.send(hook, &from_client(port).syn(8)).passes(PassClosed);
        // What follows it is not the old connection's.
        bench.send(hook, &from_client(port)).passes(PassNoFlow);
        bench.publish(FRONTEND, 0, 0);
        bench.send(hook, &from_client(port).syn(9)).goes_to(1, SteerNew);
    }
}
