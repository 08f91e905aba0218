//! The product under test: `steer run` in a world's `host` namespace, and its command line.

mod older;
mod status;
mod tables;

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

pub use self::status::{AgentStatus, Backend, Lateness, Problem, Service, Status, Stops};
use crate::docker::{Docker, tail};
use crate::netns::Ns;
use crate::{World, pace, programs, wait_until};

/// Nothing takes longer than an agent's start where emulated machines share two cores, and the verifiers of all are at work.
const LIMIT: Duration = Duration::from_secs(60);
const DETACH_LIMIT: Duration = Duration::from_secs(10);

/// The way in at the uplink.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attach {
    Tc,
    Xdp,
    Generic,
    Auto,
}

impl Attach {
    /// As `--attach` takes it.
    pub fn word(self) -> &'static str {
        match self {
            Self::Tc => "tc",
            Self::Xdp => "xdp",
            Self::Generic => "generic",
            Self::Auto => "auto",
        }
    }

    /// A world in which this way in can work: XDP wants real checksums from the client.
    pub fn world(self) -> World {
        self.fit(World::new())
    }

    /// Makes a world fit for this way in.
    pub fn fit(self, world: World) -> World {
        match self {
            Self::Xdp | Self::Generic => world.without_checksum_offload(),
            Self::Tc | Self::Auto => world,
        }
    }
}

/// The guard of an agent: dropping it runs `steer detach --now` and ends the agent; its log is shown if the test
/// failed.
#[derive(Debug)]
pub struct Agent {
    host: Ns,
    program: PathBuf,
    instance: String,
    arguments: Vec<String>,
    log: PathBuf,
    child: Option<Child>,
}

impl Agent {
    /// `steer run` against a private Docker.
    pub fn start(world: &World, docker: &Docker, attach: Attach) -> Self {
        Self::start_with(world, Some(&docker.host_url()), attach, &[])
    }

    /// `steer run` with any Docker or none, and more arguments, such as `--config FILE`.
    pub fn start_with(world: &World, docker_host: Option<&str>, attach: Attach, more: &[&str]) -> Self {
        let mut arguments = vec!["--interface", world.uplink(), "--attach", attach.word()];
        arguments.extend(docker_host.into_iter().flat_map(|url| ["--docker-host", url]));
        arguments.extend(more);
        Self::start_raw(world, &arguments)
    }

    /// Without Docker, for the static services of a configuration file.
    pub fn start_static(world: &World, attach: Attach, config: &str) -> Self {
        Self::start_with(world, None, attach, &["--no-docker", "--config", config])
    }

    /// On the machine behind the host, against its own Docker.
    pub fn start_on_other(world: &World, docker: &Docker) -> Self {
        let arguments = ["--interface", "o0", "--attach", "tc", "--docker-host", &docker.host_url()];
        Self::start_in(world, world.other(), &format!("{}2", world.tag()), &arguments)
    }

    /// A second one on the same host, an instance of its own, without Docker.
    pub fn start_beside(world: &World, config: &str) -> Self {
        let arguments = ["--interface", world.uplink(), "--attach", "tc", "--no-docker", "--config", config];
        Self::start_in(world, &world.host, &format!("{}2", world.tag()), &arguments)
    }

    /// `steer run` with exactly these arguments.
    pub fn start_raw(world: &World, arguments: &[&str]) -> Self {
        Self::start_in(world, &world.host, world.tag(), arguments)
    }

    fn start_in(world: &World, ns: &Ns, instance: &str, arguments: &[&str]) -> Self {
        let program = programs::steer().unwrap_or_else(|err| panic!("{err}"));
        let mut agent = Self {
            host: ns.clone(),
            program,
            instance: instance.to_owned(),
            arguments: arguments.iter().map(|word| (*word).to_owned()).collect(),
            log: world.dir().join(format!("{instance}.log")),
            child: None,
        };
        agent.launch();
        agent
    }

