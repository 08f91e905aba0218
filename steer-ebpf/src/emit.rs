//! From a packet to a verdict, and from the verdict to the kernel's action: count, rewrite, redirect.
//!
//! `None` always means: leave the packet alone, untouched.

use aya_ebpf::EbpfContext as _;
use aya_ebpf::bindings::{
    __sk_buff, BPF_FIB_LKUP_RET_FRAG_NEEDED, BPF_FIB_LKUP_RET_NO_NEIGH, BPF_FIB_LKUP_RET_SUCCESS, TC_ACT_SHOT,
    bpf_redir_neigh, bpf_redir_neigh__bindgen_ty_1, xdp_action, xdp_md,
};
use aya_ebpf::helpers::{
    bpf_fib_lookup, bpf_ktime_get_coarse_ns, bpf_redirect, bpf_redirect_neigh, bpf_redirect_peer, bpf_skb_change_tail,
    bpf_skb_change_type,
};
use aya_ebpf::programs::{TcContext, XdpContext};
use aya_log_ebpf::warn;
use steer_common::addr::{Addr, TCP};
use steer_common::backend::BackendEntry;
use steer_common::flow::FlowKey;
use steer_common::reverse::reverse;
use steer_common::steer::{Nanos, Segment, flow_about, steer};
use steer_common::tables::Tables as _;
use steer_common::verdict::{Counter, Forward, Reply, Returned, Verdict};

use crate::PASS_TC;
use crate::maps::{Maps, count, pending};
use crate::packet::{
    BARE_LEN, FULL_LEN, Frame, FullFrame, IcmpError, Parsed, ResetFrame, TcPacket, XdpPacket, tc_frame,
};
use crate::rewrite;

const AF_INET: u8 = 2;
/// `PACKET_HOST` of the kernel's UAPI: a packet that is for whoever receives it.
const PACKET_HOST: u32 = 0;

#[inline(always)]
pub(crate) fn now() -> Nanos {
    // SAFETY: a helper without arguments. Coarse: it costs a few nanoseconds, and a tick is finer than any timeout here.
    Nanos(unsafe { bpf_ktime_get_coarse_ns() })
}

/// The TCP segment in a frame, if steer can have anything to do with it.
#[inline(always)]
fn segment(frame: Frame) -> Option<Segment> {
    match frame.parse() {
        Parsed::Tcp(segment) => Some(segment),
        Parsed::Unparsed => {
            count(Counter::PassUnparsed);
            None
        }
        Parsed::Icmp | Parsed::Other => None,
    }
}

#[inline(always)]
pub(crate) fn uplink_xdp(ctx: &XdpContext) -> Option<u32> {
    let frame = Frame::of_xdp(ctx)?;
    let segment = segment(frame)?;
    // SAFETY: the context pointer is valid for the life of the program.
    let uplink = unsafe { (*ctx.as_ptr().cast::<xdp_md>()).ingress_ifindex };
    let maps = Maps(XdpPacket(ctx.as_ptr()));
    let forward = match steer(&maps, &segment, uplink, now()) {
        Verdict::Forward(forward) => forward,
        Verdict::Pass(reason) => {
            count(reason);
            return None;
        }
        Verdict::Drop(reason) => {
            count(reason);
            return Some(xdp_action::XDP_DROP);
        }
        Verdict::Reset(_) => {
            // Sending is tc's; it comes to the same conclusion.
            count(Counter::PassToTc);
            return None;
        }
    };
    let backend = maps.backend(forward.backend)?;
    if backend.flags & BackendEntry::XDP == 0 {
        // The decision stands in the flow table, and the packet is untouched: tc takes it from here.
        count(Counter::PassToTc);
        return None;
    }
    count(forward.reason);
    rewrite::dnat_xdp(frame, backend.addr, forward.target, backend.mac);
    // SAFETY: a helper call with plain arguments.
    Some(unsafe { bpf_redirect(backend.ifindex, 0) } as u32)
}

#[inline(always)]
pub(crate) fn uplink_tc(ctx: &TcContext) -> Option<i32> {
    let frame = tc_frame(ctx)?;
    if let Parsed::Icmp = frame.parse() {
        return icmp_error(ctx);
    }
    let segment = segment(frame)?;
    let maps = Maps(TcPacket(ctx.as_ptr()));
    let forward = match steer(&maps, &segment, ingress(ctx), now()) {
        Verdict::Forward(forward) => forward,
        Verdict::Pass(reason) => {
            count(reason);
            return None;
        }
        Verdict::Drop(reason) => {
            count(reason);
            return Some(TC_ACT_SHOT);
        }
        Verdict::Reset(reason) => {
            count(reason);
            return Some(reset(ctx, frame, &segment));
        }
    };
    let backend = maps.backend(forward.backend)?;
    if rewrite::dnat_tc(ctx, frame, backend.addr, forward.target, backend.mac).is_none() {
        count(Counter::DropRewrite);
        // Counters tell how often; that it happens at all is worth a line in the agent's log.
        warn!(ctx, "a packet to backend {} could not be rewritten and was dropped", forward.backend.0);
        return Some(TC_ACT_SHOT);
    }
    count(forward.reason);
    // Straight into the container's namespace: no second pass through the host's receive path.
    // SAFETY: a helper call with plain arguments.
    Some(unsafe { bpf_redirect_peer(backend.ifindex, 0) } as i32)
}

