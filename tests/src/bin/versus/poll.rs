//! Waiting that Ctrl-C ends, at a pace that leaves the machine to what is measured.

use std::fmt::Display;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use steer_tests::pace;

const LIMIT: Duration = Duration::from_secs(60);
const LOOK: Duration = Duration::from_millis(250);

static INTERRUPTED: AtomicBool = AtomicBool::new(false);

/// Why a measurement did not come to its end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    Interrupted,
    Failed(String),
}

impl Stop {
    pub(crate) fn failed(what: &str, why: impl Display) -> Self {
        Self::Failed(format!("{what}: {why}"))
    }
}

/// From any thread: everything that waits ends.
pub(crate) fn interrupt() {
    INTERRUPTED.store(true, Ordering::Relaxed);
}

pub(crate) fn check() -> Result<(), Stop> {
    if INTERRUPTED.load(Ordering::Relaxed) { Err(Stop::Interrupted) } else { Ok(()) }
}

/// Looks until `look` answers `Ok`, for a minute of a machine at full speed, and tells how long it took: most of a run is waiting.
pub(crate) fn until<T>(what: &str, mut look: impl FnMut() -> Result<T, String>) -> Result<T, Stop> {
    let began = Instant::now();
    let deadline = began + pace::soon(LIMIT);
    loop {
        check()?;
        match look() {
            Ok(found) => {
                eprintln!("    {what}: after {:.1} s", began.elapsed().as_secs_f64());
                return Ok(found);
            }
            Err(last) if Instant::now() >= deadline => return Err(Stop::failed(what, format!("not in time: {last}"))),
            Err(_) => thread::sleep(LOOK),
        }
    }
}

pub(crate) fn sleep_until(end: Instant) -> Result<(), Stop> {
    while Instant::now() < end {
        check()?;
        thread::sleep(LOOK.min(end.saturating_duration_since(Instant::now())));
    }
    Ok(())
}
