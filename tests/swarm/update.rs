//! What operators do to a service, under load: nobody may notice.

use std::slice;
use std::time::Duration;

use steer_tests::agent::Attach;
use steer_tests::clients::{Clients, Host, cut};
use steer_tests::docker::ServiceSpec;
use steer_tests::long_lived::{LongLived, go_on};
use steer_tests::world::HOST;
use steer_tests::{pace, wait_until};

use super::{PORT, client, manager, split, web};

const LIMIT: Duration = Duration::from_secs(30);
/// For an answer that nobody gives.
const SHORT: Duration = Duration::from_secs(1);
/// What `steer.hold` is where no label says otherwise.
const HOLD_MS: f64 = 10_000.0;

/// Does it under load, and panics unless every request was answered, on the connection that it was sent on.
#[track_caller]
fn unharmed(host: &mut Host, what: &str, work: impl FnOnce(&mut Host)) {
    let fared = Clients::start(&host.world, PORT).during(|| work(host));
    eprintln!("{what}: {fared}");
    for report in [&fared.close, &fared.keepalive] {
        assert_eq!((report.failed, report.stalled), (0, 0), "{what}: {report:#?}");
    }
}

/// Waits until the service consists of `n` ready tasks of an image, and of nothing else.
#[track_caller]
fn settled(host: &mut Host, n: usize, image: &str) {
    host.docker.wait_tasks("web", n, image);
    host.agent.wait_for(&format!("{n} tasks of {image}, all ready"), |status| {
        status.service("web").is_some_and(|web| web.backends.len() == n && web.count("ready") == n)
    });
}

/// Waits until Swarm was asked after the tasks that there are: what these serve is no guess any more.
#[track_caller]
fn wait_until_ports_are_known(host: &mut Host) {
    host.docker.create_service(ServiceSpec::greeter("later").publish(9002, 5000));
    host.agent.wait_ready("later", 1);
}

/// How many of the service's tasks have a healthcheck.
fn probed(host: &Host) -> usize {
    let tasks = host.docker.task_containers("web");
    let facts = tasks.iter().map(|task| host.docker.inspect(&task.id));
    facts.filter(|facts| facts.config.as_ref().is_some_and(|config| config.healthcheck.is_some())).count()
}

fn updates(spec: ServiceSpec, what: &str) {
    let Some(mut host) = manager(Attach::Tc) else { return };
    let with_healthcheck = if spec.health.is_some() { 2 } else { 0 };
    host.docker.create_service(spec.replicas(2));
    settled(&mut host, 2, "greeter:v1");
    unharmed(&mut host, &format!("update, {what}"), |host| {
        host.docker.update_image("web", "greeter:v2");
        settled(host, 2, "greeter:v2");
    });
    assert_eq!(probed(&host), with_healthcheck, "an update changes the image alone");
    let reply = client(&host, PORT).get("/").expect("it serves");
    assert_eq!(reply.version, "v2");
    unharmed(&mut host, &format!("rollback, {what}"), |host| {
        host.docker.rollback("web");
        settled(host, 2, "greeter:v1");
    });
    assert_eq!(split(&client(&host, PORT), 10).len(), 2);
}

#[test]
fn an_update_that_starts_first_loses_nothing() {
    updates(web().start_first(), "start-first, listening");
}

/// Swarm takes a task without a healthcheck for one that serves as soon as it was started, and ends the old one. Until the new one
/// listens there is nobody, on any node: who comes meanwhile waits.
#[test]
fn an_update_of_the_only_task_loses_nothing_however_slow_it_is_to_listen() {
    for (what, order) in
        [("start-first", ServiceSpec::start_first as fn(ServiceSpec) -> ServiceSpec), ("stop-first", |spec| spec)]
    {
        let Some(mut host) = manager(Attach::Tc) else { return };
        host.docker.create_service(order(web().args(&["--listen-after", "1"])));
        settled(&mut host, 1, "greeter:v1");
        let fared = Clients::start(&host.world, PORT).during(|| {
            host.docker.update_image("web", "greeter:v2");
            settled(&mut host, 1, "greeter:v2");
        });
        eprintln!("a slow starter, {what}: {fared}");
        for report in [&fared.close, &fared.keepalive] {
            assert_eq!((report.failed, cut(report)), (0, 0), "{what}: {report:#?}");
            assert!(report.slowest_ms < HOLD_MS, "{what}: nobody waits for longer: {report:#?}");
        }
    }
}

