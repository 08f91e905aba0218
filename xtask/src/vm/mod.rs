//! `cargo xtask vm`: the tests of `cargo xtask test` that need a kernel, in machines with Debian's kernels and Dockers.
//!
//! Problem: a BPF program that one kernel's verifier takes, another one refuses; and each Docker has its own firewall.
//! Approach: a root disk per suite ([`disk`]), built once; a second disk with what is tested ([`payload`]); QEMU boots both and
//! writes to neither ([`qemu`]); the first process in the machine (`tests/src/bin/guest`) runs one test binary after the other and
//! tells over a serial line ([`protocol`], [`session`]). Tests of a swarm of several nodes have a machine for each ([`nodes`]), on a
//! network of their own ([`wire`]). At the end stands a table, tests by systems ([`matrix`]).

mod ci;
mod disk;
mod limits;
mod lock;
mod matrix;
mod nodes;
mod payload;
mod protocol;
mod qemu;
mod record;
mod results;
mod session;
mod suite;
mod tools;
mod versus;
mod wire;

use std::{
    fs,
    io::Write,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};

pub(crate) use self::ci::run_for_ci;
use self::{
    disk::Disk,
    limits::Limits,
    matrix::{Column, Exit},
    payload::Payload,
    qemu::{Accelerator, Machine, Spec},
    record::Record,
    session::Session,
    suite::Suite,
};
use crate::{
    cmd::{self, Privilege},
    tally::Tally,
    test,
};

const MEMORY_MIB: u32 = 4096;
/// A manager and a worker.
const NODES: u8 = 2;

#[derive(clap::Args)]
pub(crate) struct Args {
    /// The systems; all of them if none is named
    #[arg(value_enum)]
    suites: Vec<Suite>,
    /// Run only this test binary (`packet`, `drain`, …); may be given several times
    #[arg(long = "test", value_name = "NAME")]
    tests: Vec<String>,
    /// A prompt in the machine of one system, instead of tests
    #[arg(long)]
    shell: bool,
    /// Go on where the last run ended: a test binary that it has found good, of the same build, on the same disk and with the same
    /// filter, is not run again. A run without it starts anew
    #[arg(long, conflicts_with_all = ["versus", "shell", "fresh"])]
    resume: bool,
    /// Instead of tests: Swarm's routing mesh alone, then with steer, side by side, in one system [default: trixie]. What is behind
    /// `--` are parts of rows' names, such as `kill`
    #[arg(long, conflicts_with_all = ["tests", "shell"])]
    versus: bool,
    /// Build the root disks anew, with the packages of today
    #[arg(long)]
    fresh: bool,
    /// Debian's mirror for the root disks [default: the one that this system uses]
    #[arg(long, value_name = "URL")]
    mirror: Option<String>,
    /// How long one test binary may run [default: 900, emulated 3600], or after what time no row of --versus begins [default: 3600]
    #[arg(long, value_name = "SECONDS")]
    limit: Option<u64>,
    /// How long all of them together may run in one system [default: 5400, emulated 14400]
    #[arg(long, value_name = "SECONDS")]
    machine_limit: Option<u64>,
    /// Memory of a machine
    #[arg(long, value_name = "MIB", default_value_t = MEMORY_MIB)]
    memory: u32,
    /// How many machines a swarm has, for the tests of several nodes
    #[arg(long, value_name = "N", default_value_t = NODES, value_parser = clap::value_parser!(u8).range(2..=8))]
    nodes: u8,
    /// Show what the tests print while they run; it is always kept in `target/vm`
    #[arg(long)]
    nocapture: bool,
    /// Run only tests whose name contains one of these
    #[arg(last = true)]
    filter: Vec<String>,
}

impl Default for Args {
    fn default() -> Self {
        Self {
            suites: Vec::new(),
            tests: Vec::new(),
            shell: false,
            resume: false,
            versus: false,
            fresh: false,
            mirror: None,
            limit: None,
            machine_limit: None,
            memory: MEMORY_MIB,
            nodes: NODES,
            nocapture: false,
            filter: Vec::new(),
        }
    }
}

