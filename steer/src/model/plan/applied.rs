//! What the maps hold, and how an operation changes that.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use steer_common::backend::{BackendEntry, BackendId};
use steer_common::endpoint::{EndpointEntry, EndpointKey};
use steer_common::service::{Balance, FrontendEntry, FrontendKey, ServiceEntry, ServiceId};
use steer_common::slot::SlotTable;
use steer_common::state::BackendState;

use super::Op;
use crate::model::desired::{BackendKey, PortIndex};
use crate::model::frontend::Frontend;
use crate::model::slots::slot_table;
use crate::model::{Gate, ServiceName, UnixMicros};

/// What the maps hold, as the agent wrote it or found it.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Applied {
    pub services: BTreeMap<ServiceName, AppliedService>,
    pub backends: BTreeMap<BackendKey, AppliedBackend>,
    pub frontends: BTreeMap<FrontendKey, FrontendEntry>,
    pub endpoints: BTreeMap<EndpointKey, EndpointEntry>,
    pub allow: BTreeSet<(ServiceId, IpNet)>,
    /// Ids are given out in turn, so that one that was freed rests for as long as possible.
    pub last_backend: u16,
    pub last_generation: u32,
}

/// One service in the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppliedService {
    pub id: ServiceId,
    pub entry: ServiceEntry,
    pub ports: Vec<Option<Frontend>>,
    /// What the slot table was made from; `None` = not known (adopted): it is written again.
    pub slots: Option<SlotRecipe>,
}

/// What a slot table is made from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SlotRecipe {
    pub balance: Balance,
    /// Backends that take new flows: id, name, weight.
    pub ready: Vec<(BackendId, String, u16)>,
    /// The others.
    pub others: Vec<BackendId>,
}

impl SlotRecipe {
    /// The table itself. Those that get nothing now stand behind, so that they are found once they are ready, and a draining one
    /// when nobody is.
    pub fn table(&self) -> Box<SlotTable> {
        let Self { balance, ready, others } = self;
        let mut table = slot_table(*balance, ready);
        for other in others {
            if let Some(place) = table.members.get_mut(table.members_len as usize) {
                *place = *other;
                table.members_len += 1;
            }
        }
        table
    }
}

/// One backend in the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppliedBackend {
    pub id: BackendId,
    pub entry: BackendEntry,
    pub state: BackendState,
    pub gate: Gate,
    pub info: Info,
}

impl AppliedBackend {
    /// Where it takes new flows of a service's port, as soon as somebody listens there; `None` = it takes none.
    pub fn takes(&self, service: ServiceId, port_index: u8) -> Option<u16> {
        let is_it =
            self.state.takes_new(self.gate.if_listening) && self.entry.service == service && self.entry.weight > 0;
        is_it.then(|| self.entry.target(port_index)).flatten().map(|target| target.get())
    }
}

/// What people are told of a backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Info {
    pub name: String,
    pub cause: String,
    pub since: UnixMicros,
    pub label_weight: u16,
    pub operator_weight: Option<u16>,
    pub maintenance: bool,
    pub put_in: bool,
    pub drain: Duration,
}

impl Applied {
    /// The addresses of frontends whose labels say none: those that the host had.
    pub fn wildcard_addresses(&self) -> impl Iterator<Item = IpAddr> {
        let is_wildcard = |entry: &FrontendEntry| {
            let service = self.services.values().find(|service| service.id == entry.service);
            let frontend = service.and_then(|service| *service.ports.get(usize::from(entry.port_index))?);
            frontend.is_some_and(|frontend| frontend.address.is_none())
        };
        self.frontends.iter().filter(move |(_, entry)| is_wildcard(entry)).map(|(key, _)| key.addr.to_ip())
    }

    /// The port indices in use: what [`super::desired::desired`] keeps to.
    pub fn port_index(&self) -> PortIndex {
        self.services.iter().map(|(name, service)| (name.clone(), service.ports.clone())).collect()
    }

