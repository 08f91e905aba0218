use rstest::rstest;

use super::*;

fn read<T: serde::de::DeserializeOwned>(json: &str) -> T {
    serde_json::from_str(json).unwrap()
}

fn ports(service: &Service) -> Vec<(u16, u16)> {
    service.ports.iter().map(|port| (port.port, port.target)).collect()
}

#[rstest]
#[case::manager(r#"{"NodeID":"n1","LocalNodeState":"active","ControlAvailable":true}"#, Role::Manager("n1".to_owned()))]
#[case::worker(r#"{"NodeID":"n2","LocalNodeState":"active","ControlAvailable":false}"#, Role::Worker)]
#[case::in_none(r#"{"NodeID":"","LocalNodeState":"inactive","ControlAvailable":false}"#, Role::Outside)]
#[case::locked(r#"{"NodeID":"n1","LocalNodeState":"locked","ControlAvailable":false}"#, Role::Outside)]
#[case::a_docker_that_says_nothing_of_it("{}", Role::Outside)]
fn the_part_in_a_swarm_is_read(#[case] swarm: &str, #[case] expected: Role) {
    assert_eq!(role(read(&format!(r#"{{"ID":"x","Swarm":{swarm}}}"#))), expected);
    assert_eq!(role(read("{}")), Role::Outside);
}

/// Docker 20.10, shortened.
const SERVICES: &str = r#"[
    {"ID":"05w7","Version":{"Index":12},"Spec":{"Name":"web","Mode":{"Replicated":{"Replicas":2}}},
     "Endpoint":{"Spec":{"Mode":"vip"},"Ports":[
        {"Protocol":"tcp","TargetPort":5000,"PublishedPort":9000,"PublishMode":"ingress"},
        {"Protocol":"udp","TargetPort":53,"PublishedPort":53,"PublishMode":"ingress"},
        {"Protocol":"tcp","TargetPort":5001,"PublishedPort":9001,"PublishMode":"host"},
        {"Protocol":"tcp","TargetPort":5002}],
     "VirtualIPs":[{"NetworkID":"w4ua","Addr":"10.0.0.3/24"}]},
     "UpdateStatus":{"State":"updating","StartedAt":"2026-11-26T11:06:26Z","Message":"update in progress"}},
    {"ID":"7abc","Spec":{"Name":"inner"},"Endpoint":{"Spec":{},"Ports":null}},
    {"ID":"8abc","Spec":{"Name":"new"}}]"#;

#[test]
fn a_manager_tells_what_is_published_by_the_mesh_and_what_becomes_of_tasks() {
    let tasks = r#"[{"ID":"t1","DesiredState":"running","Status":{"State":"running"}},
        {"ID":"t2","DesiredState":"shutdown","Status":{"State":"running"}},{"ID":"t3","DesiredState":"remove"},
        {"ID":"t4","DesiredState":"ready"},{"ID":"t5","DesiredState":"complete"},{"ID":"t6"}]"#;
    let swarm = manager(read(SERVICES), read(tasks));
    assert!(swarm.is_updating);
    let names: Vec<_> = swarm.services.iter().map(|service| (service.name.as_str(), ports(service))).collect();
    assert_eq!(names, [("web", vec![(9000, 5000)]), ("inner", Vec::new()), ("new", Vec::new())]);
    let desired: Vec<_> = swarm.tasks.unwrap().into_values().map(|task| task.desired).collect();
    assert_eq!(
        desired,
        [
            DesiredState::Serve,
            DesiredState::Shutdown,
            DesiredState::Remove,
            DesiredState::Serve,
            DesiredState::Serve,
            DesiredState::Serve
        ]
    );
}

#[test]
fn a_service_is_all_here_if_none_of_its_tasks_is_elsewhere() {
    let services = r#"[{"ID":"a","Spec":{"Name":"here"}},{"ID":"b","Spec":{"Name":"both"}},
        {"ID":"c","Spec":{"Name":"elsewhere"}},{"ID":"d","Spec":{"Name":"scaled-to-none"}},{"ID":"e","Spec":{"Name":"moved"}}]"#;
    let tasks = r#"[{"ID":"1","ServiceID":"a","NodeID":"n1","DesiredState":"running"},
        {"ID":"2","ServiceID":"a","DesiredState":"running","Status":{"State":"pending"}},
        {"ID":"3","ServiceID":"b","NodeID":"n1","DesiredState":"running"},
        {"ID":"4","ServiceID":"b","NodeID":"n2","DesiredState":"running"},
        {"ID":"5","ServiceID":"c","NodeID":"n2","DesiredState":"running"},
        {"ID":"6","ServiceID":"d","NodeID":"n1","DesiredState":"shutdown"},
        {"ID":"7","ServiceID":"e","NodeID":"n1","DesiredState":"running"},
        {"ID":"8","ServiceID":"e","NodeID":"n2","DesiredState":"shutdown"}]"#;
    let swarm = manager(read(services), Vec::new());
    assert_eq!(services_of(&read::<Vec<TaskAnswer>>(tasks)).len(), 5);
    let found = all_here(&swarm.services, read(tasks), "n1");
    assert_eq!(found.iter().collect::<Vec<_>>(), ["here", "moved"]);
}

