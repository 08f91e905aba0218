//! The static services of the configuration file: their backends are network namespaces on this host.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr};

use super::observe::is_same_place;
use super::tracked::Tracked;
use super::{Agent, Source};
use crate::config::{StaticBackend, StaticService};
use crate::host::netns::{Netns, ReachError, enable_gro, identity, reach};
use crate::model::cause::{self, Cause};
use crate::model::{ContainerId, Problem, Reach};

impl Agent {
    pub(super) fn has_statics(&self) -> bool {
        !self.settings.config.services.is_empty()
    }

    /// Whether a namespace has come, has gone, or was made anew under its name, or has to be looked at once more: nobody tells, and the
    /// one that is steered to lives on for as long as it is held open here.
    pub(super) fn statics_changed(&self) -> bool {
        let mut backends = self.settings.config.services.iter().flat_map(|service| &service.backends);
        backends.any(|backend| {
            let tracked = self.tracked.get(&ContainerId::of_netns(&backend.netns));
            let is_other = identity(&backend.netns) != tracked.and_then(|tracked| tracked.netns.identity());
            is_other || tracked.is_some_and(|tracked| tracked.has_problem)
        })
    }

    /// Looks for the namespaces of the static services: new ones are taken in, others are gone.
    pub(super) fn read_statics(&mut self) {
        let services = self.settings.config.services.clone();
        let mut there = BTreeSet::new();
        for service in &services {
            for backend in &service.backends {
                let id = ContainerId::of_netns(&backend.netns);
                if let Err(error) = self.read_static(&id, service, backend) {
                    let message = format!("{error:#}");
                    let problem = Problem::of(backend.name.clone(), message);
                    let there = identity(&backend.netns);
                    let is_same = |before: &Tracked| there.is_some() && before.netns.identity() == there;
                    self.keep_or_refuse(&id, problem, is_same);
                }
                there.insert(id);
            }
        }
        let gone: Vec<_> = self.tracked.keys().filter(|id| id.is_static() && !there.contains(*id)).cloned().collect();
        for id in gone {
            self.forget(&id, Cause::new(cause::Source::Config, "no such static backend"));
        }
    }

    fn read_static(
        &mut self,
        id: &ContainerId,
        service: &StaticService,
        backend: &StaticBackend,
    ) -> anyhow::Result<()> {
        let netns = Netns::at(&backend.netns)?;
        let before = self.tracked.get(id).filter(|before| before.netns.identity() == netns.identity());
        let address_before = before.map(|before| before.address).or_else(|| self.left_address(id, &netns));
        let (address, mut found) = find(&netns, backend.address, address_before)?;
        if self.uplinks.has_xdp() && !found.xdp {
            found.xdp = enable_gro(&netns, address).unwrap_or_else(|error| {
                tracing::debug!(backend = backend.name, %error, "switching GRO on failed: reached through tc");
                false
            });
        }
        let is_as_known = |before: &Tracked| before.reach == found && before.address == address && !before.has_problem;
        if before.is_some_and(is_as_known) {
            return Ok(());
        }
        if !before.is_some_and(|before| is_same_place(&before.reach, &found) && before.address == address) {
            self.forget(id, Cause::new(cause::Source::Config, "the namespace is another one"));
        }
        self.attach_backend(found.ifindex)?;
        let name = backend.name.clone();
        let mut tracked = Tracked {
            cause: Cause::new(cause::Source::Config, "static backend"),
            ..Tracked::new(id.clone(), name, service.spec(backend), netns, address, found)
        };
        self.go_on(&mut tracked);
        self.problems.remove(&Source::Container(id.clone()));
        self.insert(tracked);
        Ok(())
    }

    /// The address by which an earlier agent steered to this very namespace.
    fn left_address(&self, id: &ContainerId, netns: &Netns) -> Option<IpAddr> {
        let left = self.applied.candidate_of(id)?;
        netns.cookie().is_ok_and(|cookie| cookie == left.reach.netns_cookie).then_some(left.address)
    }
}

/// How a backend is reached: by the address that it is `configured` with, else by the one `before`, which others that have come since do
/// not change, else by the only one it has.
fn find(netns: &Netns, configured: Option<Ipv4Addr>, before: Option<IpAddr>) -> Result<(IpAddr, Reach), ReachError> {
    let as_before = || before.and_then(|before| reach(netns, Some(before)).ok());
    match configured {
        Some(configured) => reach(netns, Some(configured.into())),
        None => as_before().map_or_else(|| reach(netns, None), Ok),
    }
}
