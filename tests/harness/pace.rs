//! How much slower than a real machine this one is: the only place that knows.
//!
//! What a test says about time, it says about a machine that runs at full speed. In one whose instructions are carried out in
//! software (`cargo xtask vm` without KVM) everything takes longer, and `STEER_TESTS_SLOWNESS` says how many times: limits for what
//! must happen soon are multiplied by it ([`soon`]), and so are times that must outlast what a test does in them ([`lasting`]).
//! Without it nothing changes. What must *not* happen before a time never changes, nor does what tells a constant of the kernel's,
//! such as the second after which a lost SYN is sent again.

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

/// How far a load that asks for as much as it can get steps back: a machine that is slow anyway has no time left for what is done
/// meanwhile.
pub fn niceness() -> u8 {
    if *SLOWNESS > 1 { 10 } else { 0 }
}

/// How many of what is done one after the other, where a real machine does so many: as long as it takes, there and here.
pub fn count(many: u32) -> u32 {
    many / *SLOWNESS
}

/// A limit for something that must happen soon, on this machine.
pub fn soon(limit: Duration) -> Duration {
    limit * *SLOWNESS
}

/// The same in whole seconds, as options have them.
pub fn soon_secs(seconds: u32) -> u32 {
    seconds * *SLOWNESS
}

/// A time that must outlast what a test does and looks at in it: how long connections are held, how long a program serves after its
/// stop signal, how late it listens, how far apart its healthchecks are. A slow machine's clock is as fast as a real one's, and its
/// programs are not: three seconds are over there before the second of two commands has said a word.
pub fn lasting(time: Duration) -> Duration {
    time * *SLOWNESS
}

/// The same in whole seconds, as labels and options have them.
pub fn lasting_secs(seconds: u32) -> u32 {
    seconds * *SLOWNESS
}
