use rstest::rstest;

use super::*;
use crate::model::labels::{Defaults, spec_of_task};
use crate::model::{Problem, Spec, fixtures};

fn labels(more: &[(&str, &str)]) -> BTreeMap<String, String> {
    let swarm = [(SERVICE_ID, "s1"), (SERVICE_NAME, "web"), (TASK_ID, "t1"), ("com.docker.swarm.task", "")];
    swarm.iter().chain(more).map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
}

fn membership() -> Membership {
    Membership::of(&labels(&[])).unwrap()
}

fn service(id: Option<&str>, name: &str, port: u16) -> Service {
    Service { id: id.map(str::to_owned), name: name.to_owned(), ports: published([(port, 5000, Protocol::Tcp)]) }
}

fn task(desired: DesiredState) -> Option<BTreeMap<String, Task>> {
    Some([("t1".to_owned(), Task { desired })].into())
}

#[test]
fn a_container_is_a_task_by_its_labels() {
    let expected = Membership { service_id: "s1".to_owned(), service: "web".to_owned(), task: "t1".to_owned() };
    assert_eq!(membership(), expected);
    let mut some = labels(&[]);
    some.remove(TASK_ID);
    assert_eq!(Membership::of(&some), None);
}

#[test]
fn a_service_is_known_by_its_id_and_where_there_is_none_by_its_name() {
    let known = |services| Swarm { services, ..Swarm::default() }.ports(&membership()).map(|ports| ports[0].port);
    assert_eq!(
        known(vec![service(Some("s2"), "web", 1), service(Some("s1"), "web", 2)]),
        Some(2),
        "one of old, one of now"
    );
    assert_eq!(known(vec![service(Some("s2"), "web", 1)]), None);
    assert_eq!(known(vec![service(None, "api", 1), service(None, "web", 2)]), Some(2));
}

#[rstest]
#[case::it_is_to_run(task(DesiredState::Serve), None)]
#[case::it_is_to_end(task(DesiredState::Shutdown), Some(Leaving::Shutdown))]
#[case::its_service_is_gone(task(DesiredState::Remove), Some(Leaving::Remove))]
#[case::it_is_forgotten(Some(BTreeMap::new()), Some(Leaving::Unknown))]
#[case::nobody_tells(None, None)]
fn a_task_leaves_when_swarm_says_so(#[case] tasks: Option<BTreeMap<String, Task>>, #[case] expected: Option<Leaving>) {
    assert_eq!(Swarm { tasks, ..Swarm::default() }.leaving("t1"), expected);
}

/// Tasks on this node as `service` or `service=steered as`, of which `web`, `api` and `shop` have none on others.
#[rstest]
#[case::all_are_backends("web=web web=web api=api", "api shop web")]
#[case::none_runs_yet("", "api shop web")]
#[case::a_new_version_is_left_alone("web=web web", "api shop")]
#[case::or_all_are("web", "api shop")]
#[case::it_counts_among_another_services("web=web web=shop", "api")]
#[case::or_one_that_is_none_of_swarms("web=web web=lobby", "api shop")]
#[case::one_of_a_service_with_tasks_elsewhere("far=api far", "shop web")]
fn new_connections_wait_for_a_service_whose_tasks_are_all_here_and_all_steered_to(
    #[case] serving: &'static str,
    #[case] expected: &str,
) {
    let swarm = Swarm { all_here: ["web", "api", "shop"].map(str::to_owned).into(), ..Swarm::default() };
    let task = |text: &'static str| match text.split_once('=') {
        Some((service, steered_as)) => Serving { service, steered_as: Some(steered_as) },
        None => Serving { service: text, steered_as: None },
    };
    let all = swarm.all_steered(serving.split_whitespace().map(task));
    assert_eq!(all.into_iter().collect::<Vec<_>>().join(" "), expected);
}

#[test]
fn published_are_tcp_ports_each_once() {
    use Protocol::{Tcp, Udp};
    let ports = published([(9001, 5001, Tcp), (9000, 5000, Tcp), (53, 53, Udp), (9000, 5000, Tcp), (0, 80, Tcp)]);
    let pairs: Vec<_> = ports.iter().map(|port| (port.address, port.port, port.target)).collect();
    assert_eq!(pairs, [(None, 9000, 5000), (None, 9001, 5001)]);
}

fn asked(more: &[(&str, &str)], port: Option<u16>) -> Result<Option<Spec>, Vec<Problem>> {
    let defaults = Defaults { network: Some("front".to_owned()), ..Defaults::default() };
    let ports = published(port.map(|port| (port, 5000, Protocol::Tcp)));
    spec_of_task("web.1.t1", &labels(more), &ports, &defaults)
}

#[test]
fn a_published_port_asks_for_no_label() {
    let spec = asked(&[], Some(9000)).unwrap().unwrap();
    assert_eq!((spec.service.as_str(), spec.ports.len(), spec.mesh), ("web", 1, true));
    assert_eq!(spec.network.as_deref(), Some(GATEWAY), "whatever is the default of other containers");
    assert_eq!(spec.hold, Defaults::default().hold, "as long as all its tasks are here");
    assert_eq!(asked(&[], None), Ok(None));
}

#[test]
fn labels_refine() {
    let spec = asked(&[("steer.weight", "3"), ("steer.service", "shop"), ("steer.network", "bridge")], Some(9000));
    let spec = spec.unwrap().unwrap();
    assert_eq!((spec.weight, spec.service.as_str(), spec.network.as_deref()), (3, "shop", Some("bridge")));
    assert_eq!(asked(&[("steer.ignore", "true")], Some(9000)), Ok(None));
    assert_eq!(asked(&[("steer.hold", "3s")], Some(9000)).unwrap().unwrap().hold.as_secs(), 3);
    let own = asked(&[("steer.port", "80:8080"), ("steer.hold", "3s")], Some(9000)).unwrap().unwrap();
    assert_eq!((own.ports[0].port, own.mesh, own.hold.as_secs()), (80, false, 3), "no mesh has that port");
}

#[test]
fn a_task_gets_its_leg_to_the_host() {
    let leg = |network: &str, address: &str| NetworkLeg {
        network: network.to_owned(),
        address: address.parse().unwrap(),
        subnet: None,
        gateway: None,
    };
    let mut container = Container { legs: vec![leg("ingress", "10.0.0.4")], ..fixtures::container("6184", "web.1.t1") };
    add_gateway(&mut container, &Gateway::new());
    assert_eq!(container.legs.len(), 1);
    for address in ["172.18.0.3", "172.18.0.4"] {
        let gateway =
            [("6184".to_owned(), address.parse().unwrap()), ("ingress-sbox".to_owned(), "172.18.0.2".parse().unwrap())];
        add_gateway(&mut container, &gateway.into());
        assert_eq!(container.legs, [leg(GATEWAY, address), leg("ingress", "10.0.0.4")]);
    }
}

/// A network lists a service that was removed until its last task has ended, and about its tasks nobody answers.
#[test]
fn of_services_that_are_gone_no_virtual_address_is_asked_about() {
    let vip = |service: &str| vips::Vip {
        network: "front".to_owned(),
        service: service.to_owned(),
        address: "10.0.1.2".parse().unwrap(),
        tasks: BTreeMap::new(),
    };
    let services = vec![service(Some("s1"), "web", 80)];
    let mut swarm = Swarm { services, vips: vec![vip("gone"), vip("web")], ..Swarm::default() };
    swarm.keep_vips_of_services();
    assert_eq!(swarm.vips, [vip("web")]);
}
