//! `steer status`: the agent, the services and their backends, counters and problems.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use serde::Serialize;

use super::report::{self, ServiceReport};
use crate::api::client::{Client, ClientError};
use crate::api::{AgentStatus, Attachment};
use crate::cli::ListArgs;
use crate::dataplane::attach;
use crate::dataplane::paths::{LinkName, Paths};
use crate::dataplane::read::{self, Reader, Snapshot};
use crate::host::clock::unix_now;
use crate::model::stops::StopCounts;
use crate::model::{Problem, UnixMicros};

pub(super) async fn status(args: &ListArgs, paths: &Paths) -> anyhow::Result<()> {
    let snapshot = Reader::open(paths)?.snapshot()?;
    let agent = ask(paths).await;
    let attach = attachments(&read::links(paths)?);
    if args.json {
        super::print_json(&Report::new(paths, &agent, attach, &snapshot))
    } else {
        super::print(&text(paths, &agent, &attach, &snapshot, unix_now()))
    }
}

async fn ask(paths: &Paths) -> Agent {
    let asked = async { Client::connect(paths).await?.status().await };
    match asked.await {
        Ok(status) => Agent::Alive(status),
        Err(ClientError::NotRunning { .. }) => Agent::Dead,
        Err(error) => Agent::Unknown(format!("{:#}", anyhow::Error::from(error))),
    }
}

/// The agent, as far as its socket tells.
enum Agent {
    Alive(AgentStatus),
    Dead,
    /// It, or something, holds the socket, but does not answer as an agent does.
    Unknown(String),
}

impl Agent {
    fn status(&self) -> Option<&AgentStatus> {
        match self {
            Self::Alive(status) => Some(status),
            Self::Dead | Self::Unknown(_) => None,
        }
    }
}

/// `status --json`.
#[derive(Serialize)]
struct Report<'a> {
    instance: &'a str,
    agent: AgentReport<'a>,
    attach: Vec<Attachment>,
    services: Vec<ServiceReport>,
    counters: BTreeMap<&'static str, u64>,
    /// `null` = unknown: only a living agent knows.
    problems: Option<&'a [Problem]>,
}

#[derive(Serialize)]
struct AgentReport<'a> {
    alive: bool,
    pid: Option<u32>,
    version: Option<&'a str>,
    since: Option<&'a str>,
    docker: Option<&'a str>,
    /// Why it cannot be told whether it is alive.
    error: Option<&'a str>,
    /// Who told first of stop signals, and how much later Docker's events came.
    stops: Option<StopCounts>,
}

impl<'a> Report<'a> {
    fn new(paths: &'a Paths, agent: &'a Agent, attach: Vec<Attachment>, snapshot: &Snapshot) -> Self {
        let status = agent.status();
        Self {
            instance: &paths.instance,
            agent: AgentReport {
                alive: status.is_some(),
                pid: status.map(|status| status.pid),
                version: status.map(|status| status.version.as_str()),
                since: status.map(|status| status.since.as_str()),
                docker: status.and_then(|status| status.docker.as_deref()),
                error: if let Agent::Unknown(error) = agent { Some(error) } else { None },
                stops: status.map(|status| status.stops),
            },
            attach,
            services: snapshot.services.iter().map(ServiceReport::from).collect(),
            counters: snapshot.counters.iter().map(|(counter, value)| (counter.name(), *value)).collect(),
            problems: status.map(|status| status.problems.as_slice()),
        }
    }
}

/// The uplinks among the pinned links.
fn attachments(links: &[LinkName]) -> Vec<Attachment> {
    let uplink = |link: &LinkName| match link {
        LinkName::Xdp(interface) => Some(Attachment { interface: interface.clone(), hook: "xdp".into() }),
        LinkName::Tcx(interface) => {
            Some(Attachment { interface: interface.clone(), hook: attach::ingress_hook().into() })
        }
        LinkName::Veth(_) | LinkName::Cgroup(_) | LinkName::Tracepoint(_) => None,
    };
    links.iter().filter_map(uplink).collect()
}

fn text(paths: &Paths, agent: &Agent, attach: &[Attachment], snapshot: &Snapshot, now: UnixMicros) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write_text(&mut text, paths, agent, attach, snapshot, now);
    text
}

