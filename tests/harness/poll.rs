//! Waiting for what has no event: short looks with a deadline.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use crate::pace;

const PAUSE: Duration = Duration::from_millis(20);
/// So many times as long as a look took: one at `steer status` is dear where CPUs are slow, and takes them from what is waited for.
const REST: u32 = 2;

/// Looks until `look` answers `Ok`, and panics with the last `Err` when `limit` is over.
#[track_caller]
pub fn wait_until<T, E: Display>(what: &str, limit: Duration, mut look: impl FnMut() -> Result<T, E>) -> T {
    let limit = pace::soon(limit);
    let deadline = Instant::now() + limit;
    loop {
        let began = Instant::now();
        match look() {
            Ok(found) => return found,
            Err(last) if Instant::now() >= deadline => panic!("{what}: not within {limit:?}, last seen: {last}"),
            Err(_) => thread::sleep(PAUSE.max(REST * began.elapsed())),
        }
    }
}
