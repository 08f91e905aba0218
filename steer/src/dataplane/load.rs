//! Puts the programs into the kernel, with the maps that are pinned already.

use anyhow::{Context as _, Result, anyhow, bail};
use aya::programs::Program;
use aya::{Ebpf, EbpfLoader};
use steer_common::limits::names;

use super::paths::Paths;
use crate::host::btf::Offsets;

/// The compiled programs.
pub(super) static OBJECT: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/steer.bpf.o"));

/// Names of the programs: of the functions in `steer-ebpf/src/main.rs`.
pub mod program {
    pub const UPLINK_XDP: &str = "uplink_xdp";
    /// Hands a frame to the stack: see [`super::super::replay`]. Attached nowhere.
    pub const REPLAY: &str = "replay";
    pub const UPLINK_TC: &str = "uplink_tc";
    pub const BACKEND_TC: &str = "backend_tc";
    /// Socket hooks on addresses: `connect` and `getpeername`.
    pub const SOCKET_ADDR: [&str; 4] = ["connect4", "connect6", "peername4", "peername6"];
    /// Socket hook at `close`.
    pub const RELEASE: &str = "release";
    /// Hook on what happens to sockets: a handshake that is complete.
    pub const ESTABLISHED: &str = "established";
    /// Tracepoints, each with the kernel's name of it: signals, the ends of processes, and cgroups that are frozen.
    pub const TRACEPOINTS: [(&str, &str); 4] = [
        ("signal_generate", "signal_generate"),
        ("process_exit", "sched_process_exit"),
        ("cgroup_freeze", "cgroup_freeze"),
        ("cgroup_unfreeze", "cgroup_unfreeze"),
    ];
}

/// What may differ from host to host.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// Cookie of the host's network namespace.
    pub host_netns: u64,
    /// Size of the table of established flows.
    pub max_flows: u32,
    /// Where the kernel has what is read of its structures.
    pub offsets: Offsets,
}

/// Every program.
pub fn program_names() -> impl Iterator<Item = &'static str> {
    let classifiers = [program::UPLINK_TC, program::BACKEND_TC];
    let tracepoints = program::TRACEPOINTS.map(|(name, _)| name);
    let first = [program::UPLINK_XDP, program::REPLAY].into_iter().chain(classifiers);
    first.chain(program::SOCKET_ADDR).chain(tracepoints).chain([program::RELEASE, program::ESTABLISHED])
}

/// Loads the programs; maps that are pinned are taken over with all they hold, the others are created and pinned.
pub fn load(paths: &Paths, options: Options) -> Result<Ebpf> {
    let mut bpf = open(paths, options)?;
    for name in program_names() {
        verify(&mut bpf, name)?;
    }
    Ok(bpf)
}

/// The maps alone, with the programs still to be verified.
pub fn open(paths: &Paths, options: Options) -> Result<Ebpf> {
    let pins: Vec<_> = names::ALL.iter().map(|name| (*name, paths.map(name))).collect();
    let mut loader = EbpfLoader::new();
    // Nothing is relocated against the kernel's own types, and reading them takes a good part of a second.
    loader.btf(None);
    loader.override_global("HOST_NETNS", &options.host_netns, true);
    let Offsets { task_pid, task_signal, signal_live, cgroup_node, node_id } = options.offsets;
    let of_tasks = [("TASK_PID", task_pid), ("TASK_SIGNAL", task_signal), ("SIGNAL_LIVE", signal_live)];
    let of_cgroups = [("CGROUP_NODE", cgroup_node), ("NODE_ID", node_id)];
    let offsets: Vec<_> = of_tasks.into_iter().chain(of_cgroups).map(|(name, at)| (name, u64::from(at))).collect();
    for (name, offset) in &offsets {
        loader.override_global(name, offset, true);
    }
    loader.map_max_entries(names::FLOWS, options.max_flows);
    for (name, pin) in &pins {
        loader.map_pin_path(name, pin.as_path());
    }
    loader.load(OBJECT).with_context(|| {
        format!("loading the BPF object (pins at {}): `steer doctor` says what this kernel lacks", paths.pins.display())
    })
}

/// Has the kernel's verifier take a program.
pub fn verify(bpf: &mut Ebpf, name: &str) -> Result<()> {
    let program = bpf.program_mut(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))?;
    match program {
        Program::Xdp(program) => program.load(),
        Program::SchedClassifier(program) => program.load(),
        Program::CgroupSockAddr(program) => program.load(),
        Program::RawTracePoint(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::SockOps(program) => program.load(),
        other => bail!("the program {name} is of a type that is not steer's: {:?}", other.prog_type()),
    }
    .with_context(|| refused(name))
}

fn refused(name: &str) -> String {
    format!("the kernel refused the program {name}: `steer doctor` says what this kernel lacks")
}

/// A program of the object, by name and type.
pub fn program_mut<'a, P>(bpf: &'a mut Ebpf, name: &str) -> Result<&'a mut P>
where
    &'a mut P: TryFrom<&'a mut aya::programs::Program, Error = aya::programs::ProgramError>,
{
    let program = bpf.program_mut(name).ok_or_else(|| anyhow!("the BPF object has no program {name}"))?;
    program.try_into().with_context(|| format!("the program {name} is of another type"))
}
