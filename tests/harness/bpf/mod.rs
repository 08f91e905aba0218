//! Packet in, packet out: the compiled programs, run by the kernel one packet at a time (`BPF_PROG_TEST_RUN`).
//!
//! Problem: pins, interfaces and maps belong to the whole machine, while tests run side by side, panic and get killed.
//! Approach: a bench is a thread with a mount namespace and a network namespace of its own, so its bpffs and its
//! interfaces are nobody else's, and the kernel takes them away when nobody has them open, however that comes about.
//!
//! The maps are written by the agent's own code (`dataplane::apply`), with the operations of a plan. A redirect is only
//! announced here (its return code); that the packet arrives is for tests with real connections to show.
//!
//! ```text
//!   router ── u0 10.203.0.1, .9 (index 50)   host   b1..b6 (index 101..106) ── backends 172.17.0.1..6
//! ```

mod cost;
mod empty;
mod frame;
mod outcome;
mod tables;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Write as _};
use std::process::{Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use aya::Ebpf;
use aya::maps::{Map, MapData, PerCpuArray};
use aya::programs::{Program as Loaded, ProgramError, SchedClassifier, TestRun as _, TestRunOptions, Xdp};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, setns, unshare};
use steer::dataplane::load::{self, Options, program};
use steer::dataplane::maps::Maps;
use steer::dataplane::paths::Paths;
use steer::dataplane::prepare;
use steer::host::btf::Offsets;
use steer_common::limits::names;
use steer_common::verdict::Counter;

pub use self::cost::{Cost, cost, mean};
use self::empty::Empty;
pub use self::frame::{
    CLIENT_PORT, FRONTEND, FRONTEND_2, Frame, backend_addr, backend_mac, checksums_ok, from_backend, from_client,
};
pub use self::outcome::Outcome;
pub use self::tables::{Flow, WEB};
use crate::programs;

/// Index of the uplink.
pub const UPLINK: u32 = 50;
/// Backends up to this id have a veth, so that replies can come out of it.
pub const LINKED: u16 = 6;
/// Size of the table of established flows: small, since it is allocated anew for every bench.
pub const FLOWS: u32 = 1024;

/// Which program takes the client's packets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Hook {
    Xdp,
    Tc,
}

impl Hook {
    pub const BOTH: [Self; 2] = [Self::Xdp, Self::Tc];
}

/// A program, and the interface its packet comes in on.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Program {
    /// The uplink's, at a hook.
    Uplink(Hook),
    /// The one at the host end of a backend's veth.
    Backend(u16),
    /// Does nothing: what the kernel's own part of a run costs.
    Empty(Hook),
}

/// What a program did with a packet.
pub struct Ran {
    /// The program's return value.
    pub code: u32,
    /// The packet as it left it.
    pub bytes: Vec<u8>,
    /// How long it took, the kernel's measure.
    pub duration: Duration,
}

/// Programs and maps of their own.
pub struct Bench {
    bpf: Ebpf,
    empty: Empty,
    maps: Maps,
    counters: PerCpuArray<MapData, u64>,
    moved: BTreeSet<Counter>,
    /// The network its thread is in.
    net: File,
    /// Its network is no longer as it was made.
    is_altered: bool,
}

/// Runs `work` on a bench, and hands back its result or its panic. Loading takes half a second, most of it the verifier's, so
/// a bench that was left in order is cleared and used again.
pub fn bench<T: Send>(work: impl FnOnce(&mut Bench) -> T + Send) -> T {
    static IDLE: Mutex<Vec<Bench>> = Mutex::new(Vec::new());
    let idle = || IDLE.lock().unwrap_or_else(PoisonError::into_inner);
    let used = idle().pop();
    on_a_thread(|| {
        let mut bench = used.map_or_else(|| Bench::new(FLOWS), Bench::enter);
        let outcome = work(&mut bench);
        if !bench.is_altered {
            bench.clear();
            idle().push(bench);
        }
        outcome
    })
}

