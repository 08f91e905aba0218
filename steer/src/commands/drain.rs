//! `steer drain`: a backend goes out, its connections go on; `--wait` returns when the last has ended.

use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

use anyhow::bail;
use steer_common::backend::BackendId;
use tokio::time::{Instant, sleep};

use super::report::{count, span};
use crate::api::client::Client;
use crate::cli::DrainArgs;
use crate::dataplane::paths::Paths;
use crate::dataplane::read::{ReadError, Reader};

/// How often the maps are looked at.
const TICK: Duration = Duration::from_millis(20);

pub(super) async fn drain(args: &DrainArgs, paths: &Paths) -> anyhow::Result<()> {
    let mut client = Client::connect(paths).await?;
    // First: nothing is to be changed whose outcome cannot be told.
    let reader = Reader::open(paths)?;
    let drained = client.drain(&args.target).await?;
    if drained.backends.is_empty() {
        return super::print(&format!("{} is out: it is not steered to, and has no connections\n", args.target));
    }
    for task in drained.backends.iter().filter(|backend| backend.is_task) {
        eprintln!("{}", of_swarm(&task.name));
    }
    let mut backends = Vec::new();
    for backend in &drained.backends {
        let id = BackendId(backend.id);
        backends.push(Draining { name: backend.name.clone(), id, generation: reader.generation(id)? });
    }
    if !args.wait {
        for backend in &backends {
            let left = backend.left(&reader, true)?;
            super::print(&format!("{} gets no new connections, {} left\n", backend.name, count(left, "connection")))?;
        }
        return Ok(());
    }
    let longest = drained.backends.iter().map(|backend| Duration::from_millis(backend.drain_ms)).max();
    let timeout = args.timeout.or(longest).unwrap_or_default();
    wait(&reader, &backends, timeout).await
}

/// A backend that is waited for.
struct Draining {
    name: String,
    id: BackendId,
    generation: u32,
}

impl Draining {
    fn left(&self, reader: &Reader, exactly: bool) -> Result<u64, ReadError> {
        reader.remaining(self.id, self.generation, exactly).map(|remaining| remaining.total())
    }
}

/// Until nothing is left, or the time is over. Nothing must be left twice in a row: a flow is counted in no table for some
/// nanoseconds while it goes from one to the other.
async fn wait(reader: &Reader, backends: &[Draining], timeout: Duration) -> anyhow::Result<()> {
    let names = backends.iter().map(|backend| backend.name.as_str()).collect::<Vec<_>>().join(", ");
    let left = |exactly| backends.iter().map(|backend| backend.left(reader, exactly)).sum::<Result<u64, _>>();
    let (start, mut progress, mut empty) = (Instant::now(), Progress::new(), 0);
    while start.elapsed() < timeout {
        match left(false)? {
            0 => empty += 1,
            left => {
                empty = 0;
                progress.show(&names, left, start.elapsed(), timeout);
            }
        }
        if empty == 2 {
            progress.clear();
            return super::print(&format!("{names}: drained after {:.1?}\n", start.elapsed()));
        }
        sleep(TICK).await;
    }
    progress.clear();
    match left(true)? {
        0 => super::print(&format!("{names}: drained after {:.1?}\n", start.elapsed())),
        left => bail!("{} left on {names} after {}", count(left, "connection"), humantime::format_duration(timeout)),
    }
}

/// One line on a terminal, rewritten in place; nothing elsewhere.
struct Progress {
    on: bool,
    shown: Option<Instant>,
}

impl Progress {
    const EVERY: Duration = Duration::from_millis(200);

    fn new() -> Self {
        Self { on: std::io::stderr().is_terminal(), shown: None }
    }

    fn show(&mut self, names: &str, left: u64, waited: Duration, timeout: Duration) {
        if self.on && self.shown.is_none_or(|shown| shown.elapsed() >= Self::EVERY) {
            self.shown = Some(Instant::now());
            self.write(&progress(names, left, waited, timeout));
        }
    }

    fn clear(&mut self) {
        if self.shown.take().is_some() {
            self.write("");
        }
    }

    fn write(&self, line: &str) {
        let mut stderr = std::io::stderr().lock();
        // It is a courtesy: nothing depends on it.
        let _ = write!(stderr, "\r\x1b[K{line}").and_then(|()| stderr.flush());
    }
}

/// What is to be known of a task: steer is not the only one who sends it connections.
fn of_swarm(name: &str) -> String {
    format!(
        "{name} is a task: Swarm goes on sending it connections, from other nodes, to its service's virtual address, \
         and here once nobody is ready and steer.hold is over; \
         `docker service scale` or `update` take it out"
    )
}

fn progress(names: &str, left: u64, waited: Duration, timeout: Duration) -> String {
    let rest = timeout.saturating_sub(waited).as_secs();
    format!("{names}: {} left, waiting for {}, {} to go", count(left, "connection"), span(waited.as_secs()), span(rest))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_says_how_many_and_how_long() {
        let line = progress("web-1", 1, Duration::from_secs(3), Duration::from_secs(30));
        assert_eq!(line, "web-1: 1 connection left, waiting for 3s, 27s to go");
    }
}
