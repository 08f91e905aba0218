//! What Docker knows of the swarm that it is part of.
//!
//! A manager tells services and tasks. A worker refuses both, but knows the networks of the tasks that run on it, and with them
//! (`network inspect --verbose`) which services are there and what they publish.

mod read;

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use serde::de::DeserializeOwned;
use tokio::time::timeout;

use super::{Docker, Told};
use crate::model::swarm::{GATEWAY, Gateway, Swarm};

/// After this, a manager counts as one that cannot answer: it may have lost its quorum, and waits for another one.
const LIMIT: Duration = Duration::from_secs(5);

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

    /// What its swarm says. `role`: the part it had when it was asked last, if that is to be believed; else that is asked first, which
    /// costs dockerd more than all the rest.
    pub async fn swarm(&self, role: Option<Role>) -> Told {
        let asked = Instant::now();
        if let Some(role) = role
            && let Ok(swarm) = self.as_role(&role).await
        {
            return Told { asked, role: Some(role), swarm: Ok(swarm) };
        }
        match self.role().await {
            Ok(role) => Told { asked, swarm: self.as_role(&role).await, role: Some(role) },
            Err(error) => Told { asked, role: None, swarm: Err(error) },
        }
    }

    async fn as_role(&self, role: &Role) -> Result<Option<Swarm>> {
        match role {
            Role::Outside => Ok(None),
            Role::Manager(node) => {
                // Services first: who is in the second answer has its service in the first, or that is gone.
                let services = self.ask("/services").await?;
                let filter = format!("%7B%22node%22%3A%5B%22{node}%22%5D%7D");
                let tasks = self.ask(&format!("/tasks?filters={filter}")).await?;
                Ok(Some(read::manager(services, tasks)))
            }
            Role::Worker => Ok(Some(self.worker().await?)),
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
        let filter = format!("%7B%22name%22%3A%5B%22{GATEWAY}%22%5D%7D");
        let networks: Vec<read::Network> = self.ask(&format!("/networks?filters={filter}")).await?;
        let Some(found) = networks.into_iter().find(|network| network.name == GATEWAY) else {
            return Ok(Gateway::new());
        };
        Ok(read::gateway(self.ask(&format!("/networks/{}", found.id)).await?))
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
