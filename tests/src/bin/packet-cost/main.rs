//! What a packet costs in steer's programs, in nanoseconds, as JSON: what `cargo xtask bench` quotes beside its real traffic.
//!
//! Each kind of packet is measured twice (see `harness/bpf/cost.rs`): `..._ns` is the median over single runs, each with the
//! packet handed in anew and the cost of an empty program taken off; `..._repeated_ns` is the mean of a million runs inside
//! the kernel, which has no system call's cold start in it.

mod listener;

use std::net::{Ipv4Addr, SocketAddrV4};

use serde::Serialize;
use steer_common::addr::Port;
use steer_common::limits::{MAX_FLOWS, MAX_PENDING};
use steer_common::service::{Balance, FrontendEntry};
use steer_common::tcp::TcpState::Established;
use steer_tests::bpf::{
    Bench, CLIENT_PORT, Cost, FRONTEND, Flow, Frame, Hook, Program, bench_for, cost, from_backend, from_client, mean,
};

/// Single runs of each kind.
const RUNS: u32 = 20_000;
const PAYLOAD: [u8; 64] = [0x5a; 64];

#[derive(Serialize)]
struct Report {
    xdp: Costs,
    tc: Costs,
    /// A reply of a backend: in tc only, at the host end of its veth.
    reply: Reply,
}

#[derive(Serialize)]
struct Costs {
    /// A data packet of an established flow, rewritten and redirected.
    known_flow_ns: f64,
    known_flow_p90_ns: f64,
    known_flow_repeated_ns: f64,
    /// The first packet of a connection: backend picked, flow written down.
    new_flow_ns: f64,
    new_flow_p90_ns: f64,
    /// The same while the table of opening flows is full, so that each must push another one out.
    new_flow_table_full_ns: f64,
    /// The same where the kernel is asked whether somebody listens in the backend's namespace, and somebody does.
    new_flow_listener_ns: f64,
    new_flow_listener_p90_ns: f64,
    /// TCP for somebody else.
    not_ours_ns: f64,
    not_ours_repeated_ns: f64,
    /// The kernel's own part of a single run, which is taken off everywhere else.
    empty_ns: f64,
    /// How far a packet gets, and what it has cost by then (repeated runs).
    on_the_way: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    reached: &'static str,
    repeated_ns: f64,
}

#[derive(Serialize)]
struct Reply {
    reply_ns: f64,
    reply_p90_ns: f64,
    reply_repeated_ns: f64,
    /// A RST in answer to a SYN, turned into a SYN to another backend.
    refused_ns: f64,
    refused_p90_ns: f64,
}

fn main() {
    stay_on_one_cpu();
    let report = Report { xdp: costs(Hook::Xdp), tc: costs(Hook::Tc), reply: bench_for(MAX_FLOWS, reply) };
    println!("{}", serde_json::to_string_pretty(&report).expect("numbers are JSON"));
}

/// Counters and caches of one CPU; the threads of the benches inherit it.
fn stay_on_one_cpu() {
    let mut last = nix::sched::CpuSet::new();
    let cpus = std::thread::available_parallelism().map_or(1, usize::from);
    let set = last.set(cpus - 1).and_then(|()| nix::sched::sched_setaffinity(nix::unistd::Pid::from_raw(0), &last));
    if let Err(error) = set {
        eprintln!("packet-cost: not bound to one CPU: {error}");
    }
}

fn costs(hook: Hook) -> Costs {
    let uplink = Program::Uplink(hook);
    let (known, not_ours, new, full, empty) = bench_for(MAX_FLOWS, |bench| {
        let id = establish(bench);
        assert_eq!(bench.flows(), [Flow::of(CLIENT_PORT, id, Established)]);
        let data = from_client(CLIENT_PORT).payload(&PAYLOAD).bytes();
        let known = cost(bench, uplink, RUNS, |_, _| data.clone());
        let ssh = ssh().bytes();
        let not_ours = cost(bench, uplink, RUNS, |_, _| ssh.clone());
        let new = cost(bench, uplink, RUNS, |_, run| syn(run));
        for run in RUNS..2 * MAX_PENDING {
            bench.run(uplink, &syn(run));
        }
        let full = cost(bench, uplink, RUNS, |_, run| syn(2 * MAX_PENDING + run));
        let empty = (0..RUNS).map(|_| bench.run(Program::Empty(hook), &data).duration.as_nanos() as f64);
        (known, not_ours, new, full, middle(empty.collect()))
    });
    let listener = bench_for(MAX_FLOWS, |bench| {
        let (_listener, netns_id) = listener::beside(bench);
        bench.serve(&[]);
        for id in 1..=4 {
            bench.add_backend_with(id, |entry| entry.netns_id = netns_id);
        }
        bench.deal(&[1, 2, 3, 4]);
        let cost = cost(bench, uplink, RUNS, |_, run| syn(run));
        assert_eq!(bench.opening(), RUNS as usize, "somebody listens, and takes every flow");
        cost
    });
    let (known_repeated, not_ours_repeated, on_the_way) = bench_for(MAX_FLOWS, |bench| {
        serve_unchanged(bench);
        let data = from_client(CLIENT_PORT).payload(&PAYLOAD).bytes();
        (mean(bench, uplink, &data), mean(bench, uplink, &ssh().bytes()), on_the_way(bench, uplink))
    });
    Costs {
        known_flow_ns: known.median_ns,
        known_flow_p90_ns: known.p90_ns,
        known_flow_repeated_ns: known_repeated,
        new_flow_ns: new.median_ns,
        new_flow_p90_ns: new.p90_ns,
        new_flow_table_full_ns: full.median_ns,
        new_flow_listener_ns: listener.median_ns,
        new_flow_listener_p90_ns: listener.p90_ns,
        not_ours_ns: not_ours.median_ns,
        not_ours_repeated_ns: not_ours_repeated,
        empty_ns: empty,
        on_the_way,
    }
}

