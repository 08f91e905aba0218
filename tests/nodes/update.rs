//! What operators do to a service that has tasks on every machine, under load at every node: nobody may notice.

use std::net::Ipv4Addr;
use std::time::Duration;

use steer_tests::docker::{Health, ServiceSpec};
use steer_tests::load::Load;
use steer_tests::nodes::Cluster;
use steer_tests::pace;
use steer_tests::report::Report;
use steer_tests::wait_until;

use super::{LIMIT, PORT, all_names, is_of_the_mesh, names, web};

/// Requests that each client must have had answered before anything is done, and after.
const ENOUGH: u64 = 60;

/// With a healthcheck: the mesh, which a node without a task is left to, takes a task without one before it listens.
fn checked(replicas: usize) -> ServiceSpec {
    // Probes are processes, and slow ones here: few of them, and none that fails since it had to wait.
    let health = Health { interval: Duration::from_secs(3), retries: 5, ..Health::default() };
    let moment = pace::lasting(Duration::from_millis(500)).as_secs_f64().to_string();
    let spec = web().replicas(replicas as i64).start_first().args(&["--close-after", &moment]);
    ServiceSpec { health: Some(health), ..spec }
}

/// Clients of every node: those that open a connection for each request, and those that keep theirs for a while.
struct Clients {
    loads: Vec<(Ipv4Addr, Load)>,
}

impl Clients {
    #[track_caller]
    fn start(cluster: &Cluster) -> Self {
        // Little: machines share the cores of one, and what is counted is failures.
        let kinds = ["--connections 4 --rate 40", "--mode keepalive --connections 2 --rate 20 --per-connection 10"];
        let load = |node: Ipv4Addr, words: &str| {
            (node, Load::watch(&cluster.world.client, (node, PORT), &format!("{words} --seconds 3600")))
        };
        let nodes = cluster.nodes();
        let loads = nodes.iter().flat_map(|(node, _)| kinds.map(|words| load(*node, words))).collect();
        let clients = Self { loads };
        clients.flow_on();
        clients
    }

    #[track_caller]
    fn flow_on(&self) {
        let now = || self.loads.iter().map(|(_, load)| load.progress().latest().requests).collect::<Vec<_>>();
        let before = now();
        wait_until("requests are answered at every node", LIMIT, || {
            let now = now();
            let enough = now.iter().zip(&before).all(|(now, before)| *now >= before + ENOUGH);
            if enough { Ok(()) } else { Err(format!("{now:?} after {before:?}")) }
        });
    }

    /// Every request was answered. Should one not have been, it is told whether it was steer that broke a connection.
    #[track_caller]
    fn finish_unharmed(self, what: &str, cluster: &mut Cluster) {
        let reports: Vec<(Ipv4Addr, Report)> = self.loads.into_iter().map(|(node, load)| (node, load.stop())).collect();
        for (node, report) in &reports {
            let Report { mode, requests, failed, connections, stalled, slowest_ms, .. } = report;
            eprintln!(
                "{what}: {node}, {mode}: {requests} requests, {connections} connections, {failed} failed, {stalled} stalled, \
                 slowest {slowest_ms:.0} ms"
            );
        }
        let resets = ["reset_gone", "reset_no_backend"].map(|counter| {
            let of_manager = cluster.agent().status().counters.get(counter).copied();
            let of_workers = cluster.workers.iter().map(|worker| worker.counter(counter)).collect::<Vec<_>>();
            format!("{counter}: {of_manager:?} at the manager, {of_workers:?} at the workers")
        });
        for (node, report) in reports {
            assert_eq!(report.failed, 0, "{what}: {node}, {resets:?}: {report:#?}");
        }
    }
}

/// Waits until the service has `n` tasks of an image, and every one is ready where it is.
#[track_caller]
fn settled(cluster: &mut Cluster, n: usize, image: &str) {
    cluster.manager.wait_tasks("web", n, image);
    let own = names(&cluster.manager).len();
    cluster.agent().wait_ready("web", own);
    for worker in &cluster.workers {
        worker.wait_ready("web", names(&worker.docker).len());
    }
}

#[test]
fn updates_and_scaling_lose_nothing_at_any_node() {
    let Some(mut cluster) = Cluster::set() else { return };
    cluster.steer_all();
    let nodes = cluster.nodes().len();
    cluster.manager.create_service(checked(nodes));
    settled(&mut cluster, nodes, "greeter:v1");

    let clients = Clients::start(&cluster);
    cluster.manager.update_image("web", "greeter:v2");
    settled(&mut cluster, nodes, "greeter:v2");
    clients.flow_on();
    clients.finish_unharmed("update", &mut cluster);

    let clients = Clients::start(&cluster);
    for replicas in [2 * nodes, nodes] {
        cluster.manager.scale("web", replicas as i64);
        settled(&mut cluster, replicas, "greeter:v2");
    }
    clients.flow_on();
    clients.finish_unharmed("scale", &mut cluster);
}

#[test]
fn a_drained_worker_loses_nothing() {
    let Some(mut cluster) = Cluster::set() else { return };
    cluster.steer_all();
    let nodes = cluster.nodes().len();
    cluster.manager.create_service(checked(nodes));
    settled(&mut cluster, nodes, "greeter:v1");

    let worker = cluster.workers[0].docker.node_id();
    let clients = Clients::start(&cluster);
    cluster.manager.drain_other_node(&worker, true);
    cluster.workers[0]
        .wait_for("it has no task any more", |status| status.service("web").is_none_or(|web| web.backends.is_empty()));
    settled(&mut cluster, nodes, "greeter:v1");
    clients.flow_on();
    eprintln!("drain: {} new flows left to the mesh by the worker", cluster.workers[0].counter("pass_mesh"));
    clients.finish_unharmed("drain", &mut cluster);
    assert!(names(&cluster.workers[0].docker).is_empty());
    is_of_the_mesh(&cluster, cluster.workers[0].address, &all_names(&cluster));
}
