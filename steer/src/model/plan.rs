//! Which map writes lead from what the maps hold to what they should hold, in an order that is right at every step: a backend is
//! known before a slot names it, a slot is gone before its backend is, and whoever must get no new flows is demoted first.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};
use std::time::Duration;

use ipnet::IpNet;
use steer_common::addr::{Addr, Port};
use steer_common::backend::{BackendEntry, BackendId, BackendState, EndpointEntry, EndpointKey};
use steer_common::limits::{MAX_BACKENDS, MAX_FRONTENDS, MAX_SERVICES};
use steer_common::service::{Balance, FrontendEntry, FrontendKey, ServiceEntry, ServiceId};

use super::desired::{BackendKey, Desired, DesiredBackend, DesiredService, Listen, PortIndex};
use super::{Problem, ServiceName, UnixMicros};

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
    pub ports: Vec<Option<Listen>>,
    /// What the slot table was made from; `None` = not known (adopted): it is written again.
    pub slots: Option<Slots>,
}

/// What a slot table is made from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slots {
    pub balance: Balance,
    /// Backends that take new flows: id, name, weight.
    pub ready: Vec<(BackendId, String, u16)>,
    /// The others with weight, for when none is ready.
    pub others: Vec<BackendId>,
}

/// One backend in the maps.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct AppliedBackend {
    pub id: BackendId,
    pub entry: BackendEntry,
    pub state: BackendState,
    pub info: Info,
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
    pub drain: Duration,
}

/// One map write.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Op {
    /// A backend that was not there: its counts start at zero, its state at `Starting`.
    AddBackend {
        key: BackendKey,
        id: BackendId,
        entry: BackendEntry,
        info: Info,
    },
    /// A backend that changed its place or weight.
    PutBackend {
        key: BackendKey,
        id: BackendId,
        entry: BackendEntry,
    },
    PutInfo {
        key: BackendKey,
        id: BackendId,
        info: Info,
    },
    SetState {
        key: BackendKey,
        id: BackendId,
        state: BackendState,
    },
    RemoveBackend {
        key: BackendKey,
        id: BackendId,
    },
    PutEndpoint {
        key: EndpointKey,
        entry: EndpointEntry,
    },
    RemoveEndpoint {
        key: EndpointKey,
    },
    PutService {
        name: ServiceName,
        id: ServiceId,
        entry: ServiceEntry,
        ports: Vec<Option<Listen>>,
    },
    SwapSlots {
        name: ServiceName,
        id: ServiceId,
        slots: Slots,
    },
    RemoveService {
        name: ServiceName,
        id: ServiceId,
    },
    PutAllow {
        service: ServiceId,
        net: IpNet,
    },
    RemoveAllow {
        service: ServiceId,
        net: IpNet,
    },
    PutFrontend {
        key: FrontendKey,
        entry: FrontendEntry,
    },
    RemoveFrontend {
        key: FrontendKey,
    },
}

impl Applied {
    /// The port indices in use: what [`super::desired::desired`] keeps to.
    pub fn port_index(&self) -> PortIndex {
        self.services.iter().map(|(name, service)| (name.clone(), service.ports.clone())).collect()
    }

