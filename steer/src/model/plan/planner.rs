//! The difference between what there should be and what there is, and the order of the writes.

use std::collections::{BTreeMap, BTreeSet};

use ipnet::{IpNet, Ipv4Net};
use steer_common::addr::{Addr, Port, TCP};
use steer_common::backend::{BackendEntry, BackendId};
use steer_common::endpoint::{EndpointEntry, EndpointKey};
use steer_common::limits::{MAX_ALLOW, MAX_BACKENDS, MAX_SERVICES};
use steer_common::service::{ServiceEntry, ServiceId};
use steer_common::state::BackendState;

use super::frontends::Frontends;
use super::{Applied, Info, Op, SlotRecipe};
use crate::model::desired::{BackendKey, Desired, DesiredBackend, DesiredService};
use crate::model::{Gate, Problem};

/// A removed backend leaves no trace of its generation in the maps, so a new agent goes by the clock. More backends than this
/// cannot start in a second, day in, day out; and the number lasts for eight years of uptime.
const GENERATIONS_PER_SEC: u32 = 16;

/// The steps of a plan, each complete before the next.
#[derive(Default)]
struct Steps {
    /// Who must get no new flows.
    demote: Vec<Op>,
    /// Backends that go to another service: their ids are retired before they are added there.
    retire: Vec<Op>,
    /// Frontends that are none any more, before their port index may mean another one.
    close: Vec<Op>,
    add: Vec<Op>,
    promote: Vec<Op>,
    services: Vec<Op>,
    slots: Vec<Op>,
    frontends: Vec<Op>,
    remove: Vec<Op>,
    info: Vec<Op>,
}

/// A plan being made.
pub(super) struct Planner<'a> {
    desired: &'a Desired,
    applied: &'a Applied,
    steps: Steps,
    problems: Vec<Problem>,
    used_backends: BTreeSet<u16>,
    used_services: BTreeSet<u16>,
    last_backend: u16,
    last_generation: u32,
    /// What should be there at the end, as far as it has been planned.
    backends: BTreeMap<&'a BackendKey, BackendId>,
    endpoints: BTreeMap<EndpointKey, EndpointEntry>,
    frontends: Frontends<'a>,
    allow: BTreeSet<(ServiceId, IpNet)>,
}

impl<'a> Planner<'a> {
    pub(super) fn new(desired: &'a Desired, applied: &'a Applied, now_secs: u32) -> Self {
        Self {
            desired,
            applied,
            steps: Steps::default(),
            problems: Vec::new(),
            used_backends: applied.backends.values().map(|backend| backend.id.0).collect(),
            used_services: applied.services.values().map(|service| service.id.0).collect(),
            last_backend: applied.last_backend,
            last_generation: applied.last_generation.max(now_secs.wrapping_mul(GENERATIONS_PER_SEC)),
            backends: BTreeMap::new(),
            endpoints: BTreeMap::new(),
            frontends: Frontends::new(desired),
            allow: BTreeSet::new(),
        }
    }

    pub(super) fn plan(mut self) -> (Vec<Op>, Vec<Problem>) {
        for (name, service) in &self.desired.services {
            self.service(name, service);
        }
        self.frontends();
        self.allow_lists();
        self.removals();
        let Self { steps, problems, .. } = self;
        let Steps { demote, retire, close, add, promote, services, slots, frontends, remove, info } = steps;
        // The words for a state right after the demotions, before anything that takes the kernel long.
        let steps = [demote, info, retire, close, add, promote, services, slots, frontends, remove];
        (steps.into_iter().flatten().collect(), problems)
    }

