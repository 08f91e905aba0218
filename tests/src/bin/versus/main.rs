//! `cargo xtask vm --versus`: Swarm's routing mesh alone and with steer in front of it, side by side.
//!
//! Problem: what steer is good for shows where the mesh fails, and an honest comparison shows also where it does not. Approach:
//! one machine, one Docker, one run; each [row](rows) is measured with the mesh alone and with steer, one at once after the other
//! ([`scenario`]), with the same app, the same clients and the same [deed](deed). Which comes first changes from row to row: what the
//! first one leaves warm favours nobody. What clients met is counted ([`measure`]) and becomes a [`table`] for the README.
//!
//! The exit code tells whether everything could be measured, and steer did nothing that it must not: no client was refused or cut off, and
//! none met more of any failure than with the mesh alone. It needs a kernel with `ip_vs`; without, the mesh is dead, and `--way steer`
//! measures steer alone.

mod bare;
mod deed;
mod measure;
mod poll;
mod rows;
mod scenario;
mod table;

use std::process::ExitCode;
use std::time::{Duration, Instant};

use clap::Parser;
use nix::sys::utsname::uname;
use steer_tests::signals;
use steer_tests::skip::{self, Need};
use steer_tests::world::Bpffs;

use crate::measure::Control;
use crate::poll::Stop;
use crate::rows::Row;
use crate::scenario::{Fared, Site, Way};
use crate::table::{Machine, Measured};

const INTERRUPTED: u8 = 130;

#[derive(Parser)]
#[command(about = "Compares Swarm's routing mesh alone with steer in front of it")]
struct Args {
    /// Only this way; both, the one and the other first in turn, if none is named
    #[arg(long, value_enum)]
    way: Vec<Way>,
    /// Begin no row after this time; the table, which is printed anew after each row, is of those that were measured
    #[arg(long, default_value_t = u64::MAX)]
    seconds: u64,
    /// Only rows whose name contains one of these, such as `kill` or `none: docker stop`
    filter: Vec<String>,
}

fn main() -> ExitCode {
    let args = Args::parse();
    if let Err(err) = signals::listen(poll::interrupt) {
        return fail(&format!("cannot listen to signals: {err}"));
    }
    if let Some(missing) = skip::missing(&[Need::Root, Need::Docker, Need::Steer]) {
        return fail(&format!("cannot compare here: {missing}"));
    }
    let rows = Row::matching(&args.filter);
    if rows.is_empty() {
        return fail(&format!("no row has a name with one of {:?}; all of them: {}", args.filter, names()));
    }
    let ways: Vec<Way> =
        [Way::Mesh, Way::Steer].into_iter().filter(|way| args.way.is_empty() || args.way.contains(way)).collect();
    // Guards clean up while a panic of the harness unwinds; its words are on standard error by then.
    match std::panic::catch_unwind(|| run(&rows, &ways, Duration::from_secs(args.seconds))) {
        Ok(Ok(measured)) => {
            let faults: Vec<String> = measured.iter().flat_map(Measured::faults).collect();
            faults.iter().for_each(|fault| eprintln!("steer must not: {fault}"));
            if faults.is_empty() && measured.iter().all(|row| row.is_whole(&ways)) {
                ExitCode::SUCCESS
            } else {
                ExitCode::FAILURE
            }
        }
        Ok(Err(Stop::Interrupted)) => {
            eprintln!("versus: interrupted; nothing is left behind");
            ExitCode::from(INTERRUPTED)
        }
        Ok(Err(Stop::Failed(words))) => fail(&words),
        Err(_) => ExitCode::FAILURE,
    }
}

