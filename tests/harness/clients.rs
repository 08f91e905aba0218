//! A world with a Docker and an agent, and clients that load a service while something is done to it.

use std::fmt;
use std::net::Ipv4Addr;
use std::time::Duration;

use crate::agent::{Agent, Attach};
use crate::docker::Docker;
use crate::load::{self, Load};
use crate::report::Report;
use crate::skip::{self, Need};
use crate::world::HOST;
use crate::{World, pace, wait_until};

const LIMIT: Duration = Duration::from_secs(30);
/// New connections per second that are asked for.
const RATE: u32 = 1_200;
/// Requests per second of those who keep their connections, and of those on the host.
const FEW: u32 = 200;
/// Clients that open a connection for each request.
pub const CLIENTS: u64 = 40;
/// Clients that keep theirs for a while.
pub const KEEPERS: u64 = 8;

/// Connections that may come between an app's last look into its accept queue and the closing of its listener: some
/// microseconds, once.
pub const BETWEEN: u64 = 1;

/// Clients on the host itself.
pub const LOCALS: u64 = 8;

/// Fields are dropped in this order.
pub struct Host {
    pub agent: Agent,
    pub docker: Docker,
    pub world: World,
}

impl Host {
    /// `None`, with the reason printed, where it cannot be set.
    #[track_caller]
    pub fn set(attach: Attach) -> Option<Self> {
        let (world, docker) = Self::without_agent(attach)?;
        let agent = Agent::start(&world, &docker, attach);
        Some(Self { agent, docker, world })
    }

    /// The same, for who starts an agent in another way, or later.
    #[track_caller]
    pub fn without_agent(attach: Attach) -> Option<(World, Docker)> {
        if skip::without(&[Need::Root, Need::Docker, Need::Steer]) {
            return None;
        }
        let world = attach.world();
        let docker = Docker::start(&world);
        docker.import_greeter();
        Some((world, docker))
    }
}

/// Clients of both kinds at once.
#[derive(Debug)]
pub struct Clients {
    close: Load,
    keepalive: Load,
    local: Option<Load>,
}

/// How they fared.
#[derive(Clone, Debug)]
pub struct Fared {
    /// One connection per request.
    pub close: Report,
    pub keepalive: Report,
    /// One connection per request, of clients on the host itself, if there were any.
    pub local: Option<Report>,
}

impl Clients {
    /// Starts them, and waits until they are under way.
    #[track_caller]
    pub fn start(world: &World, port: u16) -> Self {
        Self::start_at(world, HOST, port)
    }

    /// The same, to another address than the host's.
    #[track_caller]
    pub fn start_at(world: &World, address: Ipv4Addr, port: u16) -> Self {
        let few = pace::rate(FEW);
        let patient = load::patient();
        let load =
            |words: &str| Load::watch(&world.client, (address, port), &format!("{words} {patient} --seconds 3600"));
        let clients = Self {
            close: load(&format!("--connections {CLIENTS} --rate {}", pace::rate(RATE))),
            // A new connection after 25 requests, so that these come and go too.
            keepalive: load(&format!("--mode keepalive --connections {KEEPERS} --rate {few} --per-connection 25")),
            local: None,
        };
        clients.flow_on();
        clients
    }

    /// Likewise, and some on the host itself, whose sockets are steered at `connect`.
    #[track_caller]
    pub fn start_with_local(world: &World, port: u16) -> Self {
        let words = format!("--connections {LOCALS} --rate {} {} --seconds 3600", pace::rate(FEW), load::patient());
        let local = Some(Load::watch(&world.host, (Ipv4Addr::LOCALHOST, port), &words));
        Self { local, ..Self::start(world, port) }
    }

    /// Waits until both kinds have made so many requests that each client has, on average, made a few.
    #[track_caller]
    pub fn flow_on(&self) {
        let now = || [&self.close, &self.keepalive].map(|load| load.progress().latest().requests);
        let before = now();
        wait_until("requests are answered", LIMIT, || {
            let [close, keepalive] = now();
            let is_enough = close >= before[0] + 10 * CLIENTS && keepalive >= before[1] + 5 * KEEPERS;
            if is_enough { Ok(()) } else { Err(format!("{close} and {keepalive} after {before:?}")) }
        });
    }

    /// Does it under their load, lets them go on for a while, and ends them.
    #[track_caller]
    pub fn during(self, work: impl FnOnce()) -> Fared {
        work();
        self.flow_on();
        self.finish()
    }

    #[track_caller]
    pub fn finish(self) -> Fared {
        Fared { close: self.close.stop(), keepalive: self.keepalive.stop(), local: self.local.map(Load::stop) }
    }
}

impl Fared {
    /// Of clients of every kind, [`cut`].
    pub fn cut(&self) -> u64 {
        [&self.close, &self.keepalive].into_iter().chain(&self.local).map(cut).sum()
    }
}

impl fmt::Display for Fared {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { close, keepalive, local } = self;
        let all =
            [("", close), ("; ", keepalive)].into_iter().chain(local.as_ref().map(|local| ("; on the host: ", local)));
        for (separator, report) in all {
            let Report { mode, seconds, requests, connections, failures, stalled, slowest_ms, connect_ms, .. } = report;
            write!(
                f,
                "{separator}{mode}: {requests} requests, {connections} connections ({:.0}/s), refused {}, cut {}, \
                 timeouts {}, other {}, stalled {stalled}, slowest {slowest_ms:.0} ms (connect {:.0} ms)",
                *connections as f64 / seconds,
                failures.refused,
                cut(report),
                failures.timeout,
                failures.status + failures.other,
                connect_ms.max,
            )?;
        }
        Ok(())
    }
}

/// Connections that were established and ended before their answer was complete.
pub fn cut(report: &Report) -> u64 {
    report.failures.reset + report.failures.closed
}
