//! What the kernel sees happen to the processes of backends.

use crate::backend::BackendId;

/// What the kernel saw happen to a backend that takes it out at once.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum EdgeKind {
    /// Its first process was sent its stop signal.
    Stop = 1,
    /// Its first process was sent `KILL`.
    Kill = 2,
    /// Its first process ended.
    Exit = 3,
}

impl EdgeKind {
    /// From a map record.
    #[inline(always)]
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::Stop),
            2 => Some(Self::Kill),
            3 => Some(Self::Exit),
            _ => None,
        }
    }
}

/// The kernel's own demotion of a backend. Value of `BACKEND_EDGES`, index [`BackendId`]; written by the kernel, while the id is in
/// use. The agent zeroes it before it gives the id to a new backend.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct EdgeEntry {
    /// Edges so far. Raised last, so that the fields below belong to it.
    pub count: u64,
    /// When the last one came, in nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub at_ns: u64,
    /// The last one's [`EdgeKind`].
    pub kind: u32,
    /// The last one's signal; 0 for an exit.
    pub signal: u32,
    /// Since when its cgroup is frozen, in nanoseconds since boot; 0 = it is not. No edge: the kernel takes it back by itself.
    pub frozen_ns: u64,
}

/// Which backend a process is the first one of. Value of `INITS`, key: its id in the host's pid namespace, as `u32`.
/// Written by the agent; the kernel removes it when the process ends, so a reused pid never stands for an old backend. Also value
/// of `CGROUPS`, likewise; key: the id of the cgroup (version 2) it is in, as `u64`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct InitEntry {
    /// Generation of the backend's id.
    pub generation: u32,
    pub backend: BackendId,
    /// The signal that asks the container to stop.
    pub stop_signal: u16,
}

const _: () = assert!(size_of::<EdgeEntry>() == 32);
const _: () = assert!(size_of::<InitEntry>() == 8);
