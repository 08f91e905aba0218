//! What packets passed an interface, in a form that two runs can be compared by.
//!
//! Problem: "untouched" means packet by packet, yet sequence numbers, timestamps and ids differ from run to run.
//! Approach: an AF_PACKET socket inside the namespace (no tcpdump to wait for, nothing left in a buffer at the end),
//! and of each packet only what must not differ: who to whom, TTL, flags, options present, payload, checksums right.
//! XDP redirects go past AF_PACKET at that interface: capture at the client's or the other machine's end.

use std::fmt;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use etherparse::{NetSlice, SlicedPacket, TransportSlice};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, LinkAddr, SockFlag, SockProtocol, SockType, recvfrom, setsockopt, socket, sockopt,
};

use crate::netns::Ns;

const PACKET_OUTGOING: u8 = 4;

/// A running capture of one interface.
#[derive(Debug)]
pub struct Capture {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Vec<Packet>>,
}

/// One TCP or UDP packet.
#[derive(Clone, PartialEq, Eq)]
pub struct Packet {
    /// Sent by the namespace that captured.
    pub outgoing: bool,
    /// `tcp` or `udp`.
    pub protocol: &'static str,
    pub source: SocketAddr,
    pub destination: SocketAddr,
    pub ttl: u8,
    pub dscp_ecn: u8,
    /// As tcpdump writes them: `S`, `S.`, `P.`, `F.`, `R`.
    pub flags: String,
    /// Kinds of the TCP options in their order.
    pub options: Vec<u8>,
    pub payload: Vec<u8>,
    /// False also for packets sent with checksums still to be filled in by the card (`ethtool -K <if> tx off` ends
    /// that).
    pub checksums_ok: bool,
}

impl Capture {
    /// Begins to capture an interface of a namespace; the socket is open when this returns.
    #[track_caller]
    pub fn start(ns: &Ns, interface: &str) -> Self {
        let open = || {
            let index = nix::net::if_::if_nametoindex(interface)?;
            let flags = SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC;
            let socket = socket(AddressFamily::Packet, SockType::Raw, flags, SockProtocol::EthAll)?;
            setsockopt(&socket, sockopt::RcvBuf, &(8 << 20))?;
            Ok::<_, Errno>((index as usize, socket))
        };
        let (index, socket) = ns.run(open).unwrap_or_else(|err| panic!("capture {interface} in {}: {err}", ns.name()));
        let stop = Arc::new(AtomicBool::new(false));
        let stopped = stop.clone();
        let thread = std::thread::spawn(move || capture(&socket, index, &stopped));
        Self { stop, thread }
    }

    /// Ends it and returns what passed, in order, what is still queued included.
    pub fn finish(self) -> Vec<Packet> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().expect("the capturing thread does not panic")
    }
}

fn capture(socket: &OwnedFd, interface: usize, stop: &AtomicBool) -> Vec<Packet> {
    let mut packets = Vec::new();
    let mut buffer = vec![0; 1 << 17];
    loop {
        // Read before the queue is emptied: what arrived before the stop is in the queue then.
        let last_round = stop.load(Ordering::Acquire);
        while let Ok((n, from)) = recvfrom::<LinkAddr>(socket.as_raw_fd(), &mut buffer) {
            // The socket hears every interface of the namespace; binding it would take more unsafe code than looking
            // here.
            let Some(from) = from.filter(|from| from.ifindex() == interface) else { continue };
            packets.extend(Packet::parse(&buffer[..n], from.pkttype() == PACKET_OUTGOING));
        }
        if last_round {
            return packets;
        }
        let mut wait = [PollFd::new(std::os::fd::AsFd::as_fd(socket), PollFlags::POLLIN)];
        let _ = poll(&mut wait, PollTimeout::from(20u8));
    }
}

