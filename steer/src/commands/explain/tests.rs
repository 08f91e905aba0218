use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use rstest::rstest;
use serde_json::json;
use steer_common::service::ServiceId;
use steer_common::tcp::TcpState;

use super::report::fixtures::{NEW_YEAR, backend, snapshot};
use super::*;
use crate::dataplane::explain::{FrontendService, Hook};
use crate::dataplane::read::FlowTable;
use crate::host::links::Link;

const ONE: BackendId = BackendId(1);
const TWO: BackendId = BackendId(2);
const THREE: BackendId = BackendId(3);

fn question(ack: bool) -> Question {
    Question { client: "192.0.2.7:40000".parse().unwrap(), frontend: "10.0.0.1:9000".parse().unwrap(), ack }
}

fn way_in() -> WayIn {
    let interface = Link {
        index: 2,
        name: "eth0".into(),
        kind: None,
        driver: None,
        master: None,
        peer: None,
        peer_netns: None,
        mac: None,
        up: true,
        loopback: false,
        xdp: None,
    };
    WayIn { interface, hook: Hook::Xdp, is_attached: true, is_own: false }
}

/// `web-1` ready, `web-2` in maintenance, and `web-3`, which was sent its stop signal three seconds ago.
fn three() -> Snapshot {
    let mut snapshot = snapshot();
    let third = BackendView {
        cause: "signal: TERM".into(),
        since: UnixMicros(now().0 - 3_000_000),
        ..backend(3, "web-3", &format!("abc3{}", "0".repeat(60)), BackendState::Draining)
    };
    snapshot.services[0].backends.push(third);
    snapshot
}

/// Ninety seconds after the backends' last change.
fn now() -> UnixMicros {
    UnixMicros(NEW_YEAR.0 + 90_000_000)
}

/// A new flow that `web-1` takes at once.
fn run() -> Run {
    Run {
        action: Action::Redirect,
        reason: Counter::SteerNew,
        left_to_tc: false,
        destination: "172.17.0.2:5000".parse().unwrap(),
        frontend: Some(FrontendService {
            service: ServiceId(1),
            loopback: false,
            targets: BTreeMap::from([(ONE, Some(5000)), (TWO, Some(5000)), (THREE, Some(5000))]),
        }),
        others: Vec::new(),
        flows: Vec::new(),
        backend: Some(ONE),
        candidates: vec![(ONE, Fit::Ready)],
        none_for: None,
        is_foreign: false,
    }
}

/// A packet that is not sent on.
fn stays(action: Action, reason: Counter) -> Run {
    Run { action, reason, destination: question(false).frontend, backend: None, ..run() }
}

fn flow(frontend: &str, backend: BackendId, generation: u32) -> FlowView {
    FlowView {
        client: Some("192.0.2.7:40000".parse().unwrap()),
        frontend: frontend.parse().unwrap(),
        service: Some(ServiceId(1)),
        backend,
        generation,
        state: TcpState::Established,
        idle: Some(Duration::from_secs(4)),
        table: FlowTable::Flows,
        lane: 0,
    }
}

fn explain(ack: bool, run: &Run) -> Explanation {
    Explanation::of(&question(ack), &way_in(), run, &three(), now())
}

/// All lines but the first, which is always the question.
fn lines(ack: bool, run: &Run) -> String {
    let text = explain(ack, run).text();
    text.split_once('\n').unwrap().1.to_owned()
}

const SERVICE: &str = "frontend 10.0.0.1:9000 of service web, balance round-robin, 3 backends\n";

#[test]
fn a_new_flow_is_told_candidate_by_candidate() {
    let candidates = vec![
        (TWO, Fit::NotReady),
        (THREE, Fit::Draining),
        // The table proposes it twice.
        (TWO, Fit::NotReady),
        (ONE, Fit::Ready),
    ];
    let run = Run { candidates, ..run() };
    let expected = "\
192.0.2.7:40000 → 10.0.0.1:9000 (SYN, by xdp at eth0)
frontend 10.0.0.1:9000 of service web, balance round-robin, 3 backends
  web-2  172.17.0.3:5000  maintenance (operator: drain, 90s ago)
  web-3  172.17.0.4:5000  draining (signal: TERM, 3s ago)
  web-1  172.17.0.2:5000  ready                                   ← taken
goes to web-1 172.17.0.2:5000: steer_new (a new flow)
";
    assert_eq!(explain(false, &run).text(), expected);
}

