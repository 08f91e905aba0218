//! What is not steer's passes as if steer were not there.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{ArpHardwareId, ArpOperation, ArpPacket, EtherType, IpHeaders, PacketBuilder, ip_number};
use steer_common::service::FrontendEntry;
use steer_common::verdict::Counter::{PassNoFlow, PassNotFrontend, PassUnparsed, Reply, SteerNew, SteerRetransmit};
use steer_tests::bpf::{
    Bench, CLIENT_PORT, FRONTEND, Frame, Hook, Program, backend_addr, backend_mac, from_backend, from_client,
};

use super::story::connect;

stories! {
    other_ports_addresses_and_transit_traffic_pass: [PassNotFrontend],
    other_protocols_pass_uncounted: [],
    tagged_frames_pass: [],
    packets_for_another_station_are_not_for_tc_to_steer: [],
    ip_options_and_fragments_pass: [PassUnparsed],
    truncated_packets_pass_at_every_length: [SteerNew, SteerRetransmit, Reply],
    a_loopback_frontend_is_for_local_sockets_only: [PassNotFrontend],
    connections_that_were_open_before_pass: [PassNoFlow],
    odd_flags_open_nothing: [PassNoFlow],
    what_else_a_container_sends_passes: [SteerNew, Follow, Reply],
    a_reply_that_does_not_fit_the_route_is_left_to_the_stack: [SteerNew, Follow, Reply],
}

fn other_ports_addresses_and_transit_traffic_pass(bench: &mut Bench) {
    bench.serve(&[1]);
    let elsewhere = [
        SocketAddrV4::new(*FRONTEND.ip(), 22),
        SocketAddrV4::new(*FRONTEND.ip(), 9001),
        SocketAddrV4::new(Ipv4Addr::new(10, 204, 0, 2), FRONTEND.port()),
        backend_addr(1),
    ];
    for hook in Hook::BOTH {
        for dst in elsewhere {
            bench.send(hook, &from_client(CLIENT_PORT).syn(7).to(dst)).passes(PassNotFrontend);
            bench.send(hook, &from_client(CLIENT_PORT).payload(b"data").to(dst)).passes(PassNotFrontend);
        }
    }
    assert_eq!(bench.flows(), []);
}

/// A frame of another kind, to the frontend's address and port where it has such.
fn others() -> Vec<Vec<u8>> {
    let Frame { src_mac, dst_mac, ip, .. } = from_client(CLIENT_PORT);
    let (src, dst) = (ip.source, ip.destination);
    let ethernet = || PacketBuilder::ethernet2(src_mac, dst_mac);
    let mut frames = vec![Vec::new(); 6];
    let [udp, icmp, icmp_error, arp, ipv6, ipv4_with_ipv6_type] = &mut frames[..] else { unreachable!() };
    let payload = [0x5a; 40];
    ethernet().ipv4(src, dst, 64).udp(CLIENT_PORT, FRONTEND.port()).write(udp, &payload).expect("udp");
    ethernet().ipv4(src, dst, 64).icmpv4_echo_request(1, 2).write(icmp, &payload).expect("icmp");
    let about = from_client(CLIENT_PORT).bytes();
    ethernet().ipv4(src, dst, 64).icmpv4_raw(3, 4, [0, 0, 5, 0]).write(icmp_error, &about[14..42]).expect("icmp error");
    let request =
        ArpPacket::new(ArpHardwareId::ETHERNET, EtherType::IPV4, ArpOperation::REQUEST, &src_mac, &src, &[0; 6], &dst);
    ethernet().arp(request.expect("addresses of one size")).write(arp).expect("arp");
    // Ethernet pads a frame this short.
    arp.resize(60, 0);
    let (six, mapped) = (Ipv4Addr::from(src).to_ipv6_mapped().octets(), Ipv4Addr::from(dst).to_ipv6_mapped().octets());
    ethernet()
        .ipv6(six, mapped, 64)
        .tcp(CLIENT_PORT, FRONTEND.port(), 7, 64)
        .syn()
        .write(ipv6, &payload)
        .expect("ipv6");
    ipv4_with_ipv6_type.extend(from_client(CLIENT_PORT).syn(7).bytes());
    ipv4_with_ipv6_type[12..14].copy_from_slice(&[0x86, 0xdd]);
    frames
}

