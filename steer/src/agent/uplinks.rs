//! Where clients come in: attach there, and follow the host's interfaces and addresses.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, bail, ensure};
use aya::programs::xdp::XdpMode;

use super::{Agent, Source};
use crate::api::Attachment;
use crate::cli::AttachMode;
use crate::dataplane::attach;
use crate::dataplane::paths::LinkName;
use crate::host::addresses::{HostChange, addresses};
use crate::host::clock::since_boot;
use crate::host::links::{Link, link, links, uplinks};
use crate::model::Problem;

/// What is attached.
#[derive(Debug, Default)]
pub(super) struct Uplinks {
    /// Interface name → its index and hooks.
    pub(super) attached: BTreeMap<String, Attached>,
    /// Of those, interfaces that are kept for their open connections alone.
    in_use: BTreeSet<String>,
    /// Host ends of backends' veths.
    pub(super) veths: BTreeSet<u32>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Attached {
    index: u32,
    xdp: bool,
}

impl Uplinks {
    /// Whether packets may come to a backend straight from XDP.
    pub(super) fn has_xdp(&self) -> bool {
        self.attached.values().any(|attached| attached.xdp)
    }

    pub(super) fn attachments(&self) -> Vec<Attachment> {
        let mut list = Vec::new();
        for (interface, attached) in &self.attached {
            if attached.xdp {
                list.push(Attachment { interface: interface.clone(), hook: "xdp".to_owned() });
            }
            list.push(Attachment { interface: interface.clone(), hook: attach::ingress_hook().to_owned() });
        }
        list
    }
}

/// Fails when an interface that was asked for by name does not exist: told at the start, when someone is looking.
pub fn check(interfaces: &[String]) -> Result<()> {
    for name in interfaces {
        if link(name).with_context(|| format!("looking up interface {name}"))?.is_none() {
            let there: Vec<_> = links()?.into_iter().map(|link| link.name).collect();
            bail!("interface {name} does not exist; there are: {}", there.join(", "));
        }
    }
    Ok(())
}

impl Agent {
    /// Reads what changed of the host's addresses and interfaces, and attaches where steer is not yet.
    pub(super) fn read_host(&mut self, change: HostChange) -> Result<()> {
        if change.is_routes_alone() && !self.settings.interfaces.is_empty() {
            return Ok(());
        }
        if change.addresses {
            self.host_addresses.look(addresses().context("reading the host's addresses")?, since_boot());
        }
        let all = links().context("listing interfaces")?;
        let mut wanted = self.wanted(&all)?;
        let in_use = self.in_use(&wanted, change)?;
        self.uplinks.in_use = in_use.iter().map(|link| link.name.clone()).collect();
        wanted.extend(in_use.into_iter().map(|link| (link, true)));
        self.follow_renamed(&wanted)?;
        let names: BTreeSet<_> = wanted.iter().map(|(link, _)| link.name.clone()).collect();
        let mut problems = Vec::new();
        for (link, is_uplink) in wanted {
            let before = self.uplinks.attached.get(&link.name).copied().filter(|before| before.index == link.index);
            let mode = self.settings.attach;
            let has_xdp = before.is_some_and(|before| before.xdp);
            let xdp = if is_uplink { wants_xdp(mode, &link, &all, has_xdp) } else { has_xdp };
            if before.is_some_and(|before| stays(before, xdp, mode)) {
                continue;
            }
            if has_xdp && !xdp {
                tracing::info!(
                    interface = link.name,
                    "there are VLANs on it by now, or on its bridge or bond: native XDP may not see their tags"
                );
            }
            let attached = self.attach_uplink(&link, xdp).unwrap_or_else(|error| (before, Some(error)));
            let (attached, refused) = attached;
            if let Some(attached) = attached.filter(|attached| before != Some(*attached)) {
                tracing::info!(interface = link.name, xdp = attached.xdp, "attached");
                self.uplinks.attached.insert(link.name.clone(), attached);
            }
            if let Some(error) = refused {
                problems.push(Problem::of(link.name, format!("{error:#}")));
            }
        }
        self.uplinks.attached.retain(|name, _| names.contains(name));
        self.remove_stale_links()?;
        self.say(Source::Uplink, problems);
        Ok(())
    }

