//! The packet that is asked about: Ethernet, IPv4 and TCP headers, nothing behind them. Pure.

use std::net::SocketAddrV4;

use steer_common::addr::Port;
use steer_common::tcp::TcpFlags;

use crate::dataplane::frame::{Headers, IP, TCP_HEADER};

/// A packet from one address to the other, with sound checksums, addressed to that interface. `seq` as the programs read it:
/// in the byte order of the wire.
pub(super) fn build(from: SocketAddrV4, to: SocketAddrV4, flags: TcpFlags, seq: u32, mac: [u8; 6]) -> Vec<u8> {
    let end = |at: SocketAddrV4| ((*at.ip()).into(), Port::new(at.port()));
    Headers {
        // A locally administered sender that nobody has.
        src_mac: [2, 0, 0, 0, 0, 1],
        dst_mac: mac,
        src: end(from),
        dst: end(to),
        tos: 0,
        ttl: 64,
        seq,
        flags,
        window: u16::MAX,
        options: &[],
    }
    .frame()
}

/// Where a frame goes by now.
pub(super) fn destination(frame: &[u8]) -> Option<SocketAddrV4> {
    let addr: [u8; 4] = frame.get(IP + 16..IP + 20)?.try_into().ok()?;
    let port: [u8; 2] = frame.get(TCP_HEADER + 2..TCP_HEADER + 4)?.try_into().ok()?;
    Some(SocketAddrV4::new(addr.into(), Port(u16::from_ne_bytes(port)).get()))
}

#[cfg(test)]
mod tests {
    use steer_common::addr::{Addr, TCP};
    use steer_common::csum;

    use super::*;
    use crate::dataplane::frame::words;

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
