use rstest::rstest;
use steer_common::backend::BackendInfo;
use steer_common::limits::MAX_NAME;
use steer_common::service::ServiceInfo;

use super::*;
use crate::model::{Container, NetworkLeg, PortSpec, Protocol, fixtures};

fn labels(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|&(label, value)| (label.to_owned(), value.to_owned())).collect()
}

/// The labels of a good container, with these on top.
fn read(pairs: &[(&str, &str)]) -> Result<Option<Spec>, Vec<Problem>> {
    let mut all = labels(&[(PORT, "9000:5000")]);
    all.extend(labels(pairs));
    spec("web-1", &all, &Defaults::default())
}

fn good(pairs: &[(&str, &str)]) -> Spec {
    read(pairs).unwrap().unwrap()
}

/// The one problem of a container with these labels.
fn bad(pairs: &[(&str, &str)]) -> Problem {
    let mut problems = read(pairs).unwrap_err();
    assert_eq!(problems.len(), 1, "{problems:?}");
    problems.remove(0)
}

fn tcp(address: Option<&str>, port: u16, target: u16) -> PortSpec {
    PortSpec { address: address.map(|a| a.parse().unwrap()), port, target, protocol: Protocol::Tcp }
}

#[test]
fn a_port_is_all_it_takes() {
    let defaults = Defaults::default();
    assert_eq!(
        good(&[]),
        Spec {
            service: "web-1".into(),
            ports: vec![tcp(None, 9000, 5000)],
            network: None,
            weight: 1,
            balance: Balance::RoundRobin,
            ready: ReadyPolicy::Auto,
            drain: Duration::from_secs(30),
            hold: Duration::from_secs(10),
            allow: Vec::new(),
            mesh: false,
        }
    );
    assert_eq!((defaults.drain, defaults.hold), (Duration::from_secs(30), Duration::from_secs(10)));
}

#[test]
fn every_label_can_be_set() {
    let spec = good(&[
        (SERVICE, "shop.Web_2"),
        (NETWORK, "front"),
        (WEIGHT, "256"),
        (BALANCE, "least-conn"),
        (READY, "listen"),
        (DRAIN, "1m30s"),
        (HOLD, "0"),
        (ALLOW, "10.1.2.3/8, 192.0.2.7,2001:db8::/32"),
    ]);
    assert_eq!(spec.service, "shop.Web_2");
    assert_eq!(spec.network.as_deref(), Some("front"));
    assert_eq!((spec.weight, spec.balance, spec.ready), (256, Balance::LeastConn, ReadyPolicy::Listen));
    assert_eq!((spec.drain, spec.hold), (Duration::from_secs(90), Duration::ZERO));
    let allow: Vec<String> = spec.allow.iter().map(ToString::to_string).collect();
    assert_eq!(allow, ["10.0.0.0/8", "192.0.2.7/32", "2001:db8::/32"]);
}

#[test]
fn defaults_hold_where_no_label_says_otherwise() {
    let defaults = Defaults {
        network: Some("front".into()),
        weight: 7,
        balance: Balance::Source,
        ready: ReadyPolicy::Manual,
        drain: Duration::from_secs(1),
        hold: Duration::from_secs(2),
        allow: vec!["10.0.0.0/8".parse().unwrap()],
    };
    let plain = spec("a", &labels(&[(PORT, "1:2")]), &defaults).unwrap().unwrap();
    let Spec { service: _, ports: _, network, weight, balance, ready, drain, hold, allow, mesh } = plain;
    assert_eq!(Defaults { network, weight, balance, ready, drain, hold, allow }, defaults);
    assert!(!mesh);
    let own = spec("a", &labels(&[(PORT, "1:2"), (WEIGHT, "0"), (HOLD, "5s")]), &defaults).unwrap().unwrap();
    assert_eq!((own.weight, own.hold), (0, Duration::from_secs(5)));
}

