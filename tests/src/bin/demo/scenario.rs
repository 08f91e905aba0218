//! What happens, step by step. The client never stops while it does.

use std::process::{Child, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use nix::sys::utsname::uname;
use steer_tests::agent::Agent;
use steer_tests::docker::{Container, ContainerSpec};
use steer_tests::load::Load;
use steer_tests::long_lived::LongLived;
use steer_tests::pace;
use steer_tests::world::Bpffs;

use crate::Args;
use crate::board::{Board, Long, Replica, Stop, merge};
use crate::stage::Stage;
use crate::summary::{LongLife, Summary};

const LIMIT: Duration = Duration::from_secs(60);
const DRAIN_LIMIT_SECONDS: u32 = 30;
/// How often a child that runs is looked at.
const LOOK: Duration = Duration::from_millis(50);
/// Clients of each kind.
const CLIENTS: u32 = 16;
/// About how long a keep-alive connection lives: ordinary clients close theirs some time.
const KEEP_ALIVE: u32 = 2;

pub(crate) fn run(args: &Args, board: &Board) -> Result<Summary, Stop> {
    let _bpffs = Bpffs::new();
    let stage = Stage::build(args, board)?;
    let kernel = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let title = format!("{}, {}, kernel {kernel}", args.attach.attach().word(), stage.docker());
    board.change(|state| state.title = title);
    board.step("starting the agent")?;
    let agent = stage.start_agent(args.attach);
    let playing = AtomicBool::new(true);
    let outcome = thread::scope(|scope| {
        scope.spawn(|| board.watch(&agent, || playing.load(Ordering::Relaxed)));
        // Also when the play panics: the scope waits for the watcher.
        let _end = OnDrop(|| {
            playing.store(false, Ordering::Relaxed);
            board.nudge();
        });
        Scenario { args, board, stage: &stage, agent: &agent, problems: Vec::new() }.play()
    });
    board.change(|state| state.doing = "cleaning up".to_owned());
    outcome
}

struct Scenario<'a> {
    args: &'a Args,
    board: &'a Board,
    stage: &'a Stage,
    agent: &'a Agent,
    problems: Vec<String>,
}