    fn launch(&mut self) {
        let log =
            File::options().create(true).append(true).open(&self.log).expect("the world's directory can be written");
        let err = log.try_clone().expect("a descriptor can be cloned");
        let mut command = self.host.command(&self.program);
        command.args(["--instance", &self.instance, "run"]).args(&self.arguments);
        command.stdin(Stdio::null()).stdout(log).stderr(err);
        // Where a test listens as systemd does.
        let notify = self.log.with_file_name("notify.sock");
        if notify.exists() {
            command.env("NOTIFY_SOCKET", notify);
        }
        self.child = Some(command.spawn().unwrap_or_else(|err| panic!("start {}: {err}", self.program.display())));
    }

    /// The value of `--instance`.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// Process id of the running agent.
    #[track_caller]
    pub fn pid(&self) -> u32 {
        self.child.as_ref().expect("the agent was started").id()
    }

    /// Where it pins.
    pub fn pins(&self) -> PathBuf {
        Path::new("/sys/fs/bpf").join(&self.instance)
    }

    /// Names of the pinned links, in order: where programs are attached.
    pub fn links(&self) -> Vec<String> {
        let versions = std::fs::read_dir(self.pins()).into_iter().flatten().flatten();
        let links = versions.flat_map(|version| std::fs::read_dir(version.path().join("links")).into_iter().flatten());
        let mut names: Vec<String> = links.flatten().map(|link| link.file_name().to_string_lossy().into()).collect();
        names.sort();
        names
    }

    /// Everything the agents of this guard have logged.
    pub fn log(&self) -> String {
        std::fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// `steer --instance X <words>` in the host's namespace, to be started.
    pub fn command(&self, words: &[&str]) -> Command {
        let mut command = self.host.command(&self.program);
        command.args(["--instance", &self.instance]).args(words).stdin(Stdio::null());
        command
    }

    /// The same, to its end.
    #[track_caller]
    pub fn steer(&self, words: &[&str]) -> Output {
        self.command(words).output().unwrap_or_else(|err| panic!("start {}: {err}", self.program.display()))
    }

    /// The same, and it must succeed: its standard output.
    #[track_caller]
    pub fn steer_ok(&self, words: &[&str]) -> String {
        let output = self.steer(words);
        let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        assert!(output.status.success(), "steer {words:?}: {}\n{out}{err}", output.status);
        out.into_owned()
    }

    /// `steer status --json`, or in words why there is none.
    pub fn try_status(&self) -> Result<Status, String> {
        let output = self.steer(&["status", "--json"]);
        if !output.status.success() {
            return Err(format!("steer status: {}: {}", output.status, String::from_utf8_lossy(&output.stderr).trim()));
        }
        let text = String::from_utf8_lossy(&output.stdout);
        serde_json::from_str(&text).map_err(|err| format!("steer status --json: {err} in: {text}"))
    }

    #[track_caller]
    pub fn status(&self) -> Status {
        self.try_status().unwrap_or_else(|err| panic!("{err}"))
    }

    /// Waits until the status is as wanted; `wanted` is shown a status again and again.
    #[track_caller]
    pub fn wait_for(&mut self, what: &str, wanted: impl Fn(&Status) -> bool) -> Status {
        wait_until(what, LIMIT, || {
            let ended = self.child.as_mut().and_then(|child| child.try_wait().ok().flatten());
            if let Some(status) = ended {
                panic!("{what}: the agent ended with {status}");
            }
            let status = self.try_status()?;
            if wanted(&status) { Ok(status) } else { Err(status.to_string()) }
        })
    }

    /// Waits until a service has exactly `n` ready backends, with the agent alive.
    #[track_caller]
    pub fn wait_ready(&mut self, service: &str, n: usize) -> Status {
        self.wait_for(&format!("{n} backends of {service} are ready"), |status| {
            status.agent.alive && status.service(service).map_or(n == 0, |service| service.count("ready") == n)
        })
    }

    /// Waits until a backend is in a state.
    #[track_caller]
    pub fn wait_state(&mut self, backend: &str, state: &str) -> Status {
        self.wait_for(&format!("{backend} is {state}"), |status| {
            status.backend(backend).map_or(state == "gone", |backend| backend.state == state)
        })
    }

    /// SIGKILL: what is in the kernel stays.
    #[track_caller]
    pub fn kill9(&mut self) {
        self.end(Signal::SIGKILL);
    }

    /// SIGTERM: a clean stop, which leaves the data plane as well.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.end(Signal::SIGTERM)
    }