/// Likewise on a new bench, with room for so many established flows.
pub fn bench_for<T: Send>(flows: u32, work: impl FnOnce(&mut Bench) -> T + Send) -> T {
    on_a_thread(|| work(&mut Bench::new(flows)))
}

/// Runs `work` on the maps and the programs, none of which the kernel has been shown yet.
pub fn unloaded<T: Send>(work: impl FnOnce(&mut Ebpf) -> T + Send) -> T {
    on_a_thread(|| {
        isolate();
        let paths = Paths::of("bench");
        prepare::directories(&paths).expect("directories on a fresh bpffs");
        let options = Options { host_netns: 0, max_flows: FLOWS, offsets: Offsets::default() };
        work(&mut load::open(&paths, options).unwrap_or_else(|error| panic!("open: {error:#}")))
    })
}

fn on_a_thread<T: Send>(work: impl FnOnce() -> T + Send) -> T {
    let outcome = thread::scope(|scope| {
        let name = thread::current().name().unwrap_or("bench").to_owned();
        thread::Builder::new().name(name).spawn_scoped(scope, work).expect("a thread can be started").join()
    });
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}

/// Takes this thread, and no other, out of the machine's mounts and network.
fn isolate() {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).expect("namespaces of one's own, as root");
    let none = None::<&str>;
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none).expect("mounts can be made private");
    mount(Some("bpf"), "/sys/fs/bpf", Some("bpf"), MsFlags::empty(), none).expect("a bpffs can be mounted");
    std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").expect("forwarding can be switched on");
    let mut links = format!(
        "link add u0 index {UPLINK} address {} type veth peer name c0\n\
         addr add {}/24 dev u0\naddr add {}/24 dev u0\nlink set u0 up\nlink set c0 up\n\
         route add default via 10.203.0.2\n",
        frame::show_mac(frame::UPLINK_MAC),
        FRONTEND.ip(),
        FRONTEND_2.ip(),
    );
    for id in 1..=LINKED {
        links += &format!("link add b{id} index {} type veth peer name e{id}\nlink set b{id} up\n", ifindex(id));
    }
    let ip = programs::find("ip").unwrap_or_else(|| "ip".into());
    let mut child = Command::new(ip).args(["-batch", "-"]).stdin(Stdio::piped()).spawn().expect("ip can be started");
    child.stdin.take().expect("it was piped").write_all(links.as_bytes()).expect("ip reads its batch");
    assert!(child.wait().expect("ip ends").success(), "ip -batch:\n{links}");
}

/// Index of the host end of a backend's veth.
pub const fn ifindex(backend: u16) -> u32 {
    100 + backend as u32
}

impl Bench {
    /// Takes its thread into namespaces of its own.
    fn new(max_flows: u32) -> Self {
        isolate();
        let paths = Paths::of("bench");
        prepare::directories(&paths).expect("directories on a fresh bpffs");
        let options = Options { host_netns: 0, max_flows, offsets: Offsets::default() };
        let bpf = load::load(&paths, options).unwrap_or_else(|error| panic!("load: {error:#}"));
        let empty = Empty::load().expect("the kernel takes an empty program");
        let maps = Maps::open(&paths).unwrap_or_else(|error| panic!("open the maps: {error:#}"));
        let counters = MapData::from_pin(paths.map(names::COUNTERS)).expect("load pins the counters");
        let counters = PerCpuArray::try_from(Map::PerCpuArray(counters)).expect("the counters are per CPU");
        let net = File::open("/proc/thread-self/ns/net").expect("this thread has a network namespace");
        Self { bpf, empty, maps, counters, moved: BTreeSet::new(), net, is_altered: false }
    }

    /// Takes another thread into the network of a bench. The pins are gone with the first one's mounts; what they named is open.
    fn enter(mut self) -> Self {
        setns(&self.net, CloneFlags::CLONE_NEWNET).expect("setns into an open namespace, as root");
        self.moved.clear();
        self
    }

