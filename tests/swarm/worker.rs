//! A manager and a worker, each with an agent of its own: each steers to its own tasks.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::{Clients, cut};
use steer_tests::docker::{Docker, has_mesh};
use steer_tests::http::Http;
use steer_tests::long_lived::LongLived;
use steer_tests::skip::{self, Need};
use steer_tests::world::{CLIENT, HOST, HOST_FAR, OTHER};
use steer_tests::{World, look_until, pace, wait_until};

use super::{PORT, split, web};

/// Fields are dropped in this order.
pub(super) struct Cluster {
    /// The worker's agent.
    pub(super) there: Agent,
    pub(super) agent: Agent,
    pub(super) worker: Docker,
    pub(super) manager: Docker,
    pub(super) world: World,
}

impl Cluster {
    pub(super) fn set() -> Option<Self> {
        if skip::without(&[Need::Root, Need::Docker, Need::Steer]) {
            return None;
        }
        let world = World::with_other();
        let (manager, worker) = nodes(&world);
        let agent = Agent::start(&world, &manager, Attach::Tc);
        let there = Agent::start_on_other(&world, &worker);
        Some(Self { there, agent, worker, manager, world })
    }

    fn http(&self, address: Ipv4Addr) -> Http {
        Http::new(&self.world.client, SocketAddr::from((address, PORT)))
    }
}

/// A swarm of two: a manager, and a worker on the machine behind it.
pub(super) fn nodes(world: &World) -> (Docker, Docker) {
    world.other().sysctl("net/ipv4/ip_forward", "1");
    // No way to a name server either: a lookup must fail at once, as it does on the host, and not by a timeout.
    world.other().ip("route del default");
    world.other().ip(&format!("route add {CLIENT} via {HOST_FAR}"));
    let manager = Docker::start(world);
    let worker = Docker::start_on_other(world);
    manager.import_greeter();
    worker.import_greeter();
    manager.swarm_init(HOST_FAR);
    worker.swarm_join(OTHER, &manager, HOST_FAR);
    wait_until("the worker is ready", std::time::Duration::from_secs(30), || {
        let nodes = manager.nodes();
        if nodes.iter().filter(|state| *state == "ready").count() == 2 { Ok(()) } else { Err(format!("{nodes:?}")) }
    });
    (manager, worker)
}

/// The service's tasks on a node.
fn names(docker: &Docker) -> Vec<String> {
    let mut names: Vec<_> = docker.task_containers("web").into_iter().map(|container| container.name).collect();
    names.sort();
    names
}

/// Gives the service another image; each node has so many of its tasks.
#[track_caller]
fn update(cluster: &mut Cluster, on_each: usize) {
    cluster.manager.update_image("web", "greeter:v2");
    cluster.manager.wait_tasks("web", 2 * on_each, "greeter:v2");
    cluster.there.wait_for("the new tasks alone", |status| {
        status.service("web").is_some_and(|web| web.backends.len() == on_each && web.count("ready") == on_each)
    });
}

#[test]
fn each_node_steers_to_its_own_tasks() {
    let Some(mut cluster) = Cluster::set() else { return };
    cluster.manager.create_service(web().replicas(4));
    cluster.agent.wait_ready("web", 2);
    cluster.there.wait_ready("web", 2);
    for (docker, address) in [(&cluster.manager, HOST), (&cluster.worker, OTHER)] {
        let even = split(&cluster.http(address), 20);
        assert_eq!(even.keys().cloned().collect::<Vec<_>>(), names(docker), "{address}");
        assert_eq!(even.values().copied().collect::<Vec<_>>(), [10, 10], "{even:?}");
    }
    let problems = [cluster.agent.status().problems, cluster.there.status().problems];
    assert_eq!(problems, [vec![], vec![]]);

    cluster.manager.publish("web", &[(9100, 5000)]);
    cluster.manager.wait_tasks("web", 4, "greeter:v1");
    cluster.there.wait_for("a worker follows a changed port", |status| {
        let web = status.service("web");
        web.is_some_and(|web| {
            web.frontends == ["0.0.0.0:9100/tcp"] && web.backends.len() == 2 && web.count("ready") == 2
        })
    });
    let moved = Http::new(&cluster.world.client, SocketAddr::from((OTHER, 9100)));
    assert_eq!(split(&moved, 10).len(), 2);

    cluster.manager.remove_service("web");
    cluster.there.wait_for("and its end", |status| status.services.is_empty());
}

