//! Carries out the operations of a plan.

use anyhow::{Context as _, Result};
use aya::maps::lpm_trie::Key;
use aya::maps::{Array, PerCpuValues};
use aya::util::nr_cpus;
use ipnet::IpNet;
use steer_common::addr::{Addr, Port};
use steer_common::backend::{BackendEntry, BackendId, BackendInfo, BackendStats};
use steer_common::edge::EdgeEntry;
use steer_common::limits::MAX_PORTS;
use steer_common::service::{AllowKey, PortInfo, ServiceEntry, ServiceId, ServiceInfo, ServiceState};
use steer_common::state::{BackendState, StateEntry};

use super::absent::removed;
use super::maps::Maps;
use super::text::padded;
use crate::model::desired::BackendKey;
use crate::model::frontend::Frontend;
use crate::model::plan::{Info, Op, SlotRecipe};
use crate::model::{Gate, ServiceName};

impl Maps {
    /// Carries out one operation.
    pub fn apply(&mut self, op: &Op) -> Result<()> {
        match op {
            Op::AddBackend { key, id, entry, info } => self.add_backend(key, *id, entry, info),
            Op::PutBackend { id, entry, .. } => {
                self.backends.set(index(*id), entry, 0).with_context(|| format!("writing BACKENDS[{}]", id.0))
            }
            Op::PutInfo { key, id, info } => self
                .backend_info
                .set(index(*id), backend_info(key, info), 0)
                .with_context(|| format!("writing BACKEND_INFO[{}]", id.0)),
            Op::SetState { id, state, gate, .. } => self.set_state(*id, *state, *gate),
            Op::RemoveBackend { id, .. } => self.remove_backend(*id),
            Op::PutEndpoint { key, entry } => {
                self.endpoints.insert(key, entry, 0).with_context(|| format!("writing ENDPOINTS[{key:?}]"))
            }
            Op::RemoveEndpoint { key } => {
                removed(self.endpoints.remove(key)).map(drop).with_context(|| format!("removing ENDPOINTS[{key:?}]"))
            }
            Op::PutService { name, id, entry, ports } => self.put_service(name, *id, entry, ports),
            Op::SwapSlots { id, slots, .. } => self.swap_slots(*id, slots),
            Op::RemoveService { id, .. } => self.remove_service(*id),
            Op::PutAllow { service, net } => {
                self.allow.insert(&allow_key(*service, net), 1, 0).with_context(|| format!("writing ALLOW[{net}]"))
            }
            Op::RemoveAllow { service, net } => removed(self.allow.remove(&allow_key(*service, net)))
                .map(drop)
                .with_context(|| format!("removing ALLOW[{net}]")),
            Op::PutFrontend { key, entry } => {
                self.frontends.insert(key, entry, 0).with_context(|| format!("writing FRONTENDS[{key:?}]"))
            }
            Op::RemoveFrontend { key } => {
                removed(self.frontends.remove(key)).map(drop).with_context(|| format!("removing FRONTENDS[{key:?}]"))
            }
        }
    }

    /// A state alone: the one write that must not wait for anything.
    pub fn set_state(&mut self, id: BackendId, state: BackendState, gate: Gate) -> Result<()> {
        let Gate { if_listening, edges } = gate;
        let entry = StateEntry { state: state as u16, if_listening: if_listening.into(), edges };
        self.backend_states.set(index(id), entry, 0).with_context(|| format!("writing BACKEND_STATES[{}]", id.0))
    }

    /// How many edges of a backend the kernel has seen.
    pub fn edges(&self, id: BackendId) -> Result<EdgeEntry> {
        self.backend_edges.get(&index(id), 0).with_context(|| format!("reading BACKEND_EDGES[{}]", id.0))
    }

