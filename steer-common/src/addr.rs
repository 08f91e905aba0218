//! Addresses and ports as they are on the wire: network byte order, always.
//!
//! Byte order lives in the type. This is the only file that converts; everything else moves values around. One address type
//! serves both families: IPv4 is held as an IPv4-mapped IPv6 address (RFC 4291, 2.5.5.2), so keys and records do not change
//! when IPv6 is steered.

use core::fmt;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// An IPv6 address, or an IPv4 one in its mapped form `::ffff:a.b.c.d`. Four words, each in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(C)]
pub struct Addr(pub [u32; 4]);

/// A TCP or UDP port in network byte order.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
#[repr(transparent)]
pub struct Port(pub u16);

/// The third word of every IPv4-mapped address.
const MAPPED: u32 = 0x0000_ffff_u32.to_be();

impl Addr {
    /// `::`, which no packet carries as a source and no backend has.
    pub const UNSPECIFIED: Self = Self([0; 4]);

    /// An IPv4 address given as the 32 bits of the header, in network byte order.
    #[inline(always)]
    pub const fn from_v4_be(bits: u32) -> Self {
        Self([0, 0, MAPPED, bits])
    }

    /// The 32 bits of an IPv4 header, in network byte order. Meaningless unless [`Self::is_v4`].
    #[inline(always)]
    pub const fn v4_be(self) -> u32 {
        self.0[3]
    }

    /// Whether this is an IPv4 address in mapped form.
    #[inline(always)]
    pub const fn is_v4(self) -> bool {
        self.0[0] == 0 && self.0[1] == 0 && self.0[2] == MAPPED
    }

    /// Whether this is `127.0.0.0/8` or `::1`.
    #[inline(always)]
    pub const fn is_loopback(self) -> bool {
        if self.is_v4() {
            u32::from_be(self.0[3]) >> 24 == 127
        } else {
            self.0[0] == 0 && self.0[1] == 0 && self.0[2] == 0 && self.0[3] == 1_u32.to_be()
        }
    }

    /// The sixteen bytes in wire order.
    pub const fn octets(self) -> [u8; 16] {
        let [a, b, c, d] = self.0;
        let (a, b, c, d) = (a.to_ne_bytes(), b.to_ne_bytes(), c.to_ne_bytes(), d.to_ne_bytes());
        [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3], c[0], c[1], c[2], c[3], d[0], d[1], d[2], d[3]]
    }

    /// The address as the standard library knows it, IPv4 unmapped.
    pub const fn to_ip(self) -> IpAddr {
        if self.is_v4() {
            IpAddr::V4(Ipv4Addr::from_bits(u32::from_be(self.0[3])))
        } else {
            IpAddr::V6(Ipv6Addr::from_octets(self.octets()))
        }
    }
}

impl From<Ipv4Addr> for Addr {
    fn from(ip: Ipv4Addr) -> Self {
        Self::from_v4_be(ip.to_bits().to_be())
    }
}

impl From<Ipv6Addr> for Addr {
    fn from(ip: Ipv6Addr) -> Self {
        let o = ip.octets();
        Self([
            u32::from_ne_bytes([o[0], o[1], o[2], o[3]]),
            u32::from_ne_bytes([o[4], o[5], o[6], o[7]]),
            u32::from_ne_bytes([o[8], o[9], o[10], o[11]]),
            u32::from_ne_bytes([o[12], o[13], o[14], o[15]]),
        ])
    }
}

impl From<IpAddr> for Addr {
    fn from(ip: IpAddr) -> Self {
        match ip {
            IpAddr::V4(v4) => v4.into(),
            IpAddr::V6(v6) => v6.into(),
        }
    }
}

impl fmt::Display for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl fmt::Debug for Addr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.to_ip().fmt(f)
    }
}

impl Port {
    /// Port 0: "no port" in records that may lack one.
    pub const NONE: Self = Self(0);

    /// From a number as people write it.
    #[inline(always)]
    pub const fn new(port: u16) -> Self {
        Self(port.to_be())
    }

    /// The number as people write it.
    #[inline(always)]
    pub const fn get(self) -> u16 {
        u16::from_be(self.0)
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

impl fmt::Debug for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.get().fmt(f)
    }
}

/// IANA protocol number of TCP.
pub const TCP: u8 = 6;
/// IANA protocol number of UDP.
pub const UDP: u8 = 17;
/// IANA protocol number of ICMP.
pub const ICMP: u8 = 1;

#[cfg(test)]
mod tests {
    use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
    use std::string::ToString;

    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn every_address_survives_the_round_trip(v4: u32, v6: u128) {
            let v4 = Ipv4Addr::from_bits(v4);
            prop_assert_eq!(Addr::from(v4).to_ip(), IpAddr::V4(v4));
            let v6 = Ipv6Addr::from_bits(v6);
            prop_assert_eq!(Addr::from(v6).octets(), v6.octets());
        }
    }

    #[test]
    fn an_ipv4_address_is_held_as_the_header_holds_it() {
        let addr = Addr::from(Ipv4Addr::new(10, 1, 2, 3));
        assert_eq!(addr.v4_be().to_ne_bytes(), [10, 1, 2, 3]);
        assert!(addr.is_v4());
        assert_eq!(addr.to_string(), "10.1.2.3");
    }

    #[test]
    fn loopback_is_the_whole_of_127_and_one_ipv6_address() {
        for (ip, expected) in
            [("127.0.0.1", true), ("127.9.9.9", true), ("128.0.0.1", false), ("::1", true), ("::2", false)]
        {
            assert_eq!(Addr::from(ip.parse::<IpAddr>().unwrap()).is_loopback(), expected, "{ip}");
        }
    }

    #[test]
    fn a_port_is_big_endian_inside_and_a_number_outside() {
        assert_eq!(Port::new(9000).0.to_ne_bytes(), [0x23, 0x28]);
        assert_eq!(Port::new(9000).get(), 9000);
    }
}
