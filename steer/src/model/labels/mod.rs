//! What a container's labels ask for.
//!
//! [`spec`] reads all labels at once and reports everything that is wrong with them, so that one look at the log is enough to
//! mend a Compose file. A container with a bad label is not steered: half-understood settings are worse than none.
//! [`value`] knows the form of each value, [`network`] which of the container's addresses is meant.

mod network;
#[cfg(test)]
mod tests;
pub mod value;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::time::Duration;

use ipnet::IpNet;
use steer_common::service::Balance;

pub use network::{answers_elsewhere, network_leg};

use super::swarm::{GATEWAY, SERVICE_NAME};
use super::{PortSpec, Problem, ReadyPolicy, Spec};

/// Ports, `[address:]port:target`, comma separated. What makes a container one of ours; without it, it is none of our business.
pub const PORT: &str = "steer.port";
/// Name that groups containers, [`value::name`]; by default Compose's or Swarm's, or the container's own.
pub const SERVICE: &str = "steer.service";
/// Network whose address is meant; needed where a container is in several.
pub const NETWORK: &str = "steer.network";
/// Share of new connections, `0..=256`; 0 = none.
pub const WEIGHT: &str = "steer.weight";
/// How a service's backend is chosen: one of [`Balance::ALL`].
pub const BALANCE: &str = "steer.balance";
/// How readiness is known: one of [`value::READIES`].
pub const READY: &str = "steer.ready";
/// How long `steer drain --wait` waits, and the least time until a container that outlives its stop signal is put back,
/// [`value::duration`]. Nothing is cut.
pub const DRAIN: &str = "steer.drain";
/// How long new connections wait while no backend is ready, [`value::duration`]; 0 = not at all.
pub const HOLD: &str = "steer.hold";
/// Addresses and prefixes of clients that may connect, comma separated; absent = everyone.
pub const ALLOW: &str = "steer.allow";
/// `true`: leave this container alone, whatever its other labels say.
pub const IGNORE: &str = "steer.ignore";

/// Every label there is.
pub const ALL: [&str; 10] = [PORT, SERVICE, NETWORK, WEIGHT, BALANCE, READY, DRAIN, HOLD, ALLOW, IGNORE];

const COMPOSE_PROJECT: &str = "com.docker.compose.project";
const COMPOSE_SERVICE: &str = "com.docker.compose.service";
/// `docker compose run` gives its container all labels of the service, `steer.port` among them.
const COMPOSE_ONEOFF: &str = "com.docker.compose.oneoff";
/// A container that runs before or after the service's own (`post_start` and the like).
const COMPOSE_HOOK: &str = "com.docker.compose.hook";

/// What holds where a label is absent. The built-in values can be changed in the configuration file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Defaults {
    /// `None` = the only one a container is in.
    pub network: Option<String>,
    /// `0..=256`.
    pub weight: u16,
    /// How a service's backend is chosen.
    pub balance: Balance,
    /// How readiness is known.
    pub ready: ReadyPolicy,
    /// How long `steer drain --wait` waits, and the least time until who outlives its stop signal is put back.
    pub drain: Duration,
    /// How long new connections wait while no backend is ready; zero = not at all.
    pub hold: Duration,
    /// Empty = everyone.
    pub allow: Vec<IpNet>,
}

impl Default for Defaults {
    fn default() -> Self {
        Self {
            network: None,
            weight: 1,
            balance: Balance::RoundRobin,
            ready: ReadyPolicy::Auto,
            drain: Duration::from_secs(30),
            hold: Duration::from_secs(10),
            allow: Vec::new(),
        }
    }
}

/// What the container `name` with these labels asks for. `Ok(None)`: nothing, it is not to be steered. Of bad labels, each
/// gives one problem.
pub fn spec(name: &str, labels: &BTreeMap<String, String>, defaults: &Defaults) -> Result<Option<Spec>, Vec<Problem>> {
    spec_of_task(name, labels, &[], defaults)
}

/// The same for a task of a swarm, whose service publishes these ports: what it serves unless a label says otherwise.
pub fn spec_of_task(
    name: &str,
    labels: &BTreeMap<String, String>,
    published: &[PortSpec],
    defaults: &Defaults,
) -> Result<Option<Spec>, Vec<Problem>> {
    if is_left_out(labels) {
        return Ok(None);
    }
    let mut read = Reader { name, labels, problems: Vec::new() };
    read.unknown_labels();
    read.optional(IGNORE, value::switch);
    let ports = match labels.get(PORT) {
        Some(ports) => read.checked(PORT, value::ports(ports)),
        None if published.is_empty() => return if read.problems.is_empty() { Ok(None) } else { Err(read.problems) },
        None => Some(published.to_vec()),
    };
    let mesh = !labels.contains_key(PORT);
    let is_task = labels.contains_key(SERVICE_NAME);
    let service = read.service();
    let network = read.optional(NETWORK, value::network);
    let weight = read.optional(WEIGHT, value::weight);
    let balance = read.optional(BALANCE, value::balance);
    let ready = read.optional(READY, value::ready);
    let drain = read.optional(DRAIN, value::duration);
    let hold = read.optional(HOLD, value::duration);
    let allow = read.optional(ALLOW, value::allow);

    let (Some(ports), Some(service), true) = (ports, service, read.problems.is_empty()) else {
        return Err(read.problems);
    };
    Ok(Some(Spec {
        service,
        ports,
        // Of a task's networks, only that one ends on this host.
        network: network.or_else(|| if is_task { Some(GATEWAY.to_owned()) } else { defaults.network.clone() }),
        weight: weight.unwrap_or(defaults.weight),
        balance: balance.unwrap_or(defaults.balance),
        ready: ready.unwrap_or(defaults.ready),
        drain: drain.unwrap_or(defaults.drain),
        hold: hold.unwrap_or(defaults.hold),
        allow: allow.unwrap_or_else(|| defaults.allow.clone()),
        mesh,
    }))
}