    /// Notes that an operation was carried out.
    pub fn note(&mut self, op: &Op) {
        match op.clone() {
            Op::AddBackend { key, id, entry, info } => {
                self.last_backend = id.0;
                self.last_generation = self.last_generation.max(entry.generation);
                self.backends.insert(key, AppliedBackend { id, entry, state: BackendState::Starting, info });
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
            Op::SetState { key, state, .. } => {
                if let Some(backend) = self.backends.get_mut(&key) {
                    backend.state = state;
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

/// The steps of a plan, each complete before the next.
#[derive(Default)]
struct Steps {
    demote: Vec<Op>,
    add: Vec<Op>,
    promote: Vec<Op>,
    services: Vec<Op>,
    slots: Vec<Op>,
    frontends: Vec<Op>,
    remove: Vec<Op>,
    info: Vec<Op>,
}

/// The operations that lead from `applied` to `desired`; none when they agree. `now_secs` (seconds since boot) starts the
/// generations of a new agent beyond all those an earlier one gave out.
pub fn plan(desired: &Desired, applied: &Applied, now_secs: u32) -> (Vec<Op>, Vec<Problem>) {
    let mut planner = Planner {
        applied,
        steps: Steps::default(),
        problems: Vec::new(),
        used_backends: applied.backends.values().map(|backend| backend.id.0).collect(),
        used_services: applied.services.values().map(|service| service.id.0).collect(),
        last_backend: applied.last_backend,
        last_generation: applied.last_generation.max(now_secs),
        endpoints: BTreeMap::new(),
        frontends: BTreeMap::new(),
        allow: BTreeSet::new(),
        kept: BTreeSet::new(),
    };
    for (name, service) in &desired.services {
        planner.service(name, service, desired);
    }
    planner.removals(desired);
    let Planner { steps, problems, .. } = planner;
    let Steps { demote, add, promote, services, slots, frontends, remove, info } = steps;
    let ops = [demote, add, promote, services, slots, frontends, remove, info].into_iter().flatten().collect();
    (ops, problems)
}

struct Planner<'a> {
    applied: &'a Applied,
    steps: Steps,
    problems: Vec<Problem>,
    used_backends: BTreeSet<u16>,
    used_services: BTreeSet<u16>,
    last_backend: u16,
    last_generation: u32,
    endpoints: BTreeMap<EndpointKey, EndpointEntry>,
    frontends: BTreeMap<FrontendKey, FrontendEntry>,
    allow: BTreeSet<(ServiceId, IpNet)>,
    kept: BTreeSet<BackendKey>,
}

impl Planner<'_> {
    fn service(&mut self, name: &str, service: &DesiredService, desired: &Desired) {
        let current = self.applied.services.get(name);
        let Some(id) = current.map(|current| current.id).or_else(|| self.free_service()) else {
            self.problems.push(Problem {
                container: name.to_owned(),
                label: None,
                message: format!("{} services are steered already: not steered", MAX_SERVICES - 1),
            });
            return;
        };
        let mut ready = Vec::new();
        let mut others = Vec::new();
        for (key, backend) in &service.backends {
            let Some(id) = self.backend(key, backend, id) else { continue };
            if backend.weight() == 0 {
                continue;
            }
            if backend.state == BackendState::Ready {
                ready.push((id, key.container.0.clone(), backend.weight()));
            } else {
                others.push(id);
            }
        }
        let entry = ServiceEntry {
            hold_ns: u64::try_from(service.hold.as_nanos()).unwrap_or(u64::MAX),
            balance: service.balance as u8,
            flags: if service.allow.is_empty() { 0 } else { ServiceEntry::ALLOW_LIST },
            pad: [0; 6],
        };
        for net in &service.allow {
            self.allow.insert((id, *net));
        }
        if current.is_none_or(|current| current.entry != entry || current.ports != service.ports) {
            let ports = service.ports.clone();
            self.steps.services.push(Op::PutService { name: name.to_owned(), id, entry, ports });
        }
        let slots = Slots { balance: service.balance, ready, others };
        if current.is_none_or(|current| current.slots.as_ref() != Some(&slots)) {
            self.steps.slots.push(Op::SwapSlots { name: name.to_owned(), id, slots });
        }
        for (index, listen) in service.ports.iter().enumerate() {
            if let Some(listen) = listen {
                self.frontend(name, id, index as u8, listen, desired);
            }
        }
    }

    /// Plans for one backend; its id, or `None` when there is no room for it.
    fn backend(&mut self, key: &BackendKey, backend: &DesiredBackend, service: ServiceId) -> Option<BackendId> {
        let current = self.applied.backends.get(key);
        let (id, generation) = match current {
            Some(current) => (current.id, current.entry.generation),
            None => {
                let Some(id) = self.free_backend() else {
                    self.problems.push(Problem {
                        container: backend.name.clone(),
                        label: None,
                        message: format!("{} backends are steered to already: not steered", MAX_BACKENDS - 1),
                    });
                    return None;
                };
                self.last_generation += 1;
                (id, self.last_generation)
            }
        };
        self.kept.insert(key.clone());
        let mut entry = BackendEntry {
            addr: Addr::from(backend.address),
            generation,
            ifindex: backend.reach.ifindex,
            netns_cookie: backend.reach.netns_cookie,
            netns_id: backend.reach.netns_id,
            service,
            mac: backend.reach.mac,
            weight: backend.weight(),
            flags: if backend.reach.xdp { BackendEntry::XDP } else { 0 },
            ..BackendEntry::default()
        };
        for (place, target) in entry.targets.iter_mut().zip(backend.targets) {
            *place = target.map_or(Port::NONE, Port::new);
        }
        let info = Info {
            name: backend.name.clone(),
            cause: backend.cause.clone(),
            since: backend.since,
            label_weight: backend.label_weight,
            operator_weight: backend.operator_weight,
            maintenance: backend.maintenance,
            drain: backend.drain,
        };
        self.endpoints_of(id, &entry);
        let before = current.map_or(BackendState::Starting, |current| current.state);
        if before != backend.state {
            let op = Op::SetState { key: key.clone(), id, state: backend.state };
            // What is not there yet can only be set after it was added.
            let later = backend.state == BackendState::Ready || current.is_none();
            if later { &mut self.steps.promote } else { &mut self.steps.demote }.push(op);
        }
        match current {
            None => {
                self.steps.add.push(Op::AddBackend { key: key.clone(), id, entry, info });
            }
            Some(current) => {
                if current.entry != entry {
                    self.steps.add.push(Op::PutBackend { key: key.clone(), id, entry });
                }
                if current.info != info {
                    self.steps.info.push(Op::PutInfo { key: key.clone(), id, info });
                }
            }
        }
        Some(id)
    }

    /// The endpoints whose packets are replies of this backend.
    fn endpoints_of(&mut self, id: BackendId, entry: &BackendEntry) {
        for (index, &target) in entry.targets.iter().enumerate().filter(|(_, target)| **target != Port::NONE) {
            let key = EndpointKey::new(entry.addr, entry.ifindex, target, steer_common::addr::TCP);
            let endpoint = self.endpoints.entry(key).or_insert(EndpointEntry {
                generation: entry.generation,
                backend: id,
                service: entry.service,
                ports: 0,
                pad: [0; 3],
            });
            endpoint.ports |= 1 << index;
        }
        let changed: Vec<_> = self
            .endpoints
            .iter()
            .filter(|(key, endpoint)| endpoint.backend == id && self.applied.endpoints.get(*key) != Some(*endpoint))
            .map(|(key, entry)| Op::PutEndpoint { key: *key, entry: *entry })
            .collect();
        self.steps.add.extend(changed);
    }

    fn frontend(&mut self, name: &str, service: ServiceId, port_index: u8, listen: &Listen, desired: &Desired) {
        let closed = if desired.closing { FrontendEntry::CLOSED } else { 0 };
        let mut addresses: Vec<(IpAddr, u8)> = match listen.address {
            Some(address) => vec![(address, if address.is_loopback() { FrontendEntry::LOOPBACK } else { 0 })],
            None => desired.host_addresses.iter().map(|&address| (address, 0)).collect(),
        };
        if listen.address.is_none() {
            addresses.push((IpAddr::V4(Ipv4Addr::LOCALHOST), FrontendEntry::LOOPBACK));
        }
        for (address, loopback) in addresses {
            if self.frontends.len() == MAX_FRONTENDS as usize {
                self.problems.push(Problem {
                    container: name.to_owned(),
                    label: Some("steer.port".to_owned()),
                    message: format!("{MAX_FRONTENDS} frontends are steered already: {address} is not"),
                });
                return;
            }
            let key = FrontendKey::new(address.into(), Port::new(listen.port), listen.protocol.number());
            let entry = FrontendEntry { service, port_index, flags: closed | loopback };
            self.frontends.insert(key, entry);
            if self.applied.frontends.get(&key) != Some(&entry) {
                self.steps.frontends.push(Op::PutFrontend { key, entry });
            }
        }
    }

    /// What is in the maps and no longer wanted.
    fn removals(&mut self, desired: &Desired) {
        let Self { applied, steps, endpoints, frontends, allow, kept, .. } = self;
        for key in applied.frontends.keys().filter(|key| !frontends.contains_key(key)) {
            steps.remove.push(Op::RemoveFrontend { key: *key });
        }
        for (name, service) in applied.services.iter().filter(|(name, _)| !desired.services.contains_key(*name)) {
            steps.remove.push(Op::RemoveService { name: name.clone(), id: service.id });
        }
        for key in applied.endpoints.keys().filter(|key| !endpoints.contains_key(key)) {
            steps.remove.push(Op::RemoveEndpoint { key: *key });
        }
        for (key, backend) in applied.backends.iter().filter(|(key, _)| !kept.contains(*key)) {
            // Out of the slots first, and out of the running before that.
            steps.demote.push(Op::SetState { key: key.clone(), id: backend.id, state: BackendState::Gone });
            steps.remove.push(Op::RemoveBackend { key: key.clone(), id: backend.id });
        }
        for &(service, net) in applied.allow.difference(allow) {
            steps.remove.push(Op::RemoveAllow { service, net });
        }
        // Who is allowed must be known before the list counts.
        for &(service, net) in allow.difference(&applied.allow) {
            steps.add.push(Op::PutAllow { service, net });
        }
    }

    fn free_service(&mut self) -> Option<ServiceId> {
        let id = (1..MAX_SERVICES as u16).find(|id| !self.used_services.contains(id))?;
        self.used_services.insert(id);
        Some(ServiceId(id))
    }

    fn free_backend(&mut self) -> Option<BackendId> {
        let after = self.last_backend;
        let ids = (after.saturating_add(1)..MAX_BACKENDS as u16).chain(1..=after.min(MAX_BACKENDS as u16 - 1));
        let id = ids.into_iter().find(|id| !self.used_backends.contains(id))?;
        self.used_backends.insert(id);
        self.last_backend = id;
        Some(BackendId(id))
    }
}