fn other_protocols_pass_uncounted(bench: &mut Bench) {
    bench.serve(&[1]);
    for frame in others() {
        for hook in Hook::BOTH {
            bench.send_bytes(hook, &frame).is_left_alone();
        }
        bench.reply_bytes(1, &frame).is_left_alone();
    }
    assert_eq!(bench.flows(), []);
}

fn tagged_frames_pass(bench: &mut Bench) {
    bench.serve(&[1]);
    let plain = from_client(CLIENT_PORT).syn(7).bytes();
    for tag in [&[0x81, 0, 0, 100][..], &[0x88, 0xa8, 0, 100, 0x81, 0, 0, 7]] {
        let tagged = [&plain[..12], tag, &plain[12..]].concat();
        for hook in Hook::BOTH {
            bench.send_bytes(hook, &tagged).is_left_alone();
        }
    }
}

fn packets_for_another_station_are_not_for_tc_to_steer(bench: &mut Bench) {
    bench.serve(&[1]);
    bench.send(Hook::Tc, &from_client(CLIENT_PORT).syn(7).to_mac(backend_mac(9))).is_left_alone();
    assert_eq!(bench.flows(), []);
}

fn ip_options_and_fragments_pass(bench: &mut Bench) {
    bench.serve(&[1]);
    let change = |change: fn(&mut Frame)| {
        let mut frame = from_client(CLIENT_PORT).syn(7).payload(&[1; 64]);
        frame.ip.dont_fragment = false;
        change(&mut frame);
        frame
    };
    let record_route = |frame: &mut Frame| frame.ip.options = [7, 7, 4, 0, 0, 0, 0, 0].into();
    for frame in [
        change(record_route),
        change(|frame| frame.ip.options = [1; 40].into()),
        change(|frame| frame.ip.more_fragments = true),
        change(|frame| frame.ip.fragment_offset = 8.try_into().expect("an offset")),
        change(|frame| {
            frame.ip.more_fragments = true;
            frame.ip.fragment_offset = 0x1fff.try_into().expect("an offset");
        }),
    ] {
        for hook in Hook::BOTH {
            bench.send(hook, &frame).passes(PassUnparsed);
        }
        bench.reply(1, &frame.from(backend_addr(1))).is_left_alone();
    }
    // Of another protocol they are none of steer's business.
    let udp = |frame: &mut Frame| {
        frame.ip.more_fragments = true;
        frame.ip.protocol = ip_number::UDP;
    };
    let Frame { src_mac, dst_mac, ip, .. } = change(udp);
    let mut fragment = Vec::new();
    let builder = PacketBuilder::ethernet2(src_mac, dst_mac).ip(IpHeaders::Ipv4(ip, Default::default()));
    builder.write(&mut fragment, ip_number::UDP, &[2; 64]).expect("a fragment");
    for hook in Hook::BOTH {
        bench.send_bytes(hook, &fragment).is_left_alone();
    }
    assert_eq!(bench.flows(), []);
}

/// Ethernet, IPv4 and TCP without options: less than that is never steered.
const HEADERS: usize = 54;
/// The kernel itself takes nothing for a test run that is shorter than Ethernet, in tc with IPv4.
const KERNEL_HEADERS: usize = 34;

fn truncated_packets_pass_at_every_length(bench: &mut Bench) {
    bench.serve(&[1]);
    let syn = from_client(CLIENT_PORT).syn(7);
    let whole = syn.bytes();
    let programs = [Program::Uplink(Hook::Xdp), Program::Uplink(Hook::Tc), Program::Backend(1)];
    for program in programs {
        for len in 0..HEADERS {
            match bench.try_run(program, &whole[..len], 1) {
                Err(_) => assert!(len < KERNEL_HEADERS, "{program:?} refused at {len} bytes"),
                Ok(_) => bench.watch(program, &whole[..len]).is_left_alone(),
            }
        }
    }
    assert_eq!(bench.flows(), []);
    // From there on all that is looked at is there; what is missing behind, the receiver finds out.
    let rewritten = syn.to(backend_addr(1)).to_mac(backend_mac(1)).bytes();
    let mut reason = SteerNew;
    for hook in Hook::BOTH {
        for len in HEADERS..=60 {
            bench.send_bytes(hook, &whole[..len]).leaves_as(&rewritten[..len], reason);
            reason = SteerRetransmit;
        }
    }
    let reply = from_backend(1, CLIENT_PORT).syn_ack().payload(&[3; 16]);
    let (whole, rewritten) = (reply.bytes(), reply.from(FRONTEND).bytes());
    for len in HEADERS..=60 {
        bench.reply_bytes(1, &whole[..len]).leaves_as(&rewritten[..len], Reply);
    }
}

