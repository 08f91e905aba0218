//! Labels of a service's containers.

use std::time::Duration;

use steer_tests::agent::Attach;
use steer_tests::docker::ServiceSpec;
use steer_tests::pace;
use steer_tests::world::CLIENT;

use super::{client, manager, split, web};

#[test]
fn labels_refine_what_is_steered_and_bad_ones_hurt_nobody_else() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    let service = |name: &str, port: u16| ServiceSpec::greeter(name).publish(port, 5000);
    host.docker.create_service(web().label("steer.balance", "source").label("steer.weight", "7").replicas(2));
    host.docker.create_service(service("ignored", 9001).label("steer.ignore", "true"));
    host.docker.create_service(service("wrong", 9002).label("steer.weight", "much"));
    // A label instead of a published port, and one that nobody else publishes.
    host.docker.create_service(ServiceSpec::greeter("own").label("steer.port", "9004:5000").publish(9005, 5000));
    host.agent.wait_ready("web", 2);
    host.agent.wait_ready("own", 1);
    let status = host.agent.wait_for("the label at fault is told", |status| !status.problems.is_empty());

    let web = status.service("web").expect("it is ready");
    assert_eq!((web.balance.as_str(), web.backends[0].weight), ("source", 7), "{status}");
    assert_eq!(split(&client(&host, super::PORT), 10).len(), 1, "one client, one task");
    assert_eq!(split(&client(&host, 9004), 5).len(), 1);
    for name in ["ignored", "wrong"] {
        assert!(status.service(name).is_none(), "{status}");
    }
    let mut labels: Vec<_> = status.problems.iter().filter_map(|problem| problem.label.as_deref()).collect();
    labels.sort_unstable();
    assert_eq!(labels, ["steer.weight"], "{status}");
}

/// Whom the list leaves out is not the mesh's either, which would let everybody in.
#[test]
fn an_allow_list_keeps_out_of_a_task_whom_it_does_not_name() {
    let Some(mut host) = manager(Attach::Tc) else { return };
    let service =
        |name: &str, port: u16, allow: &str| ServiceSpec::greeter(name).publish(port, 5000).label("steer.allow", allow);
    host.docker.create_service(service("open", 9001, &format!("192.0.2.0/24, {CLIENT}")));
    host.docker.create_service(service("shut", 9002, "192.0.2.0/24"));
    host.agent.wait_ready("open", 1);
    host.agent.wait_ready("shut", 1);
    assert_eq!(split(&client(&host, 9001), 5).len(), 1);
    let passed = host.agent.counter("pass_mesh");
    let asked = client(&host, 9002).within(pace::soon(Duration::from_secs(1))).get("/");
    assert!(asked.is_err(), "{asked:?}");
    assert!(host.agent.counter("drop_not_allowed") > 0);
    assert_eq!(host.agent.counter("pass_mesh"), passed);
}
