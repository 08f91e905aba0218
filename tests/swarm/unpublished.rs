//! Tasks that publish nothing: asked for by their service's virtual address alone, by other tasks of this node.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use bollard::models::{NetworkConnectRequest, NetworkCreateRequest};
use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::Host;
use steer_tests::docker::{Container, Proxy, ServiceSpec, has_mesh};
use steer_tests::http::{Failure, Http};
use steer_tests::world::HOST;
use steer_tests::{pace, wait_until};

use super::manager;
use super::vip::{only, wait_for_tasks};

const LIMIT: Duration = Duration::from_secs(30);
/// Of a request that nobody may answer.
const SHORT: Duration = Duration::from_millis(500);

fn api() -> ServiceSpec {
    ServiceSpec::greeter("api").network("front")
}

/// A manager on which one service can call another.
struct Inside {
    host: Host,
    caller: Container,
}

impl Inside {
    /// The service to be called need not answer yet.
    #[track_caller]
    fn set(api: ServiceSpec) -> Option<Self> {
        let host = manager(Attach::Tc)?;
        host.docker.create_overlay("front");
        let tasks = api.replicas.unwrap_or(1);
        host.docker.create_service(api);
        host.docker.create_service(ServiceSpec::greeter("caller").network("front"));
        host.docker.wait_tasks("api", tasks as usize, "greeter:v1");
        host.docker.wait_tasks("caller", 1, "greeter:v1");
        let caller = only(&host.docker, "caller");
        Some(Self { host, caller })
    }

    fn address(&self, service: &str) -> SocketAddr {
        SocketAddr::new(self.host.docker.vips(service)[&self.host.docker.network_id("front")], 5000)
    }

    /// What the caller asks a service.
    fn ask(&self, service: &str) -> Http {
        Http::new(&self.caller.ns(), self.address(service))
    }

    fn steered(&self) -> u64 {
        self.host.agent.counter("steer_vip")
    }
}

/// Swarm puts a task without a healthcheck behind the address as soon as its process was started.
#[test]
fn a_task_that_does_not_listen_yet_is_asked_for_by_nobody() {
    let listen_after = pace::lasting(Duration::from_secs(3));
    let delay = listen_after.as_secs().to_string();
    let Some(inside) = Inside::set(api().args(&["--listen-after", &delay])) else { return };
    let http = inside.ask("api");
    let first = wait_for_tasks(&http, &inside.host.agent, 1).pop_first().expect("one");
    inside.host.docker.scale("api", 2);
    let (mut requests, mut running, mut failures) = (0, None, Vec::new());
    let begin = Instant::now();
    loop {
        assert!(begin.elapsed() < LIMIT, "the new task answers");
        requests += 1;
        match http.get("/") {
            Ok(reply) if reply.backend != first => break,
            Ok(_) => {}
            Err(failure) => failures.push((begin.elapsed(), failure)),
        }
        if running.is_none() && inside.host.docker.task_containers("api").len() == 2 {
            running = Some((Instant::now(), requests));
        }
    }
    let (since, before) = running.expect("its process runs before it answers");
    eprintln!(
        "{} requests in the {:?} that it did not listen; failed: {failures:?}",
        requests - before,
        since.elapsed()
    );
    assert_eq!(failures, []);
    assert!(since.elapsed() > listen_after / 2 && requests - before > 50, "nobody was in a hurry");
    wait_for_tasks(&http, &inside.host.agent, 2);
}

#[test]
fn a_task_is_asked_for_by_nobody_while_it_is_paused_and_from_its_stop_signal_on() {
    let Some(inside) = Inside::set(api().replicas(3).serves_on(6)) else { return };
    let http = inside.ask("api");
    let agent = &inside.host.agent;
    wait_for_tasks(&http, agent, 3);
    let task = only(&inside.host.docker, "api");
    let without_it = |what: &str| {
        wait_until(what, LIMIT, || {
            let answered = wait_for_tasks(&http.clone().within(pace::soon(SHORT)), agent, 2);
            if answered.contains(&task.name) { Err(format!("{answered:?}")) } else { Ok(()) }
        });
        for _ in 0..30 {
            assert_ne!(http.get("/").map(|reply| reply.backend), Ok(task.name.clone()), "{what}");
        }
    };
    task.pause();
    without_it("while it is paused");
    task.unpause();
    wait_for_tasks(&http, agent, 3);

    task.kill("TERM");
    without_it("once it was told to stop");
    assert!(inside.host.docker.task_containers("api").iter().any(|other| other.id == task.id), "it serves on");
}

