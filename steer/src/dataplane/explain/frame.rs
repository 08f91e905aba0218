//! The packet that is asked about: Ethernet, IPv4 and TCP headers, nothing behind them. Pure.

use std::net::SocketAddrV4;

use steer_common::addr::{Addr, Port, TCP};
use steer_common::csum;
use steer_common::tcp::TcpFlags;

/// Ethernet 14, IPv4 20, TCP 20 bytes.
pub(super) const LEN: usize = 54;
const IP: usize = 14;
const TCP_HEADER: usize = IP + 20;
const TCP_LEN: u16 = 20;

/// A packet from one address to the other, with sound checksums, addressed to that interface. `seq` as the programs read it:
/// in the byte order of the wire.
pub(super) fn build(from: SocketAddrV4, to: SocketAddrV4, flags: TcpFlags, seq: u32, mac: [u8; 6]) -> [u8; LEN] {
    let mut frame = [0; LEN];
    let mut put = |at: usize, bytes: &[u8]| frame[at..at + bytes.len()].copy_from_slice(bytes);
    put(0, &mac);
    // A locally administered sender that nobody has.
    put(6, &[2, 0, 0, 0, 0, 1]);
    put(12, &[0x08, 0x00]);
    put(IP, &[0x45, 0, 0, (LEN - IP) as u8, 0, 0, 0x40, 0, 64, TCP]);
    put(IP + 12, &from.ip().octets());
    put(IP + 16, &to.ip().octets());
    put(TCP_HEADER, &from.port().to_be_bytes());
    put(TCP_HEADER + 2, &to.port().to_be_bytes());
    put(TCP_HEADER + 4, &seq.to_ne_bytes());
    put(TCP_HEADER + 12, &[(TCP_LEN as u8 / 4) << 4, flags.0]);
    put(TCP_HEADER + 14, &u16::MAX.to_be_bytes());
    let ip = csum::finish(words(&frame[IP..TCP_HEADER]));
    let pseudo = csum::pseudo(Addr::from(*from.ip()), Addr::from(*to.ip()), TCP, TCP_LEN);
    let tcp = csum::finish(words(&frame[TCP_HEADER..]) + u32::from(pseudo));
    frame[IP + 10..IP + 12].copy_from_slice(&ip.to_ne_bytes());
    frame[TCP_HEADER + 16..TCP_HEADER + 18].copy_from_slice(&tcp.to_ne_bytes());
    frame
}

/// Where a frame goes by now.
pub(super) fn destination(frame: &[u8]) -> Option<SocketAddrV4> {
    let addr: [u8; 4] = frame.get(IP + 16..IP + 20)?.try_into().ok()?;
    let port: [u8; 2] = frame.get(TCP_HEADER + 2..TCP_HEADER + 4)?.try_into().ok()?;
    Some(SocketAddrV4::new(addr.into(), Port(u16::from_ne_bytes(port)).get()))
}

/// The sum of the 16-bit words, as they lie in memory.
fn words(bytes: &[u8]) -> u32 {
    bytes.as_chunks().0.iter().map(|word| u32::from(u16::from_ne_bytes(*word))).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The sum of a header with a sound checksum is all ones (RFC 1071).
    fn is_sound(sum: u32) -> bool {
        csum::finish(sum) == 0
    }

    #[test]
    fn headers_are_as_on_the_wire() {
        let (from, to) = ("192.0.2.7:40000".parse().unwrap(), "10.0.0.1:9000".parse().unwrap());
        let frame = build(from, to, TcpFlags::SYN, 0x0102_0304_u32.to_be(), [2, 0, 0, 0, 0, 9]);
        assert_eq!(&frame[..14], [2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 1, 8, 0]);
        assert_eq!(&frame[14..24], [0x45, 0, 0, 40, 0, 0, 0x40, 0, 64, 6]);
        assert_eq!(&frame[26..34], [192, 0, 2, 7, 10, 0, 0, 1]);
        assert_eq!(&frame[34..50], [0x9c, 0x40, 0x23, 0x28, 1, 2, 3, 4, 0, 0, 0, 0, 0x50, 2, 0xff, 0xff]);
        assert!(is_sound(words(&frame[14..34])));
        let pseudo = u32::from(csum::pseudo(Addr::from(*from.ip()), Addr::from(*to.ip()), TCP, 20));
        assert!(is_sound(words(&frame[34..]) + pseudo));
        assert_eq!(destination(&frame), Some(to));
        assert_eq!(destination(&frame[..37]), None);
    }
}
