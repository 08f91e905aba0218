//! What the kernel saw happen to backends, taken in.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context as _, Result};
use steer_common::addr::Port;
use steer_common::backend::BackendId;
use steer_common::edge::InitEntry;
use steer_common::flow::ForeignKey;
use steer_common::notice::{Notice, NoticeKind};

use super::Agent;
use super::takeover::Takeover;
use super::tracked::Tracked;
use crate::dataplane::notices::Notices;
use crate::dataplane::paths::Paths;
use crate::host::connections;
use crate::host::freezer::{Change, Freezers};
use crate::host::netns::{Identity, identity};
use crate::model::ContainerId;
use crate::model::desired::BackendKey;

/// What is known of the kernel's edges.
pub(super) struct Edges {
    notices: Notices,
    freezers: Freezers,
    /// The first process and the cgroup of each backend, as the kernel was told.
    inits: BTreeMap<BackendKey, Init>,
    /// Those of whom it could not be told all.
    untold: BTreeSet<BackendKey>,
}

/// What the kernel is told of a backend, to know what happens to it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Init {
    pid: u32,
    cgroup: Option<u64>,
    entry: InitEntry,
}

impl Edges {
    pub(super) fn open(paths: &Paths) -> Result<Self> {
        let freezers = Freezers::new().context("setting up inotify, for cgroups that are frozen")?;
        Ok(Self { notices: Notices::open(paths)?, freezers, inits: BTreeMap::new(), untold: BTreeSet::new() })
    }

    /// Waits until the kernel has something to tell. Cancel-safe: nothing is taken out.
    pub(super) async fn ready(&mut self) {
        tokio::select! {
            () = self.notices.ready() => {}
            () = self.freezers.changed() => {}
        }
    }
}

impl Agent {
    /// Takes in what the kernel has told so far; whether it has told anything.
    pub(super) fn take_notices(&mut self) -> bool {
        let mut looked_at = BTreeSet::new();
        let notices = self.edges.notices.take();
        for notice in &notices {
            self.on_notice(notice, &mut looked_at);
        }
        let frozen = self.take_frozen();
        frozen || !notices.is_empty()
    }

    /// Who was frozen by cgroup version 1, or goes on; whether anybody. Docker's own event says the same, later.
    fn take_frozen(&mut self) -> bool {
        let changes = self.edges.freezers.take();
        for Change { container, is_frozen } in &changes {
            // As good as an event: what Docker was asked before may say otherwise.
            self.questions.order.event(container);
            self.set_paused(container, *is_frozen);
        }
        !changes.is_empty()
    }

    /// It has ended, or is about to be watched anew.
    pub(super) fn forget_freezer(&mut self, id: &ContainerId) {
        self.edges.freezers.forget(id);
    }

    /// Watches for a container being frozen by version 1, whether or not it is in a group of version 2 too.
    pub(super) fn watch_freezer(&mut self, id: &ContainerId, pid: i32) {
        if let Err(error) = self.edges.freezers.watch(id, pid) {
            tracing::warn!(container = %id, %error, "its freezer is not watched: a pause is told by Docker alone");
        }
    }

    fn on_notice(&mut self, notice: &Notice, looked_at: &mut BTreeSet<ContainerId>) {
        let Some(kind) = NoticeKind::from_u32(notice.kind) else { return };
        if kind == NoticeKind::Held {
            return self.waiting.somebody_waits();
        }
        // An earlier agent's backend that is not known yet: when it is, its edges are read from the table.
        let Some(id) = self.container_of(notice.backend, notice.generation) else { return };
        let Some(tracked) = self.tracked.get_mut(&id) else { return };
        tracing::debug!(backend = tracked.name, ?kind, signal = notice.signal, "the kernel tells");
        if let Some(edge) = notice.edge() {
            return self.take_edge(&id, &edge);
        }
        if kind == NoticeKind::Refused {
            self.take_refusal(&id, Duration::from_nanos(notice.at_ns));
        }
        // Thousands of refused connections ask for the same look.
        if looked_at.insert(id.clone()) {
            self.look_at_listener(&id);
        }
    }

    fn look_at_listener(&mut self, id: &ContainerId) {
        if let Some(tracked) = self.tracked.get_mut(id)
            && tracked.by_listening()
        {
            tracked.look();
            self.settle(id);
        }
    }

    fn container_of(&self, backend: BackendId, generation: u32) -> Option<ContainerId> {
        let is_it = |key: &&BackendKey| {
            self.applied
                .backends
                .get(*key)
                .is_some_and(|applied| applied.id == backend && applied.entry.generation == generation)
        };
        self.applied.backends.keys().find(is_it).map(|key| key.container.clone())
    }

