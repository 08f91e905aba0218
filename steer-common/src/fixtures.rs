//! The tables as hash maps, and builders, for tests.

use std::boxed::Box;
use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::ops::{ControlFlow, Deref};
use std::vec::Vec;

use crate::addr::{Addr, Port, TCP};
use crate::backend::{BackendEntry, BackendId};
use crate::endpoint::{EndpointEntry, EndpointKey};
use crate::flow::{FlowEntry, FlowKey, ForeignKey, SocketEntry};
use crate::limits::MAX_REFUSALS;
use crate::notice::NoticeKind;
use crate::open::NewFlow;
use crate::pick::Fit;
use crate::reverse::reverse;
use crate::service::{AllowKey, Balance, FrontendEntry, FrontendKey, NoneSince, ServiceEntry, ServiceId, ServiceState};
use crate::slot::SlotTable;
use crate::state::BackendState;
use crate::steer::{Nanos, Segment, steer};
use crate::tables::{Connection, Listening, Remembers, Table, Tables};
use crate::tcp::TcpFlags;
use crate::verdict::{Counter, Forward, Reply, Returned, Verdict};
use crate::vip::VipMember;

/// Everything the kernel holds, in memory.
#[derive(Default)]
pub(crate) struct World {
    pub frontends: BTreeMap<FrontendKey, FrontendEntry>,
    pub services: BTreeMap<ServiceId, ServiceEntry>,
    pub service_states: RefCell<BTreeMap<ServiceId, ServiceState>>,
    pub allowed: Vec<AllowKey>,
    pub slots: BTreeMap<ServiceId, Box<SlotTable>>,
    pub backends: BTreeMap<BackendId, BackendEntry>,
    pub states: BTreeMap<BackendId, BackendState>,
    pub flows: RefCell<BTreeMap<FlowKey, FlowEntry>>,
    pub pending: RefCell<BTreeMap<FlowKey, FlowEntry>>,
    pub live: RefCell<BTreeMap<BackendId, i64>>,
    pub steered: RefCell<BTreeMap<BackendId, u64>>,
    pub resteered: RefCell<BTreeMap<BackendId, u64>>,
    /// Listening decides about these.
    pub if_listening: BTreeSet<BackendId>,
    /// Nobody listens there.
    pub deaf: BTreeSet<BackendId>,
    /// Tasks behind virtual addresses, by the id of their namespace, with a port that they do not listen on.
    pub deaf_tasks: BTreeSet<(i32, Port)>,
    /// Nobody can see whether somebody listens there.
    pub unseen: BTreeSet<BackendId>,
    /// Connections that backends have.
    pub sockets: BTreeSet<(BackendId, Addr, Port)>,
    /// Those of which a side has closed its half.
    pub half_closed: BTreeSet<(BackendId, Addr, Port)>,
    pub foreign: BTreeSet<ForeignKey>,
    /// What the socket of such a connection remembers.
    pub remembers: Option<Remembers>,
    /// What the socket that sends the next packet remembers.
    pub remembered: RefCell<Option<SocketEntry>>,
    pub search_exhausted: bool,
    /// The agent has not heard from the swarm for long.
    pub lease_over: bool,
    pub notices: RefCell<Vec<(NoticeKind, BackendId)>>,
    pub traced: RefCell<Vec<(BackendId, Fit)>>,
    pub held: RefCell<BTreeMap<FlowKey, FlowEntry>>,
    /// A table that takes no new entries.
    pub full: Option<Table>,
}

/// The service of most tests.
pub(crate) const WEB: ServiceId = ServiceId(1);
/// Its frontend, `10.0.0.1:9000`, and a second address of the same host.
pub(crate) const HOST: &str = "10.0.0.1";
pub(crate) const HOST2: &str = "10.0.0.9";
pub(crate) const CLIENT: &str = "192.0.2.7";

pub(crate) fn addr(ip: &str) -> Addr {
    ip.parse::<Ipv4Addr>().unwrap().into()
}

/// The address of backend `id`: `172.17.0.<id>`.
pub(crate) fn backend_addr(id: u16) -> Addr {
    Ipv4Addr::new(172, 17, 0, id as u8).into()
}

