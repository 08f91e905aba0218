//! Sockets of this host: a frontend becomes a backend at `connect`, so no packet needs a rewrite.
//!
//! Frontends are for sockets in the host's own network namespace only: a container's packets to one pass a bridge, where `uplink_tc`
//! is. Virtual addresses of Swarm services, which no bridge sees, are for those of the containers in the same overlay network.
//! A container that is the only backend of the service it calls is the exception (what comes out of a veth cannot be sent
//! back into it): it is connected to its own address, inside.

use core::ptr::{null_mut, read_volatile, write_volatile};

use aya_ebpf::bindings::{BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB, bpf_sock_addr};
use aya_ebpf::helpers::{bpf_get_netns_cookie, bpf_get_socket_cookie};
use aya_ebpf::programs::{SockAddrContext, SockContext, SockOpsContext};
use aya_ebpf::{EbpfContext as _, Global};
use steer_common::addr::{Addr, Port, TCP, UDP};
use steer_common::backend::BackendId;
use steer_common::endpoint::EndpointKey;
use steer_common::flow::LocalFlow;
use steer_common::pick::{Request, Taken, pick};
use steer_common::recover::remember;
use steer_common::service::{FrontendEntry, FrontendKey};
use steer_common::state::BackendState;
use steer_common::tables::Tables as _;
use steer_common::verdict::Counter;
use steer_common::vip::{Ask, VipEntry, VipKey, VipMember, pick_task};

use crate::emit::now;
use crate::maps::{self, Maps, count_call, local_flow, put_local_flow, remove_local_flow, vip};
use crate::packet::NoPacket;

/// Cookie of the host's network namespace, set by the agent.
#[unsafe(no_mangle)]
static HOST_NETNS: Global<u64> = Global::new(0x5f68_6f73_745f_6e73);

pub(crate) fn connect4(ctx: &SockAddrContext) {
    let fields = Fields(ctx.sock_addr);
    if let Some((addr, port)) = connect(ctx, &fields, fields.v4()) {
        fields.set_v4(addr, port);
    }
}

/// IPv6 sockets that connect to an IPv4-mapped address, as Java's do.
pub(crate) fn connect6(ctx: &SockAddrContext) {
    let fields = Fields(ctx.sock_addr);
    let addr = fields.v6();
    if !addr.is_v4() {
        return;
    }
    if let Some((addr, port)) = connect(ctx, &fields, addr) {
        fields.set_mapped(addr, port);
    }
}

pub(crate) fn peername4(ctx: &SockAddrContext) {
    let fields = Fields(ctx.sock_addr);
    if let Some(flow) = flow_to(ctx, fields.v4()) {
        fields.set_v4(flow.frontend, flow.frontend_port);
    }
}

pub(crate) fn peername6(ctx: &SockAddrContext) {
    let fields = Fields(ctx.sock_addr);
    let addr = fields.v6();
    if !addr.is_v4() {
        return;
    }
    if let Some(flow) = flow_to(ctx, addr) {
        fields.set_mapped(flow.frontend, flow.frontend_port);
    }
}

pub(crate) fn release(ctx: &SockContext) {
    // SAFETY: the context pointer is valid for the life of the program.
    if unsafe { read_volatile(&raw const (*ctx.sock).protocol) } == UDP.into() {
        // Many a host closes thousands of them in a second, and none was ever steered.
        return;
    }
    // SAFETY: the context pointer is valid for the life of the program.
    forget(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) });
}

