//! Fills the maps as the agent does, and looks at what the programs wrote.

use std::net::SocketAddrV4;
use std::time::Duration;

use aya::Pod;
use aya::maps::{HashMap, MapData, MapError, PerCpuValues};
use ipnet::IpNet;
use steer::dataplane::maps::Maps;
use steer::model::desired::BackendKey;
use steer::model::plan::{Info, Op, SlotRecipe};
use steer::model::{ContainerId, Gate, UnixMicros};
use steer_common::addr::{Port, TCP};
use steer_common::backend::{BackendEntry, BackendId, BackendStats};
use steer_common::endpoint::{EndpointEntry, EndpointKey};
use steer_common::flow::{FlowEntry, FlowKey};
use steer_common::service::{Balance, FrontendEntry, FrontendKey, ServiceEntry, ServiceId, ServiceState};
use steer_common::state::{BackendState, StateEntry};
use steer_common::tcp::TcpState;

use super::frame::{FRONTEND, FRONTEND_2, backend_addr, backend_mac};
use super::{Bench, ifindex};

/// The service of every test.
pub const WEB: ServiceId = ServiceId(1);

/// Ids of backends end here.
const IDS: u16 = 64;

/// A flow as the tables hold it; which of the two follows from its state.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Flow {
    pub client_port: u16,
    pub lane: u8,
    pub frontend: SocketAddrV4,
    pub backend: u16,
    pub generation: u32,
    pub state: TcpState,
}

impl Flow {
    /// A flow of the first lane, to the first frontend, on a backend of the first generation.
    pub const fn of(client_port: u16, backend: u16, state: TcpState) -> Self {
        Self { client_port, lane: 0, frontend: FRONTEND, backend, generation: 1, state }
    }
}

impl Bench {
    #[track_caller]
    fn apply(&mut self, op: &Op) {
        self.maps.apply(op).unwrap_or_else(|error| panic!("{op:?}: {error:#}"));
    }

    /// The service with these backends, all ready and dealt in turn, at both frontends.
    pub fn serve(&mut self, backends: &[u16]) {
        self.settings(ServiceEntry::default());
        backends.iter().for_each(|&id| self.add_backend(id));
        self.deal(backends);
        self.publish(FRONTEND, 0, 0);
        self.publish(FRONTEND_2, 0, 0);
    }

    pub fn settings(&mut self, entry: ServiceEntry) {
        self.apply(&Op::PutService { name: "web".to_owned(), id: WEB, entry, ports: Vec::new() });
    }

    pub fn publish(&mut self, at: SocketAddrV4, port_index: u8, flags: u8) {
        let key = FrontendKey::new((*at.ip()).into(), Port::new(at.port()), TCP);
        self.apply(&Op::PutFrontend { key, entry: FrontendEntry { service: WEB, port_index, flags } });
    }

    /// A ready backend that takes packets from XDP.
    pub fn add_backend(&mut self, id: u16) {
        self.add_backend_with(id, |_| {});
    }

    pub fn add_backend_with(&mut self, id: u16, change: impl FnOnce(&mut BackendEntry)) {
        assert!(id < IDS, "ids beyond {IDS} are not cleared");
        let at = backend_addr(id);
        let mut entry = BackendEntry {
            addr: (*at.ip()).into(),
            generation: 1,
            ifindex: ifindex(id),
            netns_id: -1,
            service: WEB,
            mac: backend_mac(id),
            flags: BackendEntry::XDP,
            weight: 1,
            ..BackendEntry::default()
        };
        entry.targets[0] = Port::new(at.port());
        change(&mut entry);
        self.apply(&Op::AddBackend { key: key(id), id: BackendId(id), entry, info: info(id) });
        for (index, &port) in entry.targets.iter().enumerate().filter(|(_, port)| **port != Port::NONE) {
            let key = EndpointKey::new(entry.addr, entry.ifindex, port, TCP);
            let (backend, ports) = (BackendId(id), 1 << index);
            let entry =
                EndpointEntry { generation: entry.generation, backend, service: entry.service, ports, pad: [0; 3] };
            self.apply(&Op::PutEndpoint { key, entry });
        }
        self.set_state(id, BackendState::Ready);
    }

