//! The pinned maps as inspection sees them: with no agent needed, while the kernel goes on writing.

mod view;
pub(super) mod walk;

use std::hash::Hash;
use std::io;
use std::path::{Path, PathBuf};

use aya::Pod;
use aya::maps::{Array, HashMap, Map, MapData, MapError, PerCpuArray};
use aya::sys::SyscallError;
use steer_common::backend::{BackendEntry, BackendId, BackendInfo, BackendStats};
use steer_common::edge::EdgeEntry;
use steer_common::flow::{FlowEntry, FlowKey, LocalFlow, PendingEntry};
use steer_common::limits::names;
use steer_common::service::{ServiceEntry, ServiceId, ServiceInfo};
use steer_common::state::StateEntry;
use steer_common::verdict::Counter;

use self::view::{BackendRow, ServiceRow};
pub use self::view::{BackendView, FlowTable, FlowView, ServiceView, Snapshot};
use super::count::{FlowCounts, live_count, opening};
use super::others;
use super::paths::{LinkName, Paths};
use crate::host::clock::{boot_secs, unix_boot};

/// Why the maps cannot be read.
#[derive(thiserror::Error, Debug)]
pub enum ReadError {
    /// Nothing is pinned.
    #[error("no steer data plane on this host (instance {instance}): start it with `steer run`")]
    NoDataPlane { instance: String },
    /// What is pinned has another layout, which this version cannot read.
    #[error(
        "another version of steer is at work on this host (instance {instance}): use that one's `steer`, or begin with this one: \
         `steer run` takes over, `steer detach --now` takes the other one off"
    )]
    OtherVersion { instance: String },
    /// The pins are root's.
    #[error("not allowed to read the data plane at {}: run as root", path.display())]
    Denied { path: PathBuf },
    /// The pin is no such map, or one of another layout.
    #[error(
        "cannot open the pinned map {}: was it written by another build of this version? `steer detach --now` removes it",
        path.display()
    )]
    Open { path: PathBuf, source: MapError },
    /// The kernel refused a lookup.
    #[error("cannot read the map {map}")]
    Read { map: &'static str, source: MapError },
    /// The directory of the pinned links cannot be read.
    #[error("cannot list {}", path.display())]
    List { path: PathBuf, source: io::Error },
}

/// The pinned maps, opened.
pub struct Reader {
    services: Array<MapData, ServiceEntry>,
    service_info: Array<MapData, ServiceInfo>,
    backends: Array<MapData, BackendEntry>,
    backend_states: Array<MapData, StateEntry>,
    backend_edges: Array<MapData, EdgeEntry>,
    backend_live: Array<MapData, u64>,
    backend_stats: PerCpuArray<MapData, BackendStats>,
    backend_info: Array<MapData, BackendInfo>,
    flows: HashMap<MapData, FlowKey, FlowEntry>,
    pending: HashMap<MapData, FlowKey, PendingEntry>,
    local_flows: HashMap<MapData, u64, LocalFlow>,
    counters: PerCpuArray<MapData, u64>,
}

/// What keeps a backend from being drained.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Remaining {
    /// Established flows, those of this host's own sockets with them.
    pub live: u64,
    /// Flows whose handshake is under way.
    pub pending: u64,
}

impl Remaining {
    /// Everything that is waited for.
    pub const fn total(self) -> u64 {
        self.live + self.pending
    }
}