/// In the end it is told that there is nobody.
#[test]
fn clients_of_the_only_task_do_not_wait_for_longer_than_its_label_says() {
    let Some(host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web().label("steer.hold", "1s").args(&["--listen-after", "600"]));
    host.docker.wait_tasks("web", 1, "greeter:v1");
    let http = client(&host, PORT);
    wait_until("a client waits, and is the mesh's then", LIMIT, || {
        let before = host.agent.status().counters;
        let told = http.get("/");
        let after = host.agent.status().counters;
        assert_eq!(after["reset_no_backend"], 0);
        let both = ["drop_hold", "pass_mesh"].into_iter().all(|name| after[name] > before[name]);
        if both { Ok(()) } else { Err(format!("{told:?}: {after:?}")) }
    });
}

#[test]
fn an_update_that_starts_first_loses_nothing_with_a_healthcheck() {
    updates(web().start_first().healthcheck(), "start-first, healthcheck");
}

#[test]
fn an_update_that_stops_first_loses_nothing_while_another_task_is_ready() {
    updates(web(), "stop-first, listening");
}

#[test]
fn an_update_that_stops_first_loses_nothing_with_a_healthcheck() {
    updates(web().healthcheck(), "stop-first, healthcheck");
}

/// One on each node: an update has to stop it before the next one can come.
#[test]
fn an_update_of_a_global_service_loses_nothing() {
    for order in [ServiceSpec::start_first as fn(ServiceSpec) -> ServiceSpec, |spec| spec] {
        let Some(mut host) = manager(Attach::Tc) else { return };
        host.docker.create_service(order(web().global()));
        settled(&mut host, 1, "greeter:v1");
        let fared = Clients::start(&host.world, PORT).during(|| {
            host.docker.update_image("web", "greeter:v2");
            settled(&mut host, 1, "greeter:v2");
        });
        eprintln!("a global service: {fared}");
        for report in [&fared.close, &fared.keepalive] {
            assert_eq!((report.failed, cut(report)), (0, 0), "{report:#?}");
        }
    }
}

/// What Docker's own port mapping does is none of the mesh's, and none of steer's.
#[test]
fn a_service_may_publish_one_port_by_the_mesh_and_another_by_its_node() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web().global().publish_on_host(9001, 5000));
    settled(&mut host, 1, "greeter:v1");
    let frontends = host.agent.status().service("web").map(|web| web.frontends.clone());
    assert_eq!(frontends, Some(vec![format!("0.0.0.0:{PORT}/tcp")]));
    assert_eq!(split(&client(&host, PORT), 4).len(), 1);
    let steered = host.agent.counter("steer_new");
    assert!(client(&host, 9001).get("/").is_ok(), "by Docker");
    assert_eq!(host.agent.counter("steer_new"), steered);
    assert_eq!(host.agent.status().problems, []);
}

#[test]
fn scaling_loses_nothing() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web());
    settled(&mut host, 1, "greeter:v1");
    unharmed(&mut host, "scale to 4 and back to 1", |host| {
        for replicas in [4, 1] {
            host.docker.scale("web", replicas);
            settled(host, replicas as usize, "greeter:v1");
        }
    });
}

