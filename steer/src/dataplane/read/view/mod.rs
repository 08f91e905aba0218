//! What the maps say, in words for people: pure.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use steer_common::addr::Port;
use steer_common::backend::{BackendEntry, BackendId, BackendInfo, BackendStats};
use steer_common::edge::{EdgeEntry, EdgeKind};
use steer_common::flow::{FlowEntry, FlowKey, LocalFlow};
use steer_common::service::{Balance, PortInfo, ServiceEntry, ServiceId, ServiceInfo};
use steer_common::state::{BackendState, StateEntry};
use steer_common::tcp::TcpState;
use steer_common::verdict::Counter;

use crate::dataplane::count::{FlowCounts, live_count};
use crate::dataplane::text::unpadded;
use crate::model::cause::Cause;
use crate::model::frontend::Frontend;
use crate::model::lifecycle::stop_cause;
use crate::model::{ContainerId, UnixMicros};

/// The maps at about one moment.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Snapshot {
    /// By name.
    pub services: Vec<ServiceView>,
    /// In index order.
    pub counters: Vec<(Counter, u64)>,
}

impl Snapshot {
    /// A backend by its id in the maps, with its service.
    pub fn backend(&self, id: BackendId) -> Option<(&ServiceView, &BackendView)> {
        self.backends().find(|(_, backend)| backend.id == id)
    }

    /// All backends, each with its service.
    pub fn backends(&self) -> impl Iterator<Item = (&ServiceView, &BackendView)> {
        self.services.iter().flat_map(|service| service.backends.iter().map(move |backend| (service, backend)))
    }

    /// Live flows of all backends.
    pub fn live_flows(&self) -> u64 {
        self.backends().map(|(_, backend)| backend.live_flows).sum()
    }
}

/// A service.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ServiceView {
    /// Its id in the maps.
    pub id: ServiceId,
    /// Unique on this host.
    pub name: String,
    /// One per frontend of the label.
    pub ports: Vec<Frontend>,
    /// How a backend is chosen.
    pub balance: Balance,
    /// How long new flows wait while no backend is ready.
    pub hold: Duration,
    /// They do not wait, but are left to Swarm's routing mesh.
    pub mesh: bool,
    /// By name.
    pub backends: Vec<BackendView>,
}

/// A backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct BackendView {
    /// Its id in the maps.
    pub id: BackendId,
    /// Tells it from an earlier backend of the same id.
    pub generation: u32,
    pub container: ContainerId,
    /// The container's name.
    pub name: String,
    /// Where it is reached.
    pub address: IpAddr,
    /// The container's port behind each port of the service; `None` where it does not serve that one.
    pub targets: Vec<Option<u16>>,
    /// What it is for new flows, with what the kernel saw of it.
    pub state: BackendState,
    /// Why it is in that state.
    pub cause: String,
    /// When it came into that state.
    pub since: UnixMicros,
    /// In force.
    pub weight: u16,
    /// What the label asks for.
    pub label_weight: u32,
    /// What the operator set; `None` = the label's is in force.
    pub operator_weight: Option<u16>,
    /// The operator took it out.
    pub maintenance: bool,
    /// Established flows, those of this host's own sockets with them.
    pub live_flows: u64,
    /// Flows whose handshake is under way.
    pub pending_flows: u64,
    /// Flows given to it since it has its id.
    pub steered_total: u64,
    /// Those of them that completed their handshake.
    pub established_total: u64,
    /// New flows that it refused and that went on to another backend.
    pub resteered_total: u64,
    /// How long `steer drain --wait` waits for its flows.
    pub drain: Duration,
}

/// One connection.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FlowView {
    /// `None` = one of this host's own sockets.
    pub client: Option<SocketAddr>,
    /// What the client connected to.
    pub frontend: SocketAddr,
    /// `None` where only the backend tells (this host's own sockets).
    pub service: Option<ServiceId>,
    /// Where it is.
    pub backend: BackendId,
    /// Of the backend's id, when the flow began.
    pub generation: u32,
    /// As far as the packets told.
    pub state: TcpState,
    /// Since the last packet; `None` where that is not known (this host's own sockets).
    pub idle: Option<Duration>,
    /// Where it stands.
    pub table: FlowTable,
    /// Tells it from others of the same client port and service.
    pub lane: u8,
}

impl FlowView {
    /// Whether the connection opens or is open: neither ended, nor idle for longer than its state allows.
    pub fn is_current(&self) -> bool {
        let in_time = self.idle.is_none_or(|idle| idle.as_secs() <= u64::from(self.state.timeout_secs()));
        in_time && (self.state.is_live() || self.state.is_opening())
    }

    /// Whether Swarm's routing mesh has it.
    pub fn is_of_mesh(&self) -> bool {
        self.table == FlowTable::Pending && self.backend.is_none()
    }

    pub(in crate::dataplane) fn of_packets(key: &FlowKey, entry: &FlowEntry, table: FlowTable, now_secs: u32) -> Self {
        Self {
            client: Some(SocketAddr::new(key.client.to_ip(), key.client_port.get())),
            frontend: SocketAddr::new(entry.frontend.to_ip(), entry.frontend_port.get()),
            service: Some(key.service),
            backend: entry.backend,
            generation: entry.generation,
            state: entry.tcp(),
            idle: Some(Duration::from_secs(now_secs.saturating_sub(entry.last_seen).into())),
            table,
            lane: key.lane,
        }
    }

