//! When to ask Swarm again.
//!
//! Problem: tasks have no events. What happens to them follows from something that has one (a service or a node was changed, a
//! container of this node started or ended) within moments, or within the pace of a rolling update.
//! Approach: after each such event a few questions, ever further apart; while an update is under way, at a steady pace. Otherwise
//! none: the resync asks along.

use std::time::Duration;

/// After an event. Docker stops a task two seconds after it has decided to, so that even the later ones are in time.
const AFTER: [Duration; 6] = [
    Duration::ZERO,
    Duration::from_millis(100),
    Duration::from_millis(300),
    Duration::from_millis(700),
    Duration::from_millis(1_500),
    Duration::from_millis(3_000),
];

/// While an update is under way. One question is three requests, and with overlay networks two for each that tasks of this node are in
/// and one more: a few milliseconds of dockerd's time.
const UPDATING: Duration = Duration::from_millis(500);

/// While containers of this node may ask for tasks on others, whose end no event tells here.
const REMOTE: Duration = Duration::from_secs(1);

/// While services are known to be on this node alone: the kernel counts on it for no longer than
/// [`SWARM_LEASE_SECS`](steer_common::limits::SWARM_LEASE_SECS).
const HERE: Duration = Duration::from_secs(10);

/// The least time between two questions.
const APART: Duration = Duration::from_millis(100);

/// The questions to come.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Polls {
    /// When they are due after what has happened, in order.
    due: Vec<Duration>,
    /// When the next one is that nothing has led to, and how far apart those are.
    pace: Option<(Duration, Duration)>,
    asked: Option<Duration>,
}

/// What an answer said that asks for more.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Demand {
    /// A service is being updated.
    pub is_updating: bool,
    /// Containers of this node may ask for tasks on others.
    pub has_remote: bool,
    /// There are services whose tasks are all on this node.
    pub has_all_here: bool,
}

impl Polls {
    /// Something happened. `now`: by a clock that only goes forward.
    pub fn happened(&mut self, now: Duration) {
        // Nothing that happens puts off a question that is due already.
        let first = self.due.first().copied();
        let earliest = self.asked.map_or(now, |asked| now.max(asked + APART));
        self.due = AFTER.iter().map(|after| (now + *after).max(earliest)).chain(first).collect();
        self.due.sort_unstable();
        self.due.dedup();
    }

    /// When the next question is due.
    pub fn due(&self) -> Option<Duration> {
        self.due.first().copied().into_iter().chain(self.pace.map(|(due, _)| due)).min()
    }

    /// Whether to ask now; if so, it counts as asked.
    pub fn take(&mut self, now: Duration) -> bool {
        if self.due().is_none_or(|due| due > now) {
            return false;
        }
        // One answer tells as much as all that are overdue.
        self.due.retain(|due| *due > now);
        self.pace = self.pace.map(|(_, apart)| (now + apart, apart));
        self.asked = Some(now);
        true
    }

    /// There was an answer.
    pub fn answered(&mut self, demand: Demand, now: Duration) {
        let Demand { is_updating, has_remote, has_all_here } = demand;
        let paces = [(is_updating, UPDATING), (has_remote, REMOTE), (has_all_here, HERE)];
        let apart = paces.into_iter().find_map(|(is_so, apart)| is_so.then_some(apart));
        self.pace = apart.map(|apart| match self.pace {
            Some((due, before)) if before == apart => (due, apart),
            _ => (now + apart, apart),
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    /// Goes from question to question, each answered at once.
    fn asked(polls: &mut Polls, is_updating: bool, until: u64) -> Vec<u64> {
        let mut asked = Vec::new();
        while let Some(due) = polls.due().filter(|due| *due < ms(until)) {
            assert!(polls.take(due));
            assert!(!polls.take(due), "once");
            polls.answered(Demand { is_updating, ..Demand::default() }, due);
            asked.push(due.as_millis() as u64);
        }
        asked
    }

    #[test]
    fn an_event_is_followed_by_a_few_questions_and_then_there_is_silence() {
        let mut polls = Polls::default();
        assert_eq!(polls.due(), None);
        polls.happened(ms(10_000));
        assert_eq!(asked(&mut polls, false, 60_000), [10_000, 10_100, 10_300, 10_700, 11_500, 13_000]);
    }

    #[test]
    fn an_update_is_followed_at_a_steady_pace_until_it_is_over() {
        let mut polls = Polls::default();
        polls.happened(ms(0));
        let during = asked(&mut polls, true, 10_000);
        assert!(during.windows(2).all(|pair| pair[1] - pair[0] <= 500), "{during:?}");
        assert!(during.len() <= 6 + 20, "{during:?}");
        polls.answered(Demand::default(), ms(10_000));
        assert_eq!(polls.due(), None);
    }

    #[test]
    fn tasks_on_other_nodes_are_asked_about_every_second() {
        let remote = Demand { has_remote: true, has_all_here: true, ..Demand::default() };
        let mut polls = Polls::default();
        polls.answered(remote, ms(0));
        assert_eq!(polls.due(), Some(ms(1_000)));
        assert!(polls.take(ms(1_000)));
        polls.answered(remote, ms(1_010));
        assert_eq!(polls.due(), Some(ms(2_000)));
        polls.answered(Demand { is_updating: true, ..remote }, ms(1_200));
        assert_eq!(polls.due(), Some(ms(1_700)));
    }

    #[test]
    fn what_the_kernel_counts_on_is_asked_about_again_before_it_stops_to() {
        let mut polls = Polls::default();
        polls.answered(Demand { has_all_here: true, ..Demand::default() }, ms(0));
        let lease = Duration::from_secs(steer_common::limits::SWARM_LEASE_SECS.into());
        assert!(polls.due().is_some_and(|due| due * 2 < lease), "one answer may be missing");
    }

    #[test]
    fn a_burst_of_events_is_not_a_burst_of_questions() {
        let mut polls = Polls::default();
        let mut questions = 0;
        for at in 0..1_000 {
            polls.happened(ms(at));
            questions += u32::from(polls.take(ms(at)));
        }
        assert!(questions <= 11, "{questions} in a second");
        assert!(polls.due().is_some(), "and the last event has its answer");
    }

    #[test]
    fn who_was_late_asks_once() {
        let mut polls = Polls::default();
        polls.happened(ms(0));
        assert!(polls.take(ms(2_000)));
        assert_eq!(polls.due(), Some(ms(3_000)));
    }
}
