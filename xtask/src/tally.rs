//! Counting test results out of what libtest prints, while it is printed.

use std::{
    fmt,
    io::{self, Read, Write},
    ops::AddAssign,
};

/// What libtest has told of one process or several.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counted {
    pub(crate) tally: Tally,
    /// Names of tests that failed, as listed before the results.
    pub(crate) failed: Vec<String>,
}

/// How many tests ended how.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) passed: u32,
    pub(crate) failed: u32,
    /// Tests that printed `skipped: <reason>`, and ignored ones.
    pub(crate) skipped: u32,
}

impl Tally {
    pub(crate) fn total(self) -> u32 {
        self.passed + self.failed + self.skipped
    }
}

impl Counted {
    /// Copies a test run's output while it comes and counts. Bytes, not lines: libtest prints a test's name before it runs.
    pub(crate) fn copy(mut from: impl Read, mut to: impl Write) -> io::Result<Self> {
        let (mut chunk, mut line, mut count) = ([0; 4096], Vec::new(), LineCount::default());
        loop {
            let length = match from.read(&mut chunk) {
                Ok(0) => break,
                Ok(length) => length,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(error),
            };
            to.write_all(&chunk[..length])?;
            to.flush()?;
            for &byte in &chunk[..length] {
                if byte == b'\n' {
                    count.line(&String::from_utf8_lossy(&line));
                    line.clear();
                } else {
                    line.push(byte);
                }
            }
        }
        count.line(&String::from_utf8_lossy(&line));
        Ok(count.counted())
    }
}

impl AddAssign for Tally {
    fn add_assign(&mut self, other: Self) {
        let Self { passed, failed, skipped } = other;
        self.passed += passed;
        self.failed += failed;
        self.skipped += skipped;
    }
}

impl fmt::Display for Tally {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { passed, failed, skipped } = self;
        write!(f, "{passed} passed, {failed} failed, {skipped} skipped")
    }
}

/// The line before the names of tests that failed, and what stands before each name.
const LIST: &str = "failures:";
const ITEM: &str = "    ";

/// What the lines so far say. For libtest a test that skipped itself has passed.
#[derive(Default)]
struct LineCount {
    results: Tally,
    skip_lines: u32,
    /// Of the results so far.
    failed: Vec<String>,
    /// The last list of names since then. One more list stands before it, of what these tests have printed.
    list: Vec<String>,
    in_list: bool,
}

impl LineCount {
    fn line(&mut self, line: &str) {
        if line == LIST {
            self.list.clear();
            self.in_list = true;
            return;
        }
        self.in_list &= match line.strip_prefix(ITEM) {
            Some(name) => {
                self.list.extend(self.in_list.then(|| name.to_owned()));
                true
            }
            None => false,
        };
        if let Some(result) = parse_result(line) {
            self.results += result;
            self.failed.append(&mut self.list);
        } else if is_skip(line) {
            self.skip_lines += 1;
        }
    }

    fn counted(self) -> Counted {
        let Self { results, skip_lines, failed, list: _, in_list: _ } = self;
        let skipped_themselves = skip_lines.min(results.passed);
        let tally = Tally {
            passed: results.passed - skipped_themselves,
            failed: results.failed,
            skipped: results.skipped + skipped_themselves,
        };
        Counted { tally, failed }
    }
}

/// `test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s`, coloured or not.
fn parse_result(line: &str) -> Option<Tally> {
    let (_, counts) = line.split_once("test result:")?;
    let words: Vec<_> = counts.split([' ', ';']).filter(|word| !word.is_empty()).collect();
    let count = |name: &str| {
        let at = words.iter().position(|word| *word == name)?;
        words.get(at.checked_sub(1)?)?.parse().ok()
    };
    Some(Tally { passed: count("passed")?, failed: count("failed")?, skipped: count("ignored")? })
}

/// `skipped: <reason>`, also behind the test's name, where libtest leaves the line open while the test runs.
pub(crate) fn is_skip(line: &str) -> bool {
    let own = match line.strip_prefix("test ") {
        Some(rest) => rest.split_once(" ... ").map_or(rest, |(_, own)| own),
        None => line,
    };
    own.trim_start().strip_prefix("skipped: ").is_some_and(|reason| !reason.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(output: &str) -> Counted {
        Counted::copy(output.as_bytes(), io::sink()).expect("no I/O")
    }

    fn count(output: &str) -> Tally {
        counted(output).tally
    }

    fn tally(passed: u32, failed: u32, skipped: u32) -> Tally {
        Tally { passed, failed, skipped }
    }

    #[test]
    fn result_lines_of_all_binaries_are_summed() {
        let output = "test result: ok. 12 passed; 0 failed; 1 ignored; 0 measured; 3 filtered out; finished in 0.00s\n\
                      test result: FAILED. 2 passed; 4 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s";
        assert_eq!(count(output), tally(14, 4, 1));
    }

    #[test]
    fn colours_do_not_hide_a_result() {
        let output =
            "test result: \u{1b}[32mok\u{1b}(B\u{1b}[m. 5 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(count(output), tally(5, 0, 0));
    }

    #[test]
    fn a_test_that_skipped_itself_has_not_passed() {
        let output = "test a ... ok\ntest b ... skipped: no Docker here\nok\n---- c stdout ----\nskipped: kernel too old\n\
                      test result: ok. 3 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        assert_eq!(count(output), tally(1, 0, 2));
    }

    #[test]
    fn other_talk_of_skipping_counts_nothing() {
        assert_eq!(count("we skipped: nothing\nskipped: \nskipped\ntest skipped: x ... ok\n"), tally(0, 0, 0));
    }

    #[test]
    fn a_line_may_come_in_pieces() {
        struct Pieces<'a>(&'a [u8]);
        impl Read for Pieces<'_> {
            fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
                let length = self.0.len().min(7).min(buffer.len());
                buffer[..length].copy_from_slice(&self.0[..length]);
                self.0 = &self.0[length..];
                Ok(length)
            }
        }
        let output = "test result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.00s\n";
        let mut copy = Vec::new();
        assert_eq!(Counted::copy(Pieces(output.as_bytes()), &mut copy).expect("no I/O").tally, tally(1, 0, 0));
        assert_eq!(copy, output.as_bytes());
    }

    #[test]
    fn tests_that_failed_are_known_by_name() {
        let output = "test a ... ok\ntest b::c ... FAILED\n\nsuccesses:\n\n---- a stdout ----\nfailures:\n    a\n\n\nsuccesses:\n    a\n\n\
                      failures:\n\n---- b::c stdout ----\n    not a name\nfailures:\n    not this one\nat all\n    nor this\n\n\n\
                      failures:\n    b::c\n    d\n\n\
                      test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 1.20s\n";
        let one = counted(output);
        assert_eq!((one.tally, one.failed), (tally(1, 2, 0), vec!["b::c".to_owned(), "d".to_owned()]));
        assert_eq!(counted(&output.repeat(2)).failed, ["b::c", "d", "b::c", "d"]);
    }

    #[test]
    fn a_process_that_died_names_nobody() {
        assert_eq!(counted("test a ... FAILED\ntest b ... "), Counted::default());
        assert_eq!(counted("failures:\n    a\n").failed, [""; 0]);
        let good = "failures:\n\ntest result: ok. 1 passed; 0 failed; 0 ignored; 0 measured; 0 filtered out\n";
        assert_eq!(counted(good).failed, [""; 0]);
    }

    #[test]
    fn the_last_line_reads_like_this() {
        assert_eq!(tally(1, 2, 3).to_string(), "1 passed, 2 failed, 3 skipped");
    }
}