/// An ICMP error about a flow goes to the flow's backend: without "fragmentation needed" a connection through a narrow path
/// stands still.
#[inline(always)]
fn icmp_error(ctx: &TcContext) -> Option<i32> {
    let error = IcmpError::of_tc(ctx)?;
    let maps = Maps(TcPacket(ctx.as_ptr()));
    let (backend, target) = flow_about(&maps, &error.turned())?;
    let backend = maps.backend(backend)?;
    error.deliver(backend.addr, target, backend.mac);
    count(Counter::FollowIcmp);
    // SAFETY: a helper call with plain arguments.
    Some(unsafe { bpf_redirect_peer(backend.ifindex, 0) } as i32)
}

#[inline(always)]
pub(crate) fn backend_tc(ctx: &TcContext) -> Option<i32> {
    let frame = Frame::of_tc(ctx)?;
    let Parsed::Tcp(segment) = frame.parse() else { return None };
    let maps = Maps(TcPacket(ctx.as_ptr()));
    let mut returned = None;
    reverse(&maps, &segment, ingress(ctx), now(), &mut returned);
    match &returned {
        None => None,
        Some(Returned::Reply(reply)) => Some(reply_to_client(ctx.skb.skb, reply)),
        Some(Returned::Resteer { key, forward }) => {
            count(forward.reason);
            Some(resteer(ctx.skb.skb, key, forward))
        }
        Some(Returned::Drop(reason)) => {
            count(*reason);
            Some(TC_ACT_SHOT)
        }
    }
}

/// Sends a reply on its way. A function of its own: what it has on the stack would stand there beside what the decision has.
#[inline(never)]
fn reply_to_client(skb: *mut __sk_buff, reply: &Reply) -> i32 {
    let ctx = &TcContext::new(skb);
    let Some(frame) = Frame::of_tc(ctx) else { return PASS_TC };
    // The route first: where the reply does not fit, it is passed on as it is, and the host's stack tells the container.
    let Some(route) = route(ctx, frame, reply) else { return PASS_TC };
    if rewrite::reverse_tc(ctx, frame, reply.frontend, reply.frontend_port).is_none() {
        count(Counter::DropRewrite);
        warn!(ctx, "a reply on interface {} could not be rewritten and was dropped", ingress(ctx));
        return TC_ACT_SHOT;
    }
    count(reply.reason);
    send(&route)
}

/// Answers a packet with a reset, out where it came in. What a container sent by way of its bridge goes back the same way.
#[inline(always)]
fn reset(ctx: &TcContext, frame: Frame, segment: &Segment) -> i32 {
    let answer = ResetFrame::to(frame, segment);
    let Some(frame) = resize(ctx, BARE_LEN).and_then(|()| Frame::of_tc(ctx)) else {
        count(Counter::DropRewrite);
        return TC_ACT_SHOT;
    };
    answer.write(frame);
    // SAFETY: a helper call with plain arguments.
    unsafe { bpf_redirect(ingress(ctx), 0) as i32 }
}

/// Makes the refusal at hand into the SYN that was refused, and sends that to another backend. A function of its own, likewise.
#[inline(never)]
fn resteer(skb: *mut __sk_buff, key: &FlowKey, to: &Forward) -> i32 {
    let ctx = &TcContext::new(skb);
    let target = to.target;
    let sent = resize(ctx, FULL_LEN).and_then(|()| {
        let maps = Maps(TcPacket(ctx.as_ptr()));
        let backend = maps.backend(to.backend)?;
        let syn = pending(key)?;
        let frame = FullFrame::of_tc(ctx)?;
        // SAFETY: a map value.
        unsafe { frame.write_syn(key, syn, backend.addr, target, backend.mac) };
        // What a container sends to its bridge is another host's packet until that bridge has seen it, and such a one its new receiver
        // drops: before "bpf: Scrub packet on bpf_redirect_peer" (Linux 6.15, and 6.1.139, 6.6.91, 6.12.29) nobody else mends it.
        // SAFETY: a helper call with plain arguments.
        unsafe { bpf_skb_change_type(ctx.as_ptr().cast(), PACKET_HOST) };
        // SAFETY: a helper call with plain arguments.
        Some(unsafe { bpf_redirect_peer(backend.ifindex, 0) } as i32)
    });
    sent.unwrap_or_else(|| {
        count(Counter::DropRewrite);
        TC_ACT_SHOT
    })
}