    /// Looks for edges that no notice told of: the ring was full. What the kernel could not be told is told it again.
    pub(super) fn look_at_edges(&mut self) {
        let known: Vec<_> = self.tracked.values().map(|tracked| (tracked.id.clone(), tracked.key())).collect();
        for (id, key) in known {
            let Some(applied) = self.applied.backends.get(&key) else { continue };
            let Ok(edge) = self.maps.edges(applied.id) else { continue };
            self.take_edge(&id, &edge);
        }
        for key in std::mem::take(&mut self.edges.untold) {
            self.edges.inits.remove(&key);
        }
    }

    /// Tells the kernel which processes are the first ones of backends, and which cgroups are theirs.
    pub(super) fn tell_inits(&mut self) {
        let wanted = self.wanted_inits();
        let before = std::mem::take(&mut self.edges.inits);
        let changed = |(key, init): &(&BackendKey, &Init)| before.get(key) != Some(init);
        for (key, init) in &before {
            if wanted.get(key) != Some(init) {
                // It may have ended, and the kernel has taken it out by itself; its id may be another backend's by now.
                let is_reused = wanted.values().any(|other| other.pid == init.pid);
                self.untell(init, is_reused);
                self.edges.untold.remove(key);
            }
        }
        for (key, init) in wanted.iter().filter(changed) {
            if let Err(error) = self.tell_init(init) {
                tracing::error!(
                    container = %key.container, pid = init.pid, error = format!("{error:#}"),
                    "what the kernel would see of it is seen by Docker's events only; the kernel is told again with the next resync"
                );
                self.edges.untold.insert(key.clone());
            }
            // Between Docker's answer and now it may have ended, and its id may be another's.
            if !self.tracked.values().any(|tracked| tracked.key() == *key && tracked.is_process(init.pid)) {
                self.untell(init, false);
            }
        }
        self.edges.inits = wanted;
    }

    fn wanted_inits(&self) -> BTreeMap<BackendKey, Init> {
        let init = |tracked: &Tracked| {
            let key = tracked.key();
            let pid = u32::try_from(tracked.pid).ok().filter(|pid| *pid > 0 && tracked.exited.is_none())?;
            let applied = self.applied.backends.get(&key)?;
            let entry = InitEntry {
                generation: applied.entry.generation,
                backend: applied.id,
                stop_signal: tracked.stop_signal as u16,
            };
            Some((key, Init { pid, cgroup: tracked.cgroup, entry }))
        };
        self.tracked.values().filter_map(init).collect()
    }

    fn tell_init(&mut self, init: &Init) -> Result<()> {
        let Init { pid, cgroup, entry } = init;
        let process = self.maps.inits.insert(*pid, *entry, 0);
        let group = cgroup.map_or(Ok(()), |cgroup| self.maps.cgroups.insert(cgroup, *entry, 0));
        process.context("telling the kernel which process is its first (map INITS)")?;
        group.context("telling the kernel which cgroup is its own (map CGROUPS)")
    }

    /// Takes back what the kernel was told, as far as it is there; `is_reused`: its process id is another backend's.
    fn untell(&mut self, Init { pid, cgroup, .. }: &Init, is_reused: bool) {
        if !is_reused {
            let _ = self.maps.inits.remove(pid);
        }
        if let Some(cgroup) = cgroup {
            let _ = self.maps.cgroups.remove(cgroup);
        }
    }

    /// What a new backend is connected to already came by Docker's own port mapping, and stays with Docker: the kernel must not
    /// take it for flows that it has lost. Where another version of steer was, most of it is that one's, which sockets remember; those
    /// whose handshake is under way do not yet, and Docker has none at frontends that are steered.
    pub(super) fn mark_foreign(&mut self, key: &BackendKey, backend: BackendId, generation: u32) {
        let Some(tracked) = self.tracked.values().find(|tracked| tracked.key() == *key) else { return };
        for port in &tracked.spec.ports {
            let is_takeover = self.takeover != Takeover::Done;
            let clients = match connections::clients(&tracked.netns, port.target, !is_takeover) {
                Ok(clients) => clients,
                Err(error) => {
                    tracing::warn!(backend = tracked.name, %error, "listing its connections failed");
                    continue;
                }
            };
            for (client, client_port) in clients {
                let (client, client_port) = (client.into(), Port::new(client_port));
                let key = ForeignKey { client, client_port, backend, generation };
                if let Err(error) = self.maps.foreign.insert(key, 1, 0) {
                    tracing::warn!(backend = tracked.name, %error, "writing FOREIGN failed");
                }
            }
        }
    }
}

impl Tracked {
    /// Whether a process lives in its namespace.
    fn is_process(&self, pid: u32) -> bool {
        let of_process: Option<Identity> = identity(format!("/proc/{pid}/ns/net").as_ref());
        of_process.is_some() && of_process == self.netns.identity()
    }
}
