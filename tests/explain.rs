//! `steer explain`: what it says is what happens then, and asking changes nothing.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use aya::maps::{Array, HashMap, Map, MapData, PerCpuArray};
use serde::Deserialize;
use steer::dataplane::paths::Paths;
use steer_common::backend::BackendStats;
use steer_common::edge::EdgeEntry;
use steer_common::flow::{FlowEntry, FlowKey, ForeignKey, PendingEntry};
use steer_common::limits::names;
use steer_common::service::ServiceState;
use steer_common::state::StateEntry;
use steer_tests::agent::{Agent, Attach};
use steer_tests::greeter::Greeter;
use steer_tests::http::{Failure, Http, Session};
use steer_tests::netns::Ns;
use steer_tests::pace;
use steer_tests::skip::{self, Need};
use steer_tests::world::{CLIENT, HOST};
use steer_tests::{World, wait_until};

const NAMES: [&str; 3] = ["a", "b", "c"];
/// Seconds for which a client without a backend is held.
const HOLD: u32 = 3;

/// As `--json` has it; unknown fields are ignored.
#[derive(Deserialize, Debug)]
struct Explanation {
    hook: String,
    service: Option<String>,
    other_frontends: Vec<Other>,
    flow: Option<Flow>,
    candidates: Vec<Candidate>,
    outcome: String,
    reason: String,
    backend: Option<String>,
    address: Option<String>,
    none_ready: Option<NoneReady>,
}

#[derive(Deserialize, Debug)]
struct Other {
    frontend: String,
}

#[derive(Deserialize, Debug)]
struct Flow {
    backend: Option<String>,
    state: String,
}

#[derive(Deserialize, Debug)]
struct Candidate {
    backend: String,
    fit: Option<String>,
    taken: bool,
}

#[derive(Deserialize, Debug)]
struct NoneReady {
    hold_seconds: u64,
    left_seconds: u64,
}

impl Explanation {
    #[track_caller]
    fn goes_to(&self) -> &str {
        assert_eq!(self.outcome, "forward", "{self:#?}");
        self.backend.as_deref().unwrap_or_else(|| panic!("no backend: {self:#?}"))
    }

    fn fit(&self, backend: &str) -> Option<&str> {
        self.candidates.iter().find(|candidate| candidate.backend == backend)?.fit.as_deref()
    }

    fn taken(&self) -> Vec<&str> {
        self.candidates.iter().filter(|candidate| candidate.taken).map(|candidate| &*candidate.backend).collect()
    }
}

/// Three namespaces that serve, and an agent.
struct Stage {
    agent: Agent,
    greeters: BTreeMap<&'static str, Greeter>,
    world: World,
}

impl Stage {
    fn new(attach: Attach, balance: &str) -> Self {
        let mut world = attach.world();
        let namespaces: Vec<(Ns, Ipv4Addr)> = NAMES.iter().map(|_| world.add_backend()).collect();
        let hold = pace::lasting_secs(HOLD);
        let mut text = format!(
            "[[service]]\nname = \"web\"\nports = [\"9000:5000\"]\nhold = \"{hold}s\"\nbalance = \"{balance}\"\n"
        );
        for (name, (ns, _)) in NAMES.iter().zip(&namespaces) {
            text += &ns.backend(name);
        }
        let config = world.file("steer.toml", &text).display().to_string();
        let greeters =
            NAMES.iter().zip(&namespaces).map(|(name, (ns, _))| (*name, Greeter::start(ns, name, &[]))).collect();
        let mut agent = Agent::start_static(&world, attach, &config);
        agent.wait_ready("web", 3);
        Self { agent, greeters, world }
    }

