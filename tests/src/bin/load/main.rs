//! The load generator: many clients in one thread, HTTP by hand, every failure counted by kind.
//!
//! Problem: `ab` neither says what kind of failure it saw nor which backend answered, does not let client ports be
//! chosen, and stops at its first refused connection. Approach: one task per client on a current-thread runtime, so a
//! run costs one core and counters need no lock. SIGINT or SIGTERM end a run early and still print the report.

use std::cell::Cell;
use std::net::SocketAddr;
use std::process::ExitCode;
use std::rc::Rc;
use std::time::Duration;

use clap::{Parser, ValueEnum};
use steer_tests::report::Report;
use tokio::signal::unix::{SignalKind, signal};
use tokio::task::{JoinSet, LocalSet};
use tokio::time::{Instant, MissedTickBehavior, interval_at, sleep_until};

use crate::client::Client;
use crate::ports::{PortRange, Ports};
use crate::rhythm::Rhythm;
use crate::tally::Tally;

mod client;
mod ports;
mod response;
mod rhythm;
mod tally;

#[derive(Parser)]
#[command(about = "HTTP load generator for steer's tests and benchmarks")]
struct Args {
    /// Address and port to connect to; given more than once, each client takes them in turn
    #[arg(long, required = true)]
    target: Vec<SocketAddr>,
    /// Clients that send at the same time
    #[arg(long, default_value_t = 40)]
    connections: u16,
    /// Stop after this many requests
    #[arg(long)]
    requests: Option<u64>,
    /// Stop after this many seconds [default: 10, when --requests is not given either]
    #[arg(long)]
    seconds: Option<f64>,
    /// What a client does with its connection
    #[arg(long, value_enum, default_value_t = Mode::Close)]
    mode: Mode,
    /// At most this many requests per second, all clients together
    #[arg(long)]
    rate: Option<f64>,
    /// Path of the request [default: /, or /bytes/<BULK_BYTES> in mode bulk]
    #[arg(long)]
    path: Option<String>,
    /// Size of one answer in mode bulk
    #[arg(long, default_value_t = 4 << 20)]
    bulk_bytes: u64,
    /// Client ports to use and use again, LOW-HIGH [default: the kernel chooses]
    #[arg(long)]
    source_ports: Option<PortRange>,
    /// Seconds after which a connection attempt or a request has failed
    #[arg(long, default_value_t = 10.0)]
    timeout: f64,
    /// Seconds after which a request has stalled; the last one counts
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds, overrides_with = "stall")]
    stall: Duration,
    /// Requests after which a client of mode keepalive closes its connection and opens another [default: no limit]
    #[arg(long)]
    per_connection: Option<u32>,
    /// A line on standard error every so many seconds; with --json each is a report of what ran so far
    #[arg(long, value_name = "SECONDS", num_args = 0..=1, default_missing_value = "1", value_parser = seconds)]
    progress: Option<Duration>,
    /// The report as JSON instead of text
    #[arg(long)]
    json: bool,
}

#[derive(Clone, Copy, PartialEq, ValueEnum)]
enum Mode {
    /// A new connection for each request
    Close,
    /// Many requests per connection
    Keepalive,
    /// Large answers, one after the other
    Bulk,
}

impl Mode {
    fn name(self) -> &'static str {
        match self {
            Self::Close => "close",
            Self::Keepalive => "keepalive",
            Self::Bulk => "bulk",
        }
    }
}

/// What all clients share.
struct Run {
    targets: Vec<SocketAddr>,
    mode: Mode,
    request: Vec<u8>,
    limit: Duration,
    /// Requests after which a connection is closed by the client.
    per_connection: u32,
    /// Requests that may still be started.
    budget: Cell<u64>,
    stopped: Cell<bool>,
    tally: Tally,
}

impl Run {
    /// Takes one request out of the budget.
    fn may_start(&self) -> bool {
        let left = self.budget.get();
        self.budget.set(left.saturating_sub(1));
        left > 0 && !self.stopped.get()
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(err) => {
            eprintln!("load: {err}");
            return ExitCode::FAILURE;
        }
    };
    let run = Rc::new(prepare(&args));
    runtime.block_on(LocalSet::new().run_until(drive(&args, run.clone())));
    let report = run.tally.report(args.mode.name());
    match args.json {
        true => println!("{}", json(&report)),
        false => print!("{}", tally::text(&report)),
    }
    // The tests look at the report; a shell looks here.
    if report.failed == 0 && report.requests > 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

fn prepare(args: &Args) -> Run {
    let path = args.path.clone().unwrap_or_else(|| match args.mode {
        Mode::Bulk => format!("/bytes/{}", args.bulk_bytes),
        Mode::Close | Mode::Keepalive => "/".to_owned(),
    });
    let connection = if args.mode == Mode::Close { "close" } else { "keep-alive" };
    Run {
        targets: args.target.clone(),
        mode: args.mode,
        request: format!("GET {path} HTTP/1.1\r\nHost: {}\r\nConnection: {connection}\r\n\r\n", args.target[0])
            .into_bytes(),
        limit: Duration::from_secs_f64(args.timeout),
        per_connection: args.per_connection.unwrap_or(u32::MAX),
        budget: Cell::new(args.requests.unwrap_or(u64::MAX)),
        stopped: Cell::new(false),
        tally: Tally::new(args.stall, args.connections),
    }
}

/// Runs all clients to the end of the run, the budget or a signal.
async fn drive(args: &Args, run: Rc<Run>) {
    let seconds = args.seconds.or(args.requests.is_none().then_some(10.0));
    let end = seconds.map(|seconds| Instant::now() + Duration::from_secs_f64(seconds));
    let mut interrupt = signal(SignalKind::interrupt()).ok();
    let mut term = signal(SignalKind::terminate()).ok();
    // From here on a signal ends the run and not the program; whoever started it may wait for this line.
    eprintln!("{}", steer_tests::report::STARTED);
    let mut clients = JoinSet::new();
    for index in 0..args.connections {
        let ports = args.source_ports.as_ref().map(|range| Ports::share(range, index, args.connections));
        let rhythm = args.rate.map(|rate| Rhythm::new(rate, index, args.connections));
        clients.spawn_local(Client::new(run.clone(), ports, rhythm, index).run());
    }
    let every = args.progress.unwrap_or(Duration::from_secs(1));
    let mut beat = interval_at(Instant::now() + every, every);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            next = clients.join_next() => if next.is_none() { break },
            () = at(end), if !run.stopped.get() => run.stopped.set(true),
            () = received(interrupt.as_mut()) => run.stopped.set(true),
            () = received(term.as_mut()) => run.stopped.set(true),
            _ = beat.tick(), if args.progress.is_some() => match args.json {
                true => eprintln!("{}", json(&run.tally.report(args.mode.name()))),
                false => run.tally.print_progress(),
            },
        }
    }
    run.tally.end();
}

fn json(report: &Report) -> String {
    serde_json::to_string(report).unwrap_or_default()
}

fn seconds(text: &str) -> Result<Duration, String> {
    let parsed = text.parse().ok().and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    parsed.filter(|every| !every.is_zero()).ok_or_else(|| format!("'{text}' is not a number of seconds above 0"))
}

async fn at(when: Option<Instant>) {
    match when {
        Some(when) => sleep_until(when).await,
        None => std::future::pending().await,
    }
}

async fn received(signal: Option<&mut tokio::signal::unix::Signal>) {
    match signal {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}
