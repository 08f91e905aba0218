//! Reads what an earlier agent applied, so that a new one goes on from there.

use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use ipnet::IpNet;
use steer_common::backend::BackendId;
use steer_common::limits::{MAX_BACKENDS, MAX_SERVICES};
use steer_common::service::{AllowKey, ServiceId};
use steer_common::state::BackendState;

use super::maps::Maps;
use super::text::unpadded;
use crate::model::desired::BackendKey;
use crate::model::frontend::Frontend;
use crate::model::plan::{Applied, AppliedBackend, AppliedService, Info};
use crate::model::{ContainerId, Gate, UnixMicros};

impl Maps {
    /// What the maps hold. Slot tables are not read back: they are written again.
    pub fn applied(&self) -> Result<Applied> {
        let mut applied = Applied::default();
        for id in 1..MAX_SERVICES {
            let info = self.service_info.get(&id, 0).with_context(|| format!("reading SERVICE_INFO[{id}]"))?;
            let name = unpadded(&info.name);
            if name.is_empty() {
                continue;
            }
            let entry = self.services.get(&id, 0).with_context(|| format!("reading SERVICES[{id}]"))?;
            let mut ports: Vec<_> = info.ports.iter().map(Frontend::from_info).collect();
            while ports.last().is_some_and(Option::is_none) {
                ports.pop();
            }
            let service = AppliedService { id: ServiceId(id as u16), entry, ports, slots: None };
            applied.services.insert(name, service);
        }
        for id in 1..MAX_BACKENDS {
            let entry = self.backends.get(&id, 0).with_context(|| format!("reading BACKENDS[{id}]"))?;
            if entry.generation == 0 {
                continue;
            }
            let info = self.backend_info.get(&id, 0).with_context(|| format!("reading BACKEND_INFO[{id}]"))?;
            let state = self.backend_states.get(&id, 0).with_context(|| format!("reading BACKEND_STATES[{id}]"))?;
            let key =
                BackendKey { container: ContainerId(unpadded(&info.container)), netns_cookie: entry.netns_cookie };
            let backend = AppliedBackend {
                id: BackendId(id as u16),
                entry,
                state: BackendState::from_u32(state.state.into()),
                gate: Gate { if_listening: state.if_listening != 0, edges: state.edges },
                info: Info {
                    name: unpadded(&info.name),
                    cause: unpadded(&info.cause),
                    since: UnixMicros(info.since_us),
                    label_weight: info.label_weight as u16,
                    operator_weight: u16::try_from(info.operator_weight).ok(),
                    maintenance: info.maintenance != 0,
                    put_in: info.put_in != 0,
                    drain: Duration::from_millis(info.drain_ms.into()),
                },
            };
            applied.last_generation = applied.last_generation.max(entry.generation);
            applied.last_backend = applied.last_backend.max(id as u16);
            applied.backends.insert(key, backend);
        }
        for pair in self.frontends.iter() {
            let (key, entry) = pair.context("reading FRONTENDS")?;
            applied.frontends.insert(key, entry);
        }
        for pair in self.endpoints.iter() {
            let (key, entry) = pair.context("reading ENDPOINTS")?;
            applied.endpoints.insert(key, entry);
        }
        for key in self.allow.keys() {
            let key = key.context("reading ALLOW")?;
            let data = key.data();
            if let Some(net) = net(&data, key.prefix_len()) {
                applied.allow.insert((ServiceId(u32::from_be(data.service_be) as u16), net));
            }
        }
        Ok(applied)
    }
}

fn net(key: &AllowKey, prefix_len: u32) -> Option<IpNet> {
    let bits = prefix_len.checked_sub(AllowKey::SERVICE_BITS)?;
    let ip = { key.addr }.to_ip();
    let bits = match ip {
        IpAddr::V4(_) => bits.checked_sub(96)?,
        IpAddr::V6(_) => bits,
    };
    IpNet::new(ip, u8::try_from(bits).ok()?).ok()
}
