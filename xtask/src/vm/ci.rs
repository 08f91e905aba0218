//! The machines of `cargo xtask ci`: what every run can afford, or what somebody asks for by name.

use std::ffi::OsStr;

use anyhow::{Context, Result, bail};

use super::{Args, disk, run, suite::Suite};

/// What every run can afford: the oldest kernel, whose verifier is the strictest and which has no tcx, and those tests that tell
/// most of a kernel.
const SUITE: Suite = Suite::Bookworm;
const TESTS: [&str; 2] = ["verifier", "statics"];
/// Asks for more: every test, in the system of this name or in `all`.
const VARIABLE: &str = "STEER_CI_VM";
const ALL: &str = "all";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Wish {
    None,
    One(Suite),
    All,
}

impl Wish {
    fn of(value: Option<&OsStr>) -> Result<Self> {
        let Some(value) = value.filter(|value| !value.is_empty()) else { return Ok(Self::None) };
        if value == ALL {
            return Ok(Self::All);
        }
        match Suite::ALL.into_iter().find(|suite| value == suite.name()) {
            Some(suite) => Ok(Self::One(suite)),
            None => {
                let names = Suite::ALL.map(Suite::name).join(", ");
                bail!("{VARIABLE}={}: it can be {ALL}, or one of {names}", value.display())
            }
        }
    }

    fn args(self) -> Args {
        let (suites, tests) = match self {
            Self::None => (vec![SUITE], TESTS.map(str::to_owned).to_vec()),
            Self::One(suite) => (vec![suite], Vec::new()),
            Self::All => (Vec::new(), Vec::new()),
        };
        Args { suites, tests, ..Args::default() }
    }

    /// No root disk can be made on this system: CI does without a machine, unless somebody has asked for one by name.
    fn without_machine(self, why: anyhow::Error) -> Result<bool> {
        if self != Self::None {
            return Err(why).with_context(|| format!("{VARIABLE} asks for machines, and none can be made here"));
        }
        println!("skipped: the virtual machine: {why:#}");
        Ok(true)
    }
}

/// Like [`run`], of what CI can afford, or of what is asked for by [`VARIABLE`].
pub(crate) fn run_for_ci() -> Result<bool> {
    let wish = Wish::of(std::env::var_os(VARIABLE).as_deref())?;
    match disk::mirror_for_disks() {
        Ok(_) => run(&wish.args()),
        Err(error) => wish.without_machine(error),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_system_is_asked_for_by_its_name_and_all_of_them_by_one_word() {
        for (value, expected) in [
            (None, Some(Wish::None)),
            (Some(""), Some(Wish::None)),
            (Some("all"), Some(Wish::All)),
            (Some("trixie"), Some(Wish::One(Suite::Trixie))),
            (Some("ALL"), None),
            (Some("bullseye"), None),
            (Some("trixie,sid"), None),
        ] {
            assert_eq!(Wish::of(value.map(OsStr::new)).ok(), expected, "{value:?}");
        }
        let error = Wish::of(Some(OsStr::new("potato"))).unwrap_err().to_string();
        assert_eq!(error, "STEER_CI_VM=potato: it can be all, or one of bookworm, trixie, sid");
    }

    #[test]
    fn who_asks_for_a_system_gets_every_test_in_it() {
        let args = |wish: Wish| (wish.args().suites, wish.args().tests.len());
        assert_eq!(args(Wish::None), (vec![SUITE], TESTS.len()));
        assert_eq!(args(Wish::One(Suite::Sid)), (vec![Suite::Sid], 0));
        assert_eq!(args(Wish::All), (Vec::new(), 0));
    }

    #[test]
    fn machines_that_were_asked_for_are_not_left_out_in_silence() {
        let why = || anyhow::anyhow!("no mirror");
        assert!(Wish::None.without_machine(why()).unwrap());
        for wish in [Wish::All, Wish::One(Suite::Sid)] {
            let error = format!("{:#}", wish.without_machine(why()).unwrap_err());
            assert!(error.contains(VARIABLE) && error.contains("no mirror"), "{error}");
        }
    }

    #[test]
    fn the_workflow_has_a_job_for_each_system() {
        let workflow = include_str!("../../../.github/workflows/ci.yml");
        let names = Suite::ALL.map(Suite::name).join(", ");
        assert!(workflow.contains(&format!("machine: [{names}]")) && workflow.contains(VARIABLE), "{workflow}");
    }
}
