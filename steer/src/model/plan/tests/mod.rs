mod frontends;
mod kernel;
mod limits;
mod mesh;
mod properties;

use rstest::rstest;
use steer_common::addr::TCP;
use steer_common::limits::MAX_BACKENDS;

use self::kernel::Kernel;
use super::*;
use crate::model::desired::desired;
use crate::model::fixtures::{HOST, candidate, ip, observed, remembered_service};
use crate::model::memory::Remembered;
use crate::model::{Candidate, ContainerId, Observed};

/// An agent and its maps.
#[derive(Default)]
struct Host {
    kernel: Kernel,
    applied: Applied,
    now_secs: u32,
}

impl Host {
    /// A host that steers to these containers already.
    fn with(candidates: impl IntoIterator<Item = Candidate>) -> Self {
        let mut host = Self::default();
        host.steer(observed(candidates));
        host
    }

    fn planned(&self, observed: &Observed) -> (Vec<Op>, Vec<Problem>) {
        let (desired, mut problems) = desired(observed, &self.applied.port_index());
        let (ops, more) = plan(&desired, &self.applied, self.now_secs);
        problems.extend(more);
        (ops, problems)
    }

    /// Brings the maps in line; returns what that took. The maps are right at every step, and once is enough.
    fn steer(&mut self, observed: Observed) -> Vec<Op> {
        let (ops, problems) = self.reconcile(&observed);
        assert_eq!(problems, []);
        ops
    }

    fn reconcile(&mut self, observed: &Observed) -> (Vec<Op>, Vec<Problem>) {
        let (ops, problems) = self.planned(observed);
        self.carry_out(&ops);
        self.kernel.assert_holds(&self.applied);
        self.kernel.torn = false;
        self.kernel.check();
        let (more, still) = self.planned(observed);
        assert_eq!(more, [], "done, and yet there is more to do");
        // The reasons may change: what is refused for want of room now may have a new owner next time.
        let told = |problems: &[Problem]| problems.iter().map(|problem| problem.container.clone()).collect::<Vec<_>>();
        assert_eq!(told(&still), told(&problems));
        (ops, problems)
    }

    fn carry_out(&mut self, ops: &[Op]) {
        for op in ops {
            self.kernel.apply(op);
            self.kernel.check();
            self.applied.note(op);
        }
    }

    /// The agent ends, another one takes over.
    fn restart(&mut self) {
        self.applied = self.kernel.adopt();
    }

    fn backend(&self, container: &str) -> &AppliedBackend {
        let found = self.applied.backends.iter().find(|(key, _)| key.container.0 == container);
        found.unwrap_or_else(|| panic!("no backend {container}")).1
    }

    /// The frontends, as `address:port` with the service's name, port index and flags.
    /// In the order of their texts.
    fn frontends(&self) -> Vec<String> {
        let name = |id| self.applied.services.iter().find(|(_, service)| service.id == id).unwrap().0;
        let text = |(key, entry): (&FrontendKey, &FrontendEntry)| {
            let loopback = if entry.flags & FrontendEntry::LOOPBACK != 0 { " loopback" } else { "" };
            let closed = if entry.flags & FrontendEntry::CLOSED != 0 { " closed" } else { "" };
            format!("{}:{} {}[{}]{loopback}{closed}", key.addr, key.port, name(entry.service), entry.port_index)
        };
        let mut frontends: Vec<_> = self.applied.frontends.iter().map(text).collect();
        frontends.sort();
        frontends
    }

    fn slots(&self, service: &str) -> &SlotRecipe {
        self.applied.services[service].slots.as_ref().unwrap()
    }
}

/// The kinds of operations, in order.
fn kinds(ops: &[Op]) -> Vec<String> {
    ops.iter()
        .map(|op| match op {
            Op::SetState { state, .. } => format!("SetState {}", state.name()),
            op => format!("{op:?}").split([' ', '{']).next().unwrap_or_default().to_owned(),
        })
        .collect()
}

