//! What lists say, as JSON and as tables: pure.

use comfy_table::{Cell, CellAlignment, Table, presets};
use serde::Serialize;
use steer_common::state::BackendState;

use crate::dataplane::read::{BackendView, ServiceView, Snapshot};
use crate::model::UnixMicros;
use crate::model::cause::{Source, sentence};
use crate::model::named::resolve;

/// A backend, in `status --json`.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct BackendReport {
    /// Full container id, or `netns:<path>`.
    pub container: String,
    /// The container's name.
    pub name: String,
    /// Where it is reached.
    pub address: String,
    /// Word for its state: `ready`, `draining`, …
    pub state: &'static str,
    /// Who says so: the first word of most causes.
    pub source: &'static str,
    /// Why it is in that state.
    pub cause: String,
    /// When the state changed, RFC 3339.
    pub since: Option<String>,
    /// Share of new flows in force, `0..=256`.
    pub weight: u16,
    /// Established flows, those of this host's own sockets with them.
    pub live_flows: u64,
    /// Flows whose handshake is under way.
    pub pending_flows: u64,
    /// Flows given to it since it has its id.
    pub steered_total: u64,
}

impl From<&BackendView> for BackendReport {
    fn from(backend: &BackendView) -> Self {
        Self {
            container: backend.container.0.clone(),
            name: backend.name.clone(),
            address: backend.address.to_string(),
            state: backend.state.name(),
            source: Source::of(&backend.cause).name(),
            cause: backend.cause.clone(),
            since: rfc3339(backend.since),
            weight: backend.weight,
            live_flows: backend.live_flows,
            pending_flows: backend.pending_flows,
            steered_total: backend.steered_total,
        }
    }
}

/// A service, in `status --json`.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub struct ServiceReport {
    /// Unique on this host.
    pub name: String,
    /// `address:port/protocol`, as the label wrote them; address 0.0.0.0 = every one of the host.
    pub frontends: Vec<String>,
    /// Word for how a backend is chosen, as in the label.
    pub balance: &'static str,
    /// By name.
    pub backends: Vec<BackendReport>,
}

impl From<&ServiceView> for ServiceReport {
    fn from(service: &ServiceView) -> Self {
        Self {
            name: service.name.clone(),
            frontends: frontends(service),
            balance: service.balance.name(),
            backends: service.backends.iter().map(BackendReport::from).collect(),
        }
    }
}

pub(super) fn frontends(service: &ServiceView) -> Vec<String> {
    service.ports.iter().map(ToString::to_string).collect()
}

/// How many backends of a service take new flows.
pub(super) fn ready(service: &ServiceView) -> usize {
    let is_ready = |backend: &&BackendView| backend.state == BackendState::Ready && backend.weight > 0;
    service.backends.iter().filter(is_ready).count()
}

/// The service of that name.
pub(super) fn find_service<'a>(snapshot: &'a Snapshot, name: &str) -> anyhow::Result<&'a ServiceView> {
    snapshot.services.iter().find(|service| service.name == name).ok_or_else(|| {
        let names: Vec<_> = snapshot.services.iter().map(|service| service.name.as_str()).collect();
        match names.as_slice() {
            [] => anyhow::anyhow!("no service is named {name}: there are none"),
            names => anyhow::anyhow!("no service is named {name}: there are {}", names.join(", ")),
        }
    })
}

/// The backends of the container that a target means.
pub(super) fn find_backends<'a>(snapshot: &'a Snapshot, target: &str) -> anyhow::Result<Vec<&'a BackendView>> {
    let all = || snapshot.backends().map(|(_, backend)| backend);
    let id = resolve(target, all().map(|backend| (backend.name.as_str(), backend.container.0.as_str())))?;
    Ok(all().filter(|backend| backend.container.0 == id).collect())
}

/// A table without lines, for eyes and `awk`: columns named in `right` hold numbers.
pub(super) fn table(headers: &[&str], right: &[&str]) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headers.iter().map(|name| Cell::new(name.to_uppercase())));
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 2));
        if headers.get(index).is_some_and(|name| right.contains(name)) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    table
}

/// The lines of a table, indented, without spaces at their ends.
pub(super) fn lines(table: &Table, indent: &str) -> String {
    table.lines().map(|line| format!("{indent}{}\n", line.trim_end())).collect()
}

/// The backends of some services, as people read them.
pub(super) fn backends_table<'a>(
    backends: impl Iterator<Item = (&'a ServiceView, &'a BackendView)>,
    with_service: bool,
    now: UnixMicros,
) -> Table {
    let mut headers = vec![
        "service",
        "backend",
        "container",
        "address",
        "state",
        "for",
        "weight",
        "flows",
        "opening",
        "steered",
        "cause",
    ];
    if !with_service {
        headers.remove(0);
    }
    let mut table = table(&headers, &["for", "weight", "flows", "opening", "steered"]);
    for (service, backend) in backends {
        let mut row = vec![
            service.name.clone(),
            backend.name.clone(),
            backend.container.short().to_owned(),
            backend.address.to_string(),
            backend.state.name().to_owned(),
            age(backend.since, now),
            weight(backend),
            backend.live_flows.to_string(),
            backend.pending_flows.to_string(),
            backend.steered_total.to_string(),
            sentence(&backend.cause),
        ];
        if !with_service {
            row.remove(0);
        }
        table.add_row(row);
    }
    table
}

/// `*` marks a weight that the operator set.
fn weight(backend: &BackendView) -> String {
    let mark = if backend.operator_weight.is_some() { "*" } else { "" };
    format!("{}{mark}", backend.weight)
}

/// `None` = never.
pub(super) fn rfc3339(moment: UnixMicros) -> Option<String> {
    let micros = i64::try_from(moment.0).ok().filter(|micros| *micros > 0)?;
    jiff::Timestamp::from_microsecond(micros).ok().map(|timestamp| timestamp.to_string())
}

