//! `steer flows`: connections, and the backend each is on.

use serde::Serialize;

use super::report;
use crate::cli::FlowsArgs;
use crate::dataplane::paths::Paths;
use crate::dataplane::read::{FlowView, Reader, Snapshot};

pub(super) fn flows(args: &FlowsArgs, paths: &Paths) -> anyhow::Result<()> {
    let reader = Reader::open(paths)?;
    let snapshot = reader.snapshot()?;
    let filter = Filter::new(args, &snapshot)?;
    let mut rows = Vec::new();
    for flow in reader.flows()? {
        let flow = flow?;
        if filter.takes(&flow) {
            rows.push(flow);
        }
    }
    // By what never changes of a flow, so that two calls give the same order.
    rows.sort_by_key(|flow| (flow.frontend, flow.client, flow.lane, flow.backend));
    let found = rows.len();
    rows.truncate(args.limit.unwrap_or(found));
    let rows: Vec<_> = rows.iter().map(|flow| row(flow, &snapshot)).collect();
    if args.json { super::print_json(&rows) } else { super::print(&text(&rows, found)) }
}

/// Which flows are asked for.
struct Filter {
    /// Ids and generations of the backends; `None` = of any.
    backends: Option<Vec<(u16, u32)>>,
    ended: bool,
}

impl Filter {
    fn new(args: &FlowsArgs, snapshot: &Snapshot) -> anyhow::Result<Self> {
        let of_service = match &args.service {
            Some(name) => Some(report::find_service(snapshot, name)?.backends.iter().collect::<Vec<_>>()),
            None => None,
        };
        let of_target = args.backend.as_ref().map(|target| report::find_backends(snapshot, target)).transpose()?;
        let backends = match (of_service, of_target) {
            (Some(mut service), Some(target)) => {
                service.retain(|backend| target.contains(backend));
                Some(service)
            }
            (service, target) => service.or(target),
        };
        let ids = |backends: Vec<&crate::dataplane::read::BackendView>| {
            backends.iter().map(|backend| (backend.id.0, backend.generation)).collect()
        };
        Ok(Self { backends: backends.map(ids), ended: args.all })
    }

    fn takes(&self, flow: &FlowView) -> bool {
        let wanted = self.backends.as_ref().is_none_or(|ids| ids.contains(&(flow.backend.0, flow.generation)));
        wanted && (self.ended || flow.is_current() && !flow.is_of_mesh())
    }
}

#[derive(Serialize)]
struct Row {
    /// `null` = one of this host's own sockets.
    client: Option<String>,
    frontend: String,
    /// `null` = its backend is gone, or it never had one.
    service: Option<String>,
    backend: Option<String>,
    /// Swarm's routing mesh has it.
    mesh: bool,
    container: Option<String>,
    state: &'static str,
    idle_seconds: Option<u64>,
    table: &'static str,
    lane: u8,
}

fn row(flow: &FlowView, snapshot: &Snapshot) -> Row {
    let backend = snapshot.backend(flow.backend).filter(|(_, backend)| backend.generation == flow.generation);
    Row {
        client: flow.client.map(|client| client.to_string()),
        frontend: flow.frontend.to_string(),
        service: backend.map(|(service, _)| service.name.clone()),
        backend: backend.map(|(_, backend)| backend.name.clone()),
        mesh: flow.is_of_mesh(),
        container: backend.map(|(_, backend)| backend.container.0.clone()),
        state: flow.state.name(),
        idle_seconds: flow.idle.map(|idle| idle.as_secs()),
        table: flow.table.name(),
        lane: flow.lane,
    }
}

