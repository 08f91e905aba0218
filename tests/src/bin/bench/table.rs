//! The results for a person: medians over the rounds, ratios to the first row, and each target with what was reached.

use std::fmt::Write;

use crate::kernel::{KernelResults, Times};
use crate::measure::Sample;
use crate::results::{AgentResults, Results};
use crate::ways::Way;

/// What issue 2 asks for.
const CONNECTIONS: f64 = 1.2;
const KNOWN_FLOW_NS: f64 = 60.0;
const NEW_FLOW_NS: f64 = 300.0;
const APPLIED_MICROS: f64 = 1000.0;
const RESIDENT_MIB: f64 = 20.0;
/// "No measurable CPU": a thousandth of one core.
const IDLE_SHARE: f64 = 0.001;

/// A number of a sample.
type Column = (&'static str, fn(&Sample) -> f64);

const COLUMNS: [Column; 8] = [
    ("conn/s", |sample| sample.connections_per_second),
    ("p50 ms", |sample| sample.close_ms.p50),
    ("p99 ms", |sample| sample.close_ms.p99),
    ("p99.9 ms", |sample| sample.close_ms.p999),
    ("p50 ms", |sample| sample.keep_alive_ms.p50),
    ("p99 ms", |sample| sample.keep_alive_ms.p99),
    ("p99.9 ms", |sample| sample.keep_alive_ms.p999),
    ("MiB/s", |sample| sample.bulk_mib_per_second),
];

pub(crate) fn render(results: &Results) -> String {
    let mut out = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut out, results);
    out
}

fn write(out: &mut String, results: &Results) -> std::fmt::Result {
    let Results { machine, ways, packet, agent, kernel, .. } = results;
    writeln!(out, "\nkernel {}, {} cores ({}), Docker {}", machine.kernel, machine.cores, machine.cpu, machine.docker)?;
    if !ways.is_empty() {
        the_ways(out, results)?;
    }
    match packet {
        Ok(costs) => packets(out, costs)?,
        Err(why) => writeln!(out, "{:34} {why}", "cost of a packet")?,
    }
    agent.as_ref().map_or(Ok(()), |agent| the_agent(out, agent))?;
    kernel.as_ref().map_or(Ok(()), |kernel| the_kernel(out, kernel, packet.as_ref().ok()))
}

fn the_ways(out: &mut String, results: &Results) -> std::fmt::Result {
    let Results { plan, rounds, ways, .. } = results;
    writeln!(
        out,
        "median of {rounds} rounds of {} s each; new connections: {} clients, one request per connection; keep-alive: {} \
         clients, {} requests/s; bulk: {} clients",
        plan.seconds, plan.clients, plan.keep_alive_clients, plan.keep_alive_rate, plan.bulk_clients
    )?;
    writeln!(
        out,
        "four containers behind every way, on the machine of the client; for XDP the client's checksum and segmentation \
         offload is off, as XDP needs it on a veth\n"
    )?;
    writeln!(out, "{:20} {:-^38} {:-^28} {:-^9}", "", " new connections ", " keep-alive ", " bulk ")?;
    header(out)?;
    for (way, samples) in ways {
        line(out, *way, |column| median(samples, column), number)?;
        let failed: u64 = samples.iter().map(|sample| sample.failed).sum();
        if failed > 0 {
            let example = samples.iter().flat_map(|sample| &sample.failures).next().map_or("", String::as_str);
            writeln!(out, "{:20} {failed} requests FAILED, such as: {example}", "")?;
        }
    }
    if let Some(base) = ways.get(&Way::ALL[0]) {
        writeln!(out, "\n{:20} as a multiple of the first row: median of the rounds' ratios", "")?;
        for (way, samples) in ways {
            line(out, *way, |column| ratio(samples, base, column), |_, ratio| format!("{ratio:.2}"))?;
        }
    }
    writeln!(out)?;
    for way in [Way::SteerTc, Way::SteerXdp] {
        if let (Some(samples), Some(base)) = (ways.get(&way), ways.get(&Way::ALL[0])) {
            let ratio = ratio(samples, base, COLUMNS[0].1);
            let reached = format!("{ratio:.2} times routed, wanted {CONNECTIONS}");
            target(out, &format!("new connections/s, {way}"), &reached, ratio >= CONNECTIONS)?;
        }
    }
    Ok(())
}

