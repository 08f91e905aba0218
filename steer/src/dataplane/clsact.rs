//! Attaching to an interface's ingress where there is no tcx: before Linux 6.6.
//!
//! Problem: a filter of `clsact` is no BPF link. It stays with the interface until someone removes it, nothing can be pinned that
//! would take it along, and a new agent has to find the old one's. Approach: steer's filter has a place of its own, always the same
//! one (priority and handle), where a new program replaces the old one in one step. At the pin of the link that tcx would have
//! stands the program instead: what is attached is read, listed and removed by the same names on every kernel. Each version of the
//! maps' layout and each instance has its own place; of two, the one that came last is asked first (`net/sched/cls_bpf.c`,
//! `list_add_rcu`), and the other one where that has nothing to say.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, tc};
use aya::util::KernelVersion;
use nix::libc;
use steer_common::limits::ABI;

use super::paths::{DEFAULT_INSTANCE, LinkName};
use super::pins;
use crate::host::filters;

/// Before the filters of others: clients of frontends are nobody else's business.
const PRIORITY: u16 = 1;
/// Of all filters with that priority, this one is steer's, of that instance and version: they are counted from here.
pub fn handle(instance: &str, version: u32) -> TcHandle {
    const FIRST: u16 = u16::from_be_bytes(*b"sq");
    let place = if instance == DEFAULT_INSTANCE { 0 } else { 1 + (fnv(instance) % 0xfffe) as u16 };
    TcHandle::new(place, FIRST + version as u16)
}

/// FNV-1a, 32 bits: the same name has the same number in every build.
fn fnv(name: &str) -> u32 {
    name.bytes().fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// Whether this kernel has no tcx.
pub(super) fn is_needed() -> bool {
    KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0))
}

/// Attaches the program to the interface's ingress, or puts it in the place of the one that is there, and marks that by a pin.
pub(super) fn attach(program: &mut SchedClassifier, instance: &str, pin: &Path, interface: &str) -> Result<()> {
    match tc::qdisc_add_clsact(interface) {
        Err(error) if !is_there(&error) => {
            return Err(error).with_context(|| format!("adding the clsact qdisc to {interface}"));
        }
        _ => {}
    }
    let place = SchedClassifierLink::attached(interface, TcAttachType::Ingress, PRIORITY, handle(instance, ABI), None)
        .with_context(|| format!("looking up interface {interface}"))?;
    let id = match program.attach_to_link(place) {
        Ok(id) => id,
        Err(error) if is_absent(&error) => {
            let place = NlOptions { priority: PRIORITY, handle: handle(instance, ABI), classid: None };
            program
                .attach_with_options(interface, TcAttachType::Ingress, TcAttachOptions::Netlink(place))
                .with_context(|| format!("attaching to clsact ingress of {interface}"))?
        }
        Err(error) => {
            return Err(error).with_context(|| format!("replacing the program at clsact ingress of {interface}"));
        }
    };
    // It is to outlive this process; dropping it would detach the program.
    std::mem::forget(program.take_link(id)?);
    pins::remove(pin)?;
    program.pin(pin).with_context(|| format!("pinning the program at {}", pin.display()))
}

/// Where filters are needed, takes a version's one of an instance off the interface that a pin is named after, and the qdisc with it if nobody else
/// has a filter there. An interface that is gone has taken both along.
pub(super) fn detach(instance: &str, name: &LinkName, version: u32) -> io::Result<()> {
    if !is_needed() {
        return Ok(());
    }
    let interface = match name {
        LinkName::Tcx(interface) => interface.clone(),
        LinkName::Veth(ifindex) => match nix::net::if_::if_indextoname(*ifindex) {
            Ok(interface) => interface.to_string_lossy().into_owned(),
            Err(_) => return Ok(()),
        },
        LinkName::Xdp(_) | LinkName::Cgroup(_) | LinkName::Tracepoint(_) => return Ok(()),
    };
    let Ok(ifindex) = nix::net::if_::if_nametoindex(interface.as_str()) else { return Ok(()) };
    filters::remove(ifindex, PRIORITY, handle(instance, version).into())
}

fn is_there(error: &TcError) -> bool {
    matches!(error, TcError::AlreadyAttached) || errno(error) == Some(libc::EEXIST)
}

fn is_absent(error: &ProgramError) -> bool {
    let errno = match error {
        ProgramError::TcError(error) => errno(error),
        ProgramError::NetlinkError(error) => error.raw_os_error(),
        _ => None,
    };
    errno == Some(libc::ENOENT)
}

fn errno(error: &TcError) -> Option<i32> {
    match error {
        TcError::NetlinkError(error) => error.raw_os_error(),
        TcError::IoError(error) => error.raw_os_error(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_instance_and_version_has_a_place_of_its_own() {
        let names = [DEFAULT_INSTANCE, "blue", "green", "steer2"];
        let places: BTreeSet<u32> =
            names.iter().flat_map(|name| [3, 4].map(|version| handle(name, version).into())).collect();
        assert_eq!(places.len(), 2 * names.len());
        assert!(places.contains(&(0x7371 + 4)), "the only one's: it is found again after an upgrade");
    }
}