fn write_text(
    out: &mut String,
    paths: &Paths,
    agent: &Agent,
    attach: &[Attachment],
    snapshot: &Snapshot,
    now: UnixMicros,
) -> std::fmt::Result {
    let instance = &paths.instance;
    match agent {
        Agent::Alive(AgentStatus { pid, version, since, docker, .. }) => {
            let docker =
                docker.as_ref().map_or("not connected to Docker".into(), |version| format!("Docker {version}"));
            writeln!(out, "agent     {instance} {version}, pid {pid}, since {since}, {docker}")?;
        }
        Agent::Dead => writeln!(
            out,
            "agent     {instance} is not running: packets are steered as it left things; start it with `steer run`"
        )?,
        Agent::Unknown(error) => writeln!(out, "agent     {instance}: {error}")?,
    }
    let mut at: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for Attachment { interface, hook } in attach {
        at.entry(interface).or_default().push(hook);
    }
    let at: Vec<_> = at.into_iter().map(|(interface, hooks)| format!("{interface} ({})", hooks.join(", "))).collect();
    writeln!(out, "attached  {}", if at.is_empty() { "nowhere".into() } else { at.join(", ") })?;
    if let Some(stops) = agent.status().map(|status| status.stops).filter(|stops| *stops != StopCounts::default()) {
        writeln!(out, "stops     {}", sentence(&stops))?;
    }

    if snapshot.services.is_empty() {
        writeln!(out, "\nno services: give a container the label steer.port")?;
    }
    for service in &snapshot.services {
        let frontends = report::frontends(service).join(" ");
        writeln!(out, "\n{}  {frontends}  {}", service.name, service.balance.name())?;
        if service.backends.is_empty() {
            writeln!(out, "  no backends")?;
            continue;
        }
        let backends = service.backends.iter().map(|backend| (service, backend));
        out.push_str(&report::lines(&report::backends_table(backends, false, now), "  "));
    }

    let counted: Vec<_> = snapshot.counters.iter().filter(|(_, value)| *value > 0).collect();
    if !counted.is_empty() {
        let mut table = report::table(&["counter", "packets", "which"], &["packets"]);
        for (counter, value) in counted {
            table.add_row([counter.name().to_owned(), value.to_string(), counter.help().trim().to_owned()]);
        }
        write!(out, "\n{}", report::lines(&table, ""))?;
    }

    match agent.status().map(|status| status.problems.as_slice()) {
        None => writeln!(out, "\nproblems are not known: only a running agent knows them")?,
        Some([]) => {}
        Some(problems) => {
            writeln!(out, "\nproblems")?;
            for problem in problems {
                writeln!(out, "  {problem}")?;
            }
        }
    }
    Ok(())
}

