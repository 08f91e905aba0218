//! What this kernel's verifier makes of every program: that it takes it, and how many instructions it had to look at.
//!
//! The kernel gives up after a million, and another kernel's verifier may want several times as many for the same program. So
//! each program has a ceiling, far below, and what it costs is printed: `verified: <program> <instructions>`, which
//! `cargo xtask vm` makes a table of.

use std::io::Write as _;

use steer::dataplane::load;
use steer_tests::bpf::unloaded;
use steer_tests::skip::{self, Need};

/// Half of what the kernel allows.
const CEILING: u32 = 500_000;

#[test]
fn every_program_is_taken_and_none_is_near_what_the_kernel_allows() {
    if skip::without(&[Need::Root]) {
        return;
    }
    let verdicts: Vec<_> = unloaded(|bpf| {
        let mut verified =
            |name| load::verify(bpf, name).map(|()| instructions(bpf, name)).map_err(|error| format!("{error:#}"));
        load::program_names().map(|name| (name, verified(name))).collect()
    });
    let mut refused = Vec::new();
    for (name, verdict) in verdicts {
        match verdict {
            // Past libtest's capture: who runs all tests wants to see it too.
            Ok(Some(count)) => {
                drop(writeln!(std::io::stdout(), "verified: {name} {count}"));
                if count > CEILING {
                    refused.push(format!("{name} took the verifier {count} instructions, more than {CEILING}"));
                }
            }
            Ok(None) => refused.push(format!("{name}: the kernel does not say how many instructions it looked at")),
            Err(error) => refused.push(tail(&error)),
        }
    }
    assert!(refused.is_empty(), "{}", refused.join("\n\n"));
}

fn instructions(bpf: &aya::Ebpf, name: &str) -> Option<u32> {
    let program = bpf.program(name)?;
    program.info().ok()?.verified_instruction_count()
}

/// The verifier's log says at its end what was wrong.
fn tail(error: &str) -> String {
    const LINES: usize = 60;
    let lines: Vec<_> = error.lines().collect();
    let Some((first, rest)) = lines.split_first() else { return String::new() };
    [&[*first, "…"], &rest[rest.len().saturating_sub(LINES)..]].concat().join("\n")
}
