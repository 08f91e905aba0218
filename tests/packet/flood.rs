//! A flood of SYNs from everywhere thrashes the table of opening flows, and nothing else.

use steer_common::limits::MAX_PENDING;
use steer_common::tcp::TcpState::Established;
use steer_common::verdict::Counter::{Follow, SteerNew};
use steer_tests::bpf::{Bench, CLIENT_PORT, FRONTEND, Flow, Hook, Program, from_backend, from_client};

use super::story::connect;

stories! {
    a_syn_flood_never_reaches_established_flows: [SteerNew, Follow, Reply],
}

const FLOOD: u32 = 100_000;

fn a_syn_flood_never_reaches_established_flows(bench: &mut Bench) {
    bench.serve(&[1, 2, 3]);
    let ports = CLIENT_PORT..CLIENT_PORT + 60;
    let ids: Vec<u16> = ports.clone().map(|port| connect(bench, Hook::BOTH[usize::from(port % 2)], port)).collect();
    let flows: Vec<Flow> = ports.clone().zip(&ids).map(|(port, &id)| Flow::of(port, id, Established)).collect();
    assert_eq!(bench.flows(), flows);

    let before = bench.counts();
    let mut frame = from_client(0).syn(7).bytes();
    for attacker in 0..FLOOD {
        // Every address and port once, in no order (Knuth's multiplicative hash); nobody checks the checksums here.
        frame[26..30].copy_from_slice(&attacker.wrapping_mul(2_654_435_761).to_be_bytes());
        frame[34..36].copy_from_slice(&(attacker as u16).to_be_bytes());
        let ran = bench.run(Program::Uplink(Hook::BOTH[attacker as usize % 2]), &frame);
        assert!([4, 7].contains(&ran.code), "{attacker}: {}", ran.code);
    }
    let steered = bench.counts()[SteerNew as usize] - before[SteerNew as usize];
    assert_eq!(steered, u64::from(FLOOD));
    assert!(bench.opening() <= MAX_PENDING as usize, "{} flows opening", bench.opening());
    assert_eq!(bench.established(), 60);

    for (port, id) in ports.zip(ids) {
        for hook in Hook::BOTH {
            bench.send(hook, &from_client(port).payload(b"still here")).goes_to(id, Follow);
        }
        bench.reply(id, &from_backend(id, port)).comes_from(FRONTEND);
    }
    assert_eq!((1..=3).map(|id| bench.live(id)).sum::<u64>(), 60);
    // And whoever is quick enough still gets in.
    connect(bench, Hook::Xdp, 1);
    connect(bench, Hook::Tc, 2);
    assert_eq!(bench.established(), 62);
}
