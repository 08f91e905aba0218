//! The table as Markdown, fit for the README as it is.

use std::fmt::Write;

use crate::deed::PAUSE;
use crate::measure::{Control, Figures};
use crate::rows::Row;
use crate::scenario::{CLOSERS, Fared, KEEPERS, PAST_BOTH, PER_CONNECTION, SLOW, Way, probes};

/// The lines before and after a table in what is printed: `cargo xtask vm --versus` keeps what is between them.
pub(crate) const MARK: &str = "== table";
pub(crate) const END: &str = "== end of the table";

const COLUMNS: [&str; 11] = [
    "healthcheck",
    "what is done",
    "clients",
    "held",
    "refused",
    "reset",
    "cut",
    "stalled",
    "control",
    "longest",
    "first",
];
const NOTHING: &str = "–";

/// Where it was measured, and for how long.
pub(crate) struct Machine {
    pub(crate) kernel: String,
    pub(crate) docker: String,
    pub(crate) cores: usize,
    pub(crate) cpu: String,
    pub(crate) seconds: f64,
}

/// One row both ways; `None`: it was not asked for, or could not be measured.
pub(crate) struct Measured {
    pub(crate) row: Row,
    pub(crate) mesh: Option<Fared>,
    pub(crate) steer: Option<Fared>,
}

impl Measured {
    pub(crate) fn is_whole(&self, ways: &[Way]) -> bool {
        ways.iter().all(|way| match way {
            Way::Mesh => self.mesh.is_some(),
            Way::Steer => self.steer.is_some(),
        })
    }

    /// What must not be with steer, in words: a failure that it is there to prevent, or more of a kind than with the mesh alone. Not what
    /// chance decides: who stalls where the machine is too slow, and whether one request more is under way to a task that ends.
    pub(crate) fn faults(&self) -> Vec<String> {
        let of = |(clients, [mesh, steer]): (&str, [Option<&Figures>; 2])| {
            let steer = steer?;
            let mut kinds = steer.needless();
            kinds.extend(mesh.map(|mesh| steer.worse_than(mesh)).unwrap_or_default());
            kinds.retain(|kind| !["stalled", "reset"].contains(kind));
            kinds.sort_unstable();
            kinds.dedup();
            (!kinds.is_empty()).then(|| format!("{}, {clients}: {}", self.row, kinds.join(", ")))
        };
        self.pairs().into_iter().filter_map(of).collect()
    }

    fn pairs(&self) -> [(&'static str, [Option<&Figures>; 2]); 2] {
        let pair =
            |figures: fn(&Fared) -> &Figures| [self.mesh.as_ref().map(figures), self.steer.as_ref().map(figures)];
        [("new", pair(|fared| &fared.close)), ("kept", pair(|fared| &fared.keepalive))]
    }
}

pub(crate) fn render(machine: &Machine, measured: &[Measured]) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, machine, measured);
    out
}

fn write(out: &mut String, machine: &Machine, measured: &[Measured]) -> std::fmt::Result {
    let Machine { kernel, docker, cores, cpu, seconds } = machine;
    writeln!(out, "Linux {kernel}, Docker {docker}, {cores} cores ({cpu}), in {:.0} minutes.\n", seconds / 60.0)?;
    let mut rows = vec![COLUMNS.map(str::to_owned).to_vec()];
    for row in measured.iter().filter(|row| row.mesh.is_some() || row.steer.is_some()) {
        let control = [&row.mesh, &row.steer].map(|way| way.as_ref().map(|fared| fared.control));
        rows.extend(row.pairs().map(|(clients, pair)| cells(row.row, clients, pair, control)));
    }
    markdown(out, &rows)?;
    writeln!(out)?;
    legend(out)?;
    remarks(out, measured)
}