#[test]
fn the_shape_of_the_json_is_a_promise() {
    let mut snapshot = three();
    snapshot.services[0].backends.truncate(2);
    let run = Run { flows: vec![flow("10.0.0.9:9000", TWO, 1)], ..run() };
    let expected = json!({
        "client": "192.0.2.7:40000", "frontend": "10.0.0.1:9000", "packet": "syn",
        "interface": "eth0", "hook": "xdp", "attached": true, "left_to_tc": false, "client_is_this_host": false,
        "service": "web", "balance": "round-robin", "backends": 2, "loopback": false, "other_frontends": [],
        "flow": null,
        "other_flows": [{
            "frontend": "10.0.0.9:9000", "backend": "web-2", "mesh": false, "backend_state": "maintenance", "state": "established",
            "idle_seconds": 4, "table": "flows", "lane": 0
        }],
        "candidates": [
            {
                "backend": "web-1", "container": "abc1000000000000000000000000000000000000000000000000000000000000",
                "address": "172.17.0.2", "port": 5000, "fit": "ready", "state": "ready", "cause": "health: healthy",
                "since": "2026-01-01T00:00:00Z", "taken": true
            },
            {
                "backend": "web-2", "container": "abc2000000000000000000000000000000000000000000000000000000000000",
                "address": "172.17.0.3", "port": 5000, "fit": null, "state": "maintenance", "cause": "operator: drain",
                "since": "2026-01-01T00:00:00Z", "taken": false
            }
        ],
        "outcome": "forward", "reason": "steer_new", "why": "a new flow",
        "backend": "web-1", "address": "172.17.0.2:5000", "none_ready": null
    });
    let explanation = Explanation::of(&question(false), &way_in(), &run, &snapshot, now());
    assert_eq!(serde_json::to_value(explanation).unwrap(), expected);
}

#[rstest]
#[case(ONE, Fit::Ready, "ready")]
#[case::by_its_listener(TWO, Fit::Ready, "listens, which makes it ready: maintenance (operator: drain, 90s ago)")]
#[case(THREE, Fit::Draining, "draining (signal: TERM, 3s ago)")]
#[case(ONE, Fit::Foreign, "no longer of this service")]
#[case::unknown(BackendId(9), Fit::Foreign, "no longer of this service")]
#[case(ONE, Fit::Itself, "is the client itself")]
#[case(ONE, Fit::Taken, "has a connection with this client port already")]
#[case(ONE, Fit::NoWeight, "weight 0")]
#[case(TWO, Fit::NotReady, "maintenance (operator: drain, 90s ago)")]
#[case(ONE, Fit::NotListening, "not listening")]
#[case(THREE, Fit::NotListening, "not listening: draining (signal: TERM, 3s ago)")]
fn every_fit_has_words(#[case] id: BackendId, #[case] fit: Fit, #[case] words: &str) {
    let explanation = explain(false, &Run { candidates: vec![(id, fit)], ..run() });
    let first = &explanation.candidates[0];
    assert_eq!((first.words.as_str(), first.fit), (words, Some(fit.name())));
    assert_eq!(first.backend, if id.0 == 9 { "#9".to_owned() } else { format!("web-{}", id.0) });
}

#[test]
fn a_backend_that_does_not_serve_the_port_is_told_apart() {
    let mut run = Run { candidates: vec![(ONE, Fit::Foreign)], ..run() };
    run.frontend.as_mut().unwrap().targets.insert(ONE, None);
    let explanation = explain(false, &run);
    assert_eq!(explanation.candidates[0].words, "does not serve this port");
    assert_eq!(explanation.candidates[1].words, "not asked: maintenance");
    assert!(
        explanation.text().contains("  web-1  172.17.0.2       does not serve this port"),
        "{}",
        explanation.text()
    );
}

