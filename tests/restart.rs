//! The agent comes and goes, and dockerd too: what is in the kernel steers on, and whoever comes next goes on from there.

use std::net::SocketAddr;
use std::process::Command;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use steer_tests::agent::{Attach, Status};
use steer_tests::docker::{Container, ContainerSpec, Health, Proxy};
use steer_tests::http::Http;
use steer_tests::pace;
use steer_tests::stage::{Stage, Traffic, replica};
use steer_tests::wait_until;
use steer_tests::world::HOST;

const LIMIT: Duration = Duration::from_secs(30);

/// One of another service, which no load goes to: what is done to it while nobody watches may be felt there.
fn bystander(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9002:5000").label("steer.service", "bystanders")
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
    wait_until("there is one link per running container", LIMIT, || {
        let links = stage.agent.links();
        let veths = links.iter().filter(|link| link.starts_with("veth-")).count();
        if veths == 3 { Ok(()) } else { Err(format!("{links:?}")) }
    });
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
        // A link that stays is one whose program was replaced in one step. Socket hooks and tracepoints are attached anew before
        // the old ones go.
        let is_replaced = !["cgroup-", "tracepoint-"].iter().any(|kind| name.starts_with(kind));
        assert_eq!(*link == new_link, is_replaced, "{name}: link {link}, then {new_link}");
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
    let health = Health { interval: pace::lasting(Duration::from_secs(4)), ..Health::default() };
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

/// Two replicas with an agent that asks Docker by a proxy, once it is started again.
fn behind_a_proxy() -> Option<(Stage, [Container; 2], Proxy)> {
    let mut stage = Stage::set(Attach::Tc, &[], &[])?;
    let replicas = ["one", "two"].map(|name| stage.docker.run(replica(name)));
    stage.agent.wait_ready("greeter", 2);
    let proxy = Proxy::start(&stage.world, &stage.docker);
    stage.agent.change_docker_host(&proxy.host_url());
    Some((stage, replicas, proxy))
}

/// Waits until so many questions have no answer.
#[track_caller]
fn wait_asked(proxy: &Proxy, what: &str, questions: usize) {
    wait_until(what, LIMIT, || match proxy.held() {
        held if held >= questions => Ok(()),
        held => Err(format!("{held} questions wait")),
    });
}

#[test]
fn a_replica_of_which_an_event_comes_while_a_new_agent_asks_keeps_its_connections() {
    let Some((mut stage, replicas, proxy)) = behind_a_proxy() else { return };
    let traffic = Traffic::start(&stage.world);
    stage.agent.kill9();
    proxy.hang(true);
    stage.agent.restart();
    wait_asked(&proxy, "the new agent asks which containers there are", 1);
    // What it will hear of these is older than these events.
    replicas.iter().for_each(|replica| replica.kill("WINCH"));
    wait_asked(&proxy, "the new agent asks who got the signals", 3);
    // It asks about one that starts as well: by then it has taken in what was told before.
    stage.docker.run(replica("three"));
    wait_asked(&proxy, "the new agent asks what has started", 4);
    proxy.hang(false);
    stage.agent.wait_ready("greeter", 3);
    assert_eq!(stage.who(), ["one", "three", "two"]);
    traffic.flows_on();
    traffic.finish_unharmed("events while it asks");
}

#[test]
fn a_stop_signal_that_is_told_while_a_new_agent_asks_is_not_lost() {
    let Some((mut stage, _replicas, proxy)) = behind_a_proxy() else { return };
    stage.agent.kill9();
    // Unknown to the kernel as well, which sees the signals of those alone whom an agent has told it of.
    let grace = pace::lasting_secs(60).to_string();
    let stops = stage.docker.run(replica("stops").args(&["--on-term", "serve", "--grace", &grace]));
    proxy.hang(true);
    stage.agent.restart();
    wait_asked(&proxy, "the new agent asks which containers there are", 1);
    stops.kill("TERM");
    wait_asked(&proxy, "the new agent asks who got the signal", 2);
    proxy.hang(false);
    stage.agent.wait_ready("greeter", 2);
    let told = stage.agent.wait_for("the new one is known", |status| status.backend("stops").is_some());
    let stops = told.backend("stops").expect("it was waited for");
    assert!(["draining", "drained"].contains(&stops.state.as_str()), "{told}");
    assert_eq!(stops.cause, "event: kill TERM", "{told}");
    assert_eq!(stage.who(), ["one", "two"], "{told}");
}

#[test]
fn a_replica_that_docker_does_not_describe_to_a_new_agent_keeps_its_connections() {
    let Some((mut stage, [one, _two], proxy)) = behind_a_proxy() else { return };
    let traffic = Traffic::start(&stage.world);
    stage.agent.kill9();
    stage.docker.run(replica("three"));
    proxy.be_silent_about(Some(&one.id));
    stage.agent.restart();
    // The list is taken in, without the first one.
    stage.agent.wait_ready("greeter", 3);
    assert_eq!(stage.who(), ["one", "three", "two"]);
    traffic.flows_on();
    traffic.finish_unharmed("one that is not described");
    // It is asked again and again, and known when there is an answer.
    proxy.be_silent_about(None);
    one.stop(None);
    stage.agent.wait_ready("greeter", 2);
    assert_eq!(stage.who(), ["three", "two"]);
}

#[test]
fn whoever_was_put_in_by_hand_is_in_again_after_a_pause_that_a_new_agent_finds() {
    let by_hand = |name: &str| replica(name).label("steer.ready", "manual");
    let Some(mut stage) = Stage::set_with(Attach::Tc, &[], ["one"].map(replica).into_iter()) else { return };
    let [before, meanwhile, never] = ["before", "meanwhile", "never"].map(|name| stage.docker.run(by_hand(name)));
    let paused = [&before, &meanwhile, &never];
    for name in ["meanwhile", "never"] {
        stage.agent.wait_state(name, "starting");
    }
    stage.agent.steer_ok(&["undrain", "before"]);
    stage.agent.wait_ready("greeter", 2);
    stage.agent.kill9();
    paused.into_iter().for_each(Container::pause);
    stage.restart();
    for name in ["before", "meanwhile", "never"] {
        stage.agent.wait_state(name, "unready");
    }
    stage.agent.steer_ok(&["undrain", "meanwhile"]);
    stage.agent.kill9();
    stage.restart();
    paused.into_iter().for_each(Container::unpause);
    for name in ["before", "meanwhile"] {
        stage.agent.wait_state(name, "ready");
    }
    let status = stage.agent.wait_state("never", "starting");
    assert_eq!(stage.who(), ["before", "meanwhile", "one"], "{status}");
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