    #[track_caller]
    fn explain(&self, from: u16, to: &str, more: &[&str]) -> Explanation {
        let client = format!("{CLIENT}:{from}");
        let text = self.agent.steer_ok(&[&["explain", &client, to, "--json"], more].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{error} in: {text}"))
    }

    #[track_caller]
    fn syn(&self, from: u16) -> Explanation {
        self.explain(from, &frontend().to_string(), &[])
    }

    fn text(&self, from: u16, more: &[&str]) -> String {
        let (client, frontend) = (format!("{CLIENT}:{from}"), frontend().to_string());
        self.agent.steer_ok(&[&["explain", &client, &frontend], more].concat())
    }

    fn http(&self, from: u16) -> Http {
        Http::new(&self.world.client, frontend()).from_port(from)
    }

    #[track_caller]
    fn connect(&self, from: u16) -> (Session, String) {
        let mut session = self.http(from).open().unwrap_or_else(|failure| panic!("connect: {failure}"));
        let backend = session.get("/").unwrap_or_else(|failure| panic!("GET /: {failure}")).backend;
        (session, backend)
    }

    fn stop(&mut self, name: &str) {
        let greeter = self.greeters.remove(name).unwrap_or_else(|| panic!("{name} is stopped already"));
        greeter.terminate();
    }

    /// As if the table had evicted every flow.
    fn forget_flows(&self) {
        let flows = open(&Paths::of(self.agent.instance()), names::FLOWS);
        let mut flows = HashMap::<_, FlowKey, FlowEntry>::try_from(flows).expect("keys and values are of that size");
        let keys: Vec<_> = flows.keys().map(|key| key.expect("nobody writes")).collect();
        assert_eq!(keys.len(), 1, "one connection is open");
        keys.iter().for_each(|key| flows.remove(key).expect("nobody writes"));
    }

    /// Waits until no packet comes any more.
    #[track_caller]
    fn settle(&self) {
        wait_until("the connections are still", Duration::from_secs(10), || {
            let first = self.bytes();
            std::thread::sleep(pace::lasting(Duration::from_millis(300)));
            if self.bytes() == first { Ok(()) } else { Err("packets still come") }
        });
    }

    /// Every byte of the maps that packets write.
    fn bytes(&self) -> BTreeMap<&'static str, Vec<u8>> {
        let paths = Paths::of(self.agent.instance());
        BTreeMap::from([
            (names::FLOWS, rows::<{ size_of::<FlowKey>() }, { size_of::<FlowEntry>() }>(&paths, names::FLOWS)),
            (names::PENDING, rows::<{ size_of::<FlowKey>() }, { size_of::<PendingEntry>() }>(&paths, names::PENDING)),
            (names::FOREIGN, rows::<{ size_of::<ForeignKey>() }, 4>(&paths, names::FOREIGN)),
            (names::HELD, rows::<{ size_of::<FlowKey>() }, { size_of::<PendingEntry>() }>(&paths, names::HELD)),
            (names::SERVICE_STATES, values::<{ size_of::<ServiceState>() }>(&paths, names::SERVICE_STATES)),
            (names::BACKEND_LIVE, values::<8>(&paths, names::BACKEND_LIVE)),
            (names::BACKEND_STATES, values::<{ size_of::<StateEntry>() }>(&paths, names::BACKEND_STATES)),
            (names::BACKEND_EDGES, values::<{ size_of::<EdgeEntry>() }>(&paths, names::BACKEND_EDGES)),
            (names::COUNTERS, per_cpu::<8>(&paths, names::COUNTERS)),
            (names::BACKEND_STATS, per_cpu::<{ size_of::<BackendStats>() }>(&paths, names::BACKEND_STATS)),
        ])
    }
}

fn frontend() -> SocketAddr {
    SocketAddr::from((HOST, 9000))
}

fn open(paths: &Paths, name: &str) -> Map {
    let pinned = MapData::from_pin(paths.map(name)).and_then(Map::from_map_data);
    pinned.unwrap_or_else(|error| panic!("open {name}: {error}"))
}

fn rows<const K: usize, const V: usize>(paths: &Paths, name: &str) -> Vec<u8> {
    let map = HashMap::<_, [u8; K], [u8; V]>::try_from(open(paths, name)).expect("keys and values are of that size");
    let rows: BTreeMap<_, _> = map.iter().map(|row| row.expect("nobody writes")).collect();
    rows.into_iter().flat_map(|(key, value)| [&key[..], &value[..]].concat()).collect()
}

fn values<const V: usize>(paths: &Paths, name: &str) -> Vec<u8> {
    let map = Array::<_, [u8; V]>::try_from(open(paths, name)).expect("values are of that size");
    (0..map.len()).flat_map(|index| map.get(&index, 0).expect("the index is in range")).collect()
}

