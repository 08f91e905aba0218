use rstest::rstest;

use super::*;
use crate::model::fixtures::{candidate, observed};

fn frontend(text: &str) -> Frontend {
    Frontend::of(&crate::model::labels::value::port(&format!("{text}:1")).unwrap())
}

/// Ports in the maps: per service its list, `-` for a hole.
fn current(services: &[(&str, &str)]) -> PortIndex {
    let port = |text: &str| (text != "-").then(|| frontend(text));
    services.iter().map(|(name, ports)| (name.to_string(), ports.split(' ').map(port).collect())).collect()
}

/// The ports of a service, as [`current`] writes them.
fn ports(desired: &Desired, service: &str) -> String {
    let text = |port: &Option<Frontend>| match port {
        Some(Frontend { address: Some(address), port, .. }) => format!("{address}:{port}"),
        Some(Frontend { port, .. }) => port.to_string(),
        None => "-".to_owned(),
    };
    desired.services[service].ports.iter().map(text).collect::<Vec<_>>().join(" ")
}

fn targets(desired: &Desired, service: &str, container: &str) -> Vec<Option<u16>> {
    let backends = &desired.services[service].backends;
    let (_, backend) = backends.iter().find(|(key, _)| key.container.0 == container).unwrap();
    backend.targets.to_vec()
}

/// What is desired with nothing in the maps and nothing in the way.
fn good(candidates: impl IntoIterator<Item = Candidate>, current: &PortIndex) -> Desired {
    let (desired, problems) = desired(&observed(candidates), current);
    assert_eq!(problems, []);
    desired
}

#[test]
fn containers_are_grouped_by_service() {
    let desired =
        good([candidate("web", 1, "80:1"), candidate("api", 2, "81:1"), candidate("web", 3, "80:1")], &current(&[]));
    let names = |service: &str| -> Vec<_> {
        desired.services[service].backends.keys().map(|key| key.container.0.clone()).collect()
    };
    assert_eq!(desired.services.len(), 2);
    assert_eq!(names("web"), ["web-1", "web-3"]);
    assert_eq!(names("api"), ["api-2"]);
}

#[rstest]
#[case::the_first_by_name_where_both_are_new("", "80:1", "80:1", "api")]
#[case::who_is_in_the_maps("web=80", "80:1", "80:1", "web")]
#[case::the_holder_also_against_a_service_that_is_in_the_maps_too("api=81 web=80", "81:1,80:1", "80:1", "web")]
#[case::a_service_in_the_maps_before_a_new_one("web=81", "80:1", "81:1,80:1", "web")]
#[case::a_wildcard_that_is_there_keeps_its_addresses("web=80", "10.0.0.1:80:1", "80:1", "web")]
#[case::an_address_that_is_there_keeps_the_wildcard_out("web=10.0.0.1:80", "80:1", "10.0.0.1:80:1", "web")]
#[case::any_address_is_part_of_the_wildcard("", "80:1", "192.0.2.9:80:1", "api")]
fn one_frontend_has_one_service(#[case] maps: &str, #[case] api: &str, #[case] web: &str, #[case] winner: &str) {
    let maps: Vec<_> = maps.split(' ').filter_map(|service| service.split_once('=')).collect();
    let observed = observed([candidate("api", 1, api), candidate("web", 2, web)]);
    let (desired, problems) = desired(&observed, &current(&maps));
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    let loser = if winner == "api" { "web" } else { "api" };
    assert!(problem.container.starts_with(loser), "{problem}");
    assert_eq!(problem.label.as_deref(), Some("steer.port"));
    for needed in [format!("of service {loser} "), format!("to service {winner} "), ":80/tcp".to_owned()] {
        assert!(problem.message.contains(&needed), "{problem}");
    }
    let has_80 = |name: &str| {
        let ports = desired.services.get(name).map(|service| service.ports.as_slice()).unwrap_or_default();
        ports.iter().flatten().any(|port| port.port == 80)
    };
    assert_eq!((has_80(winner), has_80(loser)), (true, false));
}

#[test]
fn two_addresses_are_two_frontends() {
    let desired = good([candidate("api", 1, "10.0.0.1:80:1"), candidate("web", 2, "10.0.0.2:80:1")], &current(&[]));
    assert_eq!((ports(&desired, "api"), ports(&desired, "web")), ("10.0.0.1:80".into(), "10.0.0.2:80".into()));
}

