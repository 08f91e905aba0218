use rstest::rstest;

use super::Severity::{Fail, Ok as Fine, Warn};
use super::*;
use crate::host::links::Xdp;

/// A host where all is well.
fn facts() -> Facts {
    Facts {
        capabilities: Some(u64::MAX),
        kernel: "6.18.44".into(),
        realtime: false,
        btf: true,
        bpffs: Filesystem::Mounted("/sys/fs/bpf".into()),
        cgroup2: Filesystem::Mounted("/sys/fs/cgroup".into()),
        tracefs: Filesystem::Mounted("/sys/kernel/tracing".into()),
        ip_forward: Some(true),
        uplinks: Ok(vec![uplink(Some(link()))]),
        docker: Some(Ok(DockerFacts { engine: "28.5.2".into(), api: "1.51".into() })),
        agents: Vec::new(),
        instance: "steer".into(),
    }
}

fn link() -> Link {
    Link {
        index: 2,
        name: "eth0".into(),
        kind: None,
        driver: Some("ice".into()),
        master: None,
        peer: None,
        peer_netns: None,
        mac: Some([2, 0, 0, 0, 0, 1]),
        up: true,
        loopback: false,
        xdp: None,
    }
}

fn uplink(link: Option<Link>) -> Uplink {
    Uplink { name: "eth0".into(), link, vlans: Vec::new(), ours: false }
}

#[test]
fn a_good_host_passes_every_line() {
    let findings = judge(&facts());
    assert!(findings.iter().all(|finding| finding.severity == Fine && finding.remedy.is_none()), "{findings:#?}");
    let subjects: Vec<_> = findings.iter().map(|finding| finding.subject.as_str()).collect();
    let expected =
        ["privileges", "kernel", "BTF", "bpffs", "cgroup2", "tracefs", "ip_forward", "eth0", "docker", "agent"];
    assert_eq!(subjects, expected);
}

#[test]
fn a_kernel_without_tcx_is_fine_and_what_is_used_instead_is_told() {
    let finding = kernel("6.1.0-28-amd64", false);
    assert_eq!(finding.severity, Fine);
    assert!(finding.found.contains("clsact"), "{finding:?}");
}

#[rstest]
#[case::no_privileges(Facts { capabilities: Some(0), ..facts() }, "privileges", Fail, "missing CAP_NET_ADMIN, CAP_SYS_PTRACE, CAP_SYS_ADMIN")]
#[case::some_privileges(Facts { capabilities: Some(!(1 << 21)), ..facts() }, "privileges", Fail, "missing CAP_SYS_ADMIN")]
#[case::privileges_not_known(Facts { capabilities: None, ..facts() }, "privileges", Warn, "cannot be told")]
#[case::old_kernel(Facts { kernel: "5.15.0-1-amd64".into(), ..facts() }, "kernel", Fail, "older than")]
#[case::odd_kernel(Facts { kernel: "next".into(), ..facts() }, "kernel", Warn, "not understood")]
#[case::realtime(Facts { realtime: true, ..facts() }, "kernel", Warn, "PREEMPT_RT")]
#[case::old_and_realtime(Facts { kernel: "5.15.0-1-rt-amd64".into(), realtime: true, ..facts() }, "kernel", Fail, "older than")]
#[case::no_btf(Facts { btf: false, ..facts() }, "BTF", Fail, "missing")]
#[case::bpffs_not_mounted(Facts { bpffs: Filesystem::Known, ..facts() }, "bpffs", Warn, "not mounted")]
#[case::no_bpffs(Facts { bpffs: Filesystem::Unknown, ..facts() }, "bpffs", Fail, "not known")]
#[case::cgroup2_not_mounted(Facts { cgroup2: Filesystem::Known, ..facts() }, "cgroup2", Warn, "not mounted")]
#[case::no_cgroup2(Facts { cgroup2: Filesystem::Unknown, ..facts() }, "cgroup2", Fail, "not known")]
#[case::no_tracefs(Facts { tracefs: Filesystem::Unknown, ..facts() }, "tracefs", Warn, "not known")]
#[case::no_forwarding(Facts { ip_forward: Some(false), ..facts() }, "ip_forward", Warn, "off")]
#[case::no_uplink(Facts { uplinks: Ok(Vec::new()), ..facts() }, "interface", Fail, "none leads outside")]
#[case::no_netlink(Facts { uplinks: Err("netlink: denied".into()), ..facts() }, "interface", Fail, "denied")]
#[case::wrong_interface(Facts { uplinks: Ok(vec![uplink(None)]), ..facts() }, "eth0", Fail, "no such interface")]
#[case::no_docker(Facts { docker: Some(Err("cannot reach Docker".into())), ..facts() }, "docker", Fail, "cannot reach")]
#[case::ancient_docker(
    Facts { docker: Some(Ok(DockerFacts { engine: "19.3.1".into(), api: "1.40".into() })), ..facts() }, "docker", Fail, "API 1.40")]