#[test]
fn a_first_container_is_known_before_it_can_be_picked_and_picked_before_clients_come() {
    let ops = Host::default().steer(observed([candidate("web", 1, "9000:5000").allowing("10.0.0.0/8")]));
    assert_eq!(
        kinds(&ops),
        // One from its veth, one from inside.
        ["PutEndpoint", "PutEndpoint", "AddBackend", "PutAllow", "SetState ready", "PutService", "SwapSlots"]
            .into_iter()
            .chain(["PutFrontend"; 2])
            .collect::<Vec<_>>()
    );
}

#[test]
fn tables_that_are_filled_at_one_go_get_both_ways_of_a_connection_last() {
    let (planned, _) = Host::default().planned(&observed([candidate("web", 1, "80:1"), candidate("api", 2, "81:1")]));
    let ops = in_handover_order(planned.clone());
    let turn = |op: &Op| match op {
        Op::PutEndpoint { .. } => 1,
        Op::PutFrontend { .. } => 2,
        _ => 0,
    };
    assert!(ops.iter().map(turn).is_sorted() && !planned.iter().map(turn).is_sorted(), "{:?}", kinds(&ops));
    for of in 0..=2 {
        let of_turn = |ops: &[Op]| ops.iter().filter(|op| turn(op) == of).cloned().collect::<Vec<_>>();
        assert_eq!(of_turn(&ops), of_turn(&planned), "the rest of the order stays");
    }
}

#[test]
fn the_last_container_goes_in_the_opposite_order() {
    let mut host = Host::with([candidate("web", 1, "9000:5000").allowing("10.0.0.0/8")]);
    let ops = host.steer(observed([]));
    assert_eq!(
        kinds(&ops),
        ["SetState gone", "RemoveFrontend", "RemoveFrontend", "RemoveAllow", "RemoveService", "RemoveEndpoint"]
            .into_iter()
            .chain(["RemoveEndpoint", "RemoveBackend"])
            .collect::<Vec<_>>()
    );
    assert_eq!(host.applied.backends.len() + host.applied.services.len() + host.applied.allow.len(), 0);
}

#[test]
fn demotions_come_first_and_promotions_after_what_was_added() {
    let mut host = Host::with([
        candidate("api", 1, "81:1"),
        candidate("web", 2, "80:1"),
        candidate("web", 3, "80:1").in_state(BackendState::Unready),
    ]);
    let ops = host.steer(observed([
        candidate("api", 1, "81:1").in_state(BackendState::Draining),
        candidate("web", 3, "80:1"),
        candidate("web", 4, "80:1"),
    ]));
    assert_eq!(
        kinds(&ops),
        ["SetState draining", "SetState gone", "PutEndpoint", "PutEndpoint", "AddBackend", "SetState ready"]
            .into_iter()
            .chain(["SetState ready", "SwapSlots", "SwapSlots", "RemoveEndpoint", "RemoveEndpoint", "RemoveBackend"])
            .collect::<Vec<_>>()
    );
}

#[test]
fn a_state_alone_is_one_write_and_the_slots() {
    let mut host = Host::with([candidate("web", 1, "80:1"), candidate("web", 2, "80:1")]);
    let ops = host
        .steer(observed([candidate("web", 1, "80:1"), candidate("web", 2, "80:1").in_state(BackendState::Unready)]));
    assert_eq!(kinds(&ops), ["SetState unready", "SwapSlots"]);
}

#[test]
fn what_people_are_told_changes_no_packet() {
    let mut host = Host::with([candidate("web", 1, "80:1")]);
    let renamed = Candidate { cause: "operator: undrain".to_owned(), ..candidate("web", 1, "80:1") };
    assert_eq!(kinds(&host.steer(observed([renamed]))), ["PutInfo"]);
}

