use std::collections::BTreeMap;

use proptest::prelude::*;
use rstest::rstest;

use super::*;

/// Backends 1, 2, 3… of these weights.
fn backends(weights: &[u16]) -> Vec<(BackendId, String, u16)> {
    weights.iter().zip(1..).map(|(&weight, id)| (BackendId(id), format!("web-{id}"), weight)).collect()
}

fn dealt(table: &SlotTable) -> Vec<u16> {
    table.slots[..table.len as usize].iter().map(|id| id.0).collect()
}

fn members(table: &SlotTable) -> Vec<u16> {
    table.members[..table.members_len as usize].iter().map(|id| id.0).collect()
}

fn counts(table: &SlotTable) -> BTreeMap<u16, usize> {
    let mut counts = BTreeMap::new();
    for id in dealt(table) {
        *counts.entry(id).or_default() += 1;
    }
    counts
}

#[rstest]
#[case::the_example_of_nginx(&[5, 1, 1], &[1, 1, 2, 1, 3, 1, 1])]
#[case::equals_take_turns(&[1, 1, 1], &[1, 2, 3])]
#[case::lowest_terms(&[200, 100], &[1, 2, 1])]
#[case::weight_zero_is_left_out(&[1, 0, 1], &[1, 3])]
#[case::one_alone(&[7], &[1])]
#[case::nobody(&[], &[])]
#[case::nobody_of_weight(&[0, 0], &[])]
fn round_robin_deals(#[case] weights: &[u16], #[case] expected: &[u16]) {
    for balance in [Balance::RoundRobin, Balance::LeastConn] {
        assert_eq!(dealt(&slot_table(balance, &backends(weights))), expected);
    }
}

#[test]
fn no_backends_give_an_empty_table_and_one_gives_itself_to_everybody() {
    for balance in Balance::ALL {
        let none = slot_table(balance, &[]);
        assert_eq!((none.len, none.members_len, none.at(5)), (0, 0, None));
        let one = slot_table(balance, &backends(&[3]));
        assert!(dealt(&one).iter().all(|&id| id == 1), "{balance:?}");
        assert_eq!(members(&one), [1]);
    }
}

#[test]
fn more_weight_than_slots_is_scaled_and_the_lightest_keep_a_slot() {
    let mut weights = vec![256; 100];
    weights.extend([1; 100]);
    let table = slot_table(Balance::RoundRobin, &backends(&weights));
    let counts = counts(&table);
    assert!(table.len as usize <= MAX_SLOTS && table.len as usize > MAX_SLOTS - 200, "{}", table.len);
    assert_eq!(counts.len(), 200);
    for (&id, &count) in &counts {
        let expected = if id <= 100 { 38..=40 } else { 1..=1 };
        assert!(expected.contains(&count), "backend {id} has {count} slots");
    }
}

#[test]
fn the_most_and_heaviest_members_fit_and_one_more_is_left_out() {
    for balance in Balance::ALL {
        let table = slot_table(balance, &backends(&vec![256; MAX_MEMBERS + 1]));
        assert_eq!(table.members_len as usize, MAX_MEMBERS);
        assert_eq!(counts(&table).len(), MAX_MEMBERS);
    }
}

/// How many of the slots that a backend did not lose change hands when it goes, against how many it leaves.
fn disruption(weights: &[u16], gone: usize) -> f64 {
    let before = backends(weights);
    let mut after = before.clone();
    let lost = after.remove(gone).0;
    let (before, after) = (slot_table(Balance::Maglev, &before), slot_table(Balance::Maglev, &after));
    let changed = dealt(&before).iter().zip(dealt(&after)).filter(|(old, new)| **old != *new).count();
    changed as f64 / counts(&before)[&lost.0] as f64
}

#[rstest]
#[case::two(&[1; 2])]
#[case::three(&[1; 3])]
#[case::ten(&[1; 10])]
#[case::thirty(&[1; 30])]
#[case::of_different_weight(&[1, 2, 3, 4, 5, 6, 7, 8])]
fn when_a_backend_goes_maglev_moves_little_but_its_own_flows(#[case] weights: &[u16]) {
    let worst = (0..weights.len()).map(|gone| disruption(weights, gone)).fold(0.0, f64::max);
    assert!(worst >= 1.0, "its own slots must change hands");
    assert!(worst < 2.0, "{worst:.2} times the ideal");
}

