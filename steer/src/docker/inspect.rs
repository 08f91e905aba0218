//! From Docker's description of a container to the model's. Pure.

use std::net::IpAddr;
use std::str::FromStr;
use std::time::Duration;

use bollard::models::{ContainerInspectResponse, EndpointSettings, HealthStatusEnum};
use ipnet::IpNet;
use nix::sys::signal::Signal;

use crate::model::{Container, ContainerId, Health, NetworkLeg};

/// `None` where the answer has no id, so describes nothing.
pub(super) fn container(response: ContainerInspectResponse) -> Option<Container> {
    let state = response.state.unwrap_or_default();
    let config = response.config.unwrap_or_default();
    let networks = response.network_settings.and_then(|settings| settings.networks).unwrap_or_default();
    let mut legs: Vec<_> = networks.into_iter().filter_map(|(network, endpoint)| leg(network, &endpoint)).collect();
    legs.sort_by(|a, b| a.network.cmp(&b.network));
    Some(Container {
        id: ContainerId(response.id?),
        name: response.name.unwrap_or_default().trim_start_matches('/').to_owned(),
        labels: config.labels.unwrap_or_default().into_iter().collect(),
        // Between a crash and the restart that a restart policy makes, Docker says running, and there is no process.
        running: state.running.unwrap_or_default() && state.pid.is_some_and(|pid| pid > 0),
        paused: state.paused.unwrap_or_default(),
        health: health(state.health.and_then(|health| health.status)),
        pid: state.pid.and_then(|pid| pid.try_into().ok()).unwrap_or_default(),
        stop_signal: config.stop_signal.as_deref().and_then(signal_number).unwrap_or(Signal::SIGTERM as i32),
        stop_timeout: stop_timeout(config.stop_timeout),
        legs,
        network_mode: response.host_config.and_then(|config| config.network_mode).unwrap_or_default(),
        started_at: state.started_at.unwrap_or_default(),
    })
}

/// As the container was made with `--stop-timeout`: seconds, and -1 means to wait for ever. 10 s is Docker's own.
fn stop_timeout(seconds: Option<i64>) -> Option<Duration> {
    u64::try_from(seconds.unwrap_or(10)).ok().map(Duration::from_secs)
}

/// A network's IPv4 address, else its IPv6 address. None yet (created, stopping) = no leg.
fn leg(network: String, endpoint: &EndpointSettings) -> Option<NetworkLeg> {
    let parse = |address: &Option<String>| address.as_deref().and_then(|address| address.parse::<IpAddr>().ok());
    let ipv4 = parse(&endpoint.ip_address).map(|address| (address, endpoint.ip_prefix_len));
    let (address, length) =
        ipv4.or_else(|| Some((parse(&endpoint.global_ipv6_address)?, endpoint.global_ipv6_prefix_len)))?;
    let length = length.and_then(|length| u8::try_from(length).ok()).filter(|length| *length > 0);
    let subnet = length.and_then(|length| IpNet::new(address, length).ok()).map(|net| net.trunc());
    Some(NetworkLeg { network, address, subnet, gateway: parse(&endpoint.gateway) })
}

fn health(status: Option<HealthStatusEnum>) -> Health {
    match status {
        None | Some(HealthStatusEnum::EMPTY | HealthStatusEnum::NONE) => Health::None,
        Some(HealthStatusEnum::STARTING) => Health::Starting,
        Some(HealthStatusEnum::HEALTHY) => Health::Healthy,
        Some(HealthStatusEnum::UNHEALTHY) => Health::Unhealthy,
    }
}

