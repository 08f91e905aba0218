//! Tests that cannot run here say so, and never fall silent: `skipped: <reason>`.
//!
//! With `STEER_TESTS_NO_SKIP=1` (continuous integration) a missing need fails the test instead.

use std::io::Write;

use crate::{nodes, programs};

/// What a test needs of the machine beyond a kernel.
#[derive(Clone, Copy, Debug)]
pub enum Need {
    /// And iproute2, which worlds are made with.
    Root,
    /// `dockerd`, `containerd`, and the greeter for the image.
    Docker,
    /// The binary under test.
    Steer,
    /// Several, on one network.
    Machines,
    /// A program on the search path, such as `ab`.
    Program(&'static str),
}

impl Need {
    fn missing(self) -> Option<String> {
        let program = |name: &str| programs::find(name).is_none().then(|| format!("no program '{name}'"));
        match self {
            Self::Root if !nix::unistd::geteuid().is_root() => Some("not root".to_owned()),
            Self::Root => ["ip", "ethtool"].into_iter().find_map(program),
            Self::Docker => {
                let greeter = programs::built("greeter").err();
                ["dockerd", "containerd", "runc", "iptables"].into_iter().find_map(program).or(greeter)
            }
            Self::Steer => programs::steer().err(),
            Self::Machines => {
                nodes::machines().is_none().then(|| "one machine alone (cargo xtask vm --test nodes)".to_owned())
            }
            Self::Program(name) => program(name),
        }
    }
}

/// The first need that this machine does not meet, in words.
pub fn missing(needs: &[Need]) -> Option<String> {
    needs.iter().find_map(|need| need.missing())
}

/// True, with the reason printed, when the test cannot run here: `if skip::without(&[Need::Root]) { return; }`.
pub fn without(needs: &[Need]) -> bool {
    let Some(reason) = missing(needs) else { return false };
    assert!(std::env::var_os("STEER_TESTS_NO_SKIP").is_none(), "may not be skipped here: {reason}");
    say(&reason);
    true
}

/// Says that what a test is about is not on machines of this kind: nothing could be installed to change that, so it is no failure in
/// continuous integration either. Whoever calls this has looked at the machine, and not at what steer or Docker make of it.
pub fn not_of_this_kind(reason: &str) {
    say(reason);
}

fn say(reason: &str) {
    let test = std::thread::current().name().unwrap_or("a test").to_owned();
    // Past libtest's capture, which would swallow what a passing test prints.
    drop(writeln!(std::io::stdout(), "skipped: {reason} ({test})"));
}
