//! What becomes of one more than there is room for.

use steer_common::limits::{MAX_ALLOW, MAX_FRONTENDS, MAX_SERVICES};

use super::*;

#[test]
fn more_services_than_there_are_ids_are_told_and_the_others_work() {
    let many = |count: u32| {
        (0..count).map(|number| {
            let mut one = candidate("web", 1, "80:1");
            one.spec.service = format!("web{number:03}");
            one.id = ContainerId(one.spec.service.clone());
            one.reach.netns_cookie = number.into();
            one.spec.ports[0].port = 1000 + number as u16;
            one.reach.ifindex = number;
            one
        })
    };
    let mut host = Host::with(many(MAX_SERVICES - 1).skip(1));
    host.steer(observed(many(MAX_SERVICES - 1)));
    let (_, problems) = host.reconcile(&observed(many(MAX_SERVICES + 1)));
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(
        told,
        [
            "web255: 255 services are steered already: not steered",
            "web256: 255 services are steered already: not steered"
        ]
    );
    assert_eq!(host.applied.services.len(), MAX_SERVICES as usize - 1);
}

#[test]
fn more_backends_than_there_are_ids_are_told_and_the_others_work() {
    let many = |count: u32| {
        (0..count).map(|number| {
            let mut one = candidate("web", 1, "80:1");
            one.spec.service = format!("web{}", number / 256);
            one.spec.ports[0].port = 1000 + (number / 256) as u16;
            one.id = ContainerId(format!("{number:05}"));
            one.name = one.id.0.clone();
            (one.reach.netns_cookie, one.reach.ifindex) = (number.into(), number);
            one
        })
    };
    let mut host = Host::default();
    let (ops, problems) = host.planned(&observed(many(MAX_BACKENDS)));
    let [problem] = problems.as_slice() else { panic!("{problems:?}") };
    assert_eq!(problem.message, "4095 backends are steered to already: not steered");
    ops.iter().for_each(|op| host.applied.note(op));
    assert_eq!(host.applied.backends.len(), MAX_BACKENDS as usize - 1);
    // Room is made: the next one gets it, in the round after.
    let others = || observed(many(MAX_BACKENDS).skip(1));
    for _ in 0..2 {
        let (ops, _) = host.planned(&others());
        ops.iter().for_each(|op| host.applied.note(op));
    }
    assert_eq!(host.planned(&others()), (Vec::new(), Vec::new()));
}

#[test]
fn more_prefixes_than_fit_are_told_and_admit_nobody() {
    let prefixes = |count: u32| -> String {
        (0..count).map(|number| format!("10.{}.{}.0/24", number / 256, number % 256)).collect::<Vec<_>>().join(",")
    };
    let many = candidate("web", 1, "80:1").allowing(&prefixes(MAX_ALLOW));
    let few = candidate("zoo", 2, "81:1").allowing("10.0.0.0/8");
    let mut host = Host::default();
    let (_, problems) = host.reconcile(&observed([many, few]));
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["zoo: steer.allow: 4096 prefixes are allowed already: service zoo admits nobody new"]);
    assert_eq!(host.applied.allow.len(), MAX_ALLOW as usize);
    assert_eq!(host.applied.services["zoo"].entry.flags, ServiceEntry::ALLOW_LIST);
}

#[test]
fn more_frontends_than_fit_are_told_and_those_that_are_there_stay() {
    let addresses = |count: u32| (0..count).map(|number| std::net::Ipv4Addr::from(0x0a00_0000 + number).into());
    let at = |candidates: Vec<Candidate>| Observed {
        candidates,
        host_addresses: addresses(MAX_FRONTENDS - 3).collect(),
        ..Observed::default()
    };
    let mut host = Host::default();
    let (ops, _) = host.planned(&at(vec![candidate("web", 1, "80:1")]));
    ops.iter().for_each(|op| host.applied.note(op));
    assert_eq!(host.applied.frontends.len() as u32, MAX_FRONTENDS - 2);

    // `api` comes before `web` by name, and yet takes nothing from it.
    let both = at(vec![candidate("api", 2, "81:1"), candidate("web", 1, "80:1")]);
    let (ops, problems) = host.planned(&both);
    ops.iter().for_each(|op| host.applied.note(op));
    let told: Vec<_> = problems.iter().map(ToString::to_string).collect();
    assert_eq!(told, ["api: steer.port: 16384 frontends are steered already: 16380 of service api are not"]);
    let of_web = host.applied.services["web"].id;
    let kept = host.applied.frontends.values().filter(|entry| entry.service == of_web).count();
    assert_eq!((kept as u32, host.applied.frontends.len() as u32), (MAX_FRONTENDS - 2, MAX_FRONTENDS));
    assert_eq!(host.planned(&both).0, []);
}
