//! One Docker for all rows, one service for all rows that can share it, and one measurement after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant, UNIX_EPOCH};

use steer_tests::World;
use steer_tests::agent::{Agent, Attach};
use steer_tests::docker::{Docker, Health, ServiceSpec};
use steer_tests::greeter::Greeter;
use steer_tests::http::Http;
use steer_tests::load::Load;
use steer_tests::report::Report;
use steer_tests::world::HOST;
use steer_tests::{pace, panic};

use crate::bare;
use crate::deed::{self, Wanted};
use crate::measure::{self, Control, Figures, Tasks};
use crate::poll::{self, Stop};
use crate::rows::{Deed, Row};

pub(crate) const SERVICE: &str = "web";
const PORT: u16 = 9000;

/// Clients that open a connection for each request, and their requests per second: few, since a machine that is at its limit measures itself.
pub(crate) const CLOSERS: (u16, u32) = (40, 30);
/// Clients that keep theirs for a few requests, and their requests per second.
pub(crate) const KEEPERS: (u16, u32) = (16, 30);
pub(crate) const PER_CONNECTION: u32 = 10;
/// Those who go past both, to a process beside Docker: what they wait for is neither containers nor steering.
pub(crate) const PAST_BOTH: (u16, u32) = (10, 10);
/// Where that process listens.
const CONTROL: u16 = 5000;
/// Seconds between the start and the listening of an app that is slow.
pub(crate) const SLOW: &str = "2";
/// How long the load goes on when all has been done.
const TAIL: Duration = Duration::from_secs(2);

/// Who brings connections to tasks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, clap::ValueEnum)]
pub(crate) enum Way {
    /// Swarm's routing mesh alone
    Mesh,
    /// steer, with the mesh behind it
    Steer,
}

impl Way {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Mesh => "mesh",
            Self::Steer => "steer",
        }
    }
}

/// What both kinds of clients met, and meanwhile those who went past both ways.
#[derive(Clone, Debug)]
pub(crate) struct Fared {
    pub(crate) close: Figures,
    pub(crate) keepalive: Figures,
    pub(crate) control: Control,
    /// Samples of failures, in words.
    pub(crate) failures: Vec<String>,
    pub(crate) seconds: f64,
}

/// An app that rows can share.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct App {
    health: bool,
    slow: bool,
}

/// A Swarm of one node, and a client beside it. Fields are dropped in this order.
pub(crate) struct Site {
    service: Option<(App, Wanted)>,
    docker: Docker,
    /// An app beside Docker, for who goes past both.
    _beside: Greeter,
    world: World,
}

impl Site {
    pub(crate) fn build() -> Self {
        // Docker loads it when it is first needed, and cannot set what it wants of it before: here it has been needed before.
        // Where there is none, the mesh will not answer.
        drop(Command::new("modprobe").arg("ip_vs").output());
        let world = World::new();
        let docker = Docker::start(&world);
        docker.import_greeter();
        docker.swarm_init(HOST);
        let beside = Greeter::start(&world.host, "beside", &[]);
        Self { service: None, docker, _beside: beside, world }
    }

    pub(crate) fn docker_version(&self) -> String {
        let version = self.docker.wait("ask Docker for its version", self.docker.api().version());
        version.version.unwrap_or_default()
    }

    /// One row, one way. What panics in the harness has only failed.
    pub(crate) fn measure(&mut self, row: Row, way: Way) -> Result<Fared, Stop> {
        let measured = catch_unwind(AssertUnwindSafe(|| {
            let before = self.prepare(row)?;
            self.under_load(row.deed, way, before)
        }));
        let outcome = measured.unwrap_or_else(|panic| {
            // One line of it; all of it is on standard error.
            Err(Stop::failed("the harness", panic::words(&*panic).lines().next().unwrap_or_default()))
        });
        if outcome.is_err() {
            // Whatever state it is in: the next row makes a new one.
            self.remove();
        }
        outcome
    }

    /// `Err`: nothing answers at a published port without steer.
    pub(crate) fn try_mesh(&mut self, row: Row) -> Result<(), Stop> {
        self.prepare(row)?;
        self.answered()
    }

