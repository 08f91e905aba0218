//! Traffic filters at an interface's `clsact`: only taking one away, and what goes with it.

use std::io;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::tc::{TcHandle, TcHeader, TcMessage};
use nix::libc;

use super::netlink::Netlink;

/// The qdisc itself, and its two lists of filters (`TC_H_CLSACT`, with `TC_H_MIN_INGRESS` and `TC_H_MIN_EGRESS`).
const CLSACT: u32 = 0xffff_fff1;
const INGRESS: u32 = 0xffff_fff2;
const EGRESS: u32 = 0xffff_fff3;
const CLSACT_HANDLE: u32 = 0xffff_0000;
/// Filters of steer's are for every protocol (`ETH_P_ALL`, in network byte order).
const ALL_PROTOCOLS: u32 = 0x0003_u16.to_be() as u32;

/// Takes the filter at this place off the interface's ingress, if it is there; and `clsact`, if that was the last one.
pub fn remove(ifindex: u32, priority: u16, handle: u32) -> io::Result<()> {
    let mut netlink = Netlink::route()?;
    let info = u32::from(priority) << 16 | ALL_PROTOCOLS;
    let filter = at(ifindex, INGRESS, handle, info);
    absent_is_fine(netlink.ask(RouteNetlinkMessage::DelTrafficFilter(filter)))?;
    for list in [INGRESS, EGRESS] {
        let filters = netlink.dump(|| RouteNetlinkMessage::GetTrafficFilter(at(ifindex, list, 0, 0)))?;
        if !filters.is_empty() {
            return Ok(());
        }
    }
    absent_is_fine(netlink.ask(RouteNetlinkMessage::DelQueueDiscipline(at(ifindex, CLSACT, CLSACT_HANDLE, 0))))
}

fn at(ifindex: u32, parent: u32, handle: u32, info: u32) -> TcMessage {
    let (parent, handle) = (TcHandle::from(parent), TcHandle::from(handle));
    let header = TcHeader { index: ifindex as i32, parent, handle, info, ..TcHeader::default() };
    TcMessage::from_parts(header, Vec::new())
}

/// No such filter, no `clsact` (the kernel says "invalid" to that), or no such interface.
fn absent_is_fine<T>(answer: io::Result<T>) -> io::Result<()> {
    match answer {
        Err(error) if !matches!(error.raw_os_error(), Some(libc::ENOENT | libc::EINVAL | libc::ENODEV)) => Err(error),
        _ => Ok(()),
    }
}
