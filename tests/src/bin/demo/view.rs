//! The board as text: pure, so that what the screen shows can be tested without one.

use std::fmt::Write;

use steer_tests::agent::Backend;

use crate::board::{Long, Replica, State};

/// Cells of a full bar.
const BAR: usize = 20;

/// How a line is meant; the screen knows what that looks like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Tone {
    Plain,
    Strong,
    Good,
    Changing,
    Bad,
    Faint,
}

pub(crate) type Line = (Tone, String);

/// One row of the table.
struct Row<'a> {
    replica: &'a Replica,
    backend: Option<&'a Backend>,
    rate: f64,
}

/// The whole page.
pub(crate) fn page(state: &State) -> Vec<Line> {
    let rows: Vec<Row<'_>> = state.replicas.iter().map(|replica| row(state, replica)).collect();
    let most = rows.iter().map(|row| row.rate).fold(1.0, f64::max);
    let seconds = state.started.elapsed().as_secs();
    let mut lines = vec![
        (Tone::Strong, format!("steer demo  {}  {seconds} s", state.title)),
        (Tone::Plain, format!("step {:>2}     {}", state.step, state.doing)),
        (Tone::Plain, String::new()),
        (
            Tone::Faint,
            format!("{:8} {:3} {:11} {:>6} {:>6} {:>7}", "BACKEND", "VER", "STATE", "WEIGHT", "FLOWS", "REQ/S"),
        ),
    ];
    lines.extend(rows.iter().map(|row| row.line(most)));
    lines.push((Tone::Plain, String::new()));
    lines.push(totals(state));
    lines.extend(state.long.as_ref().map(|long| (Tone::Plain, long_words(long))));
    if !state.blind.is_empty() && state.long.is_some() {
        lines.push((Tone::Bad, state.blind.lines().next().unwrap_or_default().to_owned()));
    }
    lines
}

/// The same in one line, for a log.
pub(crate) fn beat(state: &State) -> String {
    let (_, totals) = totals(state);
    let mut line = format!("{:3} s  {totals}", state.started.elapsed().as_secs());
    for row in state.replicas.iter().map(|replica| row(state, replica)) {
        if row.state() != "gone" {
            let flows = row.backend.map_or(0, |backend| backend.live_flows);
            // Writing to a string does not fail.
            let _ = write!(line, "  {} {} {flows} flows {:.0}/s", row.replica.label, row.state(), row.rate);
        }
    }
    line
}

fn row<'a>(state: &'a State, replica: &'a Replica) -> Row<'a> {
    Row { replica, backend: state.status.backend(&replica.name), rate: state.rate(&replica.name) }
}

fn totals(state: &State) -> Line {
    let total = &state.total;
    let rate: f64 = state.replicas.iter().map(|replica| state.rate(&replica.name)).sum();
    let tone = if total.failed == 0 { Tone::Plain } else { Tone::Bad };
    let words = format!(
        "{} requests  {} failed  slowest {:.1} ms  {rate:.0} per second",
        total.requests, total.failed, total.slowest_ms
    );
    (tone, words)
}

fn long_words(long: &Long) -> String {
    let end = if long.closed { ", closed by the client" } else { "" };
    format!("a connection that lives long: {} bytes there and back on {}{end}", long.exchanged(), long.backend)
}

impl Row<'_> {
    fn state(&self) -> &str {
        match self.backend {
            _ if self.replica.stopped => "gone",
            Some(backend) => &backend.state,
            None => "created",
        }
    }

    fn line(&self, most: f64) -> Line {
        let tone = match self.state() {
            "ready" => Tone::Good,
            "gone" => Tone::Faint,
            "unready" => Tone::Bad,
            _ => Tone::Changing,
        };
        let number = |look: fn(&Backend) -> u64| {
            self.backend.filter(|_| !self.replica.stopped).map(look).map_or(String::new(), |number| number.to_string())
        };
        let line = format!(
            "{:8} {:3} {:11} {:>6} {:>6} {:>7.0}  {}",
            self.replica.label,
            self.replica.version,
            self.state(),
            number(|backend| backend.weight.into()),
            number(|backend| backend.live_flows),
            self.rate,
            bar(self.rate / most)
        );
        (tone, line.trim_end().to_owned())
    }
}

/// A bar of eighths of a cell.
fn bar(share: f64) -> String {
    let eighths = (share.clamp(0.0, 1.0) * (BAR * 8) as f64).round() as usize;
    let rest = ["", "▏", "▎", "▍", "▌", "▋", "▊", "▉"][eighths % 8];
    "█".repeat(eighths / 8) + rest
}

#[cfg(test)]
mod tests {
    use steer_tests::agent::Backend;

    use super::*;

    #[test]
    fn bars_grow_by_eighths() {
        let bars = [0.0, 0.5 / 20.0, 0.5, 1.0, 7.0].map(bar);
        assert_eq!(bars, ["", "▌", "██████████", "████████████████████", "████████████████████"]);
    }

    #[test]
    fn a_row_says_what_a_backend_does() {
        let mut replica = Replica { name: "x-v1-1".into(), label: "v1-1".into(), version: "v1".into(), stopped: false };
        let backend = Backend { state: "ready".into(), weight: 1, live_flows: 12, ..Backend::default() };
        let line = |replica: &Replica, backend: Option<&Backend>, rate| Row { replica, backend, rate }.line(400.0);
        let expected = "v1-1     v1  ready            1     12     100  █████";
        assert_eq!(line(&replica, Some(&backend), 100.0), (Tone::Good, expected.to_owned()));
        let expected = "v1-1     v1  created                         0";
        assert_eq!(line(&replica, None, 0.0), (Tone::Changing, expected.to_owned()));
        replica.stopped = true;
        let expected = "v1-1     v1  gone                            0";
        assert_eq!(line(&replica, Some(&backend), 0.0), (Tone::Faint, expected.to_owned()));
    }
}
