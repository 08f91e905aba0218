//! The program at the uplink, asked what it would do with a packet, with nothing changed by the answer.
//!
//! Problem: what a packet meets is decided by a program that also writes: flows, cursors, counters, notices. Approach: the same
//! program is loaded a second time, on the pinned maps that it only reads and on private copies of those that it writes, and the
//! kernel runs it once (`BPF_PROG_TEST_RUN`). No verdict is carried out, and the copies go with this process.

mod frame;
mod known;

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use aya::maps::{Array, HashMap, MapData, PerCpuArray};
use aya::programs::{ProgramError, SchedClassifier, TestRun, TestRunOptions, TestRunResult, Xdp};
use aya::{Ebpf, EbpfLoader, Pod};
use steer_common::addr::{Addr, Port};
use steer_common::backend::BackendId;
use steer_common::flow::{FlowEntry, FlowKey, PendingEntry};
use steer_common::limits::names;
use steer_common::pick::Fit;
use steer_common::service::{ServiceId, ServiceState};
use steer_common::tcp::TcpFlags;
use steer_common::verdict::Counter;

use self::known::Known;
use super::load::{OBJECT, program, program_mut};
use super::maps::Maps;
use super::paths::{LinkName, Paths};
use super::read::{self, FlowView};
use crate::host::clock::since_boot;
use crate::host::links::{Link, link, links, towards, uplinks};

/// What the program only reads, or what no private copy is needed of: as it is pinned. All else is private.
const SHARED: [&str; 9] = [
    names::FRONTENDS,
    names::ALLOW,
    names::SERVICES,
    names::SLOTS,
    names::BACKENDS,
    names::BACKEND_STATES,
    names::BACKEND_EDGES,
    names::SOCKETS,
    names::SWARM_LEASE,
];

/// Sizes of private maps. An LRU map hands each CPU 128 free places at once and evicts when there are none left, so a handful
/// of entries, each perhaps put there by another CPU, wants this much. What is indexed by a backend's id and not looked at
/// afterwards has place for none: the program skips it then.
const SIZES: [(&str, u32); 13] = [
    (names::FLOWS, 2048),
    (names::PENDING, 2048),
    (names::HELD, 2048),
    (names::FOREIGN, 4096),
    (names::LOCAL_FLOWS, 128),
    (names::BACKEND_STATS, 1),
    ("NOTICED", 1),
    (names::INITS, 1),
    (names::CGROUPS, 1),
    (names::ENDPOINTS, 1),
    (names::SERVICE_INFO, 1),
    (names::BACKEND_INFO, 1),
    (names::NOTICES, 4096),
];

/// Candidates of a run: see `steer-ebpf/src/maps`.
const TRACE: &str = "TRACE";

/// A packet to ask about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Question {
    pub client: SocketAddrV4,
    pub frontend: SocketAddrV4,
    /// Of a connection that is there; else one that opens a connection.
    pub ack: bool,
}

/// The program that a packet meets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    Xdp,
    Tc,
}

impl Hook {
    /// The word used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Xdp => "xdp",
            Self::Tc => "tc",
        }
    }
}

/// Where a packet comes in.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WayIn {
    pub interface: Link,
    pub hook: Hook,
    /// Whether that program is attached there.
    pub is_attached: bool,
    /// Whether the client is this host itself, whose packets come in nowhere.
    pub is_own: bool,
}

/// What the program did with the packet.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Action {
    Pass,
    Drop,
    /// Sent on: to a backend, or as an answer back to the client.
    Redirect,
}

/// The service that a frontend belongs to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrontendService {
    pub service: ServiceId,
    /// Only this host's own sockets may use it.
    pub loopback: bool,
    /// Port of each backend of the service behind this frontend; `None`: it does not serve it.
    pub targets: BTreeMap<BackendId, Option<u16>>,
}

/// What was seen of a run.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Run {
    pub action: Action,
    /// The reason that was counted.
    pub reason: Counter,
    /// XDP left the packet to tc, whose verdict this is.
    pub left_to_tc: bool,
    /// Where the packet went, or would have gone.
    pub destination: SocketAddrV4,
    pub frontend: Option<FrontendService>,
    /// This host's other frontends with that port, each with its service; only looked up where the packet is for none.
    pub others: Vec<(SocketAddrV4, ServiceId)>,
    /// Flows of that client address and port with the service, before the run.
    pub flows: Vec<FlowView>,
    /// The backend of the packet's flow after the run.
    pub backend: Option<BackendId>,
    /// Candidates in the order they were looked at.
    pub candidates: Vec<(BackendId, Fit)>,
    /// How long new flows of the service have found no backend; `None` = they do find one.
    pub none_for: Option<Duration>,
    /// The connection may be one that was there before steer came.
    pub is_foreign: bool,
}