impl Packet {
    fn parse(frame: &[u8], outgoing: bool) -> Option<Self> {
        let sliced = SlicedPacket::from_ethernet(frame).ok()?;
        let (source, destination, ttl, dscp_ecn) = match sliced.net.as_ref()? {
            NetSlice::Ipv4(ip) => {
                let header = ip.header();
                let tos = header.dcp().value() << 2 | header.ecn().value();
                (header.source_addr().into(), header.destination_addr().into(), header.ttl(), tos)
            }
            NetSlice::Ipv6(ip) => {
                let header = ip.header();
                (
                    header.source_addr().into(),
                    header.destination_addr().into(),
                    header.hop_limit(),
                    header.traffic_class(),
                )
            }
            _ => return None,
        };
        let checksums_ok = checksums_ok(&sliced);
        let at = |ip, port| SocketAddr::new(ip, port);
        let packet = |protocol, ports: (u16, u16), flags, options, payload: &[u8]| Self {
            outgoing,
            protocol,
            source: at(source, ports.0),
            destination: at(destination, ports.1),
            ttl,
            dscp_ecn,
            flags,
            options,
            payload: payload.to_vec(),
            checksums_ok,
        };
        match sliced.transport.as_ref()? {
            TransportSlice::Tcp(tcp) => {
                let set = [(tcp.syn(), 'S'), (tcp.fin(), 'F'), (tcp.rst(), 'R'), (tcp.psh(), 'P'), (tcp.ack(), '.')];
                let flags = set.iter().filter(|(set, _)| *set).map(|(_, letter)| letter).collect();
                let options = option_kinds(tcp.options());
                Some(packet("tcp", (tcp.source_port(), tcp.destination_port()), flags, options, tcp.payload()))
            }
            TransportSlice::Udp(udp) => {
                let ports = (udp.source_port(), udp.destination_port());
                Some(packet("udp", ports, String::new(), Vec::new(), udp.payload()))
            }
            _ => None,
        }
    }

    /// Has this port at one of its ends.
    pub fn concerns(&self, port: u16) -> bool {
        self.source.port() == port || self.destination.port() == port
    }
}

/// The packets of one port, without bare acknowledgements, whose number depends on timing.
pub fn conversation(packets: &[Packet], port: u16) -> Vec<Packet> {
    let tells = |packet: &&Packet| packet.concerns(port) && !(packet.flags == "." && packet.payload.is_empty());
    packets.iter().filter(tells).cloned().collect()
}

fn option_kinds(mut options: &[u8]) -> Vec<u8> {
    let mut kinds = Vec::new();
    while let [kind, rest @ ..] = options {
        kinds.push(*kind);
        options = match (*kind, rest) {
            (0, _) => break,
            (1, rest) => rest,
            (_, [length, ..]) => options.get(usize::from((*length).max(2))..).unwrap_or_default(),
            (_, []) => break,
        };
    }
    kinds
}

fn checksums_ok(sliced: &SlicedPacket<'_>) -> bool {
    let header_ok = match &sliced.net {
        Some(NetSlice::Ipv4(ip)) => {
            let header = ip.header().to_header();
            header.calc_header_checksum() == header.header_checksum
        }
        _ => true,
    };
    let transport = match (&sliced.net, &sliced.transport) {
        (Some(NetSlice::Ipv4(ip)), Some(TransportSlice::Tcp(tcp))) => tcp
            .calc_checksum_ipv4(ip.header().source(), ip.header().destination())
            .ok()
            .map(|sum| sum == tcp.checksum()),
        _ => Some(true),
    };
    header_ok && transport == Some(true)
}

/// As tcpdump would write it.
impl fmt::Debug for Packet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outgoing, protocol, source, destination, ttl, dscp_ecn, flags, options, payload, checksums_ok } =
            self;
        let arrow = if *outgoing { "out" } else { "in " };
        write!(
            f,
            "{arrow} {protocol} {source} > {destination} [{flags}] length {} ttl {ttl} tos {dscp_ecn}",
            payload.len()
        )?;
        write!(f, " options {options:?}{}", if *checksums_ok { "" } else { " BAD CHECKSUM" })
    }
}
