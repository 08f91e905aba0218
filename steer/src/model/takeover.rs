//! How long another version of steer goes on because of containers that Docker does not describe.
//!
//! Until this version takes its place, whoever starts gets nothing, and whoever ends is taken out by the kernel alone. So those who
//! are described do not wait for ever for one who is not.

use std::time::Duration;

use super::{ContainerId, Problem};

/// From when Docker said which containers there are, for which it has been given half a minute already.
pub const LIMIT: Duration = Duration::from_secs(30);
/// The same, until it is told that somebody is waited for: mostly Docker answers soon.
const TOLD_AFTER: Duration = Duration::from_secs(5);

/// Whether the other version has to go on. `waited`: since Docker said which containers there are; `None` = it has not, or it has to say
/// so anew.
pub fn must_wait(knows_all: bool, waited: Option<Duration>) -> bool {
    !knows_all && waited.is_none_or(|waited| waited < LIMIT)
}

/// When there is something to be told or done next, counted from the same moment.
pub fn due(waited: Duration) -> Option<Duration> {
    [TOLD_AFTER, LIMIT].into_iter().find(|due| *due > waited)
}

/// What is told meanwhile.
pub fn problems<'a>(undescribed: impl Iterator<Item = &'a ContainerId>, waited: Duration) -> Vec<Problem> {
    let problem = |id: &ContainerId| {
        let message = format!(
            "Docker does not describe it; until it does, or {LIMIT:?} are over, another version of steer goes on as it was \
             left. Then this one takes its place: connections of this container that are used before it is described are reset"
        );
        Problem::of(id.to_string(), message)
    };
    undescribed.filter(|_| waited >= TOLD_AFTER).map(problem).collect()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::nobody_is_waited_for(true, Some(1), false)]
    #[case::somebody_is(false, Some(29), true)]
    #[case::not_for_ever(false, Some(30), false)]
    #[case::for_docker_it_is(false, None, true)]
    fn the_other_version_goes_on_for_a_while(
        #[case] knows_all: bool,
        #[case] waited: Option<u64>,
        #[case] expected: bool,
    ) {
        assert_eq!(must_wait(knows_all, waited.map(Duration::from_secs)), expected);
    }

    #[test]
    fn it_is_told_who_is_waited_for_and_the_end_is_not_missed() {
        let ids = [ContainerId("0123456789abcdef".to_owned())];
        let told =
            |waited| problems(ids.iter(), waited).into_iter().map(|problem| problem.container).collect::<Vec<_>>();
        let first = due(Duration::ZERO).expect("there is something to tell");
        assert_eq!((told(Duration::ZERO), told(first)), (Vec::new(), vec!["0123456789ab".to_owned()]));
        assert_eq!((due(first), due(LIMIT)), (Some(LIMIT), None), "no moment that is over is waited for");
        assert!(!must_wait(false, Some(LIMIT)));
    }
}
