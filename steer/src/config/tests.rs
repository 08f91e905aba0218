use rstest::rstest;

use super::*;
use crate::model::Protocol;

fn read(text: &str) -> anyhow::Result<Config> {
    parse(text, Path::new("/etc/steer.toml"))
}

fn error(text: &str) -> String {
    format!("{:#}", read(text).unwrap_err())
}

/// A file with one good service, with these lines in it, and this in its backend.
fn service(lines: &str, backend: &str) -> String {
    format!(
        "[[service]]\nname = 'echo'\nports = ['9000:5000']\n{lines}\n[[service.backend]]\nname = 'a'\nnetns = 'a'\n{backend}\n"
    )
}

#[test]
fn an_empty_file_says_nothing() {
    assert_eq!(read("").unwrap(), Config::default());
}

#[test]
fn the_example_of_the_documentation_is_read() {
    let lines = include_str!("mod.rs").lines().map_while(|line| line.strip_prefix("//!"));
    let example: Vec<_> =
        lines.map(|line| line.strip_prefix(' ').unwrap_or(line)).skip_while(|l| *l != "```toml").skip(1).collect();
    let end = example.iter().position(|line| *line == "```").unwrap();
    let config = read(&example[..end].join("\n")).unwrap();

    assert_eq!(config.defaults, Defaults::default(), "the example shows the built-in values");
    assert_eq!(
        config.agent,
        AgentSettings {
            docker_host: Some("unix:///var/run/docker.sock".into()),
            interfaces: vec!["eth0".into()],
            attach: Some(AttachMode::Auto),
            max_flows: Some(MAX_FLOWS),
        }
    );
    let tcp = |address: Option<&str>, port, target| PortSpec {
        address: address.map(|a| a.parse().unwrap()),
        port,
        target,
        protocol: Protocol::Tcp,
    };
    let backend = |name: &str, address: Option<[u8; 4]>, weight| StaticBackend {
        name: name.into(),
        netns: format!("/run/netns/{name}").into(),
        address: address.map(Into::into),
        weight,
    };
    let echo = StaticService {
        name: "echo".into(),
        ports: vec![tcp(None, 9000, 5000), tcp(Some("10.0.0.1"), 9001, 5001)],
        balance: Balance::LeastConn,
        ready: ReadyPolicy::Auto,
        drain: Duration::from_secs(30),
        hold: Duration::ZERO,
        allow: Vec::new(),
        backends: vec![backend("a", None, 1), backend("b", Some([10, 0, 0, 2]), 3)],
    };
    assert_eq!(config.services, [echo]);
}

#[test]
fn a_service_takes_the_defaults_of_the_file() {
    let defaults = "[defaults]\nweight = 5\nbalance = 'source'\nready = 'manual'\ndrain = '1s'\nhold = '2s'\nallow = ['10.0.0.0/8']\n";
    let config = read(&format!("{defaults}{}", service("", ""))).unwrap();
    let service = &config.services[0];
    assert_eq!((service.balance, service.ready), (Balance::Source, ReadyPolicy::Manual));
    assert_eq!((service.drain, service.hold), (Duration::from_secs(1), Duration::from_secs(2)));
    assert_eq!(service.allow, config.defaults.allow);
    assert_eq!(service.backends[0].weight, 5);
}

#[test]
fn a_namespace_knows_no_healthcheck_so_that_default_does_not_hold_for_it() {
    let config = read(&format!("[defaults]\nready = 'health'\n{}", service("", ""))).unwrap();
    assert_eq!((config.defaults.ready, config.services[0].ready), (ReadyPolicy::Health, ReadyPolicy::Auto));
}

#[test]
fn a_static_service_asks_for_what_labels_would() {
    let config = read(&service("hold = '0'", "weight = 3")).unwrap();
    let service = &config.services[0];
    let spec = service.spec(&service.backends[0]);
    assert_eq!((spec.service.as_str(), spec.weight, spec.hold, spec.network), ("echo", 3, Duration::ZERO, None));
    assert_eq!(spec.ports, service.ports);
}

#[rstest]
#[case("a", "/run/netns/a")]
#[case("/proc/42/ns/net", "/proc/42/ns/net")]
fn a_namespace_is_a_name_or_a_path(#[case] text: &str, #[case] expected: &str) {
    assert_eq!(netns_path(text), Ok(expected.into()));
}

#[rstest]
#[case(121, true)]
#[case(122, false)]
fn a_namespace_s_path_has_121_bytes_at_most(#[case] len: usize, #[case] fits: bool) {
    assert_eq!(netns_path(&format!("/{}", "x".repeat(len - 1))).is_ok(), fits);
}

