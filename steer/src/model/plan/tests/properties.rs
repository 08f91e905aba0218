//! Any way from any state to any other: right at every step, and done when it is done.

use proptest::collection::vec;
use proptest::prelude::*;

use super::*;
use crate::model::fixtures::{candidate, remembered_service};

/// What happens to a host, one thing after the other.
#[derive(Clone, Debug)]
enum Event {
    /// Docker's truth is this now, and the maps follow.
    Change(Observed),
    /// The maps are to follow, but the agent is killed after that many operations, and another one takes over.
    Killed(Observed, usize),
    /// The agent ends in good order, another one takes over.
    Restart,
    /// A stop signal: the state of a backend is written at once, before any plan.
    Demoted(usize, BackendState),
}

const PORTS: [&str; 9] =
    ["80:1", "81:1", "82:2", "10.0.0.1:80:1", "10.0.0.2:80:3", "127.0.0.1:81:1", "83:1", "84:2", "85:2"];

fn a_container() -> impl Strategy<Value = Candidate> {
    let identity = (0..3_usize, 1..10_u8, 0..2_u8);
    let ports = prop::sample::subsequence(PORTS.to_vec(), 1..=4).prop_shuffle();
    let states = prop::sample::select(&BackendState::ALL[1..]);
    let allow = prop::sample::select(vec![None, None, Some("10.0.0.0/8"), Some("10.0.0.0/8,192.0.2.7"), Some("::/0")]);
    let weights = (0..4_u16, prop::option::weighted(0.2, 0..3_u16));
    (identity, ports, states, weights, allow).prop_filter_map(
        "ports overlap",
        |(identity, ports, state, weights, allow)| {
            let (service, number, run) = identity;
            let ports = ports.join(",");
            crate::model::labels::value::ports(&ports).ok()?;
            let mut one = candidate(["a", "b", "c"][service], number, &ports).in_state(state).of_weight(weights.0);
            // The same container may turn up under another service, and in another run.
            one.id = ContainerId(format!("{number:064}"));
            one.reach.netns_cookie = (u64::from(number) << 8) + u64::from(run);
            one.reach.ifindex += 100 * u32::from(run);
            one.run = format!("2026-01-01T00:0{run}:{number:02}Z");
            one.operator_weight = weights.1;
            one.spec.allow = allow.map(|allow| crate::model::labels::value::allow(allow).unwrap()).unwrap_or_default();
            Some(one)
        },
    )
}

fn an_observation() -> impl Strategy<Value = Observed> {
    let addresses = prop::sample::subsequence(vec![ip("10.0.0.1"), ip("10.0.0.2"), ip("10.0.0.3")], 0..=3);
    // What there is of a service in the maps stays, where no container is of it.
    let remembered = prop::sample::subsequence(vec!["a", "b", "c"], 0..=3);
    let parts = (vec(a_container(), 0..9), remembered, addresses, prop::bool::weighted(0.1));
    parts.prop_map(|(mut candidates, remembered, addresses, closing)| {
        let remembered = remembered.into_iter().map(remembered_service).collect();
        candidates.sort_by(|a, b| a.id.cmp(&b.id));
        candidates.dedup_by(|a, b| a.id == b.id);
        let host_addresses = addresses.into_iter().collect();
        Observed { candidates, remembered, host_addresses, closing, ..Observed::default() }
    })
}

fn an_event() -> impl Strategy<Value = Event> {
    let late = prop::sample::select(vec![BackendState::Gone, BackendState::Draining, BackendState::Unready]);
    prop_oneof![
        6 => an_observation().prop_map(Event::Change),
        2 => (an_observation(), 0..40_usize).prop_map(|(observed, ops)| Event::Killed(observed, ops)),
        1 => Just(Event::Restart),
        2 => (0..9_usize, late).prop_map(|(backend, state)| Event::Demoted(backend, state)),
    ]
}

/// The maps hold what is desired: told anew from the other end, without a word of how a plan is made.
fn assert_steered(host: &Host, observed: &Observed) {
    let (desired, _) = desired(observed, &host.applied.port_index());
    let known = desired.services.values().flat_map(|service| &service.backends);
    let known: std::collections::BTreeMap<_, _> = known.collect();
    assert!(host.applied.backends.keys().eq(known.keys().copied()));
    for (key, backend) in known {
        assert_eq!(host.applied.backends[key].state, backend.state);
    }
    let mut claimed: Vec<_> = host.applied.frontends.keys().collect();
    for (name, service) in &desired.services {
        let id = host.applied.services[name].id;
        for listen in service.ports.iter().flatten() {
            let addresses: Vec<_> = match listen.address {
                Some(address) => vec![address],
                None => observed.host_addresses.iter().copied().chain([ip("127.0.0.1")]).collect(),
            };
            for address in addresses {
                let key = FrontendKey::new(address.into(), steer_common::addr::Port::new(listen.port), TCP);
                let entry = &host.applied.frontends[&key];
                assert_eq!((entry.service, entry.flags & FrontendEntry::CLOSED != 0), (id, observed.closing));
                claimed.retain(|other| **other != key);
            }
        }
        let mut ready: Vec<_> =
            host.slots(name).ready.iter().map(|(_, container, weight)| (container, *weight)).collect();
        ready.sort();
        let takes = service.backends.iter().filter(|(_, one)| one.state == BackendState::Ready && one.weight() > 0);
        assert!(ready.into_iter().eq(takes.map(|(key, one)| (&key.container.0, one.weight()))));
    }
    assert_eq!(claimed, Vec::<&FrontendKey>::new(), "frontends of nobody");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn whatever_happens_the_maps_are_right_at_every_step(events in vec(an_event(), 1..12)) {
        let mut host = Host::default();
        for event in events {
            // What a generation is by the clock: see `GENERATIONS_PER_SEC`.
            host.now_secs += 1;
            match event {
                Event::Change(observed) => {
                    host.reconcile(&observed);
                    assert_steered(&host, &observed);
                }
                Event::Killed(observed, after) => {
                    let (ops, _) = host.planned(&observed);
                    host.carry_out(&ops[..after.min(ops.len())]);
                    host.kernel.torn = true;
                    host.restart();
                }
                Event::Restart => host.restart(),
                Event::Demoted(backend, state) => {
                    let demoted = host.applied.backends.iter().nth(backend);
                    let op = demoted.map(|(key, backend)| Op::SetState {
                        key: key.clone(),
                        id: backend.id,
                        state,
                        gate: backend.gate,
                    });
                    host.carry_out(op.as_slice());
                }
            }
        }
    }

    #[test]
    fn a_demotion_waits_for_nothing(before in an_observation(), after in an_observation()) {
        let mut host = Host::default();
        host.reconcile(&before);
        let was: Vec<_> = host.applied.backends.values().map(|backend| (backend.id, backend.state)).collect();
        let (ops, _) = host.planned(&after);
        let demotes = |op: &Op| match op {
            Op::SetState { id, state, .. } => *state != BackendState::Ready && was.iter().any(|(known, _)| known == id),
            _ => false,
        };
        let first = ops.iter().take_while(|op| demotes(op)).count();
        prop_assert!(!ops[first..].iter().any(demotes), "{ops:#?}");
    }
}
