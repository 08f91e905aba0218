//! Load in the background: this package's `load`, or `ab`, inside a namespace.

use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::Ns;
use crate::report::{Report, STARTED};
use crate::{pace, programs};

const STALL: Duration = Duration::from_secs(1);
const PATIENCE_SECONDS: u32 = 10;

/// A load program that runs. Dropping it ends it.
#[derive(Debug)]
struct Running {
    child: Option<Child>,
    words: String,
}

/// A run of `load`.
#[derive(Debug)]
pub struct Load {
    running: Running,
    latest: Arc<Mutex<Report>>,
}

/// Words for clients that give up after what is ten seconds for a real machine, as they do there without a word.
pub fn patient() -> String {
    format!("--timeout {}", pace::soon_secs(PATIENCE_SECONDS))
}

/// A view of a load that runs.
#[derive(Clone, Debug)]
pub struct Progress(Arc<Mutex<Report>>);

/// A run of `ab`.
#[derive(Debug)]
pub struct Ab {
    running: Running,
}

/// What `ab` says, where it says it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AbReport {
    pub complete: u64,
    pub failed: u64,
    /// Answers that were not 2xx.
    pub non_2xx: u64,
    pub longest_ms: u64,
    pub per_second: f64,
    /// Everything it printed, its errors included.
    pub text: String,
}

impl Load {
    /// `load --target <target> --json <words>` in the background, as in `"--connections 40 --seconds 5"`. A request has stalled after
    /// what is a second for a real machine, if the words do not say otherwise.
    #[track_caller]
    pub fn start(ns: &Ns, target: impl Into<SocketAddr>, words: &str) -> Self {
        let program = programs::built("load").unwrap_or_else(|err| panic!("{err}"));
        let stall = pace::soon(STALL).as_secs();
        let words = format!("--target {} --json --stall {stall} {words}", target.into());
        let mut running = Running::start(ns, &program.display().to_string(), words);
        running.wait_line(STARTED);
        Self { running, latest: Arc::default() }
    }

    /// The same, and its [`Progress`] can be read.
    #[track_caller]
    pub fn watch(ns: &Ns, target: impl Into<SocketAddr>, words: &str) -> Self {
        let mut load = Self::start(ns, target, &format!("--progress 0.2 {words}"));
        let stderr = load.running.child.as_mut().and_then(|child| child.stderr.take());
        let lines = BufReader::new(stderr.expect("standard error is piped")).lines().map_while(Result::ok);
        let latest = load.latest.clone();
        thread::spawn(move || {
            for report in lines.filter_map(|line| serde_json::from_str(&line).ok()) {
                *latest.lock().expect("nothing panics while it holds this") = report;
            }
        });
        load
    }

    /// A view of a watched load, for another thread.
    pub fn progress(&self) -> Progress {
        Progress(self.latest.clone())
    }

    /// True once it has ended, by itself or by a signal.
    pub fn is_over(&mut self) -> bool {
        self.running.child.as_mut().is_none_or(|child| !matches!(child.try_wait(), Ok(None)))
    }

    /// Waits for its end.
    #[track_caller]
    pub fn finish(self) -> Report {
        let (out, text) = self.running.output();
        serde_json::from_str(&out).unwrap_or_else(|err| panic!("the report of load: {err}\n{text}"))
    }

    /// Ends it now; the report covers what ran.
    #[track_caller]
    pub fn stop(self) -> Report {
        self.running.signal(Signal::SIGINT);
        self.finish()
    }
}

impl Progress {
    /// What the load has done until a moment ago.
    pub fn latest(&self) -> Report {
        self.0.lock().expect("nothing panics while it holds this").clone()
    }
}

impl Ab {
    /// `ab <words> http://<target>/` in the background, as in `"-c 40 -n 20000 -l -k"`.
    #[track_caller]
    pub fn start(ns: &Ns, target: impl Into<SocketAddr>, words: &str) -> Self {
        let niceness = pace::niceness();
        Self { running: Running::start(ns, "nice", format!("-n {niceness} ab -q {words} http://{}/", target.into())) }
    }

    #[track_caller]
    pub fn finish(self) -> AbReport {
        let (_, text) = self.running.output();
        let report = AbReport::parse(text);
        assert!(report.complete > 0, "ab did not get far:\n{}", report.text);
        report
    }
}

impl AbReport {
    fn parse(text: String) -> Self {
        let number = |label: &str| {
            let line = text.lines().find_map(|line| line.trim().strip_prefix(label))?;
            line.split_whitespace().next().map(str::to_owned)
        };
        let whole = |label: &str| number(label).and_then(|word| word.parse().ok()).unwrap_or(0);
        Self {
            complete: whole("Complete requests:"),
            failed: whole("Failed requests:"),
            non_2xx: whole("Non-2xx responses:"),
            longest_ms: whole("100%"),
            per_second: number("Requests per second:").and_then(|word| word.parse().ok()).unwrap_or(0.0),
            text,
        }
    }
}

impl Running {
    #[track_caller]
    fn start(ns: &Ns, program: &str, words: String) -> Self {
        let mut command = ns.command(program);
        command.args(words.split_whitespace()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let child = command.spawn().unwrap_or_else(|err| panic!("start {program}: {err}"));
        Self { child: Some(child), words: format!("{program} {words}") }
    }

    /// Waits for a line on standard error; what comes after it stays in the pipe.
    #[track_caller]
    fn wait_line(&mut self, line: &str) {
        let mut pipe = self.child.as_mut().and_then(|child| child.stderr.as_mut()).expect("standard error is piped");
        let mut seen = Vec::new();
        while !seen.ends_with(format!("{line}\n").as_bytes()) {
            let mut byte = [0];
            match (&mut pipe).read(&mut byte) {
                Ok(1) => seen.push(byte[0]),
                _ => panic!("{}: {}", self.words, String::from_utf8_lossy(&seen)),
            }
        }
    }

    fn signal(&self, signal: Signal) {
        if let Some(child) = &self.child {
            let _ = kill(Pid::from_raw(child.id() as i32), signal);
        }
    }

    /// Standard output, and for people: the command, standard output and standard error.
    #[track_caller]
    fn output(mut self) -> (String, String) {
        let child = self.child.take().expect("only this takes the child");
        let output = child.wait_with_output().unwrap_or_else(|err| panic!("wait for {}: {err}", self.words));
        let out = String::from_utf8_lossy(&output.stdout).into_owned();
        let text = format!("{}\n{out}{}", self.words, String::from_utf8_lossy(&output.stderr));
        (out, text)
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            drop(child.kill());
            drop(child.wait());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::AbReport;

    #[test]
    fn ab_is_understood() {
        let text = "Complete requests:      20000\nFailed requests:        3\n   (Connect: 0)\nNon-2xx responses:      2\n\
                    Requests per second:    9904.36 [#/sec] (mean)\n 100%     14 (longest request)\n";
        let AbReport { complete, failed, non_2xx, longest_ms, per_second, .. } = AbReport::parse(text.to_owned());
        assert_eq!((complete, failed, non_2xx, longest_ms, per_second), (20000, 3, 2, 14, 9904.36));
    }
}
