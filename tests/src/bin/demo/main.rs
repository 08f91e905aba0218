//! `cargo xtask demo`: steer at work, on one page, while containers come and go.
//!
//! One run makes a Docker host and a client beside it (`stage`), plays a fixed sequence of scaling and replacing under load
//! (`scenario`), shows what goes where (`screen`), and ends with what the clients saw. Everything it makes hangs on guards,
//! so it is gone afterwards, also after Ctrl-C: signals only set a flag that every wait looks at.

mod board;
mod scenario;
mod screen;
mod stage;
mod summary;
mod view;

use std::io::{self, IsTerminal, Write};
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::sync::Arc;
use std::thread;

use clap::{Parser, ValueEnum};
use steer_tests::agent::Attach;
use steer_tests::signals;
use steer_tests::skip::{self, Need};

use crate::board::{Board, Stop};

const INTERRUPTED: u8 = 130;

#[derive(Parser)]
#[command(about = "Shows steer at work: scaling and replacing containers under load")]
struct Args {
    /// Where steer attaches at the uplink
    #[arg(long, value_enum, default_value_t = Hook::Tc)]
    attach: Hook,
    /// Which Docker runs the containers
    #[arg(long, value_enum, default_value_t = Whose::Auto)]
    docker: Whose,
    /// How long the pauses between the steps are, relative to the usual
    #[arg(long, default_value_t = 1.0, value_parser = scale)]
    seconds_scale: f64,
    /// Requests per second, half of them each on a connection of its own
    #[arg(long, default_value_t = 4000, value_parser = clap::value_parser!(u32).range(100..=1_000_000))]
    rate: u32,
}

#[derive(Clone, Copy, ValueEnum)]
enum Hook {
    Tc,
    Xdp,
}

#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Whose {
    /// The one that runs on this machine, if it can be used, else a private one
    Auto,
    /// The one that runs on this machine, or an error
    Running,
    /// A throwaway dockerd in a network namespace of its own
    Private,
}

fn scale(text: &str) -> Result<f64, String> {
    let parsed = text.parse().ok().filter(|scale| (0.0..=100.0).contains(scale));
    parsed.ok_or_else(|| format!("'{text}' is not a number from 0 to 100"))
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Some(missing) = skip::missing(&[Need::Root, Need::Docker, Need::Steer]) {
        return fail(&format!("the demo cannot run here: {missing}"));
    }
    let board = Arc::new(Board::new());
    let on_signal = board.clone();
    if let Err(err) = signals::listen(move || on_signal.interrupt()) {
        return fail(&format!("cannot listen to signals: {err}"));
    }
    let on_panic = board.clone();
    // The harness panics with a whole sentence; it is printed once the screen is still.
    panic::set_hook(Box::new(move |info| on_panic.fail(&info.to_string())));

    let outcome = thread::scope(|scope| {
        scope.spawn(|| screen::show(&board, io::stdout().is_terminal()));
        let outcome = panic::catch_unwind(AssertUnwindSafe(|| scenario::run(&args, &board)));
        board.close();
        outcome
    });
    match outcome {
        Ok(Ok(summary)) => {
            say(&summary.to_string());
            if summary.is_good() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
        }
        Ok(Err(Stop::Interrupted)) => {
            say("demo: interrupted; nothing is left behind\n");
            ExitCode::from(INTERRUPTED)
        }
        Ok(Err(Stop::Failed(words))) => fail(&words),
        Err(_) => fail(&board.failure().unwrap_or_default()),
    }
}

/// A terminal that is gone is no reason to leave things behind.
fn say(text: &str) {
    let mut out = io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

fn fail(words: &str) -> ExitCode {
    drop(writeln!(io::stderr(), "demo: failed: {words}"));
    ExitCode::FAILURE
}

impl Hook {
    fn attach(self) -> Attach {
        match self {
            Self::Tc => Attach::Tc,
            Self::Xdp => Attach::Xdp,
        }
    }
}
