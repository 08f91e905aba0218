//! Static services: network namespaces as backends, no Docker anywhere.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::Signal;
use steer::dataplane::attach;
use steer_common::limits::ABI;
use steer_tests::agent::{Agent, Attach, Problem, Status};
use steer_tests::greeter::Greeter;
use steer_tests::http::Http;
use steer_tests::load::{self, Load};
use steer_tests::long_lived::{self, LongLived};
use steer_tests::netns::Ns;
use steer_tests::pace;
use steer_tests::skip::{self, Need};
use steer_tests::world::HOST;
use steer_tests::{World, wait_until};

const LIMIT: Duration = Duration::from_secs(30);

/// A service of these namespaces, called `a`, `b`, and so on; the second one weighs three times the others.
fn configuration(world: &World, namespaces: &[&Ns]) -> String {
    let mut text =
        "[defaults]\nhold = \"5s\"\n\n[[service]]\nname = \"web\"\nports = [\"9000:5000\", \"9001:5001\"]\n".to_owned();
    for (name, ns) in ["a", "b", "c"].iter().zip(namespaces) {
        let weight = if *name == "b" { 3 } else { 1 };
        text += &format!("{}weight = {weight}\n", ns.backend(name));
    }
    world.file("steer.toml", &text).display().to_string()
}

/// Clients, for longer than a test takes.
fn clients(world: &World) -> Load {
    let (rate, seconds, patient) = (pace::rate(200), pace::lasting_secs(60), load::patient());
    let words = format!("--connections 4 --rate {rate} --seconds {seconds} {patient}");
    Load::start(&world.client, (HOST, 9000), &words)
}

fn split(http: &Http, requests: u32) -> BTreeMap<String, u32> {
    let mut split = BTreeMap::new();
    for _ in 0..requests {
        *split.entry(http.backend()).or_default() += 1;
    }
    split
}

fn counts<const N: usize>(expected: [(&str, u32); N]) -> BTreeMap<String, u32> {
    expected.into_iter().map(|(name, count)| (name.to_owned(), count)).collect()
}

fn namespaces_serve_when_they_listen(attach: Attach) {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    let mut world = attach.world();
    let namespaces = [world.add_backend(), world.add_backend()];
    let [(a, a_address), (b, _)] = &namespaces;
    let config = configuration(&world, &[a, b]);
    let mut agent = Agent::start_static(&world, attach, &config);
    let http = Http::new(&world.client, SocketAddr::from((HOST, 9000)));

    let status =
        agent.wait_for("both are known", |status| status.service("web").is_some_and(|web| web.count("starting") == 2));
    assert_eq!(
        status.service("web").map(|web| web.frontends.clone()),
        Some(vec!["0.0.0.0:9000/tcp".into(), "0.0.0.0:9001/tcp".into()])
    );
    assert_eq!(status.backend("a").map(|a| (a.address.clone(), a.weight)), Some((a_address.to_string(), 1)));
    assert_eq!(status.problems, [], "{status}");
    let _one = Greeter::start(a, "a", &[]);
    agent.wait_state("a", "ready");
    assert_eq!(split(&http, 8), counts([("a", 8)]));
    // It takes its time, and gets nothing meanwhile.
    let delay = pace::lasting(Duration::from_millis(500)).as_secs_f64().to_string();
    let late = Greeter::launch(b, "b", &["--listen-after", &delay]);
    assert_eq!(split(&http, 8), counts([("a", 8)]));
    agent.wait_ready("web", 2);
    assert_eq!(split(&http, 40), counts([("a", 10), ("b", 30)]));

    // Weight, drain and flows are an operator's here as well, and outlive the agent.
    agent.steer_ok(&["weight", "b", "1"]);
    assert_eq!(split(&http, 20), counts([("a", 10), ("b", 10)]));
    agent.steer_ok(&["drain", "a"]);
    assert_eq!(split(&http, 8), counts([("b", 8)]));
    let load = clients(&world);
    let long = LongLived::start(&world.client, (HOST, 9001));
    assert_eq!(long.backend, "b");
    agent.kill9();
    assert_eq!(split(&http, 8), counts([("b", 8)]));
    agent.restart();
    let pid = agent.pid();
    let status = agent.wait_for("the next agent is there", |status| status.agent.pid == Some(pid));
    let states = ["a", "b"].map(|name| status.backend(name).map(|backend| (backend.state.clone(), backend.weight)));
    assert_eq!(states, [Some(("maintenance".to_owned(), 1)), Some(("ready".to_owned(), 1))]);
    agent.steer_ok(&["undrain", "a"]);
    agent.wait_ready("web", 2);
    assert_eq!(split(&http, 20).len(), 2);

    let report = load.stop();
    eprintln!("{attach:?}: {} requests, slowest {:.1} ms, {:?}", report.requests, report.slowest_ms, report.backends);
    assert_eq!(report.failed, 0, "{report:#?}");
    long.finish_unharmed();
    late.signal(Signal::SIGTERM);
}

