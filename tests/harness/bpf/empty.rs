//! A program that only returns: what the kernel's own part of a test run costs.
//!
//! aya loads objects, and there is none with an empty program, so this one's two instructions go to the kernel by hand.

use std::io;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::time::Duration;

use nix::libc;

use super::{Hook, Ran};

const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_TEST_RUN: libc::c_int = 10;
const TYPE_CLASSIFIER: u32 = 3;
const TYPE_XDP: u32 = 6;

/// `r0 = 2` (`XDP_PASS`; for tc any value will do), `exit`: see the kernel's `instruction-set.rst`.
const PROGRAM: [u64; 2] = [0xb7 | 2 << 32, 0x95];

/// The beginning of `union bpf_attr` for `BPF_PROG_LOAD`; the kernel takes the rest as zero.
#[repr(C)]
struct Load {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
}

/// The same for `BPF_PROG_TEST_RUN`.
#[repr(C)]
struct Test {
    prog_fd: u32,
    retval: u32,
    data_size_in: u32,
    data_size_out: u32,
    data_in: u64,
    data_out: u64,
    repeat: u32,
    duration: u32,
    ctx_size_in: u32,
    ctx_size_out: u32,
    ctx_in: u64,
    ctx_out: u64,
}

/// An empty program for each hook.
pub(super) struct Empty {
    xdp: OwnedFd,
    tc: OwnedFd,
}

impl Empty {
    pub(super) fn load() -> io::Result<Self> {
        Ok(Self { xdp: load(TYPE_XDP)?, tc: load(TYPE_CLASSIFIER)? })
    }

    pub(super) fn run(&self, hook: Hook, frame: &[u8], ctx: &[u8], repeat: u32) -> io::Result<Ran> {
        let program = match hook {
            Hook::Xdp => &self.xdp,
            Hook::Tc => &self.tc,
        };
        let mut bytes = frame.to_vec();
        let mut test = Test {
            prog_fd: program.as_raw_fd() as u32,
            retval: 0,
            data_size_in: frame.len() as u32,
            data_size_out: bytes.len() as u32,
            data_in: frame.as_ptr() as u64,
            data_out: bytes.as_mut_ptr() as u64,
            repeat,
            duration: 0,
            ctx_size_in: ctx.len() as u32,
            ctx_size_out: 0,
            ctx_in: ctx.as_ptr() as u64,
            ctx_out: 0,
        };
        bpf(BPF_PROG_TEST_RUN, &mut test)?;
        Ok(Ran { code: test.retval, bytes, duration: Duration::from_nanos(test.duration.into()) })
    }
}

fn load(prog_type: u32) -> io::Result<OwnedFd> {
    let mut attr = Load {
        prog_type,
        insn_cnt: PROGRAM.len() as u32,
        insns: PROGRAM.as_ptr() as u64,
        license: c"GPL".as_ptr() as u64,
    };
    let fd = bpf(BPF_PROG_LOAD, &mut attr)?;
    // SAFETY: the kernel has just made this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_int> {
    // SAFETY: `attr` is as long as is said, and what its pointers point to lives, and is writable where the kernel writes,
    // until the call returns.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(result as libc::c_int) }
}
