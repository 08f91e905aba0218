//! Tests that need several machines: a manager, in which they run, and workers, each with a program (`tests/src/bin/node`) that
//! does there what the tests ask of it.

use std::{
    fs,
    path::{Path, PathBuf},
    thread,
    time::Instant,
};

use anyhow::{Context, Result};

use super::{
    Harness,
    disk::Disk,
    limits::Limits,
    matrix::{Column, Exit},
    protocol::Run,
    qemu::{CONSOLE, Machine, Spec},
    session::{self, Ran, Session},
    vars, wire, words,
};
use crate::cmd;

/// The program in the workers.
const NODE: &str = "node";
/// Tells the harness how many machines there are (`tests/harness/nodes`).
const COUNT: &str = "STEER_TESTS_NODES";

impl Harness<'_> {
    /// Runs the tests that need several machines, in machines of this disk. None is started if the filter leaves no test.
    pub(super) fn run_on_nodes(&mut self, disk: &Disk, logs: &Path, column: &mut Column) -> Result<()> {
        let args = self.args;
        let words = words(args);
        let wanted = self.payload.on_nodes.iter().filter(|(_, path)| has_tests(path, &words)).map(|(name, _)| name);
        let wanted: Vec<String> = wanted.cloned().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let folders: Vec<PathBuf> = (0..args.nodes).map(|number| logs.join(format!("node{number}"))).collect();
        for folder in &folders {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", super::shown(folder)))?;
        }
        let began = Instant::now();
        let spec = self.spec(disk, logs)?;
        let accelerator = spec.accelerator;
        let limits = Limits::of(args, accelerator);
        let mut machines = Vec::new();
        // Each place goes as soon as its machine was started.
        for (place, folder) in wire::places(args.nodes)?.into_iter().zip(&folders) {
            machines.push(Machine::start(&Spec { place: Some(&place), dir: folder, ..spec })?);
        }
        let mut workers = Vec::new();
        for (machine, folder) in machines.iter_mut().zip(&folders) {
            workers.push(Session::open(machine, folder)?);
        }
        let mut manager = workers.remove(0);
        let (count, booted_in) = (machines.len(), began.elapsed().as_secs_f64());
        println!("  {count} machines up after {booted_in:.1} s: {}; at most {limits}", manager.about());
        if column.about.is_empty() {
            column.about = manager.about();
        }

        let mut env = vars(accelerator);
        env.push((COUNT.to_owned(), count.to_string()));
        let ran = thread::scope(|scope| {
            let mut serving = Vec::new();
            for (number, (mut worker, folder)) in (1..).zip(workers.into_iter().zip(&folders[1..])) {
                let run = Run {
                    program: NODE.to_owned(),
                    args: vec![number.to_string()],
                    env: env.clone(),
                    limit_seconds: limits.machine.as_secs(),
                };
                serving.push((number, scope.spawn(move || worker.run(NODE, run, folder, |_| {}))));
            }
            let ran = self.run_all(&wanted, &env, limits, &mut manager, logs, column);
            // A worker serves until its machine ends.
            machines.clear();
            for (number, worker) in serving {
                let problem = match worker.join() {
                    Ok(Ok(Ran { exit: Exit::MachineLost | Exit::MachineSilent, .. })) => continue,
                    Ok(Ok(Ran { exit, .. })) => format!("it ended ({exit:?})"),
                    Ok(Err(error)) => format!("{error:#}"),
                    Err(_) => "its session panicked".to_owned(),
                };
                column.problems.push(format!("what serves in node {number}: {problem}"));
            }
            ran
        });
        for (number, folder) in folders.iter().enumerate() {
            let console = fs::read(folder.join(CONSOLE)).unwrap_or_default();
            let console = String::from_utf8_lossy(&console);
            let told = session::complaints(&console);
            column.problems.extend(told.iter().map(|line| format!("the kernel of node {number} said: {line}")));
        }
        ran
    }
}

/// Whether a test binary has a test to run. These are static, so they run here too; one that does not is left to the machine.
fn has_tests(binary: &Path, words: &[String]) -> bool {
    let listed = cmd::output(cmd::command(binary).args(words).args(["--list", "--format", "terse"]));
    listed.map_or(true, |listed| listed.lines().any(|line| line.ends_with(": test")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_knows_the_word_for_the_number_of_machines() {
        assert!(include_str!("../../../tests/harness/nodes/mod.rs").contains(&format!("\"{COUNT}\"")));
    }

    #[test]
    fn a_filter_that_leaves_no_test_is_seen_before_machines_are_started() {
        let own = std::env::current_exe().unwrap();
        let words = |filter: &str| vec!["--test-threads=1".to_owned(), "--show-output".to_owned(), filter.to_owned()];
        assert!(has_tests(&own, &words("a_filter_that_leaves_no_test")));
        assert!(!has_tests(&own, &words("no test is called this")));
    }
}
