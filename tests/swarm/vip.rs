//! Virtual addresses inside overlay networks: containers that call a service, on this node and across nodes.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use bollard::models::HealthStatusEnum;
use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::Host;
use steer_tests::docker::{Container, Docker, Proxy, ServiceSpec, Task};
use steer_tests::http::{Failure, Http, Session};
use steer_tests::load::{self, Load};
use steer_tests::world::HOST;
use steer_tests::{pace, wait_until};

use super::worker::Cluster;

const LIMIT: Duration = Duration::from_secs(30);

/// The address of a service in the network that is not the mesh's.
#[track_caller]
fn vip(cluster: &Cluster, service: &str) -> IpAddr {
    let network = cluster.manager.network_id("front");
    cluster.manager.vips(service)[&network]
}

pub(super) fn only(docker: &Docker, service: &str) -> Container {
    docker.task_containers(service).remove(0)
}

/// Waits until whoever asks from there is sent to this many tasks, in turn, and says which.
#[track_caller]
pub(super) fn wait_for_tasks(http: &Http, agent: &Agent, tasks: usize) -> BTreeSet<String> {
    wait_until(&format!("{tasks} tasks take turns"), LIMIT, || {
        let before = agent.counter("steer_vip");
        let mut answered: BTreeMap<String, u32> = BTreeMap::new();
        for _ in 0..2 * tasks {
            let reply = http.get("/").map_err(|failure| failure.to_string())?;
            *answered.entry(reply.backend).or_insert(0) += 1;
        }
        // One that comes while they take turns makes them uneven.
        let even = answered.values().all(|requests| *requests == 2);
        let steered = agent.counter("steer_vip") - before;
        if answered.len() == tasks && even && steered == 2 * tasks as u64 {
            Ok(answered.into_keys().collect())
        } else {
            Err(format!("{steered}: {answered:?}"))
        }
    })
}

#[test]
fn who_calls_a_service_by_its_virtual_address_gets_a_ready_task_local_or_remote() {
    let Some(mut cluster) = Cluster::set() else { return };
    cluster.manager.create_overlay("front");
    // The first is a backend too, the second is nobody's business but its callers'.
    cluster.manager.create_service(ServiceSpec::greeter("api").replicas(4).network("front").publish(9000, 5000));
    cluster.manager.create_service(ServiceSpec::greeter("caller").global().network("front"));
    cluster.manager.wait_tasks("api", 4, "greeter:v1");
    cluster.manager.wait_tasks("caller", 2, "greeter:v1");
    cluster.agent.wait_ready("api", 2);
    cluster.there.wait_ready("api", 2);
    let address = SocketAddr::new(vip(&cluster, "api"), 5000);

    for (docker, agent) in [(&cluster.manager, &cluster.agent), (&cluster.worker, &cluster.there)] {
        let caller = only(docker, "caller");
        wait_for_tasks(&Http::new(&caller.ns(), address), agent, 4);
    }

    // What the application is told of its connection is what it asked for; a local one counts until it ends.
    let caller = only(&cluster.manager, "caller");
    let http = Http::new(&caller.ns(), address);
    let mut sessions: Vec<_> = (0..4).map(|_| http.open().expect("a task is ready")).collect();
    let own: BTreeSet<String> =
        cluster.manager.task_containers("api").into_iter().map(|container| container.name).collect();
    let mut local = 0;
    for session in &mut sessions {
        assert_eq!(caller.ns().run(|| session.stream().peer_addr()).expect("it is open"), address);
        local += usize::from(own.contains(&session.get("/").expect("it is open").backend));
    }
    assert_eq!(local, 2);
    let live = |status: &steer_tests::agent::Status| -> u64 {
        status.service("api").map_or(0, |api| api.backends.iter().map(|task| task.live_flows).sum())
    };
    assert_eq!(live(&cluster.agent.status()), 2, "{}", cluster.agent.status());
    drop(sessions);
    cluster.agent.wait_for("they have ended", |status| live(status) == 0);
}

