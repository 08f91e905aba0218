//! Who told first of a stop signal, the kernel or Docker, and how much later Docker did.
//!
//! The two come by different queues, so the order in which they are taken in says nothing. What counts is when the signal was
//! sent (the kernel's time) and when Docker's event arrived, by the same clock.

use std::collections::{BTreeMap, VecDeque};
use std::fmt;
use std::time::Duration;

use hdrhistogram::Histogram;
use serde::{Deserialize, Serialize};
use steer_common::edge::{EdgeEntry, EdgeKind};

use super::ContainerId;

/// Signals of one kind that a container may have open: of more, the oldest are given up.
const OPEN: usize = 8;
/// Later than that counts as that.
const LATEST: Duration = Duration::from_secs(60);

/// Every stop signal of which Docker told.
pub struct Stops {
    kernel_first: u64,
    event_first: u64,
    /// How long after the signal Docker's event arrived, in microseconds.
    lateness: Histogram<u64>,
    signals: BTreeMap<(ContainerId, i32), Signals>,
}

/// What was told of one container's signals of one kind.
#[derive(Default)]
struct Signals {
    /// When the kernel saw them, and whether Docker has told of them too.
    seen: VecDeque<(Duration, bool)>,
    /// When events arrived that the kernel has not explained.
    events: VecDeque<Duration>,
}

/// How it stands, for the status.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct StopCounts {
    /// Stop signals that the kernel saw before Docker's event arrived.
    pub kernel_first: u64,
    /// Stop signals that the kernel did not tell of.
    pub event_first: u64,
    pub lateness_us: Lateness,
}

/// How long after the kernel Docker told, in microseconds.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Lateness {
    pub count: u64,
    pub p50: u64,
    pub p99: u64,
    pub max: u64,
}

impl Stops {
    /// The kernel saw a signal; whether an event was there for it and had been taken for the first to tell.
    pub fn seen(&mut self, container: &ContainerId, signal: i32, at: Duration) -> bool {
        let signals = self.signals.entry((container.clone(), signal)).or_default();
        // Told by the ring, and read from the table as well.
        if signals.seen.iter().any(|(known, _)| *known == at) {
            return false;
        }
        let event = signals.events.iter().position(|arrived| *arrived >= at);
        let arrived = event.and_then(|index| signals.events.remove(index));
        push(&mut signals.seen, (at, arrived.is_some()));
        if let Some(arrived) = arrived {
            self.event_first -= 1;
            self.late(arrived - at);
        }
        arrived.is_some()
    }

    /// Docker's event of a signal arrived; when the kernel saw that signal, if it did.
    ///
    /// Of several signals it is the last one before the event: one that somebody else sent, of which Docker does not tell,
    /// must not make the next event seem late.
    pub fn told(&mut self, container: &ContainerId, signal: i32, arrived: Duration) -> Option<Duration> {
        let signals = self.signals.entry((container.clone(), signal)).or_default();
        let seen = signals.seen.iter_mut().rev().find(|(at, is_told)| !is_told && *at <= arrived);
        let Some((at, is_told)) = seen else {
            push(&mut signals.events, arrived);
            self.event_first += 1;
            return None;
        };
        *is_told = true;
        let at = *at;
        self.late(arrived - at);
        Some(at)
    }

    fn late(&mut self, lateness: Duration) {
        self.kernel_first += 1;
        self.lateness.saturating_record(lateness.as_micros() as u64);
    }

    /// The container is gone.
    pub fn forget(&mut self, container: &ContainerId) {
        self.signals.retain(|(known, _), _| known != container);
    }

    pub fn counts(&self) -> StopCounts {
        let Self { kernel_first, event_first, lateness, signals: _ } = self;
        let lateness_us = Lateness {
            count: lateness.len(),
            p50: lateness.value_at_quantile(0.5),
            p99: lateness.value_at_quantile(0.99),
            max: lateness.max(),
        };
        StopCounts { kernel_first: *kernel_first, event_first: *event_first, lateness_us }
    }
}

impl Default for Stops {
    fn default() -> Self {
        // Three digits are valid bounds for any range: a histogram that cannot be made would be a bug of this line.
        let lateness = Histogram::new_with_bounds(1, LATEST.as_micros() as u64, 3);
        let lateness = lateness.unwrap_or_else(|error| unreachable!("{error}"));
        Self { kernel_first: 0, event_first: 0, lateness, signals: BTreeMap::new() }
    }
}

impl fmt::Debug for Stops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.counts().fmt(f)
    }
}

fn push<T>(queue: &mut VecDeque<T>, item: T) {
    if queue.len() == OPEN {
        queue.pop_front();
    }
    queue.push_back(item);
}

/// What the kernel saw of a backend's first process.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InitEvent {
    /// A stop signal, or `KILL`.
    Signal(i32),
    /// It ended.
    End,
}

impl InitEvent {
    /// What an edge says, whether or not it is new.
    pub fn of(edge: &EdgeEntry) -> Option<Self> {
        match EdgeKind::from_u32(edge.kind)? {
            EdgeKind::Stop | EdgeKind::Kill => Some(Self::Signal(edge.signal as i32)),
            EdgeKind::Exit => Some(Self::End),
        }
    }
}

