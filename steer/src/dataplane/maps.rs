//! The maps, opened for writing.

use aya::maps::lpm_trie::LpmTrie;
use aya::maps::of_maps::ArrayOfMaps;
use aya::maps::{Array, HashMap, IterableMap as _, MapData, PerCpuArray};
use steer_common::backend::{BackendEntry, BackendInfo, BackendStats};
use steer_common::edge::{EdgeEntry, InitEntry};
use steer_common::endpoint::{EndpointEntry, EndpointKey};
use steer_common::flow::{FlowEntry, FlowKey, ForeignKey, LocalFlow, PendingEntry};
use steer_common::limits::names;
use steer_common::service::{AllowKey, FrontendEntry, FrontendKey, ServiceEntry, ServiceInfo, ServiceState};
use steer_common::slot::SlotTable;
use steer_common::state::StateEntry;
use steer_common::vip::{VipEntry, VipKey};

use super::paths::Paths;
use super::read::{ReadError, open};

/// A slot table in its map of one element.
pub type SlotMap = Array<MapData, SlotTable>;

/// Every pinned map that the agent writes.
pub struct Maps {
    pub frontends: HashMap<MapData, FrontendKey, FrontendEntry>,
    pub allow: LpmTrie<MapData, AllowKey, u32>,
    pub services: Array<MapData, ServiceEntry>,
    pub service_states: Array<MapData, ServiceState>,
    pub service_info: Array<MapData, ServiceInfo>,
    pub slots: ArrayOfMaps<MapData, SlotMap>,
    pub backends: Array<MapData, BackendEntry>,
    pub backend_states: Array<MapData, StateEntry>,
    pub backend_edges: Array<MapData, EdgeEntry>,
    pub inits: HashMap<MapData, u32, InitEntry>,
    pub cgroups: HashMap<MapData, u64, InitEntry>,
    pub backend_live: Array<MapData, u64>,
    pub backend_stats: PerCpuArray<MapData, BackendStats>,
    pub backend_info: Array<MapData, BackendInfo>,
    pub endpoints: HashMap<MapData, EndpointKey, EndpointEntry>,
    pub flows: HashMap<MapData, FlowKey, FlowEntry>,
    pub pending: HashMap<MapData, FlowKey, PendingEntry>,
    pub held: HashMap<MapData, FlowKey, PendingEntry>,
    pub foreign: HashMap<MapData, ForeignKey, u32>,
    pub local_flows: HashMap<MapData, u64, LocalFlow>,
    pub vip_keys: HashMap<MapData, VipKey, u32>,
    pub vips: Array<MapData, VipEntry>,
    pub swarm_lease: Array<MapData, u32>,
}

impl Maps {
    /// Opens the maps of an instance.
    pub fn open(paths: &Paths) -> Result<Self, ReadError> {
        Ok(Self {
            frontends: open(paths, names::FRONTENDS)?,
            allow: open(paths, names::ALLOW)?,
            services: open(paths, names::SERVICES)?,
            service_states: open(paths, names::SERVICE_STATES)?,
            service_info: open(paths, names::SERVICE_INFO)?,
            slots: open(paths, names::SLOTS)?,
            backends: open(paths, names::BACKENDS)?,
            backend_states: open(paths, names::BACKEND_STATES)?,
            backend_edges: open(paths, names::BACKEND_EDGES)?,
            inits: open(paths, names::INITS)?,
            cgroups: open(paths, names::CGROUPS)?,
            backend_live: open(paths, names::BACKEND_LIVE)?,
            backend_stats: open(paths, names::BACKEND_STATS)?,
            backend_info: open(paths, names::BACKEND_INFO)?,
            endpoints: open(paths, names::ENDPOINTS)?,
            flows: open(paths, names::FLOWS)?,
            pending: open(paths, names::PENDING)?,
            held: open(paths, names::HELD)?,
            foreign: open(paths, names::FOREIGN)?,
            local_flows: open(paths, names::LOCAL_FLOWS)?,
            vip_keys: open(paths, names::VIP_KEYS)?,
            vips: open(paths, names::VIPS)?,
            swarm_lease: open(paths, names::SWARM_LEASE)?,
        })
    }

    /// How many established flows there is room for: as said when the table was made, not by whoever opens it.
    pub fn max_flows(&self) -> Result<u32, ReadError> {
        let info = self.flows.map().info();
        info.map(|info| info.max_entries()).map_err(|source| ReadError::Read { map: names::FLOWS, source })
    }
}