/// Until Swarm has said more, its last word is that the task is there, at an address where nobody is any more.
#[test]
fn a_task_that_has_just_ended_is_asked_for_by_nobody_though_swarm_has_not_said_more() {
    let Some((world, docker)) = Host::without_agent(Attach::Tc) else { return };
    docker.swarm_init(HOST);
    docker.create_overlay("front");
    // Published, so that it is seen when the agent knows of its end.
    docker.create_service(ServiceSpec::greeter("api").replicas(2).network("front").publish(9000, 5000));
    docker.create_service(ServiceSpec::greeter("caller").network("front"));
    docker.wait_tasks("api", 2, "greeter:v1");
    docker.wait_tasks("caller", 1, "greeter:v1");
    let proxy = Proxy::start(&world, &docker);
    let mut agent = Agent::start_with(&world, Some(&proxy.host_url()), Attach::Tc, &[]);
    agent.wait_ready("api", 2);
    let address = SocketAddr::new(docker.vips("api")[&docker.network_id("front")], 5000);
    let caller = only(&docker, "caller");
    let http = Http::new(&caller.ns(), address);
    wait_for_tasks(&http, &agent, 2);

    let tasks = docker.task_containers("api");
    let [first, second] = tasks.as_slice() else { panic!("{tasks:?}") };
    proxy.hang_swarm(true);
    first.kill("KILL");
    agent.wait_for("Docker has told of its end", |status| status.backend(&first.name).is_none());
    let steered = agent.counter("steer_vip");
    for _ in 0..6 {
        assert_eq!(http.get("/").map(|reply| reply.backend), Ok(second.name.clone()));
    }
    assert_eq!(agent.counter("steer_vip"), steered + 6);
    assert_ne!(proxy.held(), 0, "Swarm was asked, and has not answered");
    proxy.hang_swarm(false);
    let both = wait_for_tasks(&http, &agent, 2);
    assert!(both.contains(&second.name), "{both:?}");
}

