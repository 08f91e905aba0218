//! What the pinned maps have of what the program will write, and its way into the private ones.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddrV4};

use anyhow::{Context as _, Result};
use aya::maps::{Array, HashMap};
use aya::{Ebpf, Pod};
use steer_common::addr::{Addr, Port, TCP};
use steer_common::backend::BackendId;
use steer_common::flow::{FlowEntry, FlowKey, ForeignKey, PendingEntry};
use steer_common::limits::{LANES, MAX_FRONTENDS, names};
use steer_common::service::{FrontendEntry, FrontendKey, ServiceId, ServiceState};

use super::{FrontendService, Question, map};
use crate::dataplane::absent::found;
use crate::dataplane::maps::Maps;
use crate::dataplane::read::{FlowTable, FlowView};

/// What the pinned maps have about a packet, of what the program will write.
pub(super) struct Known {
    pub(super) frontend: Option<(FrontendEntry, FrontendService)>,
    pub(super) others: Vec<(SocketAddrV4, ServiceId)>,
    state: ServiceState,
    live: Vec<(BackendId, u64)>,
    flows: Vec<(FlowKey, FlowEntry)>,
    pending: Vec<(FlowKey, PendingEntry)>,
    pub(super) foreign: Vec<(ForeignKey, u32)>,
}

impl Known {
    pub(super) fn read(maps: &Maps, question: &Question) -> Result<Self> {
        let Question { client, frontend, ack: _ } = question;
        let key = FrontendKey::new(Addr::from(*frontend.ip()), Port::new(frontend.port()), TCP);
        let mut known = Self {
            frontend: None,
            others: Vec::new(),
            state: ServiceState::default(),
            live: Vec::new(),
            flows: Vec::new(),
            pending: Vec::new(),
            foreign: Vec::new(),
        };
        let Some(entry) = found(maps.frontends.get(&key, 0)).context("reading FRONTENDS")? else {
            known.others = others(maps, frontend.port())?;
            return Ok(known);
        };
        let service = entry.service;
        known.state = maps.service_states.get(&service.0.into(), 0).context("reading SERVICE_STATES")?;
        let (client, client_port) = (Addr::from(*client.ip()), Port::new(client.port()));
        for lane in 0..LANES {
            let key = FlowKey { lane, ..FlowKey::new(client, client_port, service, TCP) };
            let flow = found(maps.flows.get(&key, 0)).context("reading FLOWS")?;
            known.flows.extend(flow.map(|flow| (key, flow)));
            let pending = found(maps.pending.get(&key, 0)).context("reading PENDING")?;
            known.pending.extend(pending.map(|pending| (key, pending)));
        }
        let mut targets = BTreeMap::new();
        for index in 1..maps.backends.len() {
            let backend = maps.backends.get(&index, 0).context("reading BACKENDS")?;
            if backend.generation == 0 || backend.service != service {
                continue;
            }
            let id = BackendId(index as u16);
            targets.insert(id, backend.target(entry.port_index).map(Port::get));
            known.live.push((id, maps.backend_live.get(&index, 0).context("reading BACKEND_LIVE")?));
            let key = ForeignKey { client, client_port, backend: id, generation: backend.generation };
            let foreign = found(maps.foreign.get(&key, 0)).context("reading FOREIGN")?;
            known.foreign.extend(foreign.map(|value| (key, value)));
        }
        let loopback = entry.flags & FrontendEntry::LOOPBACK != 0;
        known.frontend = Some((entry, FrontendService { service, loopback, targets }));
        Ok(known)
    }

    /// Puts it into the private maps.
    pub(super) fn write(&self, bpf: &mut Ebpf) -> Result<()> {
        if let Some((entry, _)) = &self.frontend {
            let mut states: Array<_, ServiceState> = map(bpf, names::SERVICE_STATES)?;
            states.set(entry.service.0.into(), self.state, 0).context("copying the service's state")?;
        }
        let mut live: Array<_, u64> = map(bpf, names::BACKEND_LIVE)?;
        for (id, value) in &self.live {
            live.set(id.0.into(), value, 0).context("copying a count of flows")?;
        }
        copy(bpf, names::FLOWS, &self.flows)?;
        copy(bpf, names::PENDING, &self.pending)?;
        copy(bpf, names::FOREIGN, &self.foreign)
    }

    pub(super) fn views(&self, now_secs: u32) -> Vec<FlowView> {
        let view = |(key, flow): (&FlowKey, &FlowEntry), table| FlowView::of_packets(key, flow, table, now_secs);
        let flows = self.flows.iter().map(|(key, flow)| view((key, flow), FlowTable::Flows));
        let pending = self.pending.iter().map(|(key, pending)| view((key, &pending.flow), FlowTable::Pending));
        flows.chain(pending).collect()
    }

    /// A sequence number that no flow of that client port began with: a new connection, not a SYN sent again.
    pub(super) fn new_seq(&self) -> u32 {
        let taken = |seq: &u32| {
            let flows = self.flows.iter().map(|(_, flow)| flow.isn);
            flows.chain(self.pending.iter().map(|(_, pending)| pending.flow.isn)).any(|isn| isn == *seq)
        };
        (1..).find(|seq| !taken(seq)).unwrap_or_default()
    }
}

/// Frontends with that port.
fn others(maps: &Maps, port: u16) -> Result<Vec<(SocketAddrV4, ServiceId)>> {
    let mut others = Vec::new();
    for row in maps.frontends.iter().take(2 * MAX_FRONTENDS as usize) {
        let (key, entry) = row.context("reading FRONTENDS")?;
        let is_loopback = entry.flags & FrontendEntry::LOOPBACK != 0;
        if let IpAddr::V4(ip) = key.addr.to_ip()
            && key.port.get() == port
            && key.proto == TCP
            && !is_loopback
        {
            others.push((SocketAddrV4::new(ip, port), entry.service));
        }
    }
    others.sort_unstable();
    others.dedup();
    Ok(others)
}

fn copy<K: Pod, V: Pod>(bpf: &mut Ebpf, name: &str, rows: &[(K, V)]) -> Result<()> {
    let map = bpf.map_mut(name).with_context(|| format!("the BPF object has no {name}"))?;
    let mut map = HashMap::<_, K, V>::try_from(map).with_context(|| format!("{name} is of another type"))?;
    rows.iter().try_for_each(|(key, value)| map.insert(key, value, 0)).with_context(|| format!("copying {name}"))
}