#[rstest]
#[case::ready(BackendState::Ready, 1, true)]
#[case::starting(BackendState::Starting, 1, false)]
#[case::unready(BackendState::Unready, 1, false)]
#[case::draining(BackendState::Draining, 1, false)]
#[case::drained(BackendState::Drained, 1, false)]
#[case::under_maintenance(BackendState::Maintenance, 1, false)]
#[case::ready_of_weight_zero(BackendState::Ready, 0, false)]
#[case::draining_of_weight_zero(BackendState::Draining, 0, false)]
fn who_is_ready_stands_in_slots_and_everybody_is_a_member(
    #[case] state: BackendState,
    #[case] weight: u16,
    #[case] in_slots: bool,
) {
    // Which members take flows is for `steer_common::pick`: ready ones, draining ones at worst, never one under maintenance or
    // without weight. Flows that were forgotten are looked for at all of them.
    let host = Host::with([candidate("web", 1, "80:1"), candidate("web", 2, "80:1").in_state(state).of_weight(weight)]);
    let id = host.backend("web-2").id;
    let table = host.slots("web").table();
    let named = |ids: &[BackendId], len: u32| ids[..len as usize].contains(&id);
    assert_eq!(named(&table.slots, table.len), in_slots);
    assert!(named(&table.members, table.members_len));
    // Its flows go on all the same.
    assert!(host.applied.endpoints.values().any(|endpoint| endpoint.backend == id));
    assert_eq!(host.backend("web-2").state, state);
}

#[rstest]
#[case::nothing_but_its_listener_is_missing(true, true)]
#[case::the_healthcheck_decides(false, false)]
fn one_that_listening_decides_about_has_its_turns_before_it_listens(
    #[case] if_listening: bool,
    #[case] in_slots: bool,
) {
    let mut late = candidate("web", 2, "80:1").in_state(BackendState::Starting);
    late.gate.if_listening = if_listening;
    let host = Host::with([candidate("web", 1, "80:1"), late]);
    let id = host.backend("web-2").id;
    assert_eq!(host.slots("web").ready.iter().any(|(ready, ..)| *ready == id), in_slots);
}

#[test]
fn an_edge_that_is_taken_in_is_one_write() {
    let mut host = Host::with([candidate("web", 1, "80:1")]);
    let mut again = candidate("web", 1, "80:1");
    again.gate.edges = 3;
    let ops = host.steer(observed([again]));
    assert_eq!(kinds(&ops), ["SetState ready"]);
    assert_eq!(host.backend("web-1").gate.edges, 3);
}

#[test]
fn the_operators_weight_comes_before_the_labels() {
    let mut heavy = candidate("web", 1, "80:1").of_weight(3);
    heavy.operator_weight = Some(7);
    let mut out = candidate("web", 2, "80:1");
    out.operator_weight = Some(0);
    let host = Host::with([heavy, out]);
    let weights: Vec<_> = host.slots("web").ready.iter().map(|(_, name, weight)| (name.as_str(), *weight)).collect();
    assert_eq!(weights, [("web-1", 7)]);
    assert_eq!((host.backend("web-1").entry.weight, host.backend("web-2").entry.weight), (7, 0));
}

#[test]
fn who_is_allowed_is_known_while_the_list_counts() {
    let open = || observed([candidate("web", 1, "80:1")]);
    let listed = |prefixes: &str| observed([candidate("web", 1, "80:1").allowing(prefixes)]);
    let mut host = Host::default();
    host.steer(open());
    assert_eq!(kinds(&host.steer(listed("10.0.0.0/8,192.0.2.7"))), ["PutAllow", "PutAllow", "PutService"]);
    assert_eq!(kinds(&host.steer(listed("10.0.0.0/8,192.0.2.8"))), ["PutAllow", "RemoveAllow"]);
    assert_eq!(kinds(&host.steer(open())), ["PutService", "RemoveAllow", "RemoveAllow"]);
}

#[test]
fn one_prefix_written_in_two_ways_is_one() {
    let mut host = Host::with([candidate("web", 1, "80:1").allowing("10.0.0.0/8,::ffff:10.0.0.0/104")]);
    let in_maps: Vec<_> = host.applied.allow.iter().map(|(_, net)| net.to_string()).collect();
    assert_eq!(in_maps, ["10.0.0.0/8"]);
    let ops = host.steer(observed([candidate("web", 1, "80:1").allowing("::ffff:10.0.0.0/104")]));
    assert_eq!(ops, []);
}

