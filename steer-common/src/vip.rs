//! Virtual addresses of Swarm services, which hold inside an overlay network only.
//!
//! A socket that asks for one is connected to a task's own address in that network instead, on the port it asked for. Networks are
//! kept apart by who asks: the same address is another service to a namespace that is in another network.

use crate::addr::Addr;
use crate::backend::{BackendId, BackendState};
use crate::limits::MAX_VIP_MEMBERS;
use crate::tables::Tables;

/// A virtual address, as one network namespace sees it. Key of `VIP_KEYS`; the value is an index into `VIPS`.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Debug)]
#[repr(C)]
pub struct VipKey {
    /// Of the namespace of the socket that asks (`SO_NETNS_COOKIE`).
    pub netns_cookie: u64,
    pub addr: Addr,
}

/// A task behind a virtual address.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct VipMember {
    /// In the overlay network.
    pub addr: Addr,
    /// Of the backend's id.
    pub generation: u32,
    /// The same container as a backend of this host, whose state counts then. 0 = none: the swarm's word counts.
    pub backend: BackendId,
    /// Bits of [`VipMember::REMOTE`].
    pub flags: u16,
}

impl VipMember {
    /// On another node: what is known of it gets old.
    pub const REMOTE: u16 = 1;
}

/// Value of `VIPS`; written by the agent only. A reader may see a half of an older one: it takes one task for another of the same
/// service, or one that was there a moment ago.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(C)]
pub struct VipEntry {
    /// How many members are in use.
    pub members_len: u32,
    pub pad: u32,
    pub members: [VipMember; MAX_VIP_MEMBERS],
}

impl VipEntry {
    /// One without tasks.
    pub const EMPTY: Self = {
        let nobody = VipMember { addr: Addr::UNSPECIFIED, generation: 0, backend: BackendId(0), flags: 0 };
        Self { members_len: 0, pad: 0, members: [nobody; MAX_VIP_MEMBERS] }
    };

    /// `members[turn % members_len]`, without a panic edge: as in [`crate::slot`].
    #[inline(always)]
    fn at(&self, turn: u32) -> Option<&VipMember> {
        const { assert!(MAX_VIP_MEMBERS.is_power_of_two()) };
        let index = turn.checked_rem(self.members_len)? as usize & (MAX_VIP_MEMBERS - 1);
        self.members.get(index)
    }
}

/// The task that takes a new connection, in turn; `None` = no one is ready. `is_fresh`: the agent has told lately of tasks on other
/// nodes.
#[inline(always)]
pub fn pick_task<T: Tables>(tables: &T, vip: &VipEntry, turn: u32, is_fresh: bool) -> Option<VipMember> {
    for i in 0..MAX_VIP_MEMBERS as u32 {
        if i >= vip.members_len {
            break;
        }
        let Some(member) = vip.at(turn.wrapping_add(i)) else { break };
        if is_ready(tables, member, is_fresh) {
            return Some(*member);
        }
    }
    None
}

#[inline(always)]
fn is_ready<T: Tables>(tables: &T, member: &VipMember, is_fresh: bool) -> bool {
    if member.backend.0 == 0 {
        return is_fresh || member.flags & VipMember::REMOTE == 0;
    }
    // The kernel may know more than the agent: it was sent its stop signal, or has ended.
    let is_same = tables.backend(member.backend).is_some_and(|backend| backend.generation == member.generation);
    is_same && matches!(tables.backend_state(member.backend).0, BackendState::Ready)
}

const _: () = assert!(size_of::<VipKey>() == 24);
const _: () = assert!(size_of::<VipMember>() == 24);
const _: () = assert!(size_of::<VipEntry>() == 8 + 24 * MAX_VIP_MEMBERS);

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;
    use crate::fixtures::{World, addr};

    /// Two backends of this host, a task of this host that is none, and one of another node.
    fn vip() -> Box<VipEntry> {
        let mut vip = Box::new(VipEntry::EMPTY);
        let member = |last: u16, backend: u16, generation: u32, flags: u16| VipMember {
            addr: addr(&std::format!("10.0.1.{last}")),
            generation,
            backend: BackendId(backend),
            flags,
        };
        vip.members[..4].copy_from_slice(&[
            member(1, 1, 1, 0),
            member(2, 2, 1, 0),
            member(3, 0, 0, 0),
            member(4, 0, 0, VipMember::REMOTE),
        ]);
        vip.members_len = 4;
        vip
    }

    fn picked(world: &World, is_fresh: bool) -> Vec<usize> {
        let vip = vip();
        let pick = |turn| pick_task(world, &vip, turn, is_fresh).unwrap();
        let place = |member: VipMember| vip.members.iter().position(|other| *other == member).unwrap() + 1;
        (0..4).map(|turn| place(pick(turn))).collect()
    }

    #[test]
    fn tasks_take_turns() {
        assert_eq!(picked(&World::with_backends(&[1, 2]), true), [1, 2, 3, 4]);
    }

    #[test]
    fn who_is_not_ready_is_passed_over() {
        let mut world = World::with_backends(&[1, 2]);
        world.set(1, BackendState::Draining);
        assert_eq!(picked(&world, true), [2, 2, 3, 4]);
        world.replace(2);
        assert_eq!(picked(&world, true), [3, 3, 3, 4], "the id has another tenant");
    }

    #[test]
    fn old_news_of_other_nodes_is_no_news() {
        assert_eq!(picked(&World::with_backends(&[1, 2]), false), [1, 2, 3, 1]);
    }

    #[test]
    fn nobody_is_nobody() {
        let world = World::with_backends(&[]);
        assert_eq!(pick_task(&world, &VipEntry::EMPTY, 7, true), None);
        let mut wrong = VipEntry::EMPTY;
        wrong.members_len = u32::MAX;
        assert!(pick_task(&world, &wrong, 7, true).is_some(), "a length beyond the table stays inside it");
    }
}
