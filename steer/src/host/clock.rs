//! The clock that the kernel side uses: monotonic, since boot (`bpf_ktime_get_ns`, `bpf_ktime_get_coarse_ns`).

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Since boot.
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The same in whole seconds: the resolution of a flow's last packet.
pub fn boot_secs() -> u32 {
    since_boot().as_secs() as u32
}
