//! The kernel's list of TCP sockets of one local port, in the network namespace of the calling thread (`sock_diag`, one question per
//! address family).

use std::io;
use std::net::{IpAddr, Ipv6Addr};

use super::netlink::{Netlink, Raw};

// linux/sock_diag.h, linux/inet_diag.h
const SOCK_DIAG_BY_FAMILY: u16 = 20;
pub(super) const AF_INET: u8 = 2;
pub(super) const AF_INET6: u8 = 10;
const IPPROTO_TCP: u8 = 6;

/// `inet_diag_req_v2`, and where the local port is in it.
const QUESTION: usize = 56;
const QUESTION_PORT: usize = 8;

/// The sockets of a family with that local port that are in one of these states (a bit each: `net/tcp_states.h`), as
/// `inet_diag_msg` and its attributes.
pub(super) fn sockets(netlink: &mut Netlink, family: u8, states: u32, port: u16) -> io::Result<Vec<Raw>> {
    netlink.dump(|| {
        let mut bytes = vec![family, IPPROTO_TCP, 0, 0];
        bytes.extend(states.to_ne_bytes());
        bytes.resize(QUESTION_PORT, 0);
        bytes.extend(port.to_be_bytes());
        bytes.resize(QUESTION, 0);
        Raw { kind: SOCK_DIAG_BY_FAMILY, bytes }
    })
}

/// The address at a place of an answer, of the answer's family.
pub(super) fn address(answer: &[u8], at: usize) -> Option<IpAddr> {
    let address: [u8; 16] = *answer.get(at..)?.first_chunk()?;
    match *answer.first()? {
        AF_INET => Some(IpAddr::from(*address.first_chunk::<4>()?)),
        AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(address))),
        _ => None,
    }
}
