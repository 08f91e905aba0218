//! Builders for tests.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use steer_common::service::Balance;
use steer_common::state::BackendState;

use super::labels::value;
use super::memory::Remembered;
use super::{Candidate, Container, ContainerId, Gate, Health, Observed, Reach, ReadyPolicy, Spec, UnixMicros};

/// The host's address in most tests.
pub(crate) const HOST: &str = "10.0.0.1";

/// Container `<service>-<number>` of that service: ready, of weight 1, `172.17.0.<number>`, started in the order of numbers.
pub(crate) fn candidate(service: &str, number: u8, ports: &str) -> Candidate {
    Candidate {
        id: ContainerId(format!("{service}-{number}")),
        run: format!("2026-01-01T00:00:{number:02}Z"),
        name: format!("{service}-{number}"),
        spec: Spec {
            service: service.to_owned(),
            ports: value::ports(ports).unwrap(),
            network: None,
            weight: 1,
            balance: Balance::RoundRobin,
            ready: ReadyPolicy::Auto,
            drain: Duration::from_secs(30),
            hold: Duration::from_secs(10),
            allow: Vec::new(),
            mesh: false,
        },
        address: [172, 17, 0, number].into(),
        reach: Reach {
            ifindex: 100 + u32::from(number),
            mac: [2, 0, 0, 0, 0, number],
            netns_id: number.into(),
            netns_cookie: number.into(),
            xdp: false,
        },
        other_ways: Vec::new(),
        state: BackendState::Ready,
        gate: Gate::default(),
        cause: "listen: listening".to_owned(),
        since: UnixMicros(number.into()),
        operator_weight: None,
        maintenance: false,
        put_in: false,
    }
}

/// A container that runs, with nothing else to say of it.
pub(crate) fn container(id: &str, name: &str) -> Container {
    Container {
        id: ContainerId(id.to_owned()),
        name: name.to_owned(),
        labels: BTreeMap::new(),
        running: true,
        paused: false,
        health: Health::None,
        pid: 1,
        stop_signal: 15,
        stop_timeout: None,
        legs: Vec::new(),
        network_mode: "default".to_owned(),
        started_at: String::new(),
    }
}

impl Candidate {
    pub(crate) fn in_state(self, state: BackendState) -> Self {
        Self { state, ..self }
    }

    pub(crate) fn of_weight(mut self, weight: u16) -> Self {
        self.spec.weight = weight;
        self
    }

    pub(crate) fn allowing(mut self, prefixes: &str) -> Self {
        self.spec.allow = value::allow(prefixes).unwrap();
        self
    }
}

/// These containers on a host with the one address.
pub(crate) fn observed(candidates: impl IntoIterator<Item = Candidate>) -> Observed {
    let candidates = candidates.into_iter().collect();
    Observed { candidates, host_addresses: [ip(HOST)].into(), ..Observed::default() }
}

/// That service without backends, with the settings of [`candidate`].
pub(crate) fn remembered_service(name: &str) -> Remembered {
    let Spec { balance, hold, allow, mesh, .. } = candidate(name, 1, "80:1").spec;
    Remembered { name: name.to_owned(), balance, hold, allow, mesh }
}

pub(crate) fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}
