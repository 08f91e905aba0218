//! Puts the programs on their hooks and pins the links, or, where a pinned link is there, replaces its program in one step.
//!
//! A pinned link outlives the agent: that is what keeps packets flowing while there is none.

use std::fs::File;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use aya::Ebpf;
use aya::programs::links::FdLink;
use aya::programs::tc::{SchedClassifierLink, TcAttachOptions};
use aya::programs::xdp::{XdpLink, XdpMode};
use aya::programs::{
    CgroupAttachMode, CgroupSock, CgroupSockAddr, LinkOrder, RawTracePoint, SchedClassifier, SockOps, TcAttachType, Xdp,
};
use steer_common::limits::ABI;

use super::load::{program, program_mut};
use super::paths::{LinkName, Paths};
use super::{clsact, others, pins};
use crate::host::links;

/// Attaches to an uplink by XDP. Where another version's program is, this one's takes its place in one step.
pub fn xdp(bpf: &mut Ebpf, paths: &Paths, interface: &str, mode: XdpMode) -> Result<()> {
    others::inherit_xdp(paths, interface)?;
    let pin = paths.link(&LinkName::Xdp(interface.to_owned()));
    let xdp: &mut Xdp = program_mut(bpf, program::UPLINK_XDP)?;
    if runs_otherwise(interface, mode)? {
        // A link keeps the mode that it was made with.
        pins::remove(&pin)?;
        wait_until_off(interface)?;
    }
    if let Some(link) = pins::open(&pin)? {
        let adopted =
            XdpLink::try_from(link).map_err(anyhow::Error::from).and_then(|link| Ok(xdp.attach_to_link(link)?));
        match adopted {
            Ok(id) => {
                // The pin stands; the link itself need not be held open.
                drop(FdLink::try_from(xdp.take_link(id)?)?);
                return Ok(());
            }
            Err(error) => pins::remove_defunct(&pin, &error)?,
        }
    }
    let id = xdp.attach(interface, mode).with_context(|| {
        format!(
            "attaching XDP to {interface}: is another program there? `steer doctor` says whose; `--attach tc` shares"
        )
    })?;
    let link = FdLink::try_from(xdp.take_link(id)?).map_err(|_| {
        anyhow!("the kernel gave no link for XDP on {interface}: such an attachment would end with the agent")
    })?;
    pins::put(link, &pin)
}

/// Attaches a program to an interface's tcx ingress, before other programs, those of other versions of steer among them; to clsact,
/// where there is no tcx.
fn tcx(bpf: &mut Ebpf, name: &str, paths: &Paths, link: &LinkName, interface: &str) -> Result<()> {
    let pin = &paths.link(link);
    let tc: &mut SchedClassifier = program_mut(bpf, name)?;
    if clsact::is_needed() {
        return clsact::attach(tc, &paths.instance, pin, interface)
            .with_context(|| format!("attaching {name} to {interface}"));
    }
    if let Some(link) = pins::open(pin)? {
        let adopted = SchedClassifierLink::try_from(link)
            .map_err(anyhow::Error::from)
            .and_then(|link| Ok(tc.attach_to_link(link)?));
        match adopted {
            Ok(id) => {
                drop(FdLink::try_from(tc.take_link(id)?)?);
                return Ok(());
            }
            // The interface is gone, or has come back under the same name: the old link leads nowhere.
            Err(error) => pins::remove_defunct(pin, &error)?,
        }
    }
    let order = TcAttachOptions::TcxOrder(LinkOrder::first());
    let id = tc
        .attach_with_options(interface, TcAttachType::Ingress, order)
        .with_context(|| format!("attaching {name} to tcx ingress of {interface}"))?;
    pins::put(FdLink::try_from(tc.take_link(id)?)?, pin)
}

/// An interface that is attached to has another name now: its links stay as they are, and are called after it.
pub fn rename(paths: &Paths, from: &str, to: &str) -> Result<()> {
    for link in [LinkName::Xdp, LinkName::Tcx] {
        let [from, to] = [from, to].map(|interface| paths.link(&link(interface.to_owned())));
        pins::rename(&from, &to)?;
    }
    Ok(())
}

/// What [`uplink`] and [`backend`] attach to on this kernel, in a word.
pub fn ingress_hook() -> &'static str {
    if clsact::is_needed() { "clsact" } else { "tcx" }
}

/// Attaches to an uplink, or to one of Docker's bridges, by tcx.
pub fn uplink(bpf: &mut Ebpf, paths: &Paths, interface: &str) -> Result<()> {
    tcx(bpf, program::UPLINK_TC, paths, &LinkName::Tcx(interface.to_owned()), interface)
}