/// A socket of a container has completed the handshake of a connection that came to it: it remembers its flow, which stands in
/// the tables at this moment, since the packet that completes it has just passed them.
pub(crate) fn established(ctx: &SockOpsContext) -> Option<()> {
    let ops = ctx.ops;
    // SAFETY: the context pointer is valid for the life of the program; fields are read one by one and volatile, as below.
    unsafe {
        if read_volatile(&raw const (*ops).op) != BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB {
            return None;
        }
        let socket = read_volatile(&raw const (*ops).__bindgen_anon_2.sk);
        if socket.is_null() {
            return None;
        }
        // Also of an IPv6 socket with an IPv4 peer; with an IPv6 peer they are nobody's.
        let own = Addr::from_v4_be(read_volatile(&raw const (*ops).local_ip4));
        let client = Addr::from_v4_be(read_volatile(&raw const (*ops).remote_ip4));
        // This host's byte order, and the upper half of a word in the network's (`sock_ops_convert_ctx_access`).
        let port = Port::new(read_volatile(&raw const (*ops).local_port) as u16);
        let client_port = Port((read_volatile(&raw const (*ops).remote_port) >> 16) as u16);
        let inside = EndpointKey::inside(bpf_get_netns_cookie(ops.cast()));
        let maps = Maps(NoPacket(ops.cast()));
        let entry = remember(&maps, &EndpointKey::new(own, inside, port, TCP), client, client_port)?;
        maps::remember(socket.cast(), &entry);
    }
    Some(())
}

/// Where a socket that asks for `dst` shall connect instead.
#[inline(always)]
fn connect(ctx: &SockAddrContext, fields: &Fields, dst: Addr) -> Option<(Addr, Port)> {
    if fields.protocol() != u32::from(TCP) {
        return None;
    }
    let dst_port = fields.port();
    let maps = Maps(NoPacket(ctx.as_ptr()));
    // SAFETY: the context pointer is valid for the life of the program.
    let netns = unsafe { bpf_get_netns_cookie(ctx.as_ptr()) };
    let on_host = netns == HOST_NETNS.load();
    if !on_host && let Some((vip, turn)) = vip(&VipKey { netns_cookie: netns, addr: dst }) {
        return to_task(ctx, &maps, vip, turn, dst, dst_port);
    }
    let frontend = maps.frontend(&FrontendKey::new(dst, dst_port, TCP))?;
    // From an address of the loopback there is no way to a container: the kernel would refuse it.
    if frontend.flags & FrontendEntry::CLOSED != 0 || fields.own().is_loopback() {
        return None;
    }
    // SAFETY: as above.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    let picked = if on_host { any(&maps, &frontend, dst_port, cookie) } else { only_itself(&maps, &frontend, netns) };
    let Some(id) = picked else {
        if on_host {
            count_call(Counter::PassLocalNoBackend);
        }
        return None;
    };
    let backend = maps.backend(id)?;
    let target = backend.target(frontend.port_index)?;
    // A socket may try again after a refusal.
    forget(cookie);
    let flow = LocalFlow {
        frontend: dst,
        frontend_port: dst_port,
        backend: id,
        generation: backend.generation,
        peer: backend.addr,
    };
    if put_local_flow(cookie, &flow) {
        maps.count_established(id);
    }
    maps.count_steered(id);
    count_call(Counter::SteerLocal);
    Some((backend.addr, target))
}

/// A task behind a virtual address, on the port that was asked for. With none ready, Swarm's own balancing has it.
#[inline(always)]
fn to_task(
    ctx: &SockAddrContext,
    maps: &Maps<NoPacket>,
    vip: &VipEntry,
    turn: u32,
    dst: Addr,
    dst_port: Port,
) -> Option<(Addr, Port)> {
    let ask = Ask { port: dst_port, turn, is_fresh: maps.is_lease_fresh(now().secs()) };
    let Some(VipMember { addr, generation, backend, .. }) = pick_task(maps, vip, ask) else {
        count_call(Counter::PassVip);
        return None;
    };
    // SAFETY: the context pointer is valid for the life of the program.
    let cookie = unsafe { bpf_get_socket_cookie(ctx.as_ptr()) };
    forget(cookie);
    let flow = LocalFlow { frontend: dst, frontend_port: dst_port, backend, generation, peer: addr };
    let is_put = put_local_flow(cookie, &flow);
    if !backend.is_none() {
        if is_put {
            maps.count_established(backend);
        }
        maps.count_steered(backend);
    }
    count_call(Counter::SteerVip);
    Some((addr, dst_port))
}