#[rstest]
#[case("updating", true)]
#[case("rollback_started", true)]
#[case("completed", false)]
#[case("paused", false)]
#[case("rollback_completed", false)]
fn an_update_under_way_is_seen(#[case] state: &str, #[case] expected: bool) {
    let services = format!(r#"[{{"ID":"a","Spec":{{"Name":"a"}},"UpdateStatus":{{"State":"{state}"}}}}]"#);
    assert_eq!(manager(read(&services), Vec::new()).is_updating, expected);
}

/// Docker 20.10, shortened.
const INGRESS: &str = r#"{"Name":"ingress","Id":"w4ua","Scope":"swarm","Driver":"overlay","Ingress":true,
    "Containers":{"6184":{"Name":"web.1.4p16","EndpointID":"f1bf","IPv4Address":"10.0.0.4/24"}},
    "Services":{
        "":{"VIP":"<nil>","Ports":[],"LocalLBIndex":0,"Tasks":[{"Name":"ingress-endpoint","EndpointIP":"10.0.0.2"}]},
        "web":{"VIP":"10.0.0.3","Ports":["Target: 5000, Publish: 9000","Target: 5001, Publish: 9001","else"],
            "LocalLBIndex":256,"Tasks":[{"Name":"web.2.7eni","EndpointIP":"10.0.0.5","Info":{"Host IP":"10.203.0.1"}}]}}}"#;

#[test]
fn a_worker_tells_what_is_published_and_nothing_of_tasks() {
    let swarm = worker(read(INGRESS));
    assert_eq!((swarm.services.len(), &swarm.tasks), (1, &None));
    assert_eq!((swarm.services[0].name.as_str(), ports(&swarm.services[0])), ("web", vec![(9000, 5000), (9001, 5001)]));
    assert_eq!(swarm.ingress.as_deref(), Some("ingress"));
    let empty = r#"{"Name":"ingress","Id":"w4ua","Ingress":true,"Containers":null,"Services":null}"#;
    assert_eq!(worker(read(empty)), Swarm { ingress: Some("ingress".to_owned()), ..Swarm::default() });
}

#[test]
fn a_worker_is_told_the_ports_of_the_task_that_stands_first() {
    let tasks = r#"[{"Name":"web.2.t2","EndpointIP":"10.0.0.5"},{"Name":"web.1.t1","EndpointIP":"10.0.0.4"}]"#;
    let service = format!(r#"{{"VIP":"10.0.0.3","Ports":["Target: 5000, Publish: 9000"],"Tasks":{tasks}}}"#);
    let nobody = r#"{"VIP":"10.0.0.6","Ports":[],"Tasks":null}"#;
    let ingress = format!(r#"{{"Name":"ingress","Id":"w","Services":{{"web":{service},"api":{nobody}}}}}"#);
    let told: Vec<_> = worker(read(&ingress)).served.into_iter().collect();
    assert_eq!(told, [("t2".to_owned(), published([(9000, 5000, Protocol::Tcp)]))]);
}

#[test]
fn the_legs_to_the_host_are_found_by_container() {
    let network = r#"{"Name":"docker_gwbridge","Id":"a764","Containers":{
        "6184":{"Name":"gateway_f89956de68af","IPv4Address":"172.18.0.3/16","IPv6Address":""},
        "6e96":{"Name":"gateway_0c65b8857d0b","IPv4Address":""},
        "ingress-sbox":{"Name":"gateway_ingress-sbox","IPv4Address":"172.18.0.2/16"}}}"#;
    let expected: Gateway = [("6184", "172.18.0.3"), ("ingress-sbox", "172.18.0.2")]
        .map(|(id, address)| (id.to_owned(), address.parse().unwrap()))
        .into();
    assert_eq!(gateway(read(network)), expected);
}

