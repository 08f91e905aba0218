//! The clock that the kernel side uses: monotonic, since boot (`bpf_ktime_get_ns`, `bpf_ktime_get_coarse_ns`); and the one on the wall.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use nix::time::{ClockId, clock_gettime};

use crate::model::UnixMicros;

/// Since boot.
pub fn since_boot() -> Duration {
    clock_gettime(ClockId::CLOCK_MONOTONIC).map_or(Duration::ZERO, Duration::from)
}

/// The same in whole seconds: the resolution of a flow's last packet.
pub fn boot_secs() -> u32 {
    since_boot().as_secs() as u32
}

/// Now, by the clock on the wall.
pub fn unix_now() -> UnixMicros {
    UnixMicros(since_epoch().as_micros() as u64)
}

/// A moment since boot, by the clock on the wall as it is set now.
pub fn unix_at(since_boot: Duration) -> UnixMicros {
    UnixMicros(unix_boot().0 + since_boot.as_micros() as u64)
}

/// When the kernel's clock began, by the clock on the wall as it is set now.
pub fn unix_boot() -> UnixMicros {
    UnixMicros(since_epoch().saturating_sub(since_boot()).as_micros() as u64)
}

fn since_epoch() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
