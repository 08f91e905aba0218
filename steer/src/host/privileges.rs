//! What this process may do: root alone is not enough where a container or a unit's limits have taken powers away.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Powers that steer needs, by their number in `linux/capability.h`. Others (`CAP_BPF`, `CAP_PERFMON`) are part of
/// `CAP_SYS_ADMIN`, which entering a container's network namespace needs anyway.
const NEEDED: [(u32, &str); 3] = [(12, "CAP_NET_ADMIN"), (19, "CAP_SYS_PTRACE"), (21, "CAP_SYS_ADMIN")];

/// Lets this process have as many files open as it may: the usual limit of 1,024 is made for programs that use `select`, and each
/// container takes one or two.
pub fn raise_open_files() -> nix::Result<()> {
    let (_, most) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, most, most)
}

/// The capabilities in force, as bits; `None` = cannot be told.
pub fn capabilities() -> Option<u64> {
    parse(&std::fs::read_to_string("/proc/self/status").ok()?)
}

/// Those of the needed ones that are not among `capabilities`.
pub fn missing(capabilities: u64) -> Vec<&'static str> {
    NEEDED.iter().filter(|(bit, _)| (capabilities >> bit) & 1 == 0).map(|(_, name)| *name).collect()
}

/// From `/proc/self/status`.
fn parse(status: &str) -> Option<u64> {
    let bits = status.lines().find_map(|line| line.strip_prefix("CapEff:"))?;
    u64::from_str_radix(bits.trim(), 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capabilities_are_the_effective_ones() {
        assert_eq!(parse("Name:\tsteer\nCapPrm:\tff\nCapEff:\t0000000000201000\n"), Some(0x20_1000));
        assert_eq!(parse("Name:\tsteer\n"), None);
    }

    #[test]
    fn what_is_missing_is_named() {
        assert_eq!(missing(u64::MAX), Vec::<&str>::new());
        assert_eq!(missing(1 << 12), ["CAP_SYS_PTRACE", "CAP_SYS_ADMIN"]);
    }
}
