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
/// In seconds: no row begins after it; emulated they take 20 to 45 minutes.
const LIMIT: u64 = 3600;
/// What the row that began last may take after it: both ways, and each may wait a few minutes more than once.
const LAST: u64 = 1800;
/// The lines before and after a table.
const MARK: &str = "== table\n";
const END: &str = "== end of the table\n";

/// True when every row could be measured, and steer was at fault in none.
pub(super) fn run(harness: &mut Harness<'_>) -> Result<bool> {
    let args = harness.args;
    let suite = match args.suites[..] {
        [] => Suite::Trixie,
        [suite] => suite,
        _ => bail!("--versus wants one system: `cargo xtask vm trixie --versus`"),
    };
    println!("== vm: {}, the mesh and steer", suite.name());
    // Not in the folder of the system's tests, which the next run of them empties.
    let (disk, logs) = (harness.disk(suite)?, harness.logs(PROGRAM)?);
    let spec = harness.spec(&disk, &logs)?;
    let accelerator = spec.accelerator;
    let mut machine = Machine::start(&spec)?;
    let mut session = Session::open(&mut machine, &logs)?;
    println!("  up after {:.1} s: Linux {}", session.booted_in.as_secs_f64(), session.ready.kernel);

    let vars = vars(accelerator);
    let limit = args.limit.unwrap_or(LIMIT);
    let mut words = vec!["--seconds".to_owned(), limit.to_string()];
    words.extend(args.filter.iter().cloned());
    let request = session::program(PROGRAM, words, vars, Duration::from_secs(limit.saturating_add(LAST)));
    let path = harness.dir.join("versus.md");
    let (mut tables, mut kept) = (Tables::default(), Ok(false));
    let ran = session.run(PROGRAM, request, &logs, |piece| {
        show(piece);
        // After each row: however this ends, what was measured is there.
        if let Some(table) = tables.after(piece) {
            kept = fs::write(&path, table).map(|()| true);
        }
    })?;
    drop(session);
    drop(machine);

    let console = fs::read(logs.join(qemu::CONSOLE)).unwrap_or_default();
    let console = String::from_utf8_lossy(&console);
    session::complaints(&console).iter().for_each(|line| println!("the kernel said: {line}"));
    match kept.context("writing the table")? {
        true => println!(
            "the table is in {}, after {:.0} s; the log is in {}",
            shown(&path),
            ran.took.as_secs_f64(),
            shown(&logs)
        ),
        false => println!("there is no table ({:?}); the log is in {}", ran.exit, shown(&logs)),
    }
    Ok(ran.exit == Exit::Code(0))
}

/// Finds tables in what is printed piece by piece.
#[derive(Default)]
struct Tables {
    /// What was printed since the last one.
    seen: String,
}

impl Tables {
    /// The last table that is whole with this piece, if there is one.
    fn after(&mut self, piece: &str) -> Option<String> {
        self.seen.push_str(piece);
        let end = self.seen.rfind(END)?;
        let rest = self.seen.split_off(end + END.len());
        let seen = std::mem::replace(&mut self.seen, rest);
        let (_, table) = seen[..end].rsplit_once(MARK)?;
        Some(table.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_program_marks_its_table_with_the_lines_that_are_looked_for() {
        let program = include_str!("../../../tests/src/bin/versus/table.rs");
        for line in [MARK, END] {
            assert!(program.contains(&format!("\"{}\"", line.trim_end())), "{line}");
        }
    }

    #[test]
    fn of_several_tables_each_is_found_when_it_is_whole() {
        let mut tables = Tables::default();
        for (piece, expected) in [
            ("words\n== ta", None),
            ("ble\n| one |\n", None),
            ("== end of the table\nmore", Some("| one |\n")),
            (" words\n== table\n| one |\n| two |\n", None),
            ("== end of the table\n== table\n| 3 |\n== end of the table\nx", Some("| 3 |\n")),
            ("== end of the table\n", None),
        ] {
            assert_eq!(tables.after(piece).as_deref(), expected, "{piece:?}");
        }
    }
}
