//! The kernel's own socket tables, asked from a packet: who listens, and whose a connection is.
//!
//! `bpf_skc_lookup_tcp` takes the id that a network namespace has in the one the program runs in. An id that was freed may be
//! used again for another namespace; until the agent has taken the old backend out, a listener on every address there would be
//! taken for the old one's. The end of the container's first process takes it out sooner than its namespace can end.

use aya_ebpf::bindings::{
    bpf_sock, bpf_sock_tuple, bpf_sock_tuple__bindgen_ty_1, bpf_sock_tuple__bindgen_ty_1__bindgen_ty_1 as Tuple4,
};
use aya_ebpf::helpers::{bpf_check_mtu, bpf_sk_release, bpf_skc_lookup_tcp};
use core::ffi::c_void;
use core::ptr::read_volatile;

use steer_common::addr::{Addr, Port};
use steer_common::backend::BackendEntry;
use steer_common::tables::{Connection, Listening};
use steer_common::vip::VipMember;

use crate::maps;

/// Socket states (`include/net/tcp_states.h`).
mod state {
    pub(super) const ESTABLISHED: u32 = 1;
    pub(super) const SYN_RECV: u32 = 3;
    pub(super) const TIME_WAIT: u32 = 6;
    pub(super) const CLOSE: u32 = 7;
    pub(super) const LISTEN: u32 = 10;
    /// A handshake that has no socket of its own yet.
    pub(super) const NEW_SYN_RECV: u32 = 12;
}

/// Whether somebody listens on that port of a backend. From itself and port 0, so that no connection can match: what is found is
/// a listener, on the address or on every address (IPv6 sockets that take IPv4 among them), or nothing.
#[inline(always)]
pub(crate) fn listens(ctx: *mut c_void, backend: &BackendEntry, target: Port) -> Listening {
    listens_at(ctx, backend.netns_id, backend.addr, target)
}

/// The same of a task behind a virtual address. Its namespace's id is one in that of the socket that asks.
#[inline(always)]
pub(crate) fn task_listens(ctx: *mut c_void, task: &VipMember, port: Port) -> Listening {
    listens_at(ctx, task.netns_id, task.addr, port)
}

#[inline(always)]
fn listens_at(ctx: *mut c_void, netns_id: i32, addr: Addr, port: Port) -> Listening {
    if netns_id < 0 {
        return Listening::Unknown;
    }
    match lookup(ctx, netns_id, addr, Port::NONE, addr, port) {
        state::LISTEN => Listening::Yes,
        _ => Listening::No,
    }
}

/// What a backend has of a connection with that client.
#[inline(always)]
pub(crate) fn connection(
    ctx: *mut c_void,
    backend: &BackendEntry,
    target: Port,
    client: Addr,
    client_port: Port,
) -> Connection {
    if backend.netns_id < 0 {
        return Connection::None;
    }
    match lookup(ctx, backend.netns_id, client, client_port, backend.addr, target) {
        0 | state::TIME_WAIT | state::CLOSE | state::LISTEN => Connection::None,
        state::ESTABLISHED | state::SYN_RECV | state::NEW_SYN_RECV => Connection::Open,
        _ => Connection::Closing,
    }
}

/// Whether anything is left of a connection with that client: an interface that leads to the backend, and a socket of that very
/// connection. A listener is none: the backend's own has ended with it, and the id of its namespace may be another's by now.
#[inline(always)]
pub(crate) fn is_left(ctx: *mut c_void, backend: &BackendEntry, target: Port, client: Addr, client_port: Port) -> bool {
    // What fits is not asked: only for an interface that is not there the answer is negative.
    let mut unused = 0;
    // SAFETY: the context pointer is valid for the life of the program; the length is on the stack.
    if unsafe { bpf_check_mtu(ctx, backend.ifindex, &raw mut unused, 0, 0) } < 0 {
        return false;
    }
    backend.netns_id < 0
        || !matches!(lookup(ctx, backend.netns_id, client, client_port, backend.addr, target), 0 | state::LISTEN)
}

/// Whether a backend's socket for a connection with that client remembers a flow.
#[inline(always)]
pub(crate) fn remembers(
    ctx: *mut c_void,
    backend: &BackendEntry,
    target: Port,
    client: Addr,
    client_port: Port,
) -> bool {
    let Some(socket) = find(ctx, backend.netns_id, client, client_port, backend.addr, target) else { return false };
    // SAFETY: a socket that is held; one whose handshake is under way has no storage, which the helper knows.
    unsafe {
        let remembers = maps::remembered(socket.cast()).is_some();
        bpf_sk_release(socket.cast());
        remembers
    }
}

/// The state of the socket that a packet would find; 0 = there is none.
#[inline(always)]
fn lookup(ctx: *mut c_void, netns_id: i32, src: Addr, src_port: Port, dst: Addr, dst_port: Port) -> u32 {
    let Some(socket) = find(ctx, netns_id, src, src_port, dst, dst_port) else { return 0 };
    // SAFETY: a socket that is held.
    unsafe {
        let state = read_volatile(&raw const (*socket).state);
        bpf_sk_release(socket.cast());
        state
    }
}

/// The socket that a packet would find, which must be released.
#[inline(always)]
fn find(
    ctx: *mut c_void,
    netns_id: i32,
    src: Addr,
    src_port: Port,
    dst: Addr,
    dst_port: Port,
) -> Option<*mut bpf_sock> {
    let mut tuple = bpf_sock_tuple {
        __bindgen_anon_1: bpf_sock_tuple__bindgen_ty_1 {
            ipv4: Tuple4 { saddr: src.v4_be(), daddr: dst.v4_be(), sport: src_port.0, dport: dst_port.0 },
        },
    };
    // SAFETY: the context pointer is valid for the life of the program; the tuple is on the stack, its IPv4 part initialised.
    let socket = unsafe { bpf_skc_lookup_tcp(ctx, &raw mut tuple, size_of::<Tuple4>() as u32, netns_id as u64, 0) };
    (!socket.is_null()).then_some(socket)
}
