//! Of which containers an agent that has only begun knows nothing yet.
//!
//! What an earlier agent left in the maps of these stays as it is: a backend that is taken out of the maps though its container runs
//! loses all its connections.

use std::collections::BTreeSet;

use super::ContainerId;

/// The containers that Docker has not described to this agent.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Undescribed {
    /// Docker has not said which containers there are.
    All,
    /// It has, and these are there; but what it said of them was older than an event, or nothing.
    Only(BTreeSet<ContainerId>),
}

impl Undescribed {
    pub fn contains(&self, id: &ContainerId) -> bool {
        match self {
            Self::All => true,
            Self::Only(these) => these.contains(id),
        }
    }

    /// Docker has never said which containers there are.
    pub fn is_all(&self) -> bool {
        *self == Self::All
    }

    pub fn is_empty(&self) -> bool {
        matches!(self, Self::Only(these) if these.is_empty())
    }

    /// Those that are known to be there.
    pub fn ids(&self) -> impl Iterator<Item = &ContainerId> {
        let these = match self {
            Self::All => None,
            Self::Only(these) => Some(these),
        };
        these.into_iter().flatten()
    }

    /// This one is known now, or known to be gone.
    pub fn remove(&mut self, id: &ContainerId) {
        if let Self::Only(these) = self {
            these.remove(id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn before_the_first_list_nothing_is_described_and_no_single_one_can_be() {
        let a = ContainerId("a".to_owned());
        let mut undescribed = Undescribed::All;
        undescribed.remove(&a);
        assert!(undescribed.contains(&a) && undescribed.is_all() && !undescribed.is_empty());
    }

    #[test]
    fn after_it_only_those_that_it_left_out() {
        let [a, b] = ["a", "b"].map(|name| ContainerId(name.to_owned()));
        let mut undescribed = Undescribed::Only([a.clone()].into());
        assert!(undescribed.contains(&a) && !undescribed.contains(&b) && !undescribed.is_all());
        assert!(undescribed.ids().eq([&a]));
        undescribed.remove(&a);
        assert!(undescribed.is_empty() && !undescribed.contains(&a));
    }
}
