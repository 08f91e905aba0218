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
    Harness, System,
    matrix::Exit,
    protocol::Run,
    qemu::{CONSOLE, Machine, Spec},
    session::{Ran, Session},
    vars, wire, words,
};
use crate::cmd;

/// The program in the workers.
const NODE: &str = "node";
/// Tells the harness how many machines there are (`tests/harness/nodes`).
const COUNT: &str = "STEER_TESTS_NODES";

impl Harness<'_> {
    /// Runs the tests that need several machines, in machines of this disk. None is started if the filter leaves no test.
    pub(super) fn run_on_nodes(&mut self, system: &mut System) -> Result<()> {
        let args = self.args;
        let words = words(args);
        let wanted = self.payload.on_nodes.iter().filter(|(_, path)| has_tests(path, &words)).map(|(name, _)| name);
        let wanted: Vec<String> = wanted.cloned().collect();
        if wanted.is_empty() {
            return Ok(());
        }
        let accelerator = self.spec(&system.disk, &system.logs)?.accelerator;
        let mut env = vars(accelerator);
        env.push((COUNT.to_owned(), args.nodes.to_string()));
        let batch = self.batch(&wanted, env, accelerator, system);
        if batch.tests.is_empty() {
            return Ok(());
        }
        let folders: Vec<PathBuf> = (0..args.nodes).map(|number| system.logs.join(format!("node{number}"))).collect();
        for folder in &folders {
            fs::create_dir_all(folder).with_context(|| format!("creating {}", super::shown(folder)))?;
        }
        let began = Instant::now();
        let spec = self.spec(&system.disk, &system.logs)?;
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
        println!("  {count} machines up after {booted_in:.1} s: {}; at most {}", manager.about(), batch.limits);
        system.column.about = manager.about();
        system.consoles = (0..)
            .zip(&folders)
            .map(|(number, folder)| (format!("the kernel of node {number}"), folder.join(CONSOLE)))
            .collect();

        let ran = thread::scope(|scope| {
            let mut serving = Vec::new();
            for (number, (mut worker, folder)) in (1..).zip(workers.into_iter().zip(&folders[1..])) {
                let run = Run {
                    program: NODE.to_owned(),
                    args: vec![number.to_string()],
                    env: batch.env.clone(),
                    limit_seconds: batch.limits.machine.as_secs(),
                };
                serving.push((number, scope.spawn(move || worker.run(NODE, run, folder, |_| {}))));
            }
            let mut ran = self.run_all(&batch, &mut manager, system);
            // A worker serves until its machine ends.
            machines.clear();
            for (number, worker) in serving {
                let problem = match worker.join() {
                    Ok(Ok(Ran { exit: Exit::MachineLost | Exit::MachineSilent, .. })) => continue,
                    Ok(Ok(Ran { exit, .. })) => format!("it ended ({exit:?})"),
                    Ok(Err(error)) => format!("{error:#}"),
                    Err(_) => "its session panicked".to_owned(),
                };
                ran = ran.and(system.problem(format!("what serves in node {number}: {problem}")));
            }
            ran
        });
        ran.and(system.note_consoles())
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
