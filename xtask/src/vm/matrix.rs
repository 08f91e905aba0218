//! The table at the end: tests down, systems across.

use std::{collections::BTreeMap, fmt::Write as _, fs, path::Path, time::Duration};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::results::{self, Verdict};
use crate::tally::Tally;

/// Where the table is kept, in the folder of all machines.
pub(crate) const FILE: &str = "matrix.txt";

/// What one system has to say.
pub(crate) struct Column {
    pub(crate) name: &'static str,
    /// Kernel and packages.
    pub(crate) about: String,
    pub(crate) binaries: Vec<Binary>,
    /// What was not good beside tests, one sentence each.
    pub(crate) problems: Vec<String>,
}

/// One run of a test binary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Binary {
    pub(crate) name: String,
    pub(crate) tests: Vec<(String, Verdict)>,
    /// Instructions that the kernel's verifier looked at, by program.
    pub(crate) verified: Vec<(String, u32)>,
    pub(crate) took: Duration,
    pub(crate) exit: Exit,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Exit {
    Code(i32),
    Signal,
    TimedOut,
    /// The machine ended under it.
    MachineLost,
    /// The machine said nothing more, not even that its time was over.
    MachineSilent,
}

impl Binary {
    /// A process that died without a failing test has failed all the same.
    pub(crate) fn tally(&self) -> Tally {
        let mut tally = results::tally(&self.tests);
        if self.exit != Exit::Code(0) && tally.failed == 0 {
            tally.failed = 1;
        }
        tally
    }

    pub(crate) fn is_good(&self) -> bool {
        self.tally().failed == 0
    }

    /// A filter leaves most binaries without a test; they need no row.
    pub(crate) fn has_row(&self) -> bool {
        !(self.tests.is_empty() && self.exit == Exit::Code(0))
    }
}

impl Column {
    pub(crate) fn new(name: &'static str) -> Self {
        Self { name, about: String::new(), binaries: Vec::new(), problems: Vec::new() }
    }

    /// What ended before all had run is one problem more; what had run stays.
    pub(crate) fn note(&mut self, outcome: Result<()>) {
        self.problems.extend(outcome.err().map(|error| format!("{error:#}")));
    }

    pub(crate) fn tally(&self) -> Tally {
        let mut sum = Tally::default();
        self.binaries.iter().for_each(|binary| sum += binary.tally());
        sum
    }

    pub(crate) fn is_good(&self) -> bool {
        self.problems.is_empty() && self.tally().failed == 0
    }

    fn cell(&self, binary: &str, test: &str) -> &'static str {
        let binary = self.binaries.iter().find(|is| is.name == binary);
        let test = binary.and_then(|binary| binary.tests.iter().find(|(name, _)| name == test));
        test.map_or("-", |(_, verdict)| verdict.word())
    }

    fn summary(&self, binary: &str) -> String {
        let Some(binary) = self.binaries.iter().find(|is| is.name == binary) else { return "-".to_owned() };
        let Tally { passed, failed, skipped } = binary.tally();
        let mut text = format!("{passed} ok");
        for (count, word) in [(failed, "FAILED"), (skipped, "skipped")] {
            if count > 0 {
                let _ = write!(text, ", {count} {word}");
            }
        }
        match binary.exit {
            Exit::TimedOut => text.push_str(", out of time"),
            Exit::Signal => text.push_str(", by a signal"),
            Exit::MachineLost => text.push_str(", machine lost"),
            Exit::MachineSilent => text.push_str(", machine silent"),
            Exit::Code(_) => {}
        }
        let _ = write!(text, ", {:.0} s", binary.took.as_secs_f64());
        text
    }
}

/// Writes the table of what has run by now.
pub(crate) fn keep(dir: &Path, columns: &[&Column]) -> Result<()> {
    fs::write(dir.join(FILE), render(columns)).context("writing the table")
}

/// Every test of every system, in the order in which they ran.
pub(crate) fn render(columns: &[&Column]) -> String {
    let mut rows = vec![(String::new(), columns.iter().map(|column| column.name.to_owned()).collect())];
    for (binary, tests) in names(columns) {
        rows.push((binary.to_owned(), columns.iter().map(|column| column.summary(binary)).collect()));
        for test in tests {
            let cells = columns.iter().map(|column| column.cell(binary, test).to_owned()).collect();
            rows.push((format!("  {test}"), cells));
        }
    }
    table(&rows)
}

/// What each kernel's verifier looked at, by program; empty if nobody told.
pub(crate) fn render_verified(columns: &[&Column]) -> String {
    let told: Vec<Vec<&(String, u32)>> =
        columns.iter().map(|column| column.binaries.iter().flat_map(|binary| &binary.verified).collect()).collect();
    let mut names: Vec<&str> = Vec::new();
    for (name, _) in told.iter().flatten() {
        if !names.contains(&&**name) {
            names.push(name);
        }
    }
    if names.is_empty() {
        return String::new();
    }
    let cell = |column: &Vec<&(String, u32)>, name: &str| {
        column.iter().find(|(is, _)| is == name).map_or("-".to_owned(), |(_, count)| count.to_string())
    };
    let mut rows = vec![(String::new(), columns.iter().map(|column| column.name.to_owned()).collect())];
    rows.extend(
        names.into_iter().map(|name| (name.to_owned(), told.iter().map(|column| cell(column, name)).collect())),
    );
    table(&rows)
}