impl Reader {
    /// Opens the maps of an instance.
    pub fn open(paths: &Paths) -> Result<Self, ReadError> {
        match std::fs::metadata(&paths.maps) {
            Ok(_) => {}
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return Err(ReadError::Denied { path: paths.maps.clone() });
            }
            Err(_) => {
                let instance = paths.instance.clone();
                let is_other = others::are_there(paths).unwrap_or(false);
                return Err(if is_other {
                    ReadError::OtherVersion { instance }
                } else {
                    ReadError::NoDataPlane { instance }
                });
            }
        }
        Ok(Self {
            services: open(paths, names::SERVICES)?,
            service_info: open(paths, names::SERVICE_INFO)?,
            backends: open(paths, names::BACKENDS)?,
            backend_states: open(paths, names::BACKEND_STATES)?,
            backend_edges: open(paths, names::BACKEND_EDGES)?,
            backend_live: open(paths, names::BACKEND_LIVE)?,
            backend_stats: open(paths, names::BACKEND_STATS)?,
            backend_info: open(paths, names::BACKEND_INFO)?,
            flows: open(paths, names::FLOWS)?,
            pending: open(paths, names::PENDING)?,
            local_flows: open(paths, names::LOCAL_FLOWS)?,
            counters: open(paths, names::COUNTERS)?,
        })
    }

    /// Services, backends and counters.
    pub fn snapshot(&self) -> Result<Snapshot, ReadError> {
        let mut services = Vec::new();
        for index in 1..self.service_info.len() {
            services.push(ServiceRow {
                id: ServiceId(index as u16),
                entry: self.services.get(&index, 0).map_err(read(names::SERVICES))?,
                info: self.service_info.get(&index, 0).map_err(read(names::SERVICE_INFO))?,
            });
        }
        let mut backends = Vec::new();
        for index in 1..self.backends.len() {
            let entry = self.backends.get(&index, 0).map_err(read(names::BACKENDS))?;
            if entry.generation == 0 {
                continue;
            }
            let mut stats = BackendStats::default();
            for cpu in self.backend_stats.get(&index, 0).map_err(read(names::BACKEND_STATS))?.iter() {
                stats.steered += cpu.steered;
                stats.established += cpu.established;
                stats.resteered += cpu.resteered;
            }
            let state = self.backend_states.get(&index, 0).map_err(read(names::BACKEND_STATES))?;
            let edge = self.backend_edges.get(&index, 0).map_err(read(names::BACKEND_EDGES))?;
            backends.push(BackendRow {
                id: BackendId(index as u16),
                entry,
                info: self.backend_info.get(&index, 0).map_err(read(names::BACKEND_INFO))?,
                state,
                edge,
                live: self.backend_live.get(&index, 0).map_err(read(names::BACKEND_LIVE))?,
                stats,
            });
        }
        let services = view::services(services, backends, &self.count_pending()?, unix_boot());
        Ok(Snapshot { services, counters: self.counters()? })
    }

    /// Every flow that the tables hold, ended ones too: see [`FlowView::is_current`]. A flow whose backend's id has another
    /// generation by now belongs to a backend that is gone.
    pub fn flows(&self) -> Result<impl Iterator<Item = Result<FlowView, ReadError>>, ReadError> {
        let now = boot_secs();
        let of = move |table| {
            move |row: Result<(FlowKey, FlowEntry), _>| {
                row.map(|(key, entry)| FlowView::of_packets(&key, &entry, table, now))
            }
        };
        let flows = entries(&self.flows, names::FLOWS)?.map(of(FlowTable::Flows));
        let pending = entries(&self.pending, names::PENDING)?
            .map(|row| row.map(|(key, pending)| (key, pending.flow)))
            .map(of(FlowTable::Pending));
        let local =
            entries(&self.local_flows, names::LOCAL_FLOWS)?.map(|row| row.map(|(_, flow)| FlowView::of_socket(&flow)));
        Ok(flows.chain(pending).chain(local))
    }

    /// What one backend still has. Nothing, if its id has another generation by now: the flows died with the backend.
    ///
    /// Established flows are one number in the kernel; pending ones are only counted when that number is 0, or when asked for
    /// `exactly`: their table may hold many thousand entries.
    pub fn remaining(&self, id: BackendId, generation: u32, exactly: bool) -> Result<Remaining, ReadError> {
        let index = id.0.into();
        let live = || self.backend_live.get(&index, 0).map(live_count).map_err(read(names::BACKEND_LIVE));
        if self.generation(id)? != generation {
            return Ok(Remaining::default());
        }
        let before = live()?;
        if before > 0 && !exactly {
            return Ok(Remaining { live: before, pending: 0 });
        }
        let pending = self.count_pending()?.get(&(id, generation)).copied().unwrap_or_default();
        // Once more, and last: a flow that became established while the pending ones were counted is in this number.
        Ok(Remaining { live: live()?, pending })
    }

    /// The generation of a backend's id; 0 = the id is free.
    pub fn generation(&self, id: BackendId) -> Result<u32, ReadError> {
        Ok(self.backends.get(&id.0.into(), 0).map_err(read(names::BACKENDS))?.generation)
    }

    fn counters(&self) -> Result<Vec<(Counter, u64)>, ReadError> {
        let value = |counter: &Counter| {
            let values = self.counters.get(&(*counter as u32), 0).map_err(read(names::COUNTERS))?;
            Ok((*counter, values.iter().sum()))
        };
        Counter::ALL.iter().map(value).collect()
    }

    fn count_pending(&self) -> Result<FlowCounts, ReadError> {
        opening(&self.pending, boot_secs()).map_err(read(names::PENDING))
    }
}

/// The pinned links: what is attached.
pub fn links(paths: &Paths) -> Result<Vec<LinkName>, ReadError> {
    let list = |path: &Path| -> io::Result<Vec<LinkName>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(path)? {
            names.extend(LinkName::parse(&entry?.file_name().to_string_lossy()));
        }
        names.sort();
        Ok(names)
    };
    list(&paths.links).or_else(|source| match source.kind() {
        io::ErrorKind::NotFound => Ok(Vec::new()),
        io::ErrorKind::PermissionDenied => Err(ReadError::Denied { path: paths.links.clone() }),
        _ => Err(ReadError::List { path: paths.links.clone(), source }),
    })
}

/// Opens a pinned map.
pub(super) fn open<T: TryFrom<Map, Error = MapError>>(paths: &Paths, name: &str) -> Result<T, ReadError> {
    let path = paths.map(name);
    let map = MapData::from_pin(&path).and_then(Map::from_map_data).and_then(T::try_from);
    map.map_err(|source| match &source {
        MapError::SyscallError(SyscallError { io_error, .. }) if io_error.kind() == io::ErrorKind::PermissionDenied => {
            ReadError::Denied { path }
        }
        _ => ReadError::Open { path, source },
    })
}

fn read(map: &'static str) -> impl Fn(MapError) -> ReadError {
    move |source| ReadError::Read { map, source }
}

/// The entries of a table that the kernel keeps changing, each once.
fn entries<'map, K: Pod + Eq + Hash, V: Pod>(
    map: &'map HashMap<MapData, K, V>,
    name: &'static str,
) -> Result<impl Iterator<Item = Result<(K, V), ReadError>> + use<'map, K, V>, ReadError> {
    Ok(walk::entries(map).map_err(read(name))?.map(move |row| row.map_err(read(name))))
}
