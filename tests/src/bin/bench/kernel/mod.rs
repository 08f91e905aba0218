//! What the kernel does by itself, without the agent and before Docker says anything: a stop is written down, a listener is
//! found, a refused connection goes to another backend. All over tc.

mod listen;
mod refused;
mod signal;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use serde::Serialize;
use steer_tests::World;
use steer_tests::agent::{Agent, Attach};
use steer_tests::netns::Ns;
use steer_tests::world::HOST;

use crate::measure::Interrupted;
use crate::table::quantile;
use crate::ways::Site;

const WEB: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(HOST), 9000);
const BACKEND: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::UNSPECIFIED), 5000);
const LIMIT: Duration = Duration::from_secs(10);

#[derive(Debug, Serialize)]
pub(crate) struct KernelResults {
    /// From just before a signal is sent to the time that the kernel wrote beside the state.
    pub(crate) signal_to_state: Times,
    /// How long after the signal Docker's event arrived, by the agent's own count; of so many.
    pub(crate) docker_event: DockerEvent,
    /// From listen() to the first accepted connection, where a client waits for the only backend there is.
    pub(crate) listen_to_accept_held: Times,
    /// The same where another backend takes connections meanwhile, every second one of them from then on.
    pub(crate) listen_to_accept_beside: Times,
    /// Connections per second of the client that asks in this, which is what it can be told by.
    pub(crate) beside_per_second: f64,
    /// connect() to two backends.
    pub(crate) connect: Times,
    /// The same while the one that is asked first answers with RST.
    pub(crate) connect_refused_first: Times,
    /// How many of these were in fact refused by one.
    pub(crate) refused: u64,
}

#[derive(Debug, Serialize)]
pub(crate) struct DockerEvent {
    pub(crate) kernel_first: u64,
    pub(crate) event_first: u64,
    pub(crate) p50_us: u64,
    pub(crate) p99_us: u64,
    pub(crate) max_us: u64,
}

/// Many of the same, in microseconds.
#[derive(Debug, Serialize)]
pub(crate) struct Times {
    pub(crate) samples: usize,
    pub(crate) p50_us: f64,
    pub(crate) p99_us: f64,
    pub(crate) max_us: f64,
    /// How many took less than so many microseconds, a power of two, and at least half of it.
    pub(crate) below_us: BTreeMap<u64, usize>,
}

impl Times {
    fn of(times: &[Duration]) -> Self {
        let micros: Vec<f64> = times.iter().map(|time| time.as_nanos() as f64 / 1_000.0).collect();
        let mut below_us = BTreeMap::new();
        for micros in &micros {
            *below_us.entry((*micros as u64 + 1).next_power_of_two()).or_default() += 1;
        }
        let [p50_us, p99_us, max_us] = [0.5, 0.99, 1.0].map(|share| quantile(&micros, share));
        Self { samples: micros.len(), p50_us, p99_us, max_us, below_us }
    }
}

pub(crate) fn measure(site: &Site) -> Result<KernelResults, Interrupted> {
    let (signal_to_state, docker_event) = signal::measure(site)?;
    let (listen_to_accept_beside, beside_per_second) = listen::beside()?;
    let (connect, connect_refused_first, refused) = refused::measure()?;
    Ok(KernelResults {
        signal_to_state,
        docker_event,
        listen_to_accept_held: listen::held()?,
        listen_to_accept_beside,
        beside_per_second,
        connect,
        connect_refused_first,
        refused,
    })
}

/// A host without Docker, its backends `a` and `b` in namespaces, and an agent.
struct Stage {
    agent: Agent,
    world: World,
}

impl Stage {
    /// So many backends, at most two, behind these ports.
    fn set(backends: usize, ports: &[&str]) -> (Self, Vec<Ns>) {
        let mut world = World::new();
        let namespaces: Vec<Ns> = (0..backends).map(|_| world.add_backend().0).collect();
        let mut text = format!("[[service]]\nname = \"web\"\nports = {ports:?}\nhold = \"5s\"\n");
        for (name, ns) in ["a", "b"].iter().zip(&namespaces) {
            text += &ns.backend(name);
        }
        let file = world.file("steer.toml", &text).display().to_string();
        let mut agent = Agent::start_static(&world, Attach::Tc, &file);
        agent.wait_for("the backends are known", |status| {
            status.service("web").is_some_and(|web| web.backends.len() == backends)
        });
        (Self { agent, world }, namespaces)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::Times;

    #[test]
    fn times_are_counted_by_powers_of_two() {
        let times = Times::of(&[300, 900, 1_500, 3_999, 4_000].map(Duration::from_nanos));
        assert_eq!((times.samples, times.p50_us, times.max_us), (5, 1.5, 4.0));
        assert_eq!(times.below_us.into_iter().collect::<Vec<_>>(), [(1, 2), (2, 1), (4, 1), (8, 1)]);
    }
}