impl World {
    /// Service `web` on two addresses of the host, port 9000 to 5000, with these backends, all ready.
    pub(crate) fn with_backends(ids: &[u16]) -> Self {
        let mut world = Self::default();
        for host in [HOST, HOST2] {
            let key = FrontendKey::new(addr(host), Port::new(9000), TCP);
            world.frontends.insert(key, FrontendEntry { service: WEB, port_index: 0, flags: 0 });
        }
        world.services.insert(WEB, ServiceEntry::default());
        for &id in ids {
            let mut entry = BackendEntry {
                addr: backend_addr(id),
                generation: 1,
                ifindex: 100 + u32::from(id),
                service: WEB,
                weight: 1,
                ..BackendEntry::default()
            };
            entry.targets[0] = Port::new(5000);
            world.backends.insert(BackendId(id), entry);
            world.states.insert(BackendId(id), BackendState::Ready);
        }
        world.deal(ids);
        world
    }

    /// Sets the slot table, one slot per id.
    pub(crate) fn deal(&mut self, ids: &[u16]) {
        let mut table = Box::new(SlotTable::EMPTY);
        for (i, &id) in ids.iter().enumerate() {
            table.slots[i] = BackendId(id);
            table.members[i] = BackendId(id);
        }
        table.len = ids.len() as u32;
        table.members_len = ids.len() as u32;
        self.slots.insert(WEB, table);
    }

    pub(crate) fn balance(&mut self, balance: Balance) {
        self.services.get_mut(&WEB).unwrap().balance = balance as u8;
    }

    pub(crate) fn set(&mut self, id: u16, state: BackendState) {
        self.states.insert(BackendId(id), state);
    }

    /// The id gets a new tenant: same number, next generation.
    pub(crate) fn replace(&mut self, id: u16) {
        self.backends.get_mut(&BackendId(id)).unwrap().generation += 1;
        self.live.borrow_mut().remove(&BackendId(id));
    }

    pub(crate) fn remove(&mut self, id: u16) {
        self.backends.remove(&BackendId(id));
        self.states.remove(&BackendId(id));
    }

    /// The kernel has seen the end of its process, and nobody else yet.
    pub(crate) fn end(&mut self, id: u16) {
        self.backends.get_mut(&BackendId(id)).unwrap().flags |= BackendEntry::ENDED;
        self.states.insert(BackendId(id), BackendState::Gone);
    }

    pub(crate) fn live_of(&self, id: u16) -> i64 {
        self.live.borrow().get(&BackendId(id)).copied().unwrap_or(0)
    }

    fn id_of(&self, backend: &BackendEntry) -> BackendId {
        let found = self.backends.iter().find(|(_, entry)| entry.addr == backend.addr);
        found.map_or(BackendId::NONE, |(&id, _)| id)
    }

    fn state(&self, id: ServiceId) -> ServiceState {
        self.service_states.borrow().get(&id).copied().unwrap_or_default()
    }

    fn table(&self, table: Table) -> &RefCell<BTreeMap<FlowKey, FlowEntry>> {
        match table {
            Table::Flows => &self.flows,
            Table::Pending => &self.pending,
        }
    }
}

/// A flow entry and where it lies. Shows what was last written through it, as the kernel's entries in place do.
pub(crate) struct Looked<'a> {
    table: &'a RefCell<BTreeMap<FlowKey, FlowEntry>>,
    key: FlowKey,
    entry: FlowEntry,
    marked: OnceCell<FlowEntry>,
}

impl Deref for Looked<'_> {
    type Target = FlowEntry;
    fn deref(&self) -> &FlowEntry {
        self.marked.get().unwrap_or(&self.entry)
    }
}

impl Tables for World {
    type Flow<'a> = Looked<'a>;

    fn with_work(&self, work: impl FnOnce(&mut NewFlow)) -> Verdict {
        let mut new = NewFlow::UNUSED;
        work(&mut new);
        new.verdict()
    }
    fn each(&self, n: u32, look: impl FnMut(u32) -> ControlFlow<()>) {
        // The same in words; whether it broke is nobody's matter here.
        let _: ControlFlow<()> = (0..n).try_for_each(look);
    }

