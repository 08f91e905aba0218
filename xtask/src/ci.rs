//! `cargo xtask ci`: what CI runs, and the same words a developer types: setup, check, test, one virtual machine.

use std::time::Instant;

use anyhow::Result;

use crate::{check, setup, test, vm};

/// True when all of it is good. Check and test both run, so that one run of CI shows all there is to mend.
pub(crate) fn run() -> Result<bool> {
    let mut steps = Vec::new();

    println!("== setup");
    let started = Instant::now();
    if !setup::run()? {
        return Ok(false);
    }
    steps.push(("setup", started.elapsed(), true));

    let started = Instant::now();
    let clean = check::run(&check::Args::for_ci())?;
    steps.push(("check", started.elapsed(), clean));

    let started = Instant::now();
    // Setup has just installed what tests need, so none has a reason to be skipped.
    let outcome = test::run(&test::Args::for_ci())?;
    steps.push(("test", started.elapsed(), outcome.is_good()));

    let started = Instant::now();
    let machine = vm::run_for_ci().unwrap_or_else(|error| {
        println!("vm: {error:#}");
        false
    });
    steps.push(("vm", started.elapsed(), machine));

    println!("== ci");
    for (step, took, good) in &steps {
        println!("  {step:<6} {:>6.1} s  {}", took.as_secs_f64(), if *good { "ok" } else { "FAILED" });
    }
    outcome.print();
    Ok(steps.iter().all(|(_, _, good)| *good))
}
