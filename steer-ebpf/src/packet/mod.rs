//! Bytes to values and back: all raw packet pointers live here.
//!
//! Read once, checked once: [`Frame::of`] proves that Ethernet, IPv4 and the fixed part of TCP are there, and no accessor
//! checks again. The verifier follows that proof only while the pointers come from the same load of `data`, so a frame is
//! taken anew after every helper that may move the packet.

mod build;

use core::ffi::c_void;

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::helpers::{bpf_skb_load_bytes, bpf_xdp_load_bytes};
use aya_ebpf::programs::{TcContext, XdpContext};
use steer_common::addr::{Addr, ICMP, Port, TCP};
use steer_common::csum::Delta;
use steer_common::steer::Segment;
use steer_common::tcp::TcpFlags;

pub(crate) use build::{BARE_LEN, FULL_LEN, FullFrame, ResetFrame, fill_syn};

/// Offsets from the start of the frame. IPv4 options never get this far, so TCP has a fixed place.
pub(crate) mod offset {
    pub(crate) const ETH_DST: usize = 0;
    pub(crate) const ETH_TYPE: usize = 12;
    pub(crate) const IP: usize = 14;
    pub(crate) const IP_LEN: usize = IP + 2;
    pub(crate) const IP_FRAGMENT: usize = IP + 6;
    pub(crate) const IP_PROTO: usize = IP + 9;
    pub(crate) const IP_CHECKSUM: usize = IP + 10;
    pub(crate) const IP_SRC: usize = IP + 12;
    pub(crate) const IP_DST: usize = IP + 16;
    pub(crate) const TCP: usize = IP + 20;
    pub(crate) const TCP_SRC: usize = TCP;
    pub(crate) const TCP_DST: usize = TCP + 2;
    pub(crate) const TCP_SEQ: usize = TCP + 4;
    /// The upper half of that byte: length of the header, in words.
    pub(crate) const TCP_WORDS: usize = TCP + 12;
    pub(crate) const TCP_FLAGS: usize = TCP + 13;
    pub(crate) const TCP_CHECKSUM: usize = TCP + 16;
    /// End of the part that is read.
    pub(crate) const END: usize = TCP + 20;

    /// An ICMP error quotes the packet it is about: its IP header and the first eight bytes behind it (RFC 792).
    pub(crate) const ICMP: usize = IP + 20;
    pub(crate) const ICMP_CHECKSUM: usize = ICMP + 2;
    pub(crate) const QUOTE: usize = ICMP + 8;
    pub(crate) const QUOTE_PROTO: usize = QUOTE + 9;
    pub(crate) const QUOTE_CHECKSUM: usize = QUOTE + 10;
    pub(crate) const QUOTE_SRC: usize = QUOTE + 12;
    pub(crate) const QUOTE_DST: usize = QUOTE + 16;
    pub(crate) const QUOTE_PORTS: usize = QUOTE + 20;
    pub(crate) const QUOTE_END: usize = QUOTE + 28;
}

const ETH_P_IP: u16 = 0x0800_u16.to_be();
/// Version 4, header of five words.
const IP_PLAIN: u8 = 0x45;
/// More fragments, or an offset: not a whole packet. "Don't fragment" is no matter.
const IP_FRAGMENTED: u16 = 0x3fff_u16.to_be();

/// The packet a program runs for.
pub(crate) trait Packet {
    /// The program's context, as helpers want it.
    fn ctx(&self) -> *mut c_void;
    /// Copies bytes of the packet, from an offset from its start.
    ///
    /// # Safety
    /// `to` has room for `len` bytes.
    unsafe fn load(&self, offset: usize, to: *mut u8, len: u32) -> bool;
    /// Whether the program may look into what sockets remember: the kernel does not let XDP.
    const SEES_MEMORY: bool;
    /// The socket that sent the packet, where the hook knows.
    fn sender(&self) -> Option<*mut c_void> {
        None
    }
}