    /// Changes what stands of a backend.
    pub fn change_backend(&mut self, id: u16, change: impl FnOnce(&mut BackendEntry)) {
        let mut entry = self.maps.backends.get(&id.into(), 0).expect("every id has an entry");
        change(&mut entry);
        self.apply(&Op::PutBackend { key: key(id), id: BackendId(id), entry });
    }

    pub fn set_state(&mut self, id: u16, state: BackendState) {
        self.apply(&Op::SetState { key: key(id), id: BackendId(id), state, gate: Gate::default() });
    }

    /// As the agent does it: the endpoint last, since replies may still be on their way.
    pub fn remove_backend(&mut self, id: u16) {
        self.apply(&Op::RemoveBackend { key: key(id), id: BackendId(id) });
        let at = backend_addr(id);
        let key = EndpointKey::new((*at.ip()).into(), ifindex(id), Port::new(at.port()), TCP);
        self.apply(&Op::RemoveEndpoint { key });
    }

    /// One slot for each backend, in this order.
    pub fn deal(&mut self, backends: &[u16]) {
        let weights: Vec<_> = backends.iter().map(|&id| (id, 1)).collect();
        self.deal_by(Balance::RoundRobin, &weights, &[]);
    }

    /// A slot table for these weights; `others` are not ready, and stand behind.
    pub fn deal_by(&mut self, balance: Balance, weights: &[(u16, u16)], others: &[u16]) {
        let ready = weights.iter().map(|&(id, weight)| (BackendId(id), format!("b{id:05}"), weight)).collect();
        let others = others.iter().map(|&id| BackendId(id)).collect();
        self.apply(&Op::SwapSlots { name: "web".to_owned(), id: WEB, slots: SlotRecipe { balance, ready, others } });
    }

    pub fn allow(&mut self, net: &str) {
        let net: IpNet = net.parse().expect("a prefix");
        self.apply(&Op::PutAllow { service: WEB, net });
    }

    pub fn disallow(&mut self, net: &str) {
        let net: IpNet = net.parse().expect("a prefix");
        self.apply(&Op::RemoveAllow { service: WEB, net });
    }

    /// Empties the maps, except for the counters, of which only changes are looked at.
    pub(super) fn clear(&mut self) {
        self.deal(&[]);
        // Named one by one: whoever adds a map decides here what becomes of it.
        let Maps {
            frontends,
            allow,
            services,
            service_states,
            // For people; no program reads them.
            service_info: _,
            backend_info: _,
            // Empty since the last line.
            slots: _,
            backends,
            backend_states,
            backend_live,
            backend_stats,
            endpoints,
            flows,
            pending,
            held,
            foreign,
            inits,
            cgroups,
            // Only ever counts up, and a backend that is added takes it as it is.
            backend_edges: _,
            // No program of a bench reads or writes them.
            local_flows: _,
            vip_keys: _,
            vips: _,
            // Read for services all of whose tasks are here.
            swarm_lease,
        } = &mut self.maps;
        let none = "nobody else writes this map";
        emptied(frontends);
        emptied(endpoints);
        emptied(flows);
        emptied(pending);
        emptied(held);
        emptied(foreign);
        emptied(inits);
        emptied(cgroups);
        allow.keys().collect::<Vec<_>>().into_iter().for_each(|key| allow.remove(&key.expect(none)).expect(none));
        services.set(WEB.0.into(), ServiceEntry::default(), 0).expect(none);
        swarm_lease.set(0, 0, 0).expect(none);
        service_states.set(WEB.0.into(), ServiceState::default(), 0).expect(none);
        let cpus = aya::util::nr_cpus().expect("the kernel says how many CPUs there may be");
        for id in 0..IDS.into() {
            let zero = PerCpuValues::try_from(vec![BackendStats::default(); cpus]).expect("a value per CPU");
            backends.set(id, BackendEntry::default(), 0).expect(none);
            backend_states.set(id, StateEntry::default(), 0).expect(none);
            backend_live.set(id, 0, 0).expect(none);
            backend_stats.set(id, zero, 0).expect(none);
        }
    }

