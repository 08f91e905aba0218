//! Swarm services, taken over without a label, in front of the routing mesh.
//!
//! Nothing here assumes that the mesh is dead, as it is on a kernel without `ip_vs`, except the test that says so by its name.
//!
//! | module | what is done to a service |
//! |---|---|
//! | `labels` | container labels refine or refuse |
//! | `update` | updates, scaling, another port, a drained node, under load |
//! | `leave` | tasks that end while they still serve |
//! | `mesh` | no ready task on this node |
//! | `vip` | containers call it inside an overlay network |
//! | `unpublished` | the same, of one that publishes nothing |
//! | `worker` | on a node that is told less |

#[path = "swarm/labels.rs"]
mod labels;
#[path = "swarm/leave.rs"]
mod leave;
#[path = "swarm/mesh.rs"]
mod mesh;
#[path = "swarm/unpublished.rs"]
mod unpublished;
#[path = "swarm/update.rs"]
mod update;
#[path = "swarm/vip.rs"]
mod vip;
#[path = "swarm/worker.rs"]
mod worker;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::Host;
use steer_tests::docker::{Proxy, ServiceSpec, has_mesh};
use steer_tests::http::Http;
use steer_tests::skip;
use steer_tests::wait_until;
use steer_tests::world::{CLIENT, HOST};

const PORT: u16 = 9000;

/// A manager with an agent.
fn manager(attach: Attach) -> Option<Host> {
    let host = Host::set(attach)?;
    host.docker.swarm_init(HOST);
    Some(host)
}

fn web() -> ServiceSpec {
    ServiceSpec::greeter("web").publish(PORT, 5000)
}

fn client(host: &Host, port: u16) -> Http {
    Http::new(&host.world.client, SocketAddr::from((HOST, port)))
}

/// Requests, each on a connection of its own, by the task that answered; each task must have seen the client's own address.
fn split(http: &Http, requests: u32) -> BTreeMap<String, u32> {
    let mut split = BTreeMap::new();
    for _ in 0..requests {
        let reply = http.get("/").unwrap_or_else(|failure| panic!("{failure}"));
        assert!(reply.body.contains(&format!(" {CLIENT}:")), "the client's address is kept: {}", reply.body);
        *split.entry(reply.backend).or_default() += 1;
    }
    split
}

fn published(attach: Attach) {
    let Some(mut host) = manager(attach) else { return };
    host.docker.create_service(web().replicas(2));
    host.agent.wait_ready("web", 2);
    let even = split(&client(&host, PORT), 40);
    assert_eq!(even.values().copied().collect::<Vec<_>>(), [20, 20], "{even:?}");
    let status = host.agent.status();
    assert!(even.keys().all(|name| status.backend(name).is_some()), "{status}");
    // The host's own sockets, too.
    let local = Http::new(&host.world.host, SocketAddr::from(([127, 0, 0, 1], PORT)));
    assert!(even.contains_key(&local.backend()));
}

#[test]
fn a_published_port_is_steered_without_a_label_over_tc() {
    published(Attach::Tc);
}

#[test]
fn a_published_port_is_steered_without_a_label_over_xdp() {
    published(Attach::Xdp);
}

#[test]
fn a_new_agent_finds_what_runs() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web().replicas(2));
    host.docker.create_service(ServiceSpec::greeter("inner"));
    host.agent.wait_ready("web", 2);
    host.agent.kill9();
    assert_eq!(split(&client(&host, PORT), 10).len(), 2, "nobody is needed for that");
    host.docker.scale("web", 3);
    host.docker.wait_tasks("web", 3, "greeter:v1");
    host.agent.restart();
    let status = host.agent.wait_ready("web", 3);
    assert_eq!(split(&client(&host, PORT), 30).len(), 3);
    assert_eq!(status.services.len(), 1, "what publishes nothing is nobody's business: {status}");
    assert_eq!(status.problems, []);
}

#[test]
fn a_global_service_is_steered() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web().global());
    host.agent.wait_ready("web", 1);
    assert_eq!(split(&client(&host, PORT), 5).len(), 1);
}

/// Without `ip_vs`, Swarm's own balancing does not work at all.
#[test]
fn where_the_mesh_is_dead_steer_alone_makes_published_ports_work() {
    if has_mesh() {
        return skip::not_of_this_kind("this kernel has ip_vs, so the mesh is alive");
    }
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.agent.wait_for("the agent knows Docker", |status| status.agent.docker.is_some());
    host.agent.steer_ok(&["detach", "--now"]);
    assert!(host.agent.wait_exit().success());
    host.docker.create_service(web().replicas(2));
    host.docker.wait_tasks("web", 2, "greeter:v1");
    let http = client(&host, PORT);
    assert!(http.get("/").is_err(), "the mesh is alive");
    host.agent.restart();
    host.agent.wait_ready("web", 2);
    assert_eq!(split(&http, 20).len(), 2);
}

/// Every answer costs dockerd some of its time: what is known already is not asked for again.
#[test]
fn the_meshs_network_is_asked_about_once_and_not_with_every_question() {
    let Some((world, docker)) = Host::without_agent(Attach::Tc) else { return };
    docker.swarm_init(HOST);
    let proxy = Proxy::start(&world, &docker);
    let mut agent = Agent::start_with(&world, Some(&proxy.host_url()), Attach::Tc, &[]);
    docker.create_service(web());
    agent.wait_ready("web", 1);
    // Lists ask for everything.
    let asked = || (proxy.asked("ingress"), proxy.asked("/services"), proxy.asked("/containers/json"));
    let (ingress, questions, lists) = asked();
    docker.scale("web", 2);
    agent.wait_ready("web", 2);
    wait_until("the swarm was asked five times more", Duration::from_secs(30), || match asked() {
        (_, now, listed) if now - questions >= 5 + listed - lists => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let (now, _, listed) = asked();
    assert!(now - ingress <= listed - lists + 1, "{:?} after {:?}", asked(), (ingress, questions, lists));
}
