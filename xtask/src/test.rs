//! `cargo xtask test`: every test tier, cheapest first, and at the end one line that sums them up.
//!
//! The root tiers are run as plain binaries, not through `cargo test`: only the tests themselves run as root, cargo never does.

use std::{
    ffi::OsString,
    fmt, io,
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result};
use cargo_metadata::{Artifact, MetadataCommand, Package, TargetKind};
use clap::ValueEnum;

use crate::{
    cmd::{self, Privilege},
    programs::{self, PACKAGE, Programs, TestBuild},
    retry::{self, Exit, Judgement},
    tally::{Counted, Tally},
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
    /// How many tests of a root tier run at once, where its file says that they may (`side-by-side` in tests/Cargo.toml); others
    /// measure times under load, and run one after the other
    #[arg(long, default_value_t = 1)]
    jobs: usize,
    /// Show what the tests of the root tiers print while they run, not behind them
    #[arg(long)]
    nocapture: bool,
    /// A test of a root tier that failed runs once more, alone. Good then, it is named as flaky, and does not fail the run; if more
    /// than three of a binary have failed, none runs again
    #[arg(long)]
    retry: bool,
    /// Root tiers are built as for virtual machines, static and optimised: it takes longer, and `cargo xtask vm` then has them
    #[arg(long)]
    portable: bool,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            filter: None,
            tier: Vec::new(),
            no_root: false,
            no_skip: false,
            jobs: 1,
            nocapture: false,
            retry: false,
            portable: false,
        }
    }
}

impl Args {
    /// Every test, none may be skipped, and what is built serves the virtual machine as well.
    pub(crate) fn for_ci() -> Self {
        Self { no_skip: true, retry: true, jobs: SIDE_BY_SIDE, portable: true, ..Self::default() }
    }
}

/// Most of such a test's time is spent waiting for Docker.
const SIDE_BY_SIDE: usize = 2;

/// Tells the harness that a test may not be skipped (`tests/harness/skip.rs`).
pub(crate) const NO_SKIP: &str = "STEER_TESTS_NO_SKIP";

/// How all of it ended.
#[derive(Default)]
pub(crate) struct Outcome {
    tally: Tally,
    /// What was not good, one sentence each.
    problems: Vec<String>,
    /// Tests that were good the second time only, behind their binary's name.
    flaky: Vec<String>,
}

impl Outcome {
    pub(crate) fn is_good(&self) -> bool {
        self.problems.is_empty() && self.tally.failed == 0 && self.flaky.len() <= retry::MOST
    }

    /// Nothing may be printed behind the line with the numbers.
    pub(crate) fn print(&self) {
        print!("{self}");
    }

    fn add(&mut self, name: &str, judgement: Result<Judgement>) {
        match judgement {
            Ok(Judgement { tally, passed, flaky }) => {
                self.tally += tally;
                self.flaky.extend(flaky.into_iter().map(|test| format!("{name} {test}")));
                if !passed {
                    // A binary that died has printed no result: it must not look like "0 failed".
                    self.tally.failed += u32::from(tally.failed == 0);
                    self.problems.push(format!("{name} failed"));
                }
            }
            Err(error) => self.problems.push(format!("{error:#}")),
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { tally, problems, flaky } = self;
        problems.iter().try_for_each(|problem| writeln!(f, "test: {problem}"))?;
        flaky.iter().try_for_each(|test| writeln!(f, "flaky: {test}"))?;
        if flaky.len() > retry::MOST {
            writeln!(f, "test: {} flaky tests in one run are no chance but a fault", flaky.len())?;
        }
        writeln!(f, "{tally}")
    }
}

pub(crate) fn run(args: &Args) -> Result<Outcome> {
    let wants = |tier: Tier| args.tier.is_empty() || args.tier.contains(&tier);
    let mut outcome = Outcome::default();
    if wants(Tier::Units) {
        println!("== test: units");
        let mut cargo = cmd::cargo(["test", "--no-fail-fast"]);
        let counted = count(cargo.args(&args.filter));
        outcome.add("units", counted.map(|(counted, exit)| Judgement::strict(&counted, exit)));
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
    let tests = programs::build(TestBuild::of(args.portable).cargo())?;
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
        let jobs = if is_listed(&package.metadata, "side-by-side", &name) { args.jobs } else { 1 };
        let binary = Binary { args, jobs, privilege, name: &name, path: &path, vars: &vars, directory: &directory };
        outcome.add(&name, binary.run());
    }
    Ok(())
}

/// A test binary of a root tier.
struct Binary<'a> {
    args: &'a Args,
    jobs: usize,
    privilege: Privilege,
    name: &'a str,
    path: &'a Path,
    vars: &'a [(&'a str, OsString)],
    directory: &'a Path,
}

