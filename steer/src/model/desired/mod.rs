//! Which services and backends there should be: candidates grouped by service, conflicts found.

mod claims;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::time::Duration;

use ipnet::IpNet;
use steer_common::limits::{MAX_MEMBERS, MAX_PORTS};
use steer_common::service::Balance;
use steer_common::state::BackendState;

use self::claims::Claims;
use super::frontend::Frontend;
use super::memory::Remembered;
use super::{Candidate, ContainerId, Gate, Observed, Problem, Reach, ServiceName, Spec, UnixMicros};

/// What the maps should hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Desired {
    pub services: BTreeMap<ServiceName, DesiredService>,
    pub host_addresses: BTreeSet<IpAddr>,
    /// Frontends there follow what is known, and take nothing new.
    pub lost_addresses: BTreeSet<IpAddr>,
    /// The same of these, until the last task that serves there has ended: then they are the other service's.
    pub moved: BTreeSet<(ServiceName, Frontend)>,
    /// steer is being detached: no new flows.
    pub closing: bool,
}

/// One service. Its attributes are those of the container that started last, of those that are steered to: a new version
/// brings its own.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct DesiredService {
    /// Index = port index. A port that was given up leaves a hole while flows may use its index.
    pub ports: Vec<Option<Frontend>>,
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
    pub put_in: bool,
    pub drain: Duration,
}

impl DesiredBackend {
    fn of(candidate: &Candidate, targets: [Option<u16>; MAX_PORTS]) -> Self {
        Self {
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
            put_in: candidate.put_in,
            drain: candidate.spec.drain,
        }
    }

    /// The operator's weight, else the label's.
    pub fn weight(&self) -> u16 {
        self.operator_weight.unwrap_or(self.label_weight)
    }
}

/// Ports by index, per service, as the maps have them now: indices of living flows must not change their meaning.
pub type PortIndex = BTreeMap<ServiceName, Vec<Option<Frontend>>>;

/// What there should be, and what stands in the way of the rest.
pub fn desired(observed: &Observed, current: &PortIndex) -> (Desired, Vec<Problem>) {
    let groups = grouped(&observed.candidates);
    let mut claims = Claims::held(&groups, &observed.remembered, current);
    // A frontend that nobody has goes to a service that is in the maps before others, then in the order of names.
    let mut names: Vec<&str> = groups.keys().copied().collect();
    names.sort_by_key(|name| (!current.contains_key(*name), *name));

    let mut services = BTreeMap::new();
    for name in names {
        if let Some(service) = service(name, &groups[name], current, &mut claims) {
            services.insert(name.to_owned(), service);
        }
    }
    for empty in observed.remembered.iter().filter(|empty| !groups.contains_key(empty.name.as_str())) {
        let Remembered { name, balance, hold, allow, mesh } = empty;
        let ports = claims.of(name, current);
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
        service.all_here =
            service.mesh && observed.all_here.contains(name) && !is_left_out && !claims.is_contested(name);
    }
    let Observed { host_addresses, lost_addresses, moved, closing, .. } = observed;
    let (host_addresses, lost_addresses) = (host_addresses.clone(), lost_addresses.clone());
    let desired = Desired { services, host_addresses, lost_addresses, moved: moved.clone(), closing: *closing };
    (desired, claims.into_problems())
}

/// Candidates by the service that they name, each service's oldest first.
fn grouped(candidates: &[Candidate]) -> BTreeMap<&str, Vec<&Candidate>> {
    let mut groups: BTreeMap<&str, Vec<&Candidate>> = BTreeMap::new();
    for candidate in candidates {
        groups.entry(&candidate.spec.service).or_default().push(candidate);
    }
    for group in groups.values_mut() {
        // Docker leaves the zeros at the end of a fraction out: without the `Z` after it, a shorter one is the earlier one.
        group.sort_by_key(|candidate| (candidate.run.trim_end_matches('Z'), &candidate.id));
    }
    groups
}

/// One service of the candidates that name it, oldest first.
fn service<'a>(
    name: &'a str,
    candidates: &[&Candidate],
    current: &PortIndex,
    claims: &mut Claims<'a>,
) -> Option<DesiredService> {
    let mut newest = None;
    let mut ports = claims.of(name, current);
    let mut backends: BTreeMap<BackendKey, DesiredBackend> = BTreeMap::new();
    for candidate in candidates {
        if backends.len() == MAX_MEMBERS {
            let full = format!("service {name} has {MAX_MEMBERS} backends already: not steered");
            claims.refuse(candidate, "steer.service", full);
            continue;
        }
        let Some(targets) = claims.targets(name, candidate, &mut ports) else { continue };
        newest = Some(&candidate.spec);
        let key = BackendKey { container: candidate.id.clone(), netns_cookie: candidate.reach.netns_cookie };
        backends.insert(key, DesiredBackend::of(candidate, targets));
    }
    // A port nobody serves any more is no frontend.
    for (index, port) in ports.iter_mut().enumerate() {
        if backends.values().all(|backend| backend.targets[index].is_none()) {
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
