//! What Docker knows of the swarm that it is part of.
//!
//! A manager tells services and tasks. A worker refuses both, but knows the networks of the tasks that run on it, and with them
//! (`network inspect --verbose`) which services are there and what they publish.

mod read;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use futures_util::{StreamExt as _, stream};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{Docker, Told};
use crate::docker::http::percent_encoded;
use crate::model::swarm::{GATEWAY, Gateway, Swarm, Untold};

/// After this, a manager counts as one that cannot answer: it may have lost its quorum, and waits for another one.
const LIMIT: Duration = Duration::from_secs(10);

/// The same for what is asked about virtual addresses: whoever waits for services and tasks waits for that too.
const SOON: Duration = Duration::from_secs(3);

/// Networks asked about at once.
const AT_ONCE: usize = 4;

/// What part a Docker has in a swarm.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Role {
    /// It is in none.
    Outside,
    /// It knows everything; the id of its node.
    Manager(String),
    Worker,
}

impl Docker {
    /// What part it has in a swarm now: it may join or leave one, be promoted or demoted.
    async fn role(&self) -> Result<Role> {
        Ok(read::role(self.ask("/info").await?))
    }

    /// What its swarm says, and of the virtual addresses in these networks. `role`: the part it had when it was asked last, if that is
    /// to be believed; else that is asked first, which costs dockerd more than all the rest.
    pub async fn swarm(&self, role: Option<Role>, networks: &BTreeSet<String>) -> Told {
        let asked = Instant::now();
        if let Some(role) = role
            && let Ok(swarm) = self.as_role(&role, networks).await
        {
            return Told { asked, role: Some(role), swarm: Ok(swarm) };
        }
        match self.role().await {
            Ok(role) => Told { asked, swarm: self.as_role(&role, networks).await, role: Some(role) },
            Err(error) => Told { asked, role: None, swarm: Err(error) },
        }
    }

    async fn as_role(&self, role: &Role, networks: &BTreeSet<String>) -> Result<Option<Swarm>> {
        let (mut swarm, addresses) = match role {
            Role::Outside => return Ok(None),
            Role::Manager(node) => {
                // Services first: who is in the second answer has its service in the first, or that is gone.
                let services: Vec<read::ServiceAnswer> = self.ask("/services").await?;
                let addresses = read::addresses(&services);
                let own: Vec<read::TaskAnswer> = self.ask(&tasks(&[("node", &[node.as_str()])])).await?;
                let here = read::services_of(&own);
                let mut swarm = read::manager(services, own);
                swarm.all_here = self.all_here(&swarm, node, &here).await;
                (swarm, Some(addresses))
            }
            Role::Worker => (self.worker().await?, None),
        };
        self.add_vips(&mut swarm, networks, addresses.as_ref()).await;
        Ok(Some(swarm))
    }

    /// Adds what is told of virtual addresses in these networks. Whatever is not told of them is Swarm's own matter still, and costs
    /// nothing of what is known of services and tasks.
    async fn add_vips(&self, swarm: &mut Swarm, networks: &BTreeSet<String>, now: Option<&read::Addresses>) {
        // No virtual address in the mesh's network is of any use to a task.
        let is_asked = |name: &&String| *name != GATEWAY && swarm.ingress.as_ref() != Some(*name);
        let asked: Vec<String> = networks.iter().filter(is_asked).cloned().collect();
        let ask = |name: String| async move {
            let what = || format!("asking for the virtual addresses in network {name} failed");
            let told = soon(self.overlay(&name)).await.with_context(what);
            told.map_err(|error| Untold { network: Some(name), why: format!("{error:#}") })
        };
        let told: Vec<_> = stream::iter(asked).map(ask).buffered(AT_ONCE).collect().await;
        for found in told {
            match found {
                Ok(Some(found)) if found.is_ingress => swarm.ingress = Some(found.name),
                Ok(Some(found)) => swarm.vips.extend(read::vips(found, now)),
                Ok(None) => {}
                Err(untold) => swarm.untold.push(untold),
            }
        }
        if swarm.is_of_manager() {
            swarm.keep_vips_of_services();
            self.add_running(swarm).await;
        }
    }

    /// Adds which of the tasks behind the virtual addresses run.
    async fn add_running(&self, swarm: &mut Swarm) {
        let services: BTreeSet<&str> = swarm.vips.iter().map(|vip| vip.service.as_str()).collect();
        if services.is_empty() {
            return;
        }
        let services: Vec<&str> = services.into_iter().collect();
        let running = soon(self.tasks_of(&services, &["running"])).await;
        match running.context("asking which tasks stand behind virtual addresses failed") {
            Ok(running) => swarm.running = Some(read::running(running)),
            Err(error) => {
                // Without that, an address would lead to tasks that are starting, and to those that have ended.
                swarm.vips.clear();
                swarm.untold.push(Untold { network: None, why: format!("{error:#}") });
            }
        }
    }