/// Tells the harness how much slower than a real machine this one is (`tests/harness/pace.rs`).
const SLOWNESS: &str = "STEER_TESTS_SLOWNESS";
/// Computing is ten times slower in software, but much of a test's time is waiting. With more than this, limits of 200 ms could not
/// tell a lost SYN (1 s) any more.
const TCG_SLOWNESS: &str = "4";

/// True when every test of every system is good.
pub(crate) fn run(args: &Args) -> Result<bool> {
    let _lock = lock::take(&disk::cache()?.join("lock"), || {
        println!("== vm: another run of `cargo xtask vm` is at work; this one waits until it has ended");
    })?;
    let dir = cmd::target_dir().join("vm");
    fs::create_dir_all(&dir).with_context(|| format!("creating {}", shown(&dir)))?;
    let privilege = Privilege::of_this_process();
    println!("== vm: tools");
    tools::ensure(privilege)?;
    println!("== vm: building what is tested");
    let payload = if args.versus { Payload::of_programs(&dir)? } else { Payload::build(&dir, &args.tests)? };
    let mut harness = Harness { args, payload, privilege, dir: &dir, accelerator: None, done: Vec::new() };
    if args.versus {
        return versus::run(&mut harness);
    }
    let suites = suite::chosen(&args.suites);
    if args.shell {
        let [suite] = suites[..] else { bail!("--shell wants one system: `cargo xtask vm trixie --shell`") };
        return harness.shell(suite);
    }

    // That of an earlier run is not this one's.
    drop(fs::remove_file(dir.join(matrix::FILE)));
    for suite in suites {
        println!("== vm: {}", suite.name());
        let column = harness.column(suite);
        harness.done.push(column);
    }
    let columns: Vec<_> = harness.done.iter().collect();
    matrix::keep(&dir, &columns)?;
    println!("== vm: tests by systems\n{}", matrix::render(&columns));
    let verified = matrix::render_verified(&columns);
    if !verified.is_empty() {
        println!("== vm: instructions that the verifier looked at\n{verified}");
    }
    let mut sum = Tally::default();
    for column in &columns {
        println!("{}: {}", column.name, column.about);
        column.problems.iter().for_each(|problem| println!("{}: {problem}", column.name));
        sum += column.tally();
    }
    println!("logs are in {}", shown(&dir));
    println!("{sum}");
    Ok(columns.iter().all(|column| column.is_good()) && sum.total() > 0)
}

/// What all machines have in common.
struct Harness<'a> {
    args: &'a Args,
    payload: Payload,
    privilege: Privilege,
    dir: &'a Path,
    /// Known once a machine was started.
    accelerator: Option<Accelerator>,
    /// Systems in which everything has run.
    done: Vec<Column>,
}

