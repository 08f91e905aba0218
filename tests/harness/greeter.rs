//! A greeter without Docker: a process in a namespace, for tests of static services and of what passes through.

use std::net::SocketAddr;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::http::Http;
use crate::netns::Ns;
use crate::{programs, wait_until};

const LIMIT: Duration = Duration::from_secs(30);

/// The guard of a greeter process; dropping it kills.
#[derive(Debug)]
pub struct Greeter {
    child: Child,
    ns: Ns,
}

impl Greeter {
    /// Starts one and waits until it listens on port 5000, as in `start(&ns, "web-1", &["--on-term", "serve"])`.
    #[track_caller]
    pub fn start(ns: &Ns, name: &str, args: &[&str]) -> Self {
        let greeter = Self::launch(ns, name, args);
        let http = Http::new(ns, SocketAddr::from(([127, 0, 0, 1], 5000)));
        wait_until("the greeter listens", LIMIT, || http.get("/healthz"));
        greeter
    }

    /// Starts one and does not wait.
    #[track_caller]
    pub fn launch(ns: &Ns, name: &str, args: &[&str]) -> Self {
        let program = programs::built("greeter").unwrap_or_else(|err| panic!("{err}"));
        let mut command = ns.command(program);
        let child = command.args(["--name", name]).args(args).spawn();
        Self { child: child.unwrap_or_else(|err| panic!("start the greeter {name}: {err}")), ns: ns.clone() }
    }

    pub fn ns(&self) -> &Ns {
        &self.ns
    }

    pub fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.child.id() as i32), signal).expect("a child that is not reaped can be signalled");
    }

    /// SIGTERM, then its end.
    #[track_caller]
    pub fn terminate(mut self) -> ExitStatus {
        self.signal(Signal::SIGTERM);
        wait_until("the greeter ends", LIMIT, || match self.child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        })
    }
}

impl Drop for Greeter {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