#[test]
fn a_container_that_restarts_is_a_new_backend() {
    let mut host = Host::with([candidate("web", 1, "80:1")]);
    let before = host.backend("web-1").clone();
    let mut again = candidate("web", 1, "80:1");
    (again.reach.netns_cookie, again.reach.ifindex) = (77, 177);
    host.steer(observed([again]));
    let after = host.backend("web-1");
    assert_ne!(after.id, before.id);
    assert!(after.entry.generation > before.entry.generation);
}

#[test]
fn a_container_that_goes_to_another_service_is_a_new_backend_there() {
    let mut host = Host::with([candidate("blue", 1, "80:1"), candidate("blue", 2, "80:1")]);
    let before = host.backend("blue-2").clone();
    let mut moved = candidate("blue", 2, "81:1");
    moved.spec.service = "green".to_owned();
    host.steer(observed([candidate("blue", 1, "80:1"), moved]));
    let after = host.backend("blue-2");
    assert_ne!((after.id, after.entry.service), (before.id, before.entry.service));
    assert_eq!(host.kernel.ready(HOST, 80), ["blue-1".to_owned()].into());
    assert_eq!(host.kernel.ready(HOST, 81), ["blue-2".to_owned()].into());
}

#[test]
fn a_freed_id_rests_until_all_others_had_their_turn() {
    let mut host = Host::with([candidate("web", 1, "80:1")]);
    let mut given = vec![host.backend("web-1").id];
    for turn in 0..u64::from(MAX_BACKENDS) - 2 {
        let mut next = candidate("web", 1, "80:1");
        next.reach.netns_cookie = 1_000 + turn;
        let (ops, _) = host.planned(&observed([next]));
        ops.iter().for_each(|op| host.applied.note(op));
        given.push(host.backend("web-1").id);
    }
    let distinct: std::collections::BTreeSet<_> = given.iter().copied().collect();
    assert_eq!((distinct.len(), given.len()), (MAX_BACKENDS as usize - 1, MAX_BACKENDS as usize - 1));
}

#[test]
fn generations_grow_over_a_restart_of_the_agent() {
    // Soon after boot many start at once; those that started last end while no agent runs, or just before.
    let many = |numbers: std::ops::RangeInclusive<u8>| observed(numbers.map(|number| candidate("web", number, "80:1")));
    let mut host = Host { now_secs: 20, ..Host::default() };
    host.steer(many(1..=100));
    let last = host.applied.backends.values().map(|backend| backend.entry.generation).max().unwrap();
    host.steer(many(1..=50));
    let kept = host.backend("web-50").clone();
    host.now_secs = 27;
    host.restart();
    host.steer(many(1..=51));
    assert!(host.backend("web-51").entry.generation > last);
    assert_eq!(host.backend("web-50"), &kept, "those that are there keep theirs");
}

#[test]
fn a_new_agent_writes_the_slots_again_and_nothing_else() {
    let both = || observed([candidate("api", 1, "81:1"), candidate("web", 2, "80:1,443:2").allowing("10.0.0.0/8")]);
    let mut host = Host::default();
    host.steer(both());
    host.restart();
    assert_eq!(kinds(&host.steer(both())), ["SwapSlots", "SwapSlots"]);
}

#[test]
fn replies_are_told_apart_where_two_ports_have_one_target() {
    let host = Host::with([candidate("web", 1, "80:5000,443:5000,81:5001")]);
    for is_inside in [false, true] {
        let all = host.applied.endpoints.iter().filter(|(key, _)| key.is_inside() == is_inside);
        let mut ports: Vec<_> = all.map(|(key, entry)| (key.port.get(), entry.ports)).collect();
        ports.sort_unstable();
        assert_eq!(ports, [(5000, 0b011), (5001, 0b100)], "inside: {is_inside}");
    }
}

