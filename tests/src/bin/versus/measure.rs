//! What clients met while a deed was done.

use std::collections::{BTreeMap, BTreeSet};

use serde::Serialize;
use steer_tests::clients::cut;
use steer_tests::report::Report;

/// One way, one deed, one kind of client.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub(crate) struct Figures {
    pub(crate) requests: u64,
    /// Connections that clients kept to the one task to which the deed was done, when it was.
    pub(crate) held: Option<u64>,
    /// A reset in answer to a SYN.
    pub(crate) refused: u64,
    /// Established connections that ended before their answer did.
    pub(crate) reset: u64,
    /// Of these, the ones whose task was there all the time.
    pub(crate) cut: u64,
    /// Requests that took a second or longer, those that were given up included.
    pub(crate) stalled: u64,
    /// Of these, the ones that were given up.
    pub(crate) given_up: u64,
    pub(crate) longest_ms: f64,
    /// From the start of a new task's process to the first request it answered: the median of the new tasks.
    pub(crate) first_ms: Option<f64>,
    /// Failures of any other kind, such as no port left.
    pub(crate) other: u64,
}

/// What clients met who went past both ways.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Control {
    /// Answered or not.
    pub(crate) requests: u64,
    pub(crate) failed: u64,
    /// As in [`Figures`].
    pub(crate) stalled: u64,
    pub(crate) longest_ms: f64,
}

impl Control {
    pub(crate) fn of(report: &Report) -> Self {
        let Report { requests, failed, stalled, slowest_ms, .. } = *report;
        Self { requests: requests + failed, failed, stalled, longest_ms: slowest_ms }
    }

    /// Of a hundred requests, how many stalled. `None`: what failed says nothing about the machine, nor does nothing at all.
    pub(crate) fn percent(self) -> Option<f64> {
        let Self { requests, failed, stalled, .. } = self;
        (requests > 0 && failed == 0).then(|| stalled as f64 * 100.0 / requests as f64)
    }
}

/// The tasks of the service around a deed, by the name under which they answer.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tasks {
    pub(crate) before: BTreeSet<String>,
    /// With the moment at which the task's process was started, in seconds since 1970.
    pub(crate) after: BTreeMap<String, f64>,
}

/// Of tasks with the connections that clients keep to them, the one whose number is the nearest to an equal share of all.
pub(crate) fn fairest(kept: &BTreeMap<String, u64>) -> Option<(&str, u64)> {
    let all: u64 = kept.values().sum();
    let farness = |(_, held): &(&String, &u64)| (**held * kept.len() as u64).abs_diff(all);
    kept.iter().min_by_key(farness).map(|(name, held)| (name.as_str(), *held))
}

impl Tasks {
    fn has_one_ended(&self) -> bool {
        self.before.iter().any(|name| !self.after.contains_key(name))
    }
}

impl Figures {
    pub(crate) fn of(report: &Report, tasks: &Tasks, held: Option<u64>) -> Self {
        // A connection that ended before anybody had answered on it may have been at any task. If one has ended, it was there:
        // none other had a reason.
        let was_cut = |name: &str| tasks.after.contains_key(name) || (name.is_empty() && !tasks.has_one_ended());
        let cut_off = report.broken.iter().filter(|(name, _)| was_cut(name)).map(|(_, count)| count).sum();
        let new = tasks.after.iter().filter(|(name, _)| !tasks.before.contains(*name));
        let first =
            new.filter_map(|(name, started)| Some((report.began + report.first_answers.get(name)? - started) * 1e3));
        Self {
            requests: report.requests,
            held,
            refused: report.failures.refused,
            reset: cut(report),
            cut: cut_off,
            stalled: report.stalled,
            given_up: report.failures.timeout,
            longest_ms: report.slowest_ms,
            first_ms: median(first.collect()),
            other: report.failures.status + report.failures.other,
        }
    }

