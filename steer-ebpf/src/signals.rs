//! What happens to a backend's first process and to its cgroup, seen where the kernel does it.
//!
//! `signal_generate` runs under the lock that the target must take to see its signal (`kernel/signal.c`,
//! `__send_signal_locked`): what is written here is written before the process can act on it. Raw tracepoints, since the others
//! are skipped while the CPU is in a map operation of user space (`trace_call_bpf`, `bpf_prog_active`).

use aya_ebpf::Global;
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, bpf_probe_read_kernel};
use aya_ebpf::programs::RawTracePointContext;
use steer_common::edge::EdgeKind;

use crate::maps::{demote, forget_init, freeze, in_cgroup, init};

/// Offset of `pid` in the kernel's `struct task_struct`, from its BTF; set by the agent.
#[unsafe(no_mangle)]
static TASK_PID: Global<u64> = Global::new(0x7461_736b_5f70_6964);

/// Offsets of `signal` in it and of `live` in `struct signal_struct`, likewise.
#[unsafe(no_mangle)]
static TASK_SIGNAL: Global<u64> = Global::new(0x7461_736b_5f73_6967);
#[unsafe(no_mangle)]
static SIGNAL_LIVE: Global<u64> = Global::new(0x7369_675f_6c69_7665);

/// Offsets of `kn` in `struct cgroup` and of `id` in `struct kernfs_node`, likewise.
#[unsafe(no_mangle)]
static CGROUP_NODE: Global<u64> = Global::new(0x6367_7270_5f6b_6e00);
#[unsafe(no_mangle)]
static NODE_ID: Global<u64> = Global::new(0x6b6e_5f69_645f_6664);

const SIGKILL: u32 = 9;

/// `signal_generate(int sig, struct kernel_siginfo *info, struct task_struct *task, int group, int result)`. Whatever the result:
/// a signal that the process ignores is followed by `KILL` when Docker stops a container.
#[inline(always)]
pub(crate) fn generated(ctx: &RawTracePointContext) -> Option<()> {
    let (signal, task): (i32, *const u8) = (ctx.arg(0), ctx.arg(2));
    // SAFETY: the helper checks the address.
    let pid: u32 = unsafe { bpf_probe_read_kernel(task.wrapping_add(TASK_PID.load() as usize).cast()) }.ok()?;
    let init = init(pid)?;
    let signal = signal as u32;
    let kind = match signal {
        SIGKILL => EdgeKind::Kill,
        _ if signal == u32::from(init.stop_signal) => EdgeKind::Stop,
        _ => return None,
    };
    demote(&init, kind, signal);
    Some(())
}

/// `sched_process_exit(struct task_struct *p, …)`: in the context of the thread that ends. The process has ended with its last
/// thread, not with its first: that one may leave the others behind, and does when another one calls `execve`.
#[inline(always)]
pub(crate) fn exited(ctx: &RawTracePointContext) -> Option<()> {
    let process = (bpf_get_current_pid_tgid() >> 32) as u32;
    let init = init(process)?;
    let task: *const u8 = ctx.arg(0);
    // SAFETY: the helper checks the addresses.
    let live: i32 = unsafe {
        let signals: *const u8 = bpf_probe_read_kernel(task.wrapping_add(TASK_SIGNAL.load() as usize).cast()).ok()?;
        bpf_probe_read_kernel(signals.wrapping_add(SIGNAL_LIVE.load() as usize).cast()).ok()?
    };
    if live != 0 {
        return None;
    }
    demote(&init, EdgeKind::Exit, 0);
    forget_init(process);
    Some(())
}

/// `cgroup_freeze(struct cgroup *cgrp, const char *path)` and `cgroup_unfreeze`: for the one that is frozen and each below it, before
/// any of its processes stands still (`kernel/cgroup/freezer.c`, `cgroup_do_freeze`). Version 2 alone: the freezer of version 1
/// has no tracepoint.
#[inline(always)]
pub(crate) fn frozen(ctx: &RawTracePointContext, is_frozen: bool) -> Option<()> {
    let cgroup: *const u8 = ctx.arg(0);
    // SAFETY: the helper checks the addresses.
    let id: u64 = unsafe {
        let node: *const u8 = bpf_probe_read_kernel(cgroup.wrapping_add(CGROUP_NODE.load() as usize).cast()).ok()?;
        bpf_probe_read_kernel(node.wrapping_add(NODE_ID.load() as usize).cast()).ok()?
    };
    freeze(&in_cgroup(id)?, is_frozen);
    Some(())
}
