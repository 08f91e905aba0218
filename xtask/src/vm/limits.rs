//! How long tests may take in a machine.

use std::{fmt, time::Duration};

use super::{Args, qemu::Accelerator};

/// In seconds: of one test binary, and of all that run in one system, on one machine and on several.
const TEST: u64 = 900;
const MACHINE: u64 = 5400;
/// In software: much of a test's time is waiting, so four times as long, and not ten. The machine's is what a job of CI, which may
/// run for six hours in all, can spare.
const EMULATED_TEST: u64 = 3600;
const EMULATED_MACHINE: u64 = 14_400;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// Of one test binary.
    pub(crate) test: Duration,
    /// Of all of them together in one system.
    pub(crate) machine: Duration,
}

impl Limits {
    /// What was asked for counts as it is, whatever carries the machine.
    pub(crate) fn of(args: &Args, accelerator: Accelerator) -> Self {
        let (test, machine) = match accelerator {
            Accelerator::Kvm => (TEST, MACHINE),
            Accelerator::Tcg => (EMULATED_TEST, EMULATED_MACHINE),
        };
        Self {
            test: Duration::from_secs(args.limit.unwrap_or(test)),
            machine: Duration::from_secs(args.machine_limit.unwrap_or(machine)),
        }
    }

    /// Of a test binary, in a system whose tests have run for so long; `None`: its time is over.
    pub(crate) fn left(self, elapsed: Duration) -> Option<Duration> {
        let left = self.machine.saturating_sub(elapsed);
        (!left.is_zero()).then(|| left.min(self.test))
    }
}

impl fmt::Display for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { test, machine } = self;
        write!(f, "{} s a test binary, {} s in all", test.as_secs(), machine.as_secs())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn limits(limit: Option<u64>, machine_limit: Option<u64>, accelerator: Accelerator) -> (u64, u64) {
        let args = Args { limit, machine_limit, ..Args::default() };
        let Limits { test, machine } = Limits::of(&args, accelerator);
        (test.as_secs(), machine.as_secs())
    }

    #[test]
    fn an_emulated_machine_has_more_time_unless_it_was_told_how_much() {
        assert_eq!(limits(None, None, Accelerator::Kvm), (900, 5400));
        assert_eq!(limits(None, None, Accelerator::Tcg), (3600, 14_400));
        for accelerator in [Accelerator::Kvm, Accelerator::Tcg] {
            assert_eq!(limits(Some(60), Some(120), accelerator), (60, 120));
        }
        assert_eq!(limits(Some(60), None, Accelerator::Tcg), (60, 14_400));
        assert_eq!(limits(None, Some(120), Accelerator::Tcg), (3600, 120));
    }

    #[test]
    fn the_last_binary_has_what_is_left_of_the_machines_time() {
        let seconds = Duration::from_secs;
        let limits = Limits { test: seconds(10), machine: seconds(100) };
        for (elapsed, left) in [(0, Some(10)), (89, Some(10)), (95, Some(5)), (100, None), (101, None)] {
            assert_eq!(limits.left(seconds(elapsed)), left.map(seconds), "after {elapsed} s");
        }
    }

    #[test]
    fn the_help_names_the_defaults() {
        use clap::CommandFactory as _;

        #[derive(clap::Parser)]
        struct Cli {
            #[command(flatten)]
            _args: Args,
        }
        let help = Cli::command().render_long_help().to_string().split_whitespace().collect::<Vec<_>>().join(" ");
        for words in [
            format!("[default: {TEST}, emulated {EMULATED_TEST}"),
            format!("[default: {MACHINE}, emulated {EMULATED_MACHINE}]"),
        ] {
            assert!(help.contains(&words), "{words} in {help}");
        }
    }
}
