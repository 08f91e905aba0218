//! The form of each value a label or the configuration file may hold.
//!
//! Every function takes the text as written and returns the value, or a sentence that quotes the text and says what was
//! expected. Whose text it is (container and label, service and key) is the caller's to add.

use std::fmt::Display;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Duration;

use ipnet::IpNet;
use steer_common::limits::{MAX_NAME, MAX_PORTS, MAX_WEIGHT};
use steer_common::service::Balance;

use crate::model::frontend::Frontend;
use crate::model::{PortSpec, Protocol, ReadyPolicy};

/// The words for [`ReadyPolicy`].
pub const READIES: [(&str, ReadyPolicy); 4] = [
    ("auto", ReadyPolicy::Auto),
    ("health", ReadyPolicy::Health),
    ("listen", ReadyPolicy::Listen),
    ("manual", ReadyPolicy::Manual),
];

/// Longest [`duration`]; beyond it the value is more likely a slip than a wish.
pub const MAX_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

const PORT_FORM: &str = "expected `[address:]port:target`, such as `9000:5000`";

/// A comma-separated list of ports.
pub fn ports(text: &str) -> Result<Vec<PortSpec>, String> {
    let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    port_list(&items)
}

/// Ports, one per item; every bad item is told.
pub fn port_list(items: &[impl AsRef<str>]) -> Result<Vec<PortSpec>, String> {
    if items.is_empty() {
        return Err(format!("no port given, {PORT_FORM}"));
    }
    if items.len() > MAX_PORTS {
        return Err(format!("{} ports, a service has {MAX_PORTS} at most", items.len()));
    }
    let mut ports: Vec<PortSpec> = Vec::new();
    let mut faults = Vec::new();
    for item in items {
        let item = item.as_ref().trim();
        match port(item).and_then(|port| steerable(item, port)) {
            Ok(new) if ports.iter().any(|old| Frontend::of(old).overlaps(&Frontend::of(&new))) => {
                faults.push(format!("`{item}`: port {} is in the list already", new.port));
            }
            Ok(new) => ports.push(new),
            Err(fault) => faults.push(fault),
        }
    }
    if faults.is_empty() { Ok(ports) } else { Err(faults.join("; ")) }
}

/// One port: `[address:]port:target[/tcp|/udp]`, an IPv6 address in brackets, as in `docker run -p`.
pub fn port(text: &str) -> Result<PortSpec, String> {
    let wrong = || format!("`{text}`: {PORT_FORM}");
    let (pair, protocol) = match text.rsplit_once('/') {
        None => (text, Protocol::Tcp),
        Some((pair, "tcp")) => (pair, Protocol::Tcp),
        Some((pair, "udp")) => (pair, Protocol::Udp),
        Some((_, other)) => return Err(format!("`{text}`: `{other}` is no protocol steer knows, expected `tcp`")),
    };
    let (front, target) = pair.rsplit_once(':').ok_or_else(wrong)?;
    let (address, port) = match front.rsplit_once(':') {
        Some((address, port)) => (Some(address), port),
        None => (None, front),
    };
    let number = |digits: &str| match digits.parse::<u16>() {
        Ok(port) if port > 0 && !digits.starts_with('+') => Ok(port),
        _ if digits.split_once('-').is_some_and(|(first, last)| !first.is_empty() && !last.is_empty()) => Err(format!(
            "`{text}`: `{digits}` is a range, which is not steered: write each port, as in `9000:5000,9001:5001`"
        )),
        _ => Err(format!("`{text}`: `{digits}` is no port, expected 1 to 65535 ({PORT_FORM})")),
    };
    Ok(PortSpec {
        address: address.map_or(Ok(None), |a| host_address(text, a))?,
        port: number(port)?,
        target: number(target)?,
        protocol,
    })
}

/// The address part of a port; the unspecified one stands for every address of the host, as it does for Docker.
fn host_address(text: &str, address: &str) -> Result<Option<IpAddr>, String> {
    let bare = address.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let parsed: Option<IpAddr> = match bare {
        Some(v6) => v6.parse().ok().filter(IpAddr::is_ipv6),
        None => address.parse().ok().filter(IpAddr::is_ipv4),
    };
    match parsed {
        Some(ip) if ip.is_multicast() => {
            Err(format!("`{text}`: {ip} is a multicast address, expected one of this host's"))
        }
        Some(IpAddr::V4(ip)) if ip.is_unspecified() => Ok(None),
        Some(ip) => Ok(Some(ip)),
        None if address.parse::<Ipv6Addr>().is_ok() => {
            Err(format!("`{text}`: an IPv6 address stands in brackets, as in `[2001:db8::1]:9000:5000`"))
        }
        None => Err(format!("`{text}`: `{address}` is no IP address")),
    }
}

