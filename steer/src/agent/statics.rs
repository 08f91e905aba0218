//! The static services of the configuration file: their backends are network namespaces on this host.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::Agent;
use super::tracked::Tracked;
use crate::config::{StaticBackend, StaticService};
use crate::host::netns::{Netns, enable_gro, identity, reach};
use crate::model::cause::{Cause, Source};
use crate::model::{ContainerId, Problem};

impl Agent {
    pub(super) fn has_statics(&self) -> bool {
        !self.settings.config.services.is_empty()
    }

    /// Whether a namespace has come, has gone, or was made anew under its name: nobody tells, and the one that is steered to
    /// lives on for as long as it is held open here.
    pub(super) fn statics_changed(&self) -> bool {
        let backends = self.settings.config.services.iter().flat_map(|service| &service.backends);
        let mut pairs = backends
            .map(|backend| (identity(&backend.netns), self.tracked.get(&ContainerId::of_netns(&backend.netns))));
        pairs.any(|(there, tracked)| there != tracked.and_then(|tracked| tracked.netns.identity()))
    }

    /// Looks for the namespaces of the static services: new ones are taken in, others are gone.
    pub(super) fn read_statics(&mut self) {
        let services = self.settings.config.services.clone();
        let mut there = BTreeSet::new();
        for service in &services {
            for backend in &service.backends {
                let id = ContainerId::of_netns(&backend.netns);
                match self.read_static(&id, service, backend) {
                    Ok(()) => {
                        there.insert(id);
                    }
                    Err(error) => {
                        let message = format!("{error:#}");
                        self.refuse(&id, vec![Problem { container: backend.name.clone(), label: None, message }]);
                    }
                }
            }
        }
        let gone: Vec<_> = self.tracked.keys().filter(|id| id.is_static() && !there.contains(*id)).cloned().collect();
        for id in gone {
            self.forget(&id, Cause::new(Source::Config, "no such static backend"));
        }
    }

    fn read_static(
        &mut self,
        id: &ContainerId,
        service: &StaticService,
        backend: &StaticBackend,
    ) -> anyhow::Result<()> {
        let netns = Netns::at(&backend.netns)?;
        let wanted = backend.address.map(IpAddr::V4);
        let (address, mut found) = reach(&netns, wanted)?;
        if self.uplinks.has_xdp() && !found.xdp {
            found.xdp = enable_gro(&netns, address)?;
        }
        let known = self.tracked.get(id).is_some_and(|tracked| tracked.reach == found && tracked.address == address);
        if known {
            return Ok(());
        }
        self.forget(id, Cause::new(Source::Config, "the namespace is another one"));
        self.attach_backend(found.ifindex)?;
        let name = backend.name.clone();
        let mut tracked = Tracked {
            cause: Cause::new(Source::Config, "static backend"),
            ..Tracked::new(id.clone(), name, service.spec(backend), netns, address, found)
        };
        self.resume(&tracked.key(), &mut tracked);
        if tracked.by_listening() {
            tracked.look();
        }
        self.insert(tracked);
        Ok(())
    }
}