/// Where packets of a client come in: at the interface that leads back to it if steer is attached there, else at the first
/// uplink that steer is attached to.
pub fn way_in(paths: &Paths, client: SocketAddrV4, interface: Option<&str>, hook: Option<Hook>) -> Result<WayIn> {
    let attached = read::links(paths)?;
    let has = |link: &Link, hook| {
        let name = link.name.clone();
        attached.contains(&match hook {
            Hook::Xdp => LinkName::Xdp(name),
            Hook::Tc => LinkName::Tcx(name),
        })
    };
    let is_attached = |link: &&Link| has(link, Hook::Xdp) || has(link, Hook::Tc);
    let all = links().context("listing interfaces")?;
    let back = towards(*client.ip()).with_context(|| format!("looking up the route to {}", client.ip()))?;
    let back = back.and_then(|index| all.iter().find(|link| link.index == index));
    let is_own = back.is_some_and(|link| link.loopback);
    let interface = match interface {
        Some(name) => link(name)
            .with_context(|| format!("looking up interface {name}"))?
            .ok_or_else(|| anyhow!("interface {name} does not exist"))?,
        None => {
            let uplinks = uplinks().context("looking up the uplinks")?;
            let found = back.filter(is_attached).or_else(|| uplinks.iter().find(is_attached));
            let found = found.or_else(|| all.iter().find(is_attached));
            found.cloned().context("steer is attached to no interface: `--interface` names one to ask at")?
        }
    };
    let hook = hook.unwrap_or(if has(&interface, Hook::Xdp) { Hook::Xdp } else { Hook::Tc });
    let is_attached = has(&interface, hook);
    Ok(WayIn { interface, hook, is_attached, is_own })
}

/// Runs the program at that place on that packet.
pub fn ask(paths: &Paths, question: &Question, way_in: &WayIn) -> Result<Run> {
    let pinned = Maps::open(paths)?;
    let known = Known::read(&pinned, question)?;
    let mut run = once(paths, question, way_in, way_in.hook, &known)?;
    if run.reason == Counter::PassToTc {
        run = Run { left_to_tc: true, ..once(paths, question, way_in, Hook::Tc, &known)? };
    }
    Ok(run)
}

/// One run of one program, on private maps of its own.
fn once(paths: &Paths, question: &Question, way_in: &WayIn, hook: Hook, known: &Known) -> Result<Run> {
    let mut bpf = load(paths, hook)?;
    known.write(&mut bpf)?;
    let flags = if question.ack { TcpFlags::ACK } else { TcpFlags::SYN };
    let mac = way_in.interface.mac.unwrap_or_default();
    let sent = frame::build(question.client, question.frontend, flags, known.new_seq(), mac);
    let (code, bytes) = test_run(&bpf, hook, way_in.interface.index, &sent)
        .with_context(|| format!("running the program of {} at interface {}", hook.name(), way_in.interface.name))?;
    let action = match (hook, code) {
        (Hook::Xdp, 2) | (Hook::Tc, u32::MAX) => Action::Pass,
        (Hook::Xdp, 1) | (Hook::Tc, 2) => Action::Drop,
        (Hook::Xdp, 4) | (Hook::Tc, 7) => Action::Redirect,
        _ => bail!("the program answered with {code}, which it never should"),
    };
    let now = since_boot();
    let none_for = match &known.frontend {
        Some((entry, _)) => {
            let states: Array<_, ServiceState> = map(&mut bpf, names::SERVICE_STATES)?;
            let state = states.get(&entry.service.0.into(), 0).context("reading the service's state")?;
            let since = state.none_since.get(usize::from(entry.port_index)).map_or(0, |since| since.first);
            (since != 0).then(|| now.saturating_sub(Duration::from_nanos(since)))
        }
        None => None,
    };
    Ok(Run {
        action,
        reason: reason(&mut bpf)?,
        left_to_tc: false,
        destination: frame::destination(&bytes).context("the program made the packet shorter than its headers")?,
        frontend: known.frontend.as_ref().map(|(_, frontend)| frontend.clone()),
        others: known.others.clone(),
        flows: known.views(now.as_secs() as u32),
        backend: flow_after(&mut bpf, question)?,
        candidates: candidates(&mut bpf)?,
        none_for,
        is_foreign: !known.foreign.is_empty(),
    })
}

/// Puts one program into the kernel, with `EXPLAIN` set.
fn load(paths: &Paths, hook: Hook) -> Result<Ebpf> {
    let pins = SHARED.map(|name| (name, paths.map(name)));
    let mut loader = EbpfLoader::new();
    loader.btf(None);
    loader.override_global("EXPLAIN", &1_u32, true);
    for (name, size) in SIZES {
        loader.map_max_entries(name, size);
    }
    for (name, pin) in &pins {
        // A pin that is missing would be made anew, which is not this command's to do.
        if !pin.exists() {
            bail!("the pinned map {} is gone: steer is just being detached", pin.display());
        }
        loader.map_pin_path(name, pin.as_path());
    }
    let mut bpf = loader.load(OBJECT).context("loading the BPF object")?;
    let refused = || format!("the kernel refused the program for {}", hook.name());
    match hook {
        Hook::Xdp => program_mut::<Xdp>(&mut bpf, program::UPLINK_XDP)?.load().with_context(refused)?,
        Hook::Tc => program_mut::<SchedClassifier>(&mut bpf, program::UPLINK_TC)?.load().with_context(refused)?,
    }
    Ok(bpf)
}

