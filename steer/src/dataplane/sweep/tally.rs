//! Which flows are over, and by how much the live counts are wrong: pure.

use std::collections::BTreeMap;

use steer_common::backend::{BackendEntry, BackendId};
use steer_common::flow::{FlowEntry, FlowKey};

/// Who has a backend's id.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Tenant {
    pub(super) entry: BackendEntry,
    /// As the walk began.
    pub(super) before: Counts,
}

/// What the kernel counts of a backend. Whenever a flow becomes established or ends, one of the two changes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub(super) struct Counts {
    /// Live flows; the kernel counts on several CPUs, so for a moment this may be less than nothing.
    pub(super) live: u64,
    /// Flows that became established so far.
    pub(super) established: u64,
}

/// What a walk through the tables has found so far.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Tally {
    tenants: BTreeMap<BackendId, Tenant>,
    /// Flows in the tables, of every tenant: one without any is counted too, with none.
    live: BTreeMap<BackendId, i64>,
}

impl Tally {
    pub(super) fn new(tenants: BTreeMap<BackendId, Tenant>) -> Self {
        let live = tenants.keys().map(|id| (*id, 0)).collect();
        Self { tenants, live }
    }

    /// Whether the backend's id still has the tenant of that generation.
    pub(super) fn has(&self, backend: BackendId, generation: u32) -> bool {
        self.tenants.get(&backend).is_some_and(|tenant| tenant.entry.generation == generation)
    }

    /// Whether nothing is left of a flow to follow: its time is over, its backend is gone, or does not serve the flow's port any
    /// more. One that has ended is kept for its time all the same: last packets may come.
    pub(super) fn is_over(&self, key: &FlowKey, flow: &FlowEntry, now_secs: u32) -> bool {
        let is_served = flow.is_of_mesh()
            || self.has(flow.backend, flow.generation)
                && self.tenants.get(&flow.backend).is_some_and(|Tenant { entry, .. }| {
                    entry.service == key.service && entry.target(flow.port_index).is_some()
                });
        !is_served || flow.is_expired(now_secs)
    }

    /// A live flow more.
    pub(super) fn count(&mut self, backend: BackendId) {
        if let Some(live) = self.live.get_mut(&backend) {
            *live += 1;
        }
    }

    /// Everyone that is counted.
    pub(super) fn backends(&self) -> impl Iterator<Item = BackendId> + use<'_> {
        self.tenants.keys().copied()
    }

    /// What the kernel has counted less what the tables hold, as far as that is certain, where it is not 0: each flow that came or went
    /// during the walk may have been met by it or not. A busy backend's count is not left alone for that, only brought less close.
    pub(super) fn drift(&self, after: &BTreeMap<BackendId, Counts>) -> BTreeMap<BackendId, i64> {
        let certain = |(id, Tenant { before, .. }): (&BackendId, &Tenant)| {
            let found = self.live.get(id).copied().unwrap_or_default();
            Some((*id, certain(*before, *after.get(id)?, found)))
        };
        self.tenants.iter().filter_map(certain).filter(|(_, drift)| *drift != 0).collect()
    }
}

/// Of a busy backend, what is put right is at least this, and no more than half of what could be: while the count is written, the kernel
/// adds to it, and one that is too low would have a drain end too early.
const WORTH_IT: i64 = 16;

/// The part of a drift to put right, of a backend with so many flows `found` in the tables: never more than there is.
fn certain(before: Counts, after: Counts, found: i64) -> i64 {
    let seen = before.live as i64 - found;
    if before == after {
        return seen;
    }
    let began = after.established.wrapping_sub(before.established) as i64;
    let ended = began - (after.live as i64 - before.live as i64);
    let half = (seen.abs() - began.max(0) - ended.max(0)) / 2;
    if half < WORTH_IT { 0 } else { seen.signum() * half }
}

#[cfg(test)]
mod tests {
    use std::ops::RangeInclusive;

    use proptest::prelude::*;
    use rstest::rstest;
    use steer_common::addr::{Addr, Port, TCP};
    use steer_common::limits::{CLOSING_SECS, ESTABLISHED_SECS, HALF_CLOSED_SECS, MAX_PORTS, PENDING_SECS};
    use steer_common::service::ServiceId;
    use steer_common::tcp::TcpState::{self, Closed, Established, FinForward, FinReverse, Reset, SynReceived, SynSent};

    use super::*;

    const ID: BackendId = BackendId(1);
    const GENERATION: u32 = 7;
    const SERVICE: ServiceId = ServiceId(3);
    const NOW: u32 = 100_000;

    /// A backend that serves port 0 of its service, and not port 1.
    fn tally(before: Counts) -> Tally {
        let mut targets = [Port::NONE; MAX_PORTS];
        targets[0] = Port::new(5000);
        let entry = BackendEntry { generation: GENERATION, service: SERVICE, targets, ..BackendEntry::default() };
        Tally::new([(ID, Tenant { entry, before })].into())
    }

    fn key() -> FlowKey {
        FlowKey::new(Addr::UNSPECIFIED, Port::new(40000), SERVICE, TCP)
    }

    fn flow(state: TcpState, idle: u32) -> FlowEntry {
        FlowEntry {
            frontend: Addr::UNSPECIFIED,
            frontend_port: Port::new(80),
            backend: ID,
            generation: GENERATION,
            isn: 0,
            uplink: 2,
            last_seen: NOW - idle,
            port_index: 0,
            refusals: 0,
            refused: BackendId::NONE,
            marks: state.marks(),
        }
    }

