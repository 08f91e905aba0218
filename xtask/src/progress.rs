//! Showing that a long step is alive: a spinner on a terminal, a line now and then in a log.

use std::{
    collections::VecDeque,
    io::{BufRead, BufReader, IsTerminal, Read},
    process::{Command, ExitStatus, Stdio},
    sync::mpsc::{self, RecvTimeoutError, Sender},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use indicatif::{ProgressBar, ProgressStyle};

use crate::cmd;

/// How often a log without a terminal gets a sign of life.
const BEAT: Duration = Duration::from_secs(20);
/// How often the child is looked at while it prints nothing.
const LOOK: Duration = Duration::from_millis(100);
/// How many of the last lines an error carries.
const TAIL: usize = 30;

/// Runs a command whose output nobody needs unless it fails; then the error carries the last lines.
///
/// `what` is a participle: "building bpf-linker".
pub(crate) fn run_quietly(what: &str, command: &mut Command) -> Result<()> {
    let mut child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start `{}`", cmd::describe(command)))?;
    let (sender, lines) = mpsc::channel();
    forward_lines(child.stdout.take(), sender.clone());
    forward_lines(child.stderr.take(), sender);

    let mut display = Display::new(what);
    let mut tail = VecDeque::with_capacity(TAIL);
    let status = loop {
        match lines.recv_timeout(LOOK) {
            Ok(line) => {
                display.detail(&line);
                if tail.len() == TAIL {
                    tail.pop_front();
                }
                tail.push_back(line);
            }
            // Not only at the end of the output: a service that a package started may hold our pipe for ever.
            Err(RecvTimeoutError::Timeout) => {
                if let Some(status) = child.try_wait().context("waiting for a child")? {
                    break status;
                }
            }
            Err(RecvTimeoutError::Disconnected) => break child.wait().context("waiting for a child")?,
        }
        display.beat();
    };
    display.end(status);

    if !status.success() {
        let tail = tail.iter().map(|line| format!("\n    {}", cmd::redact(line))).collect::<String>();
        bail!("`{}` failed ({status}); it said last:{tail}", cmd::describe(command));
    }
    Ok(())
}

/// Sends every line that can be read, from a thread of its own.
fn forward_lines(from: Option<impl Read + Send + 'static>, to: Sender<String>) {
    let Some(from) = from else { return };
    thread::spawn(move || {
        for line in BufReader::new(from).split(b'\n').map_while(Result::ok) {
            if to.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                return;
            }
        }
    });
}

/// What the user sees of a running step.
struct Display {
    what: String,
    started: Instant,
    next_beat: Duration,
    spinner: Option<ProgressBar>,
}

impl Display {
    fn new(what: &str) -> Self {
        let spinner = std::io::stderr().is_terminal().then(|| {
            let style = ProgressStyle::with_template("  {spinner} {msg} ({elapsed})");
            let bar = ProgressBar::new_spinner().with_message(what.to_owned());
            bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_spinner()));
            bar.enable_steady_tick(LOOK);
            bar
        });
        if spinner.is_none() {
            println!("  {what} …");
        }
        Self { what: what.to_owned(), started: Instant::now(), next_beat: BEAT, spinner }
    }

    /// On a terminal there is room for what the command does right now.
    fn detail(&self, line: &str) {
        if let (Some(spinner), Some(("Compiling", rest))) = (&self.spinner, line.trim().split_once(' ')) {
            spinner.set_message(format!("{}: {}", self.what, rest.split(' ').next().unwrap_or(rest)));
        }
    }

    fn beat(&mut self) {
        if self.spinner.is_none() && self.started.elapsed() >= self.next_beat {
            println!("  …still {} ({} s)", self.what, self.next_beat.as_secs());
            self.next_beat += BEAT;
        }
    }

    fn end(&self, status: ExitStatus) {
        let Self { what, started, next_beat: _, spinner } = self;
        if let Some(spinner) = spinner {
            spinner.finish_and_clear();
        }
        let word = if status.success() { "done" } else { "failed" };
        println!("  {word:<8} {what} ({:.0} s)", started.elapsed().as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failing_command_is_named_with_what_it_said() {
        let mut command = Command::new("sh");
        command.args(["-c", "echo first; echo oops >&2; exit 3"]);
        let error = run_quietly("trying", &mut command).expect_err("exit 3");
        let text = format!("{error:#}");
        assert!(text.contains("`sh -c") && text.contains("oops") && text.contains("exit status: 3"), "{text}");
    }

    #[test]
    fn a_child_that_leaves_its_pipe_to_a_daemon_does_not_hold_us() {
        let started = Instant::now();
        let mut command = Command::new("sh");
        command.args(["-c", "sleep 5 & exit 0"]);
        run_quietly("starting a daemon", &mut command).expect("exit 0");
        assert!(started.elapsed() < Duration::from_secs(4));
    }
}
