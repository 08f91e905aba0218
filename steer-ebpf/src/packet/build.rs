//! Packets that steer writes itself: a reset, and the SYN of a client once more; and what is kept of a SYN for that.

use core::hint::black_box;

use aya_ebpf::programs::TcContext;
use steer_common::addr::{Addr, Port, TCP};
use steer_common::csum;
use steer_common::flow::{FlowKey, PendingEntry, SYN_OPTIONS, SynEntry};
use steer_common::steer::Segment;
use steer_common::tcp::TcpFlags;

use super::{Frame, IP_PLAIN, Packet, offset};

/// Keeps what is needed of the SYN at hand to send it again.
///
/// # Safety
/// `syn` points to a place for it that nobody else looks at.
#[inline(always)]
pub(crate) unsafe fn fill_syn<P: Packet>(packet: &P, syn: *mut SynEntry) {
    // SAFETY: by contract; the two headers that are loaded first are as long as the field for options.
    unsafe {
        let bytes = (&raw mut (*syn).options).cast::<u8>();
        (*syn).options_len = 0;
        if !packet.load(offset::IP, bytes, SYN_OPTIONS as u32) {
            return;
        }
        (*syn).tos = *bytes.add(1);
        (*syn).ttl = *bytes.add(8);
        let header_len = (*bytes.add(offset::TCP + 12 - offset::IP) >> 4) as u32 * 4;
        (*syn).flags = TcpFlags(*bytes.add(offset::TCP_FLAGS - offset::IP));
        (*syn).window = u16::from_ne_bytes([*bytes.add(34), *bytes.add(35)]);
        // One less than the options' length: the helper wants a length that is seen not to be 0, and the verifier of Linux 6.12 and
        // before does not see it behind a comparison with 0.
        let last = black_box(header_len.wrapping_sub(21));
        if last < SYN_OPTIONS as u32 && packet.load(offset::END, bytes, last + 1) {
            (*syn).options_len = (last + 1) as u8;
        }
    }
}

/// Length of a frame with a TCP header that has no options, and of one that has as many as there can be.
pub(crate) const BARE_LEN: u32 = offset::END as u32;
pub(crate) const FULL_LEN: u32 = (offset::END + SYN_OPTIONS) as u32;

/// A reset in the place of the packet that it answers (RFC 9293, 3.10.7.1), to where that packet came from.
pub(crate) struct ResetFrame {
    src: Addr,
    dst: Addr,
    src_port: Port,
    dst_port: Port,
    seq: u32,
    ack: u32,
    flags: TcpFlags,
    is_partial: bool,
}

impl ResetFrame {
    /// What the answer to the packet in a frame says. To be written once the packet has its length.
    #[inline(always)]
    pub(crate) fn to(frame: Frame, segment: &Segment) -> Self {
        let has_ack = segment.flags.has(TcpFlags::ACK);
        let header_len = (frame.read::<u8>(offset::TCP + 12) >> 4) as u32 * 4;
        let total_len = u32::from(u16::from_be(frame.read(offset::IP + 2)));
        let data_len = total_len.wrapping_sub(20 + header_len);
        let ends = u32::from(segment.flags.has(TcpFlags::SYN)) + u32::from(segment.flags.has(TcpFlags::FIN));
        let next = u32::from_be(segment.seq).wrapping_add(data_len).wrapping_add(ends);
        let tcp_len = (total_len as u16).wrapping_sub(20);
        Self {
            src: segment.dst,
            dst: segment.src,
            src_port: segment.dst_port,
            dst_port: segment.src_port,
            seq: if has_ack { frame.read(offset::TCP + 8) } else { 0 },
            ack: if has_ack { 0 } else { next.to_be() },
            flags: if has_ack { TcpFlags::RST } else { TcpFlags::RST.with(TcpFlags::ACK) },
            // A packet of this very host whose checksum the hardware was to complete holds only the sum of the pseudo header,
            // and what is written over it will be completed likewise. There is no other way to tell.
            is_partial: csum::pseudo(segment.src, segment.dst, TCP, tcp_len) == frame.tcp_checksum(),
        }
    }

    /// Writes it, over a packet of [`BARE_LEN`] bytes.
    #[inline(always)]
    pub(crate) fn write(self, frame: Frame) {
        let Self { src, dst, src_port, dst_port, seq, ack, flags, is_partial } = self;
        frame.swap_macs();
        frame.write_ip(src, dst, 40, 0, 64);
        frame.write(offset::TCP_SRC, src_port.0);
        frame.write(offset::TCP_DST, dst_port.0);
        frame.write(offset::TCP_SEQ, seq);
        frame.write(offset::TCP + 8, ack);
        frame.write::<u16>(offset::TCP + 12, u16::from_ne_bytes([0x50, flags.0]));
        // Window, and urgent pointer.
        frame.write::<u16>(offset::TCP + 14, 0);
        frame.write::<u16>(offset::TCP + 18, 0);
        let pseudo = csum::pseudo(src, dst, TCP, 20);
        let checksum = if is_partial { pseudo } else { csum::finish(frame.sum_tcp::<10>(pseudo)) };
        frame.write(offset::TCP_CHECKSUM, checksum);
    }
}

