//! Which services and backends there should be: candidates grouped by service, conflicts found.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use steer_common::backend::BackendState;
use steer_common::limits::{MAX_MEMBERS, MAX_PORTS};
use steer_common::service::Balance;

use super::memory::Remembered;
use super::{
    Candidate, ContainerId, Gate, Observed, PortSpec, Problem, Protocol, Reach, ServiceName, Spec, UnixMicros,
};

/// A frontend as its label wrote it: `address` `None` = every address of the host.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
pub struct Listen {
    pub address: Option<IpAddr>,
    pub port: u16,
    pub protocol: Protocol,
}

impl Listen {
    fn of(spec: &PortSpec) -> Self {
        Self { address: spec.address, port: spec.port, protocol: spec.protocol }
    }

    /// Whether some packet could be for both.
    fn overlaps(&self, other: &Self) -> bool {
        self.port == other.port
            && self.protocol == other.protocol
            && (self.address == other.address || self.address.is_none() || other.address.is_none())
    }
}

/// What the maps should hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    pub services: BTreeMap<ServiceName, DesiredService>,
    pub host_addresses: BTreeSet<IpAddr>,
    /// steer is being detached: no new flows.
    pub closing: bool,
}

/// One service. Its attributes are those of the container that started last, of those that are steered to: a new version
/// brings its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredService {
    /// Index = port index. A port that was given up leaves a hole while flows may use its index.
    pub ports: Vec<Option<Listen>>,
    pub balance: Balance,
    pub hold: Duration,
    pub allow: Vec<IpNet>,
    pub mesh: bool,
    /// See [`ServiceEntry::ALL_HERE`](steer_common::service::ServiceEntry::ALL_HERE).
    pub all_here: bool,
    pub backends: BTreeMap<BackendKey, DesiredBackend>,
}

/// One run of a container: a restarted one has a new namespace, and its flows are dead.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct BackendKey {
    pub container: ContainerId,
    pub netns_cookie: u64,
}

/// One backend.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredBackend {
    pub name: String,
    pub address: IpAddr,
    pub reach: Reach,
    pub other_ways: Vec<u32>,
    /// The container's port per port index, where it serves that one.
    pub targets: [Option<u16>; MAX_PORTS],
    pub state: BackendState,
    pub gate: Gate,
    pub cause: String,
    pub since: UnixMicros,
    pub label_weight: u16,
    pub operator_weight: Option<u16>,
    pub maintenance: bool,
    pub drain: Duration,
}

impl DesiredBackend {
    /// The operator's weight, else the label's.
    pub fn weight(&self) -> u16 {
        self.operator_weight.unwrap_or(self.label_weight)
    }
}

/// Ports by index, per service, as the maps have them now: indices of living flows must not change their meaning.
pub type PortIndex = BTreeMap<ServiceName, Vec<Option<Listen>>>;

/// What there should be, and what stands in the way of the rest.
pub fn desired(observed: &Observed, current: &PortIndex) -> (Desired, Vec<Problem>) {
    let mut problems = Vec::new();
    let mut groups: BTreeMap<&str, Vec<&Candidate>> = BTreeMap::new();
    for candidate in &observed.candidates {
        groups.entry(&candidate.spec.service).or_default().push(candidate);
    }
    // Who has a frontend keeps it; a new one goes to a service that is in the maps before others, then in the order of names.
    let mut claimed = held(&groups, &observed.remembered, current);
    let mut names: Vec<&str> = groups.keys().copied().collect();
    names.sort_by_key(|name| (!current.contains_key(*name), *name));

    let mut services = BTreeMap::new();
    // Those with a frontend that another service of the mesh's wants too.
    let mut contested = BTreeSet::new();
    for name in names {
        let Some(candidates) = groups.get_mut(name) else { continue };
        // Docker leaves the zeros at the end of a fraction out: without the `Z` after it, a shorter one is the earlier one.
        candidates.sort_by_key(|candidate| (candidate.run.trim_end_matches('Z'), &candidate.id));
        if let Some(service) = service(name, candidates, current.get(name), &mut claimed, &mut contested, &mut problems)
        {
            services.insert(name.to_owned(), service);
        }
    }
    for empty in observed.remembered.iter().filter(|empty| !groups.contains_key(empty.name.as_str())) {
        let Remembered { name, balance, hold, allow, mesh } = empty;
        let ports = still_held(name, current.get(name), &claimed);
        if ports.iter().any(Option::is_some) {
            let (balance, hold, allow, mesh, backends) = (*balance, *hold, allow.clone(), *mesh, BTreeMap::new());
            services
                .insert(name.clone(), DesiredService { ports, balance, hold, allow, mesh, all_here: false, backends });
        }
    }
    for (name, service) in &mut services {
        // One that there is no room for, or no port, is served by the mesh alone.
        let is_left_out = groups.get(name.as_str()).is_some_and(|group| group.len() > service.backends.len());
        // At a port that the mesh has given to another service by now, it has somebody.
        let is_contested = contested.contains(name.as_str());
        service.all_here = service.mesh && observed.all_here.contains(name) && !is_left_out && !is_contested;
    }
    // In an order that does not hang on who came first.
    problems.sort();
    let desired = Desired { services, host_addresses: observed.host_addresses.clone(), closing: observed.closing };
    (desired, problems)
}

