use std::net::Ipv4Addr;

use rstest::rstest;
use steer_common::addr::{Addr, TCP, UDP};
use steer_common::limits::MAX_PORTS;

use super::*;
use crate::dataplane::text::padded;
use crate::model::Protocol;

const BOOT: UnixMicros = UnixMicros(1_000);

fn service(id: u16, name: &str) -> ServiceRow {
    let mut ports = [PortInfo::default(); MAX_PORTS];
    ports[0] = PortInfo { addr: Addr::UNSPECIFIED, port: Port::new(9000), proto: TCP, pad: 0 };
    // Behind the hole of a port that was given up.
    ports[2] = PortInfo { addr: Ipv4Addr::new(10, 0, 0, 1).into(), port: Port::new(53), proto: UDP, pad: 0 };
    ServiceRow {
        id: ServiceId(id),
        entry: ServiceEntry { hold_ns: 10_000_000_000, balance: 1, ..ServiceEntry::default() },
        info: ServiceInfo { name: padded(name), ports },
    }
}

fn backend(id: u16, service: u16, name: &str) -> BackendRow {
    let mut targets = [Port::NONE; MAX_PORTS];
    targets[0] = Port::new(5000);
    BackendRow {
        id: BackendId(id),
        entry: BackendEntry {
            addr: Ipv4Addr::new(172, 17, 0, 2).into(),
            generation: 7,
            service: ServiceId(service),
            targets,
            weight: 3,
            ..BackendEntry::default()
        },
        info: BackendInfo {
            container: padded("0123"),
            name: padded(name),
            cause: padded("health: healthy"),
            since_us: 5,
            operator_weight: -1,
            maintenance: 0,
            put_in: 0,
            label_weight: 3,
            drain_ms: 1500,
        },
        state: StateEntry { state: BackendState::Ready as u16, if_listening: 0, edges: 1 },
        edge: EdgeEntry { count: 1, at_ns: 7_000, kind: EdgeKind::Stop as u32, signal: 15, frozen_ns: 0 },
        live: 2,
        stats: BackendStats { steered: 10, established: 9, resteered: 2 },
    }
}

#[test]
fn a_backend_stands_under_its_service_with_its_counts() {
    let pending = FlowCounts::from([((BackendId(4), 7), 1), ((BackendId(4), 6), 100)]);
    let views = services(vec![service(2, "web"), service(3, "")], vec![backend(4, 2, "web-1")], &pending, BOOT);
    let expected = ServiceView {
        id: ServiceId(2),
        name: "web".into(),
        ports: vec![
            Frontend { address: None, port: 9000, protocol: Protocol::Tcp },
            Frontend { address: Some(IpAddr::V4(Ipv4Addr::new(10, 0, 0, 1))), port: 53, protocol: Protocol::Udp },
        ],
        balance: Balance::LeastConn,
        hold: Duration::from_secs(10),
        mesh: false,
        backends: vec![BackendView {
            id: BackendId(4),
            generation: 7,
            container: ContainerId("0123".into()),
            name: "web-1".into(),
            address: IpAddr::V4(Ipv4Addr::new(172, 17, 0, 2)),
            targets: vec![Some(5000), None],
            state: BackendState::Ready,
            cause: "health: healthy".into(),
            since: UnixMicros(5),
            weight: 3,
            label_weight: 3,
            operator_weight: None,
            maintenance: false,
            live_flows: 2,
            pending_flows: 1,
            steered_total: 10,
            established_total: 9,
            resteered_total: 2,
            drain: Duration::from_millis(1500),
        }],
    };
    assert_eq!(views, [expected], "the other generation's flows are not counted, the free service is not shown");
}

#[test]
fn services_and_backends_come_by_name_and_none_is_hidden() {
    let rows = vec![backend(9, 2, "b"), backend(8, 2, "a"), backend(7, 3, "lost")];
    let views = services(vec![service(3, ""), service(2, "web")], rows, &FlowCounts::new(), BOOT);
    let names: Vec<_> = views
        .iter()
        .map(|view| (view.name.as_str(), view.backends.iter().map(|b| b.name.as_str()).collect::<Vec<_>>()))
        .collect();
    assert_eq!(names, [("#3", vec!["lost"]), ("web", vec!["a", "b"])]);
}

#[rstest]
#[case::a_stop_signal(EdgeKind::Stop, 3, BackendState::Draining, "signal: QUIT")]
#[case::killed(EdgeKind::Kill, 9, BackendState::Draining, "signal: KILL")]
#[case::ended(EdgeKind::Exit, 0, BackendState::Gone, "exit")]
fn what_the_kernel_saw_since_the_agent_wrote_is_shown(
    #[case] kind: EdgeKind,
    #[case] signal: u32,
    #[case] state: BackendState,
    #[case] cause: &str,
) {
    let mut row = backend(4, 2, "web-1");
    row.edge = EdgeEntry { count: 2, at_ns: 7_000, kind: kind as u32, signal, frozen_ns: 0 };
    assert_eq!(last_change(&row, BOOT), (state, cause.to_owned(), UnixMicros(1_007)));
}

#[test]
fn one_that_is_frozen_is_shown_as_unready_whatever_the_agent_knows_of_it() {
    let mut row = backend(4, 2, "web-1");
    row.edge.frozen_ns = 9_000;
    assert_eq!(last_change(&row, BOOT), (BackendState::Unready, "frozen".to_owned(), UnixMicros(1_009)));
    row.state.state = BackendState::Unready as u16;
    assert_eq!(last_change(&row, BOOT), (BackendState::Unready, "health: healthy".to_owned(), UnixMicros(5)));
}

#[test]
fn an_end_counted_before_its_beginning_is_no_flow() {
    assert_eq!(live_count(u64::MAX), 0);
    assert_eq!(live_count(3), 3);
}

#[rstest]
#[case(TcpState::SynSent, 10, true)]
#[case(TcpState::SynSent, 65, false)]
#[case(TcpState::Established, 7200, true)]
#[case(TcpState::Established, 9001, false)]
#[case(TcpState::FinReverse, 10, true)]
#[case(TcpState::Closed, 0, false)]
#[case(TcpState::Reset, 0, false)]
fn a_flow_is_current_until_it_ends_or_its_time_is_over(
    #[case] state: TcpState,
    #[case] idle: u32,
    #[case] current: bool,
) {
    let key = FlowKey {
        client: Ipv4Addr::new(10, 9, 0, 1).into(),
        client_port: Port::new(40_000),
        service: ServiceId(2),
        proto: TCP,
        lane: 1,
        pad: 0,
    };
    let entry = FlowEntry {
        frontend: Ipv4Addr::new(10, 0, 0, 1).into(),
        frontend_port: Port::new(9000),
        backend: BackendId(4),
        generation: 7,
        isn: 1,
        uplink: 2,
        last_seen: 100_000 - idle,
        marks: state.marks(),
        port_index: 0,
        refusals: 0,
        refused: BackendId::NONE,
    };
    let flow = FlowView::of_packets(&key, &entry, FlowTable::Pending, 100_000);
    assert_eq!(flow.is_current(), current);
    assert_eq!(flow.client.unwrap().to_string(), "10.9.0.1:40000");
    assert_eq!(flow.frontend.to_string(), "10.0.0.1:9000");
    assert_eq!((flow.idle, flow.lane), (Some(Duration::from_secs(idle.into())), 1));
}
