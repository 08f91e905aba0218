//! Ways to a container and back that the kernel knows and few take.

use std::net::Ipv4Addr;
use std::path::Path;

use steer_tests::World;
use steer_tests::agent::{Agent, Attach};
use steer_tests::greeter::Greeter;
use steer_tests::http::Http;
use steer_tests::netns::Ns;
use steer_tests::skip::{self, Need};
use steer_tests::world::HOST;

/// A service of one namespace, at the port that greeters listen on.
fn serve(world: &mut World, attach: Attach) -> (Greeter, Agent) {
    let (ns, _) = world.add_backend();
    let text = format!("[[service]]\nname = \"web\"\nports = [\"5000:5000\"]\n{}", ns.backend("a"));
    let config = world.file("steer.toml", &text).display().to_string();
    let greeter = Greeter::start(&ns, "a", &[]);
    let mut agent = Agent::start_static(world, attach, &config);
    agent.wait_ready("web", 1);
    (greeter, agent)
}

/// An IPv4 route whose next hop has an IPv6 address (RFC 5549), as between routers that have no other.
fn a_client_behind_an_ipv6_next_hop_is_answered(attach: Attach) {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    if !Path::new("/proc/sys/net/ipv6").exists() {
        return skip::not_of_this_kind("this kernel has no IPv6");
    }
    const FAR: Ipv4Addr = Ipv4Addr::new(10, 206, 0, 2);
    let mut world = attach.world();
    let add = |ns: &Ns, address: &str, interface: &str| {
        ns.sysctl("net/ipv6/conf/all/disable_ipv6", "0");
        ns.ip(&format!("-6 addr add {address}/64 dev {interface} nodad"));
    };
    add(&world.host, "fd00:cb::1", "u0");
    add(&world.client, "fd00:cb::2", "c0");
    world.client.ip(&format!("addr add {FAR}/32 dev lo"));
    world.host.ip(&format!("route add {FAR}/32 via inet6 fd00:cb::2 dev u0"));
    let _serving = serve(&mut world, attach);
    // The first one waits until the kernel has asked for the neighbour.
    for _ in 0..3 {
        assert_eq!(Http::new(&world.client, (HOST, 5000)).from_address(FAR).backend(), "a");
    }
}

#[test]
fn a_client_behind_an_ipv6_next_hop_is_answered_over_tc() {
    a_client_behind_an_ipv6_next_hop_is_answered(Attach::Tc);
}

#[test]
fn a_client_behind_an_ipv6_next_hop_is_answered_over_xdp() {
    a_client_behind_an_ipv6_next_hop_is_answered(Attach::Xdp);
}

/// From an address of the loopback the kernel lets nothing out to a container.
#[test]
fn a_socket_that_is_bound_to_the_loopback_is_left_to_the_host() {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    let mut world = World::new();
    let _on_host = Greeter::start(&world.host, "host", &[]);
    let _serving = serve(&mut world, Attach::Tc);
    let http = Http::new(&world.host, (HOST, 5000));
    assert_eq!(http.clone().from_address(HOST).backend(), "a");
    assert_eq!(http.from_address(Ipv4Addr::LOCALHOST).backend(), "host");
}
