//! Connections that a container has, from the kernel's socket diagnostics inside its network namespace.

use std::io;
use std::net::IpAddr;

use super::netlink::Netlink;
use super::netns::Netns;
use super::sock_diag::{AF_INET, AF_INET6, address, sockets};

/// Every state in which packets may still come: not CLOSE, LISTEN or TIME_WAIT.
const TCPF_OPEN: u32 = !(1 << 7 | 1 << 10 | 1 << 6);
/// SYN_RECV, of both kinds: the handshake is under way.
const TCPF_OPENING: u32 = 1 << 3 | 1 << 12;

/// Where `inet_diag_msg` has the remote port and address.
const ANSWER_PORT: usize = 6;
const ANSWER_ADDRESS: usize = 24;

/// Who is connected to a local port, in that namespace; `opening`: or about to be.
pub fn clients(netns: &Netns, port: u16, opening: bool) -> io::Result<Vec<(IpAddr, u16)>> {
    let states = if opening { TCPF_OPEN } else { TCPF_OPEN & !TCPF_OPENING };
    netns.visit(|| {
        let mut netlink = Netlink::sockets()?;
        let mut clients = Vec::new();
        for family in [AF_INET, AF_INET6] {
            let answers = sockets(&mut netlink, family, states, port)?;
            clients.extend(answers.iter().filter_map(|answer| client(&answer.bytes)));
        }
        Ok(clients)
    })?
}

fn client(bytes: &[u8]) -> Option<(IpAddr, u16)> {
    let port = u16::from_be_bytes(*bytes.get(ANSWER_PORT..)?.first_chunk()?);
    let address = address(bytes, ANSWER_ADDRESS)?.to_canonical();
    Some((address, port))
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn a_client_is_read_as_the_kernel_writes_it() {
        let mut bytes = vec![AF_INET, 1, 0, 0, 0x13, 0x88, 0x9c, 0x40];
        bytes.resize(ANSWER_ADDRESS, 0);
        bytes.extend([192, 0, 2, 7]);
        bytes.resize(72, 0);
        assert_eq!(client(&bytes), Some((IpAddr::from([192, 0, 2, 7]), 40_000)));
        bytes[0] = AF_INET6;
        let mapped = "::ffff:192.0.2.7".parse::<Ipv6Addr>().unwrap().octets();
        bytes[ANSWER_ADDRESS..ANSWER_ADDRESS + 16].copy_from_slice(&mapped);
        assert_eq!(client(&bytes), Some((IpAddr::from([192, 0, 2, 7]), 40_000)), "an IPv6 socket with an IPv4 client");
        assert_eq!(client(&bytes[..30]), None);
    }
}
