//! Who takes a new flow.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};

use steer_common::addr::Port;
use steer_common::service::{Balance, ServiceEntry, ServiceId};
use steer_common::state::BackendState::{Draining, Ready, Unready};
use steer_common::tcp::TcpState::SynSent;
use steer_common::verdict::Counter::{Follow, ResetNoBackend, SteerNew, SteerReuse};
use steer_tests::bpf::{Bench, CLIENT_PORT, FRONTEND, Flow, Hook, backend_addr, from_client};

stories! {
    equal_backends_get_equal_shares: [SteerNew],
    weights_are_kept_to_the_last_connection: [SteerNew],
    a_backend_that_is_demoted_gets_nothing_before_its_slots_are_gone: [SteerNew],
    a_draining_backend_is_better_than_none: [SteerNew],
    a_backend_of_another_service_gets_nothing: [SteerNew, ResetNoBackend, PassToTc],
    a_backend_gets_only_flows_for_ports_it_serves: [SteerNew],
    a_container_that_calls_its_own_service_reaches_another: [SteerNew, ResetNoBackend],
    least_connections_spares_the_busy: [SteerNew],
    least_connections_counts_by_weight: [SteerNew],
    maglev_sends_a_client_port_where_it_was_before: [SteerNew, SteerReuse, Follow],
    source_sends_a_client_where_its_other_connections_are: [SteerNew],
}

/// How many of `count` connections, each from another client port, go to each backend.
fn shares(bench: &mut Bench, hook: Hook, ports: std::ops::Range<u16>) -> BTreeMap<u16, usize> {
    let mut shares = BTreeMap::new();
    for port in ports {
        let id = bench.send(hook, &from_client(port).syn(7)).goes_somewhere(SteerNew);
        *shares.entry(id).or_default() += 1;
    }
    shares
}

fn balance(bench: &mut Bench, balance: Balance, weights: &[(u16, u16)]) {
    bench.settings(ServiceEntry { balance: balance as u8, ..ServiceEntry::default() });
    bench.deal_by(balance, weights, &[]);
}

/// Also guards the compiler: an atomic addition whose old value is not returned makes a round robin that never turns
/// (`steer-ebpf/src/atomic.rs`).
fn equal_backends_get_equal_shares(bench: &mut Bench) {
    bench.serve(&[1, 2, 3]);
    assert_eq!(bench.service_state().cursor, 0);
    assert_eq!(shares(bench, Hook::Xdp, 1..301), BTreeMap::from([(1, 100), (2, 100), (3, 100)]));
    assert_eq!(bench.service_state().cursor, 300);
    assert_eq!(shares(bench, Hook::Tc, 301..601), BTreeMap::from([(1, 100), (2, 100), (3, 100)]));
    assert_eq!(bench.service_state().cursor, 600);
    let turns: Vec<u16> = bench.flows().iter().take(6).map(|flow| flow.backend).collect();
    assert_eq!(turns, [1, 2, 3, 1, 2, 3]);
    assert_eq!((1..=3).map(|id| bench.stats(id).steered).collect::<Vec<_>>(), [200; 3]);
}

fn weights_are_kept_to_the_last_connection(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    bench.deal_by(Balance::RoundRobin, &[(1, 3), (2, 1)], &[]);
    for (hook, ports) in Hook::BOTH.into_iter().zip([1..401, 1001..1401]) {
        assert_eq!(shares(bench, hook, ports), BTreeMap::from([(1, 300), (2, 100)]));
    }
    bench.deal_by(Balance::RoundRobin, &[(1, 256), (2, 0)], &[]);
    assert_eq!(shares(bench, Hook::Tc, 2001..2051), BTreeMap::from([(1, 50)]));
}

fn a_backend_that_is_demoted_gets_nothing_before_its_slots_are_gone(bench: &mut Bench) {
    bench.serve(&[1, 2, 3]);
    bench.set_state(2, Unready);
    for (hook, ports) in Hook::BOTH.into_iter().zip([1..301, 301..601]) {
        // The next slot takes its share.
        assert_eq!(shares(bench, hook, ports), BTreeMap::from([(1, 100), (3, 200)]));
    }
    // More in a row than slots are tried: the members are looked through.
    (4..=20).for_each(|id| bench.add_backend(id));
    bench.deal(&(1..=20).collect::<Vec<_>>());
    (1..=19).for_each(|id| bench.set_state(id, Draining));
    assert_eq!(shares(bench, Hook::Xdp, 601..641), BTreeMap::from([(20, 40)]));
}

fn a_draining_backend_is_better_than_none(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    bench.deal_by(Balance::RoundRobin, &[], &[1, 2]);
    bench.set_state(1, Unready);
    bench.set_state(2, Draining);
    for (hook, ports) in Hook::BOTH.into_iter().zip([1..11, 11..21]) {
        assert_eq!(shares(bench, hook, ports), BTreeMap::from([(2, 10)]));
    }
    bench.set_state(1, Ready);
    assert_eq!(shares(bench, Hook::Tc, 21..31), BTreeMap::from([(1, 10)]));
}