#[rstest]
#[case::followed(
    true,
    Run { reason: Counter::Follow, flows: vec![flow("10.0.0.1:9000", ONE, 1)], candidates: vec![], ..run() },
    "known flow: on web-1 (ready), established, idle 4s\n\
     goes to web-1 172.17.0.2:5000: follow (a packet of a known flow)\n"
)]
#[case::its_backend_is_gone(
    true,
    Run {
        flows: vec![flow("10.0.0.1:9000", ONE, 7)],
        candidates: vec![],
        ..stays(Action::Redirect, Counter::ResetGone)
    },
    "known flow: its backend is gone, established, idle 4s\n\
     answered with a reset: reset_gone (the backend of the flow is gone)\n"
)]
#[case::recovered_by_its_last_packet(
    true,
    Run { reason: Counter::FollowRecovered, backend: None, candidates: vec![], ..run() },
    "goes to web-1 172.17.0.2:5000: follow_recovered (a packet of a flow that was not known, to the backend that has its \
     socket; the flow is known again)\n"
)]
#[case::of_no_flow(
    true,
    Run { candidates: vec![], ..stays(Action::Pass, Counter::PassNoFlow) },
    "passed on to the host, untouched: pass_no_flow (for a frontend, but no flow of ours (open before steer attached, or long \
     over))\n"
)]
#[case::docker_s(
    true,
    Run { candidates: vec![], is_foreign: true, ..stays(Action::Pass, Counter::PassNoFlow) },
    "passed on to the host, untouched: pass_no_flow (open before steer attached, by way of Docker's own port mapping)\n"
)]
#[case::held(
    false,
    Run { candidates: vec![], none_for: Some(Duration::from_millis(2_100)), ..stays(Action::Drop, Counter::DropHold) },
    "held, for another 8s at most: drop_hold (a new flow, and no backend is ready. Its SYN is sent again as soon as one is); \
     nobody has been ready for 2s\n"
)]
#[case::held_too_long(
    false,
    Run {
        candidates: vec![],
        none_for: Some(Duration::from_secs(12)),
        ..stays(Action::Redirect, Counter::ResetNoBackend)
    },
    "answered with a reset: reset_no_backend (a new flow, no backend, and the time to hold is over); nobody has been ready \
     for 12s, a new flow is held for 10s\n"
)]
#[case::not_allowed(
    false,
    Run { candidates: vec![], ..stays(Action::Drop, Counter::DropNotAllowed) },
    "dropped: drop_not_allowed (the client is not on the service's allow list)\n"
)]
#[case::lanes(
    false,
    Run { candidates: vec![], flows: vec![flow("10.0.0.9:9000", ONE, 1)], ..stays(Action::Drop, Counter::DropLanes) },
    "the same client port to 10.0.0.9:9000: on web-1 (ready), established, idle 4s\n\
     dropped: drop_lanes (the client uses one port for more frontends of the service at once than there are lanes, or free \
     backends)\n"
)]
#[case::detaching(
    false,
    Run { candidates: vec![], ..stays(Action::Pass, Counter::PassClosed) },
    "passed on to the host, untouched: pass_closed (a new flow to a frontend that is closed (steer is being detached, or the host has lost that address))\n"
)]
fn every_outcome_has_words(#[case] ack: bool, #[case] run: Run, #[case] expected: &str) {
    assert_eq!(lines(ack, &run), format!("{SERVICE}{expected}"));
}

#[rstest]
#[case::with_others(
    vec![("10.0.0.2:9000", 1), ("10.0.0.3:9000", 9)],
    "10.0.0.1:9000 is no frontend; with port 9000 there are: 10.0.0.2:9000 (web), 10.0.0.3:9000 (#9)\n"
)]
#[case::with_none(vec![], "10.0.0.1:9000 is no frontend, and none has port 9000\n")]
fn what_is_for_no_frontend_is_told_which_there_are(#[case] others: Vec<(&str, u16)>, #[case] expected: &str) {
    let others = others.into_iter().map(|(at, id)| (at.parse::<SocketAddrV4>().unwrap(), ServiceId(id))).collect();
    let run = Run { frontend: None, candidates: vec![], others, ..stays(Action::Pass, Counter::PassNotFrontend) };
    let passed = "passed on to the host, untouched: pass_not_frontend (not for a frontend)\n";
    assert_eq!(lines(false, &run), format!("{expected}{passed}"));
}

#[test]
fn a_loopback_frontend_is_for_this_host_s_own_sockets() {
    let mut run = Run { candidates: vec![], ..stays(Action::Pass, Counter::PassNotFrontend) };
    run.frontend.as_mut().unwrap().loopback = true;
    let expected = "\
10.0.0.1:9000 is a frontend for this host's own sockets only
passed on to the host, untouched: pass_not_frontend (a loopback address: only this host's own sockets may use it)
";
    assert_eq!(lines(false, &run), expected);
    let way_in = WayIn { is_own: true, is_attached: false, ..way_in() };
    let text = Explanation::of(&question(false), &way_in, &run, &three(), now()).text();
    assert!(text.contains("\nxdp is not attached at eth0: this is what it would do\n"), "{text}");
    assert!(text.contains("\nthe client is this host itself: its connections are steered at connect"), "{text}");
}

#[test]
fn what_xdp_leaves_to_tc_is_said() {
    let text = explain(true, &Run { left_to_tc: true, ..run() }).text();
    assert!(
        text.starts_with("192.0.2.7:40000 → 10.0.0.1:9000 (ACK, by xdp, which leaves it to tc, at eth0)\n"),
        "{text}"
    );
}
