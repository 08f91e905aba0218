//! A frontend as its label wrote it, before it is given to every address of the host.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};

use steer_common::addr::{Addr, Port, UDP};
use steer_common::service::PortInfo;

use super::{PortSpec, Protocol};

/// Where clients connect to.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Frontend {
    /// `None` = every address of the host.
    pub address: Option<IpAddr>,
    pub port: u16,
    pub protocol: Protocol,
}

impl Frontend {
    pub fn of(spec: &PortSpec) -> Self {
        Self { address: spec.address, port: spec.port, protocol: spec.protocol }
    }

    /// What the maps keep of it; `None` = the hole that a port leaves which was given up.
    pub fn from_info(info: &PortInfo) -> Option<Self> {
        (info.port != Port::NONE).then(|| Self {
            address: (info.addr != Addr::UNSPECIFIED).then(|| info.addr.to_ip()),
            port: info.port.get(),
            protocol: if info.proto == UDP { Protocol::Udp } else { Protocol::Tcp },
        })
    }

    /// Whether some packet could be for both.
    pub fn overlaps(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || self.address.is_none() || other.address.is_none())
    }
}

impl fmt::Display for Frontend {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let address = self.address.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let protocol = match self.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        write!(f, "{}/{protocol}", SocketAddr::new(address, self.port))
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn frontend(address: &str, port: u16, protocol: Protocol) -> Frontend {
        Frontend { address: address.parse().ok(), port, protocol }
    }

    #[rstest]
    #[case::every_address(frontend("", 80, Protocol::Tcp), "0.0.0.0:80/tcp")]
    #[case::one_address(frontend("10.0.0.1", 53, Protocol::Udp), "10.0.0.1:53/udp")]
    #[case::brackets_around_ipv6(frontend("2001:db8::1", 80, Protocol::Tcp), "[2001:db8::1]:80/tcp")]
    fn it_is_written_as_an_address(#[case] frontend: Frontend, #[case] text: &str) {
        assert_eq!(frontend.to_string(), text);
    }

    #[rstest]
    #[case::the_same(frontend("10.0.0.1", 80, Protocol::Tcp), true)]
    #[case::every_address(frontend("", 80, Protocol::Tcp), true)]
    #[case::another_address(frontend("10.0.0.2", 80, Protocol::Tcp), false)]
    #[case::another_port(frontend("10.0.0.1", 81, Protocol::Tcp), false)]
    #[case::another_protocol(frontend("", 80, Protocol::Udp), false)]
    fn two_overlap_where_a_packet_could_be_for_both(#[case] other: Frontend, #[case] expected: bool) {
        let one = frontend("10.0.0.1", 80, Protocol::Tcp);
        assert_eq!((one.overlaps(&other), other.overlaps(&one)), (expected, expected));
    }
}
