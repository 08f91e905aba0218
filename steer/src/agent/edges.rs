//! What the kernel saw happen to backends, taken in; and the clients that wait for a backend, sent on.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use anyhow::Result;
use steer_common::addr::Port;
use steer_common::backend::{BackendId, EdgeEntry, EdgeKind, InitEntry, Notice, NoticeKind};
use steer_common::flow::ForeignKey;
use tokio::io::unix::AsyncFd;

use super::Agent;
use super::tracked::{Stop, Tracked};
use crate::dataplane::notices::{self, Notices};
use crate::dataplane::paths::Paths;
use crate::dataplane::replay;
use crate::host::connections;
use crate::host::netns::{Identity, identity};
use crate::model::ContainerId;
use crate::model::desired::BackendKey;

/// How long after a backend got ready clients are looked for that wait: one may have asked in the very moment.
const REPLAY_FOR: Duration = Duration::from_millis(100);

/// What is known of the kernel's edges.
pub(super) struct Edges {
    notices: AsyncFd<Notices>,
    /// The first process of each backend, as the kernel was told.
    inits: BTreeMap<BackendKey, (u32, InitEntry)>,
    /// Clients that wait are looked for until then.
    replay_until: Option<Instant>,
    /// Stop signals that the kernel told of before Docker did.
    pub(super) kernel_first: u64,
    /// Stop signals that Docker told of, and the kernel had not.
    pub(super) event_first: u64,
    /// How long after the kernel Docker told, in microseconds.
    pub(super) lateness: Vec<u64>,
}

/// How many of the last stops are kept to tell how late Docker's events came.
const KEPT: usize = 4096;

impl Edges {
    pub(super) fn open(paths: &Paths) -> Result<Self> {
        Ok(Self {
            notices: notices::open(paths)?,
            inits: BTreeMap::new(),
            replay_until: None,
            kernel_first: 0,
            event_first: 0,
            lateness: Vec::new(),
        })
    }

    /// Docker told of a stop signal so long after the kernel.
    pub(super) fn late(&mut self, lateness: Duration) {
        self.kernel_first += 1;
        if self.lateness.len() == KEPT {
            self.lateness.remove(0);
        }
        self.lateness.push(lateness.as_micros() as u64);
    }

    /// Waits for something the kernel has to tell. Cancel-safe: nothing is taken out before it is handed over.
    pub(super) async fn next(&mut self) -> Vec<Notice> {
        notices::next(&mut self.notices).await
    }
}

impl Agent {
    /// Takes in what the kernel told.
    pub(super) fn on_notices(&mut self, notices: Vec<Notice>) {
        for notice in notices {
            self.on_notice(&notice);
        }
    }