#[inline(always)]
fn resize(ctx: &TcContext, len: u32) -> Option<()> {
    // SAFETY: the context pointer is valid for the life of the program.
    (unsafe { bpf_skb_change_tail(ctx.as_ptr().cast(), len, 0) } == 0).then_some(())
}

#[inline(always)]
fn ingress(ctx: &TcContext) -> u32 {
    // SAFETY: the context pointer is valid for the life of the program.
    unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).ifindex }
}

/// Where a reply leaves this host.
struct Route {
    ifindex: u32,
    /// Next hop, or the client itself; unspecified: whoever the routing table names.
    next_hop: Addr,
}

/// Filler for words that a helper wants initialised but does not look at. Not zero: a run of zeros becomes a call of `memset`,
/// which the verifier does not take and nobody wants to wait for.
const UNUSED: u32 = 1;

/// `struct bpf_fib_lookup` of the kernel's UAPI, in words (see [`UNUSED`]).
#[repr(C)]
struct FibLookup {
    family: u8,
    l4_protocol: u8,
    sport: u16,
    dport: u16,
    tot_len: u16,
    ifindex: u32,
    tos: u32,
    src: [u32; 4],
    dst: [u32; 4],
    vlan: u32,
    macs: [u32; 3],
}

const _: () = assert!(size_of::<FibLookup>() == size_of::<aya_ebpf::bindings::bpf_fib_lookup>());

/// The host's own route to the client, as its policy rules and metrics have it. `None`: too large for it.
#[inline(always)]
fn route(ctx: &TcContext, frame: Frame, reply: &Reply) -> Option<Route> {
    let mut params = FibLookup {
        family: AF_INET,
        l4_protocol: TCP,
        sport: reply.frontend_port.0,
        dport: frame.dst_port().0,
        tot_len: widest(ctx, frame),
        ifindex: reply.uplink,
        tos: frame.tos().into(),
        src: [reply.frontend.v4_be(), UNUSED, UNUSED, UNUSED],
        dst: [frame.dst().v4_be(), UNUSED, UNUSED, UNUSED],
        vlan: UNUSED,
        macs: [UNUSED; 3],
    };
    // SAFETY: the parameters are on the stack and their size is given.
    let answer = unsafe { bpf_fib_lookup(ctx.as_ptr(), (&raw mut params).cast(), size_of::<FibLookup>() as i32, 0) };
    match answer as u32 {
        BPF_FIB_LKUP_RET_SUCCESS | BPF_FIB_LKUP_RET_NO_NEIGH => {
            // A next hop may be an IPv6 address (RFC 5549), which stands in all four words then: the routing table names it again.
            let is_v4 = params.family == AF_INET;
            let next_hop = if is_v4 { Addr::from_v4_be(params.dst[0]) } else { Addr::UNSPECIFIED };
            Some(Route { ifindex: params.ifindex, next_hop })
        }
        BPF_FIB_LKUP_RET_FRAG_NEEDED => None,
        // Forwarding may be off on the uplink (a host without Docker): back where the client's packets come in.
        _ => Some(Route { ifindex: reply.uplink, next_hop: Addr::UNSPECIFIED }),
    }
}

/// The length of the longest packet that a reply becomes on the wire, from its IP header on, in bytes: of what is segmented later, the
/// kernel would only compare what it is now, which it lets pass.
#[inline(always)]
fn widest(ctx: &TcContext, frame: Frame) -> u16 {
    // SAFETY: the context pointer is valid for the life of the program.
    let segment = unsafe { (*ctx.as_ptr().cast::<__sk_buff>()).gso_size } as u16;
    if segment == 0 { frame.ip_len() } else { segment.saturating_add(frame.headers_len()) }
}

/// Sends the rewritten reply: the kernel's neighbour table has or finds the MAC address.
#[inline(always)]
fn send(route: &Route) -> i32 {
    if route.next_hop == Addr::UNSPECIFIED {
        // SAFETY: no parameters: the helper looks the route up itself.
        return unsafe { bpf_redirect_neigh(route.ifindex, core::ptr::null_mut(), 0, 0) } as i32;
    }
    let mut next_hop = bpf_redir_neigh {
        nh_family: AF_INET.into(),
        __bindgen_anon_1: bpf_redir_neigh__bindgen_ty_1 { ipv6_nh: [route.next_hop.v4_be(), UNUSED, UNUSED, UNUSED] },
    };
    // SAFETY: the parameters are on the stack and their size is given.
    unsafe { bpf_redirect_neigh(route.ifindex, &raw mut next_hop, size_of::<bpf_redir_neigh>() as i32, 0) as i32 }
}
