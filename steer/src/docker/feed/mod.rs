//! The stream of events, and reconnecting.
//!
//! A task of its own reads: dockerd drops events in silence when a reader is slow, so the reader must never wait for
//! the agent. If the agent falls behind all the same, that is a loss like any other: told, and healed by listing anew.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use http_body_util::BodyExt;
use hyper::body::Incoming;
use tokio::sync::mpsc;
use tokio::sync::mpsc::error::TrySendError;
use tokio::task::JoinHandle;

use super::events::{Event, FILTERS, parse};
use super::http::{Host, percent_encoded};
use super::{ApiVersion, Docker, Version};

/// Events that may wait for the agent.
const CAPACITY: usize = 4096;

/// No event is longer: each carries all labels of its container.
const MAX_LINE: usize = 1024 * 1024;

const SHORTEST_WAIT: Duration = Duration::from_millis(100);
/// When the reader itself has failed.
const AFTER_FAILURE: Duration = Duration::from_secs(1);
const LONGEST_WAIT: Duration = Duration::from_secs(5);

/// What a [`Subscription`] yields.
#[derive(Debug)]
pub enum Feed {
    /// Events of this daemon flow from here on: list now, and nothing is missed.
    Connected(Version),
    /// Something happened to a container.
    Event(Event),
    /// Events were or may have been lost; [`Feed::Connected`] follows, later. Told once, however often reconnecting
    /// fails.
    Lost(anyhow::Error),
}

/// Events for as long as it lives.
#[derive(Debug)]
pub struct Subscription {
    docker: Docker,
    feed: mpsc::Receiver<Feed>,
    reader: JoinHandle<()>,
}

impl Subscription {
    pub(super) fn start(docker: Docker) -> Self {
        let (sender, feed) = mpsc::channel(CAPACITY);
        Self { feed, reader: tokio::spawn(keep_reading(docker.clone(), sender)), docker }
    }

    /// The next item. Cancel-safe.
    pub async fn next(&mut self) -> Feed {
        if let Some(item) = self.feed.recv().await {
            return item;
        }
        // Its task has failed: a bug, but none that may end the agent, nor keep it busy.
        let (sender, feed) = mpsc::channel(CAPACITY);
        let docker = self.docker.clone();
        self.feed = feed;
        self.reader = tokio::spawn(async {
            tokio::time::sleep(AFTER_FAILURE).await;
            keep_reading(docker, sender).await;
        });
        Feed::Lost(anyhow::anyhow!(
            "the task that reads Docker's events has failed; it starts anew in {AFTER_FAILURE:?}"
        ))
    }
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

async fn keep_reading(docker: Docker, feed: mpsc::Sender<Feed>) {
    let mut wait = SHORTEST_WAIT;
    let mut told = false;
    loop {
        let began = Instant::now();
        let (connected, lost) = read_until_lost(&docker, &feed).await;
        if connected || !told {
            tracing::debug!(error = format!("{lost:#}"), "event stream lost");
            if feed.send(Feed::Lost(lost)).await.is_err() {
                return;
            }
            told = true;
        } else {
            tracing::debug!(error = format!("{lost:#}"), wait = ?wait, "event stream still not back");
        }
        // A connection that breaks at once again must not make the agent list in a loop.
        if connected && began.elapsed() > LONGEST_WAIT {
            wait = SHORTEST_WAIT;
        }
        tokio::time::sleep(wait).await;
        wait = (wait * 2).min(LONGEST_WAIT);
    }
}

/// Whether it was connected, and what ended it.
async fn read_until_lost(docker: &Docker, feed: &mpsc::Sender<Feed>) -> (bool, anyhow::Error) {
    let open = async {
        // Not the version negotiated last: dockerd may have come back as another release.
        let version = docker.version().await?;
        anyhow::Ok((version, docker.events().await?))
    };
    let (version, mut events) = match open.await {
        Ok(opened) => opened,
        Err(error) => return (false, error),
    };
    if feed.send(Feed::Connected(version)).await.is_err() {
        return (true, anyhow::anyhow!("nobody reads the events"));
    }
    loop {
        match events.next().await {
            Ok(Some(event)) => match feed.try_send(Feed::Event(event)) {
                Ok(()) => {}
                Err(TrySendError::Full(_)) => return (true, anyhow::anyhow!("the agent is {CAPACITY} events behind")),
                Err(TrySendError::Closed(_)) => return (true, anyhow::anyhow!("nobody reads the events")),
            },
            Ok(None) => {
                return (true, anyhow::anyhow!("Docker at {} closed the event stream: is it stopping?", docker.host()));
            }
            Err(error) => return (true, error),
        }
    }
}

/// Events of one connection.
#[derive(Debug)]
pub struct Events {
    body: Incoming,
    /// What was read and not parsed.
    buffer: Vec<u8>,
    /// Up to here, the buffer holds no line's end.
    searched: usize,
    received: Instant,
}

impl Events {
    /// Returns once the head of the response is there. Dockerd sends it just *before* it subscribes, so everything
    /// since before the request is asked for as well: dockerd replays that in the same step.
    pub(super) async fn open(host: &Host, api: ApiVersion) -> anyhow::Result<Self> {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (seconds, nanos) = (since.as_secs(), since.subsec_nanos());
        let path = format!("/v{api}/events?since={seconds}.{nanos:09}&filters={}", percent_encoded(FILTERS));
        let body = host.open(&path).await.context("cannot subscribe to Docker's events")?.into_body();
        Ok(Self { body, buffer: Vec::new(), searched: 0, received: Instant::now() })
    }

    /// The next event that concerns steer; `None` = the stream has ended. Cancel-safe.
    pub async fn next(&mut self) -> anyhow::Result<Option<Event>> {
        loop {
            while let Some(line) = self.take_line() {
                let event = parse(&line, self.received).with_context(|| {
                    format!("Docker sent an event that is not understood: {}", String::from_utf8_lossy(&line))
                })?;
                if event.is_some() {
                    return Ok(event);
                }
            }
            if self.buffer.len() > MAX_LINE {
                bail!("Docker sent an event of more than {MAX_LINE} bytes");
            }
            match self.body.frame().await {
                Some(frame) => {
                    let frame = frame.context("Docker's event stream broke off")?;
                    self.received = Instant::now();
                    self.buffer.extend_from_slice(frame.data_ref().map(AsRef::as_ref).unwrap_or_default());
                }
                None => return Ok(None),
            }
        }
    }

    /// The next whole line that is not empty.
    fn take_line(&mut self) -> Option<Vec<u8>> {
        loop {
            let rest = self.buffer.get(self.searched..)?;
            let Some(end) = rest.iter().position(|byte| *byte == b'\n') else {
                self.searched = self.buffer.len();
                return None;
            };
            let line: Vec<u8> = self.buffer.drain(..=self.searched + end).collect();
            self.searched = 0;
            if !line.trim_ascii().is_empty() {
                return Some(line);
            }
        }
    }
}

#[cfg(test)]
mod tests;
