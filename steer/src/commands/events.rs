//! `steer events`: what happened to backends, when, and why.

use anyhow::bail;

use super::report::count;
use crate::api::client::{Client, ClientError};
use crate::api::{Event, EventLine};
use crate::cli::EventsArgs;
use crate::dataplane::paths::Paths;
use crate::model::cause::sentence;

pub(super) async fn events(args: &EventsArgs, paths: &Paths) -> anyhow::Result<()> {
    let client = match Client::connect(paths).await {
        Err(ClientError::NotRunning { instance }) => bail!(
            "no steer agent is running (instance {instance}): events live in the agent, and end with it. `steer backends` \
             still shows the state of each backend, its cause, and for how long"
        ),
        client => client?,
    };
    let mut events = client.events(0, args.follow).await?;
    let mut columns = Columns::default();
    // Without --follow all columns are as wide as what is in them.
    let mut kept = Vec::new();
    loop {
        let mut lines = match events.next().await {
            // An agent that is killed has no time to end its answer.
            Err(ClientError::Broken { .. }) if args.follow => Vec::new(),
            lines => lines?,
        };
        let is_end = lines.is_empty();
        lines.retain(|line| is_wanted(line, args));
        if args.follow || args.json {
            if !super::print_on(&text(&lines, args.json, &mut columns)?)? {
                return Ok(());
            }
        } else {
            kept.append(&mut lines);
        }
        if is_end {
            break;
        }
    }
    if args.follow {
        bail!("the agent has ended, and its events with it");
    }
    if !args.json && kept.is_empty() {
        return super::print("nothing has happened since the agent started\n");
    }
    super::print(&text(&kept, false, &mut columns)?)
}

fn is_wanted(line: &EventLine, EventsArgs { service, backend, .. }: &EventsArgs) -> bool {
    let EventLine::Event(event) = line else { return true };
    let of_service = service.as_ref().is_none_or(|service| event.service == *service);
    let is_backend = |target: &String| event.backend == *target || is_begun(&event.container, target);
    of_service && backend.as_ref().is_none_or(is_backend)
}

fn is_begun(container: &str, target: &str) -> bool {
    !target.is_empty() && container.starts_with(target)
}

fn text(lines: &[EventLine], json: bool, columns: &mut Columns) -> anyhow::Result<String> {
    let mut text = String::new();
    lines.iter().for_each(|line| columns.widen(line));
    for line in lines {
        if json {
            text.push_str(&serde_json::to_string(line)?);
        } else {
            text.push_str(columns.line(line).trim_end());
        }
        text.push('\n');
    }
    Ok(text)
}

/// Widths that only grow: what will come is not known.
#[derive(Default)]
struct Columns {
    service: usize,
    backend: usize,
    change: usize,
}

impl Columns {
    fn widen(&mut self, line: &EventLine) {
        if let EventLine::Event(event) = line {
            self.service = self.service.max(event.service.chars().count());
            self.backend = self.backend.max(event.backend.chars().count());
            self.change = self.change.max(change(event).chars().count());
        }
    }

    fn line(&self, line: &EventLine) -> String {
        let Self { service, backend, change: width } = *self;
        match line {
            EventLine::Missed { missed } => format!("... {} no longer kept", count(*missed, "event")),
            EventLine::Event(event) => format!(
                "{}  {:service$}  {:backend$}  {:width$}  {}{}",
                time(event.time_us),
                event.service,
                event.backend,
                change(event),
                sentence(&event.cause),
                if event.count > 1 { format!(" ({} times)", event.count) } else { String::new() },
            ),
        }
    }
}

fn change(event: &Event) -> String {
    if event.from == event.to { event.to.clone() } else { format!("{} → {}", event.from, event.to) }
}

/// To the millisecond.
fn time(micros: u64) -> String {
    let timestamp = i64::try_from(micros).ok().and_then(|micros| jiff::Timestamp::from_microsecond(micros).ok());
    timestamp.map_or_else(|| "-".into(), |timestamp| format!("{timestamp:.3}"))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::super::report::fixtures::NEW_YEAR;
    use super::*;

    fn event(number: u64, backend: &str, (from, to): (&str, &str), cause: &str) -> EventLine {
        EventLine::Event(Event {
            number,
            time_us: NEW_YEAR.0 + number * 1_500,
            service: "web".into(),
            backend: backend.into(),
            container: format!("{number}abc"),
            from: from.into(),
            to: to.into(),
            source: "signal".into(),
            cause: cause.into(),
            count: number,
        })
    }

    #[test]
    fn people_see_when_who_what_and_why() {
        let lines = [
            EventLine::Missed { missed: 1 },
            event(1, "web-1", ("ready", "draining"), "signal: TERM"),
            event(2, "web-10", ("ready", "ready"), "survived: TERM"),
        ];
        let mut columns = Columns::default();
        let expected = "\
... 1 event no longer kept
2026-01-01T00:00:00.001Z  web  web-1   ready → draining  signal: TERM
2026-01-01T00:00:00.003Z  web  web-10  ready             signal: survived: TERM (2 times)
";
        assert_eq!(text(&lines, false, &mut columns).unwrap(), expected);
    }

    #[rstest]
    #[case::all(None, None, true)]
    #[case::its_service(Some("web"), None, true)]
    #[case::another_service(Some("api"), None, false)]
    #[case::its_name(None, Some("web-1"), true)]
    #[case::the_beginning_of_its_id(Some("web"), Some("7ab"), true)]
    #[case::nobody(None, Some(""), false)]
    #[case::another_one(None, Some("web"), false)]
    fn only_what_was_asked_for_is_shown(
        #[case] service: Option<&str>,
        #[case] backend: Option<&str>,
        #[case] wanted: bool,
    ) {
        let [service, backend] = [service, backend].map(|word| word.map(str::to_owned));
        let args = EventsArgs { follow: false, service, backend, json: false };
        assert_eq!(is_wanted(&event(7, "web-1", ("ready", "draining"), "signal: TERM"), &args), wanted);
        assert!(is_wanted(&EventLine::Missed { missed: 1 }, &args), "what is missing may have been of it");
    }
}