    fn on_notice(&mut self, notice: &Notice) {
        let Some(kind) = NoticeKind::from_u32(notice.kind) else { return };
        let Some(id) = self.container_of(notice.backend, notice.generation) else { return };
        let Some(tracked) = self.tracked.get_mut(&id) else { return };
        tracing::debug!(backend = tracked.name, ?kind, signal = notice.signal, "the kernel tells");
        let edge = |kind: EdgeKind| EdgeEntry {
            count: notice.edges.into(),
            at_ns: notice.at_ns,
            kind: kind as u32,
            signal: notice.signal.into(),
        };
        match kind {
            NoticeKind::Stop => tracked.take_in(&edge(EdgeKind::Stop), tracked.edges),
            NoticeKind::Kill => tracked.take_in(&edge(EdgeKind::Kill), tracked.edges),
            NoticeKind::Exit => tracked.take_in(&edge(EdgeKind::Exit), tracked.edges),
            NoticeKind::NotListening | NoticeKind::Listening | NoticeKind::Refused => {
                if tracked.by_listening() {
                    tracked.look();
                }
            }
        }
        self.settle(&id);
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

    /// Looks for edges that no notice told of: the ring was full.
    pub(super) fn look_at_edges(&mut self) {
        let known: Vec<_> = self.tracked.values().map(|tracked| (tracked.id.clone(), tracked.key())).collect();
        for (id, key) in known {
            let Some(applied) = self.applied.backends.get(&key) else { continue };
            let Ok(edge) = self.maps.edges(applied.id) else { continue };
            if let Some(tracked) = self.tracked.get_mut(&id) {
                tracked.take_in(&edge, tracked.edges);
            }
            self.settle(&id);
        }
    }

    /// Tells the kernel which processes are the first ones of backends.
    pub(super) fn tell_inits(&mut self) {
        let mut wanted = BTreeMap::new();
        for tracked in self.tracked.values() {
            let key = tracked.key();
            if let (Ok(pid @ 1..), Some(applied), false) =
                (u32::try_from(tracked.pid), self.applied.backends.get(&key), tracked.exited)
            {
                let init = InitEntry {
                    generation: applied.entry.generation,
                    backend: applied.id,
                    stop_signal: tracked.stop_signal as u16,
                };
                wanted.insert(key, (pid, init));
            }
        }
        let stale: Vec<_> = self
            .edges
            .inits
            .iter()
            .filter(|(key, told)| wanted.get(*key) != Some(told))
            .map(|(_, (pid, _))| *pid)
            .collect();
        for pid in stale {
            // It may have ended, and the kernel has taken it out by itself.
            let _ = self.maps.inits.remove(&pid);
        }
        for (key, (pid, init)) in &wanted {
            if self.edges.inits.get(key) == Some(&(*pid, *init)) {
                continue;
            }
            if let Err(error) = self.maps.inits.insert(*pid, *init, 0) {
                tracing::error!(%error, pid, "writing INITS failed: its stop will be seen by Docker's event only");
            }
            // Between Docker's answer and now it may have ended, and its id may be another's.
            let is_still = self.tracked.values().any(|tracked| tracked.key() == *key && tracked.is_process(*pid));
            if !is_still {
                let _ = self.maps.inits.remove(pid);
            }
        }
        self.edges.inits = wanted;
    }

    /// What a new backend is connected to already came by Docker's own port mapping, and stays with Docker: the kernel must not
    /// take it for flows that it has lost.
    pub(super) fn mark_foreign(&mut self, key: &BackendKey, backend: BackendId, generation: u32) {
        let Some(tracked) = self.tracked.values().find(|tracked| tracked.key() == *key) else { return };
        for port in &tracked.spec.ports {
            let clients = match connections::clients(&tracked.netns, port.target) {
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

    /// Clients that wait are to be sent on.
    pub(super) fn replay_soon(&mut self) {
        self.edges.replay_until = Some(Instant::now() + REPLAY_FOR);
    }

    /// Whether clients that wait are still being looked for.
    pub(super) fn is_replaying(&self) -> bool {
        self.edges.replay_until.is_some()
    }

    /// Sends on the clients that wait: their SYNs come in once more, and find the backend that is ready now.
    pub(super) fn replay(&mut self) {
        let Some(until) = self.edges.replay_until else { return };
        match replay::replay(&mut self.bpf, &mut self.maps) {
            Ok(0) => {}
            Ok(sent) => tracing::debug!(clients = sent, "clients that waited are sent on"),
            Err(error) => tracing::warn!(
                error = format!("{error:#}"),
                "sending on clients that wait failed: they try again by themselves"
            ),
        }
        if Instant::now() >= until {
            self.edges.replay_until = None;
        }
    }
}

impl Tracked {
    /// Takes in what the kernel saw, if it is more than the edges known so far.
    pub(super) fn take_in(&mut self, edge: &EdgeEntry, known: u32) {
        let count = edge.count as u32;
        if count.wrapping_sub(known) as i32 <= 0 {
            return;
        }
        self.edges = count;
        let at = Duration::from_nanos(edge.at_ns);
        match EdgeKind::from_u32(edge.kind) {
            Some(EdgeKind::Stop | EdgeKind::Kill) => {
                self.stopping = Some(Stop { signal: edge.signal as i32, at, by_event: false });
            }
            Some(EdgeKind::Exit) => self.exited = true,
            None => {
                tracing::warn!(backend = self.name, kind = edge.kind, "the kernel tells of an edge that is not known")
            }
        }
    }

    /// Whether a process lives in its namespace.
    fn is_process(&self, pid: u32) -> bool {
        let of_process: Option<Identity> = identity(format!("/proc/{pid}/ns/net").as_ref());
        of_process.is_some() && of_process == self.netns.identity()
    }
}