/// Whether an edge is more than the `known` ones: an older one may be told later, and the count goes round.
pub fn is_new(edge: &EdgeEntry, known: u32) -> bool {
    (edge.count as u32).wrapping_sub(known) as i32 > 0
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const TERM: i32 = 15;
    const KILL: i32 = 9;

    enum Happens {
        /// The kernel saw it, in milliseconds.
        Seen(i32, u64),
        /// Docker's event arrived.
        Told(i32, u64),
    }
    use Happens::{Seen as Kernel, Told as Docker};

    #[rstest]
    #[case::as_it_should_be(&[Kernel(TERM, 10), Docker(TERM, 13)], (1, 0), 3)]
    #[case::nobody_but_docker(&[Docker(TERM, 13)], (0, 1), 0)]
    #[case::docker_did_not_send_it(&[Kernel(TERM, 10)], (0, 0), 0)]
    #[case::taken_in_the_other_way_round(&[Docker(TERM, 13), Kernel(TERM, 10)], (1, 0), 3)]
    #[case::at_the_same_moment(&[Docker(TERM, 10), Kernel(TERM, 10)], (1, 0), 0)]
    #[case::another_signal_after_the_event(&[Docker(TERM, 10), Kernel(TERM, 11)], (0, 1), 0)]
    #[case::and_its_own_event(&[Docker(TERM, 10), Kernel(TERM, 11), Docker(TERM, 12)], (1, 1), 1)]
    #[case::killed_when_it_did_not_stop(
        &[Kernel(TERM, 10), Docker(TERM, 12), Kernel(KILL, 9_000), Docker(KILL, 9_004)], (2, 0), 4
    )]
    #[case::killed_before_docker_told_of_the_first(
        &[Kernel(TERM, 10), Kernel(KILL, 11), Docker(TERM, 12), Docker(KILL, 13)], (2, 0), 2
    )]
    #[case::the_same_signal_twice(&[Kernel(TERM, 10), Kernel(TERM, 20), Docker(TERM, 21), Docker(TERM, 22)], (2, 0), 12)]
    #[case::told_by_the_ring_and_by_the_table(
        &[Kernel(TERM, 10), Kernel(TERM, 10), Docker(TERM, 11), Kernel(TERM, 10), Docker(TERM, 12)], (1, 1), 1
    )]
    #[case::an_old_one_that_docker_did_not_send(&[Kernel(TERM, 10), Kernel(TERM, 9_000), Docker(TERM, 9_002)], (1, 0), 2)]
    #[case::later_than_counts(&[Kernel(TERM, 10), Docker(TERM, 90_000)], (1, 0), 60_000)]
    fn the_kernel_s_time_and_the_event_s_arrival_decide(
        #[case] happened: &[Happens],
        #[case] expected: (u64, u64),
        #[case] latest_ms: u64,
    ) {
        let (web, mut stops) = (ContainerId("web".to_owned()), Stops::default());
        for one in happened {
            match one {
                Kernel(signal, at) => _ = stops.seen(&web, *signal, Duration::from_millis(*at)),
                Docker(signal, at) => _ = stops.told(&web, *signal, Duration::from_millis(*at)),
            }
        }
        let counts = stops.counts();
        assert_eq!((counts.kernel_first, counts.event_first), expected);
        assert_eq!(counts.lateness_us.count, counts.kernel_first, "each of them was as late as it was");
        let error = counts.lateness_us.max.abs_diff(latest_ms * 1_000);
        assert!(error <= latest_ms, "{counts:?}: within a thousandth");
    }

    #[test]
    fn a_correction_is_told_of() {
        let (web, mut stops) = (ContainerId("web".to_owned()), Stops::default());
        let ms = Duration::from_millis;
        assert_eq!(stops.told(&web, TERM, ms(13)), None);
        assert!(stops.seen(&web, TERM, ms(10)), "the event was not the first after all");
        assert!(!stops.seen(&web, TERM, ms(20)));
        assert_eq!(stops.told(&web, TERM, ms(21)), Some(ms(20)));
    }

    #[test]
    fn containers_are_apart_and_forgotten() {
        let [web, api] = ["web", "api"].map(|id| ContainerId(id.to_owned()));
        let mut stops = Stops::default();
        stops.seen(&web, TERM, Duration::from_millis(1));
        assert_eq!(stops.told(&api, TERM, Duration::from_millis(2)), None);
        stops.forget(&web);
        assert_eq!(stops.told(&web, TERM, Duration::from_millis(3)), None);
        (0..100).for_each(|at| _ = stops.seen(&web, TERM, Duration::from_millis(at)));
        stops.forget(&web);
        stops.forget(&api);
        assert!(stops.signals.is_empty());
    }

    #[rstest]
    #[case::nothing_was_seen(0, 0, false)]
    #[case::one_more(1, 0, true)]
    #[case::known(3, 3, false)]
    #[case::told_late(2, 3, false)]
    #[case::the_count_goes_round(1 << 32, u32::MAX, true)]
    #[case::and_a_late_one(u64::from(u32::MAX), 0, false)]
    fn an_edge_is_new_when_it_is_behind_the_known_ones(#[case] count: u64, #[case] known: u32, #[case] expected: bool) {
        let edge = EdgeEntry { count, ..EdgeEntry::default() };
        assert_eq!(is_new(&edge, known), expected);
    }

    #[rstest]
    #[case(EdgeKind::Stop as u32, 3, Some(InitEvent::Signal(3)))]
    #[case(EdgeKind::Kill as u32, 9, Some(InitEvent::Signal(9)))]
    #[case(EdgeKind::Exit as u32, 0, Some(InitEvent::End))]
    #[case(0, 0, None)]
    #[case(99, 0, None)]
    fn an_edge_says_what_was_seen(#[case] kind: u32, #[case] signal: u32, #[case] expected: Option<InitEvent>) {
        assert_eq!(InitEvent::of(&EdgeEntry { count: 1, at_ns: 1, kind, signal, frozen_ns: 0 }), expected);
    }
}