impl Harness<'_> {
    fn disk(&self, suite: Suite) -> Result<Disk> {
        disk::of(suite, self.args.mirror.as_deref(), self.args.fresh, self.privilege)
    }

    /// A folder for what is known of a machine: empty, unless an earlier run is, or may yet be, resumed.
    fn logs(&self, name: &str) -> Result<PathBuf> {
        let logs = self.dir.join(name);
        if !(self.args.resume || self.args.shell) {
            drop(fs::remove_dir_all(&logs));
        }
        fs::create_dir_all(&logs).with_context(|| format!("creating {}", shown(&logs)))?;
        Ok(logs)
    }

    /// How a machine is started.
    fn spec<'a>(&'a mut self, disk: &'a Disk, logs: &'a Path) -> Result<Spec<'a>> {
        let accelerator = self.accelerator;
        let (payload, memory_mib) = (self.payload.image.as_path(), self.args.memory);
        let mut spec = Spec { disk, payload, accelerator: Accelerator::Tcg, dir: logs, memory_mib, place: None };
        spec.accelerator = match accelerator {
            Some(known) => known,
            None => *self.accelerator.insert(session::accelerator(&spec, &disk::cache()?)?),
        };
        Ok(spec)
    }

    fn shell(&mut self, suite: Suite) -> Result<bool> {
        let (disk, logs) = (self.disk(suite)?, self.logs(suite.name())?);
        qemu::shell(&self.spec(&disk, &logs)?)
    }

    /// Everything that is to run, in one system. What has run is told, whatever comes of the rest.
    fn column(&mut self, suite: Suite) -> Column {
        match self.system(suite) {
            Ok(mut system) => {
                let outcome = self.run_on_one(&mut system);
                system.column.note(outcome);
                let outcome = self.run_on_nodes(&mut system);
                system.column.note(outcome);
                system.column
            }
            Err(error) => {
                let mut column = Column::new(suite.name());
                column.note(Err(error));
                column
            }
        }
    }

    fn system(&self, suite: Suite) -> Result<System> {
        let (disk, logs) = (self.disk(suite)?, self.logs(suite.name())?);
        let build = self.build(&disk)?;
        let record = if self.args.resume { Record::open(&logs, build)? } else { Record::new(&logs, build) };
        let mut column = Column::new(suite.name());
        record.about().clone_into(&mut column.about);
        column.problems.extend_from_slice(record.problems());
        Ok(System { disk, logs, record, column, consoles: Vec::new(), began: Instant::now() })
    }

    /// All that every result in a system depends on, in words: with this program, which knows how machines are started and results
    /// are read.
    fn build(&self, disk: &Disk) -> Result<String> {
        let this = std::env::current_exe().context("looking for this program")?;
        let (this, disk) = (record::digest(&this)?, disk.stamp()?);
        let qemu = cmd::output(cmd::command(qemu::PROGRAM).arg("--version"))?;
        Ok(format!("xtask {this}\n{qemu}\ndisk {disk}\n{}", self.payload.programs))
    }

    /// The tests that one machine is enough for.
    fn run_on_one(&mut self, system: &mut System) -> Result<()> {
        if self.payload.tests.is_empty() {
            return Ok(());
        }
        let accelerator = self.spec(&system.disk, &system.logs)?.accelerator;
        let batch = self.batch(&self.payload.tests, vars(accelerator), accelerator, system);
        if batch.tests.is_empty() {
            return Ok(());
        }
        let mut machine = Machine::start(&self.spec(&system.disk, &system.logs)?)?;
        let mut session = Session::open(&mut machine, &system.logs)?;
        system.column.about = session.about();
        system.consoles = vec![("the kernel".to_owned(), system.logs.join(qemu::CONSOLE))];
        let (seconds, limits) = (session.booted_in.as_secs_f64(), batch.limits);
        println!("  up after {seconds:.1} s: {}; at most {limits}", system.column.about);

        let ran = self.run_all(&batch, &mut session, system);
        drop(session);
        drop(machine);
        ran.and(system.note_consoles())
    }

    /// Of these tests, what is still to be run; what is known from an earlier run is in the column then.
    fn batch(
        &self,
        tests: &[String],
        env: Vec<(String, String)>,
        accelerator: Accelerator,
        system: &mut System,
    ) -> Batch {
        let mut batch = Batch { tests: Vec::new(), env, limits: Limits::of(self.args, accelerator) };
        let Args { filter, memory, .. } = self.args;
        let around = format!("{filter:?} {memory} MiB {:?}", batch.env);
        for name in tests {
            let of = format!("{name} {} {around}", self.payload.digest_of(name));
            match system.record.good(&of) {
                Some(binary) => {
                    println!("  {name}: {}, as an earlier run found", binary.tally());
                    system.column.binaries.extend(binary.has_row().then(|| binary.clone()));
                }
                None => batch.tests.push((name.clone(), of)),
            }
        }
        batch
    }

    fn run_all(&self, batch: &Batch, session: &mut Session, system: &mut System) -> Result<()> {
        let Self { args, .. } = self;
        let Batch { tests, env, limits } = batch;
        for (name, of) in tests {
            let Some(limit) = limits.left(system.began.elapsed()) else {
                let seconds = limits.machine.as_secs();
                let over = format!("{name} and what follows did not run: the system's {seconds} s were over");
                system.column.problems.push(over);
                break;
            };
            let request = session::request(name, words(args), env.clone(), limit);
            let ran = session.test(name, request, &system.logs, |piece| {
                if args.nocapture {
                    show(piece);
                }
            });
            let binary = ran.with_context(|| format!("{name} and what follows did not run"))?;
            println!("  {name}: {} ({:.0} s)", binary.tally(), binary.took.as_secs_f64());
            let lost = match binary.exit {
                Exit::MachineLost => Some("ended"),
                Exit::MachineSilent => Some("said nothing more"),
                Exit::Code(_) | Exit::Signal | Exit::TimedOut => None,
            };
            system.column.binaries.extend(binary.has_row().then(|| binary.clone()));
            // However this run ends, what has run is there.
            let columns: Vec<&Column> = self.done.iter().chain([&system.column]).collect();
            matrix::keep(self.dir, &columns)?;
            // What its kernel complained of is no less known than the result.
            system.note_consoles()?;
            system.record.keep(&system.column.about, of, &binary)?;
            if let Some(lost) = lost {
                system
                    .column
                    .problems
                    .push(format!("the machine {lost} while it ran {name}: see its console among the logs"));
                break;
            }
        }
        Ok(())
    }
}