pub(super) fn age(since: UnixMicros, now: UnixMicros) -> String {
    if since.0 == 0 { "-".into() } else { span(now.0.saturating_sub(since.0) / 1_000_000) }
}

/// A number of seconds in its largest unit that has at least two of it.
pub(super) fn span(secs: u64) -> String {
    match secs {
        0..120 => format!("{secs}s"),
        120..7_200 => format!("{}m", secs / 60),
        7_200..172_800 => format!("{}h", secs / 3_600),
        _ => format!("{}d", secs / 86_400),
    }
}

/// `1 flow`, `2 flows`.
pub(super) fn count(number: u64, what: &str) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
pub(super) mod fixtures {
    //! A snapshot to render.

    use std::net::{IpAddr, Ipv4Addr};
    use std::time::Duration;

    use steer_common::backend::BackendId;
    use steer_common::service::{Balance, ServiceId};
    use steer_common::verdict::Counter;

    use super::*;
    use crate::model::frontend::Frontend;
    use crate::model::{ContainerId, Protocol};

    /// 2026-01-01T00:00:00Z.
    pub(in crate::commands) const NEW_YEAR: UnixMicros = UnixMicros(1_767_225_600_000_000);

    pub(in crate::commands) fn backend(id: u16, name: &str, container: &str, state: BackendState) -> BackendView {
        BackendView {
            id: BackendId(id),
            generation: 1,
            container: ContainerId(container.into()),
            name: name.into(),
            address: IpAddr::V4(Ipv4Addr::new(172, 17, 0, id as u8 + 1)),
            targets: vec![Some(5000)],
            state,
            cause: "health: healthy".into(),
            since: NEW_YEAR,
            weight: 1,
            label_weight: 1,
            operator_weight: None,
            maintenance: false,
            live_flows: 3,
            pending_flows: 0,
            steered_total: 10,
            established_total: 9,
            resteered_total: 1,
            drain: Duration::from_secs(30),
        }
    }

    /// Service `web` with `web-1`, ready, and `web-2`, in maintenance with an operator's weight.
    pub(in crate::commands) fn snapshot() -> Snapshot {
        let first = backend(1, "web-1", &format!("abc1{}", "0".repeat(60)), BackendState::Ready);
        let second = BackendView {
            cause: "operator: drain".into(),
            weight: 5,
            operator_weight: Some(5),
            maintenance: true,
            live_flows: 0,
            pending_flows: 1,
            ..backend(2, "web-2", &format!("abc2{}", "0".repeat(60)), BackendState::Maintenance)
        };
        Snapshot {
            services: vec![ServiceView {
                id: ServiceId(1),
                name: "web".into(),
                ports: vec![Frontend { address: None, port: 9000, protocol: Protocol::Tcp }],
                balance: Balance::RoundRobin,
                hold: Duration::from_secs(10),
                mesh: false,
                backends: vec![first, second],
            }],
            counters: vec![(Counter::Follow, 1), (Counter::SteerNew, 0)],
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::fixtures::{NEW_YEAR, snapshot};
    use super::*;

    #[rstest]
    #[case("web-1", Ok("web-1"))]
    #[case("abc1", Ok("web-1"))]
    #[case("abc2000000000000000000000000000000000000000000000000000000000000", Ok("web-2"))]
    #[case("abc", Err("the ids of several containers begin with `abc`: web-1, web-2"))]
    fn a_target_names_one_container(#[case] target: &str, #[case] expected: Result<&str, &str>) {
        let snapshot = snapshot();
        let found = find_backends(&snapshot, target).map_err(|error| error.to_string());
        let names = found.map(|backends| backends.iter().map(|backend| backend.name.as_str()).collect::<Vec<_>>());
        assert_eq!(names, expected.map(|name| vec![name]).map_err(str::to_owned));
    }

    #[test]
    fn an_unknown_service_is_an_error_that_lists_the_known_ones() {
        let error = find_service(&snapshot(), "wbe").unwrap_err();
        assert_eq!(error.to_string(), "no service is named wbe: there are web");
        let error = find_service(&Snapshot::default(), "web").unwrap_err();
        assert_eq!(error.to_string(), "no service is named web: there are none");
    }

    #[rstest]
    #[case(0, "0s")]
    #[case(119, "119s")]
    #[case(120, "2m")]
    #[case(7_200, "2h")]
    #[case(200_000, "2d")]
    fn spans_have_one_unit(#[case] secs: u64, #[case] text: &str) {
        assert_eq!(span(secs), text);
    }

    #[test]
    fn moments_are_rfc_3339_and_never_is_nothing() {
        assert_eq!(rfc3339(NEW_YEAR).as_deref(), Some("2026-01-01T00:00:00Z"));
        assert_eq!(rfc3339(UnixMicros(NEW_YEAR.0 + 1_500)).as_deref(), Some("2026-01-01T00:00:00.0015Z"));
        assert_eq!(rfc3339(UnixMicros(0)), None);
    }

    #[test]
    fn backends_stand_in_columns() {
        let snapshot = snapshot();
        let now = UnixMicros(NEW_YEAR.0 + 90_000_000);
        let expected = "\
SERVICE  BACKEND  CONTAINER     ADDRESS     STATE        FOR  WEIGHT  FLOWS  OPENING  STEERED  CAUSE
web      web-1    abc100000000  172.17.0.2  ready        90s       1      3        0       10  health: healthy
web      web-2    abc200000000  172.17.0.3  maintenance  90s      5*      0        1       10  operator: drain
";
        assert_eq!(lines(&backends_table(snapshot.backends(), true, now), ""), expected);
    }
}
