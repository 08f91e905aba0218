//! Attaching to an interface's ingress where there is no tcx: before Linux 6.6.
//!
//! Problem: a filter of `clsact` is no BPF link. It stays with the interface until someone removes it, nothing can be pinned that
//! would take it along, and a new agent has to find the old one's. Approach: steer's filter has a place of its own, always the same
//! one (priority and handle), where a new program replaces the old one in one step. At the pin of the link that tcx would have
//! stands the program instead: what is attached is read, listed and removed by the same names on every kernel.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};
use aya::programs::tc::{NlOptions, SchedClassifierLink, TcAttachOptions, TcError, TcHandle};
use aya::programs::{ProgramError, SchedClassifier, TcAttachType, tc};
use aya::util::KernelVersion;
use nix::libc;

use super::detach::remove_file;
use super::paths::LinkName;
use crate::host::filters;

/// Before the filters of others: clients of frontends are nobody else's business.
const PRIORITY: u16 = 1;
/// Of all filters with that priority, this one is steer's ("st").
const HANDLE: TcHandle = TcHandle::new(0, 0x7374);

/// Whether this kernel has no tcx.
pub(super) fn is_needed() -> bool {
    KernelVersion::current().is_ok_and(|version| version < KernelVersion::new(6, 6, 0))
}

/// Attaches the program to the interface's ingress, or puts it in the place of the one that is there, and marks that by a pin.
pub(super) fn attach(program: &mut SchedClassifier, pin: &Path, interface: &str) -> Result<()> {
    match tc::qdisc_add_clsact(interface) {
        Err(error) if !is_there(&error) => {
            return Err(error).with_context(|| format!("adding the clsact qdisc to {interface}"));
        }
        _ => {}
    }
    let place = SchedClassifierLink::attached(interface, TcAttachType::Ingress, PRIORITY, HANDLE, None)
        .with_context(|| format!("looking up interface {interface}"))?;
    let id = match program.attach_to_link(place) {
        Ok(id) => id,
        Err(error) if is_absent(&error) => {
            let place = NlOptions { priority: PRIORITY, handle: HANDLE, classid: None };
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
    remove_file(pin)?;
    program.pin(pin).with_context(|| format!("pinning the program at {}", pin.display()))
}

/// Takes steer's filter off the interface that a pin is named after, and the qdisc with it if nobody else has a filter there. An
/// interface that is gone has taken both along.
pub(super) fn detach(name: &LinkName) -> io::Result<()> {
    let interface = match name {
        LinkName::Tcx(interface) => interface.clone(),
        LinkName::Veth(ifindex) => match nix::net::if_::if_indextoname(*ifindex) {
            Ok(interface) => interface.to_string_lossy().into_owned(),
            Err(_) => return Ok(()),
        },
        LinkName::Xdp(_) | LinkName::Cgroup(_) | LinkName::Tracepoint(_) => return Ok(()),
    };
    let Ok(ifindex) = nix::net::if_::if_nametoindex(interface.as_str()) else { return Ok(()) };
    filters::remove(ifindex, PRIORITY, HANDLE.into())
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