impl Binary<'_> {
    fn run(&self) -> Result<Judgement> {
        let Self { args, jobs, .. } = self;
        let mut command = self.command();
        let (counted, exit) = count(command.arg(format!("--test-threads={jobs}")).args(&args.filter))?;
        if !args.retry {
            return Ok(Judgement::strict(&counted, exit));
        }
        Ok(Judgement::lenient(&counted, exit, |test| {
            println!("== test: once more, alone: {} {test}", self.name);
            match count(self.command().args(["--test-threads=1", "--exact", test])) {
                // One that was skipped, or not found, has not passed.
                Ok((Counted { tally, .. }, exit)) => {
                    exit == Exit::Good && tally == Tally { passed: 1, failed: 0, skipped: 0 }
                }
                Err(error) => {
                    println!("{error:#}");
                    false
                }
            }
        }))
    }

    fn command(&self) -> Command {
        let Self { args, jobs: _, privilege, name: _, path, vars, directory } = self;
        let mut command = privilege.command(path.as_os_str(), vars);
        // Without either, what a skipped test says would stay hidden.
        command.current_dir(directory).arg(if args.nocapture { "--nocapture" } else { "--show-output" });
        command
    }
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

/// Runs tests with their output shown and counted.
fn count(command: &mut Command) -> Result<(Counted, Exit)> {
    let context = format!("`{}`", cmd::describe(command));
    let mut child = command.stdout(Stdio::piped()).spawn().with_context(|| format!("cannot start {context}"))?;
    let stdout = child.stdout.take().with_context(|| format!("no output of {context}"))?;
    let counted =
        Counted::copy(stdout, io::stdout().lock()).with_context(|| format!("reading the output of {context}"))?;
    let status = child.wait().with_context(|| format!("waiting for {context}"))?;
    Ok((counted, Exit::of(status)))
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
    let lists = metadata.get("tiers").unwrap_or(&serde_json::Value::Null);
    let says = |tier: &str| is_listed(lists, tier, name);
    let tiers = [(Tier::Packet, "packet"), (Tier::Netns, "netns"), (Tier::Docker, "docker"), (Tier::Nodes, "nodes")];
    let listed = tiers.iter().find(|(_, word)| says(word));
    let named = || tiers.iter().find(|(_, word)| name.starts_with(word));
    listed.or_else(named).map_or(Tier::Netns, |(tier, _)| *tier)
}

/// Whether the list of that name has it.
fn is_listed(lists: &serde_json::Value, list: &str, name: &str) -> bool {
    lists.get(list).and_then(serde_json::Value::as_array).is_some_and(|names| names.iter().any(|listed| listed == name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_test_file_that_is_listed_is_there() {
        let package = test_package().unwrap();
        let files: Vec<_> = package.targets.iter().map(|target| target.name.as_str()).collect();
        let tiers = package.metadata["tiers"].as_object().unwrap();
        let lists = tiers.values().chain([&package.metadata["side-by-side"]]);
        for name in lists.flat_map(|list| list.as_array().unwrap()) {
            assert!(files.contains(&name.as_str().unwrap()), "{name}");
        }
    }

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
        outcome.add("x", Ok(Judgement::strict(&Counted::default(), Exit::Died)));
        assert_eq!(outcome.tally.failed, 1);
        assert!(!outcome.is_good());
        assert_eq!(outcome.to_string(), "test: x failed\n0 passed, 1 failed, 0 skipped\n");
    }

    #[test]
    fn a_flaky_test_is_named_before_the_line_with_the_numbers_and_fails_nothing() {
        let mut outcome = Outcome::default();
        let tally = Tally { passed: 9, failed: 0, skipped: 0 };
        outcome.add("drain", Ok(Judgement { tally, passed: true, flaky: vec!["a::b".into()] }));
        assert!(outcome.is_good());
        assert_eq!(outcome.to_string(), "flaky: drain a::b\n9 passed, 0 failed, 0 skipped\n");
        let many = (0..retry::MOST).map(|number| format!("a::{number}")).collect();
        outcome.add("stops", Ok(Judgement { tally, passed: true, flaky: many }));
        assert!(!outcome.is_good(), "{outcome}");
    }

    #[test]
    fn only_continuous_integration_gives_a_second_chance_unasked() {
        assert!(Args::for_ci().retry && !Args::default().retry);
    }
}
