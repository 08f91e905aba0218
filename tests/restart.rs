//! The agent comes and goes, and dockerd too: what is in the kernel steers on, and whoever comes next goes on from there.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use steer_tests::agent::{Agent, Attach, Status};
use steer_tests::docker::{ContainerSpec, Docker, Health};
use steer_tests::http::{Failure, Http};
use steer_tests::load::Load;
use steer_tests::long_lived::LongLived;
use steer_tests::report::Report;
use steer_tests::skip::{self, Need};
use steer_tests::world::HOST;
use steer_tests::{World, wait_until};

const WEB: (std::net::Ipv4Addr, u16) = (HOST, 9000);
const ECHO: (std::net::Ipv4Addr, u16) = (HOST, 9001);
const LIMIT: Duration = Duration::from_secs(30);

/// Fields are dropped in this order.
struct Stage {
    agent: Agent,
    docker: Docker,
    http: Http,
    world: World,
}

/// A greeter without a healthcheck: ready when it listens.
fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000,9001:5001").label("steer.service", "greeter")
}

/// One of another service, which no load goes to: what is done to it while nobody watches may be felt there.
fn bystander(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9002:5000").label("steer.service", "bystanders")
}

impl Stage {
    fn set(attach: Attach, replicas: &[&str], dockerd: &[&str]) -> Option<Self> {
        Self::set_with(attach, dockerd, replicas.iter().map(|name| replica(name)))
    }

    fn set_with(attach: Attach, dockerd: &[&str], specs: impl ExactSizeIterator<Item = ContainerSpec>) -> Option<Self> {
        if skip::without(&[Need::Root, Need::Docker, Need::Steer, Need::Program("bpftool")]) {
            return None;
        }
        let world = attach.world();
        let docker = Docker::start_with(&world, dockerd);
        docker.import_greeter();
        let mut agent = Agent::start(&world, &docker, attach);
        let replicas = specs.len();
        docker.run_all(specs);
        agent.wait_ready("greeter", replicas);
        let http = Http::new(&world.client, SocketAddr::from(WEB));
        Some(Self { agent, docker, http, world })
    }

    /// Requests, each on a connection of its own, by the backend that answered.
    #[track_caller]
    fn split(&self, requests: u32) -> BTreeMap<String, u32> {
        let mut split = BTreeMap::new();
        for _ in 0..requests {
            *split.entry(self.http.backend()).or_default() += 1;
        }
        split
    }

    /// Who answers, of enough requests for everybody's turn.
    #[track_caller]
    fn who(&self) -> Vec<String> {
        self.split(24).into_keys().collect()
    }

    /// Starts the agent and waits until it has taken in what Docker says.
    #[track_caller]
    fn restart(&mut self) -> Status {
        self.agent.restart();
        let pid = self.agent.pid();
        self.agent.wait_for("the new agent has asked Docker", |status| {
            status.agent.pid == Some(pid) && status.agent.docker.is_some()
        })
    }

    /// Everything the maps say of services and backends: ids, generations, weights, states and their causes.
    fn tables(&self) -> BTreeMap<&'static str, String> {
        let dump = |name| (name, bpftool(&["map", "dump", "pinned", &self.pin(&format!("maps/{name}"))]));
        ["BACKENDS", "BACKEND_STATES", "BACKEND_INFO", "ENDPOINTS", "FRONTENDS", "SERVICES", "SERVICE_INFO"]
            .map(dump)
            .into_iter()
            .collect()
    }

    fn pin(&self, name: &str) -> String {
        self.agent.pins().join("v1").join(name).display().to_string()
    }

    /// Program and link ids by pinned link.
    fn programs(&self) -> BTreeMap<String, (u64, u64)> {
        let ids = |name: String| {
            let told = bpftool(&["-j", "link", "show", "pinned", &self.pin(&format!("links/{name}"))]);
            let told: serde_json::Value = serde_json::from_str(&told).unwrap_or_else(|err| panic!("{err}: {told}"));
            let id = |key: &str| told[key].as_u64().unwrap_or_else(|| panic!("no {key} in {told}"));
            (name, (id("prog_id"), id("id")))
        };
        self.agent.links().into_iter().map(ids).collect()
    }
}

