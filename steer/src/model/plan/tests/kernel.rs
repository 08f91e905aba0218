//! The maps in memory: carries out operations as `dataplane/apply.rs` does, and looks after each one whether a packet that came
//! at that very moment would be treated right.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::IpNet;
use steer_common::addr::{Port, TCP};
use steer_common::backend::{BackendEntry, BackendId};
use steer_common::endpoint::{EndpointEntry, EndpointKey};
use steer_common::service::{FrontendEntry, FrontendKey, ServiceEntry, ServiceId};
use steer_common::slot::SlotTable;
use steer_common::state::BackendState;

use crate::model::desired::BackendKey;
use crate::model::frontend::Frontend;
use crate::model::plan::{Applied, AppliedBackend, AppliedService, Info, Op};
use crate::model::{Gate, ServiceName};

#[derive(Default)]
pub(super) struct Kernel {
    services: BTreeMap<ServiceId, (ServiceName, ServiceEntry, Vec<Option<Frontend>>)>,
    slots: BTreeMap<ServiceId, Box<SlotTable>>,
    backends: BTreeMap<BackendId, (BackendKey, BackendEntry, Info)>,
    pub(super) states: BTreeMap<BackendId, BackendState>,
    pub(super) gates: BTreeMap<BackendId, Gate>,
    endpoints: BTreeMap<EndpointKey, EndpointEntry>,
    frontends: BTreeMap<FrontendKey, FrontendEntry>,
    allow: BTreeSet<(ServiceId, IpNet)>,
    /// A plan was left half done: a slot may name an id that was freed since, and the next tenant of it may be of another
    /// service. `steer_common::pick` looks at the service as well.
    pub(super) torn: bool,
    /// The greatest generation ever given out, per id.
    generations: BTreeMap<BackendId, u32>,
}