fn a_namespace_that_is_deleted_is_gone_and_comes_back_when_made_again(attach: Attach) {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    let mut world = attach.world();
    let (a, _) = world.add_backend();
    let (b, _) = world.add_backend();
    let path = b.path().display().to_string();
    let config = configuration(&world, &[&a, &b]);
    let greeters = [Greeter::start(&a, "a", &[]), Greeter::start(&b, "b", &[])];
    let mut agent = Agent::start_static(&world, attach, &config);
    agent.wait_ready("web", 2);
    let http = Http::new(&world.client, SocketAddr::from((HOST, 9000)));
    assert_eq!(split(&http, 40), counts([("a", 10), ("b", 30)]));
    let links = agent.links();

    // As an operator does it: no new connections, the open ones end, then it goes.
    let limit = format!("{}s", pace::soon_secs(10));
    agent.steer_ok(&["drain", "--wait", "--timeout", &limit, "b"]);
    let load = clients(&world);
    let [_a_stays, b_goes] = greeters;
    assert!(b_goes.terminate().success());
    world.remove_backend(b);
    let status = agent.wait_state("b", "gone");
    let told = |problem: &&Problem| problem.container.as_deref() == Some("b") && problem.message.contains(&path);
    assert_eq!(status.problems.iter().filter(told).count(), 1, "{status}");
    assert_eq!(split(&http, 8), counts([("a", 8)]));
    // Its veth went with it: nothing held the namespace open.
    wait_until("the host end of its veth is gone", LIMIT, || {
        let left = world.host.output("ip", "-o link show type veth");
        if left.contains("b2@") { Err(left) } else { Ok(()) }
    });
    wait_until("its link is gone", LIMIT, || match agent.links() {
        now if now.len() == links.len() - 1 => Ok(()),
        now => Err(format!("{now:?}, at first {links:?}")),
    });

    // The same name and address, but another namespace.
    let (b, _) = world.add_backend();
    assert_eq!(b.path().display().to_string(), path);
    let _b_again = Greeter::start(&b, "b-again", &[]);
    let status = agent.wait_ready("web", 2);
    assert_eq!(status.problems, [], "{status}");
    let gone = format!("cannot open network namespace {path}");
    let said = agent.log().lines().filter(|line| line.contains("ERROR") && line.contains(&gone)).count();
    assert_eq!(said, 1, "a problem is logged once, not each time it is looked: {}", agent.log());
    let report = load.stop();
    eprintln!("{attach:?}: {} requests, slowest {:.1} ms, {:?}", report.requests, report.slowest_ms, report.backends);
    assert_eq!(report.failed, 0, "{report:#?}");
    assert_eq!(split(&http, 40), counts([("a", 10), ("b-again", 30)]), "nothing of the old one sticks: {status}");
}

/// What is open to a namespace whose addresses change goes on, for as long as its own one is there again in time.
fn a_namespace_whose_addresses_change_keeps_what_is_open(attach: Attach) {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    let mut world = attach.world();
    let (a, a_address) = world.add_backend();
    let (b, _) = world.add_backend();
    let config = configuration(&world, &[&a, &b]);
    // The next one that is made has its name: somebody new is a reason to look at everybody.
    world.remove_backend(b);
    let _a_serves = Greeter::start(&a, "a", &[]);
    let has_problem = |status: &Status| status.problems.iter().any(|problem| problem.container.as_deref() == Some("a"));
    let mut agent = Agent::start_static(&world, attach, &config);
    agent.wait_ready("web", 1);
    let long = LongLived::start(&world.client, (HOST, 9001));

    // One more address: which one is meant could not be told of a namespace that is new.
    a.ip("addr add 10.205.99.1/32 dev lo");
    let (b, _) = world.add_backend();
    let b_serves = Greeter::start(&b, "b", &[]);
    let status = agent.wait_ready("web", 2);
    assert_eq!(status.backend("a").map(|a| a.address.clone()), Some(a_address.to_string()));
    assert!(!has_problem(&status), "{status}");
    agent.restart();
    let pid = agent.pid();
    let status = agent.wait_for("the next agent has looked", |status| status.agent.pid == Some(pid));
    assert_eq!(status.backend("a").map(|a| a.address.clone()), Some(a_address.to_string()));
    long_lived::go_on(std::slice::from_ref(&long));

    // None at all, for a moment.
    a.ip("addr del 10.205.99.1/32 dev lo");
    a.ip("addr flush dev eth0");
    assert!(b_serves.terminate().success());
    world.remove_backend(b);
    agent.wait_for("it is told", |status| {
        has_problem(status) && status.backend("a").is_some_and(|a| a.state == "unready")
    });
    a.ip(&format!("addr add {a_address}/24 dev eth0"));
    a.ip(&format!("route add default via {}", gateway(a_address)));
    agent.wait_ready("web", 1);
    long_lived::go_on(std::slice::from_ref(&long));
    long.finish_unharmed();
}