fn header(out: &mut String) -> std::fmt::Result {
    let names: String = COLUMNS.iter().map(|(name, _)| format!(" {name:>9}")).collect();
    writeln!(out, "{:20}{names}", "")
}

fn line(
    out: &mut String,
    way: Way,
    value: impl Fn(fn(&Sample) -> f64) -> f64,
    show: impl Fn(&str, f64) -> String,
) -> std::fmt::Result {
    let cells: String = COLUMNS.iter().map(|(name, column)| format!(" {:>9}", show(name, value(*column)))).collect();
    writeln!(out, "{way:20}{cells}")
}

fn number(column: &str, value: f64) -> String {
    if column.ends_with("ms") { format!("{value:.2}") } else { format!("{value:.0}") }
}

fn packets(out: &mut String, costs: &serde_json::Value) -> std::fmt::Result {
    for hook in ["tc", "xdp"] {
        for (field, what, most) in
            [("known_flow_ns", "known flow", KNOWN_FLOW_NS), ("new_flow_ns", "new flow", NEW_FLOW_NS)]
        {
            match costs[hook][field].as_f64() {
                Some(ns) => {
                    let reached = format!("{ns:.0} ns, wanted at most {most:.0}");
                    target(out, &format!("packet of a {what}, {hook}"), &reached, ns <= most)?;
                }
                None => writeln!(out, "packet-cost says nothing about {hook}.{field}")?,
            }
        }
    }
    Ok(())
}

fn the_agent(out: &mut String, agent: &AgentResults) -> std::fmt::Result {
    let AgentResults { applied_micros, idle } = agent;
    for (kind, micros) in applied_micros {
        let micros: Vec<f64> = micros.iter().map(|micros| *micros as f64).collect();
        let (p50, p99) = (quantile(&micros, 0.5), quantile(&micros, 0.99));
        let reached = format!(
            "median {p50:.0} µs, p99 {p99:.0} µs of {}, wanted a median under {APPLIED_MICROS:.0} µs",
            micros.len()
        );
        target(out, &format!("event to map, {kind}"), &reached, p50 < APPLIED_MICROS)?;
    }
    if applied_micros.is_empty() {
        writeln!(out, "{:34} the agent's log says nothing about it", "event to map")?;
    }
    let share = idle.cpu_ms / 1000.0 / idle.seconds;
    let reached = format!("{:.1} ms of CPU in {:.0} s, wanted under {:.0} ms", idle.cpu_ms, idle.seconds, {
        IDLE_SHARE * 1000.0 * idle.seconds
    });
    target(out, "agent idle", &reached, share < IDLE_SHARE)?;
    let reached = format!("{:.1} MiB resident, wanted under {RESIDENT_MIB:.0}", idle.resident_mib);
    target(out, "agent idle", &reached, idle.resident_mib < RESIDENT_MIB)
}

/// For which nothing was asked: numbers to know.
fn the_kernel(out: &mut String, kernel: &KernelResults, costs: Option<&serde_json::Value>) -> std::fmt::Result {
    let KernelResults { docker_event, refused, .. } = kernel;
    writeln!(out, "\nwhat the kernel does by itself, in µs")?;
    writeln!(out, "{:48} {:>9} {:>9} {:>9} {:>7}", "", "median", "p99", "max", "samples")?;
    let mut row = |what: &str, times: &Times| {
        let Times { samples, p50_us, p99_us, max_us, .. } = times;
        writeln!(out, "{what:48} {p50_us:9.1} {p99_us:9.1} {max_us:9.1} {samples:7}")
    };
    row("stop signal to state", &kernel.signal_to_state)?;
    row("listen() to accept(), a client waits", &kernel.listen_to_accept_held)?;
    let pace = format!("listen() to accept(), {:.0} connections/s", kernel.beside_per_second);
    row(&pace, &kernel.listen_to_accept_beside)?;
    row("connect(), two backends", &kernel.connect)?;
    row(&format!("connect(), {refused} refused by the first"), &kernel.connect_refused_first)?;
    let below: Vec<String> =
        kernel.signal_to_state.below_us.iter().map(|(micros, count)| format!("< {micros}: {count}")).collect();
    writeln!(out, "stop signal to state, how many: {}", below.join(", "))?;
    writeln!(
        out,
        "Docker's event after the signal: median {} µs, p99 {} µs, max {} µs of {}; it came first {} times",
        docker_event.p50_us,
        docker_event.p99_us,
        docker_event.max_us,
        docker_event.kernel_first,
        docker_event.event_first
    )?;
    for hook in ["tc", "xdp"] {
        let cost = |field: &str| costs.and_then(|costs| costs[hook][field].as_f64());
        if let (Some(without), Some(with)) = (cost("new_flow_ns"), cost("new_flow_listener_ns")) {
            writeln!(
                out,
                "{:34} {without:.0} ns, with a look for a listener {with:.0} ns",
                format!("new flow, {hook}")
            )?;
        }
    }
    match costs.and_then(|costs| costs["reply"]["refused_ns"].as_f64()) {
        Some(ns) => writeln!(out, "{:34} {ns:.0} ns", "RST turned into another SYN"),
        None => Ok(()),
    }
}