#[rstest]
#[case::no_labels_at_all(&[])]
#[case::labels_of_others(&[("com.docker.compose.project", "shop"), ("traefik.port", "80")])]
#[case::an_image_that_sets_a_label_but_publishes_nothing(&[(READY, "health")])]
#[case::told_so(&[(PORT, "9000:5000"), (IGNORE, "true")])]
#[case::told_so_whatever_else_is_wrong(&[(PORT, "nonsense"), (IGNORE, "True")])]
#[case::a_one_off_of_compose(&[(PORT, "9000:5000"), ("com.docker.compose.oneoff", "True")])]
#[case::a_hook_of_compose(&[(PORT, "9000:5000"), ("com.docker.compose.hook", "post_start")])]
fn a_container_is_left_out(#[case] pairs: &[(&str, &str)]) {
    assert_eq!(spec("web-1", &labels(pairs), &Defaults::default()), Ok(None));
}

#[test]
fn a_container_of_compose_that_is_no_one_off_is_steered() {
    assert_eq!(good(&[("com.docker.compose.oneoff", "False"), (IGNORE, "false")]).service, "web-1");
}

#[rstest]
#[case::compose(&[("com.docker.compose.project", "shop"), ("com.docker.compose.service", "web")], "shop_web")]
#[case::swarm(&[("com.docker.swarm.service.name", "shop_web")], "shop_web")]
#[case::swarm_where_the_image_was_built_by_compose(
    &[("com.docker.compose.project", "p"), ("com.docker.compose.service", "s"), ("com.docker.swarm.service.name", "shop_web")],
    "shop_web"
)]
#[case::the_label_over_both(
    &[("com.docker.compose.project", "p"), ("com.docker.compose.service", "s"), ("com.docker.swarm.service.name", "w"), (SERVICE, "mine")],
    "mine"
)]
#[case::neither(&[("com.docker.compose.project", "shop")], "web-1")]
fn a_service_is_named_by(#[case] pairs: &[(&str, &str)], #[case] expected: &str) {
    assert_eq!(good(pairs).service, expected);
}

#[rstest]
#[case::one("80:8080", &[tcp(None, 80, 8080)])]
#[case::with_protocol("80:8080/tcp", &[tcp(None, 80, 8080)])]
#[case::with_an_address("10.0.0.1:80:8080", &[tcp(Some("10.0.0.1"), 80, 8080)])]
#[case::every_address_as_docker_writes_it("0.0.0.0:80:8080", &[tcp(None, 80, 8080)])]
#[case::loopback("127.0.0.1:80:8080", &[tcp(Some("127.0.0.1"), 80, 8080)])]
#[case::several("80:8080, 443:8443,", &[tcp(None, 80, 8080), tcp(None, 443, 8443)])]
#[case::one_port_on_two_addresses("10.0.0.1:80:1,10.0.0.2:80:2", &[tcp(Some("10.0.0.1"), 80, 1), tcp(Some("10.0.0.2"), 80, 2)])]
#[case::one_target_behind_two_ports("80:8080,81:8080", &[tcp(None, 80, 8080), tcp(None, 81, 8080)])]
fn ports_are_read(#[case] text: &str, #[case] expected: &[PortSpec]) {
    assert_eq!(good(&[(PORT, text)]).ports, expected);
}

#[test]
fn udp_and_ipv6_are_understood_though_not_steered() {
    let udp = value::port("[2001:db8::1]:53:5353/udp").unwrap();
    let address = Some("2001:db8::1".parse().unwrap());
    assert_eq!(udp, PortSpec { address, port: 53, target: 5353, protocol: Protocol::Udp });
}