#[test]
fn callers_notice_nothing_of_an_update() {
    let Some(cluster) = Cluster::set() else { return };
    cluster.manager.create_overlay("front");
    let api = ServiceSpec::greeter("api").replicas(4).network("front").start_first().healthcheck();
    cluster.manager.create_service(api);
    cluster.manager.create_service(ServiceSpec::greeter("caller").global().network("front"));
    cluster.manager.wait_tasks("api", 4, "greeter:v1");
    cluster.manager.wait_tasks("caller", 2, "greeter:v1");
    let address = SocketAddr::new(vip(&cluster, "api"), 5000);
    let caller = only(&cluster.manager, "caller");
    let http = Http::new(&caller.ns(), address);
    wait_for_tasks(&http, &cluster.agent, 4);

    cluster.manager.update_image("api", "greeter:v2");
    let (mut requests, mut failures) = (0, Vec::new());
    let begin = Instant::now();
    let mut v2 = 0;
    while v2 < 40 && begin.elapsed() < Duration::from_secs(90) {
        requests += 1;
        match http.get("/") {
            Ok(reply) => v2 = if reply.version == "v2" { v2 + 1 } else { 0 },
            Err(failure) => failures.push((begin.elapsed(), failure)),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    cluster.manager.wait_tasks("api", 4, "greeter:v2");
    wait_for_tasks(&http, &cluster.agent, 4);
    let left = cluster.agent.counter("pass_vip");
    eprintln!("{requests} requests in {:?}, failed: {failures:?}, {left} left to Swarm", begin.elapsed());
    assert_eq!(failures, []);
}

/// A service on both nodes, called by a task on one of them.
struct Across {
    cluster: Cluster,
    caller: Container,
    address: SocketAddr,
    /// The task on the other node.
    remote: Container,
}

impl Across {
    /// `from`: the caller's node, `manager` or `worker`. The service's tasks close their listener at their stop signal, and run on while
    /// they have a connection.
    #[track_caller]
    fn set(from: &str, api: ServiceSpec) -> Option<Self> {
        let cluster = Cluster::set()?;
        let grace = pace::lasting_secs(8);
        let api = api.args(&["--grace", &grace.to_string()]).stop_grace(Duration::from_secs(2 * u64::from(grace)));
        cluster.manager.create_overlay("front");
        cluster.manager.create_service(api.global().network("front"));
        let caller = ServiceSpec::greeter("caller").network("front").constraint(&format!("node.role=={from}"));
        cluster.manager.create_service(caller);
        cluster.manager.wait_tasks("api", 2, "greeter:v1");
        cluster.manager.wait_tasks("caller", 1, "greeter:v1");
        let address = SocketAddr::new(vip(&cluster, "api"), 5000);
        let (near, agent, far) = match from {
            "manager" => (&cluster.manager, &cluster.agent, &cluster.worker),
            _ => (&cluster.worker, &cluster.there, &cluster.manager),
        };
        let (caller, remote) = (only(near, "caller"), only(far, "api"));
        wait_for_tasks(&Http::new(&caller.ns(), address), agent, 2);
        Some(Self { cluster, caller, address, remote })
    }

    /// A connection to the task on the other node.
    #[track_caller]
    fn hold(&self) -> Session {
        let http = Http::new(&self.caller.ns(), self.address);
        let to_it = || {
            let mut session = http.open().ok()?;
            (session.get("/").ok()?.backend == self.remote.name).then_some(session)
        };
        (0..4).find_map(|_| to_it()).expect("they take turns")
    }

    fn remote_listens(&self) -> bool {
        let itself = Http::new(&self.remote.ns(), ([127, 0, 0, 1], 5000));
        itself.get("/healthz").err() != Some(Failure::Refused)
    }
}

/// IPVS sends it nothing new from when its node has decided that it is to end, two seconds before its stop signal. What is told lists it until
/// it has ended. `decide`: has that decided, and says when that was.
#[track_caller]
fn gets_nothing_new(world: &Across, decide: impl FnOnce(&Across) -> Instant) {
    let held = world.hold();
    let words = format!("--connections 8 --rate {} --seconds 3600 {}", pace::rate(200), load::patient());
    let load = Load::watch(&world.caller.ns(), world.address, &words);
    let progress = load.progress();
    let answered = || progress.latest().backends.get(&world.remote.name).copied().unwrap_or_default();
    wait_until("it is asked", LIMIT, || if answered() > 20 { Ok(()) } else { Err(answered()) });

    let decided = decide(world);
    let mut last = (answered(), Duration::ZERO);
    while world.remote_listens() {
        assert!(decided.elapsed() < LIMIT, "it is told to stop");
        if answered() > last.0 {
            last = (answered(), decided.elapsed());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let closed = decided.elapsed();
    std::thread::sleep(pace::lasting(Duration::from_secs(3)));
    let listed = world.cluster.worker.listed_tasks("front", "api");
    let report = load.stop();
    let (requests, failed) = (report.requests, report.failed);
    eprintln!(
        "last answer {:?} after the decision, listener closed after {closed:?}; {failed} of {requests} failed",
        last.1
    );
    assert!(listed.contains(&world.remote.name), "{listed:?}");
    assert_eq!(failed, 0, "{report:#?}");
    assert_eq!(report.backends[&world.remote.name], last.0, "{report:#?}");
    // Swarm waits for two seconds between the one and the other.
    assert!(closed - last.1 > Duration::from_millis(500), "{:?} and {closed:?}", last.1);
    drop(held);
}

#[test]
fn a_task_that_swarm_is_about_to_stop_on_another_node_gets_nothing_new_from_a_worker() {
    let Some(world) = Across::set("worker", ServiceSpec::greeter("api")) else { return };
    gets_nothing_new(&world, |world| {
        world.cluster.manager.drain_node(true);
        wait_until("Swarm has decided", LIMIT, || {
            let tasks = world.cluster.manager.tasks("api");
            let is_it = |task: &&Task| task.container.as_ref() == Some(&world.remote.id);
            match tasks.iter().find(is_it).map(|task| task.desired.as_str()) {
                Some("shutdown") => Ok(Instant::now()),
                other => Err(format!("{other:?}")),
            }
        })
    });
}

/// Its node decides that, and tells managers when it has ended.
#[test]
fn a_task_that_turns_unhealthy_on_another_node_gets_nothing_new_from_a_manager() {
    let Some(world) = Across::set("manager", ServiceSpec::greeter("api").healthcheck()) else { return };
    gets_nothing_new(&world, |world| {
        world.remote.kill("USR1");
        world.remote.wait_health(HealthStatusEnum::UNHEALTHY, LIMIT);
        Instant::now()
    });
}
