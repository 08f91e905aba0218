//! Which service has which frontend: one has it, whoever else asks for it hears who.

use std::collections::{BTreeMap, BTreeSet};

use steer_common::limits::MAX_PORTS;

use super::PortIndex;
use crate::model::frontend::Frontend;
use crate::model::memory::Remembered;
use crate::model::{Candidate, Problem};

/// Frontends and their services, and what stands in the way of others.
pub(super) struct Claims<'a> {
    held: Vec<(Frontend, &'a str)>,
    /// Services with a frontend that another one of the mesh's wants too.
    contested: BTreeSet<&'a str>,
    problems: Vec<Problem>,
}

impl<'a> Claims<'a> {
    /// Who has a frontend in the maps and still wants it keeps it.
    pub(super) fn held(
        groups: &BTreeMap<&'a str, Vec<&Candidate>>,
        remembered: &'a [Remembered],
        current: &PortIndex,
    ) -> Self {
        let mut claims = Self { held: Vec::new(), contested: BTreeSet::new(), problems: Vec::new() };
        let ports = |name: &str| current.get(name).into_iter().flatten().flatten().copied();
        for (&name, candidates) in groups {
            let wanted: BTreeSet<_> =
                candidates.iter().flat_map(|candidate| candidate.spec.ports.iter().map(Frontend::of)).collect();
            ports(name).filter(|frontend| wanted.contains(frontend)).for_each(|frontend| claims.hold(name, frontend));
        }
        for empty in remembered.iter().filter(|empty| !groups.contains_key(empty.name.as_str())) {
            ports(&empty.name).for_each(|frontend| claims.hold(&empty.name, frontend));
        }
        claims
    }

    /// The ports that a service has in the maps, at their index, but for those that are no longer its own.
    pub(super) fn of(&self, name: &str, current: &PortIndex) -> Vec<Option<Frontend>> {
        let ports = current.get(name).into_iter().flatten();
        ports.map(|port| port.filter(|frontend| self.held.contains(&(*frontend, name)))).collect()
    }

    /// Claims what a candidate serves, and gives its port per index of `ports`; `None` = it got nothing.
    pub(super) fn targets(
        &mut self,
        name: &'a str,
        candidate: &Candidate,
        ports: &mut Vec<Option<Frontend>>,
    ) -> Option<[Option<u16>; MAX_PORTS]> {
        let mut targets = [None; MAX_PORTS];
        for port in &candidate.spec.ports {
            match self.claim(name, candidate.spec.mesh, Frontend::of(port), ports) {
                Ok(index) => targets[index] = Some(port.target),
                Err(message) => self.refuse(candidate, "steer.port", message),
            }
        }
        targets.iter().any(Option::is_some).then_some(targets)
    }

    /// Tells why a candidate does not get what a label asks for.
    pub(super) fn refuse(&mut self, candidate: &Candidate, label: &str, message: String) {
        self.problems.push(Problem { container: candidate.name.clone(), label: Some(label.to_owned()), message });
    }

    /// Whether another service of the mesh's wants a frontend of this one.
    pub(super) fn is_contested(&self, name: &str) -> bool {
        self.contested.contains(name)
    }

    /// In an order that does not hang on who came first.
    pub(super) fn into_problems(mut self) -> Vec<Problem> {
        self.problems.sort();
        self.problems
    }

    /// An agent that was killed while it handed a frontend over has left it to both: the first one has it.
    fn hold(&mut self, name: &'a str, frontend: Frontend) {
        if self.owner(name, &frontend).is_none() {
            self.held.push((frontend, name));
        }
    }

    /// The index of a frontend among its service's ports, or what stands in the way.
    fn claim(
        &mut self,
        name: &'a str,
        mesh: bool,
        frontend: Frontend,
        ports: &mut Vec<Option<Frontend>>,
    ) -> Result<usize, String> {
        if let Some(owner) = self.owner(name, &frontend) {
            if mesh {
                self.contested.insert(owner);
            }
            return Err(format!(
                "frontend {frontend} of service {name} belongs to service {owner} already: not steered"
            ));
        }
        let index = index_of(ports, frontend)
            .ok_or_else(|| format!("service {name} has {MAX_PORTS} ports already: {frontend} is not steered"))?;
        if !self.held.contains(&(frontend, name)) {
            self.held.push((frontend, name));
        }
        Ok(index)
    }

    /// The other service that a frontend belongs to.
    fn owner(&self, name: &str, frontend: &Frontend) -> Option<&'a str> {
        self.held.iter().find(|(other, owner)| *owner != name && other.overlaps(frontend)).map(|(_, owner)| *owner)
    }
}

/// The index of a port, a new one if need be; `None` when all are taken.
fn index_of(ports: &mut Vec<Option<Frontend>>, frontend: Frontend) -> Option<usize> {
    if let Some(index) = ports.iter().position(|port| *port == Some(frontend)) {
        return Some(index);
    }
    if ports.len() < MAX_PORTS {
        ports.push(Some(frontend));
        return Some(ports.len() - 1);
    }
    let index = ports.iter().position(Option::is_none)?;
    ports[index] = Some(frontend);
    Some(index)
}
