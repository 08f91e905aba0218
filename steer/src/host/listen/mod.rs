//! Whether a container listens on a port: asked of the kernel inside its network namespace, no packet sent.

mod table;

use std::io;
use std::net::IpAddr;

use super::netlink::{Netlink, find};
use super::netns::Netns;
use super::sock_diag::{AF_INET, AF_INET6, address, sockets};

// net/tcp_states.h, linux/inet_diag.h
const TCPF_LISTEN: u32 = 1 << 10;
const INET_DIAG_SKV6ONLY: u16 = 11;

/// `inet_diag_msg`, and where the bound address is in it.
const ANSWER: usize = 72;
const ANSWER_ADDRESS: usize = 8;

/// Whether a TCP socket in this network namespace takes connections to `address` and `port`.
pub fn is_listening_in(netns: &Netns, address: IpAddr, port: u16) -> io::Result<bool> {
    netns.visit(|| {
        ask_kernel(address, port).or_else(|error| {
            tracing::trace!(%error, "no socket diagnostics, reading /proc/net/tcp");
            table::is_listening(address, port)
        })
    })?
}

/// Asks for listening sockets only, so that the kernel does not look at the thousands of connections.
fn ask_kernel(address: IpAddr, port: u16) -> io::Result<bool> {
    let mut netlink = Netlink::sockets()?;
    for family in [AF_INET, AF_INET6] {
        let answers = sockets(&mut netlink, family, TCPF_LISTEN, port)?;
        if answers
            .iter()
            .filter_map(|answer| socket(&answer.bytes))
            .any(|(local, v6_only)| accepts(local, v6_only, address))
        {
            return Ok(true);
        }
    }
    Ok(false)
}

/// Address a socket is bound to, and whether it is bound to IPv6 only.
fn socket(bytes: &[u8]) -> Option<(IpAddr, bool)> {
    let (body, attributes) = bytes.split_at_checked(ANSWER)?;
    let local = address(body, ANSWER_ADDRESS)?;
    Some((local, find(attributes, INET_DIAG_SKV6ONLY).is_some_and(|only| only != [0])))
}

/// Whether a socket bound to `local` takes connections to `address`.
fn accepts(local: IpAddr, v6_only: bool, address: IpAddr) -> bool {
    match local.to_canonical() {
        IpAddr::V4(local) if local.is_unspecified() => address.is_ipv4(),
        IpAddr::V6(local) if local.is_unspecified() => address.is_ipv6() || !v6_only,
        local => local == address.to_canonical(),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv6Addr;

    use super::*;

    #[test]
    fn a_bound_address_takes_what_it_covers() {
        for (local, v6_only, address, expected) in [
            ("0.0.0.0", false, "172.17.0.2", true),
            ("0.0.0.0", false, "fd00::2", false),
            ("::", false, "172.17.0.2", true),
            ("::", true, "172.17.0.2", false),
            ("::", true, "fd00::2", true),
            ("172.17.0.2", false, "172.17.0.2", true),
            ("::ffff:172.17.0.2", false, "172.17.0.2", true),
            ("::ffff:0.0.0.0", false, "172.17.0.2", true),
            ("172.17.0.3", false, "172.17.0.2", false),
            ("127.0.0.1", false, "172.17.0.2", false),
            ("::1", false, "fd00::2", false),
        ] {
            let accepted = accepts(local.parse().unwrap(), v6_only, address.parse().unwrap());
            assert_eq!(accepted, expected, "{local} for {address}, IPv6 only: {v6_only}");
        }
    }

    #[test]
    fn a_socket_is_read_as_the_kernel_writes_it() {
        let mut bytes = vec![AF_INET6, 10, 0, 0, 0x13, 0x88, 0, 0];
        bytes.extend(Ipv6Addr::LOCALHOST.octets());
        bytes.resize(ANSWER, 0);
        assert_eq!(socket(&bytes), Some((IpAddr::V6(Ipv6Addr::LOCALHOST), false)));
        // Length 5, kind, value 1, padding.
        bytes.extend([5, 0, INET_DIAG_SKV6ONLY as u8, 0, 1, 0, 0, 0]);
        assert_eq!(socket(&bytes).map(|(_, v6_only)| v6_only), Some(cfg!(target_endian = "little")));
        assert_eq!(socket(&bytes[..40]), None);
    }
}
