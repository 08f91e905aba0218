//! How much slower than a real machine this one is: the only place that knows.
//!
//! What a test says about time, it says about a machine that runs at full speed. In one whose instructions are carried out in
//! software (`cargo xtask vm` without KVM) everything takes longer, and `STEER_TESTS_SLOWNESS` says how many times: limits for what
//! must happen soon are multiplied by it. Without it nothing changes, and what must *not* happen before a time never does.

use std::env;
use std::sync::LazyLock;
use std::time::Duration;

static SLOWNESS: LazyLock<u32> = LazyLock::new(|| match env::var("STEER_TESTS_SLOWNESS") {
    Ok(words) => words.parse().unwrap_or_else(|err| panic!("STEER_TESTS_SLOWNESS={words}: {err}")),
    Err(_) => 1,
});

/// How many per second are asked of this machine, where a real one is asked for so many: not more than it can do, or all that is seen
/// is how they wait for it.
pub fn rate(per_second: u32) -> u32 {
    per_second / *SLOWNESS
}

/// A limit for something that must happen soon, on this machine.
pub fn soon(limit: Duration) -> Duration {
    limit * *SLOWNESS
}
