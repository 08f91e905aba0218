//! What is compared: an app, and what is done to it.

use std::fmt;

/// Something that is done to a service under load.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Deed {
    StopFirst,
    StartFirst,
    Stop,
    Kill,
    Exit,
    Pause,
    Scale,
    SlowUpdate,
}

impl Deed {
    /// The last ones want another number of tasks, and another app: the service they are done to is made once.
    const ALL: [Self; 8] = [
        Self::StopFirst,
        Self::StartFirst,
        Self::Stop,
        Self::Kill,
        Self::Exit,
        Self::Pause,
        Self::Scale,
        Self::SlowUpdate,
    ];

    pub(crate) fn words(self) -> &'static str {
        match self {
            Self::StopFirst => "service update, stop-first",
            Self::StartFirst => "service update, start-first",
            Self::Stop => "docker stop of a task",
            Self::Kill => "kill -9 of a task",
            Self::Exit => "a task exits by itself",
            Self::Pause => "docker pause of a task",
            Self::Scale => "scale 6 → 2 → 6",
            Self::SlowUpdate => "service update, app slow to listen",
        }
    }

    /// It is done to one task, while the others are left alone.
    pub(crate) fn has_victim(self) -> bool {
        matches!(self, Self::Stop | Self::Kill | Self::Exit | Self::Pause)
    }

    /// Tasks of the service before and after it.
    pub(crate) fn replicas(self) -> usize {
        if self == Self::Scale { 6 } else { 4 }
    }
}

/// Two rows of the table, in fact: one for each kind of client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Row {
    /// Whether the app has a healthcheck.
    pub(crate) health: bool,
    pub(crate) deed: Deed,
}

impl Row {
    /// Those whose name contains one of these words; all of them for no words at all.
    pub(crate) fn matching(filter: &[String]) -> Vec<Self> {
        let rows = [false, true].into_iter().flat_map(|health| Deed::ALL.map(|deed| Self { health, deed }));
        rows.filter(|row| filter.is_empty() || filter.iter().any(|words| row.to_string().contains(words))).collect()
    }
}

impl fmt::Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let app = if self.health { "healthcheck" } else { "none" };
        write!(f, "{app}: {}", self.deed.words())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(filter: &[&str]) -> Vec<String> {
        let filter: Vec<String> = filter.iter().map(|words| (*words).to_owned()).collect();
        Row::matching(&filter).iter().map(Row::to_string).collect()
    }

    #[test]
    fn every_deed_is_done_to_both_apps_and_each_row_has_a_name_of_its_own() {
        let mut all = names(&[]);
        assert_eq!(all.len(), 16);
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 16);
    }

    #[test]
    fn a_filter_takes_rows_by_a_part_of_their_name() {
        assert_eq!(names(&["docker stop"]), ["none: docker stop of a task", "healthcheck: docker stop of a task"]);
        let two = names(&["none: kill", "healthcheck: scale"]);
        assert_eq!(two, ["none: kill -9 of a task", "healthcheck: scale 6 → 2 → 6"]);
        assert!(names(&["no such row"]).is_empty());
    }
}
