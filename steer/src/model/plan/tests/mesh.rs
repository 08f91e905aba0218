//! Who takes what finds no ready backend: the clients wait, or Swarm's mesh has it.

use super::*;

#[test]
fn clients_of_a_swarm_service_wait_here_as_long_as_all_its_tasks_are_here() {
    let at = |mesh: bool, all_here: &[&str]| {
        let mut one = candidate("web", 1, "80:1");
        one.spec.mesh = mesh;
        Observed { all_here: all_here.iter().map(|&name| name.to_owned()).collect(), ..observed([one]) }
    };
    let mut host = Host::default();
    let cases = [
        (at(true, &["api"]), ServiceEntry::MESH),
        (at(true, &["api", "web"]), ServiceEntry::MESH | ServiceEntry::ALL_HERE),
        (at(true, &[]), ServiceEntry::MESH),
        (at(false, &["web"]), 0),
    ];
    for (observed, flags) in cases {
        host.steer(observed);
        assert_eq!(host.applied.services["web"].entry.flags, flags);
    }
}
