//! steer's BPF programs: entry points only. What is decided stands in `steer-common`.
//!
//! | program | hook | does |
//! |---|---|---|
//! | `uplink_xdp` | XDP at the uplink | client to backend, into the container's veth |
//! | `replay` | none | a held SYN, handed in by the agent, passes once more |
//! | `uplink_tc` | tcx ingress at the uplink and at Docker's bridges | the same, one step later: where XDP is not, or leaves it |
//! | `backend_tc` | tcx ingress at the host end of a backend's veth | backend to client |
//! | `connect4`, `connect6` | root cgroup | sockets of this host, at `connect` |
//! | `peername4`, `peername6` | root cgroup | the same sockets, at `getpeername` |
//! | `release` | root cgroup | the same sockets, at `close` |
//! | `established` | root cgroup, `sock_ops` | a container's socket that has completed its handshake remembers its flow |
//! | `signal_generate` | raw tracepoint | a stop signal to a backend: it drains before the process can see the signal |
//! | `process_exit` | raw tracepoint | the end of a backend's first process |
//! | `cgroup_freeze`, `cgroup_unfreeze` | raw tracepoints | a container is paused: it takes nothing until it goes on |
//!
//! No program ever passes on a packet it has rewritten: rewritten packets are redirected past the host's stack, in both
//! directions, since Docker 28 and later drop what arrives at a container from anywhere but its bridge.

#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![expect(internal_features, reason = "see atomic.rs")]

mod atomic;
mod emit;
mod maps;
mod packet;
mod rewrite;
mod signals;
mod socket;
mod sockets;

use aya_ebpf::bindings::{TC_ACT_UNSPEC, xdp_action};
use aya_ebpf::macros::{cgroup_sock, cgroup_sock_addr, classifier, raw_tracepoint, sock_ops, xdp};
use aya_ebpf::programs::{RawTracePointContext, SockAddrContext, SockContext, SockOpsContext, TcContext, XdpContext};

/// Lets the packet, or the system call, go on as if steer were not there.
const PASS_TC: i32 = TC_ACT_UNSPEC;
const PASS_XDP: u32 = xdp_action::XDP_PASS;
/// For a socket hook there is no other answer: steer never forbids.
const PROCEED: i32 = 1;

#[xdp(frags)]
fn uplink_xdp(ctx: XdpContext) -> u32 {
    emit::uplink_xdp(&ctx).unwrap_or(PASS_XDP)
}

/// Attached nowhere: by it the agent hands a held SYN to the stack once more.
#[xdp]
fn replay(_: XdpContext) -> u32 {
    PASS_XDP
}

#[classifier]
fn uplink_tc(ctx: TcContext) -> i32 {
    emit::uplink_tc(&ctx).unwrap_or(PASS_TC)
}

#[classifier]
fn backend_tc(ctx: TcContext) -> i32 {
    emit::backend_tc(&ctx).unwrap_or(PASS_TC)
}

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    sockets::connect4(&ctx);
    PROCEED
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    sockets::connect6(&ctx);
    PROCEED
}

#[cgroup_sock_addr(getpeername4)]
fn peername4(ctx: SockAddrContext) -> i32 {
    sockets::peername4(&ctx);
    PROCEED
}

#[cgroup_sock_addr(getpeername6)]
fn peername6(ctx: SockAddrContext) -> i32 {
    sockets::peername6(&ctx);
    PROCEED
}

#[cgroup_sock(sock_release)]
fn release(ctx: SockContext) -> i32 {
    sockets::release(&ctx);
    PROCEED
}

#[sock_ops]
fn established(ctx: SockOpsContext) -> u32 {
    sockets::established(&ctx);
    PROCEED as u32
}

#[raw_tracepoint]
fn signal_generate(ctx: RawTracePointContext) -> i32 {
    signals::generated(&ctx);
    0
}

#[raw_tracepoint]
fn process_exit(ctx: RawTracePointContext) -> i32 {
    signals::exited(&ctx);
    0
}

#[raw_tracepoint]
fn cgroup_freeze(ctx: RawTracePointContext) -> i32 {
    signals::frozen(&ctx, true);
    0
}

#[raw_tracepoint]
fn cgroup_unfreeze(ctx: RawTracePointContext) -> i32 {
    signals::frozen(&ctx, false);
    0
}

/// The verifier accepts no program with a reachable panic, so this is never called.
#[cfg(not(test))]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are open to GPL-compatible programs only.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
