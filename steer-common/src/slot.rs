//! The slot table of a service: which backend takes the next flow.

use crate::backend::BackendId;
use crate::limits::{MAX_MEMBERS, MAX_SLOTS};

/// One service's table. The agent builds it (`steer/src/model/slots`) and swaps it in whole, by one update of the outer map
/// `SLOTS`; the kernel only reads it.
#[derive(Clone, Copy)]
#[repr(C)]
pub struct SlotTable {
    /// How many of `slots` are in use; 0 = no backend takes new flows.
    pub len: u32,
    /// How many of `members` are in use.
    pub members_len: u32,
    /// Backends in the order flows are dealt; a backend stands here in proportion to its weight.
    pub slots: [BackendId; MAX_SLOTS],
    /// Every backend of the service, each once, those in slots first: where to look when the slots in turn are not ready, and
    /// for the sockets of flows that were forgotten.
    pub members: [BackendId; MAX_MEMBERS],
}

impl SlotTable {
    /// A table that gives nothing.
    pub const EMPTY: Self =
        Self { len: 0, members_len: 0, slots: [BackendId::NONE; MAX_SLOTS], members: [BackendId::NONE; MAX_MEMBERS] };

    /// The backend at a turn of the round robin or a hash value; `None` when the table is empty.
    #[inline(always)]
    pub fn at(&self, turn: u32) -> Option<BackendId> {
        at(&self.slots, self.len, turn)
    }

    /// A member of the service, counted from any start; `None` when there are none.
    #[inline(always)]
    pub fn member(&self, turn: u32) -> Option<BackendId> {
        at(&self.members, self.members_len, turn)
    }
}

/// `ids[turn % len]` without a panic edge: the verifier refuses a division or an index that might fail. The mask changes
/// nothing while `len` is right, and is what proves the bound to the verifier: it follows no comparison as far as this.
#[inline(always)]
fn at<const N: usize>(ids: &[BackendId; N], len: u32, turn: u32) -> Option<BackendId> {
    const { assert!(N.is_power_of_two()) };
    let index = turn.checked_rem(len)? as usize & (N - 1);
    ids.get(index).copied()
}

const _: () = assert!(size_of::<SlotTable>() == 8 + 2 * MAX_SLOTS + 2 * MAX_MEMBERS);

#[cfg(test)]
mod tests {
    use std::boxed::Box;

    use super::*;

    #[test]
    fn turns_go_round_and_an_empty_table_gives_nothing() {
        let mut table = Box::new(SlotTable::EMPTY);
        assert_eq!(table.at(7), None);
        table.slots[..3].copy_from_slice(&[BackendId(1), BackendId(2), BackendId(3)]);
        table.len = 3;
        let dealt: std::vec::Vec<_> = (0..7).map(|turn| table.at(turn).unwrap().0).collect();
        assert_eq!(dealt, [1, 2, 3, 1, 2, 3, 1]);
        assert_eq!(table.at(u32::MAX), Some(BackendId(1)));
    }

    #[test]
    fn a_length_beyond_the_table_stays_inside_it() {
        let mut table = Box::new(SlotTable::EMPTY);
        table.len = u32::MAX;
        assert_eq!(table.at(MAX_SLOTS as u32), Some(BackendId::NONE));
    }
}