    /// Waits until every task has answered once, so that no client meets what is only being set up.
    fn answered(&self) -> Result<(), Stop> {
        let http = Http::new(&self.world.client, (HOST, PORT)).within(Duration::from_secs(2));
        let mut silent = self.names();
        poll::until("every task answers before the load begins", || {
            for _ in 0..silent.len() {
                silent.remove(&http.get("/").map_err(|failure| failure.to_string())?.backend);
            }
            if silent.is_empty() { Ok(()) } else { Err(format!("nothing from {silent:?}")) }
        })
    }

    /// The service as a row wants it, and settled.
    fn prepare(&mut self, row: Row) -> Result<Wanted, Stop> {
        let app = App { health: row.health, slow: row.deed == Deed::SlowUpdate };
        let tasks = row.deed.replicas();
        if self.service.as_ref().is_some_and(|(is, _)| *is != app) {
            self.remove();
        }
        let wanted = match &self.service {
            Some((_, is)) => {
                if is.tasks != tasks {
                    self.docker.scale(SERVICE, tasks as i64);
                }
                Wanted { tasks, gone: None, image: is.image }
            }
            None => {
                self.docker.create_service(spec(app, tasks));
                Wanted { tasks, gone: None, image: "greeter:v1" }
            }
        };
        self.service = Some((app, wanted.clone()));
        poll::until("the service is as wanted", || wanted.met(&self.docker))?;
        Ok(wanted)
    }

    fn remove(&mut self) {
        if self.service.take().is_none() {
            return;
        }
        self.docker.remove_service(SERVICE);
        // Its containers take the machine's time until they are gone.
        let gone = || match self.docker.task_containers(SERVICE).len() {
            0 => Ok(()),
            left => Err(format!("{left} containers are left")),
        };
        if let Err(Stop::Failed(why)) = poll::until("the service is gone", gone) {
            eprintln!("versus: {why}");
        }
    }

    fn under_load(&mut self, deed: Deed, way: Way, before: Wanted) -> Result<Fared, Stop> {
        let agent = match way {
            Way::Mesh => {
                bare::wait()?;
                None
            }
            Way::Steer => Some(Agent::start(&self.world, &self.docker, Attach::Tc)),
        };
        if let Some(agent) = &agent {
            poll::until("steer has every task", || match agent.try_status()? {
                status if status.service(SERVICE).is_some_and(|web| web.count("ready") == before.tasks) => Ok(()),
                status => Err(status.to_string()),
            })?;
        }
        self.answered()?;
        let begin = Instant::now();
        let load = Loads::start(&self.world);
        let running = self.names();
        load.reach(&running)?;

        let kept = load.kept(&running)?;
        let (victim, held) = measure::fairest(&kept).expect("the service has tasks");
        eprintln!("    connections kept: {:?}", kept.values());
        let wanted = deed::perform(deed, &self.docker, &before, victim)?;
        poll::until("Swarm has done its part", || wanted.met(&self.docker))?;
        load.reach(&self.names())?;
        poll::sleep_until(Instant::now() + TAIL)?;
        let [close, keepalive, control] = load.finish();
        let seconds = begin.elapsed().as_secs_f64();

        if let Some(agent) = agent {
            account_for(&agent, close.failed + keepalive.failed + close.stalled + keepalive.stalled > 0);
            take_off(agent)?;
        }
        let tasks = Tasks { before: running, after: self.starts() };
        if let Some((_, is)) = &mut self.service {
            is.image = wanted.image;
        }
        Ok(Fared {
            close: Figures::of(&close, &tasks, None),
            keepalive: Figures::of(&keepalive, &tasks, deed.has_victim().then_some(held)),
            control: Control::of(&control),
            failures: close.samples.into_iter().chain(keepalive.samples).collect(),
            seconds,
        })
    }

    /// Of the running tasks: as they answer.
    fn names(&self) -> BTreeSet<String> {
        self.docker.task_containers(SERVICE).into_iter().map(|container| container.name).collect()
    }

    /// When Docker started their processes.
    fn starts(&self) -> BTreeMap<String, f64> {
        let started = |id: &str| {
            let words = self.docker.inspect(id).state?.started_at?;
            let moment = humantime::parse_rfc3339(&words).ok()?;
            Some(moment.duration_since(UNIX_EPOCH).ok()?.as_secs_f64())
        };
        let containers = self.docker.task_containers(SERVICE).into_iter();
        containers.filter_map(|container| Some((container.name, started(&container.id)?))).collect()
    }
}

