//! No ready task on this node, but one on another: whatever it is that answers then, steer leaves it alone.
//!
//! What answers here is a greeter on another machine, behind a rule in front of Docker's own: the same in both worlds, with a
//! mesh that lives and with one that does not.

use std::net::SocketAddr;
use std::thread;
use std::time::Duration;

use steer_tests::agent::{Agent, Attach};
use steer_tests::docker::{Container, Docker};
use steer_tests::greeter::Greeter;
use steer_tests::http::Http;
use steer_tests::long_lived::LongLived;
use steer_tests::skip::{self, Need};
use steer_tests::world::{HOST, OTHER};
use steer_tests::{World, wait_until};

use super::worker::nodes;
use super::{PORT, web};

const ECHO: u16 = 9001;
const LIMIT: Duration = Duration::from_secs(30);

/// A task on each of two nodes, on the manager something that answers instead of the mesh, and no agent yet. Fields are dropped in
/// this order.
struct Stage {
    _elsewhere: Greeter,
    _worker: Docker,
    docker: Docker,
    world: World,
}

fn stage() -> Option<Stage> {
    if skip::without(&[Need::Root, Need::Docker, Need::Steer]) {
        return None;
    }
    let world = World::with_other();
    let (docker, worker) = nodes(&world);
    docker.create_service(web().replicas(2).publish(ECHO, 5001));
    docker.wait_tasks("web", 2, "greeter:v1");
    Some(Stage { _elsewhere: stand_in(&world), _worker: worker, docker, world })
}

impl Stage {
    /// An agent that steers to the task of its node, that task, and a client.
    fn steer(&self) -> (Agent, Container, Http) {
        let mut agent = Agent::start(&self.world, &self.docker, Attach::Tc);
        agent.wait_ready("web", 1);
        (
            agent,
            self.docker.task_containers("web").remove(0),
            Http::new(&self.world.client, SocketAddr::from((HOST, PORT))),
        )
    }
}

/// What answers instead of the mesh.
fn stand_in(world: &World) -> Greeter {
    let elsewhere = Greeter::start(world.other(), "elsewhere", &[]);
    for (port, target) in [(PORT, 5000), (ECHO, 5001)] {
        let rule = format!("PREROUTING -d {HOST} -p tcp --dport {port} -j DNAT --to-destination {OTHER}:{target}");
        world.host.output("iptables", &format!("-t nat -I {rule}"));
    }
    world.host.output("iptables", "-I FORWARD -j ACCEPT");
    elsewhere
}

#[test]
fn what_finds_no_ready_task_here_goes_on_to_the_mesh_and_stays_there() {
    let Some(stage) = stage() else { return };
    let Stage { docker, world, .. } = &stage;
    let http = Http::new(&world.client, SocketAddr::from((HOST, PORT)));
    assert_eq!(http.backend(), "elsewhere");
    let before = LongLived::start(&world.client, (HOST, ECHO));

    let mut agent = Agent::start(world, docker, Attach::Tc);
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

#[test]
fn a_task_that_is_drained_gets_nothing_by_steer_and_the_operator_is_told_who_goes_on() {
    let Some(stage) = stage() else { return };
    let (agent, task, http) = stage.steer();
    assert_eq!(http.backend(), task.name);
    let drained = agent.steer(&["drain", &task.name]);
    let said = String::from_utf8_lossy(&drained.stderr);
    assert!(drained.status.success() && said.contains("Swarm goes on sending it connections"), "{drained:?}");
    assert_eq!(http.backend(), "elsewhere", "another node has a task");
    agent.steer_ok(&["undrain", &task.name]);
    assert_eq!(http.backend(), task.name);
}

/// How long clients wait where the mesh cannot have anybody either.
const HOLD: Duration = Duration::from_secs(2);

/// All tasks are on this node, so clients wait for one that steer has; but not once there is one that steer leaves alone.
#[test]
fn what_steer_is_told_to_leave_alone_is_the_meshs_at_once_even_if_all_tasks_are_here() {
    if skip::without(&[Need::Root, Need::Docker, Need::Steer]) {
        return;
    }
    let world = World::with_other();
    let docker = Docker::start(&world);
    docker.import_greeter();
    docker.swarm_init(HOST);
    docker.create_service(web().label("steer.hold", &format!("{}s", HOLD.as_secs())).start_first());
    docker.wait_tasks("web", 1, "greeter:v1");
    let _elsewhere = stand_in(&world);
    let mut agent = Agent::start(&world, &docker, Attach::Tc);
    agent.wait_ready("web", 1);
    let http = Http::new(&world.client, SocketAddr::from((HOST, PORT)));
    let first = docker.task_containers("web").remove(0);
    first.flip_listeners();
    let late = http.get("/").expect("the mesh has the last word");
    assert!(late.backend == "elsewhere" && late.took > HOLD / 2, "all are here: who comes waits first: {late:?}");
    first.flip_listeners();
    agent.wait_ready("web", 1);
    assert_eq!(http.backend(), first.name);

    docker.update_service("web", |body| {
        let container = body.task_template.as_mut().and_then(|task| task.container_spec.as_mut());
        let labels = &mut container.expect("a service has containers").labels;
        labels.get_or_insert_default().insert("steer.ignore".to_owned(), "true".to_owned());
    });
    let mut answered = Vec::new();
    wait_until("the new task is left to the mesh", LIMIT, || {
        let reply = http.get("/").unwrap_or_else(|failure| panic!("{failure} after {answered:?}"));
        answered.push(reply.backend);
        let last = answered.iter().rev().take(20).filter(|name| *name == "elsewhere").count();
        if last == 20 { Ok(()) } else { Err(format!("{answered:?}")) }
    });
    docker.wait_tasks("web", 1, "greeter:v1");
    agent.wait_for("nothing of it is steered", |status| status.services.is_empty());
    assert_eq!(http.backend(), "elsewhere");
}

/// The first SYN got lost behind steer; when the client tries again, a task is ready, and the mesh may have answered already.
#[test]
fn a_syn_that_went_to_the_mesh_goes_there_again() {
    let Some(stage) = stage() else { return };
    let host = &stage.world.host;
    let (mut agent, task, http) = stage.steer();
    task.flip_listeners();
    assert_eq!(http.backend(), "elsewhere");
    agent.wait_state(&task.name, "unready");
    let before = agent.counter("pass_mesh");
    host.output("iptables", "-I FORWARD -p tcp --syn -j DROP");
    let asked = {
        let http = http.clone();
        thread::spawn(move || http.get("/"))
    };
    agent.wait_for("its SYN has come", |status| status.counters["pass_mesh"] > before);
    task.flip_listeners();
    agent.wait_ready("web", 1);
    host.output("iptables", "-D FORWARD -p tcp --syn -j DROP");
    let reply = asked.join().expect("it does not panic").expect("it is answered");
    assert_eq!(reply.backend, "elsewhere");
    assert!(reply.took > Duration::from_millis(500), "a SYN was sent twice: {:?}", reply.took);
    assert_eq!(http.backend(), task.name);
}