fn a_loopback_frontend_is_for_local_sockets_only(bench: &mut Bench) {
    bench.serve(&[1]);
    let loopback = SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9000);
    bench.publish(loopback, 0, FrontendEntry::LOOPBACK);
    for hook in Hook::BOTH {
        bench.send(hook, &from_client(CLIENT_PORT).syn(7).to(loopback)).passes(PassNotFrontend);
        bench.send(hook, &from_client(CLIENT_PORT).to(loopback)).passes(PassNotFrontend);
    }
    assert_eq!(bench.flows(), []);
}

fn connections_that_were_open_before_pass(bench: &mut Bench) {
    bench.serve(&[1]);
    let client = || from_client(CLIENT_PORT);
    for hook in Hook::BOTH {
        for frame in [client(), client().payload(b"data"), client().fin(), client().rst()] {
            bench.send(hook, &frame).passes(PassNoFlow);
        }
    }
    for frame in [from_backend(1, CLIENT_PORT), from_backend(1, CLIENT_PORT).fin()] {
        bench.reply(1, &frame).is_left_alone();
    }
    assert_eq!(bench.flows(), []);
}

fn odd_flags_open_nothing(bench: &mut Bench) {
    bench.serve(&[1]);
    for flags in 0..16_u8 {
        let mut frame = from_client(CLIENT_PORT);
        let bit = |place: u8| flags >> place & 1 == 1;
        (frame.tcp.syn, frame.tcp.ack, frame.tcp.rst, frame.tcp.fin) = (bit(0), bit(1), bit(2), bit(3));
        if flags != 1 {
            for hook in Hook::BOTH {
                bench.send(hook, &frame).passes(PassNoFlow);
            }
        }
    }
    assert_eq!(bench.flows(), []);
}

fn what_else_a_container_sends_passes(bench: &mut Bench) {
    bench.serve(&[1, 2]);
    let id = connect(bench, Hook::Tc, CLIENT_PORT);
    let other = 3 - id;
    let to_client = from_backend(id, CLIENT_PORT);
    let from_port_22 = SocketAddrV4::new(*backend_addr(id).ip(), 22);
    // Its own connections, other ports of it, flows that are not its own, and addresses it only claims to have.
    bench.reply(id, &to_client.clone().from(from_port_22)).is_left_alone();
    bench.reply(id, &to_client.clone().to(SocketAddrV4::new(*FRONTEND.ip(), CLIENT_PORT))).is_left_alone();
    bench.reply(id, &from_backend(id, CLIENT_PORT + 1)).is_left_alone();
    bench.reply(other, &from_backend(other, CLIENT_PORT)).is_left_alone();
    bench.reply(other, &to_client).is_left_alone();
    bench.reply(id, &to_client).comes_from(FRONTEND);
}

fn a_reply_that_does_not_fit_the_route_is_left_to_the_stack(bench: &mut Bench) {
    bench.serve(&[1]);
    connect(bench, Hook::Tc, CLIENT_PORT);
    let reply = |len: usize| from_backend(1, CLIENT_PORT).payload(&vec![4; len - 40]);
    // The kernel compares only when it knows the station to send to: the first reply of all is a short SYN-ACK.
    bench.ip("neigh add 10.203.0.2 lladdr 02:00:00:00:00:51 dev u0");
    bench.reply(1, &reply(1500)).comes_from(FRONTEND);
    bench.ip("link set u0 mtu 1400");
    bench.reply(1, &reply(1400)).comes_from(FRONTEND);
    bench.reply(1, &reply(1500)).is_left_alone();
    // Segments of 1,500 bytes, sent as one.
    bench.reply(1, &reply(3000)).is_left_alone();
    bench.ip("link set u0 mtu 1500");
    bench.reply(1, &reply(3000)).comes_from(FRONTEND);
    // A route may be narrower than its interface: as for whatever else is forwarded, that counts where it is locked.
    bench.ip("route add 10.203.0.2/32 dev u0 mtu lock 1300");
    bench.reply(1, &reply(1300)).comes_from(FRONTEND);
    bench.reply(1, &reply(1301)).is_left_alone();
    bench.reply(1, &reply(3000)).is_left_alone();
}
