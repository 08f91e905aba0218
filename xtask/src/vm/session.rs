//! What happens with one running machine: wait until it is up, have it run one test binary after the other.

use std::{
    fs::{self, File},
    io::{BufRead, BufReader, Write},
    os::unix::net::UnixStream,
    path::Path,
    sync::mpsc::{self, Receiver, RecvTimeoutError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{
    matrix::{Binary, Exit},
    payload,
    protocol::{self, Ended, Ready, Report, Request, Run},
    qemu::{Accelerator, Machine, Spec},
    results,
};

/// From QEMU's start to the agent's first word: in software, and where KVM is real.
const BOOT_LIMIT: Duration = Duration::from_secs(240);
const KVM_BOOT_LIMIT: Duration = Duration::from_secs(20);
/// How often a machine that says nothing is looked at.
const LOOK: Duration = Duration::from_millis(500);
/// For the agent to end what it ran and say so, behind the limit that it keeps itself.
const GRACE: Duration = Duration::from_secs(60);

/// The line to the agent in a machine.
pub(crate) struct Session {
    to: UnixStream,
    from: Receiver<Report>,
    pub(crate) ready: Ready,
    pub(crate) booted_in: Duration,
}

/// What became of a program.
pub(crate) struct Ran {
    pub(crate) output: String,
    pub(crate) took: Duration,
    pub(crate) exit: Exit,
}

/// Why there is no answer.
#[derive(Debug, PartialEq, Eq)]
enum Silence {
    TooLong,
    /// QEMU is gone.
    Closed,
}

impl Session {
    /// What the machine is, in words.
    pub(crate) fn about(&self) -> String {
        format!("Linux {}, {}", self.ready.kernel, self.ready.packages.join(", "))
    }

    /// Waits until the machine is up.
    pub(crate) fn open(machine: &mut Machine, logs: &Path) -> Result<Self> {
        Self::open_within(machine, logs, BOOT_LIMIT)
    }

    fn open_within(machine: &mut Machine, logs: &Path, limit: Duration) -> Result<Self> {
        let began = Instant::now();
        let to = machine.connect()?;
        let (sender, from) = mpsc::channel();
        let reading = to.try_clone().context("sharing the line to the machine")?;
        thread::spawn(move || {
            for line in BufReader::new(reading).lines().map_while(Result::ok) {
                let report = serde_json::from_str(&line).unwrap_or_else(|error| Report::Refused(error.to_string()));
                if sender.send(report).is_err() {
                    return;
                }
            }
        });
        let ready = loop {
            match next(&from, LOOK) {
                Ok(Report::Ready(ready)) => break ready,
                Ok(other) => bail!("the machine's first word was not that it is ready: {other:?}"),
                Err(Silence::Closed) => {
                    bail!("the machine ended before it was up; its console is in {}", super::shown(logs))
                }
                Err(Silence::TooLong) if began.elapsed() > limit => {
                    bail!(
                        "the machine was not up after {} s; its console is in {}",
                        limit.as_secs(),
                        super::shown(logs)
                    )
                }
                Err(Silence::TooLong) => {
                    if let Some(why) = machine.lost()? {
                        bail!("{why}");
                    }
                }
            }
        };
        Ok(Self { to, from, ready, booted_in: began.elapsed() })
    }

    /// Runs a test binary; what it prints goes to a file, and to `each` piece by piece.
    pub(crate) fn test(&mut self, name: &str, run: Run, logs: &Path, each: impl FnMut(&str)) -> Result<Binary> {
        let Ran { output, took, exit } = self.run(name, run, logs, each)?;
        let (tests, verified) = (results::tests(&output), results::verified(&output));
        Ok(Binary { name: name.to_owned(), tests, verified, took, exit })
    }

    /// Runs a program; what it prints goes to a file, and to `each` piece by piece.
    pub(crate) fn run(&mut self, name: &str, run: Run, logs: &Path, mut each: impl FnMut(&str)) -> Result<Ran> {
        let began = Instant::now();
        let until = began + Duration::from_secs(run.limit_seconds) + GRACE;
        let path = logs.join(format!("{name}.log"));
        let mut log = File::create(&path).with_context(|| format!("creating {}", super::shown(&path)))?;
        let request = protocol::line(&Request::Run(run)).context("writing a request")?;
        let mut output = String::new();
        let sent = self.to.write_all(request.as_bytes());
        let exit = loop {
            if sent.is_err() {
                break Exit::MachineLost;
            }
            match next(&self.from, until.saturating_duration_since(Instant::now())) {
                Ok(Report::Output(piece)) => {
                    log.write_all(piece.as_bytes()).with_context(|| format!("writing {}", super::shown(&path)))?;
                    each(&piece);
                    output.push_str(&piece);
                }
                Ok(Report::Ended(ended)) => break exit(&ended),
                Ok(Report::Refused(why)) => bail!("{name} could not be run in the machine: {why}"),
                Ok(Report::Ready(_)) => bail!("the machine started again while it ran {name}"),
                Err(Silence::TooLong) => break Exit::MachineSilent,
                Err(Silence::Closed) => break Exit::MachineLost,
            }
        };
        Ok(Ran { output, took: began.elapsed(), exit })
    }
}

/// KVM where it runs guests: only a guest can tell, so a machine is started with it, once after each boot of this host.
pub(crate) fn accelerator(spec: &Spec<'_>, cache: &Path) -> Result<Accelerator> {
    const BOOT: &str = "/proc/sys/kernel/random/boot_id";
    if !Accelerator::may_be_kvm() {
        println!("  no KVM here: software emulation, about ten times slower");
        return Ok(Accelerator::Tcg);
    }
    let boot = fs::read_to_string(BOOT).unwrap_or_default();
    let refused = cache.join("no-kvm");
    if !boot.is_empty() && fs::read_to_string(&refused).is_ok_and(|before| before == boot) {
        println!("  KVM does not run guests here: software emulation, about ten times slower");
        return Ok(Accelerator::Tcg);
    }
    let mut machine = Machine::start(&Spec { accelerator: Accelerator::Kvm, ..*spec })?;
    match Session::open_within(&mut machine, spec.dir, KVM_BOOT_LIMIT) {
        Ok(_) => Ok(Accelerator::Kvm),
        Err(error) => {
            println!("  KVM does not run guests here ({error:#}): software emulation, about ten times slower");
            fs::write(&refused, boot).with_context(|| format!("writing {}", super::shown(&refused)))?;
            Ok(Accelerator::Tcg)
        }
    }
}

fn exit(ended: &Ended) -> Exit {
    match ended {
        Ended { timed_out: true, .. } => Exit::TimedOut,
        Ended { code: Some(code), .. } => Exit::Code(*code),
        Ended { code: None, .. } => Exit::Signal,
    }
}

fn next(from: &Receiver<Report>, limit: Duration) -> std::result::Result<Report, Silence> {
    from.recv_timeout(limit).map_err(|error| match error {
        RecvTimeoutError::Timeout => Silence::TooLong,
        RecvTimeoutError::Disconnected => Silence::Closed,
    })
}

/// A test binary's run, as a request.
pub(crate) fn request(name: &str, args: Vec<String>, env: Vec<(String, String)>, limit: Duration) -> Run {
    program(&payload::in_machine(name), args, env, limit)
}

/// A program's run, as a request.
pub(crate) fn program(name: &str, args: Vec<String>, env: Vec<(String, String)>, limit: Duration) -> Run {
    Run { program: name.to_owned(), args, env, limit_seconds: limit.as_secs() }
}

/// What in a kernel's log is worth a sentence: the lines, a few of them.
pub(crate) fn complaints(console: &str) -> Vec<&str> {
    const WORDS: [&str; 8] = [
        "Kernel panic",
        "BUG:",
        "Oops",
        "soft lockup",
        "hard LOCKUP",
        "general protection fault",
        "self-detected stall",
        "blocked for more than",
    ];
    const ENOUGH: usize = 5;
    let lines = console.lines().filter(|line| WORDS.iter().any(|word| line.contains(word)));
    lines.map(str::trim).take(ENOUGH).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_complaints_are_found_in_its_log() {
        let console = "[    1.0] Linux version 6.12\r\n[   20.1] watchdog: BUG: soft lockup - CPU#1 stuck for 23s!\r\n\
                       debug: all fine\n[   30.0] Kernel panic - not syncing: oh\r\n";
        let found = complaints(console);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].ends_with("stuck for 23s!") && found[1].contains("panic"), "{found:?}");
    }

    #[test]
    fn an_end_is_told_apart_from_the_end_of_the_time() {
        let ended = |code, timed_out| exit(&Ended { code, timed_out, millis: 1 });
        assert_eq!(ended(Some(101), false), Exit::Code(101));
        assert_eq!(ended(None, false), Exit::Signal);
        assert_eq!(ended(None, true), Exit::TimedOut);
    }
}
