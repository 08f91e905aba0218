//! A worker, as a test sees it from the manager's machine.

use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Mutex;
use std::time::Duration;

use super::words::{Answer, Ask, Line};
use super::{DOCKER_PORT, HARNESS_PORT, LIMIT, harness_address, node_address, serve};
use crate::agent::Status;
use crate::docker::Engine;
use crate::{pace, wait_until};

/// The longest that anything may take that is asked for.
const ANSWER_LIMIT: Duration = Duration::from_secs(60);

/// The guard of a node in another machine; dropping it ends everything there, and whoever calls next waits for that.
#[derive(Debug)]
pub struct Worker {
    pub docker: Engine,
    /// The node's own.
    pub address: Ipv4Addr,
    line: Mutex<Line>,
    steers: bool,
}

/// A worker that does not answer yet.
pub(super) struct Call {
    number: u8,
    line: Line,
}

impl Call {
    /// Waits until the node is up.
    #[track_caller]
    pub(super) fn answered(self) -> Worker {
        let Self { number, mut line } = self;
        let address = node_address(number);
        match line.receive() {
            Ok(Some(Answer::Done)) => {}
            other => panic!("node {number}: {other:?}"),
        }
        let docker = wait_until("the worker's Docker can be reached", LIMIT, || {
            Engine::connect_tcp(SocketAddr::from((address, DOCKER_PORT)))
        });
        Worker { docker, address, line: Mutex::new(line), steers: false }
    }
}

impl Worker {
    /// Has the worker begin a new life.
    #[track_caller]
    pub(super) fn call(number: u8) -> Call {
        serve::take_address(0);
        let address = SocketAddr::from((harness_address(number), HARNESS_PORT));
        let stream = wait_until("the worker's machine can be reached", LIMIT, || TcpStream::connect(address));
        stream.set_nodelay(true).expect("a connected socket can be set");
        stream.set_read_timeout(Some(pace::soon(ANSWER_LIMIT))).expect("a connected socket can be set");
        Call { number, line: Line::new(stream) }
    }

    /// Starts an agent there.
    #[track_caller]
    pub fn start_agent(&mut self) {
        self.ask(&Ask::StartAgent).unwrap_or_else(|err| panic!("{err}"));
        self.steers = true;
    }

    /// Takes steer off the node.
    #[track_caller]
    pub fn stop_agent(&mut self) {
        self.ask(&Ask::StopAgent).unwrap_or_else(|err| panic!("{err}"));
        self.steers = false;
    }

    /// `steer <words>` there: its standard output.
    pub fn steer(&self, words: &[&str]) -> Result<String, String> {
        self.ask(&Ask::Steer(words.iter().map(|word| (*word).to_owned()).collect()))
    }

    pub fn try_status(&self) -> Result<Status, String> {
        let text = self.steer(&["status", "--json"])?;
        serde_json::from_str(&text).map_err(|err| format!("steer status --json: {err} in: {text}"))
    }

    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|err| panic!("{err}"))
    }

    #[track_caller]
    pub fn counter(&self, name: &str) -> u64 {
        let counters = self.status().counters;
        *counters.get(name).unwrap_or_else(|| panic!("no counter {name} in {counters:?}"))
    }

    /// Waits until the status is as wanted.
    #[track_caller]
    pub fn wait_for(&self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        wait_until(what, LIMIT, || {
            let status = self.try_status()?;
            if wanted(&status) { Ok(status) } else { Err(status.to_string()) }
        })
    }

    /// Waits until a service has exactly `n` ready backends there.
    #[track_caller]
    pub fn wait_ready(&self, service: &str, n: usize) -> Status {
        self.wait_for(&format!("{n} backends of {service} are ready on {}", self.address), |status| {
            status.agent.alive && status.service(service).map_or(n == 0, |service| service.count("ready") == n)
        })
    }

    fn ask(&self, ask: &Ask) -> Result<String, String> {
        let mut line = self.line.lock().expect("nothing panics while it holds this");
        line.send(ask).map_err(|err| format!("asking {}: {err}", self.address))?;
        match line.receive() {
            Ok(Some(Answer::Done)) => Ok(String::new()),
            Ok(Some(Answer::Text(text))) => Ok(text),
            Ok(Some(Answer::Failed(why))) => Err(format!("{}: {why}", self.address)),
            Ok(None) => Err(format!("{} has hung up", self.address)),
            Err(err) => Err(format!("waiting for {}: {err}", self.address)),
        }
    }
}

impl Drop for Worker {
    fn drop(&mut self) {
        if std::thread::panicking() && self.steers {
            let log = self.ask(&Ask::AgentLog).unwrap_or_else(|why| why);
            eprintln!("--- end of the log of the agent on {}\n{log}", self.address);
        }
    }
}
