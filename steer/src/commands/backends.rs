//! `steer backends`.

use serde::Serialize;

use super::report::{self, BackendReport};
use crate::cli::BackendsArgs;
use crate::dataplane::paths::Paths;
use crate::dataplane::read::{BackendView, Reader, ServiceView, Snapshot};
use crate::host::clock::unix_now;

pub(super) fn backends(args: &BackendsArgs, paths: &Paths) -> anyhow::Result<()> {
    let snapshot = Reader::open(paths)?.snapshot()?;
    let backends = of(&snapshot, args.service.as_deref())?;
    if args.json {
        super::print_json(&backends.into_iter().map(row).collect::<Vec<_>>())
    } else if backends.is_empty() {
        super::print("no backends\n")
    } else {
        let table = report::backends_table(backends.into_iter(), true, unix_now());
        super::print(&report::lines(&table, ""))
    }
}

/// The backends of one service, or of all.
fn of<'a>(snapshot: &'a Snapshot, service: Option<&str>) -> anyhow::Result<Vec<(&'a ServiceView, &'a BackendView)>> {
    let Some(name) = service else { return Ok(snapshot.backends().collect()) };
    let service = report::find_service(snapshot, name)?;
    Ok(service.backends.iter().map(|backend| (service, backend)).collect())
}

#[derive(Serialize)]
struct Row {
    service: String,
    /// Id in the maps.
    id: u16,
    #[serde(flatten)]
    backend: BackendReport,
    /// The container's port behind each frontend of the service.
    targets: Vec<Option<u16>>,
    label_weight: u32,
    operator_weight: Option<u16>,
    maintenance: bool,
    established_total: u64,
    resteered_total: u64,
    drain_ms: u64,
}

fn row((service, backend): (&ServiceView, &BackendView)) -> Row {
    Row {
        service: service.name.clone(),
        id: backend.id.0,
        backend: backend.into(),
        targets: backend.targets.clone(),
        label_weight: backend.label_weight,
        operator_weight: backend.operator_weight,
        maintenance: backend.maintenance,
        established_total: backend.established_total,
        resteered_total: backend.resteered_total,
        drain_ms: backend.drain.as_millis() as u64,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::report::fixtures::snapshot;
    use super::*;

    #[test]
    fn the_shape_of_the_json_is_a_promise() {
        let snapshot = snapshot();
        let backends = of(&snapshot, Some("web")).unwrap();
        let expected = json!({
            "service": "web", "id": 2,
            "container": "abc2000000000000000000000000000000000000000000000000000000000000", "name": "web-2",
            "address": "172.17.0.3", "state": "maintenance", "source": "operator", "cause": "operator: drain",
            "since": "2026-01-01T00:00:00Z", "weight": 5, "live_flows": 0, "pending_flows": 1, "steered_total": 10,
            "targets": [5000], "label_weight": 1, "operator_weight": 5, "maintenance": true, "established_total": 9, "resteered_total": 1,
            "drain_ms": 30_000
        });
        assert_eq!(serde_json::to_value(row(backends[1])).unwrap(), expected);
    }

    #[test]
    fn an_unknown_service_is_an_error() {
        assert!(of(&snapshot(), Some("other")).is_err());
        assert_eq!(of(&snapshot(), None).unwrap().len(), 2);
    }
}
