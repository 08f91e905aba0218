//! The last things that happened to backends, in order, and what of them somebody has not heard yet.
//!
//! Whoever follows keeps one number, that of the last transition it was told: the ring is everybody's queue, so a slow reader
//! costs nothing and learns how many it has missed.

use std::collections::{BTreeMap, VecDeque};

use steer_common::state::BackendState;

use super::cause::{Cause, Source};
use super::{ContainerId, ServiceName, UnixMicros};

/// How many are kept.
pub const KEPT: usize = 1000;

/// Something happened to a backend. Mostly its state changed; a refused connection and a second stop signal are told too.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Transition {
    /// The kernel's own time where the kernel saw it.
    pub at: UnixMicros,
    pub service: ServiceName,
    pub backend: String,
    pub container: ContainerId,
    /// `Gone` = it was not there.
    pub from: BackendState,
    pub to: BackendState,
    pub cause: Cause,
    /// How many times: refused connections of one second are one.
    pub count: u64,
}

/// The last [`KEPT`] transitions, numbered from 1.
#[derive(Clone, Debug, Default)]
pub struct History {
    kept: VecDeque<Transition>,
    /// How many were forgotten, which is the number of the last of them.
    forgotten: u64,
}

/// What somebody has not heard yet.
#[derive(PartialEq, Eq, Debug)]
pub struct News<'a> {
    /// That many are no longer kept.
    pub missed: u64,
    /// With their numbers, in order.
    pub transitions: Vec<(u64, &'a Transition)>,
}

impl History {
    pub fn push(&mut self, transition: Transition) {
        if self.kept.len() == KEPT {
            self.kept.pop_front();
            self.forgotten += 1;
        }
        self.kept.push_back(transition);
    }

    /// The first `at_most` transitions behind that number; all of them behind a number that was never given out: it is another
    /// agent's.
    pub fn after(&self, number: u64, at_most: usize) -> News<'_> {
        let last = self.forgotten + self.kept.len() as u64;
        let number = if number > last { 0 } else { number };
        let heard = number.saturating_sub(self.forgotten);
        let rest = self.kept.iter().enumerate().skip(heard as usize).take(at_most);
        News {
            missed: self.forgotten.saturating_sub(number),
            transitions: rest.map(|(index, transition)| (self.forgotten + index as u64 + 1, transition)).collect(),
        }
    }
}

/// Refused connections, at most one transition per backend and second: the first is told at once, what follows within the
/// second when that is over.
#[derive(Debug, Default)]
pub struct Refusals(BTreeMap<ContainerId, Refused>);

#[derive(Debug)]
struct Refused {
    told: UnixMicros,
    last: UnixMicros,
    untold: u64,
}

const SECOND: u64 = 1_000_000;

impl Refusals {
    /// One more; whether it is to be told now.
    pub fn refused(&mut self, by: &ContainerId, at: UnixMicros) -> bool {
        if let Some(refused) = self.0.get_mut(by) {
            refused.untold += 1;
            refused.last = at;
            return false;
        }
        self.0.insert(by.clone(), Refused { told: at, last: at, untold: 0 });
        true
    }

    /// Whose second is over, how many there were in it that were not told, and when the last one was.
    pub fn due(&mut self, now: UnixMicros) -> Vec<(ContainerId, u64, UnixMicros)> {
        let mut due = Vec::new();
        self.0.retain(|by, refused| {
            if now.0.saturating_sub(refused.told.0) < SECOND {
                return true;
            }
            if refused.untold == 0 {
                return false;
            }
            due.push((by.clone(), refused.untold, refused.last));
            // The next second begins.
            *refused = Refused { told: now, last: refused.last, untold: 0 };
            true
        });
        due
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn forget(&mut self, by: &ContainerId) {
        self.0.remove(by);
    }
}

/// A cause of its own: the state stays as it is.
pub fn refused() -> Cause {
    Cause::new(Source::Refused, "a new connection")
}

#[cfg(test)]
pub(crate) mod fixtures {
    use super::*;

