//! Reading single tests' results out of what libtest prints.

use serde::{Deserialize, Serialize};

use crate::tally::{self, Tally};

/// How one test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Verdict {
    Passed,
    Failed,
    Skipped,
    /// It had begun when its process ended, or its time was up.
    Unfinished,
}

impl Verdict {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Passed => "ok",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
            Self::Unfinished => "NO END",
        }
    }

    pub(crate) fn is_good(self) -> bool {
        matches!(self, Self::Passed | Self::Skipped)
    }
}

/// Tests in the order in which they ran.
pub(crate) fn tests(output: &str) -> Vec<(String, Verdict)> {
    let mut tests: Vec<(String, Verdict)> = Vec::new();
    let mut skipped = false;
    for line in output.lines() {
        if line.trim() == "successes:" || line.trim() == "failures:" {
            break;
        }
        let (begun, rest) = match begin(line) {
            Some((name, rest)) => {
                tests.push((name.to_owned(), Verdict::Unfinished));
                skipped = false;
                (true, rest)
            }
            None => (false, line),
        };
        skipped |= if begun { tally::is_skip(rest) } else { tally::is_skip(line) };
        if let (Some((_, verdict @ Verdict::Unfinished)), Some(word)) = (tests.last_mut(), end(rest)) {
            *verdict = if skipped && word == Verdict::Passed { Verdict::Skipped } else { word };
        }
    }
    let failed = failures(output);
    for (name, verdict) in &mut tests {
        // What a child printed may stand in the way of the word.
        if *verdict == Verdict::Unfinished && output.contains("test result:") {
            *verdict = if failed.contains(&&**name) { Verdict::Failed } else { Verdict::Passed };
        }
    }
    tests
}

/// `test name ... `, and what follows in the line.
fn begin(line: &str) -> Option<(&str, &str)> {
    let (name, rest) = line.strip_prefix("test ")?.split_once(" ... ")?;
    (!name.contains(' ')).then_some((name, rest))
}

/// The word at the end of a test.
fn end(rest: &str) -> Option<Verdict> {
    match rest.trim() {
        "ok" => Some(Verdict::Passed),
        "FAILED" => Some(Verdict::Failed),
        rest if rest == "ignored" || rest.starts_with("ignored, ") => Some(Verdict::Skipped),
        _ => None,
    }
}

/// Names in the list that libtest ends with.
fn failures(output: &str) -> Vec<&str> {
    let Some((_, list)) = output.rsplit_once("\nfailures:\n") else { return Vec::new() };
    list.lines().map_while(|line| line.strip_prefix("    ")).collect()
}

/// `verified: <program> <instructions>`, wherever in a line: libtest may have left the line open.
pub(crate) fn verified(output: &str) -> Vec<(String, u32)> {
    let told = output.lines().filter_map(|line| line.split_once("verified: "));
    let mut verified = Vec::new();
    for (_, rest) in told {
        let mut words = rest.split_whitespace();
        if let (Some(name), Some(Ok(count)), None) = (words.next(), words.next().map(str::parse), words.next()) {
            verified.push((name.to_owned(), count));
        }
    }
    verified
}

/// Counted, with a test that did not end as a failed one.
pub(crate) fn tally(tests: &[(String, Verdict)]) -> Tally {
    let count = |good: fn(Verdict) -> bool| {
        u32::try_from(tests.iter().filter(|(_, verdict)| good(*verdict)).count()).unwrap_or(u32::MAX)
    };
    Tally {
        passed: count(|verdict| verdict == Verdict::Passed),
        failed: count(|verdict| !verdict.is_good()),
        skipped: count(|verdict| verdict == Verdict::Skipped),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(output: &str) -> Vec<(String, &'static str)> {
        tests(output).into_iter().map(|(name, verdict)| (name, verdict.word())).collect()
    }

    fn pair(name: &str, word: &'static str) -> (String, &'static str) {
        (name.to_owned(), word)
    }

    #[test]
    fn each_test_has_its_word() {
        let output = "\nrunning 4 tests\ntest a::one ... ok\ntest two ... FAILED\ntest three ... ignored, slow\n\
                      test four ... skipped: no Docker (four)\nok\n\nsuccesses:\n\ntest five ... ok\n";
        let expected = [pair("a::one", "ok"), pair("two", "FAILED"), pair("three", "skipped"), pair("four", "skipped")];
        assert_eq!(words(output), expected);
        assert_eq!(tally(&tests(output)), Tally { passed: 1, failed: 1, skipped: 2 });
    }

    #[test]
    fn what_a_child_printed_does_not_hide_a_result() {
        let output = "test one ... warning from a child\nok\ntest two ... a child's unfinished lineok\ntest three ... xFAILED\n\
                      \nfailures:\n\n---- three ----\n\nfailures:\n    three\n\ntest result: FAILED. 2 passed; 1 failed;\n";
        assert_eq!(words(output), [pair("one", "ok"), pair("two", "ok"), pair("three", "FAILED")]);
    }

    #[test]
    fn what_the_verifier_looked_at_is_read() {
        let output = "test a ... verified: uplink_xdp 12345\nverified: replay 7\nverified: it is not\nok\n";
        assert_eq!(verified(output), [("uplink_xdp".to_owned(), 12345), ("replay".to_owned(), 7)]);
    }

    #[test]
    fn a_test_that_was_cut_off_has_no_end_and_counts_as_failed() {
        let output = "test one ... ok\ntest two ... ";
        assert_eq!(words(output), [pair("one", "ok"), pair("two", "NO END")]);
        assert_eq!(tally(&tests(output)).failed, 1);
    }
}