fn legend(out: &mut String) -> std::fmt::Result {
    let (new, new_rate) = CLOSERS;
    let (kept, kept_rate) = KEEPERS;
    let (past, past_rate) = PAST_BOTH;
    let health = probes();
    let (probes, at_first, pause) =
        (health.interval.as_secs(), health.start_interval.unwrap_or(health.interval).as_secs(), PAUSE.as_secs());
    writeln!(
        out,
        "* Each cell: the mesh alone / with steer. Which of the two is measured first changes from row to row."
    )?;
    writeln!(
        out,
        "* Four tasks; six for scaling. Healthcheck: every {at_first} s at the start, then every {probes} s. Slow to listen: {SLOW} s after its \
         start. Pause: {pause} s."
    )?;
    writeln!(
        out,
        "* Clients, all at once. *new*: {new} that open a connection for each request, {new_rate} requests/s. *kept*: {kept} that keep theirs \
         for {PER_CONNECTION} requests, {kept_rate} requests/s."
    )?;
    writeln!(
        out,
        "* *held*: of the task to which it is done, the connections that clients kept to it at that moment. The task is the one whose number \
         is the nearest to an equal share."
    )?;
    writeln!(
        out,
        "* *refused*: a reset in answer to a SYN. *reset*: an established connection that ended before its answer. *cut*: those of them whose \
         task neither ended nor was to end."
    )?;
    writeln!(
        out,
        "* *stalled*: requests of a second or longer; connecting counts, also where the connection is kept then. *control*: of a hundred \
         requests, how many stalled of {past} clients that meanwhile go past both ways, {past_rate} requests/s, to a process beside Docker: \
         what neither containers nor steering take.\n\
         * *first*: from the start of a task's process to the first request it answered, the median of the new tasks."
    )
}

/// What a reader should not have to look for.
fn remarks(out: &mut String, measured: &[Measured]) -> std::fmt::Result {
    for row in measured {
        for (clients, pair) in row.pairs() {
            let [Some(mesh), Some(steer)] = pair else {
                writeln!(out, "\nNot measured both ways: {}, {clients}.", row.row)?;
                continue;
            };
            let worse = steer.worse_than(mesh);
            if !worse.is_empty() {
                writeln!(out, "\nsteer is worse: {}, {clients}: {}.", row.row, worse.join(", "))?;
            }
            if (mesh.other, steer.other) != (0, 0) {
                writeln!(out, "\nOther failures: {}, {clients}: {} / {}.", row.row, mesh.other, steer.other)?;
            }
        }
    }
    Ok(())
}

fn cells(row: Row, clients: &str, pair: [Option<&Figures>; 2], control: [Option<Control>; 2]) -> Vec<String> {
    let both = |show: fn(&Figures) -> String| {
        let [mesh, steer] = pair.map(|figures| figures.map_or(NOTHING.to_owned(), show));
        format!("{mesh} / {steer}")
    };
    // What there is not in every row.
    let some = |show: fn(&Figures) -> Option<String>| match pair.map(|figures| figures.and_then(show)) {
        [None, None] => NOTHING.to_owned(),
        shown => shown.map(|words| words.unwrap_or(NOTHING.to_owned())).join(" / "),
    };
    vec![
        if row.health { "yes" } else { "no" }.to_owned(),
        row.deed.words().to_owned(),
        clients.to_owned(),
        some(|figures| figures.held.map(|held| held.to_string())),
        both(|figures| figures.refused.to_string()),
        both(|figures| figures.reset.to_string()),
        both(|figures| figures.cut.to_string()),
        both(|figures| figures.stalled.to_string()),
        control
            .map(|control| {
                control.and_then(Control::percent).map_or(NOTHING.to_owned(), |share| format!("{share:.1} %"))
            })
            .join(" / "),
        both(|figures| format!("{:.1} s", figures.longest_ms / 1e3)),
        some(|figures| figures.first_ms.map(|ms| format!("{:.1} s", ms / 1e3))),
    ]
}

/// With columns as wide as they must be, so that the text can be read too.
fn markdown(out: &mut String, rows: &[Vec<String>]) -> std::fmt::Result {
    let columns = rows.first().map_or(0, Vec::len);
    let width = |at: usize| rows.iter().map(|cells| cells[at].chars().count()).max().unwrap_or_default();
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for (index, cells) in rows.iter().enumerate() {
        for (cell, width) in cells.iter().zip(&widths) {
            write!(out, "| {cell:width$} ")?;
        }
        writeln!(out, "|")?;
        if index == 0 {
            widths.iter().try_for_each(|width| write!(out, "|{:-<1$}", "", width + 2))?;
            writeln!(out, "|")?;
        }
    }
    Ok(())
}