/// Columns as wide as they must be.
fn table(rows: &[(String, Vec<String>)]) -> String {
    let first = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or_default();
    let columns = rows.first().map_or(0, |(_, cells)| cells.len());
    let width = |at: usize| rows.iter().filter_map(|(_, cells)| Some(cells.get(at)?.chars().count())).max();
    let widths: Vec<_> = (0..columns).map(|at| width(at).unwrap_or_default()).collect();
    let mut text = String::new();
    for (name, cells) in rows {
        let mut line = format!("{name:first$}");
        for (cell, width) in cells.iter().zip(&widths) {
            let _ = write!(line, "  {cell:width$}");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// Binaries in the order of the first system that ran them, each with its tests.
fn names<'a>(columns: &[&'a Column]) -> Vec<(&'a str, Vec<&'a str>)> {
    let mut order = Vec::new();
    let mut tests: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for binary in columns.iter().flat_map(|column| &column.binaries) {
        if !tests.contains_key(&*binary.name) {
            order.push(&*binary.name);
        }
        let known = tests.entry(&binary.name).or_default();
        for (test, _) in &binary.tests {
            if !known.contains(&&**test) {
                known.push(test);
            }
        }
    }
    order.into_iter().map(|name| (name, tests.remove(name).unwrap_or_default())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn binary(name: &str, tests: &[(&str, Verdict)], seconds: u64, exit: Exit) -> Binary {
        let tests = tests.iter().map(|(name, verdict)| ((*name).to_owned(), *verdict)).collect();
        Binary { name: name.into(), tests, verified: Vec::new(), took: Duration::from_secs(seconds), exit }
    }

    fn column(name: &'static str, binaries: Vec<Binary>) -> Column {
        Column { binaries, ..Column::new(name) }
    }

    #[test]
    fn tests_go_down_and_systems_across() {
        use Verdict::{Failed, Passed, Skipped, Unfinished};
        let columns = [
            column(
                "bookworm",
                vec![
                    binary("packet", &[("a", Passed), ("b", Failed)], 3, Exit::Code(101)),
                    binary("drain", &[("c", Passed), ("d", Unfinished)], 60, Exit::TimedOut),
                ],
            ),
            column("sid", vec![binary("packet", &[("a", Passed), ("b", Skipped)], 12, Exit::Code(0))]),
        ];
        let expected = "        bookworm                            sid
packet  1 ok, 1 FAILED, 3 s                 1 ok, 1 skipped, 12 s
  a     ok                                  ok
  b     FAILED                              skipped
drain   1 ok, 1 FAILED, out of time, 60 s   -
  c     ok                                  -
  d     NO END                              -
";
        let squeeze = |text: &str| text.split_whitespace().map(str::to_owned).collect::<Vec<_>>();
        let rendered = render(&columns.each_ref());
        assert_eq!(squeeze(&rendered), squeeze(expected), "{rendered}");
        let at: Vec<_> = rendered.lines().filter_map(|line| line.rfind("  ")).collect();
        assert!(at.windows(2).all(|pair| pair[0] == pair[1]), "{rendered}");
    }

    #[test]
    fn what_verifiers_looked_at_is_a_table_of_its_own() {
        let mut columns = [column("bookworm", vec![binary("verifier", &[], 1, Exit::Code(0))]), column("sid", vec![])];
        assert_eq!(render_verified(&columns.each_ref()), "");
        columns[0].binaries[0].verified = vec![("uplink_xdp".into(), 150_000), ("replay".into(), 9)];
        let expected = "            bookworm  sid\nuplink_xdp  150000    -\nreplay      9         -\n";
        assert_eq!(render_verified(&columns.each_ref()), expected);
    }

    #[test]
    fn what_has_run_is_told_when_the_rest_could_not_run() {
        let mut column = column("sid", vec![binary("packet", &[("a", Verdict::Passed)], 3, Exit::Code(0))]);
        column.note(Ok(()));
        assert!(column.is_good());
        column.note(Err(anyhow::anyhow!("no room").context("writing the log")));
        assert_eq!((column.tally().passed, column.is_good()), (1, false));
        assert_eq!(column.problems, ["writing the log: no room"]);
        assert!(render(&[&column]).contains("packet  1 ok, 3 s"));
    }

    #[test]
    fn a_binary_that_died_has_failed_though_no_test_did() {
        let died = binary("packet", &[("a", Verdict::Passed)], 1, Exit::Signal);
        assert_eq!(died.tally(), Tally { passed: 1, failed: 1, skipped: 0 });
        assert!(!column("sid", vec![died]).is_good());
    }
}
