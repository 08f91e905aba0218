//! When a client with a `--rate` asks: evenly over time, and in step with nobody.
//!
//! Problem: clients that ask at fixed intervals reach a balancer that goes round in a fixed pattern: the one who keeps its connection
//! meets the same backend each time, and some backends keep no one. Approach: each client has its own place in the interval, and
//! each turn comes up to half an interval after that, in a way that only looks random: every run has the same.

use std::time::Duration;

/// One client's.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Rhythm {
    /// From one turn of this client to its next, on average.
    pause: Duration,
    index: u16,
    clients: u16,
}

impl Rhythm {
    /// Of all `clients` together `rate` turns per second.
    pub(crate) fn new(rate: f64, index: u16, clients: u16) -> Self {
        Self { pause: Duration::from_secs_f64(f64::from(clients) / rate), index, clients }
    }

    /// The client's place in the interval: a pulse of all of them is not a rate.
    pub(crate) fn offset(&self) -> Duration {
        self.pause * u32::from(self.index) / u32::from(self.clients)
    }

    pub(crate) fn pause(&self) -> Duration {
        self.pause
    }

    /// How much later than at its place a turn comes.
    pub(crate) fn late(&self, turn: u64) -> Duration {
        self.pause.mul_f64(0.5 * fraction(u64::from(self.index) << 48 ^ turn))
    }
}

/// From 0 to 1, for neighbours far apart: SplitMix64's last steps.
fn fraction(seed: u64) -> f64 {
    let mut mixed = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    mixed = (mixed ^ mixed >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ mixed >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    mixed ^= mixed >> 31;
    (mixed >> 11) as f64 / (1_u64 << 53) as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    const BACKENDS: usize = 4;
    const PER_CONNECTION: u64 = 10;
    const SECONDS: u64 = 60;

    fn turns(rhythm: Rhythm) -> impl Iterator<Item = Duration> {
        let until = Duration::from_secs(SECONDS);
        (0..)
            .map(move |turn| rhythm.offset() + rhythm.pause() * turn as u32 + rhythm.late(turn))
            .take_while(move |at| *at < until)
    }

    /// Connections that are opened, in order; of those that are kept with the client's index.
    fn opened(clients: (u16, f64), keepers: (u16, f64)) -> Vec<(Duration, Option<usize>)> {
        let of = |(clients, rate): (u16, f64)| (0..clients).map(move |index| Rhythm::new(rate, index, clients));
        let closers = of(clients).flat_map(turns).map(|at| (at, None));
        let keepers = of(keepers).enumerate().flat_map(|(index, rhythm)| {
            // The first connection of each is closed at another turn, as by the clients.
            let opens = move |turn: &u64| *turn == 0 || (turn + index as u64).is_multiple_of(PER_CONNECTION);
            turns(rhythm).zip(0..).filter(move |(_, turn)| opens(turn)).map(move |(at, _)| (at, Some(index)))
        });
        let mut all: Vec<_> = closers.chain(keepers).collect();
        all.sort_unstable();
        all
    }

    /// `cargo xtask vm --versus` and the tests have these clients.
    #[test]
    fn who_keeps_its_connection_meets_every_backend_of_one_that_goes_round() {
        for (closers, keepers) in [((40, 100.0), (16, 100.0)), ((40, 1200.0), (8, 200.0))] {
            let mut met = vec![[0; BACKENDS]; keepers.0.into()];
            for (next, (_, keeper)) in opened(closers, keepers).into_iter().enumerate() {
                if let Some(keeper) = keeper {
                    met[keeper][next % BACKENDS] += 1;
                }
            }
            for (keeper, met) in met.iter().enumerate() {
                let fair = met.iter().sum::<u32>() / BACKENDS as u32;
                assert!(met.iter().all(|times| (fair / 3..=fair * 2).contains(times)), "{keeper}: {met:?}");
            }
        }
    }

    #[test]
    fn pauses_differ_and_the_rate_is_kept() {
        let rhythm = Rhythm::new(100.0, 7, 40);
        let at: Vec<_> = turns(rhythm).collect();
        assert_eq!(at[0], rhythm.offset() + rhythm.late(0));
        let expected = SECONDS as f64 / rhythm.pause().as_secs_f64();
        assert!((at.len() as f64 - expected).abs() <= 1.0, "{} for {expected}", at.len());
        let pauses = at.windows(2).map(|pair| pair[1] - pair[0]);
        assert!(pauses.clone().all(|pause| pause * 2 >= rhythm.pause() && pause * 2 <= rhythm.pause() * 3));
        let short = pauses.filter(|pause| *pause < rhythm.pause()).count();
        assert!((at.len() / 3..at.len() * 2 / 3).contains(&short), "{short} of {}", at.len());
    }
}