/// A packet in XDP.
#[derive(Clone, Copy)]
pub(crate) struct XdpPacket(pub(crate) *mut c_void);

/// A packet in tc.
#[derive(Clone, Copy)]
pub(crate) struct TcPacket(pub(crate) *mut c_void);

/// A system call: there is no packet yet.
#[derive(Clone, Copy)]
pub(crate) struct NoPacket(pub(crate) *mut c_void);

impl Packet for XdpPacket {
    const SEES_MEMORY: bool = false;

    #[inline(always)]
    fn ctx(&self) -> *mut c_void {
        self.0
    }

    #[inline(always)]
    unsafe fn load(&self, offset: usize, to: *mut u8, len: u32) -> bool {
        // SAFETY: the context is valid for the life of the program, the rest by contract.
        unsafe { bpf_xdp_load_bytes(self.0.cast(), offset as u32, to.cast(), len) == 0 }
    }
}

impl Packet for TcPacket {
    const SEES_MEMORY: bool = true;

    #[inline(always)]
    fn ctx(&self) -> *mut c_void {
        self.0
    }

    #[inline(always)]
    unsafe fn load(&self, offset: usize, to: *mut u8, len: u32) -> bool {
        // SAFETY: as above.
        unsafe { bpf_skb_load_bytes(self.0, offset as u32, to.cast(), len) == 0 }
    }

    /// A packet keeps it across a veth (kernel commit 9c4c325252c5), until the stack takes it in.
    #[inline(always)]
    fn sender(&self) -> Option<*mut c_void> {
        let skb = self.0.cast::<__sk_buff>();
        // SAFETY: the context is valid for the life of the program.
        let socket = unsafe { (*skb).__bindgen_anon_2.sk };
        (!socket.is_null()).then_some(socket.cast())
    }
}

impl Packet for NoPacket {
    const SEES_MEMORY: bool = false;

    #[inline(always)]
    fn ctx(&self) -> *mut c_void {
        self.0
    }

    #[inline(always)]
    unsafe fn load(&self, _: usize, _: *mut u8, _: u32) -> bool {
        false
    }
}

/// An Ethernet frame of at least [`offset::END`] bytes.
#[derive(Clone, Copy)]
pub(crate) struct Frame {
    start: *mut u8,
}

/// A frame of at least [`offset::QUOTE_END`] bytes that is an ICMP error about a TCP packet.
#[derive(Clone, Copy)]
pub(crate) struct IcmpError {
    frame: Frame,
}

/// What a frame turned out to be.
pub(crate) enum Parsed {
    /// Plain IPv4 TCP.
    Tcp(Segment),
    /// IPv4 TCP that cannot be steered: a fragment, or with IP options.
    Unparsed,
    /// IPv4 ICMP.
    Icmp,
    /// Anything else.
    Other,
}

impl Frame {
    /// The frame between two packet pointers, if it is long enough.
    #[inline(always)]
    fn of(data: usize, end: usize) -> Option<Self> {
        if data + offset::END > end { None } else { Some(Self { start: data as *mut u8 }) }
    }

    #[inline(always)]
    pub(crate) fn of_xdp(ctx: &XdpContext) -> Option<Self> {
        Self::of(ctx.data(), ctx.data_end())
    }

    #[inline(always)]
    pub(crate) fn of_tc(ctx: &TcContext) -> Option<Self> {
        Self::of(ctx.data(), ctx.data_end())
    }

    #[inline(always)]
    fn read<T: Copy>(self, at: usize) -> T {
        // SAFETY: every caller reads a field of the headers, which end before `offset::END`, and `of` checked that many bytes.
        // Fields are as aligned as the kernel's own accesses to them: the IP header starts on a word boundary (NET_IP_ALIGN),
        // or the CPU does not care.
        unsafe { *self.start.add(at).cast::<T>() }
    }