    /// The published services with tasks `here` of which none is on another node.
    async fn all_here(&self, swarm: &Swarm, node: &str, here: &BTreeSet<String>) -> BTreeSet<String> {
        let is_of_interest = |id: &&str| here.contains(*id);
        let published = swarm.services.iter().filter(|service| !service.ports.is_empty());
        let ids: Vec<&str> = published.filter_map(|service| service.id.as_deref()).filter(is_of_interest).collect();
        if ids.is_empty() {
            return BTreeSet::new();
        }
        match self.tasks_of(&ids, &["running", "ready", "accepted"]).await {
            Ok(everywhere) => read::all_here(&swarm.services, everywhere, node),
            Err(error) => {
                // The mesh may have somebody, for all that is known.
                tracing::debug!(error = format!("{error:#}"), "asking for tasks on other nodes failed");
                BTreeSet::new()
            }
        }
    }

    /// The tasks of services, by their ids or names, that are in one of these desired states.
    async fn tasks_of(&self, services: &[&str], desired: &[&str]) -> Result<Vec<read::TaskAnswer>> {
        let question = |services: &[&str]| tasks(&[("service", services), ("desired-state", desired)]);
        let error = match self.ask(&question(services)).await {
            Ok(told) => return Ok(told),
            Err(error) => error,
        };
        // Docker tells nothing of all of them where one went meanwhile: once more, without that one.
        tracing::debug!(error = format!("{error:#}"), "asking for the tasks of services failed");
        let there: Vec<read::ServiceAnswer> = self.ask("/services").await?;
        let is_there = |name: &&str| there.iter().any(|service| service.is_called(name));
        let left: Vec<&str> = services.iter().copied().filter(is_there).collect();
        match left.as_slice() {
            [] => Ok(Vec::new()),
            _ if left.len() == services.len() => Err(error),
            left => self.ask(&question(left)).await,
        }
    }

    /// A network of the swarm, with the services in it unless it is the mesh's; `None` = it is of this host alone, or gone.
    async fn overlay(&self, network: &str) -> Result<Option<read::Network>> {
        let filter = encoded(&[("name", &[network]), ("scope", &["swarm"])]);
        let found: Vec<read::Network> = self.ask(&format!("/networks?filters={filter}")).await?;
        match found.into_iter().find(|found| found.name == network) {
            Some(found) if !found.is_ingress => {
                Ok(Some(self.ask(&format!("/networks/{}?verbose=true", found.id)).await?))
            }
            found => Ok(found),
        }
    }

    async fn worker(&self) -> Result<Swarm> {
        // The network of the mesh, whatever it is called.
        let networks: Vec<read::Network> = self.ask("/networks").await?;
        let Some(ingress) = networks.into_iter().find(|network| network.is_ingress) else {
            return Ok(Swarm::default());
        };
        let ingress: read::Network = self.ask(&format!("/networks/{}?verbose=true", ingress.id)).await?;
        Ok(read::worker(ingress))
    }

    /// Where this host reaches the tasks; empty = there is no such network, so no task either.
    pub async fn gateway(&self) -> Result<Gateway> {
        // Not by its name alone: Docker answers 404 where there is none, which is no failure.
        let filter = encoded(&[("name", &[GATEWAY])]);
        let networks: Vec<read::Network> = self.ask(&format!("/networks?filters={filter}")).await?;
        let found = networks.into_iter().find(|network| network.name == GATEWAY).map(|network| network.id);
        self.remember_gateway(found.clone());
        let Some(id) = found else { return Ok(Gateway::new()) };
        Ok(read::gateway(self.ask(&format!("/networks/{id}")).await?))
    }

    /// The same, of the network that was found last; `None` = none was, or it is gone.
    pub(super) async fn gateway_of_last_time(&self) -> Option<Gateway> {
        let id = self.remembered_gateway()?;
        match self.ask(&format!("/networks/{id}")).await {
            Ok(network) => Some(read::gateway(network)),
            Err(error) => {
                // It comes back with another id when a swarm is left and joined.
                tracing::debug!(error = format!("{error:#}"), "the network {GATEWAY} is looked for anew");
                self.remember_gateway(None);
                None
            }
        }
    }

    async fn ask<T: DeserializeOwned>(&self, path: &str) -> Result<T> {
        let api = self.session().await?.api;
        let body = timeout(LIMIT, self.host.get(&format!("/v{api}{path}"))).await;
        let body =
            body.with_context(|| format!("Docker at {} did not answer GET {path} within {LIMIT:?}", self.host))??;
        serde_json::from_slice(&body)
            .with_context(|| format!("Docker at {} answered GET {path} otherwise than expected", self.host))
    }
}

async fn soon<T>(answer: impl Future<Output = Result<T>>) -> Result<T> {
    timeout(SOON, answer).await.with_context(|| format!("no answer within {SOON:?}"))?
}

fn tasks(filters: &[(&str, &[&str])]) -> String {
    format!("/tasks?filters={}", encoded(filters))
}

/// Filters as Docker takes them in a query: JSON, percent-encoded.
fn encoded(filters: &[(&str, &[&str])]) -> String {
    let filters: BTreeMap<_, _> = filters.iter().copied().collect();
    // A map of strings to lists of strings has no form that could not be written.
    percent_encoded(&serde_json::to_string(&filters).unwrap_or_default())
}