/// From the moment that the old task is no longer Swarm's, a worker is told of the new ports alone.
#[test]
fn what_is_open_on_a_port_that_an_update_changes_stays_on_a_worker_too() {
    const ECHO: u16 = 9001;
    let Some(mut cluster) = Cluster::set() else { return };
    cluster.manager.create_service(web().global().publish(ECHO, 5001).start_first().serves_on(9));
    cluster.there.wait_ready("web", 1);
    let open = LongLived::start(&cluster.world.client, (OTHER, ECHO));
    assert_eq!(vec![open.backend.clone()], names(&cluster.worker));

    cluster.manager.publish("web", &[(9100, 5000), (9101, 5001)]);
    let both = ["0.0.0.0:9000/tcp", "0.0.0.0:9001/tcp", "0.0.0.0:9100/tcp", "0.0.0.0:9101/tcp"];
    cluster.there.wait_for("the old task leaves with its ports, the new one has others", |status| {
        status.service("web").is_some_and(|web| {
            let mut frontends = web.frontends.clone();
            frontends.sort();
            web.count("ready") == 1 && web.count("draining") == 1 && frontends == both
        })
    });
    let exchanged = open.counter();
    let before = exchanged.load(Ordering::Relaxed);
    wait_until("what is open goes on", Duration::from_secs(30), || match exchanged.load(Ordering::Relaxed) {
        now if now >= before + 10 => Ok(()),
        now => Err(format!("{now} after {before}")),
    });
    assert!(!open.is_over());
    let status = cluster.there.wait_for("the old task has ended", |status| {
        status.service("web").is_some_and(|web| web.backends.len() == 1 && web.count("ready") == 1)
    });
    let mut frontends = status.service("web").map(|web| web.frontends.clone()).unwrap_or_default();
    frontends.sort();
    assert_eq!(frontends, both[2..], "{status}");
    let new = status.service("web").map(|web| web.backends[0].name.clone());
    let moved = Http::new(&cluster.world.client, SocketAddr::from((OTHER, 9100)));
    assert_eq!(split(&moved, 4).into_keys().collect::<Vec<_>>(), Vec::from_iter(new));
}

#[test]
fn a_worker_follows_an_update_under_load() {
    let Some(mut cluster) = Cluster::set() else { return };
    // Nobody tells a worker that a task is to shut down: its stop signal does, and connections that come in that very moment are
    // still answered by who listens on.
    cluster.manager.create_service(web().global().start_first().args(&["--close-after", "0.5"]).healthcheck());
    cluster.there.wait_ready("web", 1);
    let fared = Clients::start_at(&cluster.world, OTHER, PORT).during(|| update(&mut cluster, 1));
    let left = cluster.there.counter("pass_mesh");
    eprintln!("update on a worker: {fared}; {left} new flows left to the mesh");
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!(cut(report), 0, "{report:#?}");
    }
    // Without `ip_vs` there is no mesh: what is left to it has failed.
    let may_fail = if has_mesh() { 0 } else { left };
    assert!(fared.close.failed + fared.keepalive.failed <= may_fail, "{left}: {fared}");
}

#[test]
fn a_worker_follows_an_update_that_stops_first() {
    let Some(mut cluster) = Cluster::set() else { return };
    cluster.manager.create_service(web().replicas(4).args(&["--close-after", "0.5"]));
    cluster.there.wait_ready("web", 2);
    let fared = Clients::start_at(&cluster.world, OTHER, PORT).during(|| update(&mut cluster, 2));
    eprintln!("update on a worker, stop-first: {fared}");
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!((report.failed, cut(report)), (0, 0), "{report:#?}\n{}", cluster.there.status());
    }
}