    pub(super) fn of_socket(flow: &LocalFlow) -> Self {
        Self {
            client: None,
            frontend: SocketAddr::new(flow.frontend.to_ip(), flow.frontend_port.get()),
            service: None,
            backend: flow.backend,
            generation: flow.generation,
            state: TcpState::Established,
            idle: None,
            table: FlowTable::Local,
            lane: 0,
        }
    }
}

/// Which table holds a flow.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FlowTable {
    /// Established.
    Flows,
    /// Opening or closing.
    Pending,
    /// Of this host's own sockets, steered at `connect`.
    Local,
}

impl FlowTable {
    /// The word used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Flows => "flows",
            Self::Pending => "pending",
            Self::Local => "local",
        }
    }
}

/// A service as three maps have it.
pub(super) struct ServiceRow {
    pub(super) id: ServiceId,
    pub(super) entry: ServiceEntry,
    pub(super) info: ServiceInfo,
}

/// A backend as the maps that are indexed by its id have it.
pub(super) struct BackendRow {
    pub(super) id: BackendId,
    pub(super) entry: BackendEntry,
    pub(super) info: BackendInfo,
    pub(super) state: StateEntry,
    pub(super) edge: EdgeEntry,
    pub(super) live: u64,
    /// Over all CPUs.
    pub(super) stats: BackendStats,
}

/// Puts backends to their services. A backend whose service has no name (the agent is just removing it) stands under the
/// service's number, so that nothing is hidden.
pub(super) fn services(
    services: Vec<ServiceRow>,
    backends: Vec<BackendRow>,
    pending: &FlowCounts,
    boot: UnixMicros,
) -> Vec<ServiceView> {
    let mut views: Vec<_> = services
        .iter()
        .map(|row| (row, unpadded(&row.info.name)))
        .filter(|(row, name)| !name.is_empty() || backends.iter().any(|backend| backend.entry.service == row.id))
        .map(|(row, name)| ServiceView {
            id: row.id,
            name: if name.is_empty() { format!("#{}", row.id.0) } else { name },
            ports: row.info.ports.iter().filter_map(Frontend::from_info).collect(),
            balance: Balance::from_u8(row.entry.balance),
            hold: Duration::from_nanos(row.entry.hold_ns),
            mesh: row.entry.has_mesh(),
            backends: Vec::new(),
        })
        .collect();
    for row in backends {
        let service = services.iter().find(|service| service.id == row.entry.service);
        if let (Some(service), Some(view)) = (service, views.iter_mut().find(|view| view.id == row.entry.service)) {
            let pending = pending.get(&(row.id, row.entry.generation)).copied().unwrap_or_default();
            view.backends.push(backend(&row, &service.info.ports, pending, boot));
        }
    }
    for view in &mut views {
        view.backends.sort_by(|a, b| (&a.name, a.id).cmp(&(&b.name, b.id)));
    }
    views.sort_by(|a, b| a.name.cmp(&b.name));
    views
}

/// State, cause and time of the last change: the agent's word, unless the kernel has seen more since.
fn last_change(row: &BackendRow, boot: UnixMicros) -> (BackendState, String, UnixMicros) {
    let BackendRow { state, edge, info, .. } = row;
    let kind = EdgeKind::from_u32(edge.kind).filter(|_| edge.count as u32 != state.edges);
    let since = UnixMicros(boot.0 + edge.at_ns / 1_000);
    let by_agent = BackendState::from_u32(state.state.into());
    match kind {
        // Docker tells the agent of it a little later.
        None if edge.frozen_ns != 0 && by_agent == BackendState::Ready => {
            (BackendState::Unready, Cause::frozen().text, UnixMicros(boot.0 + edge.frozen_ns / 1_000))
        }
        None => (by_agent, unpadded(&info.cause), UnixMicros(info.since_us)),
        Some(EdgeKind::Exit) => (BackendState::Gone, Cause::exit().text, since),
        Some(EdgeKind::Stop | EdgeKind::Kill) => {
            (BackendState::Draining, stop_cause(edge.signal as i32, false).text, since)
        }
    }
}

fn backend(row: &BackendRow, ports: &[PortInfo], pending: u64, boot: UnixMicros) -> BackendView {
    let BackendRow { id, entry, info, live, stats, .. } = row;
    let (state, cause, since) = last_change(row, boot);
    // A port that was given up leaves a hole, which nobody wants to see.
    let targets = ports.iter().zip(entry.targets).filter(|(port, _)| port.port != Port::NONE);
    BackendView {
        id: *id,
        generation: entry.generation,
        container: ContainerId(unpadded(&info.container)),
        name: unpadded(&info.name),
        address: entry.addr.to_ip(),
        targets: targets.map(|(_, target)| (target != Port::NONE).then(|| target.get())).collect(),
        state,
        cause,
        since,
        weight: entry.weight,
        label_weight: info.label_weight,
        operator_weight: u16::try_from(info.operator_weight).ok(),
        maintenance: info.maintenance != 0,
        live_flows: live_count(*live),
        pending_flows: pending,
        steered_total: stats.steered,
        established_total: stats.established,
        resteered_total: stats.resteered,
        drain: Duration::from_millis(info.drain_ms.into()),
    }
}

#[cfg(test)]
mod tests;
