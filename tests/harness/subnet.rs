//! A small network that this machine does not use yet, for an uplink on a machine that is not ours.

use std::net::Ipv4Addr;

/// Two hosts are enough.
pub(crate) const LENGTH: u32 = 30;

/// The first address of a network of this length that no route of `ip -4 route show table all` but the default one touches.
pub(crate) fn free(routes: &str) -> Option<Ipv4Addr> {
    let used: Vec<(u32, u32)> = routes.lines().filter_map(destination).collect();
    let candidates = (0..=255).map(|third| Ipv4Addr::new(10, 203, third, 1));
    let is_free = |address: &Ipv4Addr| {
        used.iter().all(|&(network, length)| {
            let mask = u32::MAX << (32 - length.min(LENGTH));
            address.to_bits() & mask != network & mask
        })
    };
    candidates.into_iter().find(is_free)
}

/// The other host of the network.
pub(crate) fn second(first: Ipv4Addr) -> Ipv4Addr {
    Ipv4Addr::from_bits(first.to_bits() + 1)
}

/// `[type] address[/length] …`; the default route is no use of a network.
fn destination(route: &str) -> Option<(u32, u32)> {
    let word = route.split_whitespace().find(|word| word.contains('.') || *word == "default")?;
    let (address, length) = word.split_once('/').unwrap_or((word, "32"));
    let length = length.parse().ok().filter(|length| (1..=32).contains(length))?;
    Some((address.parse::<Ipv4Addr>().ok()?.to_bits(), length))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_that_a_route_touches_is_not_free() {
        for (routes, expected) in [
            ("default via 192.0.2.1 dev eth0", 0),
            ("default via 10.203.0.9 dev eth0\n10.203.0.8/29 dev eth0 scope link", 0),
            ("10.203.0.0/24 dev x\nlocal 10.203.1.1 dev y table local", 2),
            ("unreachable 10.203.0.0/17", 128),
        ] {
            assert_eq!(free(routes), Some(Ipv4Addr::new(10, 203, expected, 1)), "{routes}");
        }
        assert_eq!(free("10.0.0.0/8 dev eth0"), None);
        assert_eq!(second(Ipv4Addr::new(10, 203, 0, 1)), Ipv4Addr::new(10, 203, 0, 2));
    }
}
