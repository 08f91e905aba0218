//! Which of a container's addresses its backend has.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{COMPOSE_PROJECT, NETWORK};
use crate::model::swarm::GATEWAY;
use crate::model::{Container, NetworkLeg, Problem, Spec};

/// The address to steer to: that in the network the labels name, else that in the only one there is.
pub fn network_leg(spec: &Spec, container: &Container) -> Result<IpAddr, Problem> {
    let problem = |label: Option<&str>, message: String| {
        Err(Problem { container: container.name.clone(), label: label.map(str::to_owned), message })
    };
    let legs: Vec<&NetworkLeg> = container.legs.iter().collect();
    let v4: Vec<&NetworkLeg> = legs.iter().copied().filter(|leg| leg.address.is_ipv4()).collect();
    if legs.is_empty() {
        return problem(None, without_network(container));
    }
    let Some(network) = &spec.network else {
        return match v4.as_slice() {
            [leg] => Ok(leg.address),
            [] => {
                problem(None, "has IPv6 addresses only, and IPv6 is not steered yet: give a network of it IPv4".into())
            }
            legs => problem(
                Some(NETWORK),
                format!("not set, and the container is in several networks, expected one of {}", list(legs)),
            ),
        };
    };
    match (named(network, container, &v4), named(network, container, &legs)) {
        (Some(leg), _) => Ok(leg.address),
        (None, Some(leg)) => problem(
            Some(NETWORK),
            format!("`{}` gives the container no IPv4 address, and IPv6 is not steered yet", leg.network),
        ),
        // Nobody has asked for it by a label: it is what every task has.
        (None, None) if network == GATEWAY && !container.labels.contains_key(NETWORK) => {
            problem(None, without_gateway(&legs))
        }
        (None, None) => {
            problem(Some(NETWORK), format!("the container is not in `{network}`, expected one of {}", list(&legs)))
        }
    }
}

/// Why a task must be left to the mesh: it has a network with addresses like this host's own network has. What it answers to clients
/// there goes into that network, and not back to them; the mesh asks in the name of an address of its own. A network that ends on this
/// host leads back to it.
pub fn answers_elsewhere(container: &Container, address: IpAddr, host_addresses: &BTreeSet<IpAddr>) -> Option<Problem> {
    let others = container.legs.iter().filter(|leg| leg.address != address);
    let mut inside = others.filter_map(|leg| {
        let subnet = leg.subnet?;
        let host = host_addresses.iter().find(|host| subnet.contains(*host) && leg.gateway != Some(**host))?;
        Some((leg, subnet, host))
    });
    let (leg, subnet, host) = inside.next()?;
    Some(Problem {
        container: container.name.clone(),
        label: None,
        message: format!(
            "its network `{}` ({subnet}) has addresses of this host's own network ({host}), whose clients it could not answer: \
             left to the routing mesh; give that network another subnet",
            leg.network
        ),
    })
}

/// The leg in a network called by its full name or, within a Compose project, by its short one.
fn named<'a>(network: &str, container: &Container, legs: &[&'a NetworkLeg]) -> Option<&'a NetworkLeg> {
    let long = container.labels.get(COMPOSE_PROJECT).map(|project| format!("{project}_{network}"));
    let find = |name: &str| legs.iter().copied().find(|leg| leg.network == name);
    find(network).or_else(|| find(&long?))
}

/// The networks' names, in order, each once.
fn list(legs: &[&NetworkLeg]) -> String {
    let mut names: Vec<String> = legs.iter().map(|leg| format!("`{}`", leg.network)).collect();
    names.sort_unstable();
    names.dedup();
    names.join(", ")
}

/// Why a task has no way to this host: Docker takes it away where another network has a way out (libnetwork, `needDefaultGW`).
fn without_gateway(legs: &[&NetworkLeg]) -> String {
    format!(
        "Docker took its leg in `{GATEWAY}` away when it joined a network with a way out of its own (it is in {}): left to the routing \
         mesh until it has left that one",
        list(legs)
    )
}

/// Why a container has no address of its own, and what to do about it.
fn without_network(container: &Container) -> String {
    let mode = container.network_mode.as_str();
    match mode {
        "host" => {
            "has no network of its own (network mode `host`): take `network_mode: host` away and publish its port \
                   with `steer.port` alone"
                .into()
        }
        "none" => "has no network (network mode `none`): put it in one".into(),
        _ => match mode.split_once(':') {
            Some(("container", other)) => format!(
                "has no network of its own (network mode `{mode}`): put the steer labels on container `{other}`, whose network it uses"
            ),
            _ => format!(
                "has no network address (network mode `{mode}`): connect it to one with `docker network connect`"
            ),
        },
    }
}
