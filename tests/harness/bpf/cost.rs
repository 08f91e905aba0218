//! What a packet costs, in nanoseconds of program time as the kernel measures a test run.
//!
//! A run that is repeated inside the kernel goes on with the packet its predecessor left, so a rewritten packet would be no
//! frontend's any more from the second run on: that measures nothing (Katran's tester has the same trap). So [`cost`] makes one
//! system call per run and hands in the packet anew, in turn with an empty program whose median is taken off. [`mean`] repeats
//! inside the kernel, for packets that rewriting does not change (a backend at the frontend's own address), without the cold
//! start that every system call brings.

use std::time::Duration;

use serde::Serialize;

use super::{Bench, Hook, Program};

/// What one kind of packet costs.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Cost {
    /// Median, less the empty program's.
    pub median_ns: f64,
    /// Nine of ten runs take at most this, less the empty program's median.
    pub p90_ns: f64,
    pub runs: u32,
}

/// Runs a program `runs` times, each time on the frame that `prepare` makes (which may write maps first).
pub fn cost(
    bench: &mut Bench,
    program: Program,
    runs: u32,
    mut prepare: impl FnMut(&mut Bench, u32) -> Vec<u8>,
) -> Cost {
    let empty = Program::Empty(match program {
        Program::Uplink(hook) | Program::Empty(hook) => hook,
        Program::Backend(_) => Hook::Tc,
    });
    let mut ours = Vec::with_capacity(runs as usize);
    let mut idle = Vec::with_capacity(runs as usize);
    for run in 0..runs {
        let frame = prepare(bench, run);
        idle.push(nanos(bench.run(empty, &frame).duration));
        ours.push(nanos(bench.run(program, &frame).duration));
    }
    let floor = quantile(&mut idle, 0.5);
    Cost { median_ns: quantile(&mut ours, 0.5) - floor, p90_ns: quantile(&mut ours, 0.9) - floor, runs }
}

/// Mean of many runs on a frame that the program leaves as it is, less the empty program's: of five rounds the best one.
pub fn mean(bench: &mut Bench, program: Program, frame: &[u8]) -> f64 {
    const REPEAT: u32 = 1_000_000;
    let after = bench.run(program, frame);
    assert_eq!(after.bytes, frame, "{program:?} changes this frame: repeated runs would be of another one");
    let hook = if let Program::Uplink(hook) = program { hook } else { Hook::Tc };
    let round = |program| {
        let ran = bench.try_run(program, frame, REPEAT).unwrap_or_else(|error| panic!("run {program:?}: {error}"));
        nanos(ran.duration)
    };
    let best = |program| (0..5).map(|_| round(program)).fold(f64::INFINITY, f64::min);
    best(program) - best(Program::Empty(hook))
}

fn nanos(duration: Duration) -> f64 {
    duration.as_nanos() as f64
}

fn quantile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    let place = ((values.len() as f64 - 1.0) * share).round();
    values.get(place as usize).copied().unwrap_or(f64::NAN)
}