/// With nobody to send to, or nobody to be asked about, all of it is Swarm's matter.
#[test]
fn an_address_is_left_to_swarm_where_labels_say_so() {
    let Some(inside) = Inside::set(api()) else { return };
    let docker = &inside.host.docker;
    let labelled =
        |name: &str, label: &str, value: &str| ServiceSpec::greeter(name).network("front").label(label, value);
    docker.create_service(labelled("ignored", "steer.ignore", "true"));
    docker.create_service(labelled("idle", "steer.weight", "0"));
    docker.create_service(labelled("stranger", "steer.ignore", "true"));
    for service in ["ignored", "idle", "stranger"] {
        docker.wait_tasks(service, 1, "greeter:v1");
    }
    // Known to everybody by now: the last of them was there before these two.
    docker.create_service(ServiceSpec::greeter("last").network("front"));
    docker.wait_tasks("last", 1, "greeter:v1");
    wait_for_tasks(&inside.ask("last"), &inside.host.agent, 1);

    let has_mesh = has_mesh();
    let left = |http: Http, what: &str| {
        let steered = inside.steered();
        // Only what nobody answers is not waited for.
        let http = if has_mesh { http } else { http.within(pace::soon(SHORT)) };
        let answer = http.get("/");
        assert_eq!(answer.is_ok(), has_mesh, "{what}: by the kernel's own balancing, or by nobody: {answer:?}");
        assert_eq!(inside.steered(), steered, "{what}");
    };
    left(inside.ask("ignored"), "a service that is to be left alone");
    left(inside.ask("idle"), "tasks that are to get nothing");
    let stranger = only(docker, "stranger");
    left(Http::new(&stranger.ns(), inside.address("api")), "a caller that is to be left alone");
    assert!(inside.ask("api").get("/").is_ok());
}

/// A network names a service that was removed until its last task has ended.
#[test]
fn the_tasks_of_a_removed_service_keep_nobody_from_hearing_of_others() {
    let Some(mut inside) = Inside::set(api().serves_on(20)) else { return };
    inside.host.docker.create_service(super::web().replicas(2).serves_on(10));
    inside.host.agent.wait_ready("web", 2);
    wait_for_tasks(&inside.ask("api"), &inside.host.agent, 1);
    let removed = only(&inside.host.docker, "api");
    inside.host.docker.remove_service("api");
    inside.host.docker.scale("web", 1);
    inside.host.agent.wait_for("what Swarm wants is known before the task is told", |status| {
        status.service("web").is_some_and(|web| web.backends.iter().any(|task| task.cause.starts_with("swarm: ")))
    });
    assert_eq!(inside.host.agent.status().problems, []);
    let runs = inside.host.docker.inspect(&removed.id).state.and_then(|state| state.running);
    assert_eq!(runs, Some(true), "all that happened while it served on");
}

#[test]
fn nobody_hangs_on_a_task_that_closes_its_listener() {
    let Some(inside) = Inside::set(api().replicas(2)) else { return };
    let http = inside.ask("api");
    wait_for_tasks(&http, &inside.host.agent, 2);
    let task = only(&inside.host.docker, "api");
    task.flip_listeners();
    for _ in 0..30 {
        let answered = http.get("/").map(|reply| reply.backend);
        assert!(answered != Err(Failure::Refused), "the other one listens");
        assert_ne!(answered, Ok(task.name.clone()));
    }
    task.flip_listeners();
    wait_for_tasks(&http, &inside.host.agent, 2);
}

/// It may be asked for there, and ask for others.
#[test]
fn a_task_that_is_plugged_into_a_network_is_asked_about_at_once() {
    let Some((world, docker)) = Host::without_agent(Attach::Tc) else { return };
    docker.swarm_init(HOST);
    docker.create_overlay("front");
    docker.create_service(api());
    docker.create_service(ServiceSpec::greeter("caller").network("front"));
    docker.wait_tasks("api", 1, "greeter:v1");
    docker.wait_tasks("caller", 1, "greeter:v1");
    let side = NetworkCreateRequest { name: "side".to_owned(), ..Default::default() };
    docker.wait("create network", docker.api().create_network(side));
    let proxy = Proxy::start(&world, &docker);
    let mut agent = Agent::start_with(&world, Some(&proxy.host_url()), Attach::Tc, &[]);
    agent.wait_for("the agent has reached Docker", |status| status.agent.docker.is_some());
    let [task, caller] = ["api", "caller"].map(|service| only(&docker, service));
    let address = SocketAddr::new(docker.vips("api")[&docker.network_id("front")], 5000);
    wait_for_tasks(&Http::new(&caller.ns(), address), &agent, 1);

    let asked = || proxy.asked(&format!("/containers/{}/json", task.id));
    let before = asked();
    let connect = NetworkConnectRequest { container: task.id.clone(), endpoint_config: None };
    docker.wait("connect", docker.api().connect_network("side", connect));
    // Long before it is asked about with all others.
    wait_until("it is asked about", pace::soon(Duration::from_secs(5)), || match asked() {
        now if now > before => Ok(()),
        now => Err(format!("{now} times, as before")),
    });
}
