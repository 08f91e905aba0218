//! This host's own addresses, and when they or its interfaces change.
//!
//! A frontend without an address means each of these, and nothing else: a packet in transit to another machine is not
//! steered.

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;

use anyhow::Context;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage, AddressScope};
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{AsyncSocket, AsyncSocketExt, SocketAddr, TokioSocket};

use super::netlink::Netlink;

// linux/rtnetlink.h
const RTMGRP_LINK: u32 = 1 << 0;
const RTMGRP_IPV4_IFADDR: u32 = 1 << 4;
const RTMGRP_IPV4_ROUTE: u32 = 1 << 6;
const RTMGRP_IPV6_IFADDR: u32 = 1 << 8;
const RTMGRP_IPV6_ROUTE: u32 = 1 << 10;
const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;

/// Where `struct rtmsg` has the length of the prefix that a route is for.
const DESTINATION_LENGTH: usize = 1;

/// Room for one notification. A longer one is cut, which does no harm: its type comes first.
const DATAGRAM: usize = 8 * 1024;

/// Addresses of this network namespace that others can reach it by: loopback, host scope and IPv6 link-local left out.
pub fn addresses() -> io::Result<BTreeSet<IpAddr>> {
    Ok(reachable(&mut Netlink::route()?)?.into_iter().map(|(_, address)| address).collect())
}

/// The same, with the index of the interface that has it.
pub(super) fn reachable(netlink: &mut Netlink) -> io::Result<Vec<(u32, IpAddr)>> {
    Ok(of_links(netlink)?.into_iter().filter(|(_, address)| !is_local(address)).collect())
}

/// Addresses with the index of their interface, in the socket's namespace; host scope left out.
pub(super) fn of_links(netlink: &mut Netlink) -> io::Result<Vec<(u32, IpAddr)>> {
    let answers = netlink.dump(|| RouteNetlinkMessage::GetAddress(AddressMessage::default()))?;
    Ok(answers.into_iter().filter_map(parse).collect())
}

/// Loopback, or IPv6 link-local: many interfaces may hold the same one, so no frontend can name it.
fn is_local(address: &IpAddr) -> bool {
    match address {
        IpAddr::V4(address) => address.is_loopback(),
        IpAddr::V6(address) => address.is_loopback() || address.is_unicast_link_local(),
    }
}

fn parse(answer: RouteNetlinkMessage) -> Option<(u32, IpAddr)> {
    let RouteNetlinkMessage::NewAddress(AddressMessage { header, attributes, .. }) = answer else { return None };
    if matches!(header.scope, AddressScope::Host | AddressScope::Nowhere) {
        return None;
    }
    let (mut local, mut address) = (None, None);
    for attribute in attributes {
        match attribute {
            AddressAttribute::Local(value) => local = Some(value),
            AddressAttribute::Address(value) => address = Some(value),
            // Another machine has it.
            AddressAttribute::Flags(flags) if flags.contains(AddressFlags::Dadfailed) => return None,
            _ => {}
        }
    }
    // On a point-to-point link, `Address` is the other side's.
    Some((header.index, local.or(address)?))
}

/// What changed on this host, as far as it is known: read it anew.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct HostChange {
    /// Addresses of interfaces.
    pub addresses: bool,
    /// Interfaces themselves: one came, went, or changed.
    pub links: bool,
    /// Default routes: which interfaces clients come in by.
    pub routes: bool,
}

impl HostChange {
    /// After notifications were lost.
    pub const ALL: Self = Self { addresses: true, links: true, routes: true };

    fn and(self, other: Self) -> Self {
        Self {
            addresses: self.addresses || other.addresses,
            links: self.links || other.links,
            routes: self.routes || other.routes,
        }
    }

    /// Whether interfaces and addresses are as they were.
    pub fn is_routes_alone(self) -> bool {
        self == Self { routes: true, ..Self::default() }
    }
}

/// Notifications of the kernel about addresses and links of this network namespace.
pub struct Watch {
    socket: TokioSocket,
    datagram: Vec<u8>,
}