fn target(out: &mut String, what: &str, reached: &str, good: bool) -> std::fmt::Result {
    writeln!(out, "{what:34} {reached}{}", if good { "" } else { ": MISSED" })
}

fn median(samples: &[Sample], column: fn(&Sample) -> f64) -> f64 {
    quantile(&samples.iter().map(column).collect::<Vec<_>>(), 0.5)
}

/// Of each round to the same round: what slowed the machine down for a while slowed both.
fn ratio(samples: &[Sample], base: &[Sample], column: fn(&Sample) -> f64) -> f64 {
    let ratios: Vec<f64> = samples.iter().zip(base).map(|(sample, base)| column(sample) / column(base)).collect();
    quantile(&ratios, 0.5)
}

/// By interpolation between the two nearest; not a number without any.
pub(crate) fn quantile(values: &[f64], quantile: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let at = quantile * sorted.len().saturating_sub(1) as f64;
    let value = |index: f64| sorted.get(index as usize).copied().unwrap_or(f64::NAN);
    let (low, high) = (value(at.floor()), value(at.ceil()));
    low + (high - low) * at.fract()
}

#[cfg(test)]
mod tests {
    use steer_tests::report::Quantiles;

    use super::*;
    use crate::measure::Plan;
    use crate::results::{Idle, Machine};

    #[test]
    fn quantiles_lie_between_their_neighbours() {
        assert_eq!(quantile(&[3.0, 1.0, 2.0], 0.5), 2.0);
        assert_eq!(quantile(&[4.0, 1.0, 2.0, 3.0], 0.5), 2.5);
        assert_eq!(quantile(&[7.0], 0.99), 7.0);
        assert!(quantile(&[], 0.5).is_nan());
    }

    #[test]
    fn a_missed_target_is_called_missed() {
        let machine = Machine { kernel: "6.18".into(), cores: 2, cpu: "x".into(), docker: "20.10".into() };
        let mut results = Results::new(machine, Plan::QUICK, 1);
        for (way, connections_per_second) in Way::ALL.into_iter().zip([1000.0, 500.0, 900.0, 1300.0, 1100.0]) {
            results.add(
                way,
                Sample {
                    connections_per_second,
                    close_ms: Quantiles::default(),
                    keep_alive_ms: Quantiles::default(),
                    bulk_mib_per_second: 1.0,
                    failed: 0,
                    failures: Vec::new(),
                },
            );
        }
        results.packet = Ok(serde_json::json!({"tc": {"known_flow_ns": 40.0, "new_flow_ns": 301.0}, "xdp": {}}));
        let idle = Idle { seconds: 10.0, cpu_ms: 0.5, resident_mib: 21.0 };
        results.agent = Some(AgentResults { applied_micros: [("die".to_owned(), vec![500, 700])].into(), idle });
        let text = render(&results);
        let missed: Vec<&str> = text.lines().filter(|line| line.ends_with("MISSED")).collect();
        assert_eq!(missed.len(), 3, "{text}");
        for expected in [
            "new connections/s, steer, tcx      1.30 times routed, wanted 1.2\n",
            "new connections/s, steer, XDP      1.10 times routed, wanted 1.2: MISSED\n",
            "packet of a new flow, tc           301 ns, wanted at most 300: MISSED\n",
            "event to map, die                  median 600 µs, p99 698 µs of 2, wanted a median under 1000 µs\n",
            "agent idle                         21.0 MiB resident, wanted under 20: MISSED\n",
            "packet-cost says nothing about xdp.new_flow_ns\n",
        ] {
            assert!(text.contains(expected), "{expected}in:\n{text}");
        }
    }
}