    #[track_caller]
    fn end(&mut self, signal: Signal) -> ExitStatus {
        self.signal(signal);
        self.wait_exit()
    }

    /// SIGSTOP: it is there, and does nothing at all. Waits until that is so.
    #[track_caller]
    pub fn hang(&self) {
        const STOPPED: &str = "State:\tT";
        self.signal(Signal::SIGSTOP);
        let path = format!("/proc/{}/status", self.pid());
        wait_until("the agent hangs", LIMIT, || match std::fs::read_to_string(&path) {
            Ok(status) if status.lines().any(|line| line.starts_with(STOPPED)) => Ok(()),
            other => Err(format!("{other:?}")),
        });
    }

    /// SIGCONT: it goes on where it was.
    #[track_caller]
    pub fn go_on(&self) {
        self.signal(Signal::SIGCONT);
    }

    #[track_caller]
    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.pid() as i32), signal).expect("a child that is not reaped can be signalled");
    }

    /// Waits for an agent to end, such as one that refuses to start.
    #[track_caller]
    pub fn wait_exit(&mut self) -> ExitStatus {
        let child = self.child.as_mut().expect("the agent was started");
        let status = wait_until("the agent ends", LIMIT, || match child.try_wait() {
            Ok(Some(status)) => Ok(status),
            other => Err(format!("{other:?}")),
        });
        self.child = None;
        status
    }

    /// Starts an agent again, with the same arguments. If one runs, it is terminated first.
    #[track_caller]
    pub fn restart(&mut self) {
        if self.child.is_some() {
            self.terminate();
        }
        self.launch();
    }

    /// The same, with these arguments.
    #[track_caller]
    pub fn restart_with(&mut self, arguments: &[&str]) {
        self.arguments = arguments.iter().map(|word| (*word).to_owned()).collect();
        self.restart();
    }

    /// From the next (re)start on, another way in.
    pub fn change_attach(&mut self, attach: Attach) {
        self.change("--attach", attach.word());
    }

    /// From the next (re)start on, it reaches Docker in another way, as through a proxy.
    pub fn change_docker_host(&mut self, url: &str) {
        self.change("--docker-host", url);
    }

    fn change(&mut self, option: &str, value: &str) {
        let at = self.arguments.iter().position(|word| word == option).map(|at| at + 1);
        let place = at.and_then(|at| self.arguments.get_mut(at));
        value.clone_into(place.unwrap_or_else(|| panic!("the agent was started without {option}")));
    }

    /// From the next (re)start on, another binary: an upgrade.
    pub fn upgrade_to(&mut self, program: PathBuf) {
        self.program = program;
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("--- end of the agent's log\n{}", tail(&self.log(), 60));
        }
        // Programs and pins outlive the agent by design, so they are taken away first, with a limit in case the agent
        // hangs.
        let mut detach = self.host.command(&self.program);
        detach.args(["--instance", &self.instance, "detach", "--now"]);
        detach.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        if let Ok(mut detach) = detach.spawn() {
            end_within(&mut detach, pace::soon(DETACH_LIMIT));
        }
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

/// Waits for a child, and kills it when the time is over.
fn end_within(child: &mut Child, limit: Duration) {
    let deadline = std::time::Instant::now() + limit;
    while matches!(child.try_wait(), Ok(None)) {
        if std::time::Instant::now() > deadline {
            drop(child.kill());
            drop(child.wait());
            return;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}
