//! What the programs tell the agent, by way of a ring.

use anyhow::{Context as _, Result};
use aya::maps::{Map, MapData, RingBuf};
use steer_common::limits::names;
use steer_common::notice::Notice;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::paths::Paths;

/// How many are taken out at once: while they are taken in, others come.
pub const AT_ONCE: usize = 1024;

/// The ring, opened. It outlives the agent: what was told while there was none is still in it.
pub struct Notices {
    ring: AsyncFd<RingBuf<MapData>>,
    /// One that was found while waiting.
    found: Option<Notice>,
}

impl Notices {
    /// Opens the ring of an instance.
    pub fn open(paths: &Paths) -> Result<Self> {
        let pin = paths.map(names::NOTICES);
        let data = MapData::from_pin(&pin).with_context(|| format!("opening the pinned map {}", pin.display()))?;
        let ring =
            RingBuf::try_from(Map::RingBuf(data)).with_context(|| format!("opening the ring {}", pin.display()))?;
        #[expect(
            deprecated,
            reason = "the replacement is an unsafe function, for types whose descriptor may change; this one's does not"
        )]
        let ring = AsyncFd::with_interest(ring, Interest::READABLE).context("watching the ring of notices")?;
        Ok(Self { ring, found: None })
    }

    /// Waits until there is one. Cancel-safe: it is kept.
    pub async fn ready(&mut self) {
        while self.found.is_none() {
            let Ok(mut guard) = self.ring.readable_mut().await else {
                // Without a ring the agent goes on by Docker's events.
                return std::future::pending().await;
            };
            let record = guard.get_inner_mut().next().map(|record| Notice::from_bytes(&record));
            match record {
                Some(notice) => self.found = notice,
                None => guard.clear_ready(),
            }
        }
    }

    /// Takes out what there is now, whether or not anybody has waited for it; at most [`AT_ONCE`].
    pub fn take(&mut self) -> Vec<Notice> {
        let mut taken: Vec<_> = self.found.take().into_iter().collect();
        for _ in 0..AT_ONCE {
            let Some(record) = self.ring.get_mut().next() else { break };
            taken.extend(Notice::from_bytes(&record));
        }
        taken
    }
}