#[test]
fn maglev_is_the_same_in_every_build_and_needs_no_ids() {
    // Pinned on purpose: flows of `source` and `maglev` services move when this changes.
    let table = slot_table(Balance::Maglev, &backends(&[1, 1, 1]));
    assert_eq!(dealt(&table)[..12], [3, 2, 2, 1, 3, 2, 2, 3, 1, 3, 3, 1]);
    let renumbered: Vec<_> = backends(&[1, 1, 1]).into_iter().map(|(id, n, w)| (BackendId(id.0 + 40), n, w)).collect();
    let again = dealt(&slot_table(Balance::Maglev, &renumbered));
    assert_eq!(dealt(&table), again.iter().map(|id| id - 40).collect::<Vec<_>>());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn round_robin_is_exact_while_weights_fit(weights in prop::collection::vec(0_u16..=256, 1..16)) {
        let table = slot_table(Balance::RoundRobin, &backends(&weights));
        let counts = counts(&table);
        let len: usize = counts.values().sum();
        let weight: usize = weights.iter().map(|&w| usize::from(w)).sum();
        for (&weight_of, id) in weights.iter().zip(1..) {
            let count = counts.get(&id).copied().unwrap_or(0);
            prop_assert_eq!(count * weight, len * usize::from(weight_of), "backend {} has {} of {}", id, count, len);
        }
    }

    #[test]
    fn round_robin_never_lets_a_backend_wait_for_long(weights in prop::collection::vec(1_u16..=20, 1..12)) {
        let table = slot_table(Balance::RoundRobin, &backends(&weights));
        for (id, count) in counts(&table) {
            // Twice round, so that the gap across the end is seen.
            let turns = (0..2 * table.len).filter(|&turn| table.at(turn) == Some(BackendId(id))).collect::<Vec<_>>();
            let gap = turns.windows(2).map(|pair| pair[1] - pair[0]).max().unwrap_or(table.len);
            prop_assert!(gap <= 2 * table.len.div_ceil(count as u32), "{} waits {} of {}", id, gap, table.len);
        }
    }

    #[test]
    fn maglev_has_no_holes_and_shares_by_weight(weights in prop::collection::vec(0_u16..=256, 1..24)) {
        let table = slot_table(Balance::Maglev, &backends(&weights));
        let weight: f64 = weights.iter().map(|&w| f64::from(w)).sum();
        prop_assert_eq!(table.len as usize, if weight > 0.0 { MAGLEV_SLOTS } else { 0 });
        let counts = counts(&table);
        for (&own, id) in weights.iter().zip(1..) {
            let due = if own == 0 { 0.0 } else { MAGLEV_SLOTS as f64 * f64::from(own) / weight };
            let has = counts.get(&id).copied().unwrap_or(0) as f64;
            prop_assert!((has - due).abs() <= due * 0.03 + 2.0, "backend {} has {} slots, {:.1} due", id, has, due);
            prop_assert_eq!(has > 0.0, own > 0);
        }
    }

    #[test]
    fn order_of_input_changes_nothing_and_members_stand_once(
        given in prop::collection::vec(0_u16..=256, 0..40).prop_map(|weights| backends(&weights)),
        shuffled_seed: u64,
    ) {
        let mut shuffled = given.clone();
        shuffled.sort_by_key(|(_, name, _)| hash(name) ^ shuffled_seed);
        for balance in Balance::ALL {
            let (a, b) = (slot_table(balance, &given), slot_table(balance, &shuffled));
            prop_assert_eq!(dealt(&a), dealt(&b));
            prop_assert_eq!(members(&a), members(&b));
            let mut sorted = members(&a);
            sorted.sort_unstable();
            let heavy: Vec<u16> = given.iter().filter(|(_, _, w)| *w > 0).map(|(id, _, _)| id.0).collect();
            prop_assert_eq!(sorted, heavy);
        }
    }
}