fn on_the_way(bench: &mut Bench, uplink: Program) -> Vec<Step> {
    let loopback = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9000);
    bench.publish(loopback, 0, FrontendEntry::LOOPBACK);
    let data = || from_client(CLIENT_PORT).payload(&PAYLOAD);
    let mut other = data();
    other.ip.protocol = etherparse::ip_number::UDP;
    let mut other = other.bytes();
    // What wrote the header has put TCP back.
    other[23] = 17;
    let frames = [
        ("parsed, another protocol", other),
        ("no frontend", ssh().bytes()),
        ("a frontend", data().to(loopback).bytes()),
        ("a frontend, no flow in either table", from_client(CLIENT_PORT + 1).payload(&PAYLOAD).bytes()),
        ("a flow, rewritten, redirected", data().bytes()),
        ("the SYN of an established flow again", from_client(CLIENT_PORT).syn(1).bytes()),
    ];
    let step = |(reached, frame): (_, Vec<u8>)| Step { reached, repeated_ns: mean(bench, uplink, &frame) };
    frames.into_iter().map(step).collect()
}

fn reply(bench: &mut Bench) -> Reply {
    let id = establish(bench);
    let data = from_backend(id, CLIENT_PORT).payload(&PAYLOAD).bytes();
    let reply = cost(bench, Program::Backend(id), RUNS, |_, _| data.clone());
    let reply_repeated_ns = bench_for(MAX_FLOWS, |bench| {
        serve_unchanged(bench);
        let data = from_backend(1, CLIENT_PORT).from(FRONTEND).payload(&PAYLOAD).bytes();
        mean(bench, Program::Backend(1), &data)
    });
    let refused = bench_for(MAX_FLOWS, refused);
    Reply {
        reply_ns: reply.median_ns,
        reply_p90_ns: reply.p90_ns,
        reply_repeated_ns,
        refused_ns: refused.median_ns,
        refused_p90_ns: refused.p90_ns,
    }
}

/// Nearly every SYN goes to the first of two, which refuses it.
fn refused(bench: &mut Bench) -> Cost {
    bench.serve(&[1, 2]);
    bench.deal_by(Balance::RoundRobin, &[(1, 255), (2, 1)], &[]);
    let refused = cost(bench, Program::Backend(1), RUNS, |bench, run| {
        bench.run(Program::Uplink(Hook::Tc), &syn(run));
        from_backend(1, 0).to(client(run)).rst().bytes()
    });
    let resteered = bench.stats(1).resteered;
    assert!(resteered > u64::from(RUNS) * 9 / 10, "{resteered} of {RUNS} were sent on");
    refused
}

/// Four backends, as in the demo, and one connection; the backend it is on.
fn establish(bench: &mut Bench) -> u16 {
    bench.serve(&[1, 2, 3, 4]);
    bench.run(Program::Uplink(Hook::Tc), &from_client(CLIENT_PORT).syn(1).bytes());
    let id = bench.flows().first().map_or(0, |flow| flow.backend);
    bench.run(Program::Backend(id), &from_backend(id, CLIENT_PORT).syn_ack().bytes());
    bench.run(Program::Uplink(Hook::Tc), &from_client(CLIENT_PORT).bytes());
    id
}

/// A connection to a backend at the frontend's own address: rewriting runs whole, and changes nothing.
fn serve_unchanged(bench: &mut Bench) {
    bench.serve(&[]);
    bench.add_backend_with(1, |entry| {
        entry.addr = (*FRONTEND.ip()).into();
        entry.targets[0] = Port::new(FRONTEND.port());
        entry.mac = from_client(CLIENT_PORT).dst_mac;
    });
    bench.deal(&[1]);
    bench.run(Program::Uplink(Hook::Tc), &from_client(CLIENT_PORT).syn(1).bytes());
    bench.run(Program::Backend(1), &from_backend(1, CLIENT_PORT).from(FRONTEND).syn_ack().bytes());
    bench.run(Program::Uplink(Hook::Tc), &from_client(CLIENT_PORT).bytes());
    assert_eq!(bench.flows(), [Flow::of(CLIENT_PORT, 1, Established)]);
}

fn ssh() -> Frame {
    let mut frame = from_client(CLIENT_PORT).payload(&PAYLOAD);
    frame.tcp.destination_port = 22;
    frame
}

/// A SYN of a client that no other run has, in no order.
fn syn(run: u32) -> Vec<u8> {
    from_client(0).syn(1).from(client(run)).bytes()
}

fn client(run: u32) -> SocketAddrV4 {
    SocketAddrV4::new(Ipv4Addr::from_bits(run.wrapping_mul(2_654_435_761)), run as u16)
}

fn middle(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}
