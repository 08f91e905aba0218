//! Tasks that end: told by Swarm before their containers know, and by their containers' end.

use std::time::{Duration, Instant};

use steer_tests::agent::Attach;
use steer_tests::docker::Container;
use steer_tests::long_lived::LongLived;
use steer_tests::pace;
use steer_tests::world::HOST;

use super::{PORT, client, manager, split, web};

/// Swarm waits for two seconds between its decision and the stop signal; until then, and for as long as its container serves, a
/// task keeps what it has.
#[test]
fn a_task_that_is_to_shut_down_gets_nothing_new_while_its_container_still_serves() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web().publish(9001, 5001).replicas(2).serves_on(6));
    host.agent.wait_ready("web", 2);
    let open: Vec<_> = (0..4).map(|_| LongLived::start(&host.world.client, (HOST, 9001))).collect();
    let begin = Instant::now();
    host.docker.scale("web", 1);
    let status = host.agent.wait_for("one is to end", |status| {
        status.service("web").is_some_and(|web| web.backends.iter().any(|task| task.cause.starts_with("swarm: ")))
    });
    let told = begin.elapsed();
    let leaving = status.services[0].backends.iter().find(|task| task.cause.starts_with("swarm: ")).expect("just seen");
    assert_eq!(leaving.state, "draining", "{status}");
    let runs = || host.docker.task_containers("web").iter().any(|container| container.name == leaving.name);
    let mut requests = 0;
    while begin.elapsed() < pace::lasting(Duration::from_secs(5)) {
        let answered = split(&client(&host, PORT), 10);
        assert!(!answered.contains_key(&leaving.name), "{answered:?}");
        requests += 10;
    }
    assert!(runs(), "it serves on for longer");
    assert_eq!(open.iter().filter(|life| life.backend == leaving.name).count(), 2);
    assert!(!open.iter().any(LongLived::is_over), "what is open stays");
    eprintln!("told after {told:?}; {requests} requests went to the other one while it ran");
    assert!(told < pace::soon(Duration::from_millis(1_500)), "{told:?}");
    host.agent.wait_state(&leaving.name, "gone");
    for life in open {
        if life.backend != leaving.name {
            life.finish_unharmed();
        }
    }
}

#[test]
fn a_task_that_is_stopped_or_killed_behind_swarms_back_is_out_at_once_and_replaced() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web().replicas(3).args(&["--close-after", "0.5"]));
    host.agent.wait_ready("web", 3);
    let clients = steer_tests::clients::Clients::start(&host.world, PORT);
    let first = |host: &steer_tests::clients::Host| -> Container { host.docker.task_containers("web").remove(0) };
    let stopped = first(&host);
    stopped.stop(None);
    host.agent.wait_state(&stopped.name, "gone");
    host.agent.wait_ready("web", 3);
    clients.flow_on();
    let fared = clients.finish();
    eprintln!("docker stop: {fared}");
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!((report.failed, report.stalled), (0, 0), "{report:#?}");
    }
    let clients = steer_tests::clients::Clients::start(&host.world, PORT);
    let killed = first(&host);
    killed.kill("KILL");
    host.agent.wait_state(&killed.name, "gone");
    host.agent.wait_ready("web", 3);
    clients.flow_on();
    let fared = clients.finish();
    eprintln!("kill -9: {fared}");
    for report in [&fared.close, &fared.keepalive] {
        // What was open to it has ended with it.
        assert_eq!((report.failures.refused, report.stalled), (0, 0), "{report:#?}");
    }
    assert_eq!(split(&client(&host, PORT), 12).len(), 3);
}

#[test]
fn a_paused_task_gets_nothing_until_it_goes_on() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web().replicas(2));
    host.agent.wait_ready("web", 2);
    let paused = host.docker.task_containers("web").remove(0);
    paused.pause();
    host.agent.wait_state(&paused.name, "unready");
    let answered = split(&client(&host, PORT), 10);
    assert!(answered.len() == 1 && !answered.contains_key(&paused.name), "{answered:?}");
    paused.unpause();
    host.agent.wait_ready("web", 2);
    assert_eq!(split(&client(&host, PORT), 10).len(), 2);
}
