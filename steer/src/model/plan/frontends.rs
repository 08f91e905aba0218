//! Which addresses lead to which port of which service.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use steer_common::addr::Port;
use steer_common::limits::MAX_FRONTENDS;
use steer_common::service::{FrontendEntry, FrontendKey, ServiceId};

use crate::model::desired::Desired;
use crate::model::frontend::Frontend;
use crate::model::{Problem, ServiceName};

/// The frontends that there should be.
pub(super) struct Frontends<'a> {
    host_addresses: &'a BTreeSet<IpAddr>,
    lost_addresses: &'a BTreeSet<IpAddr>,
    moved: &'a BTreeSet<(ServiceName, Frontend)>,
    closing: bool,
    /// What the port indices mean.
    ports: BTreeMap<(ServiceId, u8), Frontend>,
    wanted: BTreeMap<FrontendKey, Wanted<'a>>,
}

struct Wanted<'a> {
    entry: FrontendEntry,
    service: &'a str,
    /// Its address was written out: it comes before the same one of a wildcard.
    specific: bool,
}

impl<'a> Frontends<'a> {
    pub(super) fn new(desired: &'a Desired) -> Self {
        let Desired { host_addresses, lost_addresses, moved, closing, .. } = desired;
        let (ports, wanted) = (BTreeMap::new(), BTreeMap::new());
        Self { host_addresses, lost_addresses, moved, closing: *closing, ports, wanted }
    }

    /// Adds the addresses that a port of a service is reached at.
    pub(super) fn add(&mut self, name: &'a str, service: ServiceId, port_index: u8, frontend: &Frontend) {
        let addresses = match frontend.address {
            Some(address) => vec![address],
            None => {
                let loopback = [Ipv4Addr::LOCALHOST.into()];
                self.host_addresses.union(self.lost_addresses).copied().chain(loopback).collect()
            }
        };
        let specific = frontend.address.is_some();
        let is_closed = self.closing || self.moved.contains(&(name.to_owned(), *frontend));
        self.ports.insert((service, port_index), *frontend);
        for address in addresses {
            let key = FrontendKey::new(address.into(), Port::new(frontend.port), frontend.protocol.number());
            if !specific && self.wanted.get(&key).is_some_and(|wanted| wanted.specific) {
                continue;
            }
            let is_closed = is_closed || !specific && self.lost_addresses.contains(&address);
            let closed = if is_closed { FrontendEntry::CLOSED } else { 0 };
            let flags = closed | if address.is_loopback() { FrontendEntry::LOOPBACK } else { 0 };
            let entry = FrontendEntry { service, port_index, flags };
            self.wanted.insert(key, Wanted { entry, service: name, specific });
        }
    }

    /// Leaves out what there is no room for, and says of whom. Those that are in the map already stay.
    pub(super) fn limit(&mut self, applied: &BTreeMap<FrontendKey, FrontendEntry>) -> Vec<Problem> {
        let beyond = self.wanted.len().saturating_sub(MAX_FRONTENDS as usize);
        let new = self.wanted.keys().filter(|key| !applied.contains_key(key));
        let last: Vec<_> = new.rev().take(beyond).copied().collect();
        let mut refused: BTreeMap<&str, usize> = BTreeMap::new();
        for wanted in last.iter().filter_map(|key| self.wanted.remove(key)) {
            *refused.entry(wanted.service).or_default() += 1;
        }
        let problem = |(service, refused): (&str, usize)| Problem {
            container: service.to_owned(),
            label: Some("steer.port".to_owned()),
            message: format!("{MAX_FRONTENDS} frontends are steered already: {refused} of service {service} are not"),
        };
        refused.into_iter().map(problem).collect()
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (FrontendKey, FrontendEntry)> {
        self.wanted.iter().map(|(key, wanted)| (*key, wanted.entry))
    }

    /// Whether a frontend that is in the map must be taken away, before anything is added. One that goes to another service or
    /// port index is just written anew, later and without a gap, unless its old index is to mean another port meanwhile.
    pub(super) fn must_go(&self, key: &FrontendKey, applied: &FrontendEntry) -> bool {
        let Some(Wanted { entry, .. }) = self.wanted.get(key) else { return true };
        let index = |entry: &FrontendEntry| (entry.service, entry.port_index);
        index(entry) != index(applied) && self.ports.get(&index(applied)).is_some_and(|frontend| !covers(frontend, key))
    }
}

/// Whether this is a frontend of the port.
fn covers(frontend: &Frontend, key: &FrontendKey) -> bool {
    let Frontend { address, port, protocol } = *frontend;
    address.is_none_or(|address| key.addr == address.into())
        && (Port::new(port), protocol.number()) == (key.port, key.proto)
}
