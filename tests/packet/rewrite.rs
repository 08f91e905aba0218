//! What a steered packet looks like when it leaves, in both directions, and that both hooks do the same.

use std::net::{Ipv4Addr, SocketAddrV4};

use steer_common::backend::BackendEntry;
use steer_common::tcp::TcpState::{Established, SynReceived, SynSent};
use steer_common::verdict::Counter::{Follow, PassToTc, SteerNew, SteerRetransmit};
use steer_tests::bpf::{
    Bench, CLIENT_PORT, FRONTEND, FRONTEND_2, Flow, Frame, Hook, UPLINK, backend_addr, from_backend, from_client,
};

use super::story::connect;

stories! {
    a_syn_goes_to_the_backend_with_nothing_but_its_destination_changed: [SteerNew],
    the_flow_is_written_down_with_all_that_replies_need: [SteerNew],
    a_handshake_and_data_go_both_ways: [SteerNew, Follow, Reply],
    any_packet_at_all_leaves_with_right_checksums: [SteerNew, Follow, Reply],
    a_packet_of_several_pages_is_rewritten_too: [SteerNew, Reply],
    a_reply_is_sent_off_whatever_the_routing_table_says: [SteerNew, Reply],
    xdp_leaves_a_backend_that_takes_no_xdp_frames_to_tc: [SteerNew, SteerRetransmit, Follow, Reply, PassToTc],
    a_connection_may_change_hooks_at_every_packet: [SteerNew, SteerRetransmit, Follow, Reply],
}

fn a_syn_goes_to_the_backend_with_nothing_but_its_destination_changed(bench: &mut Bench) {
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        bench.send(hook, &from_client(port).syn(7).payload(b"fast open")).goes_to(1, SteerNew);
    }
    assert_eq!(bench.flows(), [Flow::of(CLIENT_PORT, 1, SynSent), Flow::of(CLIENT_PORT + 1, 1, SynSent)]);
}

fn the_flow_is_written_down_with_all_that_replies_need(bench: &mut Bench) {
    use steer_common::addr::{Port, TCP};
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        bench.send(hook, &from_client(port).syn(0x0102_0304).to(FRONTEND_2)).goes_to(1, SteerNew);
        let key = steer_common::flow::FlowKey::new(
            steer_tests::world::CLIENT.into(),
            Port::new(port),
            steer_tests::bpf::WEB,
            TCP,
        );
        let entry = bench.pending(&key);
        assert_eq!((entry.frontend, entry.frontend_port), ((*FRONTEND_2.ip()).into(), Port::new(9000)));
        assert_eq!((entry.backend.0, entry.generation, entry.port_index), (1, 1, 0));
        assert_eq!((entry.uplink, entry.isn, entry.marks), (UPLINK, 0x0102_0304_u32.to_be(), 0));
        assert!(entry.last_seen > 0);
    }
}

fn a_handshake_and_data_go_both_ways(bench: &mut Bench) {
    bench.serve(&[1]);
    for (hook, port) in Hook::BOTH.into_iter().zip([CLIENT_PORT, CLIENT_PORT + 1]) {
        bench.send(hook, &from_client(port).syn(7)).goes_to(1, SteerNew);
        bench.reply(1, &from_backend(1, port).syn_ack()).comes_from(FRONTEND);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, 1, SynReceived)));
        bench.send(hook, &from_client(port)).goes_to(1, Follow);
        assert_eq!(bench.flows().last(), Some(&Flow::of(port, 1, Established)));
        bench.send(hook, &from_client(port).payload(b"GET / HTTP/1.1\r\n\r\n")).goes_to(1, Follow);
        bench.reply(1, &from_backend(1, port).payload(b"HTTP/1.1 200 OK\r\n\r\n")).comes_from(FRONTEND);
    }
}

/// Marsaglia's xorshift: the same packets in every run.
struct Random(u64);

impl Random {
    const fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// Changes everything about a frame that steering must not look at.
    fn disguise(&mut self, mut frame: Frame) -> Frame {
        frame.ip.identification = self.next() as u16;
        frame.ip.time_to_live = self.next() as u8;
        frame.ip.dscp = (self.next() as u8 & 0x3f).try_into().expect("it has six bits");
        frame.ip.dont_fragment = self.next() & 1 == 1;
        frame.tcp.sequence_number = self.next() as u32;
        frame.tcp.window_size = self.next() as u16;
        frame.tcp.psh = self.next() & 1 == 1;
        frame.payload = (0..self.next() % 200).map(|_| self.next() as u8).collect();
        frame
    }
}