    fn service(&mut self, name: &'a str, service: &'a DesiredService) {
        let current = self.applied.services.get(name);
        let Some(id) = current.map(|current| current.id).or_else(|| self.free_service()) else {
            self.problem(name, None, format!("{} services are steered already: not steered", MAX_SERVICES - 1));
            return;
        };
        let mut ready = Vec::new();
        let mut others = Vec::new();
        for (key, backend) in &service.backends {
            let Some(id) = self.backend(key, backend, id) else { continue };
            // One that listening decides about has its turns from the start: the kernel asks at each whether it listens.
            if backend.state.takes_new(backend.gate.if_listening) && backend.weight() > 0 {
                ready.push((id, key.container.0.clone(), backend.weight()));
            } else {
                others.push(id);
            }
        }
        self.allow_list(name, id, service);
        let allow_list = if service.allow.is_empty() { 0 } else { ServiceEntry::ALLOW_LIST };
        let mesh = if service.mesh { ServiceEntry::MESH } else { 0 };
        let all_here = if service.all_here { ServiceEntry::ALL_HERE } else { 0 };
        let entry = ServiceEntry {
            hold_ns: u64::try_from(service.hold.as_nanos()).unwrap_or(u64::MAX),
            balance: service.balance as u8,
            flags: allow_list | mesh | all_here,
            pad: [0; 6],
        };
        if current.is_none_or(|current| current.entry != entry || current.ports != service.ports) {
            let ports = service.ports.clone();
            self.steps.services.push(Op::PutService { name: name.to_owned(), id, entry, ports });
        }
        let slots = SlotRecipe { balance: service.balance, ready, others };
        if current.is_none_or(|current| current.slots.as_ref() != Some(&slots)) {
            self.steps.slots.push(Op::SwapSlots { name: name.to_owned(), id, slots });
        }
        for (index, listen) in service.ports.iter().enumerate() {
            if let Some(listen) = listen {
                self.frontends.add(name, id, index as u8, listen);
            }
        }
    }

