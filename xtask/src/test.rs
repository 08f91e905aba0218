//! `cargo xtask test`: every test tier, cheapest first, and at the end one line that sums them up.
//!
//! The root tiers are run as plain binaries, not through `cargo test`: only the tests themselves run as root, cargo never does.

use std::{
    ffi::{OsStr, OsString},
    io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use cargo_metadata::{Artifact, MetadataCommand, Package, TargetKind};
use clap::ValueEnum;

use crate::{
    cmd::{self, Privilege},
    programs::{self, PACKAGE, Programs},
    tally::Tally,
};

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Tier {
    /// Pure code, no root
    Units,
    /// One packet through the loaded BPF programs
    Packet,
    /// Real TCP between network namespaces
    Netns,
    /// A real dockerd and real containers
    Docker,
    /// Several machines: only `cargo xtask vm` has them
    #[value(skip)]
    Nodes,
}

#[derive(clap::Args)]
pub(crate) struct Args {
    /// Run only tests whose name contains this
    filter: Option<String>,
    /// Run only this tier; may be given several times
    #[arg(long, value_enum)]
    tier: Vec<Tier>,
    /// Leave out the tiers that need root
    #[arg(long)]
    no_root: bool,
    /// A test that would be skipped fails: this machine must have all that tests need
    #[arg(long)]
    no_skip: bool,
    /// How many tests of a root tier run at once
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Show what the tests of the root tiers print while they run, not behind them
    #[arg(long)]
    nocapture: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self { filter: None, tier: Vec::new(), no_root: false, no_skip: false, jobs: 1, nocapture: false }
    }
}

impl Args {
    /// Every test, and none may be skipped.
    pub(crate) fn without_skips() -> Self {
        Self { no_skip: true, ..Self::default() }
    }
}

/// Tells the harness that a test may not be skipped (`tests/harness/skip.rs`).
pub(crate) const NO_SKIP: &str = "STEER_TESTS_NO_SKIP";

/// How all of it ended.
#[derive(Default)]
pub(crate) struct Outcome {
    tally: Tally,
    /// What was not good, one sentence each.
    problems: Vec<String>,
}

// === impl Outcome ===

impl Outcome {
    pub(crate) fn is_good(&self) -> bool {
        self.problems.is_empty() && self.tally.failed == 0
    }

    /// Nothing may be printed behind the line with the numbers.
    pub(crate) fn print(&self) {
        let Self { tally, problems } = self;
        for problem in problems {
            println!("test: {problem}");
        }
        println!("{tally}");
    }

    fn add(&mut self, run: Result<Run>) {
        match run {
            Ok(Run { what, tally, passed }) => {
                self.tally += tally;
                if !passed {
                    // A binary that died has printed no result: it must not look like "0 failed".
                    self.tally.failed += u32::from(tally.failed == 0);
                    self.problems.push(format!("{what} failed"));
                }
            }
            Err(error) => self.problems.push(format!("{error:#}")),
        }
    }
}

/// One process that ran tests.
struct Run {
    what: String,
    tally: Tally,
    passed: bool,
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let wants = |tier: Tier| args.tier.is_empty() || args.tier.contains(&tier);
    let mut outcome = Outcome::default();
    if wants(Tier::Units) {
        println!("== test: units");
        let mut cargo = cmd::cargo(["test", "--no-fail-fast"]);
        outcome.add(count("units", cargo.args(&args.filter)));
    }
    let root_tiers: Vec<_> =
        [Tier::Packet, Tier::Netns, Tier::Docker].into_iter().filter(|tier| wants(*tier)).collect();
    if !root_tiers.is_empty() {
        match (args.no_root, Privilege::of_this_process()) {
            (true, _) => println!("skipped: the tiers {root_tiers:?} need root and --no-root was given"),
            (false, Privilege::None) => outcome.problems.push(format!(
                "the tiers {root_tiers:?} were skipped: they need root, and this is neither root nor has a sudo that asks for \
                 no password (--no-root leaves them out)"
            )),
            (false, privilege) => {
                if let Err(error) = run_root_tiers(args, &root_tiers, privilege, &mut outcome) {
                    outcome.problems.push(format!("{error:#}"));
                }
            }
        }
    }
    if let (Some(filter), 0, true) = (&args.filter, outcome.tally.total(), outcome.problems.is_empty()) {
        outcome.problems.push(format!("no test's name contains {filter:?}"));
    }
    Ok(outcome)
}