#[case::another_agent(
    Facts { agents: vec![AgentFacts { instance: "blue".into(), pid: Some(9) }], ..facts() }, "agent", Warn, "blue, is running, pid 9")]
fn what_is_in_the_way_is_named_with_its_remedy(
    #[case] facts: Facts,
    #[case] subject: &str,
    #[case] severity: Severity,
    #[case] says: &str,
) {
    let findings = judge(&facts);
    let wrong: Vec<_> = findings.iter().filter(|finding| finding.severity != Fine).collect();
    let [finding] = wrong.as_slice() else { panic!("{findings:#?}") };
    assert_eq!((finding.subject.as_str(), finding.severity), (subject, severity), "{finding:#?}");
    assert!(finding.found.contains(says), "{finding:#?}");
    assert!(finding.remedy.is_some(), "{finding:#?}");
}

#[rstest]
#[case::hardware_with_xdp(link(), Fine, "native XDP likely")]
#[case::hardware_without(Link { driver: Some("e1000e".into()), ..link() }, Fine, "e1000e: tc")]
#[case::virtio(Link { driver: Some("virtio_net".into()), ..link() }, Fine, "virtio_net: tc; has native XDP")]
#[case::veth(Link { kind: Some("veth".into()), driver: None, ..link() }, Fine, "veth: tc")]
#[case::bond(Link { kind: Some("bond".into()), driver: None, ..link() }, Fine, "bond: tc")]
#[case::bridge(Link { kind: Some("bridge".into()), driver: None, ..link() }, Warn, "tc only")]
#[case::loopback(Link { loopback: true, driver: None, ..link() }, Warn, "at connect")]
#[case::wireguard(Link { kind: Some("wireguard".into()), driver: None, mac: None, ..link() }, Fail, "wireguard: has no Ethernet")]
#[case::ppp(Link { driver: None, mac: None, ..link() }, Fail, "has no Ethernet header")]
#[case::unknown(Link { driver: None, ..link() }, Fine, "driver not known")]
#[case::down(Link { up: false, ..link() }, Warn, "is down")]
fn an_interface_is_judged_by_what_it_is(#[case] link: Link, #[case] severity: Severity, #[case] says: &str) {
    let findings = interface(&uplink(Some(link)));
    let [finding] = findings.as_slice() else { panic!("{findings:#?}") };
    assert_eq!(finding.severity, severity);
    assert!(finding.found.contains(says), "{finding:#?}");
}

#[rstest]
#[case::ours(true, Fine, "steer's")]
#[case::another_s(false, Warn, "not steer's")]
fn who_holds_the_xdp_slot_is_told(#[case] ours: bool, #[case] severity: Severity, #[case] says: &str) {
    let link = Link { xdp: Some(Xdp { mode: XdpMode::Native, program: 42 }), ..link() };
    let findings = interface(&Uplink { ours, ..uplink(Some(link)) });
    assert_eq!(findings[1].severity, severity);
    assert!(findings[1].found.contains("XDP program 42 (native)") && findings[1].found.contains(says), "{findings:#?}");
}

#[test]
fn vlans_are_named_with_what_to_type() {
    let findings = interface(&Uplink { vlans: vec!["eth0.7".into(), "eth0.8".into()], ..uplink(Some(link())) });
    assert!(findings[0].found.contains(": tc"), "{findings:#?}");
    let remedy = findings[1].remedy.as_deref().unwrap();
    assert!(remedy.contains("steer run --interface eth0 --interface eth0.7 --interface eth0.8"), "{remedy}");
}

#[rstest]
#[case("6.18.44-fc-v657", Some((6, 18)))]
#[case("28.0.1", Some((28, 0)))]
#[case("1.51", Some((1, 51)))]
#[case("6", None)]
#[case("v6.1", None)]
fn versions_are_two_numbers(#[case] text: &str, #[case] expected: Option<(u32, u32)>) {
    assert_eq!(version(text), expected);
}

#[test]
fn an_agent_of_this_instance_is_as_it_should_be() {
    let findings = agents(&[AgentFacts { instance: "steer".into(), pid: Some(7) }], "steer");
    assert_eq!(findings, [ok("agent", "steer is running, pid 7")]);
}
