//! What the programs tell the agent, by way of a ring.

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, RingBuf};
use steer_common::backend::Notice;
use steer_common::limits::names;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::paths::Paths;

/// The ring, opened. It outlives the agent: what was told while there was none is still in it.
pub type Notices = RingBuf<MapData>;

/// Opens the ring of an instance.
pub fn open(paths: &Paths) -> Result<AsyncFd<Notices>> {
    let pin = paths.map(names::NOTICES);
    let data = MapData::from_pin(&pin).with_context(|| format!("opening the pinned map {}", pin.display()))?;
    let ring = RingBuf::try_from(Map::RingBuf(data)).with_context(|| format!("opening the ring {}", pin.display()))?;
    #[expect(
        deprecated,
        reason = "the replacement is an unsafe function, for types whose descriptor may change; this one's does not"
    )]
    AsyncFd::with_interest(ring, Interest::READABLE).context("watching the ring of notices")
}

/// Waits until there are notices, and takes all of them out. Cancel-safe.
pub async fn next(notices: &mut AsyncFd<Notices>) -> Vec<Notice> {
    loop {
        let Ok(mut guard) = notices.readable_mut().await else {
            // Without a ring the agent goes on by Docker's events.
            return std::future::pending().await;
        };
        let mut taken = Vec::new();
        while let Some(record) = guard.get_inner_mut().next() {
            taken.extend(Notice::from_bytes(&record));
        }
        guard.clear_ready();
        if !taken.is_empty() {
            return taken;
        }
    }
}