#[test]
fn virtual_addresses_are_read_with_the_tasks_behind_them() {
    let front = r#"{"Name":"front","Id":"f1","Scope":"swarm","Driver":"overlay","Services":{
        "":{"VIP":"<nil>","Ports":[],"Tasks":[{"Name":"front-endpoint","EndpointIP":"10.0.1.4"}]},
        "rr":{"VIP":"<nil>","Ports":[],"Tasks":[{"Name":"rr.1.t9","EndpointIP":"10.0.1.9"}]},
        "empty":{"VIP":"10.0.1.7","Ports":[],"Tasks":null},
        "api":{"VIP":"10.0.1.2","Ports":[],"LocalLBIndex":257,"Tasks":[
            {"Name":"api.2.t2","EndpointID":"d5","EndpointIP":"10.0.1.6","Info":{"Host IP":"10.203.0.1"}},
            {"Name":"api.node.t1","EndpointIP":"10.0.1.5"},{"Name":"odd","EndpointIP":"10.0.1.8"},
            {"Name":"api.3.t3","EndpointIP":""}]}}}"#;
    let ip = |text: &str| text.parse().unwrap();
    let tasks = [("t1".to_owned(), ip("10.0.1.5")), ("t2".to_owned(), ip("10.0.1.6"))].into();
    let vip = |service: &str, address: &str, tasks| Vip {
        network: "front".to_owned(),
        service: service.to_owned(),
        address: ip(address),
        tasks,
    };
    assert_eq!(vips(read(front), None), [vip("api", "10.0.1.2", tasks), vip("empty", "10.0.1.7", [].into())]);
}

/// One `api` was removed, and its tasks end slowly; another one was made. Docker tells both by that name.
#[test]
fn a_manager_tells_the_address_of_the_service_that_is_there_now() {
    let front = r#"{"Name":"front","Id":"f1","Services":{
        "api":{"VIP":"10.0.1.2","Tasks":[{"Name":"api.1.old","EndpointIP":"10.0.1.5"},{"Name":"api.1.new","EndpointIP":"10.0.1.8"}]},
        "rr":{"VIP":"10.0.1.20","Tasks":[{"Name":"rr.1.old","EndpointIP":"10.0.1.21"}]},
        "gone":{"VIP":"10.0.1.30","Tasks":[{"Name":"gone.1.old","EndpointIP":"10.0.1.31"}]}}}"#;
    let services: Vec<ServiceAnswer> = read(
        r#"[{"ID":"n","Spec":{"Name":"api"},"Endpoint":{"VirtualIPs":[
                {"NetworkID":"w4ua","Addr":"10.0.0.3/24"},{"NetworkID":"f1","Addr":"10.0.1.7/24"}]}},
            {"ID":"r","Spec":{"Name":"rr"},"Endpoint":{"VirtualIPs":[{"NetworkID":"f1"}]}}]"#,
    );
    let found = vips(read(front), Some(&addresses(&services)));
    let told: Vec<_> =
        found.iter().map(|vip| (vip.service.as_str(), vip.address.to_string(), vip.tasks.len())).collect();
    assert_eq!(told, [("api", "10.0.1.7".to_owned(), 2)], "and which of its tasks run is another question");
}

#[test]
fn of_tasks_those_that_run_and_are_to_run_count() {
    let tasks = r#"[{"ID":"t1","DesiredState":"running","Status":{"State":"running"}},
        {"ID":"t2","DesiredState":"shutdown","Status":{"State":"running"}},
        {"ID":"t3","DesiredState":"running","Status":{"State":"starting"}},{"ID":"t4","DesiredState":"running"}]"#;
    assert_eq!(running(read(tasks)), ["t1".to_owned()].into());
}
