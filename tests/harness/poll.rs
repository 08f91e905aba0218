//! Waiting for what has no event: short looks with a deadline.

use std::fmt::Display;
use std::thread;
use std::time::{Duration, Instant};

use crate::pace;

const PAUSE: Duration = Duration::from_millis(20);
/// So many times as long as a look took: one at `steer status` is dear where CPUs are slow, and takes them from what is waited for.
const REST: u32 = 2;
/// A look that took long has waited for somebody more than it has worked.
const LONGEST_REST: Duration = Duration::from_millis(500);

/// Looks until `look` answers `Ok`, and panics with the last `Err` when `limit` is over.
#[track_caller]
pub fn wait_until<T, E: Display>(what: &str, limit: Duration, look: impl FnMut() -> Result<T, E>) -> T {
    let limit = pace::soon(limit);
    match look_until(limit, look) {
        Ok(found) => found,
        Err(last) => panic!("{what}: not within {limit:?}, last seen: {last}"),
    }
}

/// Looks until `look` answers `Ok`; the last `Err` when `limit`, as it stands, is over.
///
/// # Errors
///
/// What `look` answered last.
pub fn look_until<T, E>(limit: Duration, mut look: impl FnMut() -> Result<T, E>) -> Result<T, E> {
    let deadline = Instant::now() + limit;
    loop {
        let began = Instant::now();
        let last = match look() {
            Ok(found) => return Ok(found),
            Err(last) => last,
        };
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(last);
        }
        // The last look is at the deadline.
        thread::sleep((REST * began.elapsed()).clamp(PAUSE, LONGEST_REST).min(left));
    }
}
