//! ICMP errors about a steered flow reach the backend that the flow is on, quoting what that backend has sent. In tc only: XDP
//! leaves them to it.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::PacketBuilder;
use steer_common::tcp::TcpState::Established;
use steer_common::verdict::Counter::{FollowIcmp, SteerNew};
use steer_tests::bpf::{
    Bench, CLIENT_PORT, FRONTEND, FRONTEND_2, Flow, Frame, Hook, Program, backend_addr, backend_mac, from_backend,
    from_client,
};

use super::story::connect;

stories! {
    an_error_about_a_flow_reaches_its_backend: [SteerNew, Follow, Reply, FollowIcmp],
    each_flow_of_a_client_port_has_its_own_errors: [SteerNew, FollowIcmp],
    an_error_about_anything_else_passes: [SteerNew, Follow, Reply],
    what_is_no_error_passes: [SteerNew, Follow, Reply],
    an_error_about_a_backend_that_is_gone_passes: [SteerNew, Follow, Reply],
}

const FRAGMENTATION_NEEDED: (u8, u8) = (3, 4);
/// Ethernet, IPv4, ICMP, and as much of the quoted packet as every error has.
const WHOLE: usize = 14 + 20 + 8 + 28;

/// An ICMP message of a router on the way, to an address, with this behind its header.
fn icmp((kind, code): (u8, u8), dst: Ipv4Addr, mac: [u8; 6], quote: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let router = [10, 203, 0, 77];
    PacketBuilder::ethernet2(from_client(0).src_mac, mac)
        .ipv4(router, dst.octets(), 60)
        .icmpv4_raw(kind, code, [0, 0, 0x05, 0x14])
        .write(&mut bytes, quote)
        .expect("a vector takes what is written");
    bytes
}

/// The first bytes of a packet, from its IP header on, as it is quoted when it has come some way.
fn quote(packet: &Frame, len: usize) -> Vec<u8> {
    let mut packet = packet.clone();
    packet.ip.time_to_live = 3;
    packet.bytes()[14..14 + len].to_vec()
}

/// What the client's side sends about a reply, and what must come of it.
fn about(kind: (u8, u8), id: u16, frontend: SocketAddrV4, len: usize) -> (Vec<u8>, Vec<u8>) {
    let sent = from_backend(id, CLIENT_PORT).payload(&[0x5a; 100]);
    let seen = quote(&sent.clone().from(frontend), len);
    let mut own = quote(&sent, len);
    // A checksum in the quoted TCP header, where the quote is that long, is the frontend's still: nobody looks at it.
    if len >= 38 {
        own[36..38].copy_from_slice(&seen[36..38]);
    }
    let came = icmp(kind, *frontend.ip(), from_client(0).dst_mac, &seen);
    (came, icmp(kind, *backend_addr(id).ip(), backend_mac(id), &own))
}

fn an_error_about_a_flow_reaches_its_backend(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    let id = connect(bench, Hook::Xdp, CLIENT_PORT);
    for kind in [FRAGMENTATION_NEEDED, (3, 1), (3, 3), (4, 0), (11, 0), (12, 0)] {
        for len in [28, 40, 140] {
            let (came, leaves) = about(kind, id, FRONTEND, len);
            bench.send_bytes(Hook::Xdp, &came).is_left_alone();
            bench.send_bytes(Hook::Tc, &came).leaves_as(&leaves, FollowIcmp);
        }
    }
    // An error proves nothing: the flow is as it was.
    assert_eq!(bench.flows(), [Flow::of(CLIENT_PORT, id, Established)]);
    assert_eq!(bench.live(id), 1);
}

fn each_flow_of_a_client_port_has_its_own_errors(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    for at in [FRONTEND, FRONTEND_2] {
        let id = bench.send(Hook::Tc, &from_client(CLIENT_PORT).syn(7).to(at)).goes_somewhere(SteerNew);
        let (came, leaves) = about(FRAGMENTATION_NEEDED, id, at, 28);
        bench.send_bytes(Hook::Tc, &came).leaves_as(&leaves, FollowIcmp);
    }
}

fn an_error_about_anything_else_passes(bench: &mut Bench) {
    bench.serve(&[1]);
    connect(bench, Hook::Tc, CLIENT_PORT);
    let reply = from_backend(1, CLIENT_PORT).from(FRONTEND);
    let mut udp = quote(&reply, 28);
    udp[9] = 17;
    let mut quotes = vec![udp];
    let mut options = reply.clone();
    options.ip.options = [1; 8].into();
    for quoted in [
        from_client(CLIENT_PORT),
        reply.clone().from(SocketAddrV4::new(*FRONTEND.ip(), 22)),
        reply.clone().from(SocketAddrV4::new(Ipv4Addr::new(10, 204, 0, 2), 9000)),
        from_backend(1, CLIENT_PORT + 1).from(FRONTEND),
        from_backend(1, CLIENT_PORT),
        options,
    ] {
        quotes.push(quote(&quoted, 28));
    }
    for quoted in quotes {
        let frame = icmp(FRAGMENTATION_NEEDED, *FRONTEND.ip(), from_client(0).dst_mac, &quoted);
        for hook in Hook::BOTH {
            bench.send_bytes(hook, &frame).is_left_alone();
        }
        bench.reply_bytes(1, &frame).is_left_alone();
    }
}

fn what_is_no_error_passes(bench: &mut Bench) {
    bench.serve(&[1]);
    connect(bench, Hook::Tc, CLIENT_PORT);
    for kind in [0, 5, 8, 13, 17] {
        let (came, _) = about((kind, 0), 1, FRONTEND, 28);
        bench.send_bytes(Hook::Tc, &came).is_left_alone();
    }
    let (came, _) = about(FRAGMENTATION_NEEDED, 1, FRONTEND, 28);
    assert_eq!(came.len(), WHOLE);
    for len in 34..WHOLE {
        bench.watch(Program::Uplink(Hook::Tc), &came[..len]).is_left_alone();
    }
    // A fragment of one, and one for another station.
    let change = |at: usize, value: u8| {
        let mut frame = came.clone();
        frame[at] = value;
        frame
    };
    for frame in [change(14 + 6, 0x20), change(14 + 7, 8), change(5, 0x99)] {
        bench.send_bytes(Hook::Tc, &frame).is_left_alone();
    }
}

fn an_error_about_a_backend_that_is_gone_passes(bench: &mut Bench) {
    bench.serve(&[1]);
    connect(bench, Hook::Tc, CLIENT_PORT);
    let (came, _) = about(FRAGMENTATION_NEEDED, 1, FRONTEND, 28);
    bench.remove_backend(1);
    bench.send_bytes(Hook::Tc, &came).is_left_alone();
    bench.add_backend_with(1, |entry| entry.generation = 2);
    bench.send_bytes(Hook::Tc, &came).is_left_alone();
}