    /// Where an interface has got another name, what is attached to it stays.
    fn follow_renamed(&mut self, wanted: &[(Link, bool)]) -> Result<()> {
        let renamed = |(name, before): (&String, &Attached)| {
            let (link, _) = wanted.iter().find(|(link, _)| link.index == before.index && link.name != *name)?;
            Some((name.clone(), link.name.clone(), *before))
        };
        let renamed: Vec<_> = self.uplinks.attached.iter().filter_map(renamed).collect();
        // Two may have changed names: each leaves its own first, and is called by its number meanwhile.
        let meanwhile = |before: &Attached| format!("~{}", before.index);
        for (from, _, before) in &renamed {
            attach::rename(&self.settings.paths, from, &meanwhile(before))?;
            self.uplinks.attached.remove(from);
        }
        for (from, to, before) in renamed {
            attach::rename(&self.settings.paths, &meanwhile(&before), &to)?;
            tracing::info!(from, to, "an interface has another name");
            self.uplinks.attached.insert(to, before);
        }
        Ok(())
    }

    /// Interfaces to attach to; `true` = an uplink, `false` = one of Docker's bridges, which containers call frontends by.
    fn wanted(&self, all: &[Link]) -> Result<Vec<(Link, bool)>> {
        let mut wanted = Vec::new();
        if self.settings.interfaces.is_empty() {
            wanted.extend(uplinks().context("looking for uplinks")?.into_iter().map(|link| (link, true)));
        } else {
            for name in &self.settings.interfaces {
                match link(name).with_context(|| format!("looking up interface {name}"))? {
                    Some(link) => wanted.push((link, true)),
                    None => tracing::warn!(interface = name, "interface is gone; steer attaches when it is back"),
                }
            }
        }
        for bridge in all.iter().filter(|link| link.is("bridge")) {
            if !wanted.iter().any(|(link, _)| link.index == bridge.index) {
                wanted.push((bridge.clone(), false));
            }
        }
        Ok(wanted)
    }

    /// Interfaces that no default route leads over any more, with open connections that came in there: they are left with the last of
    /// them, which the next resync sees. Where somebody has said which interfaces to attach to, it is those alone.
    fn in_use(&self, wanted: &[(Link, bool)], change: HostChange) -> Result<Vec<Link>> {
        let mut in_use = Vec::new();
        for name in attach::links(&self.settings.paths)? {
            let LinkName::Tcx(name) = name else { continue };
            if !self.settings.interfaces.is_empty() || wanted.iter().any(|(link, _)| link.name == name) {
                continue;
            }
            if let Some(link) = link(&name).with_context(|| format!("looking up interface {name}"))?
                && (self.is_known_in_use(&name, change) || self.maps.has_flows_by(link.index)?)
            {
                in_use.push(link);
            }
        }
        Ok(in_use)
    }

    /// The table may be large: it is not looked through at each change of the host's.
    fn is_known_in_use(&self, name: &str, change: HostChange) -> bool {
        change != HostChange::ALL && self.uplinks.in_use.contains(name)
    }

    /// tcx always: it takes what XDP leaves (a backend whose veth takes no frames from XDP yet), and is there when XDP is not.
    /// XDP that was asked for and is refused comes back as an error beside what is attached all the same.
    fn attach_uplink(&mut self, link: &Link, xdp: bool) -> Result<(Option<Attached>, Option<anyhow::Error>)> {
        ensure!(
            link.has_ethernet(),
            "not attached: packets of {} have no Ethernet header, which steer needs; clients that come in there are not steered",
            link.kind.as_deref().unwrap_or("this interface"),
        );
        let paths = &self.settings.paths;
        attach::uplink(&mut self.bpf, paths, &link.name)?;
        let mut attached = Attached { index: link.index, xdp: false };
        if !xdp {
            attach::remove_xdp(paths, &link.name)?;
            return Ok((Some(attached), None));
        }
        let mode = if self.settings.attach == AttachMode::Generic { XdpMode::Skb } else { XdpMode::Driver };
        match attach::xdp(&mut self.bpf, paths, &link.name, mode) {
            Ok(()) => attached.xdp = true,
            Err(error) if self.settings.attach == AttachMode::Auto => {
                tracing::info!(interface = link.name, error = format!("{error:#}"), "no native XDP here, tcx it is");
            }
            Err(error) => {
                let error = error.context("no XDP here as --attach asks for; clients are steered over tcx meanwhile");
                return Ok((Some(attached), Some(error)));
            }
        }
        Ok((Some(attached), None))
    }