    fn frontend(&self, key: &FrontendKey) -> Option<FrontendEntry> {
        self.frontends.get(key).copied()
    }
    fn service(&self, id: ServiceId) -> Option<&ServiceEntry> {
        self.services.get(&id)
    }
    fn is_allowed(&self, key: &AllowKey) -> bool {
        self.allowed.contains(key)
    }
    fn slots(&self, id: ServiceId) -> Option<&SlotTable> {
        self.slots.get(&id).map(|table| &**table)
    }
    fn backend(&self, id: BackendId) -> Option<&BackendEntry> {
        self.backends.get(&id)
    }
    fn backend_state(&self, id: BackendId) -> (BackendState, bool) {
        (self.states.get(&id).copied().unwrap_or_default(), self.if_listening.contains(&id))
    }
    fn listens(&self, backend: &BackendEntry, _: Port) -> Listening {
        let id = self.id_of(backend);
        if self.unseen.contains(&id) {
            Listening::Unknown
        } else if self.deaf.contains(&id) {
            Listening::No
        } else {
            Listening::Yes
        }
    }
    fn task_listens(&self, task: &VipMember, port: Port) -> Listening {
        match task.netns_id {
            VipMember::UNSEEN => Listening::Unknown,
            id if self.deaf_tasks.contains(&(id, port)) => Listening::No,
            _ => Listening::Yes,
        }
    }
    fn connection(&self, backend: &BackendEntry, _: Port, client: Addr, client_port: Port) -> Connection {
        let socket = (self.id_of(backend), client, client_port);
        if self.sockets.contains(&socket) {
            Connection::Open
        } else if self.half_closed.contains(&socket) {
            Connection::Closing
        } else {
            Connection::None
        }
    }
    fn is_left(&self, backend: &BackendEntry, target: Port, client: Addr, client_port: Port) -> bool {
        self.connection(backend, target, client, client_port) != Connection::None
    }
    fn remembers(&self, _: &BackendEntry, _: Port, _: Addr, _: Port) -> Remembers {
        self.remembers.unwrap_or(Remembers::No)
    }
    fn remembered(&self) -> Option<SocketEntry> {
        *self.remembered.borrow()
    }
    fn is_foreign(&self, key: &ForeignKey) -> bool {
        self.foreign.contains(key)
    }
    fn may_search(&self, _: u32) -> bool {
        !self.search_exhausted
    }
    fn is_lease_fresh(&self, _: u32) -> bool {
        !self.lease_over
    }
    fn notice(&self, kind: NoticeKind, id: BackendId, _: &BackendEntry) {
        self.notices.borrow_mut().push((kind, id));
    }
    fn trace(&self, id: BackendId, fit: Fit) {
        self.traced.borrow_mut().push((id, fit));
    }
    fn live(&self, id: BackendId) -> u64 {
        self.live.borrow().get(&id).map_or(0, |&live| live as u64)
    }
    fn endpoint(&self, key: &EndpointKey) -> Option<EndpointEntry> {
        let (&id, backend) = self.backends.iter().find(|(_, b)| b.addr == key.addr && b.ifindex == key.ifindex)?;
        let ports = (0..8).filter(|&i| backend.targets[i] == key.port && key.port != Port::NONE);
        let ports = ports.fold(0, |bits, i| bits | 1 << i);
        (ports != 0).then_some(EndpointEntry {
            generation: backend.generation,
            backend: id,
            service: backend.service,
            ports,
            pad: [0; 3],
        })
    }
    fn turn(&self, id: ServiceId) -> u32 {
        let mut states = self.service_states.borrow_mut();
        let state = states.entry(id).or_default();
        state.cursor += 1;
        (state.cursor - 1) as u32
    }
    fn extra_lanes(&self, id: ServiceId) -> u32 {
        self.state(id).extra_lanes
    }
    fn raise_extra_lanes(&self, id: ServiceId, lanes: u32) {
        self.service_states.borrow_mut().entry(id).or_default().extra_lanes = lanes;
    }
    fn none_since(&self, id: ServiceId, port_index: u8) -> NoneSince {
        self.state(id).none_since[usize::from(port_index)]
    }
    fn set_none_since(&self, id: ServiceId, port_index: u8, since: NoneSince) {
        self.service_states.borrow_mut().entry(id).or_default().none_since[usize::from(port_index)] = since;
    }
    fn flow(&self, table: Table, key: &FlowKey) -> Option<Looked<'_>> {
        let table = self.table(table);
        let entry = table.borrow().get(key).copied()?;
        Some(Looked { table, key: *key, entry, marked: OnceCell::new() })
    }
    fn put_opening(&self, key: &FlowKey, entry: &FlowEntry) -> bool {
        self.put_flow(Table::Pending, key, entry)
    }
    fn hold(&self, key: &FlowKey, entry: &FlowEntry) {
        self.held.borrow_mut().insert(*key, *entry);
    }
    fn hold_again(&self, key: &FlowKey) -> bool {
        let mut pending = self.pending.borrow_mut();
        let mut held = self.held.borrow_mut();
        let Some(mut entry) = pending.get(key).copied() else { return false };
        let before = held.get(key).filter(|before| before.isn == entry.isn).map_or(0, |before| before.refusals);
        if before >= MAX_REFUSALS {
            return false;
        }
        entry.refusals = before + 1;
        held.insert(*key, entry);
        pending.remove(key);
        true
    }
    fn give_again(&self, key: &FlowKey, backend: BackendId, generation: u32, secs: u32) -> bool {
        let mut pending = self.pending.borrow_mut();
        let Some(flow) = pending.get_mut(key) else { return false };
        flow.again(backend, generation, secs);
        true
    }
    fn put_flow(&self, table: Table, key: &FlowKey, entry: &FlowEntry) -> bool {
        let mut flows = self.table(table).borrow_mut();
        if self.full == Some(table) && !flows.contains_key(key) {
            return false;
        }
        flows.insert(*key, *entry);
        true
    }
    fn add_flow(&self, key: &FlowKey, entry: &FlowEntry) -> bool {
        !self.flows.borrow().contains_key(key) && self.put_flow(Table::Flows, key, entry)
    }
    fn mark_flow(&self, flow: &Looked<'_>, marks: u64, secs: u32, uplink: u32) -> u64 {
        let entry = FlowEntry { marks: flow.marks | marks, last_seen: secs, uplink, ..**flow };
        flow.marked.set(entry).expect("one packet marks one flow once");
        // As in the kernel, an entry that was removed in between is still there to be written to.
        if let Some(place) = flow.table.borrow_mut().get_mut(&flow.key) {
            *place = entry;
        }
        entry.marks
    }
    fn remove_flow(&self, table: Table, key: &FlowKey) -> bool {
        self.table(table).borrow_mut().remove(key).is_some()
    }
    fn count_resteered(&self, id: BackendId) {
        *self.resteered.borrow_mut().entry(id).or_default() += 1;
    }
    fn count_steered(&self, id: BackendId) {
        *self.steered.borrow_mut().entry(id).or_default() += 1;
    }
    fn count_established(&self, id: BackendId) {
        *self.live.borrow_mut().entry(id).or_default() += 1;
    }
    fn count_ended(&self, id: BackendId) {
        *self.live.borrow_mut().entry(id).or_default() -= 1;
    }
}