/// Longer than any container is waited for that nobody has told steer more of.
#[test]
fn a_task_that_serves_on_in_a_long_stop_grace_is_not_put_back() {
    let Some(mut cluster) = Cluster::set() else { return };
    let patience = Duration::from_secs(10);
    cluster.manager.create_service(web().replicas(4).label("steer.drain", "1s").serves_on(20));
    cluster.there.wait_ready("web", 2);
    cluster.manager.scale("web", 2);
    let status = cluster.there.wait_for("one is told to stop", |status| {
        status
            .service("web")
            .is_some_and(|web| (web.count("ready"), web.count("draining") + web.count("drained")) == (1, 1))
    });
    let told = Instant::now();
    let web = status.service("web").expect("just seen");
    let leaving = web.backends.iter().find(|task| task.state != "ready").expect("just seen").name.clone();
    while told.elapsed() < patience + Duration::from_secs(3) {
        let answered = split(&cluster.http(OTHER), 10);
        assert!(!answered.contains_key(&leaving), "after {:?}: {answered:?}", told.elapsed());
    }
    assert!(names(&cluster.worker).contains(&leaving), "it serves on");
    let task = cluster.there.backend(&leaving);
    assert_eq!((task.state.as_str(), task.cause.as_str()), ("drained", "signal: TERM"));
}

/// Makes the worker a manager, and waits until its agent is told what a manager is told: of four tasks, two are to end then.
#[track_caller]
fn promote(cluster: &mut Cluster) {
    cluster.manager.create_service(web().replicas(4).serves_on(9));
    cluster.there.wait_ready("web", 2);
    cluster.manager.promote(&cluster.worker.node_id());
    wait_until("it is a manager", Duration::from_secs(30), || cluster.worker.try_nodes().map(drop));
    // Docker's own ear for the swarm's events opens a moment after it is a manager: what happens just then it may miss.
    for round in 0.. {
        cluster.manager.scale("web", 2);
        let told = look_until(pace::soon(Duration::from_secs(2)), || {
            let status = cluster.there.status();
            let web = status.service("web");
            let is_told = web.is_some_and(|web| web.backends.iter().any(|task| task.cause.starts_with("swarm: ")));
            if is_told { Ok(()) } else { Err(status.to_string()) }
        });
        let Err(status) = told else { return };
        assert!(round < 2, "nobody tells what Swarm wants: {status}");
        cluster.manager.scale("web", 4);
        cluster.there.wait_ready("web", 2);
    }
}

/// Sooner than by the next resync, which is every 30 s.
#[test]
fn a_worker_that_is_promoted_is_told_what_becomes_of_tasks() {
    if let Some(mut cluster) = Cluster::set() {
        promote(&mut cluster);
    }
}

/// Nobody answers what it asked as a manager any more.
#[test]
fn a_manager_that_is_demoted_goes_on_as_a_worker() {
    let Some(mut cluster) = Cluster::set() else { return };
    promote(&mut cluster);
    cluster.manager.demote(&cluster.worker.node_id());
    wait_until("it is a worker", Duration::from_secs(30), || {
        (!cluster.worker.is_manager()).then_some(()).ok_or("not yet")
    });
    cluster.manager.scale("web", 6);
    cluster.there.wait_ready("web", 3);
    let even = split(&cluster.http(OTHER), 30);
    assert_eq!(even.values().copied().collect::<Vec<_>>(), [10; 3], "{even:?}");
    // Each task takes its time to end, one after the other.
    cluster.manager.scale("web", 2);
    cluster.manager.publish("web", &[(9100, 5000)]);
    cluster.there.wait_for("it follows a changed port", |status| {
        status.service("web").is_some_and(|web| web.frontends == ["0.0.0.0:9100/tcp"] && web.count("ready") == 1)
    });
    let status = cluster.there.status();
    assert_eq!(status.problems, [], "{status}");
}