fn sentence(StopCounts { kernel_first, event_first, lateness_us }: &StopCounts) -> String {
    let counts = format!("{kernel_first} seen by the kernel first, {event_first} told by Docker alone");
    if lateness_us.count == 0 {
        return counts;
    }
    let [p50, p99, max] = [lateness_us.p50, lateness_us.p99, lateness_us.max].map(|micros| micros as f64 / 1000.0);
    format!("{counts}; Docker's events came {p50:.1} ms later (median), {p99:.1} ms (p99), {max:.1} ms (longest)")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::report::fixtures::{NEW_YEAR, snapshot};
    use super::*;
    use crate::model::stops::Lateness;

    fn alive() -> Agent {
        Agent::Alive(AgentStatus {
            pid: 7,
            version: "0.1.0".into(),
            since: "2026-01-01T00:00:00Z".into(),
            docker: Some("28.1.0".into()),
            attach: Vec::new(),
            problems: vec![Problem {
                container: "web-9".into(),
                label: Some("steer.port".into()),
                message: "`x`: expected a port".into(),
            }],
            stops: StopCounts {
                kernel_first: 12,
                event_first: 1,
                lateness_us: Lateness { count: 12, p50: 2100, p99: 8000, max: 8100 },
            },
        })
    }

    fn attach() -> Vec<Attachment> {
        attachments(&[
            LinkName::Xdp("eth0".into()),
            LinkName::Tcx("eth0".into()),
            LinkName::Tcx("eth0.7".into()),
            LinkName::Veth(9),
            LinkName::Cgroup("connect4".into()),
        ])
    }

    #[test]
    fn the_shape_of_the_json_is_a_promise() {
        let paths = Paths::of("steer");
        let agent = alive();
        let report = Report::new(&paths, &agent, attach(), &snapshot());
        let expected = json!({
            "instance": "steer",
            "agent": {
                "alive": true, "pid": 7, "version": "0.1.0", "since": "2026-01-01T00:00:00Z", "docker": "28.1.0",
                "error": null,
                "stops": {"kernel_first": 12, "event_first": 1, "lateness_us": {"count": 12, "p50": 2100, "p99": 8000, "max": 8100}}
            },
            "attach": [
                {"interface": "eth0", "hook": "xdp"}, {"interface": "eth0", "hook": "tcx"},
                {"interface": "eth0.7", "hook": "tcx"}
            ],
            "services": [{
                "name": "web",
                "frontends": ["0.0.0.0:9000/tcp"],
                "balance": "round-robin",
                "backends": [
                    {
                        "container": "abc1000000000000000000000000000000000000000000000000000000000000",
                        "name": "web-1", "address": "172.17.0.2", "state": "ready", "source": "health", "cause": "health: healthy",
                        "since": "2026-01-01T00:00:00Z", "weight": 1, "live_flows": 3, "pending_flows": 0,
                        "steered_total": 10
                    },
                    {
                        "container": "abc2000000000000000000000000000000000000000000000000000000000000",
                        "name": "web-2", "address": "172.17.0.3", "state": "maintenance", "source": "operator", "cause": "operator: drain",
                        "since": "2026-01-01T00:00:00Z", "weight": 5, "live_flows": 0, "pending_flows": 1,
                        "steered_total": 10
                    }
                ]
            }],
            "counters": {"follow": 1, "steer_new": 0},
            "problems": [{"container": "web-9", "label": "steer.port", "message": "`x`: expected a port"}]
        });
        assert_eq!(serde_json::to_value(&report).unwrap(), expected);
    }

    #[test]
    fn without_an_agent_problems_are_unknown_not_absent() {
        let paths = Paths::of("steer");
        let report = serde_json::to_value(Report::new(&paths, &Agent::Dead, attach(), &snapshot())).unwrap();
        assert_eq!(
            report["agent"],
            json!({"alive": false, "pid": null, "version": null, "since": null, "docker": null, "error": null, "stops": null})
        );
        assert_eq!(report["problems"], json!(null));
        assert_eq!(report["services"][0]["backends"][0]["live_flows"], 3);
    }

    #[test]
    fn people_see_the_same() {
        let now = UnixMicros(NEW_YEAR.0 + 90_000_000);
        let expected = "\
agent     steer 0.1.0, pid 7, since 2026-01-01T00:00:00Z, Docker 28.1.0
attached  eth0 (xdp, tcx), eth0.7 (tcx)
stops     12 seen by the kernel first, 1 told by Docker alone; Docker's events came 2.1 ms later (median), 8.0 ms (p99), 8.1 ms (longest)

web  0.0.0.0:9000/tcp  round-robin
  BACKEND  CONTAINER     ADDRESS     STATE        FOR  WEIGHT  FLOWS  OPENING  STEERED  CAUSE
  web-1    abc100000000  172.17.0.2  ready        90s       1      3        0       10  health: healthy
  web-2    abc200000000  172.17.0.3  maintenance  90s      5*      0        1       10  operator: drain

COUNTER  PACKETS  WHICH
follow         1  Followed: a packet of a known flow.

problems
  web-9: steer.port: `x`: expected a port
";
        assert_eq!(text(&Paths::of("steer"), &alive(), &attach(), &snapshot(), now), expected);
    }

    #[test]
    fn people_are_told_what_a_dead_agent_means() {
        let text = text(&Paths::of("steer"), &Agent::Dead, &[], &Snapshot::default(), NEW_YEAR);
        let expected = "\
agent     steer is not running: packets are steered as it left things; start it with `steer run`
attached  nowhere

no services: give a container the label steer.port

problems are not known: only a running agent knows them
";
        assert_eq!(text, expected);
    }
}
