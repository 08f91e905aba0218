//! `steer services`.

use serde::Serialize;

use super::report;
use crate::cli::ListArgs;
use crate::dataplane::paths::Paths;
use crate::dataplane::read::{Reader, ServiceView, Snapshot};

pub(super) fn services(args: &ListArgs, paths: &Paths) -> anyhow::Result<()> {
    let rows = rows(&Reader::open(paths)?.snapshot()?);
    if args.json { super::print_json(&rows) } else { super::print(&text(&rows)) }
}

#[derive(Serialize)]
struct Row {
    name: String,
    frontends: Vec<String>,
    balance: &'static str,
    hold_ms: u64,
    /// New flows that find no backend are left to Swarm's routing mesh.
    mesh: bool,
    backends: usize,
    /// Of these, how many take new flows.
    ready: usize,
    live_flows: u64,
    pending_flows: u64,
    steered_total: u64,
}

fn rows(snapshot: &Snapshot) -> Vec<Row> {
    let row = |service: &ServiceView| Row {
        name: service.name.clone(),
        frontends: report::frontends(service),
        balance: service.balance.name(),
        hold_ms: service.hold.as_millis() as u64,
        mesh: service.mesh,
        backends: service.backends.len(),
        ready: report::ready(service),
        live_flows: service.backends.iter().map(|backend| backend.live_flows).sum(),
        pending_flows: service.backends.iter().map(|backend| backend.pending_flows).sum(),
        steered_total: service.backends.iter().map(|backend| backend.steered_total).sum(),
    };
    snapshot.services.iter().map(row).collect()
}

fn text(rows: &[Row]) -> String {
    if rows.is_empty() {
        return "no services: give a container the label steer.port\n".into();
    }
    let headers = ["service", "frontends", "balance", "ready", "flows", "opening", "steered"];
    let mut table = report::table(&headers, &["ready", "flows", "opening", "steered"]);
    for row in rows {
        table.add_row([
            row.name.clone(),
            row.frontends.join(" "),
            row.balance.to_owned(),
            format!("{}/{}", row.ready, row.backends),
            row.live_flows.to_string(),
            row.pending_flows.to_string(),
            row.steered_total.to_string(),
        ]);
    }
    report::lines(&table, "")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::report::fixtures::snapshot;
    use super::*;

    #[test]
    fn the_shape_of_the_json_is_a_promise() {
        let expected = json!([{
            "name": "web", "frontends": ["0.0.0.0:9000/tcp"], "balance": "round-robin", "hold_ms": 10_000,
            "mesh": false,            "backends": 2, "ready": 1, "live_flows": 3, "pending_flows": 1, "steered_total": 20
        }]);
        assert_eq!(serde_json::to_value(rows(&snapshot())).unwrap(), expected);
    }

    #[test]
    fn people_see_one_line_per_service() {
        let expected = "\
SERVICE  FRONTENDS         BALANCE      READY  FLOWS  OPENING  STEERED
web      0.0.0.0:9000/tcp  round-robin    1/2      3        1       20
";
        assert_eq!(text(&rows(&snapshot())), expected);
        assert_eq!(text(&[]), "no services: give a container the label steer.port\n");
    }
}
