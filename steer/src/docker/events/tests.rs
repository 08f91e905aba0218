use super::*;

const CONTAINER: &str = "696b5d60e8f871492d632895bb2e71afeaa1fcc5f47f1d178b62fae41ac9fb1e";

/// As Docker 20.10 writes it, with the fields of old that Docker 29 leaves out.
fn container(action: &str, attributes: &str) -> String {
    [
        &format!(r#"{{"status":"{action}","id":"{CONTAINER}","from":"app:hc","Type":"container","Action":"{action}","#),
        &format!(r#""Actor":{{"ID":"{CONTAINER}","Attributes":{{{attributes}"image":"app:hc","name":"web","#),
        r#""steer.port":"9000:5000"}},"scope":"local","time":1795240551,"timeNano":1795240551070742974}"#,
    ]
    .concat()
}

fn network(action: &str) -> String {
    [
        &format!(r#"{{"Type":"network","Action":"{action}","Actor":{{"ID":"185f5dd7","#),
        &format!(r#""Attributes":{{"container":"{CONTAINER}","name":"br2","type":"bridge"}}}},"scope":"local","#),
        r#""time":1795240550,"timeNano":1795240550013130608}"#,
    ]
    .concat()
}

fn kind(line: &str) -> Option<EventKind> {
    parse(line.as_bytes(), Instant::now()).unwrap().map(|event| event.kind)
}

#[test]
fn container_events_are_read() {
    for (action, attributes, expected) in [
        ("start", "", Some(EventKind::Start)),
        ("kill", r#""signal":"15","#, Some(EventKind::Kill { signal: 15 })),
        ("kill", r#""signal":"28","#, Some(EventKind::Kill { signal: 28 })),
        ("kill", "", None),
        ("die", r#""exitCode":"137","execDuration":"7","#, Some(EventKind::Die)),
        ("pause", "", Some(EventKind::Pause)),
        ("unpause", "", Some(EventKind::Unpause)),
        ("health_status: healthy", "", Some(EventKind::Health(Health::Healthy))),
        ("health_status: unhealthy", "", Some(EventKind::Health(Health::Unhealthy))),
        ("health_status: marvellous", "", None),
        ("rename", r#""oldName":"/e2","#, Some(EventKind::Rename)),
        ("destroy", "", Some(EventKind::Destroy)),
        ("stop", "", None),
        ("exec_create: /app check", "", None),
    ] {
        assert_eq!(kind(&container(action, attributes)), expected, "{action} {attributes}");
    }
}

#[test]
fn an_event_tells_whose_it_is_and_when() {
    let received = Instant::now();
    let event = parse(container("pause", "").as_bytes(), received).unwrap().unwrap();
    let (container, time_ns) = (ContainerId(CONTAINER.to_owned()), 1_795_240_551_070_742_974);
    assert_eq!(event, Event { container, kind: EventKind::Pause, time_ns, labels_say_steer: true, received });
}

#[test]
fn network_events_name_their_container_but_not_its_labels() {
    for (action, expected) in [
        ("connect", Some(EventKind::NetworkConnect)),
        ("disconnect", Some(EventKind::NetworkDisconnect)),
        ("destroy", None),
    ] {
        let event = parse(network(action).as_bytes(), Instant::now()).unwrap();
        assert_eq!(event.as_ref().map(|event| &event.kind), expected.as_ref(), "{action}");
        assert!(event.is_none_or(|event| event.container.0 == CONTAINER && !event.labels_say_steer));
    }
}

#[test]
fn what_is_not_steer_s_is_left_out() {
    for line in [
        r#"{"Type":"container","Action":"start","Actor":{"ID":"a","Attributes":{"name":"y"}},"timeNano":1}"#,
        r#"{"Type":"container","Action":"start","Actor":{"ID":"a","Attributes":null},"timeNano":1}"#,
        r#"{"Type":"network","Action":"connect","Actor":{"ID":"a","Attributes":{"name":"y"}},"timeNano":1}"#,
        r#"{"Type":"image","Action":"pull","Actor":{"ID":"a","Attributes":{"steer.port":"80:80"}},"timeNano":1}"#,
        r#"{"Type":"daemon","Action":"reload"}"#,
        "{}",
    ] {
        assert_eq!(kind(line), None, "{line}");
    }
}

#[test]
fn what_is_not_json_is_an_error() {
    for line in ["", "x", "[]", r#"{"Type":"container""#] {
        assert!(parse(line.as_bytes(), Instant::now()).is_err(), "{line}");
    }
}

#[test]
fn an_event_of_an_earlier_run_is_told_from_one_of_this_run() {
    let began = "2026-11-21T06:00:01.5Z";
    let second = 1_795_240_801_i64;
    for (time_ns, run, before) in [
        (second * 1_000_000_000 + 499_999_999, began, true),
        (second * 1_000_000_000 + 500_000_000, began, false),
        (second * 1_000_000_000 + 900_000_000, began, false),
        (1, "", false),
        (1, "0001-01-01T00:00:00Z", false),
    ] {
        let container = ContainerId("a".to_owned());
        let kind = EventKind::Die;
        let event = Event { container, kind, time_ns, labels_say_steer: true, received: Instant::now() };
        assert_eq!(event.is_before(run), before, "{time_ns} and {run}");
    }
}
