//! Which came first: an event, or the question whose answer has come just now.
//!
//! Docker is asked beside the stream of its events, and may take its time. What an answer says of a container counts only if no
//! event of that container has come since it was asked, else it could undo what the event told. Then the question is asked again.

use std::collections::BTreeMap;

use super::ContainerId;

/// A moment in the order of events and questions.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Turn(u64);

/// Events and questions, numbered as they come.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Order {
    now: Turn,
    /// The last event of each container, as far as an answer may still come that is older.
    last: BTreeMap<ContainerId, Turn>,
    /// When events may have been lost: whatever was asked before is not to be trusted.
    lost: Turn,
}

impl Order {
    /// The next question's turn.
    pub fn ask(&mut self) -> Turn {
        self.now.0 += 1;
        self.now
    }

    /// An event of this container has come.
    pub fn event(&mut self, container: &ContainerId) {
        let turn = self.ask();
        self.last.insert(container.clone(), turn);
    }

    /// Events may have been lost.
    pub fn lost(&mut self) {
        self.lost = self.ask();
    }

    /// Whether an answer to what was asked then is older than what is known of the container.
    pub fn is_stale(&self, asked: Turn, container: &ContainerId) -> bool {
        asked < self.lost || self.last.get(container).is_some_and(|last| asked < *last)
    }

    /// No question is under way: no answer can be older than what has come so far.
    pub fn rest(&mut self) {
        self.last.clear();
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    /// `a`, `b`: an event of that container; `?`: the question; `!`: the stream broke off.
    #[rstest]
    #[case::nothing_else_happens("?", false)]
    #[case::what_came_before_is_known_to_the_answer("a?", false)]
    #[case::what_comes_later_is_not("?a", true)]
    #[case::both("a?a", true)]
    #[case::another_container_s_event("?b", false)]
    #[case::events_may_have_been_lost("?!", true)]
    #[case::lost_before_it_was_asked("!?", false)]
    fn an_answer_counts_unless_an_event_came_since(#[case] story: &str, #[case] stale: bool) {
        let (mut order, mut asked) = (Order::default(), Turn::default());
        for step in story.chars() {
            match step {
                '?' => asked = order.ask(),
                '!' => order.lost(),
                name => order.event(&ContainerId(name.to_string())),
            }
        }
        assert_eq!(order.is_stale(asked, &ContainerId("a".to_owned())), stale);
    }
}
