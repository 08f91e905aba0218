//! Virtual addresses of Swarm services, which hold inside an overlay network only.
//!
//! A socket that asks for one is connected to a task's own address in that network instead, on the port it asked for. Networks are
//! kept apart by who asks: the same address is another service to a namespace that is in another network.

use core::ops::ControlFlow;

use crate::addr::{Addr, Port};
use crate::backend::BackendId;
use crate::limits::MAX_VIP_MEMBERS;
use crate::state::BackendState;
use crate::tables::{Listening, Tables};

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
    /// Id of its network namespace in that of each who may ask; [`VipMember::UNSEEN`] = it has none there, so nobody can see whether it
    /// listens.
    pub netns_id: i32,
}

impl VipMember {
    /// On another node: what is known of it gets old.
    pub const REMOTE: u16 = 1;
    /// As `bpf_skc_lookup_tcp` would take it: the caller's own namespace, which is never meant.
    pub const UNSEEN: i32 = -1;
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
        let nobody = VipMember {
            addr: Addr::UNSPECIFIED,
            generation: 0,
            backend: BackendId::NONE,
            flags: 0,
            netns_id: VipMember::UNSEEN,
        };
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

/// A connection to a virtual address that needs a task.
#[derive(Clone, Copy, Debug)]
pub struct Ask {
    /// The port that was asked for, which is the task's own.
    pub port: Port,
    /// Whose turn it is.
    pub turn: u32,
    /// The agent has told lately of tasks on other nodes.
    pub is_fresh: bool,
}

/// The task that takes a new connection, in turn; `None` = no one is ready.
#[inline(always)]
pub fn pick_task<T: Tables>(tables: &T, vip: &VipEntry, ask: Ask) -> Option<VipMember> {
    // Not an `Option`: its empty half would be an undefined register, which the verifier does not take.
    const NOBODY: u32 = u32::MAX;
    let mut found = NOBODY;
    tables.each(vip.members_len.min(MAX_VIP_MEMBERS as u32), |i| {
        let turn = ask.turn.wrapping_add(i);
        let Some(member) = vip.at(turn) else { return ControlFlow::Break(()) };
        if !is_ready(tables, member, ask) {
            return ControlFlow::Continue(());
        }
        found = i;
        ControlFlow::Break(())
    });
    if found == NOBODY { None } else { vip.at(ask.turn.wrapping_add(found)).copied() }
}

#[inline(always)]
fn is_ready<T: Tables>(tables: &T, member: &VipMember, ask: Ask) -> bool {
    // Of a task that is no backend of this node, only the agent knows; of one on another node, it must have told lately.
    let (is_told_of, must_listen) = if member.backend.is_none() {
        (ask.is_fresh || member.flags & VipMember::REMOTE == 0, false)
    } else {
        judge(tables, member)
    };
    is_told_of
        && match tables.task_listens(member, ask.port) {
            Listening::Yes => true,
            Listening::No => false,
            Listening::Unknown => !must_listen,
        }
}

/// Whether a backend takes connections, and whether it must be seen to listen for that. The kernel may know more than the agent: it was
/// sent its stop signal, or has ended.
#[inline(always)]
fn judge<T: Tables>(tables: &T, member: &VipMember) -> (bool, bool) {
    if tables.backend(member.backend).is_none_or(|backend| backend.generation != member.generation) {
        return (false, false);
    }
    match tables.backend_state(member.backend) {
        (BackendState::Ready, _) => (true, false),
        // It lacks nothing but a listener at one of its ports, which need not be this one.
        (BackendState::Starting | BackendState::Unready, true) => (true, true),
        _ => (false, false),
    }
}

const _: () = assert!(size_of::<VipKey>() == 24);
const _: () = assert!(size_of::<VipMember>() == 28);
const _: () = assert!(size_of::<VipEntry>() == 8 + 28 * MAX_VIP_MEMBERS);

#[cfg(test)]
mod tests {
    use std::boxed::Box;
    use std::vec::Vec;

    use super::*;
    use crate::fixtures::{World, addr};

    const PORT: Port = Port::new(5000);

    /// Two backends of this host, a task of this host that is none, and one of another node.
    fn vip() -> Box<VipEntry> {
        let mut vip = Box::new(VipEntry::EMPTY);
        let member = |last: u16, backend: u16, generation: u32, flags: u16, netns_id: i32| VipMember {
            addr: addr(&std::format!("10.0.1.{last}")),
            generation,
            backend: BackendId(backend),
            flags,
            netns_id,
        };
        vip.members[..4].copy_from_slice(&[
            member(1, 1, 1, 0, 101),
            member(2, 2, 1, 0, 102),
            member(3, 0, 0, 0, 103),
            member(4, 0, 0, VipMember::REMOTE, VipMember::UNSEEN),
        ]);
        vip.members_len = 4;
        vip
    }

    fn picked(world: &World, is_fresh: bool) -> Vec<usize> {
        let vip = vip();
        let pick = |turn| pick_task(world, &vip, Ask { port: PORT, turn, is_fresh }).unwrap();
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
    fn who_lacks_nothing_but_a_listener_is_ready_where_it_has_one() {
        let mut world = World::with_backends(&[1, 2]);
        world.set(1, BackendState::Starting);
        assert_eq!(picked(&world, true), [2, 2, 3, 4]);
        world.if_listening.insert(BackendId(1));
        assert_eq!(picked(&world, true), [1, 2, 3, 4]);
        world.deaf_tasks.insert((101, PORT));
        assert_eq!(picked(&world, true), [2, 2, 3, 4]);
    }

    #[test]
    fn who_does_not_listen_at_this_instant_is_passed_over() {
        let mut world = World::with_backends(&[1, 2]);
        world.deaf_tasks.extend([(101, PORT), (103, PORT), (102, Port::new(81))]);
        assert_eq!(picked(&world, true), [2, 2, 4, 4], "at another port is not here");
        world.deaf_tasks.insert((102, PORT));
        assert_eq!(picked(&world, true), [4, 4, 4, 4], "of one on another node nobody can see it");
        let ask = Ask { port: PORT, turn: 0, is_fresh: false };
        assert_eq!(pick_task(&world, &vip(), ask), None);
    }

    #[test]
    fn old_news_of_other_nodes_is_no_news() {
        assert_eq!(picked(&World::with_backends(&[1, 2]), false), [1, 2, 3, 1]);
    }

    #[test]
    fn nobody_is_nobody() {
        let world = World::with_backends(&[]);
        let ask = Ask { port: PORT, turn: 7, is_fresh: true };
        assert_eq!(pick_task(&world, &VipEntry::EMPTY, ask), None);
        let mut wrong = VipEntry::EMPTY;
        wrong.members_len = u32::MAX;
        assert!(pick_task(&world, &wrong, ask).is_some(), "a length beyond the table stays inside it");
    }
}