/// Refuses what is understood but not done yet.
fn steerable(text: &str, port: PortSpec) -> Result<PortSpec, String> {
    if port.protocol == Protocol::Udp {
        return Err(format!("`{text}`: UDP is not steered yet"));
    }
    if port.address.is_some_and(|address| address.is_ipv6()) {
        return Err(format!("`{text}`: IPv6 is not steered yet"));
    }
    Ok(port)
}

/// The name of a service or backend: what is safe in a URL and a terminal.
pub fn name(text: &str) -> Result<String, String> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    if text.is_empty() {
        return Err("the name is empty".into());
    }
    if let Some(bad) = text.chars().find(|&c| !allowed(c)) {
        return Err(format!("`{text}`: {bad:?} may not stand in a name, expected letters, digits, `.`, `_`, `-`"));
    }
    if text.len() > MAX_NAME {
        return Err(format!("`{text}` has {} characters, a name has {MAX_NAME} at most", text.len()));
    }
    Ok(text.to_owned())
}

/// The name of a network, as its user calls it.
pub fn network(text: &str) -> Result<String, String> {
    match text.trim() {
        "" => Err("the network's name is empty, leave the setting out if there is only one".into()),
        name => Ok(name.to_owned()),
    }
}

/// A share of new connections.
pub fn weight(text: &str) -> Result<u16, String> {
    let weight = text.trim().parse().ok().and_then(weight_number);
    weight.ok_or_else(|| no_weight(format_args!("`{text}`")))
}

/// What is to be said of something that is no weight.
pub fn no_weight(it: impl Display) -> String {
    format!("{it} is no weight, expected a whole number from 0 to {MAX_WEIGHT}")
}

/// The number as a weight, if it is one.
pub fn weight_number(number: i64) -> Option<u16> {
    u16::try_from(number).ok().filter(|weight| *weight <= MAX_WEIGHT)
}

/// How a service's backend is chosen.
pub fn balance(text: &str) -> Result<Balance, String> {
    word(text, &Balance::ALL.map(|balance| (balance.name(), balance)))
}

/// How readiness is known.
pub fn ready(text: &str) -> Result<ReadyPolicy, String> {
    word(text, &READIES)
}

/// `true` or `false`.
pub fn switch(text: &str) -> Result<bool, String> {
    word(&text.to_ascii_lowercase(), &[("true", true), ("false", false)])
}

/// One of a few words.
pub fn word<T: Copy>(text: &str, words: &[(&str, T)]) -> Result<T, String> {
    match words.iter().find(|(word, _)| *word == text.trim()) {
        Some((_, value)) => Ok(*value),
        None => {
            let words: Vec<_> = words.iter().map(|(word, _)| format!("`{word}`")).collect();
            Err(format!("`{text}`: expected one of {}", words.join(", ")))
        }
    }
}

/// A span of time with its unit, or a bare `0`.
pub fn duration(text: &str) -> Result<Duration, String> {
    match text.trim() {
        "0" => Ok(Duration::ZERO),
        trimmed => match humantime::parse_duration(trimmed) {
            Ok(duration) if duration > MAX_DURATION => Err(format!("`{text}` is too long, 24h is the most")),
            Ok(duration) => Ok(duration),
            Err(_) => Err(format!("`{text}` is no duration, expected such as `30s`, `500ms`, `1m30s` or `0`")),
        },
    }
}

/// A comma-separated list of prefixes and addresses.
pub fn allow(text: &str) -> Result<Vec<IpNet>, String> {
    let items: Vec<&str> = text.split(',').map(str::trim).filter(|item| !item.is_empty()).collect();
    // An empty list would mean everyone, which is the last thing a variable that was left unset should do.
    if items.is_empty() {
        return Err("no prefix given, expected such as `10.0.0.0/8,192.0.2.7`; `0.0.0.0/0` is everyone".into());
    }
    allow_list(&items)
}

/// Prefixes and addresses, one per item; every bad item is told. In order, each once, so that equal lists compare equal.
pub fn allow_list(items: &[impl AsRef<str>]) -> Result<Vec<IpNet>, String> {
    let mut prefixes = Vec::new();
    let mut faults = Vec::new();
    for item in items {
        let item = item.as_ref().trim();
        match item.parse::<IpNet>().ok().or_else(|| item.parse::<IpAddr>().ok().map(IpNet::from)) {
            Some(prefix) => prefixes.push(prefix.trunc()),
            None => {
                faults.push(format!("`{item}` is no prefix or address, expected such as `10.0.0.0/8` or `192.0.2.7`"))
            }
        }
    }
    prefixes.sort_unstable();
    prefixes.dedup();
    if faults.is_empty() { Ok(prefixes) } else { Err(faults.join("; ")) }
}
