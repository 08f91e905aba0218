//! Destination NAT of a packet from a client, and its inverse for a reply.
//!
//! In tc the stack may have left the TCP checksum partial (only the pseudo header summed, the rest for the hardware), which
//! only the kernel's helpers know; in XDP there is no such knowledge and no such packet from real hardware.

use aya_ebpf::bindings::BPF_F_PSEUDO_HDR;
use aya_ebpf::programs::TcContext;
use steer_common::addr::{Addr, Port};
use steer_common::csum::Delta;

use crate::packet::{Frame, offset};

/// Rewrites the destination of a packet in XDP.
#[inline(always)]
pub(crate) fn dnat_xdp(frame: Frame, addr: Addr, port: Port, mac: [u8; 6]) {
    let address = Delta::NONE.v4(frame.dst(), addr);
    frame.set_tcp_checksum(address.port(frame.dst_port(), port).apply(frame.tcp_checksum()));
    frame.set_dst(addr, port, address.apply(frame.ip_checksum()));
    frame.set_dst_mac(mac);
}

/// Rewrites the destination of a packet in tc. `None`: the packet may be half rewritten and must be dropped.
#[inline(always)]
pub(crate) fn dnat_tc(ctx: &TcContext, frame: Frame, addr: Addr, port: Port, mac: [u8; 6]) -> Option<()> {
    let ip_checksum = Delta::NONE.v4(frame.dst(), addr).apply(frame.ip_checksum());
    fix_tcp_checksum(ctx, frame.dst(), addr, frame.dst_port(), port)?;
    let frame = Frame::of_tc(ctx)?;
    frame.set_dst(addr, port, ip_checksum);
    frame.set_dst_mac(mac);
    Some(())
}

/// Rewrites the source of a reply in tc. `None`: the packet may be half rewritten and must be dropped.
#[inline(always)]
pub(crate) fn reverse_tc(ctx: &TcContext, frame: Frame, addr: Addr, port: Port) -> Option<()> {
    let ip_checksum = Delta::NONE.v4(frame.src(), addr).apply(frame.ip_checksum());
    fix_tcp_checksum(ctx, frame.src(), addr, frame.src_port(), port)?;
    Frame::of_tc(ctx)?.set_src(addr, port, ip_checksum);
    Some(())
}

#[inline(always)]
fn fix_tcp_checksum(ctx: &TcContext, old: Addr, new: Addr, old_port: Port, new_port: Port) -> Option<()> {
    let pseudo = u64::from(BPF_F_PSEUDO_HDR) | 4;
    ctx.l4_csum_replace(offset::TCP_CHECKSUM, old.v4_be().into(), new.v4_be().into(), pseudo).ok()?;
    if old_port == new_port {
        return Some(());
    }
    ctx.l4_csum_replace(offset::TCP_CHECKSUM, old_port.0.into(), new_port.0.into(), 2).ok()
}