/// The program's answer, and the packet as it left it.
fn test_run(bpf: &Ebpf, hook: Hook, interface: u32, frame: &[u8]) -> Result<(u32, Vec<u8>)> {
    // struct xdp_md: data, data_end, data_meta, ingress_ifindex; struct __sk_buff up to ifindex.
    let words = match hook {
        Hook::Xdp => vec![0, frame.len() as u32, 0, interface],
        Hook::Tc => [vec![0; 10], vec![interface]].concat(),
    };
    let ctx: Vec<u8> = words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect();
    let mut bytes = vec![0; frame.len() + 64];
    let options =
        TestRunOptions { data_in: Some(frame), data_out: Some(&mut bytes), ctx_in: Some(&ctx), ..Default::default() };
    let result = match hook {
        Hook::Xdp => run::<Xdp>(bpf, program::UPLINK_XDP, options)?,
        Hook::Tc => run::<SchedClassifier>(bpf, program::UPLINK_TC, options)?,
    };
    bytes.truncate(result.data_size_out as usize);
    Ok((result.return_value, bytes))
}

fn run<'bpf, P>(bpf: &'bpf Ebpf, name: &str, options: TestRunOptions<'_>) -> Result<TestRunResult>
where
    P: for<'a> TestRun<Opts<'a> = TestRunOptions<'a>, Result = TestRunResult> + 'bpf,
    &'bpf P: TryFrom<&'bpf aya::programs::Program, Error = ProgramError>,
{
    let program = bpf.program(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))?;
    let program: &P = program.try_into()?;
    program.test_run(options).map_err(|error| match error {
        ProgramError::SyscallError(error) => error.io_error.into(),
        other => other.into(),
    })
}

/// The one reason that was counted.
fn reason(bpf: &mut Ebpf) -> Result<Counter> {
    let counters = bpf.map(names::COUNTERS).context("the BPF object has no COUNTERS")?;
    let counters = PerCpuArray::<_, u64>::try_from(counters)?;
    let mut moved = Vec::new();
    for counter in Counter::ALL {
        let values = counters.get(&(*counter as u32), 0).context("reading the counters")?;
        if values.iter().any(|value| *value != 0) {
            moved.push(*counter);
        }
    }
    match moved.as_slice() {
        [reason] => Ok(*reason),
        _ => bail!("the program gave not one reason, but {moved:?}"),
    }
}

/// The backend of the packet's flow, as the private tables have it by now.
fn flow_after(bpf: &mut Ebpf, question: &Question) -> Result<Option<BackendId>> {
    let (addr, port) = (Addr::from(*question.frontend.ip()), Port::new(question.frontend.port()));
    let flows = entries::<FlowEntry>(bpf, names::FLOWS)?;
    let pending = entries::<PendingEntry>(bpf, names::PENDING)?.into_iter().map(|pending| pending.flow);
    // An opening flow may have taken the place of an old one.
    Ok(pending.chain(flows).find(|flow| flow.is_for(addr, port)).map(|flow| flow.backend))
}

fn entries<V: Pod>(bpf: &mut Ebpf, name: &str) -> Result<Vec<V>> {
    let map = bpf.map(name).with_context(|| format!("the BPF object has no {name}"))?;
    let map = HashMap::<_, FlowKey, V>::try_from(map)?;
    map.iter().map(|row| Ok(row?.1)).collect()
}

fn candidates(bpf: &mut Ebpf) -> Result<Vec<(BackendId, Fit)>> {
    let trace: Array<_, u32> = map(bpf, TRACE)?;
    let read = |index: u32| trace.get(&index, 0).context("reading the trace");
    let len = read(0)?.min(trace.len() - 1);
    let mut candidates = Vec::new();
    for index in 1..=len {
        let word = read(index)?;
        let fit = Fit::from_u16(word as u16).with_context(|| format!("no candidate fits like {}", word as u16))?;
        candidates.push((BackendId((word >> 16) as u16), fit));
    }
    Ok(candidates)
}

fn map<'bpf, V: Pod>(bpf: &'bpf mut Ebpf, name: &str) -> Result<Array<&'bpf mut MapData, V>> {
    let map = bpf.map_mut(name).with_context(|| format!("the BPF object has no {name}"))?;
    Array::try_from(map).with_context(|| format!("{name} is of another type"))
}