/// Starts to watch: what changes from here on is told by [`Watch::changed`], so read the state after this call.
pub fn watch() -> anyhow::Result<Watch> {
    let open = || -> io::Result<TokioSocket> {
        let mut socket = TokioSocket::new(NETLINK_ROUTE)?;
        let groups = RTMGRP_LINK | RTMGRP_IPV4_IFADDR | RTMGRP_IPV6_IFADDR | RTMGRP_IPV4_ROUTE | RTMGRP_IPV6_ROUTE;
        socket.socket_mut().bind(&SocketAddr::new(0, groups))?;
        Ok(socket)
    };
    let socket = open().context("cannot watch this host's addresses and interfaces over netlink")?;
    Ok(Watch { socket, datagram: Vec::with_capacity(DATAGRAM) })
}

impl Watch {
    /// Waits for a change. What came at once is told at once. Cancel-safe.
    pub async fn changed(&mut self) -> io::Result<HostChange> {
        loop {
            self.datagram.clear();
            let first = self.socket.recv(&mut self.datagram).await;
            let mut change = changes(first, &self.datagram)?;
            loop {
                self.datagram.clear();
                match self.socket.socket_ref().recv(&mut self.datagram, 0) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    next => change = change.and(changes(next.map(drop), &self.datagram)?),
                }
            }
            if change != HostChange::default() {
                return Ok(change);
            }
        }
    }
}

/// What one read tells. For lack of room the kernel may have dropped notifications: then everything may have changed.
fn changes(read: io::Result<()>, datagram: &[u8]) -> io::Result<HostChange> {
    match read {
        Ok(()) => Ok(parse_changes(datagram)),
        Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => Ok(HostChange::ALL),
        Err(error) => Err(error),
    }
}

/// The type of each message is enough: whoever is told reads the state anew.
fn parse_changes(mut datagram: &[u8]) -> HostChange {
    let mut change = HostChange::default();
    while let Some((header, body)) = datagram.split_first_chunk::<16>() {
        let length = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        match u16::from_ne_bytes([header[4], header[5]]) {
            RTM_NEWLINK | RTM_DELLINK => change.links = true,
            RTM_NEWADDR | RTM_DELADDR => change.addresses = true,
            // A router may hold a million others, and they come and go.
            RTM_NEWROUTE | RTM_DELROUTE => change.routes |= body.get(DESTINATION_LENGTH) == Some(&0),
            _ => {}
        }
        datagram = datagram.get(length.max(16).next_multiple_of(4)..).unwrap_or_default();
    }
    change
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(kind: u16, body: usize) -> Vec<u8> {
        let mut bytes = vec![0; (16 + body).next_multiple_of(4)];
        bytes[..4].copy_from_slice(&((16 + body) as u32).to_ne_bytes());
        bytes[4..6].copy_from_slice(&kind.to_ne_bytes());
        bytes
    }

    #[test]
    fn each_message_of_a_datagram_counts() {
        assert_eq!(parse_changes(&[]), HostChange::default());
        assert_eq!(parse_changes(&message(RTM_NEWLINK, 3)), HostChange { links: true, ..HostChange::default() });
        let all = [message(RTM_NEWLINK, 3), message(RTM_DELADDR, 8), message(RTM_NEWROUTE, 12)].concat();
        assert_eq!(parse_changes(&all), HostChange::ALL);
        let mut route = message(RTM_DELROUTE, 12);
        assert!(parse_changes(&route).is_routes_alone(), "a default route");
        route[16 + DESTINATION_LENGTH] = 24;
        assert_eq!(parse_changes(&route), HostChange::default(), "a route to one network");
        assert_eq!(parse_changes(&message(2, 0)), HostChange::default(), "an error message is no change");
        assert_eq!(parse_changes(&[0; 20]), HostChange::default(), "a length of zero does not loop");
    }

    #[test]
    fn loopback_and_link_local_are_nobody_s_frontend() {
        for (address, local) in [
            ("127.0.0.1", true),
            ("127.1.2.3", true),
            ("::1", true),
            ("fe80::1", true),
            ("10.0.0.1", false),
            ("169.254.1.1", false),
            ("fd00::1", false),
            ("2001:db8::1", false),
        ] {
            assert_eq!(is_local(&address.parse().unwrap()), local, "{address}");
        }
    }
}