/// `SIGQUIT`, `quit`, `3`, `SIGRTMIN+3`: a signal as an image may name it. Real-time signals count from 34 to 64, as in
/// Docker.
pub(super) fn signal_number(text: &str) -> Option<i32> {
    let text = text.trim().to_ascii_uppercase();
    let name = text.strip_prefix("SIG").unwrap_or(&text);
    let number = match (name.parse(), name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Ok(number), _, _) => number,
        (_, Some(""), _) => 34,
        (_, _, Some("")) => 64,
        (_, Some(above), _) => 34_i32.checked_add(above.strip_prefix('+')?.parse().ok()?)?,
        (_, _, Some(below)) => 64_i32.checked_sub(below.strip_prefix('-')?.parse().ok()?)?,
        _ => Signal::from_str(&format!("SIG{name}")).ok()? as i32,
    };
    (1..=64).contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    #[test]
    fn a_running_container_is_described() {
        // Docker 20.10, shortened.
        let response = serde_json::from_str(
            r#"{"Id":"4ecd","Created":"2026-11-21T06:00:00.1Z","Name":"/web-1",
            "State":{"Status":"running","Running":true,"Paused":false,"Pid":4711,
            "StartedAt":"2026-11-21T06:00:01.5Z","Health":{"Status":"starting","FailingStreak":0,"Log":[]}},
            "HostConfig":{"NetworkMode":"shop_default"},
            "Config":{"Labels":{"steer.port":"80:8080"},"StopSignal":"SIGQUIT","StopTimeout":3},
            "NetworkSettings":{"Networks":{
                "shop_front":{"IPAddress":"","GlobalIPv6Address":"fd00::3"},
                "shop_gone":{"IPAddress":"","GlobalIPv6Address":""},
                "shop_default":{"IPAddress":"172.18.0.2","Gateway":"172.18.0.1","IPPrefixLen":16,"GlobalIPv6Address":"fd01::2"}}}}"#,
        );
        let leg = |network: &str, address: &str, subnet: Option<&str>| NetworkLeg {
            network: network.to_owned(),
            address: address.parse().unwrap(),
            subnet: subnet.map(|subnet| subnet.parse().unwrap()),
            gateway: subnet.map(|_| [172, 18, 0, 1].into()),
        };
        let expected = Container {
            id: ContainerId("4ecd".to_owned()),
            name: "web-1".to_owned(),
            labels: BTreeMap::from([("steer.port".to_owned(), "80:8080".to_owned())]),
            running: true,
            paused: false,
            health: Health::Starting,
            pid: 4711,
            stop_signal: 3,
            stop_timeout: Some(Duration::from_secs(3)),
            legs: vec![leg("shop_default", "172.18.0.2", Some("172.18.0.0/16")), leg("shop_front", "fd00::3", None)],
            network_mode: "shop_default".to_owned(),
            started_at: "2026-11-21T06:00:01.5Z".to_owned(),
        };
        assert_eq!(container(response.unwrap()), Some(expected));
    }

    #[test]
    fn what_is_missing_has_a_default() {
        let described = container(serde_json::from_str(r#"{"Id":"a"}"#).unwrap()).unwrap();
        assert_eq!(
            (described.running, described.pid, described.stop_signal, described.health),
            (false, 0, 15, Health::None)
        );
        assert_eq!(container(ContainerInspectResponse::default()), None);
    }

    #[test]
    fn a_container_that_waits_for_its_restart_does_not_run() {
        let state =
            r#"{"Status":"restarting","Running":true,"Restarting":true,"Pid":0,"StartedAt":"2026-11-21T06:00:01Z"}"#;
        let response = serde_json::from_str(&format!(r#"{{"Id":"a","State":{state}}}"#));
        assert!(!container(response.unwrap()).unwrap().running);
    }

    #[test]
    fn stop_timeouts_have_a_default_and_may_be_endless() {
        let seconds = |seconds| Some(Duration::from_secs(seconds));
        for (told, timeout) in [(None, seconds(10)), (Some(0), seconds(0)), (Some(90), seconds(90)), (Some(-1), None)] {
            assert_eq!(stop_timeout(told), timeout, "{told:?}");
        }
    }

    #[test]
    fn signals_are_read_as_images_name_them() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("TERM", Some(15)),
            ("sigquit", Some(3)),
            ("SIGWINCH", Some(28)),
            ("9", Some(9)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-1", Some(63)),
            ("SIGRTMAX", Some(64)),
            ("RTMIN+99", None),
            ("RTMIN-1", None),
            ("0", None),
            ("65", None),
            ("SIGNOTHING", None),
            ("", None),
        ] {
            assert_eq!(signal_number(text), number, "{text}");
        }
    }
}
