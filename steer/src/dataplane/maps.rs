//! The maps, opened for writing.

use anyhow::{Context as _, Result};
use aya::Pod;
use aya::maps::lpm_trie::LpmTrie;
use aya::maps::of_maps::ArrayOfMaps;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use steer_common::backend::{
    BackendEntry, BackendInfo, BackendStats, EdgeEntry, EndpointEntry, EndpointKey, InitEntry, StateEntry,
};
use steer_common::flow::{FlowEntry, FlowKey, ForeignKey, LocalFlow, PendingEntry};
use steer_common::limits::names;
use steer_common::service::{AllowKey, FrontendEntry, FrontendKey, ServiceEntry, ServiceInfo, ServiceState};
use steer_common::slot::SlotTable;
use steer_common::vip::{VipEntry, VipKey};

use super::paths::Paths;

/// A slot table in its map of one element.
pub type Slots = Array<MapData, SlotTable>;

/// Every pinned map that the agent writes.
pub struct Maps {
    pub frontends: HashMap<MapData, FrontendKey, FrontendEntry>,
    pub allow: LpmTrie<MapData, AllowKey, u32>,
    pub services: Array<MapData, ServiceEntry>,
    pub service_states: Array<MapData, ServiceState>,
    pub service_info: Array<MapData, ServiceInfo>,
    pub slots: ArrayOfMaps<MapData, Slots>,
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
    pub fn open(paths: &Paths) -> Result<Self> {
        Ok(Self {
            frontends: hash(paths, names::FRONTENDS)?,
            allow: LpmTrie::try_from(Map::LpmTrie(data(paths, names::ALLOW)?))
                .with_context(|| mismatch(names::ALLOW))?,
            services: array(paths, names::SERVICES)?,
            service_states: array(paths, names::SERVICE_STATES)?,
            service_info: array(paths, names::SERVICE_INFO)?,
            slots: ArrayOfMaps::try_from(Map::ArrayOfMaps(data(paths, names::SLOTS)?))
                .with_context(|| mismatch(names::SLOTS))?,
            backends: array(paths, names::BACKENDS)?,
            backend_states: array(paths, names::BACKEND_STATES)?,
            backend_edges: array(paths, names::BACKEND_EDGES)?,
            inits: hash(paths, names::INITS)?,
            cgroups: hash(paths, names::CGROUPS)?,
            backend_live: array(paths, names::BACKEND_LIVE)?,
            backend_stats: PerCpuArray::try_from(Map::PerCpuArray(data(paths, names::BACKEND_STATS)?))
                .with_context(|| mismatch(names::BACKEND_STATS))?,
            backend_info: array(paths, names::BACKEND_INFO)?,
            endpoints: hash(paths, names::ENDPOINTS)?,
            flows: lru(paths, names::FLOWS)?,
            pending: lru(paths, names::PENDING)?,
            held: lru(paths, names::HELD)?,
            foreign: lru(paths, names::FOREIGN)?,
            local_flows: lru(paths, names::LOCAL_FLOWS)?,
            vip_keys: hash(paths, names::VIP_KEYS)?,
            vips: array(paths, names::VIPS)?,
            swarm_lease: array(paths, names::SWARM_LEASE)?,
        })
    }
}

fn data(paths: &Paths, name: &str) -> Result<MapData> {
    let pin = paths.map(name);
    MapData::from_pin(&pin).with_context(|| format!("opening the pinned map {}", pin.display()))
}

fn array<V: Pod>(paths: &Paths, name: &str) -> Result<Array<MapData, V>> {
    Array::try_from(Map::Array(data(paths, name)?))
        .map_err(|error: MapError| anyhow::Error::from(error).context(mismatch(name)))
}

fn hash<K: Pod, V: Pod>(paths: &Paths, name: &str) -> Result<HashMap<MapData, K, V>> {
    HashMap::try_from(Map::HashMap(data(paths, name)?))
        .map_err(|error: MapError| anyhow::Error::from(error).context(mismatch(name)))
}

fn lru<K: Pod, V: Pod>(paths: &Paths, name: &str) -> Result<HashMap<MapData, K, V>> {
    HashMap::try_from(Map::LruHashMap(data(paths, name)?))
        .map_err(|error: MapError| anyhow::Error::from(error).context(mismatch(name)))
}

fn mismatch(name: &str) -> String {
    format!(
        "the pinned map {name} has another layout: it was written by another build of this version (`steer detach --now` removes it)"
    )
}
