//! What the kernel tells the agent.

use crate::backend::BackendId;
use crate::edge::{EdgeEntry, EdgeKind};

/// What the kernel tells the agent, by way of the ring `NOTICES`: edges under their own numbers, and what else it saw.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, PartialOrd, Ord)]
#[repr(u8)]
pub enum NoticeKind {
    /// The backend was sent its stop signal.
    Stop = EdgeKind::Stop as u8,
    /// The backend was sent `KILL`.
    Kill = EdgeKind::Kill as u8,
    /// The backend's first process ended.
    Exit = EdgeKind::Exit as u8,
    /// A new flow found the backend ready, but nobody listening.
    NotListening = 4,
    /// A new flow found somebody listening at a backend that the agent does not know to listen.
    Listening = 5,
    /// The backend answered a SYN with RST.
    Refused = 6,
    /// A client waits in `HELD`. No backend's: the notice is of id 0.
    Held = 7,
}

impl NoticeKind {
    /// From a record of the ring.
    pub const fn from_u32(value: u32) -> Option<Self> {
        match value {
            1 => Some(Self::Stop),
            2 => Some(Self::Kill),
            3 => Some(Self::Exit),
            4 => Some(Self::NotListening),
            5 => Some(Self::Listening),
            6 => Some(Self::Refused),
            7 => Some(Self::Held),
            _ => None,
        }
    }
}

/// One record of the ring `NOTICES`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct Notice {
    /// When, in nanoseconds since boot (`CLOCK_MONOTONIC`).
    pub at_ns: u64,
    /// Generation of the backend's id.
    pub generation: u32,
    /// A [`NoticeKind`].
    pub kind: u32,
    pub backend: BackendId,
    /// The signal, where there is one.
    pub signal: u16,
    /// [`EdgeEntry::count`] with this edge, where it is one.
    pub edges: u32,
}

impl Notice {
    /// The edge that it tells of, if it is of one: [`NoticeKind`] begins with the numbers of [`EdgeKind`].
    pub fn edge(&self) -> Option<EdgeEntry> {
        let Self { at_ns, kind, signal, edges, .. } = *self;
        EdgeKind::from_u32(kind).map(|_| EdgeEntry {
            count: edges.into(),
            at_ns,
            kind,
            signal: signal.into(),
            ..EdgeEntry::default()
        })
    }

    /// From the bytes of a record, in this machine's byte order; `None` where they are too few.
    pub fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let half = |at: usize| Some(u16::from_ne_bytes(bytes.get(at..at + 2)?.try_into().ok()?));
        let word = |at: usize| Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?));
        Some(Self {
            at_ns: u64::from_ne_bytes(bytes.get(..8)?.try_into().ok()?),
            generation: word(8)?,
            kind: word(12)?,
            backend: BackendId(half(16)?),
            signal: half(18)?,
            edges: word(20)?,
        })
    }
}

const _: () = assert!(size_of::<Notice>() == 24);