fn per_cpu<const V: usize>(paths: &Paths, name: &str) -> Vec<u8> {
    let map = PerCpuArray::<_, [u8; V]>::try_from(open(paths, name)).expect("values are of that size");
    (0..map.len()).flat_map(|index| map.get(&index, 0).expect("the index is in range").concat()).collect()
}

/// Whatever the balance, the backend that is named is the one that the next connection gets, as often as it is asked.
fn the_next_connection_goes_where_it_was_said(attach: Attach, hook: &str) {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    for balance in ["source", "round-robin", "maglev", "least-conn"] {
        let stage = Stage::new(attach, balance);
        // They stay open: ends would change the counts that least-conn goes by.
        let mut sessions = Vec::new();
        for from in 41_000..41_003 {
            let said = stage.syn(from);
            assert_eq!((said.hook.as_str(), said.reason.as_str()), (hook, "steer_new"), "{said:#?}");
            assert_eq!(said.fit(said.goes_to()), Some("ready"), "{said:#?}");
            assert_eq!(said.taken(), [said.goes_to()], "{said:#?}");
            assert_eq!(stage.syn(from).goes_to(), said.goes_to(), "asking again gives the same answer");
            let (session, backend) = stage.connect(from);
            assert_eq!(said.goes_to(), backend, "{balance}: {said:#?}");
            sessions.push(session);
        }
    }
}

fn every_case_is_explained_and_nothing_changes(attach: Attach, hook: &str) {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    let mut stage = Stage::new(attach, "source");
    let (open, backend) = stage.connect(41_000);
    // Nobody but the kernel is there from now on.
    stage.agent.kill9();
    stage.settle();
    let before = stage.bytes();

    let known = stage.explain(41_000, &frontend().to_string(), &["--ack"]);
    assert_eq!((known.goes_to(), known.reason.as_str()), (backend.as_str(), "follow"), "{known:#?}");
    let flow = known.flow.as_ref().map(|flow| (flow.backend.as_deref(), flow.state.as_str()));
    assert_eq!(flow, Some((Some(backend.as_str()), "established")), "{known:#?}");
    let forged = stage.syn(41_000);
    assert_eq!((forged.goes_to(), forged.reason.as_str()), (backend.as_str(), "steer_retransmit"), "{forged:#?}");

    let unknown = stage.explain(41_001, &frontend().to_string(), &["--ack"]);
    assert_eq!((unknown.outcome.as_str(), unknown.reason.as_str()), ("pass", "pass_no_flow"), "{unknown:#?}");
    let elsewhere = stage.explain(41_001, "10.203.0.77:9000", &[]);
    assert_eq!((elsewhere.outcome.as_str(), elsewhere.reason.as_str()), ("pass", "pass_not_frontend"));
    assert_eq!(elsewhere.service, None);
    let others: Vec<_> = elsewhere.other_frontends.iter().map(|other| other.frontend.clone()).collect();
    assert!(others.contains(&frontend().to_string()), "{elsewhere:#?}");
    let nothing = stage.explain(41_001, "10.203.0.1:9999", &[]);
    assert!(nothing.other_frontends.is_empty() && nothing.outcome == "pass", "{nothing:#?}");

    // The other hook can be asked as well.
    let other_hook = if hook == "xdp" { "tc" } else { "xdp" };
    let said = stage.explain(41_002, &frontend().to_string(), &["--hook", other_hook]);
    assert_eq!((said.hook.as_str(), said.goes_to()), (other_hook, backend.as_str()), "{said:#?}");

    let text = stage.text(41_002, &[]);
    assert!(text.contains(&format!("(SYN, by {hook} at u0)")) && text.contains("← taken"), "{text}");
    assert!(text.contains(&format!("\ngoes to {backend} ")) && text.contains("steer_new (a new flow)\n"), "{text}");
    eprint!("{text}");
    assert_eq!(stage.bytes(), before, "asking changes nothing");

    // A flow that the table has lost is found at its backend, and not written down by the question.
    stage.forget_flows();
    let before = stage.bytes();
    let lost = stage.explain(41_000, &frontend().to_string(), &["--ack"]);
    assert_eq!((lost.goes_to(), lost.reason.as_str()), (backend.as_str(), "follow_recovered"), "{lost:#?}");
    assert_eq!(stage.bytes(), before, "asking recovers nothing");

    // The maps still call it ready; the kernel knows better.
    stage.stop(&backend);
    let said = stage.syn(41_003);
    assert_eq!(said.fit(&backend), Some("not-listening"), "{said:#?}");
    eprint!("{}", stage.text(41_003, &[]));
    let (second, next) = stage.connect(41_003);
    assert_eq!(said.goes_to(), next, "{said:#?}");
    assert!(said.address.as_ref().is_some_and(|address| address.ends_with(":5000")), "{said:#?}");

    // Nobody listens any more.
    drop((open, second));
    for name in NAMES.into_iter().filter(|name| *name != backend) {
        stage.stop(name);
    }
    stage.settle();
    let before = stage.bytes();
    let held = stage.syn(41_004);
    assert_eq!((held.outcome.as_str(), held.reason.as_str()), ("hold", "drop_hold"), "{held:#?}");
    assert!(NAMES.iter().all(|name| held.fit(name) == Some("not-listening")), "{held:#?}");
    let none = held.none_ready.as_ref().map(|none| (none.hold_seconds, none.left_seconds));
    let hold = u64::from(pace::lasting_secs(HOLD));
    assert_eq!(none, Some((hold, hold)), "{held:#?}");
    assert_eq!(stage.bytes(), before, "asking holds nothing, and does not make the time run");

    // A client asks in earnest: the time runs.
    let failure = stage.http(41_005).within(Duration::from_millis(500)).get("/");
    assert_eq!(failure.err(), Some(Failure::Timeout));
    let held = stage.syn(41_004);
    assert_eq!(held.outcome, "hold", "{held:#?}");
    eprint!("{}", stage.text(41_004, &[]));
    let over = wait_until("the hold is over", Duration::from_secs(2 * u64::from(HOLD)), || {
        let said = stage.syn(41_004);
        if said.outcome == "hold" {
            Err(format!("{:?}", said.none_ready.map(|none| none.left_seconds)))
        } else {
            Ok(said)
        }
    });
    assert_eq!((over.outcome.as_str(), over.reason.as_str()), ("reset", "reset_no_backend"), "{over:#?}");
    let before = stage.bytes();
    eprint!("{}", stage.text(41_004, &[]));
    assert_eq!(stage.bytes(), before, "asking changes nothing");
}

