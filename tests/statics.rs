//! Static services: network namespaces as backends, no Docker anywhere.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::time::Duration;

use nix::sys::signal::Signal;
use steer_tests::agent::{Agent, Attach, Problem};
use steer_tests::greeter::Greeter;
use steer_tests::http::Http;
use steer_tests::load::Load;
use steer_tests::long_lived::LongLived;
use steer_tests::netns::Ns;
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
        let path = ns.path();
        text += &format!("[[service.backend]]\nname = \"{name}\"\nnetns = \"{}\"\nweight = {weight}\n", path.display());
    }
    world.file("steer.toml", &text).display().to_string()
}

fn start(world: &World, attach: Attach, config: &str) -> Agent {
    Agent::start_with(world, None, attach, &["--no-docker", "--config", config])
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
    let mut agent = start(&world, attach, &config);
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
    let late = Greeter::launch(b, "b", &["--listen-after", "0.5"]);
    assert_eq!(split(&http, 8), counts([("a", 8)]));
    agent.wait_ready("web", 2);
    assert_eq!(split(&http, 40), counts([("a", 10), ("b", 30)]));

    // Weight, drain and flows are an operator's here as well, and outlive the agent.
    agent.steer_ok(&["weight", "b", "1"]);
    assert_eq!(split(&http, 20), counts([("a", 10), ("b", 10)]));
    agent.steer_ok(&["drain", "a"]);
    assert_eq!(split(&http, 8), counts([("b", 8)]));
    let load = Load::start(&world.client, (HOST, 9000), "--connections 4 --rate 200 --seconds 60");
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
    let mut agent = start(&world, attach, &config);
    agent.wait_ready("web", 2);
    let http = Http::new(&world.client, SocketAddr::from((HOST, 9000)));
    assert_eq!(split(&http, 40), counts([("a", 10), ("b", 30)]));
    let links = agent.links();

    // As an operator does it: no new connections, the open ones end, then it goes.
    agent.steer_ok(&["drain", "--wait", "--timeout", "10s", "b"]);
    let load = Load::start(&world.client, (HOST, 9000), "--connections 4 --rate 200 --seconds 60");
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
    let said = agent.log().lines().filter(|line| line.contains("ERROR") && line.contains(&path)).count();
    assert_eq!(said, 1, "a problem is logged once, not each time it is looked: {}", agent.log());
    let report = load.stop();
    eprintln!("{attach:?}: {} requests, slowest {:.1} ms, {:?}", report.requests, report.slowest_ms, report.backends);
    assert_eq!(report.failed, 0, "{report:#?}");
    assert_eq!(split(&http, 40), counts([("a", 10), ("b-again", 30)]), "nothing of the old one sticks: {status}");
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