    #[inline(always)]
    fn write<T: Copy>(self, at: usize, value: T) {
        // SAFETY: as in `read`; both program types may write to the packet directly.
        unsafe { *self.start.add(at).cast::<T>() = value };
    }

    #[inline(always)]
    pub(crate) fn parse(self) -> Parsed {
        if self.read::<u16>(offset::ETH_TYPE) != ETH_P_IP {
            return Parsed::Other;
        }
        match self.read::<u8>(offset::IP_PROTO) {
            TCP => {}
            ICMP => return Parsed::Icmp,
            _ => return Parsed::Other,
        }
        if self.read::<u8>(offset::IP) != IP_PLAIN || self.read::<u16>(offset::IP_FRAGMENT) & IP_FRAGMENTED != 0 {
            return Parsed::Unparsed;
        }
        Parsed::Tcp(Segment {
            src: self.src(),
            dst: self.dst(),
            src_port: self.src_port(),
            dst_port: self.dst_port(),
            seq: self.read(offset::TCP_SEQ),
            proto: TCP,
            flags: TcpFlags(self.read(offset::TCP_FLAGS)),
        })
    }

    #[inline(always)]
    pub(crate) fn src(self) -> Addr {
        Addr::from_v4_be(self.read(offset::IP_SRC))
    }

    #[inline(always)]
    pub(crate) fn dst(self) -> Addr {
        Addr::from_v4_be(self.read(offset::IP_DST))
    }

    #[inline(always)]
    pub(crate) fn src_port(self) -> Port {
        Port(self.read(offset::TCP_SRC))
    }

    #[inline(always)]
    pub(crate) fn dst_port(self) -> Port {
        Port(self.read(offset::TCP_DST))
    }

    #[inline(always)]
    pub(crate) fn ip_checksum(self) -> u16 {
        self.read(offset::IP_CHECKSUM)
    }

    #[inline(always)]
    pub(crate) fn tcp_checksum(self) -> u16 {
        self.read(offset::TCP_CHECKSUM)
    }

    #[inline(always)]
    pub(crate) fn tos(self) -> u8 {
        self.read(offset::IP + 1)
    }

    /// Length of the IP packet, in bytes.
    #[inline(always)]
    pub(crate) fn ip_len(self) -> u16 {
        u16::from_be(self.read(offset::IP_LEN))
    }

    /// Length of the IP header, which has no options, and of the TCP header, in bytes.
    #[inline(always)]
    pub(crate) fn headers_len(self) -> u16 {
        const IP: u16 = 20;
        IP + u16::from(self.read::<u8>(offset::TCP_WORDS) >> 4) * 4
    }

    #[inline(always)]
    pub(crate) fn set_src(self, addr: Addr, port: Port, ip_checksum: u16) {
        self.write(offset::IP_SRC, addr.v4_be());
        self.write(offset::IP_CHECKSUM, ip_checksum);
        self.write(offset::TCP_SRC, port.0);
    }

    #[inline(always)]
    pub(crate) fn set_dst(self, addr: Addr, port: Port, ip_checksum: u16) {
        self.write(offset::IP_DST, addr.v4_be());
        self.write(offset::IP_CHECKSUM, ip_checksum);
        self.write(offset::TCP_DST, port.0);
    }

    #[inline(always)]
    pub(crate) fn set_tcp_checksum(self, checksum: u16) {
        self.write(offset::TCP_CHECKSUM, checksum);
    }

    #[inline(always)]
    pub(crate) fn set_dst_mac(self, mac: [u8; 6]) {
        let [a, b, c, d, e, f] = mac;
        self.write(offset::ETH_DST, u32::from_ne_bytes([a, b, c, d]));
        self.write(offset::ETH_DST + 4, u16::from_ne_bytes([e, f]));
    }
}