fn run_root_tiers(args: &Args, tiers: &[Tier], privilege: Privilege, outcome: &mut Outcome) -> Result<()> {
    println!("== test: building for {tiers:?}");
    let programs = Programs::build()?;
    let tests = programs::build(cmd::cargo(["test", "--no-run", "-p", PACKAGE]))?;
    let mut vars = programs.vars()?.to_vec();
    if args.no_skip {
        vars.push((NO_SKIP, "1".into()));
    }

    let package = test_package()?;
    let directory = package.manifest_path.parent().map_or_else(cmd::root, |dir| dir.as_std_path().to_path_buf());
    let (on_nodes, mut binaries): (Vec<_>, Vec<_>) =
        binaries(&tests, &package).into_iter().partition(|(tier, ..)| *tier == Tier::Nodes);
    binaries.retain(|(tier, ..)| tiers.contains(tier));
    for (_, name, _) in on_nodes {
        println!("== test: {name} needs several machines: `cargo xtask vm --test {name}`");
    }
    for (tier, name, path) in binaries {
        println!("== test: {tier:?}: {name}");
        let mut command = test_command(args, privilege, &path, &vars);
        outcome.add(count(&format!("{PACKAGE} {name}"), command.current_dir(&directory)));
    }
    Ok(())
}

/// What [`PACKAGE`]'s tests were built into, cheapest tier first: tier, name, and where it is.
pub(crate) fn binaries(tests: &[Artifact], package: &Package) -> Vec<(Tier, String, PathBuf)> {
    let mut binaries: Vec<_> = tests
        .iter()
        .filter(|artifact| artifact.profile.test)
        .filter_map(|artifact| {
            let is_test = artifact.target.kind.contains(&TargetKind::Test);
            let tier = if is_test { tier_of(&artifact.target.name, &package.metadata) } else { Tier::Packet };
            Some((tier, artifact.target.name.clone(), artifact.executable.clone()?.into_std_path_buf()))
        })
        .collect();
    binaries.sort();
    binaries
}

fn test_command(args: &Args, privilege: Privilege, path: &Path, vars: &[(&str, OsString)]) -> Command {
    let mut command = privilege.command(path.as_os_str(), vars);
    command.arg(format!("--test-threads={}", args.jobs)).args(&args.filter);
    // Without either, what a skipped test says would stay hidden.
    command.arg(OsStr::new(if args.nocapture { "--nocapture" } else { "--show-output" }));
    command
}

/// Runs tests with their output shown and counted.
fn count(what: &str, command: &mut Command) -> Result<Run> {
    let named = || format!("`{}`", cmd::describe(command));
    let context = named();
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {context}"))?;
    let stdout = child.stdout.take().with_context(|| format!("no output of {context}"))?;
    let tally = Tally::copy(stdout, io::stdout().lock()).with_context(|| format!("reading the output of {context}"))?;
    let status = child.wait().with_context(|| format!("waiting for {context}"))?;
    Ok(Run { what: what.to_owned(), tally, passed: status.success() })
}

pub(crate) fn test_package() -> Result<Package> {
    let metadata = MetadataCommand::new()
        .manifest_path(cmd::root().join("Cargo.toml"))
        .no_deps()
        .exec()
        .context("`cargo metadata --no-deps` failed")?;
    let package = metadata.packages.into_iter().find(|package| package.name.as_str() == PACKAGE);
    package.with_context(|| format!("the workspace has no package called {PACKAGE}"))
}

/// The tier of a test file: as `[package.metadata.tiers]` in `tests/Cargo.toml` says (`docker = ["rolling", ...]`), else by its
/// name: `packet*`, `docker*`, `nodes*`, and any other needs network namespaces.
fn tier_of(name: &str, metadata: &serde_json::Value) -> Tier {
    let says = |tier: &str| {
        let names = metadata.get("tiers").and_then(|tiers| tiers.get(tier)).and_then(|names| names.as_array());
        names.is_some_and(|names| names.iter().any(|listed| listed == name))
    };
    let tiers = [(Tier::Packet, "packet"), (Tier::Netns, "netns"), (Tier::Docker, "docker"), (Tier::Nodes, "nodes")];
    let listed = tiers.iter().find(|(_, word)| says(word));
    let named = || tiers.iter().find(|(_, word)| name.starts_with(word));
    listed.or_else(named).map_or(Tier::Netns, |(tier, _)| *tier)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_test_file_has_the_tier_it_is_listed_in_or_named_after() {
        let metadata = serde_json::json!({"tiers": {"docker": ["rolling"], "netns": ["packet_loss"]}});
        for (name, tier) in [
            ("packet", Tier::Packet),
            ("packet_loss", Tier::Netns),
            ("steering", Tier::Netns),
            ("docker_events", Tier::Docker),
            ("nodes", Tier::Nodes),
            ("rolling", Tier::Docker),
        ] {
            assert_eq!(tier_of(name, &metadata), tier, "{name}");
        }
        assert_eq!(tier_of("rolling", &serde_json::Value::Null), Tier::Netns);
    }

    #[test]
    fn the_harness_knows_the_word_for_no_skipping() {
        assert!(include_str!("../../tests/harness/skip.rs").contains(&format!("\"{NO_SKIP}\"")));
    }

    #[test]
    fn a_process_that_died_without_a_result_counts_as_a_failure() {
        let mut outcome = Outcome::default();
        outcome.add(Ok(Run { what: "x".into(), tally: Tally::default(), passed: false }));
        assert_eq!(outcome.tally.failed, 1);
        assert!(!outcome.is_good());
    }
}