fn a_backend_of_another_service_gets_nothing(bench: &mut Bench) {
    bench.serve(&[]);
    // Its id was given to another service while the old table was still there.
    bench.add_backend_with(1, |entry| entry.service = ServiceId(2));
    bench.deal(&[1]);
    for hook in Hook::BOTH {
        bench.send(hook, &from_client(CLIENT_PORT).syn(7)).is_reset(ResetNoBackend);
    }
    bench.add_backend(2);
    bench.deal(&[1, 2]);
    assert_eq!(shares(bench, Hook::Xdp, 1..21), BTreeMap::from([(2, 20)]));
}

fn a_backend_gets_only_flows_for_ports_it_serves(bench: &mut Bench) {
    bench.serve(&[1]);
    bench.add_backend_with(2, |entry| entry.targets[1] = Port::new(5001));
    bench.deal(&[1, 2]);
    let admin = SocketAddrV4::new(*FRONTEND.ip(), 9001);
    bench.publish(admin, 1, 0);
    for (hook, first) in Hook::BOTH.into_iter().zip([1, 11]) {
        for port in first..first + 10 {
            bench.send(hook, &from_client(port).syn(7).to(admin)).goes_to_port(2, 5001, SteerNew);
        }
        assert_eq!(shares(bench, hook, first + 100..first + 110), BTreeMap::from([(1, 5), (2, 5)]));
    }
}

fn a_container_that_calls_its_own_service_reaches_another(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for (hook, port) in Hook::BOTH.into_iter().zip([1, 101]) {
        for port in port..port + 10 {
            let inside = SocketAddrV4::new(*backend_addr(1).ip(), port);
            bench.send(hook, &from_client(0).syn(7).from(inside)).goes_to(2, SteerNew);
        }
    }
    bench.deal(&[1]);
    let inside = SocketAddrV4::new(*backend_addr(1).ip(), 1000);
    bench.send(Hook::Tc, &from_client(0).syn(7).from(inside)).is_reset(ResetNoBackend);
}

fn least_connections_spares_the_busy(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    balance(bench, Balance::LeastConn, &[(1, 1), (2, 1)]);
    bench.set_live(1, 100);
    for (hook, ports) in Hook::BOTH.into_iter().zip([1..201, 201..401]) {
        let shares = shares(bench, hook, ports);
        // Of two candidates the better: the busy one only where both are the same one.
        assert!(shares[&2] >= 130, "{shares:?}");
    }
    bench.set_state(2, Unready);
    assert_eq!(shares(bench, Hook::Tc, 401..421), BTreeMap::from([(1, 20)]));
}

fn least_connections_counts_by_weight(bench: &mut Bench) {
    bench.serve(&[2]);
    bench.add_backend_with(1, |entry| entry.weight = 10);
    balance(bench, Balance::LeastConn, &[(1, 1), (2, 1)]);
    // More flows, but fewer for its weight.
    bench.set_live(1, 50);
    bench.set_live(2, 10);
    for (hook, ports) in Hook::BOTH.into_iter().zip([1..201, 201..401]) {
        let shares = shares(bench, hook, ports);
        assert!(shares[&1] >= 130, "{shares:?}");
    }
}

fn maglev_sends_a_client_port_where_it_was_before(bench: &mut Bench) {
    bench.serve(&[1, 2, 3]);
    balance(bench, Balance::Maglev, &[(1, 1), (2, 1), (3, 1)]);
    let shares = shares(bench, Hook::Xdp, 1..301);
    assert!(shares.len() == 3 && shares.values().all(|share| (70..=130).contains(share)), "{shares:?}");
    let before: Vec<Flow> = bench.flows();
    for flow in &before {
        bench.send(Hook::Xdp, &from_client(flow.client_port).rst()).goes_to(flow.backend, Follow);
        // Both hooks reckon alike.
        bench.send(Hook::Tc, &from_client(flow.client_port).syn(8)).goes_to(flow.backend, SteerReuse);
    }
    assert_eq!(bench.flows(), before);
    assert!(before.iter().all(|flow| flow.state == SynSent));
}

fn source_sends_a_client_where_its_other_connections_are(bench: &mut Bench) {
    bench.serve(&[1, 2, 3]);
    balance(bench, Balance::Source, &[(1, 1), (2, 1), (3, 1)]);
    let mut used = BTreeMap::<u16, usize>::new();
    for client in 1..=60 {
        let at = |port| SocketAddrV4::new(Ipv4Addr::new(192, 0, 2, client), port);
        let id = bench.send(Hook::Xdp, &from_client(0).syn(7).from(at(1))).goes_somewhere(SteerNew);
        for (hook, port) in [(Hook::Xdp, 2), (Hook::Tc, 3), (Hook::Tc, 65_535)] {
            bench.send(hook, &from_client(0).syn(7).from(at(port))).goes_to(id, SteerNew);
        }
        *used.entry(id).or_default() += 1;
    }
    assert!(used.len() == 3 && used.values().all(|share| *share >= 10), "{used:?}");
}