impl IcmpError {
    /// The error in a tc packet, if it is one: destination unreachable (with "fragmentation needed" among them), source quench,
    /// time exceeded or parameter problem, about a plain TCP packet.
    #[inline(always)]
    pub(crate) fn of_tc(ctx: &TcContext) -> Option<Self> {
        // Always, though mostly it is linear already: after it the packet pointers are new, and the verifier knows what they
        // were compared with. Fails for a shorter packet.
        ctx.pull_data(offset::QUOTE_END as u32).ok()?;
        let (data, end) = (ctx.data(), ctx.data_end());
        if data + offset::QUOTE_END > end {
            return None;
        }
        let frame = Frame { start: data as *mut u8 };
        let is_error = frame.read::<u16>(offset::ETH_TYPE) == ETH_P_IP
            && frame.read::<u8>(offset::IP_PROTO) == ICMP
            && frame.read::<u8>(offset::IP) == IP_PLAIN
            && frame.read::<u16>(offset::IP_FRAGMENT) & IP_FRAGMENTED == 0
            && matches!(frame.read::<u8>(offset::ICMP), 3 | 4 | 11 | 12);
        let about_tcp = frame.read::<u8>(offset::QUOTE) == IP_PLAIN && frame.read::<u8>(offset::QUOTE_PROTO) == TCP;
        (is_error && about_tcp).then_some(Self { frame })
    }

    /// The quoted packet, which went to the client, turned round: as if it came from there.
    #[inline(always)]
    pub(crate) fn turned(self) -> Segment {
        Segment {
            src: Addr::from_v4_be(self.frame.read(offset::QUOTE_DST)),
            dst: Addr::from_v4_be(self.frame.read(offset::QUOTE_SRC)),
            src_port: Port(self.frame.read(offset::QUOTE_PORTS + 2)),
            dst_port: Port(self.frame.read(offset::QUOTE_PORTS)),
            seq: 0,
            proto: TCP,
            flags: TcpFlags::ACK,
        }
    }

    /// Addresses the error to a backend, and lets it quote what that backend has sent. Each IP header's checksum makes up for
    /// its own change; what is left for that of ICMP is the port.
    #[inline(always)]
    pub(crate) fn deliver(self, addr: Addr, port: Port, mac: [u8; 6]) {
        let Self { frame } = self;
        let outer = Delta::NONE.v4(frame.dst(), addr).apply(frame.ip_checksum());
        frame.write(offset::IP_DST, addr.v4_be());
        frame.write(offset::IP_CHECKSUM, outer);
        let Segment { dst, dst_port, .. } = self.turned();
        let quoted = Delta::NONE.v4(dst, addr).apply(frame.read(offset::QUOTE_CHECKSUM));
        let icmp = Delta::NONE.port(dst_port, port).apply(frame.read(offset::ICMP_CHECKSUM));
        frame.write(offset::QUOTE_SRC, addr.v4_be());
        frame.write(offset::QUOTE_CHECKSUM, quoted);
        frame.write(offset::QUOTE_PORTS, port.0);
        frame.write(offset::ICMP_CHECKSUM, icmp);
        frame.set_dst_mac(mac);
    }
}

/// The frame of a tc packet, its headers made linear if they are not; `None` if it is too short, tagged, or not for this
/// host's MAC address.
#[inline(always)]
pub(crate) fn tc_frame(ctx: &TcContext) -> Option<Frame> {
    const PACKET_OTHERHOST: u32 = 3;
    let skb = ctx.as_ptr().cast::<__sk_buff>();
    // SAFETY: the context pointer is valid for the life of the program; these are plain fields of it.
    let (pkt_type, vlan, len) = unsafe { ((*skb).pkt_type, (*skb).vlan_present, (*skb).len) };
    // A tagged packet belongs to the VLAN interface above, where steer may be attached too.
    if pkt_type == PACKET_OTHERHOST || vlan != 0 {
        return None;
    }
    if let Some(frame) = Frame::of_tc(ctx) {
        return Some(frame);
    }
    if (len as usize) < offset::END {
        return None;
    }
    ctx.pull_data(offset::END as u32).ok()?;
    Frame::of_tc(ctx)
}