    fn add_backend(&mut self, key: &BackendKey, id: BackendId, entry: &BackendEntry, info: &Info) -> Result<()> {
        let at = index(id);
        let context = || format!("adding backend {} ({})", id.0, info.name);
        // The kernel writes edges only of an id that is in use.
        self.backend_edges.set(at, EdgeEntry::default(), 0).with_context(context)?;
        self.set_state(id, BackendState::Starting, Gate::default())?;
        self.backend_live.set(at, 0, 0).with_context(context)?;
        let cpus = nr_cpus().map_err(|(path, error)| anyhow::Error::from(error).context(format!("reading {path}")))?;
        let zero = PerCpuValues::try_from(vec![BackendStats::default(); cpus]).with_context(context)?;
        self.backend_stats.set(at, zero, 0).with_context(context)?;
        self.backend_info.set(at, backend_info(key, info), 0).with_context(context)?;
        // Last: with a generation, the id is in use.
        self.backends.set(at, entry, 0).with_context(context)
    }

    fn remove_backend(&mut self, id: BackendId) -> Result<()> {
        let at = index(id);
        let context = || format!("removing backend {}", id.0);
        self.backends.set(at, BackendEntry::default(), 0).with_context(context)?;
        self.set_state(id, BackendState::Gone, Gate::default())?;
        self.backend_live.set(at, 0, 0).with_context(context)
    }

    fn put_service(
        &mut self,
        name: &ServiceName,
        id: ServiceId,
        entry: &ServiceEntry,
        ports: &[Option<Frontend>],
    ) -> Result<()> {
        let at = u32::from(id.0);
        let context = || format!("writing service {name} ({})", id.0);
        let mut info = ServiceInfo { name: padded(name), ports: [PortInfo::default(); MAX_PORTS] };
        for (place, frontend) in info.ports.iter_mut().zip(ports) {
            if let Some(frontend) = frontend {
                *place = PortInfo {
                    addr: frontend.address.map_or(Addr::UNSPECIFIED, Addr::from),
                    port: Port::new(frontend.port),
                    proto: frontend.protocol.number(),
                    pad: 0,
                };
            }
        }
        self.services.set(at, entry, 0).with_context(context)?;
        self.service_info.set(at, info, 0).with_context(context)
    }

    /// Builds the table in a map of its own and swaps it in by one update: a packet sees the old one or the new one.
    fn swap_slots(&mut self, id: ServiceId, slots: &SlotRecipe) -> Result<()> {
        let context = || format!("swapping the slot table of service {}", id.0);
        let mut inner = Array::create(1, 0).with_context(context)?;
        inner.set(0, *slots.table(), 0).with_context(context)?;
        self.slots.set(id.0.into(), &inner, 0).with_context(context)
    }

    fn remove_service(&mut self, id: ServiceId) -> Result<()> {
        let at = u32::from(id.0);
        let context = || format!("removing service {}", id.0);
        self.service_info
            .set(at, ServiceInfo { name: [0; 128], ports: [PortInfo::default(); MAX_PORTS] }, 0)
            .with_context(context)?;
        self.services.set(at, ServiceEntry::default(), 0).with_context(context)?;
        self.service_states.set(at, ServiceState::default(), 0).with_context(context)?;
        self.swap_slots(
            id,
            &SlotRecipe { balance: steer_common::service::Balance::RoundRobin, ready: Vec::new(), others: Vec::new() },
        )
    }
}

fn index(id: BackendId) -> u32 {
    id.0.into()
}

fn allow_key(service: ServiceId, net: &IpNet) -> Key<AllowKey> {
    let bits = match net {
        // The mapped form has 96 bits before the address.
        IpNet::V4(v4) => 96 + u32::from(v4.prefix_len()),
        IpNet::V6(v6) => u32::from(v6.prefix_len()),
    };
    Key::new(AllowKey::SERVICE_BITS + bits, AllowKey::new(service, net.network().into()))
}

fn backend_info(key: &BackendKey, info: &Info) -> BackendInfo {
    BackendInfo {
        container: padded(&key.container.0),
        name: padded(&info.name),
        cause: padded(&info.cause),
        since_us: info.since.0,
        operator_weight: info.operator_weight.map_or(-1, i32::from),
        maintenance: info.maintenance.into(),
        put_in: info.put_in.into(),
        label_weight: info.label_weight.into(),
        drain_ms: u32::try_from(info.drain.as_millis()).unwrap_or(u32::MAX),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_allow_list_counts_bits_from_the_service_on() {
        let key = allow_key(ServiceId(3), &"10.0.0.0/8".parse().unwrap());
        assert_eq!(key.prefix_len(), 32 + 96 + 8);
    }
}