/// For whoever asks why: what the programs counted, and, where something went wrong, what the agent said of it.
fn account_for(agent: &Agent, all: bool) {
    let counters = agent.try_status().map(|status| status.counters).unwrap_or_default();
    let counted: Vec<_> = counters.iter().filter(|(_, count)| **count > 0).collect();
    eprintln!(
        "    counters: {}",
        counted.iter().map(|(name, count)| format!("{name} {count}")).collect::<Vec<_>>().join(", ")
    );
    if all {
        agent.log().lines().for_each(|line| eprintln!("    {line}"));
    }
}

/// Has steer leave the machine, and waits for that: the mesh may be next. If it does not, what is measured by now counts all the same,
/// and the mesh waits once more ([`bare::wait`]).
fn take_off(agent: Agent) -> Result<(), Stop> {
    let mut detach = agent.command(&["detach", "--now"]);
    let mut detach = detach.stdout(Stdio::null()).spawn().map_err(|err| Stop::failed("steer detach", err))?;
    let ended = poll::until("steer is detached", || match detach.try_wait() {
        Ok(Some(status)) if status.success() => Ok(()),
        other => Err(format!("{other:?}")),
    });
    // The agent's own guard has less patience.
    drop(agent);
    drop(detach.kill());
    drop(detach.wait());
    match ended.and_then(|()| bare::wait()) {
        Err(Stop::Failed(why)) => eprintln!("versus: {why}"),
        other => other?,
    }
    Ok(())
}

/// Often enough for a task to be ready soon; seldom later on. Each probe is a process: in a slow machine, four tasks that start and
/// are probed each second are all that it does, whoever brings them connections.
pub(crate) fn probes() -> Health {
    Health {
        interval: Duration::from_secs(10),
        retries: 3,
        start_period: Duration::from_secs(60),
        start_interval: Some(pace::lasting(Duration::from_secs(1))),
    }
}

fn spec(app: App, tasks: usize) -> ServiceSpec {
    let App { health, slow } = app;
    let mut spec = ServiceSpec::greeter(SERVICE).publish(PORT, 5000).replicas(tasks as i64);
    if health {
        spec = spec.health(probes());
    }
    if slow { spec.args(&["--listen-after", SLOW]) } else { spec }
}

/// Both kinds of clients at once, and those who go past both ways.
struct Loads([Load; 3]);

impl Loads {
    fn start(world: &World) -> Self {
        let load = |port: u16, words: String| {
            Load::watch(&world.client, (HOST, port), &format!("{words} --stall 1 --seconds 3600"))
        };
        let words = |(clients, rate): (u16, u32)| format!("--connections {clients} --rate {rate}");
        Self([
            load(PORT, words(CLOSERS)),
            load(PORT, format!("--mode keepalive --per-connection {PER_CONNECTION} {}", words(KEEPERS))),
            load(CONTROL, words(PAST_BOTH)),
        ])
    }

    /// Waits until each of these tasks has answered once more, to those who ask anew each time.
    fn reach(&self, tasks: &BTreeSet<String>) -> Result<(), Stop> {
        let now = || self.0[0].progress().latest().backends;
        let before = now();
        poll::until("every task answers", || {
            let counts = now();
            let silent: Vec<_> = tasks.iter().filter(|name| counts.get(*name) == before.get(*name)).collect();
            if silent.is_empty() { Ok(()) } else { Err(format!("nothing from {silent:?}")) }
        })
    }

    /// To each of these tasks, once clients are past the connections that they all began with.
    fn kept(&self, tasks: &BTreeSet<String>) -> Result<BTreeMap<String, u64>, Stop> {
        poll::until("clients have kept two connections each", || {
            let Report { connections, kept, .. } = self.0[1].progress().latest();
            let to = |name: &String| (name.clone(), kept.get(name).copied().unwrap_or_default());
            let enough = 2 * u64::from(KEEPERS.0);
            if connections >= enough {
                Ok(tasks.iter().map(to).collect())
            } else {
                Err(format!("{connections} of {enough}"))
            }
        })
    }

    fn finish(self) -> [Report; 3] {
        self.0.map(Load::stop)
    }
}