/// One suite's, while it is tested.
struct System {
    disk: Disk,
    logs: PathBuf,
    record: Record,
    column: Column,
    /// Whose machines run, or ran last, and where what their kernels say is kept.
    consoles: Vec<(String, PathBuf)>,
    began: Instant,
}

impl System {
    /// What kernels have complained of by now.
    fn note_consoles(&mut self) -> Result<()> {
        for (whose, path) in self.consoles.clone() {
            let console = fs::read(path).unwrap_or_default();
            for line in session::complaints(&String::from_utf8_lossy(&console)) {
                self.problem(format!("{whose} said: {line}"))?;
            }
        }
        Ok(())
    }

    /// Something that is not good beside tests, if it is news.
    fn problem(&mut self, problem: String) -> Result<()> {
        if self.column.problems.contains(&problem) {
            return Ok(());
        }
        self.column.problems.push(problem.clone());
        self.record.keep_problem(problem)
    }
}

/// What is to run in one machine.
struct Batch {
    /// Test binaries, each with all that its result depends on ([`Record`]).
    tests: Vec<(String, String)>,
    env: Vec<(String, String)>,
    limits: Limits,
}

/// Something that is printed in a machine, here and now.
fn show(piece: &str) {
    print!("{piece}");
    drop(std::io::stdout().flush());
}

/// What a test binary is told: as by `cargo xtask test`.
fn words(args: &Args) -> Vec<String> {
    let mut words = vec!["--test-threads=1".to_owned()];
    words.push(if args.nocapture { "--nocapture" } else { "--show-output" }.to_owned());
    words.extend(args.filter.iter().cloned());
    words
}

fn vars(accelerator: Accelerator) -> Vec<(String, String)> {
    let mut vars: Vec<_> = Payload::vars().map(|(name, value)| (name.to_owned(), value)).into();
    // The disks have all that tests need.
    vars.push((test::NO_SKIP.to_owned(), "1".to_owned()));
    if accelerator == Accelerator::Tcg {
        vars.push((SLOWNESS.to_owned(), TCG_SLOWNESS.to_owned()));
    }
    vars.push(("RUST_BACKTRACE".to_owned(), "1".to_owned()));
    vars
}

/// A path as it is printed: from the workspace's root.
fn shown(path: &Path) -> String {
    let root: PathBuf = cmd::root();
    path.strip_prefix(&root)
        .map_or_else(|_| cmd::redact(&path.display().to_string()), |path| path.display().to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_harness_knows_the_word_for_slowness() {
        assert!(include_str!("../../../tests/harness/pace.rs").contains(&format!("\"{SLOWNESS}\"")));
    }
}
