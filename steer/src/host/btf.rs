//! Where fields lie in the kernel's structures, from the kernel's own type information (BTF).
//!
//! Only that question, so a walk over the type section answers it (`Documentation/bpf/btf.rst`, section 2). The library for
//! BTF is under the LGPL, which a static binary under MIT cannot link; aya's keeps its types to itself.

use std::path::Path;

use anyhow::{Context as _, Result};

/// The running kernel's type information.
const VMLINUX: &str = "/sys/kernel/btf/vmlinux";

const MAGIC: u16 = 0xeb9f;
const KIND_STRUCT: u32 = 4;

/// Where the fields that steer reads lie, in bytes from the start of their structures.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Offsets {
    /// `pid` in `struct task_struct`.
    pub task_pid: u32,
    /// `signal` in `struct task_struct`.
    pub task_signal: u32,
    /// `live` in `struct signal_struct`: how many of a process's threads have not ended.
    pub signal_live: u32,
    /// `kn` in `struct cgroup`.
    pub cgroup_node: u32,
    /// `id` in `struct kernfs_node`.
    pub node_id: u32,
}

impl Offsets {
    /// Of the running kernel.
    pub fn read() -> Result<Self> {
        let bytes =
            std::fs::read(Path::new(VMLINUX)).with_context(|| format!("reading the kernel's types, {VMLINUX}"))?;
        let offset = |structure, member| {
            member_offset(&bytes, structure, member)
                .with_context(|| format!("{VMLINUX} does not say where struct {structure} has its {member}"))
        };
        Ok(Self {
            task_pid: offset("task_struct", "pid")?,
            task_signal: offset("task_struct", "signal")?,
            signal_live: offset("signal_struct", "live")?,
            cgroup_node: offset("cgroup", "kn")?,
            node_id: offset("kernfs_node", "id")?,
        })
    }
}

/// Offset of a member of a structure, in bytes; `None`: no such structure, or member, or no BTF in this machine's byte order.
fn member_offset(btf: &[u8], structure: &str, member: &str) -> Option<u32> {
    if u16::from_ne_bytes(btf.get(..2)?.try_into().ok()?) != MAGIC {
        return None;
    }
    let header_len = word(btf, 4)? as usize;
    let section = |at| {
        let start = header_len.checked_add(word(btf, at)? as usize)?;
        btf.get(start..start.checked_add(word(btf, at + 4)? as usize)?)
    };
    let (types, strings) = (section(8)?, section(16)?);
    let is_named = |name: u32, expected: &str| {
        let text = strings.get(name as usize..).unwrap_or_default();
        text.strip_prefix(expected.as_bytes()).is_some_and(|rest| rest.first() == Some(&0))
    };
    let mut at = 0;
    while at < types.len() {
        let (name, info) = (word(types, at)?, word(types, at + 4)?);
        let (kind, count, is_bitfields) = ((info >> 24) & 0x1f, info & 0xffff, info >> 31 == 1);
        at += 12;
        if kind == KIND_STRUCT && is_named(name, structure) {
            return (0..count as usize).find_map(|index| {
                let entry = at + 12 * index;
                let bits = word(types, entry + 8)?;
                let bits = if is_bitfields { bits & 0x00ff_ffff } else { bits };
                is_named(word(types, entry)?, member).then_some(bits / 8)
            });
        }
        at += tail_len(kind, count as usize)?;
    }
    None
}

/// What follows the three words that every type has, in bytes.
fn tail_len(kind: u32, count: usize) -> Option<usize> {
    match kind {
        // Pointers, forward declarations, typedefs, qualifiers, functions, floats, type tags.
        2 | 7..=12 | 16 | 18 => Some(0),
        // Integers, variables, declaration tags: one word.
        1 | 14 | 17 => Some(4),
        // Arrays: three words.
        3 => Some(12),
        // Structures, unions, data sections, 64-bit enumerations: three words each.
        4 | 5 | 15 | 19 => Some(12 * count),
        // Enumerations, function prototypes: two words each.
        6 | 13 => Some(8 * count),
        _ => None,
    }
}

fn word(bytes: &[u8], at: usize) -> Option<u32> {
    Some(u32::from_ne_bytes(bytes.get(at..at + 4)?.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A BTF of an integer, and a structure `s` with `a` at 0 and `pid` at byte 36.
    fn sample(bitfields: bool) -> Vec<u8> {
        let strings = b"\0int\0s\0a\0pid\0";
        let flag = if bitfields { 1 << 31 } else { 0 };
        let width = if bitfields { 32 << 24 } else { 0 };
        let types: Vec<u32> =
            vec![1, 1 << 24, 4, 32, 5, KIND_STRUCT << 24 | 2 | flag, 40, 7, 1, width, 9, 1, width | (36 * 8)];
        let words = |words: &[u32]| words.iter().flat_map(|word| word.to_ne_bytes()).collect::<Vec<u8>>();
        let mut btf = MAGIC.to_ne_bytes().to_vec();
        btf.extend([1, 0]);
        btf.extend(words(&[24, 0, 4 * types.len() as u32, 4 * types.len() as u32, strings.len() as u32]));
        btf.extend(words(&types));
        btf.extend(strings);
        btf
    }

    #[test]
    fn a_member_is_found_behind_other_types() {
        for bitfields in [false, true] {
            let btf = sample(bitfields);
            assert_eq!(member_offset(&btf, "s", "pid"), Some(36));
            assert_eq!(member_offset(&btf, "s", "a"), Some(0));
            assert_eq!(member_offset(&btf, "s", "p"), None, "a name is matched whole");
            assert_eq!(member_offset(&btf, "task_struct", "pid"), None);
        }
    }

    #[test]
    fn what_is_cut_short_gives_nothing() {
        let btf = sample(false);
        for len in 0..btf.len() {
            assert!(member_offset(&btf[..len], "s", "pid").is_none_or(|offset| offset == 36));
        }
    }
}
