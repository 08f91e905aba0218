//! Whether a task of this node that is no backend may be asked for, by what Docker says of it.

use std::time::Duration;

use crate::model::labels::{Defaults, drain_of, is_left_alone, is_weightless};
use crate::model::lifecycle::{KILL, is_stop, patience};
use crate::model::{Container, Health};

/// How a task stands.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    paused: bool,
    health: Health,
    stop_signal: i32,
    stop_timeout: Option<Duration>,
    drain: Duration,
    /// Its last stop signal, and when it was sent, by a clock that only goes forward.
    stopped: Option<(i32, Duration)>,
    weightless: bool,
    /// steer is to leave it alone.
    pub left_alone: bool,
}

/// Something that Docker says happened to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    Signal(i32),
    Paused(bool),
    Health(Health),
}

impl Standing {
    pub fn of(container: &Container, defaults: &Defaults) -> Self {
        Self {
            paused: container.paused,
            health: container.health,
            stop_signal: container.stop_signal,
            stop_timeout: container.stop_timeout,
            drain: drain_of(&container.labels, defaults),
            stopped: None,
            weightless: is_weightless(&container.labels, defaults),
            left_alone: is_left_alone(&container.labels),
        }
    }

    /// The same run of it, described anew: of signals a description says nothing.
    pub fn describe(&mut self, anew: Self) {
        *self = Self { stopped: self.stopped, ..anew };
    }

    /// Takes in what happened at `now`.
    pub fn take_in(&mut self, change: Change, now: Duration) {
        match change {
            Change::Signal(signal) if is_stop(signal, self.stop_signal) => self.stopped = Some((signal, now)),
            Change::Signal(_) => {}
            Change::Paused(paused) => self.paused = paused,
            Change::Health(health) => self.health = health,
        }
    }

    /// Whether it takes nothing new at `now`. `is_told`: the swarm tells what it wants of its tasks; if so, one that outlives a signal
    /// that was not Swarm's is put back, as backends are (`has_survived` in [`crate::model::lifecycle`]).
    pub fn is_out(&self, now: Duration, is_told: bool) -> bool {
        let patience = patience(self.drain, self.stop_timeout, !is_told);
        let is_stopping = |(signal, at): (i32, Duration)| {
            signal == KILL || patience.is_none_or(|patience| now.saturating_sub(at) < patience)
        };
        self.paused || self.weightless || self.health == Health::Unhealthy || self.stopped.is_some_and(is_stopping)
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::fixtures;

    const TERM: i32 = 15;

    fn container(labels: &[(&str, &str)]) -> Container {
        Container {
            labels: labels.iter().map(|(label, value)| ((*label).to_owned(), (*value).to_owned())).collect(),
            stop_signal: TERM,
            stop_timeout: Some(Duration::from_secs(10)),
            ..fixtures::container("1", "api.1")
        }
    }

    fn standing(labels: &[(&str, &str)]) -> Standing {
        Standing::of(&container(labels), &Defaults::default())
    }

    #[rstest]
    #[case::nothing(&[], false)]
    #[case::it_stands_still(&[Change::Paused(true)], true)]
    #[case::and_goes_on(&[Change::Paused(true), Change::Paused(false)], false)]
    #[case::its_stop_signal(&[Change::Signal(TERM)], true)]
    #[case::nobody_survives_this_one(&[Change::Signal(9)], true)]
    #[case::a_reload(&[Change::Signal(1)], false)]
    #[case::its_healthcheck_fails(&[Change::Health(Health::Unhealthy)], true)]
    #[case::and_is_good_again(&[Change::Health(Health::Unhealthy), Change::Health(Health::Healthy)], false)]
    fn what_happens_to_a_task_decides(#[case] changes: &[Change], #[case] expected: bool) {
        let mut task = standing(&[]);
        changes.iter().for_each(|change| task.take_in(*change, Duration::ZERO));
        assert_eq!(task.is_out(Duration::from_secs(1), true), expected);
    }

    #[test]
    fn who_outlives_its_stop_signal_is_put_back_where_swarms_will_is_told() {
        let mut task = standing(&[]);
        task.take_in(Change::Signal(TERM), Duration::from_secs(100));
        task.describe(standing(&[]));
        let drain = Defaults::default().drain;
        let before = Duration::from_secs(99) + drain;
        assert!(task.is_out(before, true));
        let after = Duration::from_secs(100) + drain;
        assert!(!task.is_out(after, true));
        assert!(task.is_out(after, false), "it may have been Swarm's, which takes none back");
        let mut patient = standing(&[("steer.drain", "60s")]);
        patient.take_in(Change::Signal(TERM), Duration::from_secs(100));
        assert!(patient.is_out(after, true));
        task.take_in(Change::Signal(9), Duration::from_secs(100));
        assert!(task.is_out(after, true), "nobody outlives this one");
    }

    #[test]
    fn labels_decide_too() {
        assert!(standing(&[("steer.weight", "0")]).is_out(Duration::ZERO, true));
        assert!(!standing(&[("steer.weight", "1")]).is_out(Duration::ZERO, true));
        let weightless = Defaults { weight: 0, ..Defaults::default() };
        assert!(Standing::of(&container(&[]), &weightless).is_out(Duration::ZERO, true));
        assert!(standing(&[("steer.ignore", "true")]).left_alone);
        assert!(!standing(&[]).left_alone);
    }
}
