//! `cargo xtask bench`: steer beside what one would use without it, measured in one run on one machine.
//!
//! Every way leads from the same client to the same four containers (`ways`). They are measured in turn, round after round,
//! so that a machine that gets slower or faster in between does so for all of them; what is printed are medians over the
//! rounds (`table`). What the kernel does by itself (`kernel`) is measured behind them, and alone with `--only kernel`.
//!
//! It says what it measured and claims nothing: a target that is missed is printed as missed, and the
//! exit code tells only whether everything could be measured.

mod agent;
mod cost;
mod kernel;
mod measure;
mod results;
mod table;
mod ways;

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::{Parser, ValueEnum};
use nix::sys::utsname::uname;
use steer_tests::signals;
use steer_tests::skip::{self, Need};
use steer_tests::world::Bpffs;

use crate::measure::{Interrupted, Plan};
use crate::results::{Machine, Results};
use crate::ways::{Site, Way};

const INTERRUPTED: u8 = 130;
static STOP: AtomicBool = AtomicBool::new(false);

#[derive(Parser)]
#[command(about = "Measures steer beside no balancer, Docker's published port and HAProxy")]
struct Args {
    /// Two short rounds instead of five: a first look
    #[arg(long)]
    quick: bool,
    /// Rounds; every way is measured once in each [default: 5, or 2 with --quick]
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..=100))]
    rounds: Option<u32>,
    /// Measure only this way; may be given several times
    #[arg(long, value_enum)]
    way: Vec<Way>,
    /// Measure only this
    #[arg(long, value_enum, conflicts_with = "way")]
    only: Option<Part>,
    /// Write everything that was measured to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// A part of the benchmark that can be had alone.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Part {
    /// What the kernel does by itself
    Kernel,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(err) = signals::listen(|| STOP.store(true, Ordering::Relaxed)) {
        return fail(&format!("cannot listen to signals: {err}"));
    }
    let mut needs = vec![Need::Root, Need::Docker, Need::Steer];
    needs.extend(args.only.is_none().then_some(Need::Program("haproxy")));
    if let Some(missing) = skip::missing(&needs) {
        return fail(&format!("the benchmark cannot run here: {missing}"));
    }
    // Guards clean up while a panic of the harness unwinds; its words are on standard error by then.
    match std::panic::catch_unwind(|| run(&args)) {
        Ok(Ok(results)) => {
            print!("{}", table::render(&results));
            match args.json.as_deref().map(|file| write(file, &results)) {
                Some(Err(words)) => fail(&words),
                _ => ExitCode::SUCCESS,
            }
        }
        Ok(Err(Interrupted)) => {
            eprintln!("bench: interrupted; nothing is left behind");
            ExitCode::from(INTERRUPTED)
        }
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(args: &Args) -> Result<Results, Interrupted> {
    let _bpffs = Bpffs::new();
    let plan = if args.quick { Plan::QUICK } else { Plan::FULL };
    let rounds = args.rounds.unwrap_or(plan.rounds);
    let mut results = Results::new(machine(), plan, rounds);

    if args.only.is_none() {
        say("packet cost");
        results.packet = cost::measure();
        stop_if_asked()?;
    }

    say("Docker and four containers");
    let site = Site::build();
    results.machine.docker = site.docker_version();
    if args.only.is_none() {
        compare(args, &site, &plan, rounds, &mut results)?;
    }
    say("what the kernel does by itself");
    results.kernel = Some(kernel::measure(&site)?);
    say("");
    Ok(results)
}

/// The ways, round after round, and the agent.
fn compare(args: &Args, site: &Site, plan: &Plan, rounds: u32, results: &mut Results) -> Result<(), Interrupted> {
    let mut ways: Vec<Way> = Way::ALL.into_iter().filter(|way| args.way.is_empty() || args.way.contains(way)).collect();
    for round in 1..=rounds {
        for way in &ways {
            say(&format!("round {round} of {rounds}: {way}"));
            let sample = way.measure(site, plan)?;
            results.add(*way, sample);
        }
        // Another one goes first next time: none always comes after the same.
        ways.rotate_left(1);
    }
    say("the agent: from event to map, and idle");
    results.agent = Some(agent::measure(site, plan)?);
    Ok(())
}

fn machine() -> Machine {
    let kernel = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Machine {
        kernel,
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        cpu: model.map(|(_, model)| model.to_owned()).unwrap_or_default(),
        docker: String::new(),
    }
}

/// What is being measured right now, on standard error: in place on a terminal.
fn say(what: &str) {
    let mut err = std::io::stderr().lock();
    let written = match (err.is_terminal(), what.is_empty()) {
        (true, _) => write!(err, "\r\x1b[K{what}").and_then(|()| err.flush()),
        (false, true) => Ok(()),
        (false, false) => writeln!(err, "{what}"),
    };
    drop(written);
}

fn stop_if_asked() -> Result<(), Interrupted> {
    if STOP.load(Ordering::Relaxed) { Err(Interrupted) } else { Ok(()) }
}

fn write(file: &Path, results: &Results) -> Result<(), String> {
    let text = serde_json::to_string_pretty(results).map_err(|err| format!("the results as JSON: {err}"))?;
    std::fs::write(file, text + "\n").map_err(|err| format!("write {}: {err}", file.display()))
}

fn fail(words: &str) -> ExitCode {
    eprintln!("bench: failed: {words}");
    ExitCode::FAILURE
}
