//! `steer detach`: after the last connection or at once, with an agent or without one, nothing of steer is left.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::Ordering;
use std::time::Duration;

use steer_tests::agent::Attach;
use steer_tests::http::Failure;
use steer_tests::long_lived::LongLived;
use steer_tests::stage::{ECHO, Stage};
use steer_tests::wait_until;

const LIMIT: Duration = Duration::from_secs(30);

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
    // The last request that was steered may just be closing.
    stage
        .agent
        .wait_for("one connection is left", |status| status.backend("one").is_some_and(|one| one.live_flows == 1));
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

#[test]
fn without_an_agent_nobody_waits_for_the_connections_of_a_backend_that_is_gone() {
    let Some(mut stage) = Stage::set(Attach::Tc, &["one"], &[]) else { return };
    let long = LongLived::start(&stage.world.client, ECHO);
    stage.agent.kill9();
    stage.docker.remove("one");
    wait_until("its connection breaks", LIMIT, || if long.is_over() { Ok(()) } else { Err("it lives") });
    drop(long.finish());

    let mut detach = stage.agent.command(&["detach"]).stdout(Stdio::null()).spawn().expect("steer can be started");
    wait_until("steer leaves", LIMIT, || match detach.try_wait() {
        Ok(Some(status)) if status.success() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_off_the_host(&stage);
}