pub(crate) const SYN: TcpFlags = TcpFlags::SYN;
pub(crate) const ACK: TcpFlags = TcpFlags::ACK;
pub(crate) const RST: TcpFlags = TcpFlags::RST;
pub(crate) const SYN_ACK: TcpFlags = TcpFlags::SYN.with(TcpFlags::ACK);
pub(crate) const FIN: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);

/// The interface clients come in by.
pub(crate) const UPLINK: u32 = 2;

/// A packet from the client's port to the service.
pub(crate) fn from_client(port: u16, flags: TcpFlags, seq: u32) -> Segment {
    Segment {
        src: addr(CLIENT),
        dst: addr(HOST),
        src_port: Port::new(port),
        dst_port: Port::new(9000),
        seq,
        proto: TCP,
        flags,
    }
}

/// A packet of backend `id` to the client's port.
pub(crate) fn from_backend(id: u16, port: u16, flags: TcpFlags) -> Segment {
    Segment {
        src: backend_addr(id),
        dst: addr(CLIENT),
        src_port: Port::new(5000),
        dst_port: Port::new(port),
        seq: 0,
        proto: TCP,
        flags,
    }
}

/// The verdict that gives a packet to backend `id`, for a reason.
pub(crate) fn to(id: u16, reason: Counter) -> Verdict {
    Verdict::Forward(Forward { backend: BackendId(id), target: Port::new(5000), reason })
}