fn text(rows: &[Row], found: usize) -> String {
    if found == 0 {
        return "no flows\n".into();
    }
    let mut table = report::table(&["client", "frontend", "service", "backend", "state", "idle"], &["idle"]);
    for row in rows {
        table.add_row([
            row.client.as_deref().unwrap_or("this host"),
            &row.frontend,
            row.service.as_deref().unwrap_or("-"),
            row.backend.as_deref().unwrap_or(if row.mesh { "mesh" } else { "gone" }),
            row.state,
            &row.idle_seconds.map_or("-".into(), report::span),
        ]);
    }
    let mut text = report::lines(&table, "");
    if rows.len() < found {
        text.push_str(&format!("and {} more\n", found - rows.len()));
    }
    text
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rstest::rstest;
    use serde_json::json;
    use steer_common::backend::BackendId;
    use steer_common::service::ServiceId;
    use steer_common::tcp::TcpState;

    use super::report::fixtures::snapshot;
    use super::*;
    use crate::dataplane::read::FlowTable;

    fn flow(backend: u16, generation: u32, state: TcpState) -> FlowView {
        FlowView {
            client: Some("10.9.0.1:40000".parse().unwrap()),
            frontend: "10.0.0.1:9000".parse().unwrap(),
            service: Some(ServiceId(1)),
            backend: BackendId(backend),
            generation,
            state,
            idle: Some(Duration::from_secs(4)),
            table: FlowTable::Flows,
            lane: 0,
        }
    }

    fn local() -> FlowView {
        FlowView {
            client: None,
            service: None,
            idle: None,
            table: FlowTable::Local,
            ..flow(1, 1, TcpState::Established)
        }
    }

    fn of_mesh() -> FlowView {
        FlowView { table: FlowTable::Pending, ..flow(0, 0, TcpState::Established) }
    }

    fn args(service: Option<&str>, backend: Option<&str>, all: bool) -> FlowsArgs {
        FlowsArgs { service: service.map(Into::into), backend: backend.map(Into::into), limit: None, all, json: false }
    }

    #[rstest]
    #[case::all_current(args(None, None, false), [true, false, true, true])]
    #[case::ended_too(args(None, None, true), [true, true, true, true])]
    #[case::of_a_service(args(Some("web"), None, false), [true, false, true, false])]
    #[case::of_a_backend(args(None, Some("web-1"), false), [true, false, false, false])]
    #[case::of_both(args(Some("web"), Some("abc2"), false), [false, false, true, false])]
    fn filters_choose(#[case] args: FlowsArgs, #[case] expected: [bool; 4]) {
        let filter = Filter::new(&args, &snapshot()).unwrap();
        let flows = [
            flow(1, 1, TcpState::Established),
            flow(1, 1, TcpState::Closed),
            flow(2, 1, TcpState::SynSent),
            flow(2, 9, TcpState::Established),
        ];
        assert_eq!(flows.map(|flow| filter.takes(&flow)), expected);
    }

    #[rstest]
    #[case::not_unless_asked_for(args(None, None, false), false)]
    #[case::with_all_others(args(None, None, true), true)]
    #[case::of_no_backend(args(Some("web"), None, true), false)]
    fn flows_of_the_mesh_are_none_of_steers(#[case] args: FlowsArgs, #[case] expected: bool) {
        assert_eq!(Filter::new(&args, &snapshot()).unwrap().takes(&of_mesh()), expected);
    }

    #[rstest]
    #[case(args(Some("wbe"), None, false))]
    #[case(args(None, Some("abc"), false))]
    fn a_filter_that_names_nothing_is_an_error(#[case] args: FlowsArgs) {
        assert!(Filter::new(&args, &snapshot()).is_err());
    }

    #[test]
    fn the_shape_of_the_json_is_a_promise() {
        let snapshot = snapshot();
        let rows = [flow(1, 1, TcpState::Established), local(), flow(1, 2, TcpState::SynSent), of_mesh()];
        let container = "abc1000000000000000000000000000000000000000000000000000000000000";
        let expected = json!([
            {
                "client": "10.9.0.1:40000", "frontend": "10.0.0.1:9000", "service": "web", "backend": "web-1",
                "mesh": false, "container": container, "state": "established", "idle_seconds": 4, "table": "flows", "lane": 0
            },
            {
                "client": null, "frontend": "10.0.0.1:9000", "service": "web", "backend": "web-1",
                "mesh": false, "container": container, "state": "established", "idle_seconds": null, "table": "local", "lane": 0
            },
            {
                "client": "10.9.0.1:40000", "frontend": "10.0.0.1:9000", "service": null, "backend": null,
                "mesh": false, "container": null, "state": "syn-sent", "idle_seconds": 4, "table": "flows", "lane": 0
            },
            {
                "client": "10.9.0.1:40000", "frontend": "10.0.0.1:9000", "service": null, "backend": null,
                "mesh": true, "container": null, "state": "established", "idle_seconds": 4, "table": "pending", "lane": 0
            }
        ]);
        let rows: Vec<_> = rows.iter().map(|flow| row(flow, &snapshot)).collect();
        assert_eq!(serde_json::to_value(&rows).unwrap(), expected);

        let expected = "\
CLIENT          FRONTEND       SERVICE  BACKEND  STATE        IDLE
10.9.0.1:40000  10.0.0.1:9000  web      web-1    established    4s
this host       10.0.0.1:9000  web      web-1    established     -
10.9.0.1:40000  10.0.0.1:9000  -        gone     syn-sent       4s
10.9.0.1:40000  10.0.0.1:9000  -        mesh     established    4s
and 1 more
";
        assert_eq!(text(&rows, 5), expected);
    }
}