    /// Links of an earlier agent that attached elsewhere.
    fn remove_stale_links(&self) -> Result<()> {
        let paths = &self.settings.paths;
        for name in attach::links(paths)? {
            let stale = match &name {
                LinkName::Xdp(interface) => !self.uplinks.attached.get(interface).is_some_and(|attached| attached.xdp),
                LinkName::Tcx(interface) => !self.uplinks.attached.contains_key(interface),
                LinkName::Veth(_) | LinkName::Cgroup(_) | LinkName::Tracepoint(_) => false,
            };
            if stale {
                attach::remove(paths, &name).with_context(|| format!("removing the stale link {name}"))?;
            }
        }
        Ok(())
    }
}

/// Whether an interface, of all there are, is to have XDP; `has_xdp`: it has.
///
/// On its own account steer takes native XDP for hardware alone: on virtual interfaces it switches segmentation offload off. And not where
/// there are VLANs: it cannot see a tag that the interface takes off itself (`rx-vlan-offload`), and their clients would be answered
/// without one.
fn wants_xdp(mode: AttachMode, link: &Link, all: &[Link], has_xdp: bool) -> bool {
    let is_hardware = link.kind.is_none() && link.driver.as_deref().is_some_and(|driver| driver != "virtio_net");
    match mode {
        AttachMode::Tc => false,
        AttachMode::Xdp | AttachMode::Generic => true,
        AttachMode::Auto => (has_xdp || is_hardware) && link.vlans(all).next().is_none(),
    }
}

/// Whether what is attached may stay as it is. XDP that was refused is tried again if somebody asked for it: that is a problem for as long
/// as it lasts.
fn stays(before: Attached, xdp: bool, mode: AttachMode) -> bool {
    before.xdp == xdp || (xdp && mode == AttachMode::Auto)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    fn named(index: u32, name: &str, driver: Option<&str>) -> Link {
        Link {
            index,
            name: name.to_owned(),
            kind: None,
            driver: driver.map(ToOwned::to_owned),
            master: None,
            peer: None,
            peer_netns: None,
            mac: Some([2, 0, 0, 0, 0, 1]),
            up: true,
            loopback: false,
            xdp: None,
        }
    }

    fn on_top_of(below: u32, kind: &str, peer_netns: Option<i32>) -> Link {
        Link { kind: Some(kind.to_owned()), peer: Some(below), peer_netns, ..named(9, "eth0.7", None) }
    }

    #[rstest]
    #[case::hardware(named(2, "eth0", Some("ixgbe")), vec![], true)]
    #[case::virtual_hardware(named(2, "eth0", Some("virtio_net")), vec![], false)]
    #[case::nobody_knows_what(named(2, "eth0", None), vec![], false)]
    #[case::a_bond(Link { kind: Some("bond".into()), ..named(2, "bond0", Some("ixgbe")) }, vec![], false)]
    #[case::carries_a_vlan(named(2, "eth0", Some("ixgbe")), vec![on_top_of(2, "vlan", None)], false)]
    #[case::its_bridge_carries_one(
        Link { master: Some(5), ..named(2, "eth0", Some("ixgbe")) }, vec![on_top_of(5, "vlan", None)], false)]
    #[case::another_carries_it(named(2, "eth0", Some("ixgbe")), vec![on_top_of(3, "vlan", None)], true)]
    #[case::one_of_another_namespace(named(2, "eth0", Some("ixgbe")), vec![on_top_of(2, "vlan", Some(0))], true)]
    #[case::carries_something_else(named(2, "eth0", Some("ixgbe")), vec![on_top_of(2, "macvlan", None)], true)]
    fn native_xdp_is_for_hardware_without_vlans(#[case] link: Link, #[case] others: Vec<Link>, #[case] wanted: bool) {
        let all: Vec<_> = [link.clone()].into_iter().chain(others).collect();
        assert_eq!(wants_xdp(AttachMode::Auto, &link, &all, false), wanted);
        assert!(wants_xdp(AttachMode::Xdp, &link, &all, false), "whoever asks for it gets it");
        assert!(!wants_xdp(AttachMode::Tc, &link, &all, true));
    }

    #[test]
    fn xdp_that_is_there_is_left_for_vlans_alone() {
        let link = named(2, "eth0", None);
        assert!(wants_xdp(AttachMode::Auto, &link, &[], true), "its driver could not be read");
        assert!(!wants_xdp(AttachMode::Auto, &link, &[on_top_of(2, "vlan", None)], true));
    }

    #[rstest]
    #[case::nothing_changes(true, true, AttachMode::Auto, true)]
    #[case::a_vlan_came(true, false, AttachMode::Auto, false)]
    #[case::refused_or_left(false, true, AttachMode::Auto, true)]
    #[case::refused_though_asked_for(false, true, AttachMode::Xdp, false)]
    #[case::over_tc(false, false, AttachMode::Tc, true)]
    fn what_is_attached_stays_unless_something_else_is_wanted(
        #[case] has_xdp: bool,
        #[case] wanted: bool,
        #[case] mode: AttachMode,
        #[case] expected: bool,
    ) {
        assert_eq!(stays(Attached { index: 2, xdp: has_xdp }, wanted, mode), expected);
    }
}