/// A frame of at least [`FULL_LEN`] bytes.
pub(crate) struct FullFrame {
    frame: Frame,
}

impl FullFrame {
    /// The frame of a tc packet.
    #[inline(always)]
    pub(crate) fn of_tc(ctx: &TcContext) -> Option<Self> {
        let (data, end) = (ctx.data(), ctx.data_end());
        if data + FULL_LEN as usize > end { None } else { Some(Self { frame: Frame { start: data as *mut u8 } }) }
    }

    /// Writes the SYN of a pending flow, as its client sent it, but to a backend. Options are filled up with "end of options"
    /// (RFC 9293, 3.1), so that there is one length only.
    ///
    /// # Safety
    /// `pending` is a map value.
    #[inline(always)]
    pub(crate) unsafe fn write_syn(
        self,
        key: &FlowKey,
        pending: *const PendingEntry,
        addr: Addr,
        port: Port,
        mac: [u8; 6],
    ) {
        let Self { frame } = self;
        // SAFETY: by contract; the frame has room for all options.
        unsafe {
            let syn = &raw const (*pending).syn;
            frame.write_ip(key.client, addr, FULL_LEN as u16 - offset::IP as u16, (*syn).tos, (*syn).ttl);
            frame.set_dst_mac(mac);
            frame.write(offset::TCP_SRC, key.client_port.0);
            frame.write(offset::TCP_DST, port.0);
            frame.write(offset::TCP_SEQ, (*pending).flow.isn);
            frame.write::<u32>(offset::TCP + 8, 0);
            frame.write::<u16>(offset::TCP + 12, u16::from_ne_bytes([0xf0, (*syn).flags.0]));
            frame.write(offset::TCP + 14, (*syn).window);
            frame.write::<u32>(offset::TCP_CHECKSUM, 0);
            let used = (*syn).options_len as usize;
            let mut at = 0;
            while at < SYN_OPTIONS {
                let word = if at < used { (&raw const (*syn).options).cast::<u32>().add(at / 4).read() } else { 0 };
                frame.write(offset::END + at, word);
                at += 4;
            }
        }
        let pseudo = csum::pseudo(key.client, addr, TCP, 60);
        frame.write(offset::TCP_CHECKSUM, csum::finish(frame.sum_tcp::<30>(pseudo)));
    }
}

impl Frame {
    #[inline(always)]
    fn swap_macs(self) {
        let (to, to_end) = (self.read::<u32>(offset::ETH_DST), self.read::<u16>(offset::ETH_DST + 4));
        let (from_start, from): (u16, u32) = (self.read(offset::ETH_DST + 6), self.read(offset::ETH_DST + 8));
        self.write(offset::ETH_DST, from_start);
        self.write(offset::ETH_DST + 2, from);
        self.write(offset::ETH_DST + 6, to);
        self.write(offset::ETH_DST + 10, to_end);
    }

    /// A new IP header of a TCP packet that is not to be fragmented.
    #[inline(always)]
    fn write_ip(self, src: Addr, dst: Addr, total_len: u16, tos: u8, ttl: u8) {
        self.write::<u16>(offset::IP, u16::from_ne_bytes([IP_PLAIN, tos]));
        self.write::<u16>(offset::IP + 2, total_len.to_be());
        self.write::<u16>(offset::IP + 4, 0);
        self.write::<u16>(offset::IP_FRAGMENT, 0x4000_u16.to_be());
        self.write::<u16>(offset::IP + 8, u16::from_ne_bytes([ttl, TCP]));
        self.write::<u16>(offset::IP_CHECKSUM, 0);
        self.write(offset::IP_SRC, src.v4_be());
        self.write(offset::IP_DST, dst.v4_be());
        let mut sum = 0;
        let mut word = 0;
        while word < 10 {
            sum += u32::from(self.read::<u16>(offset::IP + 2 * word));
            word += 1;
        }
        self.write(offset::IP_CHECKSUM, csum::finish(sum));
    }

    /// The sum of so many 16-bit words from the TCP header on, and of the pseudo header; the caller knows that they are there.
    #[inline(always)]
    fn sum_tcp<const WORDS: usize>(self, pseudo: u16) -> u32 {
        let mut sum = u32::from(pseudo);
        let mut word = 0;
        while word < WORDS {
            // The checksum's own field counts as 0.
            if word != (offset::TCP_CHECKSUM - offset::TCP) / 2 {
                sum += u32::from(self.read::<u16>(offset::TCP + 2 * word));
            }
            word += 1;
        }
        sum
    }
}