    #[rstest]
    #[case::established(Established, ESTABLISHED_SECS)]
    #[case::half_closed_by_the_client(FinForward, HALF_CLOSED_SECS)]
    #[case::half_closed_by_the_backend(FinReverse, HALF_CLOSED_SECS)]
    #[case::opening(SynSent, PENDING_SECS)]
    #[case::half_open(SynReceived, PENDING_SECS)]
    #[case::closed(Closed, CLOSING_SECS)]
    #[case::reset(Reset, CLOSING_SECS)]
    fn a_flow_is_over_when_its_state_s_time_is(#[case] state: TcpState, #[case] secs: u32) {
        let tally = tally(Counts::default());
        assert!(!tally.is_over(&key(), &flow(state, secs), NOW));
        assert!(tally.is_over(&key(), &flow(state, secs + 1), NOW));
    }

    #[test]
    fn a_flow_of_the_mesh_has_no_backend_and_its_time_all_the_same() {
        let of_mesh = |idle| FlowEntry { backend: BackendId::NONE, generation: 0, ..flow(SynSent, idle) };
        let tally = tally(Counts::default());
        assert!(!tally.is_over(&key(), &of_mesh(PENDING_SECS), NOW));
        assert!(tally.is_over(&key(), &of_mesh(PENDING_SECS + 1), NOW));
    }

    #[rstest]
    #[case::its_own(key(), flow(Established, 0), false)]
    #[case::none(key(), FlowEntry { backend: BackendId(2), ..flow(Established, 0) }, true)]
    #[case::a_later_one_of_the_same_id(key(), FlowEntry { generation: GENERATION - 1, ..flow(Established, 0) }, true)]
    #[case::one_without_the_port(key(), FlowEntry { port_index: 1, ..flow(Established, 0) }, true)]
    #[case::one_of_another_service(FlowKey { service: ServiceId(4), ..key() }, flow(Established, 0), true)]
    #[case::an_impossible_port(key(), FlowEntry { port_index: u8::MAX, ..flow(Established, 0) }, true)]
    fn a_flow_is_over_when_its_backend_does_not_serve_it(
        #[case] key: FlowKey,
        #[case] flow: FlowEntry,
        #[case] over: bool,
    ) {
        assert_eq!(tally(Counts::default()).is_over(&key, &flow, NOW), over);
    }

    #[rstest]
    #[case::as_counted(2, 2, None)]
    #[case::last_flows_are_gone(3, 0, Some(3))]
    #[case::nothing_at_all(0, 0, None)]
    #[case::counted_twice(5, 4, Some(1))]
    #[case::never_counted(1, 4, Some(-3))]
    #[case::less_than_nothing(u64::MAX, 0, Some(-1))]
    fn what_is_counted_and_not_there_is_drift(#[case] counted: u64, #[case] flows: u32, #[case] drift: Option<i64>) {
        let counts = Counts { live: counted, established: 9 };
        let mut tally = tally(counts);
        for _ in 0..flows {
            tally.count(ID);
        }
        assert_eq!(tally.drift(&[(ID, counts)].into()), drift.map(|drift| (ID, drift)).into_iter().collect());
    }

    #[rstest]
    #[case::one_came(Counts { live: 4, established: 10 }, 3..=4)]
    #[case::one_ended(Counts { live: 2, established: 9 }, 2..=3)]
    #[case::one_came_and_one_ended(Counts { live: 3, established: 10 }, 2..=4)]
    fn what_came_or_went_meanwhile_is_no_drift(#[case] after: Counts, #[case] found: RangeInclusive<i64>) {
        let before = Counts { live: 3, established: 9 };
        found.for_each(|found| assert_eq!(certain(before, after, found), 0, "{found}"));
    }

    #[test]
    fn the_count_of_a_busy_backend_is_brought_close_to_what_there_is() {
        let (before, after) = (Counts { live: 110, established: 1000 }, Counts { live: 112, established: 1007 });
        assert_eq!(certain(before, after, 60), 19, "half of 50 less seven that came and five that went");
        assert_eq!(certain(before, after, 70), 0, "not worth it");
    }

    proptest! {
        /// The walk meets some of those that come, and some of those that go.
        #[test]
        fn no_more_is_taken_off_a_count_than_is_wrong_with_it(
            there in 0_i64..1_000,
            drift in -500_i64..500,
            (began, met) in (0_i64..100).prop_flat_map(|began| (Just(began), 0..=began)),
            (ended, missed) in (0_i64..100).prop_flat_map(|ended| (Just(ended), 0..=ended)),
        ) {
            let before = Counts { live: (there + drift) as u64, established: 7_000 };
            let after = Counts { live: (there + drift + began - ended) as u64, established: 7_000 + began as u64 };
            let certain = certain(before, after, there + met - missed);
            prop_assert!(certain == 0 || certain.signum() == drift.signum(), "{certain}");
            prop_assert!(certain.abs() <= drift.abs(), "{certain}");
            prop_assert!(2 * (certain.abs() + WORTH_IT) >= drift.abs() - 2 * (began + ended), "{certain}");
            prop_assert!(began + ended == 0 || 2 * certain.abs() <= drift.abs(), "{certain}");
        }
    }

    #[test]
    fn flows_of_nobody_count_for_nobody() {
        let mut tally = tally(Counts::default());
        tally.count(BackendId(2));
        assert_eq!(tally.backends().collect::<Vec<_>>(), [ID]);
        assert_eq!(tally.drift(&[(ID, Counts::default())].into()), BTreeMap::new());
    }
}
