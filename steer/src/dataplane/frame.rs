//! Frames with a TCP header and nothing behind it, as the programs meet them. Pure.

use steer_common::addr::{Addr, Port, TCP};
use steer_common::csum;
use steer_common::tcp::TcpFlags;

/// Where the IPv4 header begins.
pub(super) const IP: usize = 14;
/// Where the TCP header begins: steer's packets have no IP options.
pub(super) const TCP_HEADER: usize = IP + 20;

/// What a frame's headers say; lengths and checksums follow from that.
#[derive(Clone, Copy, Debug)]
pub(super) struct Headers<'a> {
    pub src_mac: [u8; 6],
    pub dst_mac: [u8; 6],
    pub src: (Addr, Port),
    pub dst: (Addr, Port),
    pub tos: u8,
    pub ttl: u8,
    /// Sequence number, as on the wire.
    pub seq: u32,
    pub flags: TcpFlags,
    /// Window, as on the wire.
    pub window: u16,
    /// TCP options: whole words.
    pub options: &'a [u8],
}

impl Headers<'_> {
    /// The frame: no identification, not to be fragmented, nothing acknowledged.
    pub(super) fn frame(&self) -> Vec<u8> {
        let tcp_len = 20 + self.options.len();
        let mut frame = Vec::with_capacity(TCP_HEADER + tcp_len);
        frame.extend(self.dst_mac);
        frame.extend(self.src_mac);
        frame.extend(0x0800_u16.to_be_bytes());
        frame.extend([0x45, self.tos]);
        frame.extend(((TCP_HEADER - IP + tcp_len) as u16).to_be_bytes());
        frame.extend([0, 0, 0x40, 0, self.ttl, TCP, 0, 0]);
        frame.extend(self.src.0.v4_be().to_ne_bytes());
        frame.extend(self.dst.0.v4_be().to_ne_bytes());
        frame.extend(self.src.1.0.to_ne_bytes());
        frame.extend(self.dst.1.0.to_ne_bytes());
        frame.extend(self.seq.to_ne_bytes());
        frame.extend([0; 4]);
        frame.extend([((tcp_len / 4) << 4) as u8, self.flags.0]);
        frame.extend(self.window.to_ne_bytes());
        // Checksum, urgent pointer.
        frame.extend([0; 4]);
        frame.extend(self.options);
        let (ip, tcp) = frame[IP..].split_at_mut(TCP_HEADER - IP);
        let sum = csum::finish(words(ip));
        ip[10..12].copy_from_slice(&sum.to_ne_bytes());
        let pseudo = csum::pseudo(self.src.0, self.dst.0, TCP, tcp_len as u16);
        let sum = csum::finish(words(tcp) + u32::from(pseudo));
        tcp[16..18].copy_from_slice(&sum.to_ne_bytes());
        frame
    }
}

/// The sum of the 16-bit words, as they lie in memory.
pub(super) fn words(bytes: &[u8]) -> u32 {
    bytes.as_chunks().0.iter().map(|word| u32::from(u16::from_ne_bytes(*word))).sum()
}