    /// Plans for one backend; its id, or `None` when there is no room for it.
    fn backend(&mut self, key: &'a BackendKey, backend: &DesiredBackend, service: ServiceId) -> Option<BackendId> {
        // One that changes service starts anew: its flows belong to the service, and a slot table may still name its id.
        let current = self.applied.backends.get(key).filter(|current| current.entry.service == service);
        let (id, generation) = match current {
            Some(current) => (current.id, current.entry.generation),
            None => {
                let Some(id) = self.free_backend() else {
                    let message = format!("{} backends are steered to already: not steered", MAX_BACKENDS - 1);
                    self.problem(&backend.name, None, message);
                    return None;
                };
                // Never 0, which stands for a free id.
                self.last_generation = self.last_generation.wrapping_add(1).max(1);
                (id, self.last_generation)
            }
        };
        self.backends.insert(key, id);
        // The kernel's word, which stands until the id is given back.
        let ended = current.map_or(0, |current| current.entry.flags & BackendEntry::ENDED);
        let mut entry = BackendEntry {
            addr: Addr::from(backend.address),
            generation,
            ifindex: backend.reach.ifindex,
            netns_cookie: backend.reach.netns_cookie,
            netns_id: backend.reach.netns_id,
            service,
            mac: backend.reach.mac,
            weight: backend.weight(),
            flags: if backend.reach.xdp { BackendEntry::XDP } else { 0 } | ended,
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
            put_in: backend.put_in,
            drain: backend.drain,
        };
        // Replies must find their way before the entry lets the first flow through.
        self.endpoints_of(id, &entry, &backend.other_ways);
        let before = current.map_or((BackendState::Starting, Gate::default()), |current| (current.state, current.gate));
        if before != (backend.state, backend.gate) {
            let op = Op::SetState { key: key.clone(), id, state: backend.state, gate: backend.gate };
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
    fn endpoints_of(&mut self, id: BackendId, entry: &BackendEntry, other_ways: &[u32]) {
        let mut own = BTreeSet::new();
        let targets = entry.targets.iter().enumerate().filter(|(_, target)| **target != Port::NONE);
        let inside = EndpointKey::inside(entry.netns_cookie);
        let ways = || [entry.ifindex, inside].into_iter().chain(other_ways.iter().copied());
        for (index, &target, way) in targets.flat_map(|(index, target)| ways().map(move |way| (index, target, way))) {
            let key = EndpointKey::new(entry.addr, way, target, TCP);
            let endpoint = self.endpoints.entry(key).or_insert(EndpointEntry {
                generation: entry.generation,
                backend: id,
                service: entry.service,
                ports: 0,
                pad: [0; 3],
            });
            if endpoint.backend == id {
                endpoint.ports |= 1 << index;
                own.insert(key);
            }
        }
        for key in own {
            let entry = self.endpoints[&key];
            match self.applied.endpoints.get(&key) {
                Some(applied) if *applied == entry => {}
                // A port it no longer serves stays its own until no new flow can come by it.
                Some(applied) if (applied.backend, applied.generation) == (entry.backend, entry.generation) => {
                    let both = EndpointEntry { ports: entry.ports | applied.ports, ..entry };
                    self.steps.add.push(Op::PutEndpoint { key, entry: both });
                    if both != entry {
                        self.steps.remove.push(Op::PutEndpoint { key, entry });
                    }
                }
                _ => self.steps.add.push(Op::PutEndpoint { key, entry }),
            }
        }
    }

    /// Writes the frontends that there should be, and takes the others away.
    fn frontends(&mut self) {
        let Self { frontends, applied, steps, problems, .. } = self;
        problems.extend(frontends.limit(&applied.frontends));
        for (key, entry) in frontends.entries().filter(|(key, entry)| applied.frontends.get(key) != Some(entry)) {
            steps.frontends.push(Op::PutFrontend { key, entry });
        }
        for (key, _) in applied.frontends.iter().filter(|(key, entry)| frontends.must_go(key, entry)) {
            steps.close.push(Op::RemoveFrontend { key: *key });
        }
    }

    fn allow_list(&mut self, name: &str, service: ServiceId, desired: &DesiredService) {
        let nets: BTreeSet<_> = desired.allow.iter().map(|net| (service, canonical(*net))).collect();
        if self.allow.len() + nets.len() > MAX_ALLOW as usize {
            let message = format!("{MAX_ALLOW} prefixes are allowed already: service {name} admits nobody new");
            self.problem(name, Some("steer.allow"), message);
            return;
        }
        self.allow.extend(nets);
    }

    /// Who is allowed is known before a list counts, and until it no longer does.
    fn allow_lists(&mut self) {
        for &(service, net) in self.allow.difference(&self.applied.allow) {
            self.steps.add.push(Op::PutAllow { service, net });
        }
        for &(service, net) in self.applied.allow.difference(&self.allow) {
            self.steps.remove.push(Op::RemoveAllow { service, net });
        }
    }

    /// What is in the maps and no longer wanted.
    fn removals(&mut self) {
        let Self { desired, applied, steps, endpoints, backends, .. } = self;
        for (name, service) in applied.services.iter().filter(|(name, _)| !desired.services.contains_key(*name)) {
            steps.remove.push(Op::RemoveService { name: name.clone(), id: service.id });
        }
        for key in applied.endpoints.keys().filter(|key| !endpoints.contains_key(key)) {
            steps.remove.push(Op::RemoveEndpoint { key: *key });
        }
        for (key, backend) in &applied.backends {
            let id = backend.id;
            let step = match backends.get(key) {
                Some(kept) if *kept == id => continue,
                Some(_) => &mut steps.retire,
                None => &mut steps.remove,
            };
            // Out of the slots first, and out of the running before that.
            step.push(Op::RemoveBackend { key: key.clone(), id });
            steps.demote.push(Op::SetState { key: key.clone(), id, state: BackendState::Gone, gate: backend.gate });
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

    fn problem(&mut self, container: &str, label: Option<&str>, message: String) {
        self.problems.push(Problem { container: container.to_owned(), label: label.map(str::to_owned), message });
    }
}

/// The prefix as the map holds it: IPv4 is IPv4 however it was written, and bits beyond the prefix are zero. Else two ways to
/// write one prefix would be two, and taking one away would take the other.
fn canonical(net: IpNet) -> IpNet {
    match net.trunc() {
        IpNet::V6(v6) if v6.prefix_len() >= 96 => match v6.network().to_ipv4_mapped() {
            Some(v4) => Ipv4Net::new(v4, v6.prefix_len() - 96).map_or(net, IpNet::V4),
            None => IpNet::V6(v6),
        },
        other => other,
    }
}
