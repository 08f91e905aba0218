use super::fake::Dockerd;
use super::*;

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
async fn answer<T>(dockerd: &str, says: impl Fn(&str) -> Said, question: impl AsyncFnOnce(Docker) -> T) -> T {
    let dockerd = Dockerd::start(dockerd);
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
    let listed = answer("list", says, async |docker| docker.containers().await).await.unwrap();
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
    let listed = answer("gateway", says, async |docker| docker.containers().await).await.unwrap();
    assert_eq!(ids(&listed.containers), ["plain"]);
    let [(id, error)] = listed.unknown.as_slice() else { panic!("{listed:?}") };
    assert_eq!(id.0, "task");
    let error = format!("{error:#}");
    assert!(error.contains(GATEWAY) && error.contains("out of order"), "{error}");
}