impl Kernel {
    /// Carries out one operation; panics on one that makes no sense at this moment.
    pub(super) fn apply(&mut self, op: &Op) {
        match op.clone() {
            Op::AddBackend { key, id, entry, info } => {
                assert!(id.0 > 0, "{op:?}");
                let before = self.generations.insert(id, entry.generation).unwrap_or(0);
                assert!(entry.generation > before, "generation {before} again: {op:?}");
                let before = self.backends.insert(id, (key, entry, info));
                assert!(before.is_none(), "{op:?}: {before:?} is there");
                self.states.insert(id, BackendState::Starting);
                self.gates.insert(id, Gate::default());
            }
            Op::PutBackend { key, id, entry } => {
                let backend = self.backend(id, &key);
                assert_eq!(backend.1.generation, entry.generation, "{op:?}");
                assert_eq!(backend.1.service, entry.service, "{op:?}");
                backend.1 = entry;
            }
            Op::PutInfo { key, id, info } => self.backend(id, &key).2 = info,
            Op::SetState { key, id, state, gate } => {
                self.backend(id, &key);
                self.states.insert(id, state);
                self.gates.insert(id, gate);
            }
            Op::RemoveBackend { key, id } => {
                self.backend(id, &key);
                self.backends.remove(&id);
                self.states.insert(id, BackendState::Gone);
            }
            Op::PutEndpoint { key, entry } => {
                self.endpoints.insert(key, entry);
            }
            Op::RemoveEndpoint { key } => assert!(self.endpoints.remove(&key).is_some(), "{op:?}"),
            Op::PutService { name, id, entry, ports } => {
                assert!(id.0 > 0 && ports.len() <= steer_common::limits::MAX_PORTS, "{op:?}");
                let before = self.services.insert(id, (name.clone(), entry, ports));
                assert!(before.is_none_or(|before| before.0 == name), "{op:?}");
            }
            Op::SwapSlots { name, id, slots } => {
                assert_eq!(self.services[&id].0, name, "{op:?}");
                self.slots.insert(id, slots.table());
            }
            Op::RemoveService { id, .. } => {
                self.services.remove(&id);
                self.slots.insert(id, Box::new(SlotTable::EMPTY));
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
            Op::RemoveFrontend { key } => assert!(self.frontends.remove(&key).is_some(), "{op:?}"),
        }
    }

    fn backend(&mut self, id: BackendId, key: &BackendKey) -> &mut (BackendKey, BackendEntry, Info) {
        let backend = self.backends.get_mut(&id).unwrap_or_else(|| panic!("no backend {} ({key:?})", id.0));
        assert_eq!(&backend.0, key);
        backend
    }

    fn state(&self, id: BackendId) -> BackendState {
        self.states.get(&id).copied().unwrap_or_default()
    }

    /// What must hold whenever a packet may come.
    pub(super) fn check(&self) {
        for (service, table) in &self.slots {
            for id in ids(table) {
                self.check_named(*service, id);
            }
        }
        for (id, state) in &self.states {
            assert!(
                *state == BackendState::Gone || self.backends.contains_key(id),
                "backend {} is {state:?} and not there",
                id.0
            );
        }
        for (key, FrontendEntry { service, port_index, .. }) in &self.frontends {
            let Some((name, _, ports)) = self.services.get(service) else { panic!("{key:?} leads nowhere") };
            // Nobody may serve it for a moment, but nobody is to serve another port by it.
            let frontend = ports.get(*port_index as usize).copied().flatten();
            assert!(
                frontend.is_none_or(|frontend| Port::new(frontend.port) == key.port),
                "{key:?} is another port of {name}"
            );
        }
    }

    /// A slot of a service names this id: it takes nothing, or is a backend of the service whose replies are known.
    fn check_named(&self, service: ServiceId, id: BackendId) {
        let of_another = self.backends.get(&id).is_some_and(|(_, entry, _)| entry.service != service);
        if self.state(id) == BackendState::Gone || (self.torn && of_another) {
            return;
        }
        let Some((key, entry, _)) = self.backends.get(&id) else { panic!("a slot names {}, which is not there", id.0) };
        assert_eq!(entry.service, service, "a slot names {key:?}, of another service");
        for (index, target) in entry.targets.into_iter().enumerate().filter(|(_, target)| *target != Port::NONE) {
            let endpoint = self.endpoints.get(&EndpointKey::new(entry.addr, entry.ifindex, target, TCP));
            let Some(endpoint) = endpoint else { panic!("no endpoint for port {target} of {key:?}") };
            let owner = (endpoint.backend, endpoint.generation, endpoint.service);
            assert_eq!(owner, (id, entry.generation, service), "the endpoint of port {target} of {key:?}");
            assert!(endpoint.serves(index as u8), "the endpoint of port {target} of {key:?} lacks port {index}");
        }
    }

    /// Backends that a new flow to this address may go to now.
    pub(super) fn ready(&self, address: &str, port: u16) -> BTreeSet<String> {
        let key = FrontendKey::new(crate::model::fixtures::ip(address).into(), Port::new(port), TCP);
        let Some(frontend) = self.frontends.get(&key) else { return BTreeSet::new() };
        let table = self.slots.get(&frontend.service);
        let ids = table.into_iter().flat_map(|table| ids(table));
        let takes = |id: &BackendId| self.state(*id) == BackendState::Ready;
        let backends = ids.filter(takes).filter_map(|id| self.backends.get(&id));
        let serving = backends.filter(|(_, entry, _)| entry.target(frontend.port_index).is_some());
        serving.map(|(key, ..)| key.container.0.clone()).collect()
    }

    /// What a new agent reads from the maps: see `dataplane/adopt.rs`.
    pub(super) fn adopt(&self) -> Applied {
        let mut applied = Applied::default();
        for (id, (name, entry, ports)) in &self.services {
            let mut ports = ports.clone();
            while ports.last().is_some_and(Option::is_none) {
                ports.pop();
            }
            let before =
                applied.services.insert(name.clone(), AppliedService { id: *id, entry: *entry, ports, slots: None });
            assert!(before.is_none(), "two services are called {name}");
        }
        for (id, (key, entry, info)) in &self.backends {
            let backend = AppliedBackend {
                id: *id,
                entry: *entry,
                state: self.state(*id),
                gate: self.gates.get(id).copied().unwrap_or_default(),
                info: info.clone(),
            };
            let before = applied.backends.insert(key.clone(), backend);
            assert!(before.is_none(), "{key:?} has two ids");
            applied.last_backend = applied.last_backend.max(id.0);
            applied.last_generation = applied.last_generation.max(entry.generation);
        }
        applied.frontends.clone_from(&self.frontends);
        applied.endpoints.clone_from(&self.endpoints);
        applied.allow.clone_from(&self.allow);
        applied
    }

    /// Whether the agent's idea of the maps is what they hold.
    pub(super) fn assert_holds(&self, applied: &Applied) {
        let trimmed = |applied: &Applied| {
            let mut applied = applied.clone();
            (applied.last_backend, applied.last_generation) = (0, 0);
            for service in applied.services.values_mut() {
                service.slots = None;
                while service.ports.last().is_some_and(Option::is_none) {
                    service.ports.pop();
                }
            }
            applied
        };
        assert_eq!(trimmed(&self.adopt()), trimmed(applied));
        for service in applied.services.values() {
            if let Some(slots) = &service.slots {
                let (table, expected) = (&self.slots[&service.id], slots.table());
                assert_eq!(ids(table).collect::<Vec<_>>(), ids(&expected).collect::<Vec<_>>());
            }
        }
    }
}

/// Every id that a table names.
fn ids(table: &SlotTable) -> impl Iterator<Item = BackendId> {
    let slots = &table.slots[..table.len as usize];
    slots.iter().chain(&table.members[..table.members_len as usize]).copied()
}
