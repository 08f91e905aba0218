//! Which backend stands in which slot.
//!
//! Two kinds of table, both a pure function of names and weights, so that every agent, before and after a restart, deals the
//! same cards:
//!
//! - **Round robin** (also for least connections, which compares two slots): backends interleaved by the smooth weighted
//!   round robin of nginx (`ngx_http_upstream_round_robin.c`, commit 52327e0), so that weights 5, 1, 1 give `a a b a c a a` and
//!   not `a a a a a b c`. One period of it is the table; shares are exact.
//! - **Maglev** (also for `source`): Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer", NSDI 2016,
//!   3.4. Every backend walks the slots in an order of its own, made from its name, and takes the next free one at its turn;
//!   weights give more turns. When a backend goes, nearly only its slots change hands.

#[cfg(test)]
mod tests;

use steer_common::backend::BackendId;
use steer_common::limits::{MAX_MEMBERS, MAX_SLOTS};
use steer_common::service::Balance;
use steer_common::slot::SlotTable;

/// Length of a Maglev table: the greatest prime that fits, so that every step size visits every slot.
const MAGLEV_SLOTS: usize = 4_093;

const _: () = assert!(MAGLEV_SLOTS <= MAX_SLOTS);
const _: () = assert!(MAX_MEMBERS <= MAGLEV_SLOTS, "every backend keeps at least one slot");

/// The table that deals new flows to these backends, each with its name (the same across restarts) and weight. Those of
/// weight 0 get none; beyond [`MAX_MEMBERS`], which the caller refuses with a message, the last by name are left out.
pub fn slot_table(balance: Balance, backends: &[(BackendId, String, u16)]) -> Box<SlotTable> {
    let mut backends: Vec<_> = backends.iter().filter(|(_, _, weight)| *weight > 0).collect();
    backends.sort_unstable_by_key(|(id, name, _)| (name, *id));
    backends.truncate(MAX_MEMBERS);

    let weights: Vec<u32> = backends.iter().map(|(_, _, weight)| u32::from(*weight)).collect();
    let order = match balance {
        Balance::RoundRobin | Balance::LeastConn => smooth_round_robin(&shares(&weights)),
        Balance::Maglev | Balance::Source => {
            let names: Vec<&str> = backends.iter().map(|(_, name, _)| name.as_str()).collect();
            maglev(&names, &weights)
        }
    };

    let mut table = Box::new(SlotTable::EMPTY);
    table.len = fill(&mut table.slots, order.iter().map(|&place| backends[place].0));
    table.members_len = fill(&mut table.members, backends.iter().map(|(id, _, _)| *id));
    table
}

/// Writes ids from the start; how many there are.
fn fill(places: &mut [BackendId], ids: impl Iterator<Item = BackendId>) -> u32 {
    let mut len = 0;
    for (place, id) in places.iter_mut().zip(ids) {
        *place = id;
        len += 1;
    }
    len
}

/// How many slots each backend gets: weights in lowest terms where their sum fits the table, else scaled down, at least one
/// each.
fn shares(weights: &[u32]) -> Vec<u32> {
    let divisor = weights.iter().copied().fold(0, gcd).max(1);
    let reduced: Vec<u32> = weights.iter().map(|weight| weight / divisor).collect();
    if total(&reduced) <= MAX_SLOTS {
        return reduced;
    }
    /// Scales are fractions of this.
    const ONE: u64 = 1 << 20;
    let scaled = |scale: u64| -> Vec<u32> {
        reduced.iter().map(|&weight| (u64::from(weight) * scale / ONE).max(1) as u32).collect()
    };
    // The greatest scale that fits, by bisection: each backend is then less than one slot off its due.
    let (mut fits, mut too_great) = (0, ONE);
    while too_great - fits > 1 {
        let middle = fits.midpoint(too_great);
        if total(&scaled(middle)) <= MAX_SLOTS { fits = middle } else { too_great = middle }
    }
    scaled(fits)
}

fn total(shares: &[u32]) -> usize {
    shares.iter().map(|&share| share as usize).sum()
}

fn gcd(a: u32, b: u32) -> u32 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// One period of the smooth weighted round robin: every backend as often as its share says, evenly spread.
fn smooth_round_robin(shares: &[u32]) -> Vec<usize> {
    let period = total(shares);
    let mut credits = vec![0_i64; shares.len()];
    let mut order = Vec::with_capacity(period);
    for _ in 0..period {
        for (credit, share) in credits.iter_mut().zip(shares) {
            *credit += i64::from(*share);
        }
        // The richest; of equals the first.
        let richest = credits.iter().enumerate().rev().max_by_key(|(_, credit)| **credit).map(|(place, _)| place);
        let Some(place) = richest else { break };
        credits[place] -= period as i64;
        order.push(place);
    }
    order
}

/// Every slot with its owner. Turns go round; the heaviest takes a slot at each of its turns, another one at each turn for
/// which it has saved as much weight as the heaviest has.
fn maglev(names: &[&str], weights: &[u32]) -> Vec<usize> {
    let Some(&heaviest) = weights.iter().max() else { return Vec::new() };
    let mut owners = vec![None; MAGLEV_SLOTS];
    let mut free = MAGLEV_SLOTS;
    let mut walks: Vec<Walk> = names.iter().map(|name| Walk::of(name)).collect();
    // All can afford their first turn, so that even the lightest has a slot.
    let mut savings: Vec<u32> = weights.iter().map(|weight| heaviest - weight).collect();
    while free > 0 {
        for (place, walk) in walks.iter_mut().enumerate() {
            savings[place] += weights[place];
            if savings[place] < heaviest || free == 0 {
                continue;
            }
            savings[place] -= heaviest;
            if let Some(slot) = walk.find(|&slot| owners[slot].is_none()) {
                owners[slot] = Some(place);
                free -= 1;
            }
        }
    }
    owners.into_iter().flatten().collect()
}

/// The order in which a backend looks at the slots: all of them once, by a fixed step from a fixed start.
struct Walk {
    next: usize,
    step: usize,
    left: usize,
}

impl Walk {
    fn of(name: &str) -> Self {
        let hash = hash(name);
        let slots = MAGLEV_SLOTS as u64;
        Self { next: (hash % slots) as usize, step: ((hash >> 32) % (slots - 1)) as usize + 1, left: MAGLEV_SLOTS }
    }
}

impl Iterator for Walk {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        self.left = self.left.checked_sub(1)?;
        let slot = self.next;
        self.next = (slot + self.step) % MAGLEV_SLOTS;
        Some(slot)
    }
}

/// FNV-1a with the finaliser of SplitMix64: names that differ in one digit land far apart. Never `DefaultHasher`, whose result
/// may change with the compiler.
fn hash(name: &str) -> u64 {
    let fnv = name
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3));
    let hash = (fnv ^ (fnv >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let hash = (hash ^ (hash >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    hash ^ (hash >> 31)
}
