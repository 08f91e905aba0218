//! A second chance for tests that failed, for whoever asks for it (`cargo xtask ci`, `cargo xtask test --retry`).
//!
//! Problem: tests under load have bounds on times, and a busy runner of two cores misses one now and then: one test of hundreds, and a
//! whole run is worth nothing. Approach: such a test runs once more, alone. Good then, it is called flaky, by name, in the run's last
//! lines: nothing is hidden, and both outputs are in the log. Failing again, it has failed. Many at once are no chance but a fault, and
//! so is a process that died without saying which test it was.

use std::process::ExitStatus;

use crate::tally::{Counted, Tally};

/// Of one binary: if more have failed, none runs again. And of a whole run: if more are flaky, it is not good.
pub(crate) const MOST: usize = 3;

/// How a process that ran tests ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Exit {
    Good,
    /// As libtest ends when a test has failed.
    Failed,
    Died,
}

impl Exit {
    pub(crate) fn of(status: ExitStatus) -> Self {
        match status.code() {
            Some(0) => Self::Good,
            Some(101) => Self::Failed,
            _ => Self::Died,
        }
    }
}

/// What one process that ran tests came to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Judgement {
    /// A flaky test has passed.
    pub(crate) tally: Tally,
    pub(crate) passed: bool,
    pub(crate) flaky: Vec<String>,
}

impl Judgement {
    /// Without a second chance.
    pub(crate) fn strict(counted: &Counted, exit: Exit) -> Self {
        Self { tally: counted.tally, passed: exit == Exit::Good, flaky: Vec::new() }
    }

    /// With one; `again` runs a test alone, and tells whether it passed.
    pub(crate) fn lenient(counted: &Counted, exit: Exit, mut again: impl FnMut(&str) -> bool) -> Self {
        let mut judgement = Self::strict(counted, exit);
        for name in candidates(counted, exit) {
            if again(name) {
                judgement.flaky.push(name.clone());
                judgement.tally.failed -= 1;
                judgement.tally.passed += 1;
                judgement.passed = judgement.tally.failed == 0;
            }
        }
        judgement
    }
}

/// Tests that may run again.
fn candidates(Counted { tally, failed }: &Counted, exit: Exit) -> &[String] {
    let all_are_known = u32::try_from(failed.len()) == Ok(tally.failed);
    if exit == Exit::Failed && all_are_known && failed.len() <= MOST { failed } else { &[] }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn counted(failed: u32, names: &[&str]) -> Counted {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Counted { tally: Tally { passed: 10, failed, skipped: 1 }, failed: names }
    }

    /// The judgement when these are good the second time, and what ran a second time.
    fn judged(counted: &Counted, exit: Exit, good: &[&str]) -> (Judgement, Vec<String>) {
        let mut ran = Vec::new();
        let judgement = Judgement::lenient(counted, exit, |name| {
            ran.push(name.to_owned());
            good.contains(&name)
        });
        (judgement, ran)
    }

    #[test]
    fn a_test_that_is_good_the_second_time_is_flaky_and_counts_once_as_passed() {
        let (judgement, ran) = judged(&counted(2, &["a", "b"]), Exit::Failed, &["a", "b"]);
        assert_eq!(ran, ["a", "b"]);
        let tally = Tally { passed: 12, failed: 0, skipped: 1 };
        assert_eq!(judgement, Judgement { tally, passed: true, flaky: vec!["a".into(), "b".into()] });
    }

    #[test]
    fn a_test_that_fails_again_has_failed() {
        for (good, flaky) in [("a", "a"), ("b", "b")] {
            let (judgement, ran) = judged(&counted(2, &["a", "b"]), Exit::Failed, &[good]);
            assert_eq!(ran, ["a", "b"]);
            let tally = Tally { passed: 11, failed: 1, skipped: 1 };
            assert_eq!(judgement, Judgement { tally, passed: false, flaky: vec![flaky.into()] });
        }
    }

    #[test]
    fn many_at_once_are_a_fault_and_so_is_a_process_that_died() {
        let all = ["a", "b", "c", "d"];
        for (fault, exit) in [
            (counted(4, &all), Exit::Failed),
            (counted(0, &[]), Exit::Failed),
            (counted(2, &["a"]), Exit::Failed),
            (counted(0, &["a"]), Exit::Failed),
            (counted(0, &[]), Exit::Died),
            (counted(1, &["a"]), Exit::Died),
        ] {
            let (judgement, ran) = judged(&fault, exit, &all);
            assert!(ran.is_empty(), "{fault:?} {exit:?}");
            assert_eq!(judgement, Judgement { tally: fault.tally, passed: false, flaky: Vec::new() });
        }
        assert_eq!(judged(&counted(3, &all[..3]), Exit::Failed, &all).1.len(), MOST);
    }

    #[test]
    fn what_passed_runs_once() {
        let (judgement, ran) = judged(&counted(0, &[]), Exit::Good, &[]);
        assert!(judgement.passed && ran.is_empty());
    }
}