/// The host's address beside a namespace's.
fn gateway(address: Ipv4Addr) -> Ipv4Addr {
    let [a, b, c, _] = address.octets();
    Ipv4Addr::new(a, b, c, 1)
}

#[test]
fn a_namespace_whose_addresses_change_keeps_what_is_open_over_tc() {
    a_namespace_whose_addresses_change_keeps_what_is_open(Attach::Tc);
}

#[test]
fn a_namespace_whose_addresses_change_keeps_what_is_open_over_xdp() {
    a_namespace_whose_addresses_change_keeps_what_is_open(Attach::Xdp);
}

#[test]
fn namespaces_serve_when_they_listen_over_tc() {
    namespaces_serve_when_they_listen(Attach::Tc);
}

#[test]
fn namespaces_serve_when_they_listen_over_xdp() {
    namespaces_serve_when_they_listen(Attach::Xdp);
}

#[test]
fn a_namespace_that_is_deleted_is_gone_and_comes_back_when_made_again_over_tc() {
    a_namespace_that_is_deleted_is_gone_and_comes_back_when_made_again(Attach::Tc);
}

#[test]
fn a_namespace_that_is_deleted_is_gone_and_comes_back_when_made_again_over_xdp() {
    a_namespace_that_is_deleted_is_gone_and_comes_back_when_made_again(Attach::Xdp);
}

#[test]
fn clients_are_met_where_the_default_route_leads() {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    let world = World::with_other();
    let mut agent = Agent::start_raw(&world, &["--no-docker", "--attach", "tc"]);
    let is_attached = |agent: &Agent, interface: &str| agent.links().contains(&format!("tcx-{interface}"));
    // No route leads anywhere: each interface may be meant.
    agent.wait_for("it is attached", |status| status.agent.alive);
    assert!(is_attached(&agent, "u0") && is_attached(&agent, "u1"), "{:?}", agent.links());
    for (route, there, not_there) in [
        (format!("add default via {}", steer_tests::world::CLIENT), "u0", "u1"),
        (format!("replace default via {}", steer_tests::world::OTHER), "u1", "u0"),
    ] {
        world.host.ip(&format!("route {route}"));
        wait_until("the uplink is another one", Duration::from_secs(5), || {
            let links = agent.links();
            if is_attached(&agent, there) && !is_attached(&agent, not_there) {
                Ok(())
            } else {
                Err(format!("{links:?}"))
            }
        });
    }
}

/// Where there is no tcx, filters of both stand at the same hook, each at a place of its own.
#[test]
fn of_two_instances_on_one_host_each_steers_its_own_and_either_can_go() {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    let mut world = World::new();
    let mut service = |name: &str, port: u16| {
        let (ns, _) = world.add_backend();
        let text = format!("[[service]]\nname = \"{name}\"\nports = [\"{port}:5000\"]\n{}", ns.backend(name));
        let config = world.file(&format!("{name}.toml"), &text).display().to_string();
        (Greeter::start(&ns, name, &[]), config)
    };
    let [(_a, of_first), (_b, of_second)] = [service("a", 9000), service("b", 9001)];
    let [a, b] = [9000, 9001].map(|port| Http::new(&world.client, SocketAddr::from((HOST, port))));
    let mut first = Agent::start_static(&world, Attach::Tc, &of_first);
    first.wait_ready("a", 1);
    let mut second = Agent::start_beside(&world, &of_second);
    second.wait_ready("b", 1);
    assert_eq!((a.backend(), b.backend()), ("a".to_owned(), "b".to_owned()));

    let leave = |agent: &mut Agent| {
        agent.steer_ok(&["detach", "--now"]);
        assert!(agent.wait_exit().success());
    };
    leave(&mut second);
    assert_eq!(a.backend(), "a", "nothing of the first one's went with the second");
    assert!(b.get("/").is_err(), "nobody else serves it");
    second.restart();
    second.wait_ready("b", 1);
    leave(&mut first);
    assert_eq!(b.backend(), "b");
    assert!(a.get("/").is_err());
}

