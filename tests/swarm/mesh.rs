//! No ready task on this node: whatever it is that answers then, steer leaves it alone.
//!
//! What answers here is a greeter on another machine, behind a rule in front of Docker's own: the same in both worlds, with a
//! mesh that lives and with one that does not.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use steer_tests::World;
use steer_tests::agent::{Agent, Attach};
use steer_tests::docker::Docker;
use steer_tests::greeter::Greeter;
use steer_tests::http::Http;
use steer_tests::long_lived::LongLived;
use steer_tests::skip::{self, Need};
use steer_tests::world::{HOST, OTHER};

use super::{PORT, web};

const ECHO: u16 = 9001;

/// A manager with something that answers instead of the mesh, and no agent yet.
fn stage() -> Option<(Greeter, Docker, World)> {
    if skip::without(&[Need::Root, Need::Docker, Need::Steer]) {
        return None;
    }
    let world = World::with_other();
    let docker = Docker::start(&world);
    docker.import_greeter();
    docker.swarm_init(HOST);
    docker.create_service(web().publish(ECHO, 5001));
    docker.wait_tasks("web", 1, "greeter:v1");
    let elsewhere = Greeter::start(world.other(), "elsewhere", &[]);
    for (port, target) in [(PORT, 5000), (ECHO, 5001)] {
        let rule = format!("PREROUTING -d {HOST} -p tcp --dport {port} -j DNAT --to-destination {OTHER}:{target}");
        world.host.output("iptables", &format!("-t nat -I {rule}"));
    }
    world.host.output("iptables", "-I FORWARD -j ACCEPT");
    Some((elsewhere, docker, world))
}

#[test]
fn what_finds_no_ready_task_here_goes_on_to_the_mesh_and_stays_there() {
    let Some((_elsewhere, docker, world)) = stage() else { return };
    let http = Http::new(&world.client, SocketAddr::from((HOST, PORT)));
    assert_eq!(http.backend(), "elsewhere");
    let before = LongLived::start(&world.client, (HOST, ECHO));

    let mut agent = Agent::start(&world, &docker, Attach::Tc);
    agent.wait_ready("web", 1);
    let task = docker.task_containers("web").remove(0);
    assert_eq!(http.backend(), task.name, "new connections are steered");
    let here = LongLived::start(&world.client, (HOST, ECHO));
    assert_eq!(here.backend, task.name);
    assert_eq!(before.backend, "elsewhere");

    // It listens no more, and lives.
    task.flip_listeners();
    // The kernel sees it with the first SYN, and tells.
    assert_eq!(http.backend(), "elsewhere");
    agent.wait_state(&task.name, "unready");
    let meanwhile = LongLived::start(&world.client, (HOST, ECHO));
    assert_eq!(meanwhile.backend, "elsewhere");
    let why = agent.steer_ok(&["explain", "10.203.0.2:1", &format!("{HOST}:{PORT}")]);
    assert!(why.contains("pass_mesh (a new flow of a Swarm service that has no ready task on this node"), "{why}");

    task.flip_listeners();
    agent.wait_ready("web", 1);
    assert_eq!(http.backend(), task.name);
    agent.wait_for("more packets of the mesh's flows pass", |status| status.counters["pass_mesh_flow"] > 20);
    for life in [before, here, meanwhile] {
        life.finish_unharmed();
    }
    let counters = agent.status().counters;
    assert!(counters["pass_mesh"] >= 2, "{counters:?}");
    assert_eq!((counters["drop_hold"], counters["reset_no_backend"]), (0, 0), "{counters:?}");
    // One search for the connection that was open when steer came; all its other packets were known.
    assert_eq!(counters["pass_no_flow"], 0, "{counters:?}");
}

/// The first SYN got lost behind steer; when the client tries again, a task is ready, and the mesh may have answered already.
#[test]
fn a_syn_that_went_to_the_mesh_goes_there_again() {
    let Some((_elsewhere, docker, world)) = stage() else { return };
    let mut agent = Agent::start(&world, &docker, Attach::Tc);
    agent.wait_ready("web", 1);
    let task = docker.task_containers("web").remove(0);
    task.flip_listeners();
    let http = Http::new(&world.client, SocketAddr::from((HOST, PORT)));
    assert_eq!(http.backend(), "elsewhere");
    agent.wait_state(&task.name, "unready");
    let before = agent.counter("pass_mesh");
    world.host.output("iptables", "-I FORWARD -p tcp --syn -j DROP");
    let asked = {
        let http = http.clone();
        thread::spawn(move || http.get("/"))
    };
    agent.wait_for("its SYN has come", |status| status.counters["pass_mesh"] > before);
    task.flip_listeners();
    agent.wait_ready("web", 1);
    world.host.output("iptables", "-D FORWARD -p tcp --syn -j DROP");
    let reply = asked.join().expect("it does not panic").expect("it is answered");
    assert_eq!(reply.backend, "elsewhere");
    assert!(reply.took > Duration::from_millis(500), "a SYN was sent twice: {:?}", reply.took);
    assert_eq!(http.backend(), task.name);
}
