//! Which addresses lead to which port of which service.

use super::*;
use crate::model::Protocol;

#[rstest]
#[case::a_wildcard_is_every_address_and_loopback(
    "80:1",
    &["10.0.0.1:80 web[0]", "127.0.0.1:80 web[0] loopback", "192.0.2.9:80 web[0]"]
)]
#[case::one_address_is_that_one("192.0.2.9:80:1", &["192.0.2.9:80 web[0]"])]
#[case::also_when_the_host_does_not_have_it_yet("203.0.113.5:80:1", &["203.0.113.5:80 web[0]"])]
#[case::loopback_written_out("127.0.0.2:80:1", &["127.0.0.2:80 web[0] loopback"])]
#[case::each_port_has_its_index(
    "10.0.0.1:80:1,10.0.0.1:443:2",
    &["10.0.0.1:80 web[0]", "10.0.0.1:443 web[1]"]
)]
fn ports_become_frontends(#[case] ports: &str, #[case] expected: &[&str]) {
    for closing in [false, true] {
        let mut host = Host::default();
        let host_addresses = [ip(HOST), ip("192.0.2.9")].into();
        host.steer(Observed { host_addresses, closing, ..observed([candidate("web", 1, ports)]) });
        let mut expected: Vec<_> =
            expected.iter().map(|text| if closing { format!("{text} closed") } else { text.to_string() }).collect();
        expected.sort();
        assert_eq!(host.frontends(), expected);
    }
}

#[test]
fn a_wildcard_follows_the_hosts_addresses() {
    let mut host = Host::with([candidate("web", 1, "80:1")]);
    let at = |addresses: &[&str]| Observed {
        host_addresses: addresses.iter().map(|address| ip(address)).collect(),
        ..observed([candidate("web", 1, "80:1")])
    };
    assert_eq!(kinds(&host.steer(at(&[HOST, "192.0.2.9"]))), ["PutFrontend"]);
    assert_eq!(kinds(&host.steer(at(&["192.0.2.9"]))), ["RemoveFrontend"]);
    assert_eq!(host.frontends(), ["127.0.0.1:80 web[0] loopback", "192.0.2.9:80 web[0]"]);
}

#[test]
fn an_address_that_is_lost_follows_what_is_known_until_it_is_back_or_given_up() {
    let mut host = Host::with([candidate("web", 1, "80:1")]);
    let at = |here: &[&str], lost: &[&str]| Observed {
        host_addresses: here.iter().map(|address| ip(address)).collect(),
        lost_addresses: lost.iter().map(|address| ip(address)).collect(),
        ..observed([candidate("web", 1, "80:1")])
    };
    assert_eq!(kinds(&host.steer(at(&[], &[HOST]))), ["PutFrontend"]);
    assert_eq!(host.frontends(), ["10.0.0.1:80 web[0] closed", "127.0.0.1:80 web[0] loopback"]);
    assert_eq!(kinds(&host.steer(at(&[HOST], &[]))), ["PutFrontend"]);
    assert_eq!(kinds(&host.steer(at(&[], &[]))), ["RemoveFrontend"]);
}

#[test]
fn an_address_that_is_written_out_is_there_whether_the_host_has_it_or_not() {
    let lost = Observed { lost_addresses: [ip(HOST)].into(), ..observed([candidate("web", 1, "10.0.0.1:80:1")]) };
    let mut host = Host::default();
    host.steer(lost);
    assert_eq!(host.frontends(), ["10.0.0.1:80 web[0]"]);
}

#[test]
fn detaching_closes_every_frontend_and_touches_nothing_else() {
    let both = || [candidate("api", 1, "81:1"), candidate("web", 2, "80:1,443:2")];
    let mut host = Host::with(both());
    let ops = host.steer(Observed { closing: true, ..observed(both()) });
    assert_eq!(kinds(&ops), ["PutFrontend"; 6]);
    assert!(host.frontends().iter().all(|text| text.ends_with(" closed")));
    assert_eq!(kinds(&host.steer(observed(both()))), ["PutFrontend"; 6]);
}

#[test]
fn a_port_that_the_mesh_has_given_away_follows_what_is_known_and_is_the_others_then() {
    let before = || [candidate("web", 1, "80:1,443:2")];
    let mut host = Host::with(before());
    let port = Frontend { address: None, port: 80, protocol: Protocol::Tcp };
    host.steer(Observed { moved: [("web".to_owned(), port)].into(), ..observed(before()) });
    assert_eq!(
        host.frontends(),
        [
            "10.0.0.1:443 web[1]",
            "10.0.0.1:80 web[0] closed",
            "127.0.0.1:443 web[1] loopback",
            "127.0.0.1:80 web[0] loopback closed"
        ]
    );
    host.steer(observed([candidate("web", 3, "443:2"), candidate("api", 2, "80:1")]));
    assert_eq!(
        host.frontends(),
        ["10.0.0.1:443 web[1]", "10.0.0.1:80 api[0]", "127.0.0.1:443 web[1] loopback", "127.0.0.1:80 api[0] loopback"]
    );
}

#[test]
fn an_address_written_out_comes_before_the_wildcard_of_the_same_service() {
    let two = || observed([candidate("web", 1, "80:1"), candidate("web", 2, "10.0.0.1:80:1")]);
    let mut host = Host::default();
    host.steer(two());
    assert_eq!(host.frontends(), ["10.0.0.1:80 web[1]", "127.0.0.1:80 web[0] loopback"]);
    assert_eq!(host.kernel.ready(HOST, 80), ["web-2".to_owned()].into());
    assert_eq!(host.kernel.ready("127.0.0.1", 80), ["web-1".to_owned()].into());
    // And back, when the new version goes.
    host.steer(observed([candidate("web", 1, "80:1")]));
    assert_eq!(host.kernel.ready(HOST, 80), ["web-1".to_owned()].into());
}

#[test]
fn a_frontend_is_handed_from_one_service_to_the_next_without_a_gap() {
    let mut host = Host::with([candidate("blue", 1, "80:1")]);
    let (ops, problems) = host.planned(&observed([candidate("green", 2, "80:1")]));
    assert_eq!(problems, []);
    for op in &ops {
        host.carry_out(std::slice::from_ref(op));
        assert!(host.applied.frontends.len() == 2, "gone after {op:?}");
    }
    assert_eq!(host.kernel.ready(HOST, 80), ["green-2".to_owned()].into());
}
