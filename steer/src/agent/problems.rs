//! What is wrong, by who found it: each source replaces its own, and says what is new.

use super::Agent;
use crate::model::{ContainerId, Problem};

/// Where problems come from.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Source {
    Docker,
    Swarm,
    Vips,
    Container(ContainerId),
    Uplink,
    Desired,
    Plan,
    Settings,
    Takeover,
}

impl Agent {
    /// Keeps the problems of a source, and logs those that are new.
    pub(super) fn say(&mut self, source: Source, problems: Vec<Problem>) {
        let before = self.problems.get(&source);
        for problem in &problems {
            if before.is_none_or(|before| !before.contains(problem)) {
                tracing::error!(container = problem.container, label = problem.label, "{}", problem.message);
            }
        }
        if problems.is_empty() {
            self.problems.remove(&source);
        } else {
            self.problems.insert(source, problems);
        }
    }
}