    /// Every flow known, by client port and lane. Each must be in the table that its state belongs to.
    pub fn flows(&self) -> Vec<Flow> {
        let mut flows: Vec<Flow> =
            listed(self.maps.pending.iter().map(|row| row.map(|(key, pending)| (key, pending.flow))), false)
                .into_iter()
                .chain(listed(self.maps.flows.iter(), true))
                .collect();
        flows.sort_by_key(|flow| (flow.client_port, flow.lane, flow.state.marks()));
        flows
    }

    /// The raw entry of a flow that opens or closes.
    pub fn pending(&self, key: &FlowKey) -> FlowEntry {
        self.maps.pending.get(key, 0).expect("the flow is pending").flow
    }

    /// The client ports of the flows that wait for a backend.
    pub fn held(&self) -> Vec<u16> {
        self.maps.held.keys().map(|key| key.expect("nobody else writes this map").client_port.get()).collect()
    }

    pub fn forget_held(&mut self) {
        emptied(&mut self.maps.held);
    }

    /// The agent has just heard from the swarm, or not for long.
    pub fn hear_from_swarm(&mut self, now: bool) {
        let until = if now { u32::MAX } else { 0 };
        self.maps.swarm_lease.set(0, until, 0).expect("nobody else writes this map");
    }

    /// How many flows are established.
    pub fn established(&self) -> usize {
        self.maps.flows.keys().count()
    }

    /// How many flows open or close.
    pub fn opening(&self) -> usize {
        self.maps.pending.keys().count()
    }

    pub fn live(&self, id: u16) -> u64 {
        self.maps.backend_live.get(&id.into(), 0).expect("the id is in range")
    }

    pub fn set_live(&mut self, id: u16, live: u64) {
        self.maps.backend_live.set(id.into(), live, 0).expect("the id is in range");
    }

    pub fn stats(&self, id: u16) -> BackendStats {
        let cpus = self.maps.backend_stats.get(&id.into(), 0).expect("the id is in range");
        let sum = |field: fn(&BackendStats) -> u64| cpus.iter().map(field).sum();
        BackendStats {
            steered: sum(|stats| stats.steered),
            established: sum(|stats| stats.established),
            resteered: sum(|stats| stats.resteered),
        }
    }

    pub fn service_state(&self) -> ServiceState {
        self.maps.service_states.get(&WEB.0.into(), 0).expect("the id is in range")
    }

    /// As if new flows to the first port had found no backend since this moment, in nanoseconds since boot.
    pub fn none_since(&mut self, first: u64) {
        let mut state = self.service_state();
        state.none_since[0].first = first;
        self.maps.service_states.set(WEB.0.into(), state, 0).expect("the id is in range");
    }
}

fn listed(rows: impl Iterator<Item = Result<(FlowKey, FlowEntry), MapError>>, live: bool) -> Vec<Flow> {
    let flow = |(key, entry): (FlowKey, FlowEntry)| {
        // One of the mesh's stands where it takes nobody's place, however long it lives.
        assert_eq!(entry.tcp().is_live() && !entry.is_of_mesh(), live, "in the wrong table: {key:?} {entry:?}");
        let std::net::IpAddr::V4(frontend) = entry.frontend.to_ip() else { panic!("no IPv4 flow: {entry:?}") };
        Flow {
            client_port: key.client_port.get(),
            lane: key.lane,
            frontend: SocketAddrV4::new(frontend, entry.frontend_port.get()),
            backend: entry.backend.0,
            generation: entry.generation,
            state: entry.tcp(),
        }
    };
    rows.map(|item| flow(item.expect("nobody else writes this map"))).collect()
}

fn emptied<K: Pod, V: Pod>(map: &mut HashMap<MapData, K, V>) {
    let keys: Vec<K> = map.keys().map(|key| key.expect("nobody else writes this map")).collect();
    keys.iter().for_each(|key| map.remove(key).expect("nobody else writes this map"));
}

fn key(id: u16) -> BackendKey {
    BackendKey { container: ContainerId(format!("b{id:05}")), netns_cookie: id.into() }
}

fn info(id: u16) -> Info {
    Info {
        name: format!("web-{id}"),
        cause: "test".to_owned(),
        since: UnixMicros(0),
        label_weight: 1,
        operator_weight: None,
        maintenance: false,
        put_in: false,
        drain: Duration::ZERO,
    }
}
