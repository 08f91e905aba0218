//! The host's ends of containers' veths: a program at each that leads to a backend.

use super::Agent;
use super::tracked::Tracked;
use crate::dataplane::attach;
use crate::dataplane::paths::LinkName;

impl Agent {
    /// Attaches to the host end of a container's veth.
    pub(super) fn attach_backend(&mut self, ifindex: u32) -> anyhow::Result<()> {
        if self.uplinks.veths.contains(&ifindex) {
            return Ok(());
        }
        attach::backend(&mut self.bpf, &self.settings.paths, ifindex)?;
        self.uplinks.veths.insert(ifindex);
        Ok(())
    }

    /// Takes the programs off veths that no backend is behind any more, those that an earlier agent attached to as well.
    pub(super) fn drop_unused_veths(&mut self) {
        let links = match attach::links(&self.settings.paths) {
            Ok(links) => links,
            Err(error) => return tracing::warn!(error = format!("{error:#}"), "looking for unused veths failed"),
        };
        let used = |ifindex| {
            self.applied.backends.values().any(|backend| backend.entry.ifindex == ifindex)
                || self.applied.endpoints.keys().any(|endpoint| endpoint.ifindex == ifindex)
                || self.tracked.values().any(|tracked| is_way(tracked, ifindex))
        };
        let veths = links.into_iter().filter_map(|name| match name {
            LinkName::Veth(ifindex) => Some(ifindex),
            _ => None,
        });
        let unused: Vec<_> = veths.filter(|ifindex| !used(*ifindex)).collect();
        for ifindex in unused {
            if let Err(error) = attach::remove(&self.settings.paths, &LinkName::Veth(ifindex)) {
                tracing::warn!(ifindex, error = format!("{error:#}"), "detaching from a veth failed");
            }
            self.uplinks.veths.remove(&ifindex);
        }
    }
}

/// Whether an interface is one of the host's ends that lead to a backend.
fn is_way(tracked: &Tracked, ifindex: u32) -> bool {
    tracked.reach.ifindex == ifindex || tracked.other_ways.contains(&ifindex)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::is_way;
    use crate::agent::tracked::Tracked;
    use crate::host::netns::Netns;
    use crate::model::labels::{Defaults, spec};
    use crate::model::{ContainerId, Reach};

    #[test]
    fn a_backend_that_is_not_in_the_maps_yet_has_all_of_its_ways() {
        let labels = BTreeMap::from([("steer.port".to_owned(), "80:8080".to_owned())]);
        let spec = spec("web", &labels, &Defaults::default()).unwrap().unwrap();
        let netns = Netns::at("/proc/self/ns/net").unwrap();
        let reach = Reach { ifindex: 3, mac: [0; 6], netns_id: -1, netns_cookie: 1, xdp: false };
        let id = ContainerId("a".to_owned());
        let mut tracked = Tracked::new(id, "web".to_owned(), spec, netns, [172, 17, 0, 2].into(), reach);
        tracked.other_ways = vec![5, 7];
        let ways: Vec<u32> = (1..9).filter(|ifindex| is_way(&tracked, *ifindex)).collect();
        assert_eq!(ways, [3, 5, 7]);
    }
}