/// Attaches to the host end of a backend's veth.
pub fn backend(bpf: &mut Ebpf, paths: &Paths, ifindex: u32) -> Result<()> {
    let interface = nix::net::if_::if_indextoname(ifindex)
        .with_context(|| format!("looking up interface {ifindex}, the host end of a container's veth"))?;
    let interface = interface.to_str().with_context(|| format!("the name of interface {ifindex} is not UTF-8"))?;
    tcx(bpf, program::BACKEND_TC, paths, &LinkName::Veth(ifindex), interface)
}

/// Attaches the socket hooks to the root cgroup. Their links cannot change programs (aya 0.14), so a second set is attached and
/// the first one dropped: a socket that meets both is steered once, since a backend is no frontend.
pub fn sockets(bpf: &mut Ebpf, paths: &Paths, cgroup: &Path) -> Result<()> {
    let root = File::open(cgroup).with_context(|| format!("opening the root cgroup {}", cgroup.display()))?;
    for name in program::SOCKET_ADDR {
        let hook: &mut CgroupSockAddr = program_mut(bpf, name)?;
        let id = hook.attach(&root, CgroupAttachMode::Single).with_context(|| attaching_to(name, cgroup))?;
        pins::replace(FdLink::try_from(hook.take_link(id)?)?, &paths.link(&LinkName::Cgroup(name.to_owned())))?;
    }
    let name = program::ESTABLISHED;
    let hook: &mut SockOps = program_mut(bpf, name)?;
    let id = hook.attach(&root, CgroupAttachMode::Single).with_context(|| attaching_to(name, cgroup))?;
    pins::replace(FdLink::try_from(hook.take_link(id)?)?, &paths.link(&LinkName::Cgroup(name.to_owned())))?;
    let name = program::RELEASE;
    let hook: &mut CgroupSock = program_mut(bpf, name)?;
    let id = hook.attach(&root, CgroupAttachMode::Single).with_context(|| attaching_to(name, cgroup))?;
    pins::replace(FdLink::try_from(hook.take_link(id)?)?, &paths.link(&LinkName::Cgroup(name.to_owned())))
}

/// Attaches to the kernel's tracepoints, likewise: for a moment two sets are attached, and an edge that both see counts twice.
pub fn tracepoints(bpf: &mut Ebpf, paths: &Paths) -> Result<()> {
    for (name, tracepoint) in program::TRACEPOINTS {
        let hook: &mut RawTracePoint = program_mut(bpf, name)?;
        let id = hook.attach(tracepoint).with_context(|| format!("attaching to the tracepoint {tracepoint}"))?;
        let link = FdLink::from(hook.take_link(id)?);
        pins::replace(link, &paths.link(&LinkName::Tracepoint(tracepoint.to_owned())))?;
    }
    Ok(())
}

fn attaching_to(name: &str, cgroup: &Path) -> String {
    format!("attaching {name} to the cgroup {}", cgroup.display())
}

/// Takes XDP off an interface, whichever version's it is: behind it nobody's tc sees what it takes.
pub fn remove_xdp(paths: &Paths, interface: &str) -> Result<()> {
    others::inherit_xdp(paths, interface)?;
    remove(paths, &LinkName::Xdp(interface.to_owned()))
}

/// Takes one link away, if it is there.
pub fn remove(paths: &Paths, name: &LinkName) -> Result<()> {
    let pin = paths.link(name);
    if pin.exists() {
        clsact::detach(&paths.instance, name, ABI)?;
    }
    pins::remove(&pin)
}

/// The links that are pinned.
pub fn links(paths: &Paths) -> Result<Vec<LinkName>> {
    pins::links(&paths.links)
}

/// The kernel takes a link off a moment after its pin is gone, and tells nobody when: there is room for one program alone.
fn wait_until_off(interface: &str) -> Result<()> {
    const LIMIT: Duration = Duration::from_secs(1);
    const PAUSE: Duration = Duration::from_millis(5);
    let began = Instant::now();
    while began.elapsed() < LIMIT {
        let link = links::link(interface).with_context(|| format!("looking up interface {interface}"))?;
        if link.is_none_or(|link| link.xdp.is_none()) {
            break;
        }
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// Whether an interface has its XDP program in the driver where it is to be outside it, or the other way round.
fn runs_otherwise(interface: &str, wanted: XdpMode) -> Result<bool> {
    let link = links::link(interface).with_context(|| format!("looking up interface {interface}"))?;
    let mode = link.and_then(|link| link.xdp).map(|xdp| xdp.mode);
    Ok(match mode {
        Some(links::XdpMode::Generic) => wanted != XdpMode::Skb,
        Some(links::XdpMode::Native) => wanted == XdpMode::Skb,
        Some(links::XdpMode::Offloaded | links::XdpMode::Several) | None => false,
    })
}
