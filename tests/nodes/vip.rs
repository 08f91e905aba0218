//! Tasks that call a service by its virtual address, which is only ready on another machine.

use std::net::SocketAddr;

use steer_tests::docker::ServiceSpec;
use steer_tests::http::Http;
use steer_tests::nodes::Cluster;
use steer_tests::wait_until;

use super::LIMIT;

#[test]
fn a_task_is_connected_to_one_on_another_machine_and_told_the_virtual_address() {
    let Some(mut cluster) = Cluster::set() else { return };
    cluster.manager.create_overlay("front");
    let service =
        |name: &str, role: &str| ServiceSpec::greeter(name).network("front").constraint(&format!("node.role=={role}"));
    cluster.manager.create_service(service("api", "worker"));
    cluster.manager.create_service(service("caller", "manager"));
    cluster.manager.wait_tasks("api", 1, "greeter:v1");
    cluster.manager.wait_tasks("caller", 1, "greeter:v1");
    let vip = cluster.manager.vips("api")[&cluster.manager.network_id("front")];
    let address = SocketAddr::new(vip, 5000);
    let caller = cluster.manager.task_containers("caller").remove(0);
    let http = Http::new(&caller.ns(), address);
    let mut tasks = cluster.workers.iter().flat_map(|worker| worker.docker.task_containers("api"));
    let task = tasks.next().expect("it runs on a worker");
    drop(tasks);
    // By IPVS, and what is open by it stays.
    wait_until("Swarm connects them", LIMIT, || http.get("/").map_err(|failure| failure.to_string()));
    let mut before = http.open().expect("Swarm connects them");
    assert_eq!(before.get("/").expect("it is answered").backend, task.name);

    let agent = cluster.steer_manager();
    wait_until("steer connects them", LIMIT, || {
        let steered = agent.try_status()?.counters["steer_vip"];
        http.get("/").map_err(|failure| failure.to_string())?;
        let now = agent.try_status()?.counters["steer_vip"];
        if now > steered { Ok(()) } else { Err(format!("{now} were")) }
    });
    let steered = agent.counter("steer_vip");
    for _ in 0..10 {
        let mut session = http.open().expect("the task is ready");
        assert_eq!(session.get("/").expect("it is answered").backend, task.name);
        assert_eq!(caller.ns().run(|| session.stream().peer_addr()).expect("it is open"), address);
    }
    assert_eq!(agent.counter("steer_vip"), steered + 10);
    assert_eq!(before.get("/").expect("it is still open").backend, task.name);
}
