//! The host's own addresses, and those that it had a moment ago.
//!
//! Problem: an address goes and comes back: a cable is plugged in anew, a network is set up anew. If its frontends went with it, the
//! host's own stack would answer the first packets of open connections afterwards, with a reset.
//! Approach: for a while, a frontend of an address that is gone follows what is known, and takes nothing new.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

/// How long an address may be away.
const GRACE: Duration = Duration::from_secs(300);

/// Addresses that others can reach the host by.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct HostAddresses {
    here: BTreeSet<IpAddr>,
    /// Since when, by a clock that only goes forward.
    lost: BTreeMap<IpAddr, Duration>,
}

impl HostAddresses {
    /// As long as nobody has looked: those that an earlier agent knew may be gone.
    pub fn of_earlier(addresses: impl IntoIterator<Item = IpAddr>, now: Duration) -> Self {
        let lost = addresses.into_iter().filter(|address| !address.is_loopback()).map(|address| (address, now));
        Self { here: BTreeSet::new(), lost: lost.collect() }
    }

    /// The host has these now.
    pub fn look(&mut self, here: BTreeSet<IpAddr>, now: Duration) {
        self.lost.extend(self.here.difference(&here).map(|address| (*address, now)));
        self.lost.retain(|address, since| !here.contains(address) && now < *since + GRACE);
        self.here = here;
    }

    /// Those that it has.
    pub const fn here(&self) -> &BTreeSet<IpAddr> {
        &self.here
    }

    /// Those that it had not long ago, and has no more.
    pub fn lost(&self, now: Duration) -> BTreeSet<IpAddr> {
        self.lost.iter().filter(|(_, since)| now < **since + GRACE).map(|(address, _)| *address).collect()
    }

    /// When the next of those is given up.
    pub fn next_end(&self, now: Duration) -> Option<Duration> {
        self.lost.values().map(|since| *since + GRACE).filter(|end| *end > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LAN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 1));
    const VPN: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 8, 0, 1));

    const fn secs(secs: u64) -> Duration {
        Duration::from_secs(secs)
    }

    #[test]
    fn what_is_lost_is_remembered_for_a_while() {
        let mut addresses = HostAddresses::default();
        addresses.look([LAN, VPN].into(), secs(0));
        assert_eq!((addresses.lost(secs(0)), addresses.next_end(secs(0))), ([].into(), None));
        addresses.look([LAN].into(), secs(100));
        assert_eq!(addresses.here(), &[LAN].into());
        assert_eq!(addresses.next_end(secs(100)), Some(secs(400)));
        assert_eq!(addresses.lost(secs(399)), [VPN].into());
        assert_eq!((addresses.lost(secs(400)), addresses.next_end(secs(400))), ([].into(), None));
    }

    #[test]
    fn what_is_back_is_not_lost_and_may_be_lost_again() {
        let mut addresses = HostAddresses::default();
        addresses.look([LAN].into(), secs(0));
        addresses.look([].into(), secs(10));
        addresses.look([].into(), secs(20));
        assert_eq!(addresses.next_end(secs(20)), Some(secs(310)), "it counts from when it went");
        addresses.look([LAN].into(), secs(30));
        assert_eq!(addresses.lost(secs(30)), [].into());
        addresses.look([].into(), secs(40));
        assert_eq!(addresses.lost(secs(339)), [LAN].into());
    }

    #[test]
    fn what_was_given_up_is_forgotten() {
        let mut addresses = HostAddresses::default();
        addresses.look([LAN, VPN].into(), secs(0));
        addresses.look([LAN].into(), secs(10));
        addresses.look([LAN].into(), secs(310));
        assert_eq!(addresses.lost, [].into());
    }

    #[test]
    fn what_an_earlier_agent_had_may_be_away_too() {
        let mut addresses = HostAddresses::of_earlier([LAN, VPN, [127, 0, 0, 1].into()], secs(5));
        addresses.look([LAN].into(), secs(6));
        assert_eq!(addresses.lost(secs(6)), [VPN].into());
    }
}