#[test]
fn a_service_without_backends_that_are_ready_keeps_its_frontends() {
    // New flows are held there, see `steer_common::steer`.
    let host = Host::with([candidate("web", 1, "80:1").in_state(BackendState::Unready)]);
    assert_eq!(host.frontends().len(), 2);
    assert_eq!(host.kernel.ready(HOST, 80), [].into());
}

#[test]
fn a_service_that_is_remembered_keeps_all_but_its_backends_and_is_taken_over_as_it_is() {
    let replica = |run: u8| {
        let mut one = candidate("web", run, "80:1,443:2").allowing("10.0.0.0/8");
        one.spec.hold = std::time::Duration::from_secs(10);
        one
    };
    let mut host = Host::with([replica(1)]);
    let (before, frontends) = (host.applied.services["web"].clone(), host.frontends());
    let remembered = || {
        let remembered = Remembered { allow: replica(1).spec.allow, ..remembered_service("web") };
        Observed { remembered: vec![remembered], ..observed([]) }
    };
    let gone = ["SetState gone", "SwapSlots"].into_iter().chain(["RemoveEndpoint"; 4]).chain(["RemoveBackend"]);
    assert_eq!(kinds(&host.steer(remembered())), gone.collect::<Vec<_>>());
    assert_eq!(
        host.slots("web"),
        &SlotRecipe { balance: before.slots.unwrap().balance, ready: vec![], others: vec![] }
    );
    assert_eq!(host.frontends(), frontends);
    host.now_secs += 1;
    host.restart();
    host.steer(remembered());

    // Others wait for as long: who comes back finds what it left.
    let (_, problems) = host.reconcile(&with_other(remembered(), candidate("api", 7, "80:1")));
    assert!(problems[0].message.contains("belongs to service web already"), "{problems:?}");
    let ops = host.steer(observed([replica(2)]));
    let back = ["PutEndpoint"; 4].into_iter().chain(["AddBackend", "SetState ready", "SwapSlots"]);
    assert_eq!(kinds(&ops), back.collect::<Vec<_>>());
    assert_eq!((host.applied.services["web"].id, host.frontends()), (before.id, frontends));

    host.steer(observed([]));
    assert_eq!((host.applied.services.len(), host.frontends().len()), (0, 0));
}

fn with_other(mut observed: Observed, other: Candidate) -> Observed {
    observed.candidates.push(other);
    observed
}

#[test]
fn frontends_are_for_tcp_as_their_label_says() {
    let host = Host::with([candidate("web", 1, "80:1/tcp")]);
    assert!(host.applied.frontends.keys().all(|key| key.proto == TCP));
}

#[test]
fn after_a_failed_write_only_what_does_not_rely_on_it_is_done() {
    // The new slot table of `web` cannot be written.
    let before = [candidate("web", 1, "80:1"), candidate("web", 2, "80:1"), candidate("api", 3, "81:1")];
    let after = [candidate("web", 2, "80:1").of_weight(3), candidate("web", 4, "80:1"), candidate("api", 5, "81:1")];
    let mut host = Host::with(before);
    let web = host.applied.services["web"].id;
    let (ops, _) = host.planned(&observed(after.clone()));
    let mut blocked = Blocked::default();
    for op in &ops {
        if blocked.waits(op, &host.applied) {
            continue;
        }
        if matches!(op, Op::SwapSlots { id, .. } if *id == web) {
            blocked.failed(op, &host.applied);
            continue;
        }
        host.carry_out(std::slice::from_ref(op));
    }
    assert!(!blocked.is_empty());
    assert_eq!(
        host.backend("web-1").state,
        BackendState::Gone,
        "a demotion comes first, and web-1 stays while a slot names it"
    );
    assert_eq!(host.kernel.ready(HOST, 81), ["api-5".to_owned()].into());
    assert!(host.applied.backends.keys().all(|key| key.container.0 != "api-3"), "another service does not wait");

    host.steer(observed(after));
    assert_eq!(host.kernel.ready(HOST, 80), ["web-2".to_owned(), "web-4".to_owned()].into());
}