#[test]
fn a_changed_port_is_followed_and_what_is_open_on_the_old_one_stays_as_long_as_its_task() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web().publish(9001, 5001).serves_on(8).start_first());
    settled(&mut host, 1, "greeter:v1");
    wait_until_ports_are_known(&mut host);
    let open = LongLived::start(&host.world.client, (HOST, 9001));
    host.docker.publish("web", &[(9100, 5000)]);
    host.agent.wait_for("the new port is a frontend", |status| {
        status.service("web").is_some_and(|web| web.frontends.iter().any(|frontend| frontend.contains(":9100")))
    });
    host.agent.wait_for("the new task is ready, the old one leaves", |status| {
        status.service("web").is_some_and(|web| web.count("ready") == 1 && web.count("draining") == 1)
    });
    go_on(slice::from_ref(&open));
    assert_eq!(split(&client(&host, 9100), 5).len(), 1);
    let asked = client(&host, PORT).within(pace::soon(SHORT)).get("/");
    assert!(asked.is_err(), "nobody publishes that port any more: {asked:?}");
    settled(&mut host, 1, "greeter:v1");
    let frontends = host.agent.status().service("web").map(|web| web.frontends.clone());
    assert_eq!(frontends, Some(vec!["0.0.0.0:9100/tcp".to_owned()]));
}

#[test]
fn a_removed_service_gets_nothing_new_and_what_is_open_stays_as_long_as_its_task() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web().publish(9001, 5001).serves_on(8));
    settled(&mut host, 1, "greeter:v1");
    let open = LongLived::start(&host.world.client, (HOST, 9001));
    host.docker.remove_service("web");
    host.agent
        .wait_for("its task leaves", |status| status.service("web").is_some_and(|web| web.count("draining") == 1));
    go_on(slice::from_ref(&open));
    let steered = host.agent.counter("steer_new");
    let asked = client(&host, PORT).within(pace::soon(SHORT)).get("/");
    assert_eq!(host.agent.counter("steer_new"), steered, "{asked:?}");
    host.agent.wait_for("nothing is left of it", |status| status.services.is_empty());
}

/// The mesh has given the port away before the first task that serves it is told to end.
#[test]
fn a_port_that_another_service_has_now_is_answered_by_nobody_else() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web().publish(9001, 5001).serves_on(15).start_first());
    settled(&mut host, 1, "greeter:v1");
    wait_until_ports_are_known(&mut host);
    let open = LongLived::start(&host.world.client, (HOST, 9001));
    host.docker.publish("web", &[(9100, 5000)]);
    host.docker.create_service(ServiceSpec::greeter("next").publish(PORT, 5000).publish(9001, 5001));
    host.docker.wait_tasks("next", 1, "greeter:v1");
    let http = client(&host, PORT);
    // Where the mesh is dead, nobody answers before the last task of the old service has ended, nor refuses: that takes seconds.
    let answers = || http.get("/").ok().map(|reply| reply.backend);
    let is_next = |name: &String| name.starts_with("next.");
    wait_until("it is the old one's no more", LIMIT, || match answers() {
        Some(name) if !is_next(&name) => Err(name),
        _ => Ok(()),
    });
    if open.is_over() {
        panic!("the old task runs still: {:?}, {}", open.finish(), host.agent.status());
    }
    host.agent.wait_ready("next", 1);
    wait_until("it is the new one's", LIMIT, || match answers() {
        Some(name) if is_next(&name) => Ok(()),
        None => Err("nobody answers"),
        Some(name) => panic!("{name} answers"),
    });
}

#[test]
fn a_removed_service_and_a_drained_node_leave_nothing_steered() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    host.docker.create_service(web().replicas(2));
    host.docker.create_service(ServiceSpec::greeter("other").publish(9001, 5000));
    settled(&mut host, 2, "greeter:v1");
    host.agent.wait_ready("other", 1);
    host.docker.remove_service("other");
    host.agent.wait_for("it is gone", |status| status.service("other").is_none());

    host.docker.drain_node(true);
    host.agent.wait_for("nothing new for a drained node", |status| {
        status.service("web").is_none_or(|web| web.count("ready") == 0)
    });
    host.agent.wait_for("and then nothing at all", |status| status.services.is_empty());
    host.docker.drain_node(false);
    settled(&mut host, 2, "greeter:v1");
    wait_until("both take turns", LIMIT, || match split(&client(&host, PORT), 10) {
        split if split.len() == 2 => Ok(()),
        split => Err(format!("{split:?}")),
    });
    assert_eq!(host.agent.status().problems, []);
}
