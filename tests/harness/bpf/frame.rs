//! Frames, built by etherparse: none of steer's own code has a hand in a header or a checksum here.

use std::net::{Ipv4Addr, SocketAddrV4};

use etherparse::{
    IpHeaders, Ipv4Header, NetSlice, PacketBuilder, SlicedPacket, TcpHeader, TcpOptionElement, TransportSlice,
    ip_number,
};

use crate::world::{CLIENT, HOST};

/// What clients connect to, and the same service at another address of the host.
pub const FRONTEND: SocketAddrV4 = SocketAddrV4::new(HOST, 9000);
pub const FRONTEND_2: SocketAddrV4 = SocketAddrV4::new(Ipv4Addr::new(10, 203, 0, 9), 9000);
/// A client port for tests that need only one.
pub const CLIENT_PORT: u16 = 40_000;

pub(super) const UPLINK_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x50];
const ROUTER_MAC: [u8; 6] = [0x02, 0, 0, 0, 0, 0x51];
/// What a container sends to is its bridge, not the host end of its veth.
const BRIDGE_MAC: [u8; 6] = [0x02, 0x42, 0xac, 0x11, 0, 0xfe];

/// An Ethernet frame with an IPv4 header, TCP and a payload.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub ip: Ipv4Header,
    pub tcp: TcpHeader,
    pub payload: Vec<u8>,
}

/// Where a backend listens: `172.17.0.<id>:5000` (and beyond 255 in the next subnet).
pub fn backend_addr(id: u16) -> SocketAddrV4 {
    let [high, low] = id.to_be_bytes();
    SocketAddrV4::new(Ipv4Addr::new(172, 17, high, low), 5000)
}

/// The MAC address of a backend's `eth0`.
pub fn backend_mac(id: u16) -> [u8; 6] {
    let [high, low] = id.to_be_bytes();
    [0x02, 0x42, 0xac, 0x11, high, low]
}

/// A packet from the client's port to the frontend, with the ACK flag until it is given others.
pub fn from_client(port: u16) -> Frame {
    Frame::between(SocketAddrV4::new(CLIENT, port), FRONTEND, ROUTER_MAC, UPLINK_MAC)
}

/// A packet of a backend to the client's port, likewise.
pub fn from_backend(id: u16, port: u16) -> Frame {
    Frame::between(backend_addr(id), SocketAddrV4::new(CLIENT, port), backend_mac(id), BRIDGE_MAC)
}

impl Frame {
    fn between(src: SocketAddrV4, dst: SocketAddrV4, src_mac: [u8; 6], dst_mac: [u8; 6]) -> Self {
        let mut ip = Ipv4Header::new(0, 61, ip_number::TCP, src.ip().octets(), dst.ip().octets()).expect("it is empty");
        ip.identification = 0x1234;
        ip.dont_fragment = true;
        ip.dscp = 10.try_into().expect("it has six bits");
        let mut tcp = TcpHeader::new(src.port(), dst.port(), 0x1000_0000, 64_240);
        tcp.ack = true;
        tcp.acknowledgment_number = 0x2000_0000;
        Self { src_mac, dst_mac, ip, tcp, payload: Vec::new() }
    }

    /// The first packet of a connection, with the options that Linux sends.
    #[must_use]
    pub fn syn(mut self, isn: u32) -> Self {
        use TcpOptionElement::{MaximumSegmentSize, SelectiveAcknowledgementPermitted, Timestamp, WindowScale};
        (self.tcp.syn, self.tcp.ack) = (true, false);
        (self.tcp.sequence_number, self.tcp.acknowledgment_number) = (isn, 0);
        let options =
            [MaximumSegmentSize(1460), SelectiveAcknowledgementPermitted, Timestamp(0x0102_0304, 0), WindowScale(7)];
        self.tcp.set_options(&options).expect("they fit");
        self
    }

    #[must_use]
    pub fn syn_ack(mut self) -> Self {
        self.tcp.syn = true;
        self
    }

    #[must_use]
    pub fn fin(mut self) -> Self {
        self.tcp.fin = true;
        self
    }

    #[must_use]
    pub fn rst(mut self) -> Self {
        self.tcp.rst = true;
        self
    }

    /// The reset that answers this packet (RFC 9293, 3.10.7.1).
    #[must_use]
    pub fn reset(&self) -> Self {
        let Self { src_mac, dst_mac, ip, tcp, payload } = self;
        let ends = u32::from(tcp.syn) + u32::from(tcp.fin);
        let next = tcp.sequence_number.wrapping_add(payload.len() as u32).wrapping_add(ends);
        let (seq, ack) = if tcp.ack { (tcp.acknowledgment_number, 0) } else { (0, next) };
        let mut answer = TcpHeader::new(tcp.destination_port, tcp.source_port, seq, 0);
        (answer.rst, answer.ack, answer.acknowledgment_number) = (true, !tcp.ack, ack);
        let mut header = Ipv4Header::new(0, 64, ip_number::TCP, ip.destination, ip.source).expect("it has no payload");
        header.dont_fragment = true;
        Self { src_mac: *dst_mac, dst_mac: *src_mac, ip: header, tcp: answer, payload: Vec::new() }
    }

    #[must_use]
    pub fn payload(mut self, payload: &[u8]) -> Self {
        self.tcp.psh = true;
        self.payload = payload.to_vec();
        self
    }

    /// The same packet from another place.
    #[must_use]
    pub fn from(mut self, src: SocketAddrV4) -> Self {
        self.ip.source = src.ip().octets();
        self.tcp.source_port = src.port();
        self
    }

    /// The same packet to another place.
    #[must_use]
    pub fn to(mut self, dst: SocketAddrV4) -> Self {
        self.ip.destination = dst.ip().octets();
        self.tcp.destination_port = dst.port();
        self
    }

    /// The same packet to another station of the link.
    #[must_use]
    pub const fn to_mac(mut self, mac: [u8; 6]) -> Self {
        self.dst_mac = mac;
        self
    }

    pub fn dst(&self) -> SocketAddrV4 {
        SocketAddrV4::new(self.ip.destination.into(), self.tcp.destination_port)
    }

    /// The frame as it is on the wire, with its lengths and checksums.
    pub fn bytes(&self) -> Vec<u8> {
        let Self { src_mac, dst_mac, ip, tcp, payload } = self;
        let headers = IpHeaders::Ipv4(ip.clone(), etherparse::Ipv4Extensions::default());
        let builder = PacketBuilder::ethernet2(*src_mac, *dst_mac).ip(headers).tcp_header(tcp.clone());
        let mut bytes = Vec::with_capacity(builder.size(payload.len()));
        builder.write(&mut bytes, payload).expect("a vector takes what is written");
        bytes
    }
}

/// Whether the checksums of the IPv4 header and of TCP are those that etherparse computes.
pub fn checksums_ok(bytes: &[u8]) -> bool {
    let Ok(packet) = SlicedPacket::from_ethernet(bytes) else { return false };
    let (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) = (&packet.net, &packet.transport) else {
        return false;
    };
    let header = ip.header().to_header();
    let sum = tcp.calc_checksum_ipv4(header.source, header.destination);
    header.calc_header_checksum() == header.header_checksum && sum == Ok(tcp.checksum())
}

pub(super) fn show_mac(mac: [u8; 6]) -> String {
    mac.map(|byte| format!("{byte:02x}")).join(":")
}
