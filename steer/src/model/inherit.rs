//! What an earlier agent left, told as candidates: as long as Docker has not said what runs, it stands as it is.

use std::collections::BTreeSet;
use std::time::Duration;

use steer_common::addr::Port;
use steer_common::backend::{BackendEntry, BackendId};
use steer_common::endpoint::EndpointKey;
use steer_common::service::Balance;

use super::desired::BackendKey;
use super::plan::{Applied, AppliedBackend, AppliedService};
use super::{Candidate, ContainerId, PortSpec, Reach, ReadyPolicy, ServiceName, Spec};

impl Applied {
    /// The backends in the maps, as candidates whose plan changes nothing.
    pub fn candidates(&self) -> Vec<Candidate> {
        let candidate = |(key, backend): (&BackendKey, &AppliedBackend)| {
            let (name, service) = self.service_with(backend)?;
            Some(self.candidate(key, backend, name, service))
        };
        self.backends.iter().filter_map(candidate).collect()
    }

    /// The same of one container.
    pub fn candidate_of(&self, id: &ContainerId) -> Option<Candidate> {
        let (key, backend) = self.backends.iter().find(|(key, _)| key.container == *id)?;
        let (name, service) = self.service_with(backend)?;
        Some(self.candidate(key, backend, name, service))
    }

    fn service_with(&self, backend: &AppliedBackend) -> Option<(&ServiceName, &AppliedService)> {
        self.services.iter().find(|(_, service)| service.id == backend.entry.service)
    }

    fn candidate(
        &self,
        key: &BackendKey,
        backend: &AppliedBackend,
        name: &ServiceName,
        service: &AppliedService,
    ) -> Candidate {
        let AppliedBackend { id, entry, state, gate, info } = backend;
        let ports = service.ports.iter().zip(entry.targets).filter(|(_, target)| *target != Port::NONE);
        let allow = self.allow.iter().filter(|(id, _)| *id == service.id).map(|(_, net)| *net);
        let spec = Spec {
            service: name.clone(),
            ports: ports
                .filter_map(|(listen, target)| {
                    let listen = (*listen)?;
                    Some(PortSpec {
                        address: listen.address,
                        port: listen.port,
                        target: target.get(),
                        protocol: listen.protocol,
                    })
                })
                .collect(),
            network: None,
            weight: info.label_weight,
            balance: Balance::from_u8(service.entry.balance),
            // Its state is known, and nobody asks how.
            ready: ReadyPolicy::Auto,
            drain: info.drain,
            hold: Duration::from_nanos(service.entry.hold_ns),
            allow: allow.collect(),
            mesh: service.entry.has_mesh(),
        };
        Candidate {
            id: key.container.clone(),
            // Not known, and older than whatever starts from now on.
            run: String::new(),
            name: info.name.clone(),
            spec,
            address: entry.addr.to_ip(),
            reach: Reach {
                ifindex: entry.ifindex,
                mac: entry.mac,
                netns_id: entry.netns_id,
                netns_cookie: key.netns_cookie,
                xdp: entry.flags & BackendEntry::XDP != 0,
            },
            other_ways: self.other_ways(*id, entry.ifindex),
            state: *state,
            gate: *gate,
            cause: info.cause.clone(),
            since: info.since,
            operator_weight: info.operator_weight,
            maintenance: info.maintenance,
            put_in: info.put_in,
        }
    }
}

impl Applied {
    /// The interfaces, but for one, whose packets may be replies of a backend.
    fn other_ways(&self, id: BackendId, but: u32) -> Vec<u32> {
        let is_way = |key: &EndpointKey| key.ifindex != but && !key.is_inside();
        let own = self.endpoints.iter().filter(|(key, entry)| entry.backend == id && is_way(key));
        own.map(|(key, _)| key.ifindex).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use steer_common::state::BackendState;

    use super::*;
    use crate::model::desired::desired;
    use crate::model::plan::{Op, plan};
    use crate::model::{ContainerId, Gate, Observed, Protocol, UnixMicros};

    fn candidate(name: &str, number: u8, service: &str, ports: &[(Option<&str>, u16, u16)]) -> Candidate {
        let port = |&(address, port, target): &(Option<&str>, u16, u16)| PortSpec {
            address: address.map(|address| address.parse().unwrap()),
            port,
            target,
            protocol: Protocol::Tcp,
        };
        Candidate {
            id: ContainerId(format!("{number:064}")),
            run: format!("2026-01-01T00:00:0{number}Z"),
            name: name.to_owned(),
            spec: Spec {
                service: service.to_owned(),
                ports: ports.iter().map(port).collect(),
                network: None,
                weight: 3,
                balance: Balance::Maglev,
                ready: ReadyPolicy::Health,
                drain: Duration::from_secs(7),
                hold: Duration::from_millis(1500),
                allow: vec!["10.0.0.0/8".parse().unwrap(), "192.0.2.7/32".parse().unwrap()],
                mesh: true,
            },
            address: [172, 17, 0, number].into(),
            reach: Reach {
                ifindex: number.into(),
                mac: [number; 6],
                netns_id: number.into(),
                netns_cookie: number.into(),
                xdp: number.is_multiple_of(2),
            },
            other_ways: Vec::new(),
            state: BackendState::Ready,
            gate: Gate::default(),
            cause: "health: healthy".to_owned(),
            since: UnixMicros(number.into()),
            operator_weight: None,
            maintenance: false,
            put_in: false,
        }
    }

    fn carry_out(observed: &Observed, applied: &mut Applied) -> Vec<Op> {
        let (desired, problems) = desired(observed, &applied.port_index());
        assert_eq!(problems, []);
        let (ops, problems) = plan(&desired, applied, 1000);
        assert_eq!(problems, []);
        ops.iter().for_each(|op| applied.note(op));
        ops
    }

    #[test]
    fn what_was_left_stands_as_it_is() {
        let drained = Candidate {
            state: BackendState::Maintenance,
            maintenance: true,
            put_in: true,
            operator_weight: Some(0),
            ..candidate("web-2", 3, "web", &[(Some("10.0.0.1"), 9001, 5001)])
        };
        let candidates = vec![
            candidate("web-1", 2, "web", &[(None, 9000, 5000), (Some("10.0.0.1"), 9001, 5001)]),
            drained,
            candidate("api-1", 4, "api", &[(None, 8080, 80)]),
        ];
        let observed = Observed { candidates, host_addresses: [[10, 0, 0, 1].into()].into(), ..Observed::default() };
        let mut applied = Applied::default();
        assert_ne!(carry_out(&observed, &mut applied), []);

        let inherited = Observed { candidates: applied.candidates(), ..observed.clone() };
        assert_eq!(inherited.candidates.len(), 3);
        assert_eq!(carry_out(&inherited, &mut applied), []);
        assert_eq!(carry_out(&observed, &mut applied), [], "and nothing when Docker has told");
    }
}
