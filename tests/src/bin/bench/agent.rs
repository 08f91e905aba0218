//! The agent itself: how long a change takes from Docker's event to the map, and what it costs while nothing happens.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use steer_tests::agent::{Agent, Attach};
use steer_tests::docker::Container;

use crate::measure::{Interrupted, Plan};
use crate::results::{AgentResults, Idle};
use crate::stop_if_asked;
use crate::ways::{SERVICE, Site};

pub(crate) fn measure(site: &Site, plan: &Plan) -> Result<AgentResults, Interrupted> {
    let mut agent = site.agent(Attach::Tc, "info,steer=debug");
    let idle = idle(agent.pid(), Duration::from_secs(plan.idle_seconds))?;
    // A container that is started again has another process id, which nothing here needs.
    let mut container = site.containers[0].clone();
    for _ in 0..plan.changes {
        stop_if_asked()?;
        change(&mut agent, &mut container, site.containers.len());
    }
    Ok(AgentResults { applied_micros: applied(&agent.log()), idle })
}

/// One event of each kind that a container without a healthcheck can have; each is waited for, so they do not queue.
fn change(agent: &mut Agent, container: &mut Container, all: usize) {
    container.pause();
    agent.wait_ready(SERVICE, all - 1);
    container.unpause();
    agent.wait_ready(SERVICE, all);
    container.kill("KILL");
    agent.wait_ready(SERVICE, all - 1);
    container.start();
    agent.wait_ready(SERVICE, all);
}

/// What the agent logs as `applied what="…" micros=…`, by `what`.
fn applied(log: &str) -> BTreeMap<String, Vec<u64>> {
    let mut by_kind: BTreeMap<String, Vec<u64>> = BTreeMap::new();
    for line in log.lines().filter(|line| line.contains(": applied ")) {
        let field = |name: &str| line.split_whitespace().find_map(|word| word.strip_prefix(name)?.strip_prefix('='));
        if let (Some(what), Some(Ok(micros))) = (field("what"), field("micros").map(str::parse)) {
            by_kind.entry(what.trim_matches('"').to_owned()).or_default().push(micros);
        }
    }
    by_kind
}

fn idle(pid: u32, time: Duration) -> Result<Idle, Interrupted> {
    let (begin, before) = (Instant::now(), cpu_ms(pid));
    while begin.elapsed() < time {
        stop_if_asked()?;
        thread::sleep(Duration::from_millis(100));
    }
    let (cpu_ms, seconds) = (cpu_ms(pid) - before, begin.elapsed().as_secs_f64());
    Ok(Idle { seconds, cpu_ms, resident_mib: resident_mib(pid) })
}

/// CPU time of all threads: in nanoseconds where the scheduler keeps them, else in clock ticks.
fn cpu_ms(pid: u32) -> f64 {
    let tasks = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let run = |path: std::path::PathBuf| -> Option<f64> {
        let text = fs::read_to_string(path.join("schedstat")).ok()?;
        Some(text.split(' ').next()?.parse::<f64>().ok()? / 1e6)
    };
    let exact: Vec<f64> = tasks.filter_map(|task| run(task.path())).collect();
    if exact.is_empty() { ticks_ms(pid) } else { exact.iter().sum() }
}

/// utime and stime of `/proc/<pid>/stat`, in ticks of 10 ms.
fn ticks_ms(pid: u32) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    let ticks = after_name.split(' ').skip(11).take(2).filter_map(|word| word.parse::<f64>().ok());
    ticks.sum::<f64>() * 10.0
}

fn resident_mib(pid: u32) -> f64 {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    let kib =
        status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.split_whitespace().next()?.parse::<f64>().ok());
    kib.unwrap_or(f64::NAN) / 1024.0
}

#[cfg(test)]
mod tests {
    use super::applied;

    #[test]
    fn the_log_tells_how_long_changes_took() {
        let log = "2026-01-01T00:00:00Z DEBUG steer::agent: applied what=\"die\" micros=412\n\
                   2026-01-01T00:00:00Z  INFO steer::agent: steering\n\
                   2026-01-01T00:00:00Z DEBUG steer::agent: applied what=\"die\" micros=388\n";
        assert_eq!(applied(log).into_iter().collect::<Vec<_>>(), [("die".to_owned(), vec![412, 388])]);
    }
}