    /// The service that a backend belongs to.
    pub fn service_of(&self, key: &BackendKey) -> Option<&ServiceName> {
        let service = self.backends.get(key)?.entry.service;
        self.services.iter().find(|(_, known)| known.id == service).map(|(name, _)| name)
    }

    /// What the kernel has with the state of a backend.
    pub fn gate(&self, key: &BackendKey) -> Option<Gate> {
        self.backends.get(key).map(|backend| backend.gate)
    }

    /// Notes that an operation was carried out.
    pub fn note(&mut self, op: &Op) {
        match op.clone() {
            Op::AddBackend { key, id, entry, info } => {
                self.last_backend = id.0;
                self.last_generation = self.last_generation.max(entry.generation);
                self.backends.insert(
                    key,
                    AppliedBackend { id, entry, state: BackendState::Starting, gate: Gate::default(), info },
                );
            }
            Op::PutBackend { key, entry, .. } => {
                if let Some(backend) = self.backends.get_mut(&key) {
                    backend.entry = entry;
                }
            }
            Op::PutInfo { key, info, .. } => {
                if let Some(backend) = self.backends.get_mut(&key) {
                    backend.info = info;
                }
            }
            Op::SetState { key, state, gate, .. } => {
                if let Some(backend) = self.backends.get_mut(&key) {
                    (backend.state, backend.gate) = (state, gate);
                }
            }
            Op::RemoveBackend { key, .. } => {
                self.backends.remove(&key);
            }
            Op::PutEndpoint { key, entry } => {
                self.endpoints.insert(key, entry);
            }
            Op::RemoveEndpoint { key } => {
                self.endpoints.remove(&key);
            }
            Op::PutService { name, id, entry, ports } => {
                let slots = self.services.get(&name).and_then(|service| service.slots.clone());
                self.services.insert(name, AppliedService { id, entry, ports, slots });
            }
            Op::SwapSlots { name, slots, .. } => {
                if let Some(service) = self.services.get_mut(&name) {
                    service.slots = Some(slots);
                }
            }
            Op::RemoveService { name, .. } => {
                self.services.remove(&name);
            }
            Op::PutAllow { service, net } => {
                self.allow.insert((service, net));
            }
            Op::RemoveAllow { service, net } => {
                self.allow.remove(&(service, net));
            }
            Op::PutFrontend { key, entry } => {
                self.frontends.insert(key, entry);
            }
            Op::RemoveFrontend { key } => {
                self.frontends.remove(&key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use steer_common::addr::Port;
    use steer_common::limits::MAX_PORTS;

    use super::*;

    #[rstest]
    #[case::ready(BackendState::Ready, false, 1, Some(5000))]
    #[case::starting_and_its_listener_decides(BackendState::Starting, true, 1, Some(5000))]
    #[case::not_listening_any_more(BackendState::Unready, true, 1, Some(5000))]
    #[case::unhealthy(BackendState::Unready, false, 1, None)]
    #[case::on_its_way_out(BackendState::Draining, true, 1, None)]
    #[case::without_weight(BackendState::Ready, false, 0, None)]
    fn whoever_may_take_new_flows_has_a_port_to_be_asked(
        #[case] state: BackendState,
        #[case] if_listening: bool,
        #[case] weight: u16,
        #[case] port: Option<u16>,
    ) {
        let mut targets = [Port::NONE; MAX_PORTS];
        targets[1] = Port::new(5000);
        let entry = BackendEntry { service: ServiceId(3), weight, targets, generation: 1, ..BackendEntry::default() };
        let info = Info {
            name: String::new(),
            cause: String::new(),
            since: UnixMicros(0),
            label_weight: 1,
            operator_weight: None,
            maintenance: false,
            put_in: false,
            drain: Duration::ZERO,
        };
        let gate = Gate { if_listening, edges: 0 };
        let backend = AppliedBackend { id: BackendId(1), entry, state, gate, info };
        assert_eq!(backend.takes(ServiceId(3), 1), port);
        assert_eq!(backend.takes(ServiceId(3), 0), None, "it does not serve that port");
        assert_eq!(backend.takes(ServiceId(4), 1), None, "it is another service's");
    }
}