fn bpftool(words: &[&str]) -> String {
    let output = Command::new("bpftool").args(words).output().unwrap_or_else(|err| panic!("bpftool: {err}"));
    assert!(output.status.success(), "bpftool {words:?}: {}", String::from_utf8_lossy(&output.stdout));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Clients that open a connection for each request, clients that keep theirs, and one connection that just lives.
struct Traffic {
    close: Load,
    keepalive: Load,
    long: LongLived,
}

impl Traffic {
    fn start(world: &World) -> Self {
        // Enough to notice any gap, little enough for two cores that also run a dockerd.
        let load =
            |mode| Load::watch(&world.client, WEB, &format!("--mode {mode} --connections 8 --rate 300 --seconds 90"));
        let (close, keepalive) = (load("close"), load("keepalive"));
        let long = LongLived::start(&world.client, ECHO);
        let traffic = Self { close, keepalive, long };
        traffic.flows_on();
        traffic
    }

    /// Waits until every kind of traffic has moved on, so that it lived through what was done before.
    #[track_caller]
    fn flows_on(&self) {
        let now = || {
            let echoed = self.long.counter().load(Ordering::Relaxed);
            [self.close.progress().latest().requests, self.keepalive.progress().latest().requests, echoed]
        };
        let before = now();
        let enough = [100, 100, 3];
        wait_until("traffic flows on", LIMIT, || {
            let moved: Vec<u64> = now().iter().zip(before).map(|(now, before)| now - before).collect();
            let is_over = self.long.is_over();
            assert!(!is_over, "the long connection broke");
            if moved.iter().zip(enough).all(|(moved, enough)| *moved >= enough) {
                Ok(())
            } else {
                Err(format!("{moved:?}"))
            }
        });
    }

    /// Ends it; nothing may have failed.
    #[track_caller]
    fn finish_unharmed(self, what: &str) {
        let Self { close, keepalive, long } = self;
        let life = long.finish_unharmed();
        for report in [close.stop(), keepalive.stop()] {
            let Report { mode, requests, slowest_ms, connections, .. } = &report;
            eprintln!("{what}: {mode}: {requests} requests, {connections} connections, slowest {slowest_ms:.1} ms");
            assert_eq!(report.failed, 0, "{report:#?}");
            assert!(report.slowest_ms < 1000.0, "{report:#?}");
        }
        eprintln!("{what}: long connection: {} bytes, slowest {:?}", life.exchanged, life.slowest);
        assert!(life.slowest < Duration::from_secs(1), "{life:?}");
    }
}

fn steered(status: &Status) -> u64 {
    status.services.iter().flat_map(|service| &service.backends).map(|backend| backend.steered_total).sum()
}

fn a_killed_agent_loses_nothing_and_the_next_one_adopts(attach: Attach) {
    let Some(mut stage) = Stage::set(attach, &["one", "two", "three"], &[]) else { return };
    stage.agent.steer_ok(&["weight", "two", "3"]);
    stage.agent.steer_ok(&["drain", "three"]);
    stage.agent.wait_state("three", "maintenance");
    let tables = stage.tables();
    let traffic = Traffic::start(&stage.world);

    stage.agent.kill9();
    let before = stage.agent.status();
    assert!(!before.agent.alive, "{before}");
    let split = stage.split(40);
    assert_eq!(split.keys().collect::<Vec<_>>(), ["one", "two"], "{split:?}");
    let gone = stage.agent.status();
    assert!(steered(&gone) >= steered(&before) + 40, "before: {before}after: {gone}");
    traffic.flows_on();
    assert_eq!(stage.tables(), tables, "nobody writes while there is no agent");

    let adopted = stage.restart();
    assert_eq!(stage.tables(), tables, "the new agent changes nothing:\n{adopted}{}", stage.agent.log());
    assert!(steered(&adopted) >= steered(&gone), "before: {gone}after: {adopted}");
    let [two, three] = ["two", "three"].map(|name| adopted.backend(name).expect("it is adopted").clone());
    assert_eq!((two.weight, two.state.as_str()), (3, "ready"));
    assert_eq!(three.state, "maintenance");
    let split = stage.split(40);
    assert_eq!(split.keys().collect::<Vec<_>>(), ["one", "two"], "{split:?}");

    // What the earlier one was told can be taken back from this one.
    stage.agent.steer_ok(&["undrain", "three"]);
    stage.agent.steer_ok(&["weight", "two", "default"]);
    stage.agent.wait_ready("greeter", 3);
    assert_eq!(stage.who(), ["one", "three", "two"]);
    traffic.flows_on();
    traffic.finish_unharmed("kill -9");
}

fn what_happened_while_no_agent_ran_is_found_by_the_next(attach: Attach) {
    let Some(mut stage) = Stage::set(attach, &["one"], &[]) else { return };
    let stopped = stage.docker.run(bystander("stopped"));
    let mut restarted = stage.docker.run(bystander("restarted"));
    let before = stage.agent.wait_ready("bystanders", 2);
    let traffic = Traffic::start(&stage.world);

    stage.agent.kill9();
    stopped.stop(None);
    restarted.restart();
    let started = stage.docker.run(replica("two"));
    assert_eq!(stage.who(), ["one"], "nobody has told of the new one");

    stage.restart();
    stage.agent.wait_ready("greeter", 2);
    let found = stage.agent.wait_for("the stopped one is gone, and the restarted one serves", |status| {
        let restarted = status.backend("restarted");
        status.backend("stopped").is_none() && restarted.is_some_and(|restarted| restarted.state == "ready")
    });
    for container in [&restarted, &started] {
        let address = found.backend(&container.name).map(|backend| backend.address.clone());
        assert_eq!(address, container.ip.map(|ip| ip.to_string()), "{}: {found}", container.name);
    }
    let [one_before, one] = [&before, &found].map(|status| status.backend("one").map(|one| (&one.since, &one.address)));
    assert_eq!(one, one_before, "who was not touched is as before");
    assert_eq!(stage.who(), ["one", "two"], "{found}");
    let bystanders = Http::new(&stage.world.client, SocketAddr::from((HOST, 9002)));
    for _ in 0..6 {
        assert_eq!(bystanders.backend(), "restarted", "{found}");
    }
    let veths = stage.agent.links().iter().filter(|link| link.starts_with("veth-")).count();
    assert_eq!(veths, 3, "one link per running container: {:?}", stage.agent.links());
    traffic.flows_on();
    traffic.finish_unharmed("no agent");
}

fn an_upgrade_replaces_the_programs_and_loses_nothing(attach: Attach) {
    let Some(mut stage) = Stage::set(attach, &["one", "two"], &[]) else { return };
    let newer = stage.world.dir().join("steer-newer");
    let running = format!("/proc/{}/exe", stage.agent.pid());
    std::fs::copy(&running, &newer).unwrap_or_else(|err| panic!("copy {running}: {err}"));
    let (tables, before) = (stage.tables(), stage.programs());
    let traffic = Traffic::start(&stage.world);

    stage.agent.upgrade_to(newer);
    stage.restart();
    traffic.flows_on();
    let after = stage.programs();
    assert_eq!(stage.tables(), tables);
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    for (name, (program, link)) in &before {
        let (new_program, new_link) = after[name];
        assert_ne!(*program, new_program, "{name} has its old program");
        // A link that stays is one whose program was replaced in one step. Socket hooks are attached anew before the old
        // ones go.
        assert_eq!(*link == new_link, !name.starts_with("cgroup-"), "{name}: link {link}, then {new_link}");
    }
    // No second copy is left anywhere: the kernel has let go of every old program.
    for (program, _) in before.values() {
        let gone = || {
            !Command::new("bpftool")
                .args(["prog", "show", "id", &program.to_string()])
                .output()
                .is_ok_and(|out| out.status.success())
        };
        wait_until(&format!("program {program} is gone"), LIMIT, || if gone() { Ok(()) } else { Err("it is loaded") });
    }
    assert_eq!(stage.who(), ["one", "two"]);
    traffic.finish_unharmed("upgrade");
}

fn dockerd_restarts_and_nothing_is_lost(attach: Attach) {
    // So seldom that a health which starts over at `starting`, as it does with some versions of Docker, stays there for long.
    let health = Health { interval: Duration::from_secs(4), ..Health::default() };
    let specs = ["one", "two"].map(|name| replica(name).health(health));
    let Some(mut stage) = Stage::set_with(attach, &["--live-restore"], specs.into_iter()) else { return };
    let dies = stage.docker.run(bystander("dies"));
    let before = stage.agent.wait_ready("bystanders", 1);
    let traffic = Traffic::start(&stage.world);

    stage.docker.stop_daemon(Signal::SIGTERM);
    stage.agent.wait_for("the agent misses Docker", |status| {
        status.agent.alive && status.problems.iter().any(|problem| problem.container.as_deref() == Some("Docker"))
    });
    assert_eq!(stage.who(), ["one", "two"], "{}", stage.agent.status());
    // Its end is an event that nobody will ever tell of.
    kill(Pid::from_raw(dies.pid), Signal::SIGKILL).expect("a container's first process can be signalled");
    traffic.flows_on();

    stage.docker.start_daemon();
    let one = before.backend("one").and_then(|one| one.container.as_deref()).expect("one is a container");
    let health = stage.docker.inspect(one).state.and_then(|state| state.health).and_then(|health| health.status);
    let after = stage.agent.wait_for("the agent is back at Docker, and the dead one is gone", |status| {
        status.agent.docker.is_some() && status.backend("dies").is_none()
    });
    eprintln!("dockerd: health once it is back: {health:?}");
    assert_eq!(after.problems, [], "{after}");
    for name in ["one", "two"] {
        let states =
            |status: &Status| status.backend(name).map(|backend| (backend.state.clone(), backend.since.clone()));
        assert_eq!(states(&after), states(&before), "{name} was never demoted:\n{after}");
    }
    assert_eq!(stage.who(), ["one", "two"]);

    // Events flow again.
    stage.docker.run(replica("three"));
    stage.agent.wait_ready("greeter", 3);
    traffic.flows_on();
    traffic.finish_unharmed("dockerd");
}

fn one_agent_at_a_time_and_its_end_changes_nothing(attach: Attach) {
    let Some(mut stage) = Stage::set(attach, &["one"], &[]) else { return };
    let traffic = Traffic::start(&stage.world);
    let pid = stage.agent.pid();

    let url = stage.docker.host_url();
    let second = stage.agent.steer(&["run", "--interface", "u0", "--docker-host", &url, "--attach", attach.word()]);
    let said = String::from_utf8_lossy(&second.stderr);
    assert_eq!(second.status.code(), Some(1), "{said}");
    for word in ["another steer agent is alive", stage.agent.instance(), &pid.to_string()] {
        assert!(said.contains(word), "{word:?} is not in: {said}");
    }
    assert_eq!(stage.agent.status().agent.pid, Some(pid));
    assert_eq!(stage.who(), ["one"]);

    let tables = stage.tables();
    let links = stage.programs();
    assert!(stage.agent.terminate().success());
    assert_eq!((stage.tables(), stage.programs()), (tables, links));
    assert_eq!(stage.who(), ["one"]);
    traffic.flows_on();

    // Now there is room for another.
    stage.restart();
    assert_eq!(stage.who(), ["one"]);
    traffic.finish_unharmed("terminate");
}

#[test]
fn switching_the_way_in_between_runs_leaves_no_stale_link() {
    let Some(mut stage) = Stage::set(Attach::Xdp, &["one", "two"], &[]) else { return };
    let traffic = Traffic::start(&stage.world);
    let uplinks = |stage: &Stage| -> Vec<String> {
        stage.agent.links().into_iter().filter(|link| link.ends_with("-u0")).collect()
    };
    let on_the_wire = |stage: &Stage| stage.world.host.output("ip", "link show dev u0").contains("prog/xdp");
    assert_eq!((uplinks(&stage), on_the_wire(&stage)), (vec!["tcx-u0".to_owned(), "xdp-u0".to_owned()], true));
    for (attach, links, xdp) in [
        (Attach::Tc, vec!["tcx-u0"], false),
        (Attach::Xdp, vec!["tcx-u0", "xdp-u0"], true),
        (Attach::Auto, vec!["tcx-u0"], false),
    ] {
        stage.agent.change_attach(attach);
        stage.restart();
        assert_eq!(uplinks(&stage), links, "{attach:?}");
        // The kernel takes a program off a little after its last reference is gone.
        wait_until("XDP is as the links say", LIMIT, || match on_the_wire(&stage) {
            now if now == xdp => Ok(()),
            now => Err(format!("{attach:?}, XDP attached: {now}")),
        });
        assert_eq!(stage.who(), ["one", "two"], "{attach:?}");
        traffic.flows_on();
    }
    traffic.finish_unharmed("switching");
}

/// Nothing of steer is on the host: no pin, no socket, no program on an interface.
#[track_caller]
fn assert_off_the_host(stage: &Stage) {
    for place in [stage.agent.pins(), Path::new("/run").join(stage.agent.instance())] {
        assert!(!place.exists(), "{} is still there", place.display());
    }
    wait_until("no program is left on an interface", LIMIT, || {
        let list = stage.world.host.output("bpftool", "net show");
        let ours = ["uplink_tc", "uplink_xdp", "backend_tc"];
        if ours.iter().any(|name| list.contains(name)) || list.contains("xdp:\nu0") { Err(list) } else { Ok(()) }
    });
}

fn detach_waits_for_the_last_connection_and_takes_no_new_one(attach: Attach, agent_alive: bool) {
    let Some(mut stage) = Stage::set(attach, &["one"], &[]) else { return };
    let programs = stage.programs();
    let long = LongLived::start(&stage.world.client, ECHO);
    if !agent_alive {
        stage.agent.kill9();
    }

    let mut detach = stage.agent.command(&["detach"]);
    let detach = detach.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut detach = detach.expect("steer can be started");
    // The host itself has nobody at this port.
    wait_until("new connections pass to the host", LIMIT, || match stage.http.get("/") {
        Err(Failure::Refused) => Ok(()),
        other => Err(format!("{other:?}")),
    });
    let status = stage.agent.status();
    assert_eq!(status.backend("one").map(|one| one.live_flows), Some(1), "{status}");
    assert!(matches!(detach.try_wait(), Ok(None)), "detach waits for the connection");
    let echoed = long.counter();
    let before = echoed.load(Ordering::Relaxed);
    wait_until("the connection goes on", LIMIT, || match echoed.load(Ordering::Relaxed) - before {
        moved if moved >= 3 => Ok(()),
        moved => Err(format!("{moved} bytes, over: {}", long.is_over())),
    });

    let life = long.finish_unharmed();
    eprintln!("detach waited for {life:?}");
    let output = detach.wait_with_output().expect("detach can be waited for");
    let said = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{said}");
    // One, or two: a request of the stage's own may just be closing.
    assert!(said.contains("no new connections are taken, ") && said.contains(" left"), "{said}");
    if agent_alive {
        assert!(stage.agent.wait_exit().success());
    }
    assert_off_the_host(&stage);
    for (program, _) in programs.into_values() {
        wait_until("the kernel lets go of a program", LIMIT, || {
            let shown = Command::new("bpftool").args(["prog", "show", "id", &program.to_string()]).output();
            if shown.is_ok_and(|shown| !shown.status.success()) { Ok(()) } else { Err(format!("program {program}")) }
        });
    }
    // And it can come back.
    stage.agent.restart();
    stage.agent.wait_ready("greeter", 1);
    assert_eq!(stage.who(), ["one"]);
}

fn detach_at_once_leaves_nothing(attach: Attach) {
    let Some(mut stage) = Stage::set(attach, &["one"], &[]) else { return };
    let long = LongLived::start(&stage.world.client, ECHO);
    stage.agent.steer_ok(&["detach", "--now"]);
    assert!(stage.agent.wait_exit().success());
    assert_off_the_host(&stage);
    assert_eq!(stage.http.get("/").map(|reply| reply.backend), Err(Failure::Refused));
    // The host answers what is left of the connection: it is told, and does not hang.
    wait_until("the steered connection breaks", LIMIT, || if long.is_over() { Ok(()) } else { Err("it lives") });
    assert!(long.finish().error.is_some());

    // The same with the agent dead, and then there is nothing to detach.
    stage.agent.restart();
    stage.agent.wait_ready("greeter", 1);
    assert_eq!(stage.who(), ["one"]);
    stage.agent.kill9();
    stage.agent.steer_ok(&["detach", "--now"]);
    assert_off_the_host(&stage);
    let again = stage.agent.steer(&["detach", "--now"]);
    assert_eq!(again.status.code(), Some(1), "{}", String::from_utf8_lossy(&again.stderr));
}

#[test]
fn a_killed_agent_loses_nothing_and_the_next_one_adopts_over_tc() {
    a_killed_agent_loses_nothing_and_the_next_one_adopts(Attach::Tc);
}

#[test]
fn a_killed_agent_loses_nothing_and_the_next_one_adopts_over_xdp() {
    a_killed_agent_loses_nothing_and_the_next_one_adopts(Attach::Xdp);
}

#[test]
fn what_happened_while_no_agent_ran_is_found_by_the_next_over_tc() {
    what_happened_while_no_agent_ran_is_found_by_the_next(Attach::Tc);
}

#[test]
fn what_happened_while_no_agent_ran_is_found_by_the_next_over_xdp() {
    what_happened_while_no_agent_ran_is_found_by_the_next(Attach::Xdp);
}

#[test]
fn an_upgrade_replaces_the_programs_and_loses_nothing_over_tc() {
    an_upgrade_replaces_the_programs_and_loses_nothing(Attach::Tc);
}

#[test]
fn an_upgrade_replaces_the_programs_and_loses_nothing_over_xdp() {
    an_upgrade_replaces_the_programs_and_loses_nothing(Attach::Xdp);
}

#[test]
fn dockerd_restarts_and_nothing_is_lost_over_tc() {
    dockerd_restarts_and_nothing_is_lost(Attach::Tc);
}

#[test]
fn dockerd_restarts_and_nothing_is_lost_over_xdp() {
    dockerd_restarts_and_nothing_is_lost(Attach::Xdp);
}

#[test]
fn one_agent_at_a_time_and_its_end_changes_nothing_over_tc() {
    one_agent_at_a_time_and_its_end_changes_nothing(Attach::Tc);
}

#[test]
fn one_agent_at_a_time_and_its_end_changes_nothing_over_xdp() {
    one_agent_at_a_time_and_its_end_changes_nothing(Attach::Xdp);
}

#[test]
fn detach_waits_for_the_last_connection_and_takes_no_new_one_over_tc() {
    detach_waits_for_the_last_connection_and_takes_no_new_one(Attach::Tc, true);
}

#[test]
fn detach_waits_for_the_last_connection_and_takes_no_new_one_over_xdp() {
    detach_waits_for_the_last_connection_and_takes_no_new_one(Attach::Xdp, true);
}

#[test]
fn detach_waits_for_the_last_connection_also_without_an_agent() {
    detach_waits_for_the_last_connection_and_takes_no_new_one(Attach::Tc, false);
}

#[test]
fn detach_at_once_leaves_nothing_over_tc() {
    detach_at_once_leaves_nothing(Attach::Tc);
}

#[test]
fn detach_at_once_leaves_nothing_over_xdp() {
    detach_at_once_leaves_nothing(Attach::Xdp);
}
