//! Atomic additions to map values.
//!
//! The instruction set has them since version 3 (kernel 5.12), but core's atomic types lack their methods on this target:
//! it declares no compare-and-swap, which is all-or-nothing there. The intrinsics behind the methods do compile, for double
//! words (narrower ones need 32-bit registers, which this target does not use).
//!
//! The ordering is the strongest: with a relaxed one LLVM 22 chooses the instruction that returns nothing, and what is taken for
//! the value before is the operand (seen: a round robin that never turned; `tests/packet.rs` has a test).

use core::intrinsics::{AtomicOrdering, atomic_or, atomic_xadd};

/// Adds (wrapping, so a "negative" number subtracts) and returns the value before.
///
/// # Safety
/// `value` points into a map value, aligned to eight bytes, and is only changed atomically.
#[inline(always)]
pub(crate) unsafe fn add(value: *mut u64, operand: u64) -> u64 {
    // SAFETY: by contract.
    unsafe { atomic_xadd::<u64, u64, { AtomicOrdering::SeqCst }>(value, operand) }
}

/// Sets bits and returns the value before.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn or(value: *mut u64, operand: u64) -> u64 {
    // SAFETY: by contract.
    unsafe { atomic_or::<u64, u64, { AtomicOrdering::SeqCst }>(value, operand) }
}
