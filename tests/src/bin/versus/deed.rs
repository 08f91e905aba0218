//! Doing it: as an operator, or as what befalls an operator.

use std::net::{Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use steer_tests::docker::{Container, Engine};
use steer_tests::http::Http;

use crate::poll::{self, Stop};
use crate::rows::Deed;
use crate::scenario::SERVICE;

const FEW: usize = 2;
/// How long a task is paused.
pub(crate) const PAUSE: Duration = Duration::from_secs(5);

/// What the service must be when all is over.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    pub(crate) tasks: usize,
    pub(crate) image: &'static str,
    /// A task that must be replaced by then.
    pub(crate) gone: Option<String>,
}

/// Does it to a service that is as wanted, or to the task of that name. Returns while Swarm may be at work still.
pub(crate) fn perform(deed: Deed, docker: &Engine, before: &Wanted, victim: &str) -> Result<Wanted, Stop> {
    let victim = || task(docker, victim);
    match deed {
        Deed::StopFirst | Deed::SlowUpdate => Ok(update(docker, before, false)),
        Deed::StartFirst => Ok(update(docker, before, true)),
        Deed::Scale => scale(docker, before),
        Deed::Stop => {
            let task = victim();
            task.stop(None);
            Ok(without(before, task))
        }
        Deed::Kill => {
            let task = victim();
            // Not by Docker, which would know.
            kill(Pid::from_raw(task.pid), Signal::SIGKILL).map_err(|err| Stop::failed("kill -9", err))?;
            Ok(without(before, task))
        }
        Deed::Exit => {
            let task = victim();
            let inside = Http::new(&task.ns(), SocketAddr::from((Ipv4Addr::LOCALHOST, 5000)));
            // It exits without an answer.
            drop(inside.get("/crash"));
            Ok(without(before, task))
        }
        Deed::Pause => {
            let task = victim();
            let until = Instant::now() + PAUSE;
            task.pause();
            let waited = poll::sleep_until(until);
            task.unpause();
            waited.map(|()| before.clone())
        }
    }
}

fn update(docker: &Engine, before: &Wanted, start_first: bool) -> Wanted {
    let image = if before.image == "greeter:v1" { "greeter:v2" } else { "greeter:v1" };
    docker.update_image_in_order(SERVICE, image, start_first);
    Wanted { image, ..before.clone() }
}

fn scale(docker: &Engine, before: &Wanted) -> Result<Wanted, Stop> {
    let few = Wanted { tasks: FEW, ..before.clone() };
    for wanted in [&few, before] {
        docker.scale(SERVICE, wanted.tasks as i64);
        poll::until("the service is scaled", || wanted.met(docker))?;
    }
    Ok(before.clone())
}

#[track_caller]
fn task(docker: &Engine, name: &str) -> Container {
    let found = docker.task_containers(SERVICE).into_iter().find(|task| task.name == name);
    found.unwrap_or_else(|| panic!("no task has the name {name:?}"))
}

fn without(before: &Wanted, task: Container) -> Wanted {
    Wanted { gone: Some(task.id), ..before.clone() }
}

impl Wanted {
    /// `Ok`: the service is so, and nothing else of it is left running.
    pub(crate) fn met(&self, docker: &Engine) -> Result<(), String> {
        let Self { tasks, image, gone } = self;
        let all = docker.tasks(SERVICE);
        let running: Vec<_> = all.iter().filter(|task| task.state == "running").collect();
        let is_good = |task: &&&steer_tests::docker::Task| {
            task.desired == "running" && task.image == *image && (gone.is_none() || task.container != *gone)
        };
        let good = running.iter().filter(is_good).count();
        if good == *tasks && running.len() == *tasks {
            Ok(())
        } else {
            let words: Vec<_> = all.iter().map(|task| format!("{} of {}", task.state, task.desired)).collect();
            Err(format!("{good} of {tasks} tasks as wanted, {words:?}"))
        }
    }
}