#[rstest]
#[case::an_unknown_section(
    "[default]\n",
    "line 1",
    "unknown field `default`, expected one of `defaults`, `agent`, `service`"
)]
#[case::an_unknown_default("\n[defaults]\nwieght = 1\n", "line 3", "unknown field `wieght`")]
#[case::the_wrong_kind("[defaults]\nhold = 0\n", "line 2", "invalid type: integer `0`, expected a string")]
#[case::no_toml("[defaults\n", "line 1", "unclosed table, expected `]`")]
#[case::no_name("[[service]]\nports = []\n", "line 1", "missing field `name`")]
#[case::a_backend_without_namespace(
    "[[service]]\nname = 'e'\nports = ['1:2']\n[[service.backend]]\nname = 'a'\n",
    "line 4",
    "missing field `netns`"
)]
fn what_does_not_fit_is_told_with_its_line(#[case] text: &str, #[case] line: &str, #[case] expected: &str) {
    let error = error(text);
    assert!(error.starts_with("/etc/steer.toml: ") && error.contains(line) && error.contains(expected), "{error}");
}

#[rstest]
#[case("[defaults]\nweight = 257", "[defaults]: weight: 257 is no weight, expected a whole number from 0 to 256")]
#[case("[defaults]\nbalance = 'random'", "[defaults]: balance: `random`: expected one of `round-robin`, `least-conn`")]
#[case("[defaults]\nready = ''", "[defaults]: ready: ``: expected one of `auto`")]
#[case("[defaults]\ndrain = '30'", "[defaults]: drain: `30` is no duration")]
#[case("[defaults]\nhold = '25h'", "[defaults]: hold: `25h` is too long, 24h is the most")]
#[case("[defaults]\nallow = ['ten']", "[defaults]: allow: `ten` is no prefix or address")]
#[case("[defaults]\nnetwork = ''", "[defaults]: network: the network's name is empty")]
#[case("[agent]\nattach = 'xpd'", "[agent]: attach: `xpd`: expected one of `auto`, `xdp`, `generic`, `tc`")]
#[case("[agent]\ninterfaces = ['eth0', 'eth 1']", "[agent]: interfaces: `eth 1` is no name of an interface")]
#[case("[agent]\nmax_flows = 0", "[agent]: max_flows: 0 is out of bounds, expected 1024 to 16777216")]
#[case("[[service]]\nname = 'my echo'\nports = []", "service 1: name: `my echo`: ' ' may not stand in a name")]
#[case("[[service]]\nname = 'e'\nports = ['1:2']", "service `e`: backend: 0 given, expected 1 to 256")]
#[case(&service("hold = 'soon'", ""), "service `echo`: hold: `soon` is no duration, expected such as `30s`")]
#[case(&service("ready = 'health'", ""), "service `echo`: ready: `health`: a network namespace has no healthcheck")]
#[case(&service("", "weight = -1"), "service `echo`: backend `a`: weight: -1 is no weight")]
#[case(&service("", "address = '10.0.0'"), "service `echo`: backend `a`: address: `10.0.0` is no IP address")]
#[case(&service("", "address = '::1'"), "service `echo`: backend `a`: address: `::1`: IPv6 is not steered yet")]
#[case(&service("", "[[service.backend]]\nname = 'a'\nnetns = 'b'"), "service `echo`: backend `a`: name: another backend has it")]
#[case(&service("", "[[service.backend]]\nname = 'b'\nnetns = '/run/netns/a'"), "backend `b`: netns: another backend is in /run/netns/a")]
#[case(&service("", "[[service.backend]]\nname = 'b'\nnetns = 'x/y'"), "backend `b`: netns: `x/y` is not absolute")]
#[case(&service("", "[[service.backend]]\nname = 'b'\nnetns = '..'"), "backend `b`: netns: `..` is no network namespace")]
#[case(&service("[[service.backend]]\nname = 'b'\nnetns = 'b'\n[[service]]\nname = 'echo'\nports = ['1:2']", ""),
    "service `echo`: name: another service has it")]
#[case(
    "[[service]]\nname = 'e'\nports = ['9000']\n[[service.backend]]\nname = 'a'\nnetns = 'a'",
    "service `e`: ports: `9000`: expected `[address:]port:target`"
)]
fn a_bad_value_is_told(#[case] text: &str, #[case] expected: &str) {
    let error = error(text);
    assert!(
        error.starts_with("/etc/steer.toml: ") && error.contains(expected),
        "got      {error}\nexpected {expected}"
    );
    assert!(!error.contains('\n'), "only one is wrong: {error}");
}

#[test]
fn all_bad_values_are_told_at_once() {
    let error = error(&format!("[defaults]\nweight = 300\nhold = 'x'\n{}", service("drain = 'y'", "")));
    let lines: Vec<_> = error.lines().map(|line| line.split(" is ").next().unwrap()).collect();
    let expected = [
        "/etc/steer.toml: 3 bad values",
        "  [defaults]: weight: 300",
        "  [defaults]: hold: `x`",
        "  service `echo`: drain: `y`",
    ];
    assert_eq!(lines, expected);
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = format!("{:#}", load(Path::new("/nonexistent/steer.toml")).unwrap_err());
    assert!(error.starts_with("cannot read /nonexistent/steer.toml: No such file"), "{error}");
}