#[rstest]
#[case::empty(PORT, "", "no port given, expected `[address:]port:target`")]
#[case::only_commas(PORT, " , ", "no port given")]
#[case::a_target_alone(PORT, "5000", "`5000`: expected `[address:]port:target`, such as `9000:5000`")]
#[case::a_word(PORT, "http:5000", "`http:5000`: `http` is no port, expected 1 to 65535")]
#[case::port_zero(PORT, "0:5000", "`0` is no port")]
#[case::target_zero(PORT, "9000:0", "`0` is no port")]
#[case::too_great(PORT, "65536:5000", "`65536` is no port")]
#[case::a_sign(PORT, "+9000:5000", "`+9000` is no port")]
#[case::a_minus(PORT, "-1:5000", "`-1` is no port")]
#[case::a_missing_target(PORT, "9000:", "`` is no port")]
#[case::a_range(PORT, "9000-9010:5000-5010", "`9000-9010` is a range, which is not steered: write each port")]
#[case::a_range_of_targets(PORT, "9000:5000-5010", "`5000-5010` is a range")]
#[case::a_host_name(PORT, "localhost:9000:5000", "`localhost` is no IP address")]
#[case::too_many_colons(PORT, "a:b:9000:5000", "`a:b` is no IP address")]
#[case::multicast(PORT, "224.0.0.1:9000:5000", "224.0.0.1 is a multicast address")]
#[case::ipv6_without_brackets(PORT, "::1:9000:5000", "an IPv6 address stands in brackets")]
#[case::ipv4_in_brackets(PORT, "[10.0.0.1]:9000:5000", "`[10.0.0.1]` is no IP address")]
#[case::ipv6(PORT, "[2001:db8::1]:9000:5000", "IPv6 is not steered yet")]
#[case::every_ipv6_address(PORT, "[::]:9000:5000", "IPv6 is not steered yet")]
#[case::udp(PORT, "9000:5000/udp", "UDP is not steered yet")]
#[case::another_protocol(PORT, "9000:5000/sctp", "`sctp` is no protocol steer knows, expected `tcp`")]
#[case::two_protocols(PORT, "9000:5000/tcp/tcp", "`5000/tcp` is no port")]
#[case::twice(PORT, "9000:5000,9000:5001", "`9000:5001`: port 9000 is in the list already")]
#[case::twice_by_every_address(PORT, "9000:5000,10.0.0.1:9000:5001", "port 9000 is in the list already")]
#[case::more_than_a_service_has(PORT, "1:1,2:1,3:1,4:1,5:1,6:1,7:1,8:1,9:1", "9 ports, a service has 8 at most")]
#[case::several_faults_at_once(
    PORT,
    "x:1,9000:5000,y:2",
    "`x` is no port, expected 1 to 65535 (expected `[address:]port:target`, such as `9000:5000`); `y:2`: `y`"
)]
#[case::a_space_in_a_name(SERVICE, "my web", "`my web`: ' ' may not stand in a name")]
#[case::a_slash_in_a_name(SERVICE, "a/b", "'/' may not stand")]
#[case::no_name(SERVICE, "", "the name is empty")]
#[case::no_network(NETWORK, " ", "the network's name is empty")]
#[case::a_weight_too_great(WEIGHT, "257", "`257` is no weight, expected a whole number from 0 to 256")]
#[case::a_weight_below_none(WEIGHT, "-1", "`-1` is no weight")]
#[case::half_a_weight(WEIGHT, "0.5", "`0.5` is no weight")]
#[case::an_unknown_balance(
    BALANCE,
    "roundrobin",
    "`roundrobin`: expected one of `round-robin`, `least-conn`, `maglev`, `source`"
)]
#[case::an_unknown_readiness(READY, "yes", "`yes`: expected one of `auto`, `health`, `listen`, `manual`")]
#[case::a_duration_without_unit(DRAIN, "30", "`30` is no duration, expected such as `30s`, `500ms`, `1m30s` or `0`")]
#[case::a_negative_duration(HOLD, "-1s", "`-1s` is no duration")]
#[case::an_empty_duration(HOLD, "", "`` is no duration")]
#[case::more_than_a_day(DRAIN, "25h", "`25h` is too long, 24h is the most")]
#[case::a_bad_prefix(ALLOW, "10.0.0.0/33", "`10.0.0.0/33` is no prefix or address")]
#[case::a_name_for_a_prefix(ALLOW, "10.0.0.0/8,office", "`office` is no prefix or address")]
#[case::a_variable_left_unset(ALLOW, "", "no prefix given")]
#[case::a_bad_switch(IGNORE, "maybe", "`maybe`: expected one of `true`, `false`")]
#[case::a_slip_of_the_finger("steer.wieght", "3", "no such label, did you mean `steer.weight`?")]
#[case::another_case("Steer.Port", "9000:5000", "no such label, did you mean `steer.port`?")]
#[case::an_unknown_label("steer.colour", "red", "no such label, expected one of steer.port, steer.service")]
fn a_bad_label_is_told(#[case] label: &str, #[case] value: &str, #[case] expected: &str) {
    let problem = bad(&[(label, value)]);
    assert_eq!(problem.container, "web-1");
    assert_eq!(problem.label.as_deref(), Some(label));
    assert!(problem.message.contains(expected), "got      {}\nexpected {expected}", problem.message);
}