/// The frontends that are in the maps and still wanted, each with its service.
fn held<'a>(
    groups: &BTreeMap<&'a str, Vec<&Candidate>>,
    remembered: &'a [Remembered],
    current: &PortIndex,
) -> Vec<(Listen, &'a str)> {
    let mut held: Vec<(Listen, &str)> = Vec::new();
    let mut hold = |name: &'a str, listen: Listen| {
        // An agent that was killed while it handed a frontend over has left it to both.
        if owner(&held, name, &listen).is_none() {
            held.push((listen, name));
        }
    };
    let ports = |name: &str| current.get(name).into_iter().flatten().flatten().copied();
    for (&name, candidates) in groups {
        let wanted: BTreeSet<_> =
            candidates.iter().flat_map(|candidate| candidate.spec.ports.iter().map(Listen::of)).collect();
        ports(name).filter(|listen| wanted.contains(listen)).for_each(|listen| hold(name, listen));
    }
    for empty in remembered.iter().filter(|empty| !groups.contains_key(empty.name.as_str())) {
        ports(&empty.name).for_each(|listen| hold(&empty.name, listen));
    }
    held
}

/// The ports a service has in the maps, at their index, but for those that are no longer its own.
fn still_held(name: &str, current: Option<&Vec<Option<Listen>>>, claimed: &[(Listen, &str)]) -> Vec<Option<Listen>> {
    let held = |port: Option<Listen>| port.filter(|listen| claimed.contains(&(*listen, name)));
    current.into_iter().flatten().map(|port| held(*port)).collect()
}

/// The other service that a frontend belongs to.
fn owner<'a>(claimed: &[(Listen, &'a str)], name: &str, listen: &Listen) -> Option<&'a str> {
    claimed.iter().find(|(other, owner)| *owner != name && other.overlaps(listen)).map(|(_, owner)| *owner)
}

/// One service of the candidates that name it, oldest first.
fn service<'a>(
    name: &'a str,
    candidates: &[&Candidate],
    current: Option<&Vec<Option<Listen>>>,
    claimed: &mut Vec<(Listen, &'a str)>,
    contested: &mut BTreeSet<&'a str>,
    problems: &mut Vec<Problem>,
) -> Option<DesiredService> {
    let mut newest = None;
    let mut ports = still_held(name, current, claimed);
    let mut backends = BTreeMap::new();
    for candidate in candidates {
        let problem = |message: String, label: &str| Problem {
            container: candidate.name.clone(),
            label: Some(label.to_owned()),
            message,
        };
        if backends.len() == MAX_MEMBERS {
            problems.push(problem(
                format!("service {name} has {MAX_MEMBERS} backends already: not steered"),
                "steer.service",
            ));
            continue;
        }
        let mut targets = [None; MAX_PORTS];
        let mut serves = false;
        for port in &candidate.spec.ports {
            let listen = Listen::of(port);
            if let Some(owner) = owner(claimed, name, &listen) {
                if candidate.spec.mesh {
                    contested.insert(owner);
                }
                problems.push(problem(
                    format!(
                        "frontend {} of service {name} belongs to service {owner} already: not steered",
                        show(&listen)
                    ),
                    "steer.port",
                ));
                continue;
            }
            let Some(index) = index_of(&mut ports, listen) else {
                problems.push(problem(
                    format!("service {name} has {MAX_PORTS} ports already: {} is not steered", show(&listen)),
                    "steer.port",
                ));
                continue;
            };
            if !claimed.contains(&(listen, name)) {
                claimed.push((listen, name));
            }
            targets[index] = Some(port.target);
            serves = true;
        }
        if !serves {
            continue;
        }
        newest = Some(&candidate.spec);
        let key = BackendKey { container: candidate.id.clone(), netns_cookie: candidate.reach.netns_cookie };
        backends.insert(
            key,
            DesiredBackend {
                name: candidate.name.clone(),
                address: candidate.address,
                reach: candidate.reach,
                other_ways: candidate.other_ways.clone(),
                targets,
                state: candidate.state,
                gate: candidate.gate,
                cause: candidate.cause.clone(),
                since: candidate.since,
                label_weight: candidate.spec.weight,
                operator_weight: candidate.operator_weight,
                maintenance: candidate.maintenance,
                drain: candidate.spec.drain,
            },
        );
    }
    // A port nobody serves any more is no frontend.
    for (index, port) in ports.iter_mut().enumerate() {
        if !backends.values().any(|backend: &DesiredBackend| backend.targets[index].is_some()) {
            *port = None;
        }
    }
    let Spec { balance, hold, allow, mesh, .. } = newest?;
    Some(DesiredService {
        ports,
        balance: *balance,
        hold: *hold,
        allow: allow.clone(),
        mesh: *mesh,
        all_here: false,
        backends,
    })
}

/// The index of a port, a new one if need be; `None` when all are taken.
fn index_of(ports: &mut Vec<Option<Listen>>, listen: Listen) -> Option<usize> {
    if let Some(index) = ports.iter().position(|port| *port == Some(listen)) {
        return Some(index);
    }
    if ports.len() < MAX_PORTS {
        ports.push(Some(listen));
        return Some(ports.len() - 1);
    }
    let index = ports.iter().position(Option::is_none)?;
    ports[index] = Some(listen);
    Some(index)
}

/// A frontend as people write it.
pub fn show(listen: &Listen) -> String {
    let address = listen.address.map_or_else(|| "0.0.0.0".to_owned(), |address| address.to_string());
    let protocol = match listen.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!("{address}:{}/{protocol}", listen.port)
}