    pub(crate) fn transition(at: u64) -> Transition {
        Transition {
            at: UnixMicros(at),
            service: "web".to_owned(),
            backend: "web-1".to_owned(),
            container: ContainerId("abc".to_owned()),
            from: BackendState::Ready,
            to: BackendState::Draining,
            cause: Cause::new(Source::Signal, "TERM"),
            count: 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::fixtures::transition;
    use super::*;

    fn history(transitions: u64) -> History {
        let mut history = History::default();
        (1..=transitions).for_each(|number| history.push(transition(number)));
        history
    }

    #[rstest]
    #[case::nothing_has_happened(0, 0, 0, None)]
    #[case::all_of_it(3, 0, 0, Some((1, 3)))]
    #[case::what_came_since(3, 2, 0, Some((3, 3)))]
    #[case::all_is_known(3, 3, 0, None)]
    #[case::an_earlier_agent_s_number(3, 40, 0, Some((1, 3)))]
    #[case::full(1000, 0, 0, Some((1, 1000)))]
    #[case::the_first_are_forgotten(1010, 0, 10, Some((11, 1010)))]
    #[case::some_of_them_were_told(1010, 4, 6, Some((11, 1010)))]
    #[case::the_last_forgotten_one_was_told(1010, 10, 0, Some((11, 1010)))]
    #[case::all_that_is_kept_is_known(1010, 1010, 0, None)]
    fn whoever_asks_gets_what_is_kept_and_how_many_are_not(
        #[case] happened: u64,
        #[case] after: u64,
        #[case] missed: u64,
        #[case] kept: Option<(u64, u64)>,
    ) {
        let history = history(happened);
        let news = history.after(after, usize::MAX);
        let numbers: Vec<_> = news.transitions.iter().map(|(number, _)| *number).collect();
        assert_eq!((news.missed, numbers.first().copied().zip(numbers.last().copied())), (missed, kept));
        for (number, transition) in news.transitions {
            assert_eq!(transition.at.0, number, "each keeps its number");
        }
    }

    #[test]
    fn a_reader_goes_on_where_it_was_in_as_many_steps_as_it_likes() {
        let history = history(1010);
        let (mut heard, mut missed, mut all) = (5, 0, Vec::new());
        loop {
            let news = history.after(heard, 64);
            missed += news.missed;
            let Some((last, _)) = news.transitions.last() else { break };
            all.extend(news.transitions.iter().map(|(number, _)| *number));
            heard = *last;
        }
        assert_eq!((missed, all), (5, (11..=1010).collect()));
    }

    #[test]
    fn refused_connections_are_told_once_a_second_with_their_number() {
        let (one, other) = (ContainerId("one".to_owned()), ContainerId("other".to_owned()));
        let mut refusals = Refusals::default();
        assert!(refusals.refused(&one, UnixMicros(0)), "the first at once");
        assert!(!refusals.refused(&one, UnixMicros(10)));
        assert!(!refusals.refused(&one, UnixMicros(700_000)));
        assert!(refusals.refused(&other, UnixMicros(700_000)), "each backend for itself");
        assert_eq!(refusals.due(UnixMicros(999_999)), []);
        assert_eq!(refusals.due(UnixMicros(1_000_000)), [(one.clone(), 2, UnixMicros(700_000))]);
        assert!(!refusals.refused(&one, UnixMicros(1_100_000)), "still one a second");
        assert_eq!(refusals.due(UnixMicros(2_000_000)), [(one.clone(), 1, UnixMicros(1_100_000))]);
        assert_eq!(refusals.due(UnixMicros(3_000_000)), []);
        assert!(refusals.is_empty(), "and then it is forgotten");
        assert!(refusals.refused(&one, UnixMicros(3_000_001)));
        refusals.forget(&one);
        assert!(refusals.is_empty());
    }
}