#[test]
fn all_that_is_wrong_is_told_at_once_and_each_label_once() {
    let problems = read(&[(PORT, "x"), (WEIGHT, "y"), (HOLD, "z"), ("steer.prot", "1:2")]).unwrap_err();
    let faulty: Vec<_> = problems.iter().filter_map(|problem| problem.label.as_deref()).collect();
    assert_eq!(faulty, ["steer.prot", PORT, WEIGHT, HOLD]);
}

#[test]
fn a_misspelt_port_is_told_though_the_container_publishes_nothing() {
    let problems = spec("web-1", &labels(&[("steer.ports", "9000:5000")]), &Defaults::default()).unwrap_err();
    assert_eq!(problems[0].to_string(), "web-1: steer.ports: no such label, did you mean `steer.port`?");
}

#[test]
fn a_name_made_by_others_that_will_not_do_says_how_to_give_another() {
    let problem = bad(&[("com.docker.swarm.service.name", "läden")]);
    assert_eq!(problem.label.as_deref(), Some(SERVICE));
    assert!(problem.message.ends_with("set this label to give it another"), "{}", problem.message);
}

#[rstest]
#[case(127, true)]
#[case(128, false)]
fn a_name_has_127_bytes_at_most(#[case] len: usize, #[case] fits: bool) {
    assert_eq!(value::name(&"x".repeat(len)).is_ok(), fits);
}

#[test]
fn the_longest_name_and_the_zero_behind_it_fill_their_field() {
    fn bytes<T, const N: usize>(_field: fn(&T) -> &[u8; N]) -> usize {
        N
    }
    assert_eq!(bytes(|info: &ServiceInfo| &info.name), MAX_NAME + 1);
    assert_eq!(bytes(|info: &BackendInfo| &info.name), MAX_NAME + 1);
    assert_eq!(bytes(|info: &BackendInfo| &info.container), MAX_NAME + 1);
}

#[rstest]
#[case("0", 0)]
#[case("500ms", 500)]
#[case("30s", 30_000)]
#[case(" 1m30s ", 90_000)]
#[case("24h", 86_400_000)]
fn durations_are_read(#[case] text: &str, #[case] millis: u64) {
    assert_eq!(value::duration(text), Ok(Duration::from_millis(millis)));
}

proptest::proptest! {
    #[test]
    fn no_text_makes_a_parser_panic(text in "\\PC*") {
        for label in ALL {
            let _ = read(&[(label, &text)]);
        }
        let _ = read(&[(&format!("steer.{text}"), "")]);
    }

    #[test]
    fn a_port_is_read_back_as_it_was_written(port in 1_u16.., target in 1_u16.., ip: u32) {
        let ip = std::net::Ipv4Addr::from_bits(ip);
        proptest::prop_assume!(!ip.is_multicast() && !ip.is_unspecified());
        let spec = value::port(&format!("{ip}:{port}:{target}"));
        proptest::prop_assert_eq!(spec, Ok(tcp(Some(&ip.to_string()), port, target)));
    }
}

fn container(mode: &str, legs: &[(&str, &str)]) -> Container {
    let leg = |&(network, address): &(&str, &str)| NetworkLeg {
        network: network.into(),
        address: address.parse().unwrap(),
        subnet: None,
        gateway: None,
    };
    Container {
        labels: labels(&[("com.docker.compose.project", "shop")]),
        legs: legs.iter().map(leg).collect(),
        network_mode: mode.into(),
        ..fixtures::container("c1", "web-1")
    }
}

fn leg_of(network: Option<&str>, container: &Container) -> Result<String, Problem> {
    let spec = Spec { network: network.map(str::to_owned), ..good(&[]) };
    network_leg(&spec, container).map(|ip| ip.to_string())
}