#[test]
fn the_other_ports_of_the_loser_still_work() {
    let observed = observed([candidate("api", 1, "80:1"), candidate("web", 2, "80:1,443:2")]);
    let (desired, problems) = desired(&observed, &current(&[]));
    assert_eq!(problems.len(), 1);
    assert_eq!(ports(&desired, "web"), "443");
    assert_eq!(targets(&desired, "web", "web-2")[0], Some(2));
}

#[test]
fn a_frontend_that_was_given_up_is_free_for_others() {
    let desired = good([candidate("api", 1, "80:1"), candidate("web", 2, "81:1")], &current(&[("web", "80 81")]));
    assert_eq!((ports(&desired, "api"), ports(&desired, "web")), ("80".into(), "- 81".into()));
}

#[rstest]
#[case::new_ones_in_the_order_of_the_label("", "80:1,81:1,82:1", "80 81 82")]
#[case::order_on_the_label_means_nothing_later("80 81", "81:1,80:1", "80 81")]
#[case::a_port_that_goes_leaves_a_hole("80 81 82", "80:1,82:1", "80 - 82")]
#[case::a_new_one_comes_behind_the_hole("80 - 82", "80:1,82:1,83:1", "80 - 82 83")]
#[case::the_last_one_leaves_a_hole_too("80 81", "80:1,83:1", "80 - 83")]
#[case::a_port_that_comes_back_is_a_new_one("80 -", "80:1,81:1", "80 - 81")]
#[case::a_hole_is_filled_when_all_are_taken("80 - 82 83 84 85 86 87", "80:1,82:1,87:1,99:1", "80 99 82 - - - - 87")]
fn the_index_of_a_port_stays(#[case] maps: &str, #[case] label: &str, #[case] expected: &str) {
    let maps: Vec<_> = [("web", maps)].into_iter().filter(|(_, ports)| !ports.is_empty()).collect();
    assert_eq!(ports(&good([candidate("web", 1, label)], &current(&maps)), "web"), expected);
}

#[test]
fn a_frontend_that_was_left_to_two_goes_to_one() {
    // By an agent that was killed while it handed it over.
    let observed = observed([candidate("api", 1, "80:1"), candidate("web", 2, "80:1,81:1")]);
    let (desired, problems) = desired(&observed, &current(&[("api", "80"), ("web", "80 81")]));
    assert_eq!(problems.len(), 1);
    assert_eq!((ports(&desired, "api"), ports(&desired, "web")), ("80".into(), "- 81".into()));
}

#[test]
fn two_versions_with_different_ports_stand_side_by_side() {
    let old = candidate("web", 1, "80:5000,81:5001");
    let new = candidate("web", 2, "82:6002,80:6000");
    let desired = good([old, new], &current(&[("web", "80 81")]));
    assert_eq!(ports(&desired, "web"), "80 81 82");
    assert_eq!(targets(&desired, "web", "web-1")[..4], [Some(5000), Some(5001), None, None]);
    assert_eq!(targets(&desired, "web", "web-2")[..4], [Some(6000), None, Some(6002), None]);
}

#[test]
fn more_ports_than_a_service_may_have_are_told_and_the_others_work() {
    let first = candidate("web", 1, "1:1,2:1,3:1,4:1,5:1,6:1,7:1");
    let second = candidate("web", 2, "8:1,9:1");
    let (desired, problems) = desired(&observed([first, second]), &current(&[]));
    assert_eq!(ports(&desired, "web"), "1 2 3 4 5 6 7 8");
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert_eq!(problem.to_string(), "web-2: steer.port: service web has 8 ports already: 0.0.0.0:9/tcp is not steered");
    assert_eq!(targets(&desired, "web", "web-2")[7], Some(1));
}

#[test]
fn more_backends_than_a_service_may_have_are_told_and_the_oldest_stay() {
    let many = (0..MAX_MEMBERS + 2).map(|number| {
        let mut one = candidate("web", 1, "80:1");
        one.id = ContainerId(format!("{number:04}"));
        one.name = format!("web-{number}");
        one.reach.netns_cookie = number as u64;
        one
    });
    let (desired, problems) = desired(&observed(many.chain([candidate("api", 1, "81:1")])), &current(&[]));
    let told: Vec<_> = problems.iter().map(|problem| problem.container.as_str()).collect();
    assert_eq!(told, ["web-256", "web-257"]);
    assert_eq!((desired.services["web"].backends.len(), desired.services.len()), (MAX_MEMBERS, 2));
}

