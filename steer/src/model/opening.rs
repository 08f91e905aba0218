//! How often it is looked for flows whose handshake is under way.
//!
//! Problem: a backend has drained when it has none of those either, and that takes a walk through all of them, of which there may be
//! many thousand.
//! Approach: as long as somebody waits for that, several times a second. Whoever has drained gets none but by chance, and what comes of
//! one is among the live flows, which cost nothing to look at: the longer ago, the less often.

use std::time::Duration;

/// While somebody waits.
pub const EAGER: Duration = Duration::from_millis(250);
/// For one that has drained long ago.
const LAZY: Duration = Duration::from_secs(5);

/// How old what was seen last may be. `drained`: for how long the backend has been; `None` = it has not.
pub fn look_again(drained: Option<Duration>) -> Duration {
    drained.map_or(EAGER, |drained| (drained / 4).clamp(EAGER, LAZY))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How often the flows are walked through from then on, for so long, if that may be done every 20 ms.
    fn walks(drained: impl Fn(Duration) -> Option<Duration>, lasting: Duration) -> usize {
        let (mut now, mut last, mut walks) = (Duration::ZERO, None::<Duration>, 0);
        while now < lasting {
            if last.is_none_or(|last| now - last >= look_again(drained(now))) {
                (last, walks) = (Some(now), walks + 1);
            }
            now += Duration::from_millis(20);
        }
        walks
    }

    #[test]
    fn who_drains_is_looked_at_all_the_time_and_who_has_drained_ever_less_often() {
        let (minute, hour) = (Duration::from_secs(60), Duration::from_secs(3600));
        assert!(walks(|_| None, minute) > 200, "somebody waits for the end of it");
        assert!(walks(Some, Duration::from_secs(2)) >= 6, "it may not be over");
        assert!(walks(Some, minute) < 30);
        assert!(walks(|now| Some(hour + now), hour) <= 720);
    }
}