    /// Runs a program on a frame; no counters are looked at.
    #[track_caller]
    pub fn run(&self, program: Program, frame: &[u8]) -> Ran {
        self.try_run(program, frame, 1).unwrap_or_else(|error| panic!("run {program:?}: {error:?}"))
    }

    /// Runs a program on a frame, over and over on the same one; the kernel refuses what is shorter than two headers.
    pub fn try_run(&self, program: Program, frame: &[u8], repeat: u32) -> io::Result<Ran> {
        let mut bytes = vec![0; frame.len() + 64];
        let ctx = context(program, frame.len());
        let options = TestRunOptions {
            data_in: Some(frame),
            data_out: Some(&mut bytes),
            ctx_in: Some(&ctx),
            repeat,
            ..Default::default()
        };
        let result = match program {
            Program::Uplink(Hook::Xdp) => self.xdp().test_run(options),
            Program::Uplink(Hook::Tc) => self.classifier(program::UPLINK_TC).test_run(options),
            Program::Backend(_) => self.classifier(program::BACKEND_TC).test_run(options),
            Program::Empty(hook) => return self.empty.run(hook, frame, &ctx, repeat),
        };
        let result = result.map_err(|error| match error {
            ProgramError::SyscallError(error) => error.io_error,
            other => io::Error::other(other),
        })?;
        bytes.truncate(result.data_size_out as usize);
        Ok(Ran { code: result.return_value, bytes, duration: result.duration })
    }

    fn xdp(&self) -> &Xdp {
        match self.bpf.program(program::UPLINK_XDP) {
            Some(Loaded::Xdp(xdp)) => xdp,
            _ => panic!("no XDP program {}", program::UPLINK_XDP),
        }
    }

    fn classifier(&self, name: &str) -> &SchedClassifier {
        match self.bpf.program(name) {
            Some(Loaded::SchedClassifier(classifier)) => classifier,
            _ => panic!("no classifier {name}"),
        }
    }

    /// `ip <words>`, in the bench's own network.
    #[track_caller]
    pub fn ip(&mut self, words: &str) {
        self.is_altered = true;
        crate::netns::run("ip", words);
    }

    /// Every reason's count so far, over all CPUs.
    pub fn counts(&self) -> Vec<u64> {
        let read = |counter: &Counter| -> u64 {
            let values = self.counters.get(&(*counter as u32), 0).expect("every reason has a counter");
            values.iter().sum()
        };
        Counter::ALL.iter().map(read).collect()
    }

    /// The reasons that a packet of [`Bench::send`] or [`Bench::reply`] was counted under so far.
    pub const fn moved(&self) -> &BTreeSet<Counter> {
        &self.moved
    }
}

/// Bytes of the longest Ethernet frame.
const ETHERNET: usize = 1514;
/// Payload of the segments that a longer one becomes: with its headers, 1,500 bytes.
pub const SEGMENT: u32 = 1460;
/// Where `struct __sk_buff` has `gso_size`, in words.
const GSO_SIZE: usize = 44;

/// The program's context as user space may set it: the interface, for XDP the extent of the packet, and how it is segmented.
fn context(program: Program, len: usize) -> Vec<u8> {
    let words = match program {
        // struct xdp_md: data, data_end, data_meta, ingress_ifindex.
        Program::Uplink(Hook::Xdp) | Program::Empty(Hook::Xdp) => vec![0, len as u32, 0, UPLINK],
        // struct __sk_buff up to ifindex.
        Program::Uplink(Hook::Tc) | Program::Empty(Hook::Tc) => [vec![0; 10], vec![UPLINK]].concat(),
        Program::Backend(id) => {
            let mut words = [vec![0; 10], vec![ifindex(id)]].concat();
            // What is longer than an Ethernet frame is segmented later, as what the kernel's own TCP sends.
            if len > ETHERNET {
                words.resize(GSO_SIZE + 1, 0);
                words[GSO_SIZE] = SEGMENT;
            }
            words
        }
    };
    words.iter().flat_map(|word: &u32| word.to_ne_bytes()).collect()
}