#[rstest]
#[case::by_the_second("2026-01-01T00:00:01Z", "2026-01-01T00:00:02Z")]
#[case::by_the_fraction_whose_zeros_docker_leaves_out("2026-01-01T00:00:01.12Z", "2026-01-01T00:00:01.123456789Z")]
#[case::a_whole_second_is_before_its_fractions("2026-01-01T00:00:01Z", "2026-01-01T00:00:01.5Z")]
#[case::of_an_earlier_agent_is_older_than_what_starts("", "2026-01-01T00:00:01Z")]
fn the_settings_of_the_newest_container_count(#[case] older: &str, #[case] newer: &str) {
    for (first, second) in [(older, newer), (newer, older)] {
        let mut one = candidate("web", 1, "80:1").allowing("10.0.0.0/8");
        let mut other = candidate("web", 2, "80:1").allowing("192.0.2.0/24");
        (one.run, other.run) = (first.to_owned(), second.to_owned());
        (one.spec.balance, other.spec.balance) = (Balance::Maglev, Balance::Source);
        (one.spec.hold, other.spec.hold) = (Duration::from_secs(1), Duration::from_secs(2));
        let newest = if first == newer { one.spec.clone() } else { other.spec.clone() };
        let desired = good([one, other], &current(&[]));
        let DesiredService { balance, hold, allow, .. } = &desired.services["web"];
        assert_eq!((*balance, *hold, allow), (newest.balance, newest.hold, &newest.allow));
    }
}

#[test]
fn a_container_that_is_not_steered_to_has_no_say() {
    let refused = candidate("web", 3, "80:1").allowing("192.0.2.7");
    let observed = observed([candidate("api", 1, "80:1"), candidate("web", 2, "81:1"), refused]);
    let (desired, problems) = desired(&observed, &current(&[]));
    assert_eq!(problems.len(), 1);
    assert_eq!(desired.services["web"].allow, []);
    assert_eq!(desired.services["web"].backends.len(), 1);
}

#[test]
fn two_runs_of_a_container_are_two_backends() {
    let old = candidate("web", 1, "80:1");
    let mut new = old.clone();
    new.reach.netns_cookie = 99;
    assert_eq!(good([old, new], &current(&[])).services["web"].backends.len(), 2);
}

#[test]
fn without_containers_there_is_nothing() {
    assert_eq!(good([], &current(&[("web", "80")])).services, BTreeMap::new());
}

/// One that gets no port is served by Swarm's mesh alone.
#[rstest]
#[case::both_are_backends("80:2", true)]
#[case::the_second_is_none("81:1", false)]
fn clients_wait_for_a_swarm_service_as_long_as_all_its_tasks_are_backends(#[case] second: &str, #[case] wait: bool) {
    let mut candidates = [candidate("api", 3, "81:1"), candidate("web", 1, "80:1"), candidate("web", 2, second)];
    candidates.iter_mut().for_each(|candidate| candidate.spec.mesh = true);
    let observed = Observed { all_here: ["web".to_owned()].into(), ..observed(candidates) };
    let (desired, problems) = desired(&observed, &current(&[]));
    assert_eq!((desired.services["web"].all_here, problems.is_empty()), (wait, wait));
}

/// Old tasks hold a port that Swarm has given to another service since: behind the mesh somebody answers there.
#[rstest]
#[case::by_the_mesh(false)]
#[case::by_a_label_which_the_mesh_knows_nothing_of(true)]
fn nobody_waits_at_a_port_that_the_mesh_has_given_to_another_service(#[case] is_labelled: bool) {
    let mut candidates = [candidate("api", 3, "80:1"), candidate("web", 1, "80:1"), candidate("db", 2, "81:1")];
    candidates.iter_mut().for_each(|candidate| candidate.spec.mesh = true);
    candidates[0].spec.mesh = !is_labelled;
    let all_here = ["web", "api", "db"].map(str::to_owned).into();
    let observed = Observed { all_here, ..observed(candidates) };
    let (desired, problems) = desired(&observed, &current(&[("web", "80")]));
    assert_eq!(problems.len(), 1);
    let wait: Vec<_> = desired.services.iter().map(|(name, service)| (name.as_str(), service.all_here)).collect();
    assert_eq!(wait, [("db", true), ("web", is_labelled)]);
}