    /// What no client must meet with steer, whatever the mesh does: failures that no task's end explains.
    pub(crate) fn needless(&self) -> Vec<&'static str> {
        let counts = [("refused", self.refused), ("cut", self.cut)];
        counts.into_iter().filter(|(_, count)| *count > 0).map(|(name, _)| name).collect()
    }

    /// In what clients met more of the bad with steer (`self`) than with the mesh.
    pub(crate) fn worse_than(&self, mesh: &Self) -> Vec<&'static str> {
        let counts = |figures: &Self, other: &Self| {
            let Self { refused, reset, cut, stalled, given_up, other: rest, .. } = *figures;
            // Of connections to a task that ends, how many there were is chance: what counts is the part that was reset.
            let reset = reset * other.held.unwrap_or(1).max(1);
            [
                ("refused", refused),
                ("reset", reset),
                ("cut", cut),
                ("stalled", stalled),
                ("given up", given_up),
                ("other", rest),
            ]
        };
        let both = counts(self, mesh).into_iter().zip(counts(mesh, self));
        both.filter(|((_, steer), (_, mesh))| steer > mesh).map(|((name, _), _)| name).collect()
    }
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use steer_tests::report::Failures;

    use super::*;

    fn tasks(before: &[&str], after: &[(&str, f64)]) -> Tasks {
        Tasks {
            before: before.iter().map(|name| (*name).to_owned()).collect(),
            after: after.iter().map(|(name, started)| ((*name).to_owned(), *started)).collect(),
        }
    }

    fn report(broken: &[(&str, u64)]) -> Report {
        Report {
            requests: 100,
            failures: Failures {
                refused: 3,
                reset: broken.iter().map(|(_, count)| count).sum(),
                ..Failures::default()
            },
            slowest_ms: 12.0,
            began: 1000.0,
            first_answers: [("old", 0.1), ("new", 5.5), ("newer", 7.0)].map(|(name, at)| (name.to_owned(), at)).into(),
            broken: broken.iter().map(|(name, count)| ((*name).to_owned(), *count)).collect(),
            ..Report::default()
        }
    }

    #[test]
    fn what_no_tasks_end_explains_is_needless() {
        let figures = |report| Figures::of(&report, &tasks(&["old"], &[("new", 1005.0)]), None);
        assert_eq!(figures(report(&[("old", 2)])).needless(), ["refused"]);
        assert_eq!(figures(report(&[("new", 1)])).needless(), ["refused", "cut"]);
        assert_eq!(figures(Report::default()).needless(), Vec::<&str>::new());
    }

    #[test]
    fn a_control_that_failed_is_none() {
        let control = |requests, failed| Control::of(&Report { requests, failed, stalled: 3, ..Report::default() });
        assert_eq!(control(300, 0).percent(), Some(1.0));
        assert_eq!((control(300, 1).percent(), control(0, 0).percent()), (None, None));
    }

    #[test]
    fn what_went_with_its_task_is_reset_but_not_cut() {
        let tasks = tasks(&["old", "stays"], &[("stays", 900.0), ("new", 1005.0)]);
        let figures = Figures::of(&report(&[("old", 4), ("stays", 2), ("", 1)]), &tasks, None);
        assert_eq!((figures.refused, figures.reset, figures.cut), (3, 7, 2));
    }

    #[test]
    fn where_no_task_has_ended_every_connection_that_broke_was_cut() {
        let tasks = tasks(&["stays"], &[("stays", 900.0)]);
        let figures = Figures::of(&report(&[("stays", 2), ("", 1)]), &tasks, None);
        assert_eq!((figures.reset, figures.cut, figures.first_ms), (3, 3, None));
    }

    #[test]
    fn the_first_request_is_counted_from_the_start_of_the_process() {
        let tasks = tasks(&["old"], &[("new", 1005.0), ("newer", 1006.0), ("silent", 1001.0)]);
        let figures = Figures::of(&report(&[]), &tasks, None);
        assert_eq!(figures.first_ms, Some(1000.0));
    }

    #[test]
    fn worse_is_what_there_is_more_of() {
        let tasks = Tasks::default();
        let mesh = Figures::of(&report(&[]), &tasks, None);
        let mut steer = Figures { refused: 0, longest_ms: 99.0, ..mesh.clone() };
        assert!(steer.worse_than(&mesh).is_empty());
        steer.stalled = 1;
        assert_eq!(steer.worse_than(&mesh), ["stalled"]);
    }
    #[test]
    fn of_connections_to_the_victim_the_part_that_was_reset_is_compared() {
        let figures = |held, reset| Figures { held, reset, ..Figures::of(&report(&[]), &Tasks::default(), None) };
        for (mesh, steer, is_worse) in [
            ((Some(3), 3), (Some(5), 5), false),
            ((Some(5), 5), (Some(3), 4), true),
            ((Some(5), 2), (Some(5), 3), true),
            ((Some(0), 1), (Some(4), 1), false),
            ((None, 1), (None, 2), true),
        ] {
            let worse = figures(steer.0, steer.1).worse_than(&figures(mesh.0, mesh.1));
            assert_eq!(worse == ["reset"], is_worse, "{mesh:?} {steer:?}: {worse:?}");
        }
    }

    #[test]
    fn the_fairest_victim_is_neither_the_one_with_all_nor_the_one_with_none() {
        for (kept, expected) in [
            (&[("a", 0), ("b", 8), ("c", 3), ("d", 5)][..], Some(("c", 3))),
            (&[("a", 7), ("b", 0), ("c", 7), ("d", 2)], Some(("d", 2))),
            (&[("a", 0), ("b", 0)], Some(("a", 0))),
            (&[], None),
        ] {
            let kept = kept.iter().map(|(name, held)| ((*name).to_owned(), *held)).collect();
            assert_eq!(fairest(&kept), expected, "{kept:?}");
        }
    }
}