#[inline(always)]
fn any(maps: &Maps<NoPacket>, frontend: &FrontendEntry, dst_port: Port, cookie: u64) -> Option<BackendId> {
    pick(
        maps,
        &Request {
            service: frontend.service,
            port_index: frontend.port_index,
            // The kernel has chosen neither yet: the host is one client, its sockets tell its flows apart.
            client: Addr::UNSPECIFIED,
            client_port: Port(cookie as u16),
            frontend_port: dst_port,
            taken: Taken::NONE,
            not: BackendId::NONE,
        },
    )
}

/// The socket's own container, if it is all that the service has.
#[inline(always)]
fn only_itself(maps: &Maps<NoPacket>, frontend: &FrontendEntry, netns: u64) -> Option<BackendId> {
    if frontend.flags & FrontendEntry::LOOPBACK != 0 {
        return None;
    }
    let slots = maps.slots(frontend.service)?;
    if slots.members_len != 1 {
        return None;
    }
    let id = slots.member(0)?;
    let backend = maps.backend(id)?;
    let itself = backend.netns_cookie == netns && backend.service == frontend.service;
    (itself && maps.backend_state(id).0 == BackendState::Ready).then_some(id)
}

/// The flow of a socket that is connected to a backend's address.
#[inline(always)]
fn flow_to(ctx: &SockAddrContext, peer: Addr) -> Option<LocalFlow> {
    // SAFETY: the context pointer is valid for the life of the program.
    let flow = local_flow(unsafe { bpf_get_socket_cookie(ctx.as_ptr()) })?;
    (flow.peer == peer).then_some(flow)
}

/// The socket's flow, if it had one, has ended.
#[inline(always)]
fn forget(cookie: u64) {
    let Some(flow) = local_flow(cookie) else { return };
    let maps = Maps(NoPacket(null_mut()));
    if remove_local_flow(cookie) && maps.backend(flow.backend).is_some_and(|b| b.generation == flow.generation) {
        maps.count_ended(flow.backend);
    }
}

/// The address fields of a socket hook's context. Read and written one by one and volatile: the verifier allows no access
/// that spans two of them, which the compiler would like to make.
struct Fields(*mut bpf_sock_addr);

impl Fields {
    #[inline(always)]
    fn protocol(&self) -> u32 {
        // SAFETY: the context pointer is valid for the life of the program.
        unsafe { read_volatile(&raw const (*self.0).protocol) }
    }

    /// The lower half of the word holds the port in network byte order.
    #[inline(always)]
    fn port(&self) -> Port {
        // SAFETY: as above.
        Port(unsafe { read_volatile(&raw const (*self.0).user_port) } as u16)
    }

    #[inline(always)]
    fn v4(&self) -> Addr {
        // SAFETY: as above.
        Addr::from_v4_be(unsafe { read_volatile(&raw const (*self.0).user_ip4) })
    }

    #[inline(always)]
    fn v6(&self) -> Addr {
        // SAFETY: as above; the four words are inside the field.
        unsafe {
            let words = (&raw const (*self.0).user_ip6).cast::<u32>();
            Addr([
                read_volatile(words),
                read_volatile(words.add(1)),
                read_volatile(words.add(2)),
                read_volatile(words.add(3)),
            ])
        }
    }

    /// The IPv4 address that the socket is bound to, if it is.
    #[inline(always)]
    fn own(&self) -> Addr {
        // SAFETY: as above; what the hook runs for is a whole socket.
        Addr::from_v4_be(unsafe { read_volatile(&raw const (*(*self.0).__bindgen_anon_1.sk).src_ip4) })
    }

    #[inline(always)]
    fn set_v4(&self, addr: Addr, port: Port) {
        // SAFETY: as above; both fields are open to writes in these hooks.
        unsafe {
            write_volatile(&raw mut (*self.0).user_ip4, addr.v4_be());
            write_volatile(&raw mut (*self.0).user_port, port.0.into());
        }
    }

    /// The address stays a mapped one: only its last word changes.
    #[inline(always)]
    fn set_mapped(&self, addr: Addr, port: Port) {
        // SAFETY: as above.
        unsafe {
            write_volatile((&raw mut (*self.0).user_ip6).cast::<u32>().add(3), addr.v4_be());
            write_volatile(&raw mut (*self.0).user_port, port.0.into());
        }
    }
}