#[test]
fn the_next_connection_goes_where_it_was_said_over_tc() {
    the_next_connection_goes_where_it_was_said(Attach::Tc, "tc");
}

#[test]
fn the_next_connection_goes_where_it_was_said_over_xdp() {
    the_next_connection_goes_where_it_was_said(Attach::Xdp, "xdp");
}

#[test]
fn every_case_is_explained_and_nothing_changes_over_tc() {
    every_case_is_explained_and_nothing_changes(Attach::Tc, "tc");
}

#[test]
fn every_case_is_explained_and_nothing_changes_over_xdp() {
    every_case_is_explained_and_nothing_changes(Attach::Xdp, "xdp");
}

#[test]
fn without_a_data_plane_or_with_wrong_usage_it_says_so() {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    let world = World::new();
    let mut agent = Agent::start_raw(&world, &["--no-docker", "--attach", "tc"]);
    agent.wait_for("it answers", |status| status.agent.alive);
    let code = |words: &[&str]| agent.steer(words).status.code();
    assert_eq!(code(&["explain", "10.203.0.2:1", "10.203.0.1:9000"]), Some(0));
    assert_eq!(code(&["explain", "10.203.0.2", "10.203.0.1:9000"]), Some(2));
    let mut command = world.host.command(agent.command(&[]).get_program());
    let nobody = command.args(["--instance", "steer-nobody", "explain", "10.203.0.2:1", "10.203.0.1:9000"]).output();
    let nobody = nobody.expect("steer can be started");
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).contains("no steer data plane"), "{nobody:?}");
    assert!(!Paths::of("steer-nobody").pins.exists(), "nothing was pinned");
}