/// For whoever watches.
pub(crate) fn one_line(figures: &Figures) -> String {
    let Figures { requests, held, refused, reset, cut, stalled, given_up, longest_ms, first_ms, other } = figures;
    let held = held.map(|held| format!(" ({held} kept to the victim)")).unwrap_or_default();
    let first = first_ms.map(|ms| format!(", first after {ms:.0} ms")).unwrap_or_default();
    format!(
        "{requests} requests{held}, refused {refused}, reset {reset} (cut {cut}), stalled {stalled} (given up {given_up}), \
         longest {longest_ms:.0} ms{first}, \
         other {other}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::rows::Deed;

    fn figures(refused: u64) -> Figures {
        Figures {
            requests: 900,
            held: None,
            refused,
            reset: 0,
            cut: 0,
            stalled: 1,
            given_up: 0,
            longest_ms: 1040.0,
            first_ms: None,
            other: 0,
        }
    }

    fn fared(refused: u64) -> Fared {
        let keepalive = Figures { first_ms: Some(250.0), held: Some(4), ..figures(0) };
        let control = Control { requests: 400, failed: 0, stalled: 6, longest_ms: 1100.0 };
        Fared { close: figures(refused), keepalive, control, failures: Vec::new(), seconds: 1.0 }
    }

    fn machine() -> Machine {
        Machine { kernel: "6.12".into(), docker: "26.1.5".into(), cores: 2, cpu: "a model".into(), seconds: 600.0 }
    }

    fn measured(mesh: Option<Fared>, steer: Option<Fared>) -> Vec<Measured> {
        vec![Measured { row: Row { health: false, deed: Deed::Stop }, mesh, steer }]
    }

    #[test]
    fn a_row_shows_both_ways_side_by_side() {
        let text = render(&machine(), &measured(Some(fared(50)), Some(fared(0))));
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "Linux 6.12, Docker 26.1.5, 2 cores (a model), in 10 minutes.");
        let squeeze = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
        assert_eq!(
            squeeze(lines[2]),
            "| healthcheck | what is done | clients | held | refused | reset | cut | stalled | control | longest | first |"
        );
        let expected = "| no | docker stop of a task | new | – | 50 / 0 | 0 / 0 | 0 / 0 | 1 / 1 | 1.5 % / 1.5 % | 1.0 s / 1.0 s | – |";
        assert_eq!(squeeze(lines[4]), expected);
        assert!(
            squeeze(lines[5]).contains("| kept | 4 / 4 | 0 / 0 |") && lines[5].contains("| 0.2 s / 0.2 s |"),
            "{text}"
        );
        let widths: Vec<usize> = lines[2..6].iter().map(|line| line.chars().count()).collect();
        assert!(widths.iter().all(|width| *width == widths[0]), "{text}");
        assert!(!text.contains("worse"), "{text}");
    }

    #[test]
    fn where_steer_is_worse_the_table_says_so() {
        let text = render(&machine(), &measured(Some(fared(0)), Some(fared(2))));
        assert!(text.contains("\nsteer is worse: none: docker stop of a task, new: refused.\n"), "{text}");
    }

    #[test]
    fn what_must_not_be_is_a_fault_and_what_only_the_mesh_does_is_none() {
        let faults = |mesh, steer| measured(mesh, steer).iter().flat_map(Measured::faults).collect::<Vec<_>>();
        assert_eq!(faults(Some(fared(50)), Some(fared(0))), Vec::<String>::new());
        assert_eq!(faults(Some(fared(50)), Some(fared(2))), ["none: docker stop of a task, new: refused"]);
        assert_eq!(faults(None, Some(fared(2))), ["none: docker stop of a task, new: refused"]);
        let slow = Fared { keepalive: Figures { stalled: 9, ..fared(0).keepalive }, ..fared(0) };
        assert_eq!(faults(Some(fared(0)), Some(slow)), Vec::<String>::new());
        let kept = |figures| Some(Fared { keepalive: figures, ..fared(0) });
        let chance = Figures { reset: 1, ..fared(0).keepalive };
        assert_eq!(faults(Some(fared(0)), kept(chance)), Vec::<String>::new());
        let dead = Figures { given_up: 1, ..fared(0).keepalive };
        assert_eq!(faults(Some(fared(0)), kept(dead)), ["none: docker stop of a task, kept: given up"]);
    }

    #[test]
    fn what_was_not_measured_is_no_zero() {
        let text = render(&machine(), &measured(None, Some(fared(0))));
        assert!(text.contains("| – / 0 "), "{text}");
        assert!(text.contains("Not measured both ways: none: docker stop of a task, new."), "{text}");
    }
}