fn any_packet_at_all_leaves_with_right_checksums(bench: &mut Bench) {
    bench.serve(&[1, 2, 3]);
    let mut random = Random(0x5eed_0f57_ee12_0001);
    for round in 0..1_000_u32 {
        let hook = Hook::BOTH[round as usize % 2];
        // Every client comes once: the address has the round in it.
        let address = Ipv4Addr::from_bits((100 << 24) | (round << 8) | (random.next() as u32 & 0xff));
        let client = SocketAddrV4::new(address, random.next() as u16);
        let syn = random.disguise(from_client(0).syn(0)).from(client);
        let id = bench.send(hook, &syn).goes_somewhere(SteerNew);
        bench.reply(id, &random.disguise(from_backend(id, 0).syn_ack()).to(client)).comes_from(FRONTEND);
        bench.send(hook, &random.disguise(from_client(0)).from(client)).goes_to(id, Follow);
    }
}

fn a_packet_of_several_pages_is_rewritten_too(bench: &mut Bench) {
    bench.serve(&[1]);
    let large: Vec<u8> = (0..8_900_u32).map(|byte| byte as u8).collect();
    bench.send(Hook::Xdp, &from_client(CLIENT_PORT).syn(7).payload(&large)).goes_to(1, SteerNew);
    // More than one page is more than a test run of tc takes.
    bench.send(Hook::Tc, &from_client(CLIENT_PORT + 1).syn(7).payload(&large[..3_000])).goes_to(1, SteerNew);
    bench.ip("link set u0 mtu 9000");
    bench.reply(1, &from_backend(1, CLIENT_PORT).payload(&large[..3_000])).comes_from(FRONTEND);
}

fn a_reply_is_sent_off_whatever_the_routing_table_says(bench: &mut Bench) {
    bench.serve(&[1]);
    let far = SocketAddrV4::new(Ipv4Addr::new(198, 51, 100, 7), CLIENT_PORT);
    bench.send(Hook::Tc, &from_client(CLIENT_PORT).syn(7)).goes_to(1, SteerNew);
    bench.send(Hook::Tc, &from_client(CLIENT_PORT).syn(7).from(far)).goes_to(1, SteerNew);
    let near = from_backend(1, CLIENT_PORT).syn_ack();
    for (frame, change) in [
        (near.clone(), "neigh add 10.203.0.2 lladdr 02:00:00:00:00:51 dev u0"),
        (near.clone(), "neigh flush dev u0"),
        (near.clone().to(far), "route del default"),
        (near.to(far), "route add blackhole default"),
    ] {
        bench.reply(1, &frame).comes_from(FRONTEND);
        bench.ip(change);
        bench.reply(1, &frame).comes_from(FRONTEND);
    }
}

fn xdp_leaves_a_backend_that_takes_no_xdp_frames_to_tc(bench: &mut Bench) {
    bench.serve(&[]);
    bench.add_backend_with(1, |entry| entry.flags &= !BackendEntry::XDP);
    bench.deal(&[1]);
    let syn = from_client(CLIENT_PORT).syn(7);
    bench.send(Hook::Xdp, &syn).passes(PassToTc);
    assert_eq!(bench.flows(), [Flow::of(CLIENT_PORT, 1, SynSent)]);
    bench.send(Hook::Tc, &syn).goes_to(1, SteerRetransmit);
    bench.reply(1, &from_backend(1, CLIENT_PORT).syn_ack()).comes_from(FRONTEND);
    for frame in [from_client(CLIENT_PORT), from_client(CLIENT_PORT).payload(b"hello")] {
        bench.send(Hook::Xdp, &frame).passes(PassToTc);
        bench.send(Hook::Tc, &frame).goes_to(1, Follow);
    }
    assert_eq!(bench.flows(), [Flow::of(CLIENT_PORT, 1, Established)]);
    assert_eq!((bench.live(1), bench.stats(1).steered, bench.stats(1).established), (1, 1, 1));
    // Where only tc is attached, the first packet it sees is new.
    bench.send(Hook::Tc, &from_client(CLIENT_PORT + 1).syn(7)).goes_to(1, SteerNew);
}

fn a_connection_may_change_hooks_at_every_packet(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    let id = connect(bench, Hook::Xdp, CLIENT_PORT);
    for (round, hook) in Hook::BOTH.into_iter().cycle().take(6).enumerate() {
        bench.send(hook, &from_client(CLIENT_PORT).payload(&[round as u8])).goes_to(id, Follow);
    }
    let syn = from_client(CLIENT_PORT + 1).syn(9);
    let other = bench.send(Hook::Tc, &syn).goes_somewhere(SteerNew);
    bench.send(Hook::Xdp, &syn).goes_to(other, SteerRetransmit);
    assert_ne!(backend_addr(id), backend_addr(other));
}