#[rstest]
#[case::the_only_one(None, &[("shop_default", "172.18.0.2")], "172.18.0.2")]
#[case::the_only_ipv4_one(None, &[("v6", "2001:db8::2"), ("shop_default", "172.18.0.2")], "172.18.0.2")]
#[case::ipv4_of_a_network_with_both(None, &[("shop_default", "2001:db8::2"), ("shop_default", "172.18.0.2")], "172.18.0.2")]
#[case::by_full_name(Some("shop_back"), &[("shop_front", "172.18.0.2"), ("shop_back", "172.19.0.2")], "172.19.0.2")]
#[case::by_short_name(Some("back"), &[("shop_front", "172.18.0.2"), ("shop_back", "172.19.0.2")], "172.19.0.2")]
#[case::a_full_name_wins(Some("back"), &[("shop_back", "172.18.0.2"), ("back", "172.19.0.2")], "172.19.0.2")]
fn the_address_is_that_of(#[case] network: Option<&str>, #[case] legs: &[(&str, &str)], #[case] expected: &str) {
    assert_eq!(leg_of(network, &container("shop_default", legs)), Ok(expected.into()));
}

#[rstest]
#[case::apart("10.0.1.0/24", &["192.0.2.1", "172.18.0.1"], false)]
#[case::of_the_hosts_own_network("10.0.1.0/24", &["192.0.2.1", "10.0.1.7"], true)]
#[case::a_larger_one("10.0.0.0/8", &["10.0.1.7"], true)]
fn a_task_whose_answers_would_go_elsewhere_is_told_of(#[case] subnet: &str, #[case] host: &[&str], #[case] told: bool) {
    let mut task = container("default", &[("inner", "10.0.1.9"), ("docker_gwbridge", "172.18.0.3")]);
    task.legs[0].subnet = Some(subnet.parse().unwrap());
    // That of the leg it is reached by does not count.
    task.legs[1].subnet = Some("172.18.0.0/16".parse().unwrap());
    let host = host.iter().map(|address| address.parse().unwrap()).collect();
    let problem = answers_elsewhere(&task, "172.18.0.3".parse().unwrap(), &host);
    assert_eq!(problem.is_some(), told, "{problem:?}");
    // A bridge of this host, whose address is its router's.
    task.legs[0].gateway = host.first().copied();
    assert_eq!(answers_elsewhere(&task, "172.18.0.3".parse().unwrap(), &[*host.first().unwrap()].into()), None);
    task.legs[0].gateway = None;
    if let Some(Problem { message, .. }) = problem {
        assert!(message.contains("`inner`") && message.contains(subnet), "{message}");
    }
}

#[rstest]
#[case::several_networks(
    None, "a", &[("b", "172.18.0.2"), ("a", "172.19.0.2")],
    "web-1: steer.network: not set, and the container is in several networks, expected one of `a`, `b`")]
#[case::a_network_it_is_not_in(
    Some("front"), "a", &[("b", "172.18.0.2"), ("a", "172.19.0.2")],
    "web-1: steer.network: the container is not in `front`, expected one of `a`, `b`")]
#[case::a_task_without_its_way_to_the_host(
    Some("docker_gwbridge"), "a", &[("side", "172.18.0.2"), ("inner", "10.0.1.9")],
    "web-1: Docker took its leg in `docker_gwbridge` away when it joined a network with a way out of its own (it is in `inner`, `side`)")]
#[case::a_network_without_ipv4(
    Some("six"), "a", &[("shop_six", "2001:db8::2"), ("a", "172.19.0.2")],
    "web-1: steer.network: `shop_six` gives the container no IPv4 address, and IPv6 is not steered yet")]
#[case::no_ipv4_at_all(
    None, "six", &[("six", "2001:db8::2")],
    "web-1: has IPv6 addresses only, and IPv6 is not steered yet: give a network of it IPv4")]
#[case::the_hosts_network(None, "host", &[], "web-1: has no network of its own (network mode `host`): take `network_mode: host` away")]
#[case::no_network(None, "none", &[], "web-1: has no network (network mode `none`): put it in one")]
#[case::anothers_network(
    None, "container:db", &[],
    "web-1: has no network of its own (network mode `container:db`): put the steer labels on container `db`")]
#[case::taken_out_of_its_network(None, "bridge", &[], "web-1: has no network address (network mode `bridge`): connect it to one")]
fn without_an_address_the_reason_and_the_remedy_are_told(
    #[case] network: Option<&str>,
    #[case] mode: &str,
    #[case] legs: &[(&str, &str)],
    #[case] expected: &str,
) {
    let problem = leg_of(network, &container(mode, legs)).unwrap_err().to_string();
    assert!(problem.starts_with(expected), "got      {problem}\nexpected {expected}");
}
