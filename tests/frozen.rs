//! A container that is frozen takes nothing until it goes on: with cgroups of version 2 the kernel sees it, with version 1 the agent.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::{Clients, Host};
use steer_tests::docker::ContainerSpec;
use steer_tests::long_lived::LongLived;
use steer_tests::skip;
use steer_tests::wait_until;
use steer_tests::world::HOST;

const SERVICE: &str = "web";
const ECHO: (std::net::Ipv4Addr, u16) = (HOST, 9001);
const LIMIT: Duration = Duration::from_secs(30);

fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000,9001:5001").label("steer.service", SERVICE)
}

/// The hierarchy of cgroups of version 2: alone, or beside version 1.
fn cgroup2() -> Option<PathBuf> {
    cgroups("cgroup2", "rw")
}

/// Where cgroups are mounted, with an option that says of what.
fn cgroups(kind: &str, option: &str) -> Option<PathBuf> {
    let mounts = std::fs::read_to_string("/proc/self/mounts").expect("this process has mounts");
    mounts.lines().find_map(|line| match line.split(' ').collect::<Vec<_>>()[..] {
        [_, place, is, options, ..] if is == kind && options.split(',').any(|one| one == option) => Some(place.into()),
        _ => None,
    })
}

/// Frozen not by Docker, which would send an event: nobody but the kernel sees this.
fn frozen(attach: Attach, with_agent: bool) {
    let Some(root) = cgroup2() else {
        return skip::not_of_this_kind("no cgroup2 is mounted here");
    };
    let Some((world, docker)) = Host::without_agent(attach) else { return };
    let victim = docker.run(replica("victim"));
    docker.run_all(["one", "two"].map(replica));
    // Where Docker uses version 1, the container is in no group of version 2.
    let group = root.join(world.tag()).join("victim");
    std::fs::create_dir_all(&group).expect("a cgroup can be made");
    let write =
        |file: &str, what: &str| std::fs::write(group.join(file), what).unwrap_or_else(|err| panic!("{file}: {err}"));
    write("cgroup.procs", &victim.pid.to_string());
    let mut agent = Agent::start(&world, &docker, attach);
    agent.wait_ready(SERVICE, 3);
    let lives: Vec<_> = (0..6).map(|_| LongLived::start(&world.client, ECHO)).collect();
    let clients = Clients::start(&world, 9000);
    if !with_agent {
        agent.kill9();
    }
    for round in 1..=10 {
        write("cgroup.freeze", "1");
        let told = agent.backend("victim");
        assert_eq!((told.state.as_str(), told.cause.as_str()), ("unready", "frozen"), "{told:?}");
        clients.flow_on();
        let later = agent.backend("victim");
        assert_eq!(later.steered_total, told.steered_total, "new connections while it is frozen, round {round}");
        write("cgroup.freeze", "0");
        wait_until("it is given connections", LIMIT, || match agent.backend("victim") {
            now if now.state == "ready" && now.steered_total > told.steered_total => Ok(()),
            now => Err(format!("{now:?}")),
        });
    }
    let fared = clients.finish();
    eprintln!("{}, agent {with_agent}: {fared}", attach.word());
    assert_eq!((fared.close.failed, fared.keepalive.failed), (0, 0), "{fared:#?}");
    for life in lives {
        life.finish_unharmed();
    }
}

#[test]
fn a_frozen_container_takes_nothing_until_it_goes_on_over_tc() {
    frozen(Attach::Tc, true);
    frozen(Attach::Tc, false);
}

#[test]
fn a_frozen_container_takes_nothing_until_it_goes_on_over_xdp() {
    frozen(Attach::Xdp, true);
    frozen(Attach::Xdp, false);
}

/// With cgroup version 1 the agent sees it, and not the kernel side: a write to the control file. Not by Docker either.
fn frozen_by_version_1(attach: Attach) {
    let Some(root) = cgroups("cgroup", "freezer") else {
        return skip::not_of_this_kind("no freezer of cgroup version 1 is mounted here");
    };
    let Some(mut host) = Host::set(attach) else { return };
    let victim = host.docker.run(replica("victim"));
    let groups = std::fs::read_to_string(format!("/proc/{}/cgroup", victim.pid)).expect("it runs");
    let path = groups.lines().find_map(|line| line.split_once(":freezer:/").map(|(_, path)| path.to_owned()));
    let path = path.filter(|path| !path.is_empty()).unwrap_or_else(|| panic!("Docker uses the freezer: {groups}"));
    let control = root.join(path).join("freezer.state");
    let write =
        |what: &str| std::fs::write(&control, what).unwrap_or_else(|err| panic!("{}: {err}", control.display()));
    host.docker.run_all(["one", "two"].map(replica));
    host.agent.wait_ready(SERVICE, 3);
    let clients = Clients::start(&host.world, 9000);
    for round in 1..=5 {
        let before = host.agent.backend("victim").steered_total;
        write("FROZEN");
        let begin = Instant::now();
        // The cause is written after the state.
        let told = wait_until("it is out, and told why", LIMIT, || match host.agent.backend("victim") {
            now if now.state == "unready" && now.cause == "event: pause" => Ok(now),
            now => Err(format!("{now:?}")),
        });
        eprintln!("{}, round {round}: seen to be out after {:?}", attach.word(), begin.elapsed());
        clients.flow_on();
        let later = host.agent.backend("victim");
        assert_eq!(later.steered_total, told.steered_total, "new connections while it is frozen, round {round}");
        write("THAWED");
        wait_until("it is given connections", LIMIT, || match host.agent.backend("victim") {
            now if now.state == "ready" && now.steered_total > before => Ok(()),
            now => Err(format!("{now:?}")),
        });
    }
    let fared = clients.finish();
    eprintln!("{}: {fared}", attach.word());
    assert_eq!((fared.close.failed, fared.keepalive.failed), (0, 0), "{fared:#?}");
}

#[test]
fn a_frozen_container_of_cgroup_version_1_takes_nothing_until_it_goes_on() {
    frozen_by_version_1(Attach::Tc);
    frozen_by_version_1(Attach::Xdp);
}