impl Scenario<'_> {
    fn play(mut self) -> Result<Summary, Stop> {
        let (board, stage) = (self.board, self.stage);
        board.step("starting 4 replicas of v1")?;
        let mut old = self.start("v1", 1..=4)?;

        board.step("4 replicas under load")?;
        let client = &stage.world.client;
        let half = self.args.rate / 2;
        let words = format!("--connections {CLIENTS} --rate {half} --seconds 3600");
        let each = (half * KEEP_ALIVE / CLIENTS).max(1);
        let mut loads = [
            Load::watch(client, stage.http(), &format!("{words} --mode close")),
            Load::watch(client, stage.http(), &format!("{words} --mode keepalive --per-connection {each}")),
        ];
        loads.iter().for_each(|load| board.watch_load(load.progress()));
        let long = LongLived::try_start(client, stage.echo())
            .map_err(|err| Stop::Failed(format!("the long-lived connection to {}: {err}", stage.echo())))?;
        let seen = Long { backend: self.short(&long.backend), exchanged: long.counter(), closed: false };
        board.change(|state| state.long = Some(seen));
        self.pause(4.0)?;

        board.step("scaling up, 4 to 6")?;
        old.extend(self.start("v1", 5..=6)?);
        self.pause(3.0)?;

        board.step("scaling down, 6 to 3: steer drain --wait")?;
        // The long-lived connection's backend stays, and is the last to be replaced.
        old.sort_by_key(|container| container.name == long.backend);
        let leaving: Vec<Container> = old.drain(..3).collect();
        let drains: Vec<Running> =
            leaving.iter().map(|container| self.drain(&container.name)).collect::<Result<_, _>>()?;
        for (container, drain) in leaving.iter().zip(drains) {
            self.finish(&container.name, drain)?;
        }
        board.change(|state| state.doing = "scaling down, 6 to 3: docker stop".to_owned());
        for container in &leaving {
            self.stop(container)?;
        }
        self.pause(3.0)?;

        let mut long = Some(long);
        let mut life = None;
        for (number, container) in (1..).zip(&old) {
            let (from, to) = (self.short(&container.name), format!("v2-{number}"));
            board.step(format!("replacing {from} by {to}: starting it"))?;
            self.start("v2", number..=number)?;
            board.change(|state| state.doing = format!("replacing {from} by {to}: steer drain --wait {from}"));
            let drain = self.drain(&container.name)?;
            if number as usize == old.len() {
                self.pause(2.0)?;
                life = long.take().map(|long| self.end(long));
            }
            self.finish(&container.name, drain)?;
            board.change(|state| state.doing = format!("replacing {from} by {to}: docker stop {from}"));
            self.stop(container)?;
            self.pause(1.0)?;
        }

        board.step("3 replicas of v2")?;
        self.pause(3.0)?;
        if loads.iter_mut().any(Load::is_over) {
            self.problems.push("a load ended before the demo did".to_owned());
        }
        let total = merge(loads.map(Load::stop));
        let rename = |(name, count): (&String, &u64)| (self.short(name), *count);
        let split = total.backends.iter().map(rename).collect();
        Ok(Summary { total, split, long: life, problems: self.problems })
    }

    /// Starts replicas and waits until the agent says that they are ready.
    fn start(&self, version: &str, numbers: std::ops::RangeInclusive<u32>) -> Result<Vec<Container>, Stop> {
        let specs: Vec<_> = numbers.map(|number| self.stage.greeter(&format!("{version}-{number}"), version)).collect();
        let replica = |spec: &ContainerSpec| Replica {
            name: spec.name.clone(),
            label: self.short(&spec.name),
            version: version.to_owned(),
            stopped: false,
        };
        let replicas: Vec<_> = specs.iter().map(replica).collect();
        self.board.change(|state| state.replicas.extend(replicas));
        let containers = self.stage.engine().run_all(specs);
        let names: Vec<&str> = containers.iter().map(|container| container.name.as_str()).collect();
        self.board.wait(&format!("{names:?} are ready"), pace::soon(LIMIT), |state| state.are_ready(&names))?;
        Ok(containers)
    }

    /// `docker stop`, `docker rm`.
    fn stop(&self, container: &Container) -> Result<(), Stop> {
        container.stop(None);
        self.board.change(|state| {
            let replica = state.replicas.iter_mut().find(|replica| replica.name == container.name);
            replica.into_iter().for_each(|replica| replica.stopped = true);
        });
        container.remove();
        self.board.check()
    }

    /// `steer drain --wait`, in the background.
    fn drain(&self, name: &str) -> Result<Running, Stop> {
        let limit = format!("{}s", pace::soon_secs(DRAIN_LIMIT_SECONDS));
        let mut command = self.agent.command(&["drain", "--wait", "--timeout", &limit, name]);
        let child = command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn();
        child.map(Running).map_err(|err| Stop::Failed(format!("start steer drain: {err}")))
    }

    fn finish(&mut self, name: &str, mut drain: Running) -> Result<(), Stop> {
        let failed = |err: std::io::Error| Stop::Failed(format!("wait for steer drain: {err}"));
        let status = loop {
            match drain.0.try_wait().map_err(failed)? {
                Some(status) => break status,
                None => self.board.pause(LOOK)?,
            }
        };
        if !status.success() {
            let complaint = drain.0.stderr.take().map(std::io::read_to_string).and_then(Result::ok).unwrap_or_default();
            self.problems.push(format!("steer drain --wait {name}: {status}: {}", complaint.trim()));
        }
        Ok(())
    }

    /// The client closes the long-lived connection.
    fn end(&self, long: LongLived) -> LongLife {
        let backend = long.backend.clone();
        let life = long.finish();
        self.board.change(|state| state.long.iter_mut().for_each(|long| long.closed = true));
        LongLife {
            backend: self.short(&backend),
            moved: life.backend.as_ref().is_some_and(|now| *now != backend),
            life,
        }
    }

    fn pause(&self, seconds: f64) -> Result<(), Stop> {
        self.board.pause(Duration::from_secs_f64(seconds * self.args.seconds_scale))
    }

    /// Without what makes a name one of its own in a Docker that is not ours.
    fn short(&self, name: &str) -> String {
        name.strip_prefix(self.stage.world.tag()).map_or(name, |rest| rest.trim_start_matches('-')).to_owned()
    }
}

/// A child that is ended with its guard.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

struct OnDrop<F: Fn()>(F);

impl<F: Fn()> Drop for OnDrop<F> {
    fn drop(&mut self) {
        (self.0)();
    }
}