/// Whether a container is to be left alone, whatever else its labels say.
pub fn is_left_alone(labels: &BTreeMap<String, String>) -> bool {
    is_true(labels, IGNORE)
}

/// Whether a container is to get no new connection, as long as nobody says otherwise.
pub fn is_weightless(labels: &BTreeMap<String, String>, defaults: &Defaults) -> bool {
    value_or(labels, WEIGHT, value::weight, defaults.weight) == 0
}

/// How long it is waited for its connections, and at least for its end.
pub fn drain_of(labels: &BTreeMap<String, String>, defaults: &Defaults) -> Duration {
    value_or(labels, DRAIN, value::duration, defaults.drain)
}

/// A label's value, or the default where there is none, or a bad one.
fn value_or<T, E>(
    labels: &BTreeMap<String, String>,
    label: &str,
    parse: impl FnOnce(&str) -> Result<T, E>,
    default: T,
) -> T {
    labels.get(label).and_then(|value| parse(value).ok()).unwrap_or(default)
}

/// Whether a container is left out, whatever its labels ask for: no service of its own, or told so.
fn is_left_out(labels: &BTreeMap<String, String>) -> bool {
    is_left_alone(labels) || is_true(labels, COMPOSE_ONEOFF) || labels.contains_key(COMPOSE_HOOK)
}

fn is_true(labels: &BTreeMap<String, String>, label: &str) -> bool {
    labels.get(label).is_some_and(|value| value.trim().eq_ignore_ascii_case("true"))
}

/// Reads labels of one container and gathers what is wrong with them.
struct Reader<'a> {
    name: &'a str,
    labels: &'a BTreeMap<String, String>,
    problems: Vec<Problem>,
}

impl Reader<'_> {
    /// A label's value, if it is there and good.
    fn optional<T>(&mut self, label: &str, parse: impl FnOnce(&str) -> Result<T, String>) -> Option<T> {
        let value = self.labels.get(label)?;
        self.checked(label, parse(value))
    }

    /// The value, or a problem more.
    fn checked<T, E: Display>(&mut self, label: &str, result: Result<T, E>) -> Option<T> {
        result.map_err(|message| self.problem(label, message.to_string())).ok()
    }

    /// The label that says so, else what Swarm or Compose calls it, else the container's name. Swarm first: an image that Compose has
    /// built carries Compose's labels, which a task has from it.
    fn service(&mut self) -> Option<String> {
        let label = |name| self.labels.get(name).map(String::as_str);
        let service = match (label(SERVICE), label(SERVICE_NAME), label(COMPOSE_PROJECT), label(COMPOSE_SERVICE)) {
            (Some(service), ..) => service.trim().to_owned(),
            (None, Some(service), ..) => service.to_owned(),
            (None, None, Some(project), Some(service)) => format!("{project}_{service}"),
            (None, None, ..) => self.name.to_owned(),
        };
        let remedy = if label(SERVICE).is_none() { ", set this label to give it another" } else { "" };
        let checked = value::name(&service).map_err(|message| format!("{message}{remedy}"));
        self.checked(SERVICE, checked)
    }

    /// A label that only looks like one of ours would otherwise be lost in silence.
    fn unknown_labels(&mut self) {
        for label in self.labels.keys() {
            let ours = label.get(..6).is_some_and(|prefix| prefix.eq_ignore_ascii_case("steer."));
            if !ours || ALL.contains(&label.as_str()) {
                continue;
            }
            let message = match nearest(label) {
                Some(known) => format!("no such label, did you mean `{known}`?"),
                None => format!("no such label, expected one of {}", ALL.join(", ")),
            };
            self.problem(label, message);
        }
    }

    fn problem(&mut self, label: &str, message: String) {
        self.problems.push(Problem { container: self.name.to_owned(), label: Some(label.to_owned()), message });
    }
}

/// The label somebody probably meant.
fn nearest(label: &str) -> Option<&'static str> {
    /// More slips of the finger than this make it another word.
    const SLIPS: usize = 2;
    let label = label.to_ascii_lowercase();
    let by_distance = ALL.iter().map(|known| (strsim::levenshtein(&label, known), *known));
    by_distance.min().filter(|(slips, _)| *slips <= SLIPS).map(|(_, known)| known)
}