fn run(rows: &[Row], ways: &[Way], limit: Duration) -> Result<Vec<Measured>, Stop> {
    let began = Instant::now();
    if let (true, Ok(traces)) = (ways.contains(&Way::Mesh), bare::traces())
        && !traces.is_empty()
    {
        let words = "steer is on this machine already, so the mesh is not alone; `--way steer` measures steer alone";
        return Err(Stop::failed(words, format!("{traces:?}")));
    }
    let _bpffs = Bpffs::new();
    eprintln!("a Swarm of one node");
    let mut site = Site::build();
    if ways.contains(&Way::Mesh)
        && let Err(Stop::Failed(why)) = site.try_mesh(rows[0])
    {
        let words = "nothing answers at a published port without steer; if this kernel has no ip_vs, `--way steer` measures \
                     steer alone";
        return Err(Stop::failed(words, why));
    }
    let mut measured = Vec::new();
    for (index, row) in rows.iter().enumerate() {
        let mut both = Measured { row: *row, mesh: None, steer: None };
        if began.elapsed() > limit {
            eprintln!("{row}: NOT MEASURED: the time is over");
            measured.push(both);
            show(&machine(&site, began.elapsed().as_secs_f64()), &measured);
            continue;
        }
        for way in &in_turn(ways, index) {
            let label =
                format!("[{}/{}, {:.0} s] {row}, {}", index + 1, rows.len(), began.elapsed().as_secs_f64(), way.name());
            let outcome = site.measure(*row, *way);
            match &outcome {
                Ok(fared) => tell(&label, fared),
                Err(Stop::Failed(why)) => eprintln!("{label}: NOT MEASURED: {why}"),
                Err(Stop::Interrupted) => return Err(Stop::Interrupted),
            }
            let place = if *way == Way::Mesh { &mut both.mesh } else { &mut both.steer };
            *place = outcome.ok();
        }
        measured.push(both);
        show(&machine(&site, began.elapsed().as_secs_f64()), &measured);
    }
    Ok(measured)
}

/// The ways in the order for a row of this number.
fn in_turn(ways: &[Way], row: usize) -> Vec<Way> {
    let mut ways = ways.to_vec();
    if !row.is_multiple_of(2) {
        ways.reverse();
    }
    ways
}

/// The table of all that is measured by now: whatever comes of the next row, this is not lost.
fn show(machine: &Machine, measured: &[Measured]) {
    println!("\n{}\n{}{}", table::MARK, table::render(machine, measured), table::END);
}

fn machine(site: &Site, seconds: f64) -> Machine {
    let kernel = uname().map(|name| name.release().to_string_lossy().into_owned()).unwrap_or_default();
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpuinfo.lines().find_map(|line| line.strip_prefix("model name")?.split_once(": "));
    Machine {
        kernel,
        docker: site.docker_version(),
        cores: std::thread::available_parallelism().map_or(0, usize::from),
        cpu: model.map(|(_, model)| model.trim().to_owned()).unwrap_or_default(),
        seconds,
    }
}

/// What came of one measurement, as soon as it is known.
fn tell(label: &str, fared: &Fared) {
    eprintln!("{label} ({:.0} s)", fared.seconds);
    for (kind, figures) in [("close", &fared.close), ("keep-alive", &fared.keepalive)] {
        eprintln!("    {kind}: {}", table::one_line(figures));
    }
    let Control { requests, failed, stalled, longest_ms } = fared.control;
    eprintln!("    past both: {requests} requests, failed {failed}, stalled {stalled}, longest {longest_ms:.0} ms");
    const ENOUGH: usize = 6;
    fared.failures.iter().take(ENOUGH).for_each(|words| eprintln!("    {words}"));
}

fn names() -> String {
    Row::matching(&[]).iter().map(Row::to_string).collect::<Vec<_>>().join("; ")
}

fn fail(words: &str) -> ExitCode {
    eprintln!("versus: failed: {words}");
    ExitCode::FAILURE
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_way_comes_first_in_turn() {
        let both = [Way::Mesh, Way::Steer];
        let first: Vec<_> = (0..4).map(|row| in_turn(&both, row)[0]).collect();
        assert_eq!(first, [Way::Mesh, Way::Steer, Way::Mesh, Way::Steer]);
        assert!((0..4).all(|row| in_turn(&both, row).len() == 2 && in_turn(&[Way::Steer], row) == [Way::Steer]));
    }
}