#[test]
fn where_xdp_is_refused_clients_are_steered_over_tcx_and_it_is_told() {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    let world = World::new();
    // A bridge has no XDP of its own.
    world.host.ip("link add d0 type bridge");
    world.host.ip("link set d0 up");
    let arguments = ["--no-docker", "--interface", "u0", "--interface", "d0", "--attach", "xdp"];
    let mut agent = Agent::start_raw(&world, &arguments);
    let status = agent.wait_for("the refusal is told", |status| !status.problems.is_empty());
    let [problem] = status.problems.as_slice() else { panic!("{status}") };
    assert_eq!(problem.container.as_deref(), Some("d0"), "{problem:?}");
    assert!(problem.message.contains("tcx meanwhile"), "{problem:?}");
    let links = agent.links();
    let is_there = |name: &str| links.iter().any(|link| link == name);
    assert!(is_there("tcx-d0") && is_there("tcx-u0") && is_there("xdp-u0") && !is_there("xdp-d0"), "{links:?}");
    // It stays, and stays told, when something changes elsewhere.
    world.host.ip("link add d1 type bridge");
    world.host.ip("link del d1");
    let status = agent.wait_for("it answers", |status| status.agent.alive);
    assert_eq!((status.problems.len(), agent.links()), (1, links), "{status}");
}

/// Ids of the links at a pin that has one, so that another link is another id.
fn link_id(agent: &Agent, name: &str) -> String {
    let pin = agent.pins().join(format!("v{ABI}")).join("links").join(name);
    let kind = if attach::ingress_hook() == "tcx" { "link" } else { "prog" };
    let output = Command::new("bpftool").args(["-j", kind, "show", "pinned"]).arg(pin).output().expect("bpftool runs");
    let told: serde_json::Value = serde_json::from_slice(&output.stdout).expect("bpftool tells JSON");
    told["id"].to_string()
}

#[test]
fn an_interface_that_gets_another_name_keeps_what_is_attached_to_it() {
    if skip::without(&[Need::Root, Need::Steer, Need::Program("bpftool")]) {
        return;
    }
    let world = World::new();
    let mut agent = Agent::start_raw(&world, &["--no-docker", "--attach", "tc"]);
    agent.wait_for("it is attached", |status| status.agent.alive);
    let before = link_id(&agent, "tcx-u0");
    let renamed = world.host.command("ip").args(["link", "set", "u0", "name", "u9"]).output().expect("ip runs");
    if !renamed.status.success() {
        // Before Linux 6.2.
        return skip::not_of_this_kind("this kernel renames no interface that is up");
    }
    wait_until("its link is called after it", Duration::from_secs(5), || {
        let links = agent.links();
        let has = |name: &str| links.iter().any(|link| link == name);
        if has("tcx-u9") && !has("tcx-u0") { Ok(()) } else { Err(format!("{links:?}")) }
    });
    assert_eq!(link_id(&agent, "tcx-u9"), before, "it was never off");
    let status = agent.status();
    assert!(status.problems.is_empty(), "{status}");
}

#[test]
fn an_agent_that_is_started_with_other_arguments_does_as_they_say_or_tells() {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    let world = World::new();
    let few = world.file("few.toml", "[agent]\nmax_flows = 2048\n").display().to_string();
    let arguments = |attach| ["--no-docker", "--interface", "u0", "--attach", attach];
    let mut agent = Agent::start_raw(&world, &arguments("xdp"));
    let mode = |agent: &mut Agent| {
        agent.wait_for("it is attached", |status| status.agent.alive);
        let told = world.host.output("ip", "-d link show u0");
        let word =
            told.split_whitespace().find(|word| word.starts_with("xdp") || *word == "prog/xdp").map(str::to_owned);
        word.unwrap_or(told)
    };
    assert_eq!(mode(&mut agent), "xdp");
    for (attach, expected) in [("generic", "xdpgeneric"), ("xdp", "xdp")] {
        agent.kill9();
        agent.restart_with(&arguments(attach));
        wait_until("XDP runs as asked for", LIMIT, || match mode(&mut agent) {
            mode if mode == expected => Ok(()),
            mode => Err(mode),
        });
        assert_eq!(agent.status().problems, []);
    }
    // The size of a table that is there cannot change.
    agent.kill9();
    agent.restart_with(&[&arguments("xdp")[..], &["--config", &few]].concat());
    let status = agent.wait_for("it is told", |status| !status.problems.is_empty());
    assert!(status.problems[0].message.contains("max_flows = 2048 is not in force"), "{status}");
}
