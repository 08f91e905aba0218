//! From a stop signal to the kernel's own note of it, and to Docker's event.

use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use steer_tests::agent::Attach;
use steer_tests::docker::{Container, ContainerSpec};

use super::{DockerEvent, Times};
use crate::measure::Interrupted;
use crate::stop_if_asked;
use crate::ways::Site;

const NAME: &str = "deaf";
const SIGNALS: usize = 200;
const BY_DOCKER: u64 = 25;

pub(super) fn measure(site: &Site) -> Result<(Times, DockerEvent), Interrupted> {
    // One that ignores its stop signal can be sent it again and again.
    let spec = ContainerSpec::greeter(NAME).label("steer.port", "9010:5000").label("steer.service", NAME);
    let container = site.docker.run(spec.args(&["--on-term", "ignore"]));
    let measured = signals(site, &container);
    container.remove();
    measured
}

fn signals(site: &Site, container: &Container) -> Result<(Times, DockerEvent), Interrupted> {
    let mut agent = site.agent(Attach::Tc, "warn");
    agent.wait_ready(NAME, 1);
    let first = agent.inits().remove(&(container.pid as u32)).expect("the kernel watches the container");
    for _ in 0..BY_DOCKER {
        stop_if_asked()?;
        container.kill("TERM");
    }
    let status = agent.wait_for("Docker has told of every signal", |status| {
        status.agent.stops.as_ref().is_some_and(|stops| stops.kernel_first + stops.event_first == BY_DOCKER)
    });
    let stops = status.agent.stops.unwrap_or_default();
    let late = stops.lateness_us;
    let docker_event = DockerEvent {
        kernel_first: stops.kernel_first,
        event_first: stops.event_first,
        p50_us: late.p50,
        p99_us: late.p99,
        max_us: late.max,
    };

    let edges = agent.edges();
    let edge = || edges.get(&first.backend.0.into(), 0).expect("the backend's id is in range");
    let mut times = Vec::with_capacity(SIGNALS);
    for _ in 0..SIGNALS {
        stop_if_asked()?;
        let (before, sent) = (edge().count, now());
        kill(Pid::from_raw(container.pid), Signal::SIGTERM).expect("the container's first process is there");
        // The kernel writes it down before the signal can be acted upon, so before kill() returns.
        let edge = edge();
        assert_eq!(edge.count, before + 1, "one signal, one edge");
        times.push(Duration::from_nanos(edge.at_ns).checked_sub(sent).expect("it was sent before it was seen"));
        thread::sleep(Duration::from_millis(2));
    }
    Ok((Times::of(&times), docker_event))
}

/// By the kernel's clock, `CLOCK_MONOTONIC`.
fn now() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).expect("every kernel has this clock").into()
}
