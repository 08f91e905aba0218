//! `cargo xtask vm --versus`: the program that compares steer with Swarm's routing mesh, in one machine; what it measures, and how, is
//! `tests/src/bin/versus`. Its table is kept, ready for the README.

use std::{fs, time::Duration};

use anyhow::{Context, Result, bail};

use super::{
    Harness,
    matrix::Exit,
    qemu::{self, Machine},
    session::{self, Session},
    show, shown,
    suite::Suite,
    vars,
};

const PROGRAM: &str = "versus";
/// In seconds, of all rows together; emulated they take about 25 minutes.
const LIMIT: u64 = 2700;
/// What is kept of it for the last row, and for the table.
const LAST: u64 = 180;
/// The line before the table.
const MARK: &str = "== table\n";

/// True when every row could be measured.
pub(super) fn run(harness: &mut Harness<'_>) -> Result<bool> {
    let args = harness.args;
    let suite = match args.suites[..] {
        [] => Suite::Trixie,
        [suite] => suite,
        _ => bail!("--versus wants one system: `cargo xtask vm trixie --versus`"),
    };
    println!("== vm: {}, the mesh and steer", suite.name());
    let (disk, logs) = (harness.disk(suite)?, harness.logs(suite)?);
    let spec = harness.spec(&disk, &logs)?;
    let accelerator = spec.accelerator;
    let mut machine = Machine::start(&spec)?;
    let mut session = Session::open(&mut machine, &logs)?;
    println!("  up after {:.1} s: Linux {}", session.booted_in.as_secs_f64(), session.ready.kernel);

    let mut vars = vars(accelerator);
    // As on a host in use, not as in a test.
    vars.push(("RUST_LOG".to_owned(), "info".to_owned()));
    let limit = args.limit.unwrap_or(LIMIT);
    let mut words = vec!["--seconds".to_owned(), limit.saturating_sub(LAST).to_string()];
    words.extend(args.filter.iter().cloned());
    let request = session::program(PROGRAM, words, vars, Duration::from_secs(limit));
    let ran = session.run(PROGRAM, request, &logs, show)?;
    drop(session);
    drop(machine);

    let console = fs::read(logs.join(qemu::CONSOLE)).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    session::complaints(&console).iter().for_each(|line| println!("the kernel said: {line}"));
    match ran.output.split_once(MARK) {
        Some((_, table)) => {
            let path = harness.dir.join("versus.md");
            fs::write(&path, table).context("writing the table")?;
            println!("the table is in {}, after {:.0} s", shown(&path), ran.took.as_secs_f64());
        }
        None => println!("there is no table ({:?}); the log is in {}", ran.exit, shown(&logs)),
    }
    Ok(ran.exit == Exit::Code(0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_marks_its_table_with_the_line_that_is_looked_for() {
        let program = include_str!("../../../tests/src/bin/versus/table.rs");
        assert!(program.contains(&format!("\"{}\"", MARK.trim_end())));
    }
}