/// The backend of a verdict.
#[track_caller]
pub(crate) fn backend_of(verdict: Verdict) -> u16 {
    match verdict {
        Verdict::Forward(forward) => forward.backend.0,
        other => panic!("not steered: {other:?}"),
    }
}

/// Packets, at a second since boot.
impl World {
    /// A packet comes in on the uplink.
    pub(crate) fn send(&self, segment: Segment, secs: u32) -> Verdict {
        steer(self, &segment, UPLINK, Nanos(u64::from(secs) * 1_000_000_000))
    }

    /// A packet of the client's port to the service.
    pub(crate) fn client(&self, port: u16, flags: TcpFlags, secs: u32) -> Verdict {
        self.send(from_client(port, flags, 0), secs)
    }

    /// The SYN of a connection that begins with this sequence number.
    pub(crate) fn syn(&self, port: u16, isn: u32, secs: u32) -> Verdict {
        self.send(from_client(port, SYN, isn), secs)
    }

    /// A packet comes out of backend `id`.
    pub(crate) fn answer(&self, id: u16, port: u16, flags: TcpFlags, secs: u32) -> Option<Reply> {
        match self.returned(id, port, flags, secs) {
            Some(Returned::Reply(reply)) => Some(reply),
            None => None,
            Some(other) => panic!("not a reply: {other:?}"),
        }
    }

    /// A packet comes out of backend `id`, whatever becomes of it.
    pub(crate) fn returned(&self, id: u16, port: u16, flags: TcpFlags, secs: u32) -> Option<Returned> {
        self.back(&from_backend(id, port, flags), 100 + u32::from(id), secs)
    }

    /// A packet comes in at that interface from a container.
    pub(crate) fn back(&self, segment: &Segment, ifindex: u32, secs: u32) -> Option<Returned> {
        let mut returned = None;
        reverse(self, segment, ifindex, Nanos(u64::from(secs) * 1_000_000_000), &mut returned);
        returned
    }

    /// A whole handshake; the backend it ends on.
    #[track_caller]
    pub(crate) fn connect(&self, port: u16, isn: u32, secs: u32) -> u16 {
        let id = backend_of(self.syn(port, isn, secs));
        assert!(self.answer(id, port, SYN_ACK, secs).is_some(), "the SYN-ACK of {id} finds no way back");
        assert_eq!(self.client(port, ACK, secs), to(id, Counter::Follow));
        id
    }

    /// Both sides close, the client first.
    pub(crate) fn close(&self, id: u16, port: u16, secs: u32) {
        assert_eq!(self.client(port, FIN, secs), to(id, Counter::Follow));
        assert!(self.answer(id, port, FIN, secs).is_some());
        assert_eq!(self.client(port, ACK, secs), to(id, Counter::Follow));
    }

    /// Another frontend of the service.
    pub(crate) fn publish(&mut self, host: &str, port: u16, port_index: u8, flags: u8) {
        let key = FrontendKey::new(addr(host), Port::new(port), TCP);
        self.frontends.insert(key, FrontendEntry { service: WEB, port_index, flags });
    }

    /// How many flows are opening or closing, and how many established.
    pub(crate) fn sizes(&self) -> (usize, usize) {
        (self.pending.borrow().len(), self.flows.borrow().len())
    }

    /// Since when new flows have found no backend, in seconds.
    pub(crate) fn none_since_secs(&self) -> u64 {
        self.state(WEB).none_since[0].first / 1_000_000_000
    }
}
