use std::cell::Cell;

use rstest::rstest;

use super::fake::Dockerd;
use super::*;
use crate::model::swarm::Leaving;

#[test]
fn api_versions_compare_as_numbers() {
    let parsed: Vec<_> = ["1.9", "1.41", "1.53", "2.0"].into_iter().filter_map(ApiVersion::parse).collect();
    assert_eq!(parsed, [ApiVersion(1, 9), ApiVersion(1, 41), ApiVersion(1, 53), ApiVersion(2, 0)]);
    assert!(parsed.is_sorted());
    for wrong in ["", "1", "1.", ".1", "1.x", "v1.41"] {
        assert_eq!(ApiVersion::parse(wrong), None, "{wrong}");
    }
}

/// What Docker says of a request: see [`Dockerd::serve`].
type Said = Option<Result<&'static str, &'static str>>;

/// The answer to a question, from a dockerd that says this.
async fn answer<T>(says: impl Fn(&str) -> Said, question: impl AsyncFnOnce(Docker) -> T) -> T {
    let dockerd = Dockerd::start();
    tokio::select! {
        answer = question(Dockerd::client(&dockerd.path)) => answer,
        () = dockerd.serve(says) => panic!("it serves for ever"),
    }
}

fn ids(containers: &[Container]) -> Vec<&str> {
    containers.iter().map(|container| container.id.0.as_str()).collect()
}

#[tokio::test]
async fn a_container_that_is_not_described_does_not_drop_the_list() {
    let says = |line: &str| match line.split(['/', '?']).nth(3) {
        Some("json") => Some(Ok(r#"[{"Id":"good"},{"Id":"bad"},{"Id":"gone"}]"#)),
        Some("good") => Some(Ok(r#"{"Id":"good","State":{"Running":true,"Pid":7}}"#)),
        Some("gone") => Some(Err("")),
        _ => Some(Err("out of order")),
    };
    let listed = answer(says, async |docker| docker.containers().await).await.unwrap();
    assert_eq!(ids(&listed.containers), ["good"]);
    let [(id, error)] = listed.unknown.as_slice() else { panic!("{listed:?}") };
    assert_eq!(id.0, "bad");
    assert!(format!("{error:#}").contains("out of order"), "{error:#}");
    assert!(listed.swarm.swarm.is_err(), "{listed:?}");
}

#[tokio::test]
async fn tasks_that_nobody_tells_the_way_to_do_not_drop_the_list() {
    let says = |line: &str| match line.split(['/', '?']).nth(3) {
        Some("json") => Some(Ok(r#"[{"Id":"plain"},{"Id":"task"}]"#)),
        Some("plain") => Some(Ok(r#"{"Id":"plain","State":{"Running":true,"Pid":7}}"#)),
        Some("task") => Some(Ok(
            r#"{"Id":"task","State":{"Running":true,"Pid":8},"Config":{"Labels":{"com.docker.swarm.service.id":"s"}}}"#,
        )),
        _ => Some(Err("out of order")),
    };
    let listed = answer(says, async |docker| docker.containers().await).await.unwrap();
    assert_eq!(ids(&listed.containers), ["plain"]);
    let [(id, error)] = listed.unknown.as_slice() else { panic!("{listed:?}") };
    assert_eq!(id.0, "task");
    let error = format!("{error:#}");
    assert!(error.contains(GATEWAY) && error.contains("out of order"), "{error}");
}

/// A manager with two services and a task, of whose networks `front` has one service's virtual address, and `back` the other's.
fn manager(line: &str) -> &'static str {
    let path = line.split(' ').nth(1).unwrap_or_default().trim_start_matches("/v1.41");
    match path {
        "/services" => {
            r#"[{"ID":"a","Spec":{"Name":"api"},"Endpoint":{"VirtualIPs":[{"NetworkID":"f1","Addr":"10.0.1.2/24"}]}},
                {"ID":"d","Spec":{"Name":"db"},"Endpoint":{"VirtualIPs":[{"NetworkID":"b1","Addr":"10.0.2.2/24"}]}}]"#
        }
        "/networks/f1?verbose=true" => r#"{"Name":"front","Id":"f1","Services":{"api":{"VIP":"10.0.1.2"}}}"#,
        "/networks/b1?verbose=true" => r#"{"Name":"back","Id":"b1","Services":{"db":{"VIP":"10.0.2.2"}}}"#,
        _ if path.starts_with("/networks?") && path.contains("front") => r#"[{"Name":"front","Id":"f1"}]"#,
        _ if path.starts_with("/networks?") => r#"[{"Name":"back","Id":"b1"}]"#,
        _ if path.starts_with("/tasks?") => r#"[{"ID":"t1","ServiceID":"a","DesiredState":"shutdown"}]"#,
        _ => panic!("{line}"),
    }
}

/// What is asked for by a question with this in it is not told.
#[rstest]
#[case::nothing_is_wrong("nowhere", Some(Err("")), &["db", "api"], &[])]
#[case::a_network_is_refused("/networks/b1", Some(Err("out of order")), &["api"], &["network back", "out of order"])]
#[case::a_network_hangs("/networks/b1", None, &["api"], &["network back", "no answer within"])]
#[case::tasks_are_refused("desired-state", Some(Err("out of order")), &[], &["which tasks", "out of order"])]
#[tokio::test]
async fn what_is_not_told_of_virtual_addresses_costs_nothing_of_services_and_tasks(
    #[case] words: &'static str,
    #[case] said: Said,
    #[case] vips: &[&str],
    #[case] untold: &[&str],
) {
    let networks = ["front", "back"].map(str::to_owned).into();
    let role = Some(Role::Manager("n1".to_owned()));
    let says = |line: &str| if line.contains(words) { said } else { Some(Ok(manager(line))) };
    let told = answer(says, async |docker| docker.swarm(role, &networks).await).await;
    let swarm = told.swarm.unwrap().expect("it is part of one");
    assert_eq!((swarm.services.len(), swarm.leaving("t1")), (2, Some(Leaving::Shutdown)));
    let found: Vec<_> = swarm.vips.iter().map(|vip| vip.service.as_str()).collect();
    assert_eq!((found.as_slice(), swarm.running.is_some()), (vips, !vips.is_empty()));
    assert_eq!(swarm.untold.len(), usize::from(!untold.is_empty()), "{:?}", swarm.untold);
    for word in untold {
        assert!(swarm.untold[0].why.contains(word), "{:?}", swarm.untold);
    }
}

/// Docker answers a question about several services with an error where one of them is gone.
#[tokio::test]
async fn a_service_that_goes_between_two_questions_costs_the_others_nothing() {
    let networks = ["front", "back"].map(str::to_owned).into();
    let role = Some(Role::Manager("n1".to_owned()));
    let is_gone = Cell::new(false);
    let says = |line: &str| {
        let asks_for_it = line.contains("desired-state") && line.contains("db");
        if asks_for_it {
            is_gone.set(true);
            return Some(Err("service db not found"));
        }
        let left =
            r#"[{"ID":"a","Spec":{"Name":"api"},"Endpoint":{"VirtualIPs":[{"NetworkID":"f1","Addr":"10.0.1.2/24"}]}}]"#;
        Some(Ok(if is_gone.get() && line.contains("/services") { left } else { manager(line) }))
    };
    let told = answer(says, async |docker| docker.swarm(role, &networks).await).await;
    let swarm = told.swarm.unwrap().expect("it is part of one");
    assert!(is_gone.get());
    assert_eq!((swarm.untold.as_slice(), swarm.running.is_some()), (&[][..], true));
}
