//! Virtual addresses of services: who may ask for which, and what stands behind it.
//!
//! Each address is a network's own: it is told to the network namespaces of the containers that are in that network, and to no
//! others, so that two networks may use the same one.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;

use steer_common::addr::Addr;
use steer_common::backend::BackendId;
use steer_common::limits::{MAX_VIP_KEYS, MAX_VIP_MEMBERS, MAX_VIPS};
use steer_common::vip::{VipEntry, VipKey, VipMember};

use super::Task;
use crate::model::Problem;

/// A service's virtual address in one overlay network.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Vip {
    pub network: String,
    pub service: String,
    pub address: Ipv4Addr,
    /// Address in that network by task, on whatever node.
    pub tasks: BTreeMap<String, Ipv4Addr>,
}

impl Vip {
    /// The name that Docker's name server has for the tasks behind it that are not to stop.
    pub fn name_of_tasks(&self) -> String {
        format!("tasks.{}.{}", self.service, self.network)
    }
}

/// A task on this node, as a place to ask from.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Place {
    pub netns_cookie: u64,
    /// Names of the networks that it is in.
    pub networks: BTreeSet<String>,
}

/// A task on this node, as somebody to be asked.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Local {
    /// Id and generation, where it is a backend too.
    pub backend: Option<(BackendId, u32)>,
    /// The id that its network namespace has in that of each who may ask for it; `None` = not in all of them.
    pub netns_id: Option<i32>,
    /// It takes nothing new: it is to end, has ended, stands still, or its weight is 0.
    pub is_out: bool,
    /// steer is to leave it alone, and so the addresses that it stands behind.
    pub is_left_alone: bool,
}

/// The id that a network namespace is given in those of others, the same in all of them, so that a table that many read may name it.
/// Nothing is to be remembered for it, and no other namespace gets it: cookies count up, and a host that has seen 2^30 namespaces
/// is a busy one. Far from where the kernel begins to count by itself.
pub const fn netns_id(netns_cookie: u64) -> i32 {
    const FIRST: u32 = 1 << 30;
    (FIRST | (netns_cookie as u32 & (FIRST - 1))).cast_signed()
}

/// What is to be known.
#[derive(Clone, Copy, Debug)]
pub struct VipFacts<'a> {
    pub vips: &'a [Vip],
    pub places: &'a [Place],
    /// By task.
    pub local: &'a BTreeMap<String, Local>,
    /// The tasks of the whole swarm that run and are to run; `None` = nobody tells (a worker).
    pub running: Option<&'a BTreeSet<String>>,
    /// The tasks of this node, whether their containers are known yet or not; `None` = nobody tells (a worker).
    pub here: Option<&'a BTreeMap<String, Task>>,
    /// Tasks that Swarm sends nothing new to, as far as that is known.
    pub disabled: &'a BTreeSet<String>,
}

/// The tasks of this node that have ended since the swarm was asked for its last answer, which names them still: without this they
/// would look as tasks on other nodes do. `M`: a moment, by a clock that only goes forward.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ended<M> {
    at: BTreeMap<String, M>,
}

impl<M> Default for Ended<M> {
    fn default() -> Self {
        Self { at: BTreeMap::new() }
    }
}

impl<M: Ord> Ended<M> {
    /// A task's container has ended.
    pub fn note(&mut self, task: String, now: M) {
        self.at.insert(task, now);
    }

    /// There is an answer to what the swarm was `asked` then: it takes into account whatever had ended before.
    pub fn answered(&mut self, asked: &M) {
        self.at.retain(|_, ended| *ended >= *asked);
    }

    /// Whom nobody is to be sent to.
    pub fn tasks(&self) -> impl Iterator<Item = (String, Local)> {
        self.at.keys().map(|task| (task.clone(), Local { is_out: true, ..Local::default() }))
    }
}

/// What the maps should hold.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct VipTables {
    pub keys: BTreeMap<VipKey, u32>,
    pub entries: BTreeMap<u32, Box<VipEntry>>,
}

/// Which index an address has: for as long as it is there, the same.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ids {
    taken: BTreeMap<(String, Ipv4Addr), u32>,
}

impl Ids {
    fn keep(&mut self, vips: &[&Vip]) {
        self.taken
            .retain(|(network, address), _| vips.iter().any(|vip| vip.network == *network && vip.address == *address));
    }

    fn of(&mut self, vip: &Vip) -> Option<u32> {
        let key = (vip.network.clone(), vip.address);
        if let Some(id) = self.taken.get(&key) {
            return Some(*id);
        }
        let used: BTreeSet<u32> = self.taken.values().copied().collect();
        let free = (0..MAX_VIPS).find(|id| !used.contains(id))?;
        self.taken.insert(key, free);
        Some(free)
    }
}

/// What the maps should hold, and what there is no room for.
pub fn tables(observed: &VipFacts<'_>, ids: &mut Ids) -> (VipTables, Vec<Problem>) {
    let mut tables = VipTables::default();
    let mut problems = Vec::new();
    let asked = asked(observed);
    ids.keep(&asked.iter().map(|(vip, _)| *vip).collect::<Vec<_>>());
    for (vip, askers) in asked {
        let mut problem = |message: String| {
            let message = format!("virtual address {} in network {}: {message}", vip.address, vip.network);
            problems.push(Problem::of(vip.service.clone(), message));
        };
        let Some(id) = ids.of(vip) else {
            problem(format!("{MAX_VIPS} are steered already: this one is left to Swarm"));
            continue;
        };
        if tables.keys.len() + askers.len() > MAX_VIP_KEYS as usize {
            problem(format!("{MAX_VIP_KEYS} pairs of address and container are steered already: left to Swarm"));
            continue;
        }
        let (entry, left_out) = entry(vip, observed);
        if left_out > 0 {
            problem(format!("{left_out} tasks get nothing: {MAX_VIP_MEMBERS} take turns already"));
        }
        tables.entries.insert(id, entry);
        let key = |place: &&Place| VipKey { netns_cookie: place.netns_cookie, addr: Addr::from(vip.address) };
        tables.keys.extend(askers.iter().map(|place| (key(place), id)));
    }
    (tables, problems)
}

/// The addresses that are steered, and who here may ask for each.
pub(super) fn asked<'a>(observed: &VipFacts<'a>) -> Vec<(&'a Vip, Vec<&'a Place>)> {
    let askers = |vip: &Vip| observed.places.iter().filter(|place| place.networks.contains(&vip.network)).collect();
    let steered = observed.vips.iter().filter(|vip| !is_left_alone(vip, observed));
    let asked = steered.map(|vip| (vip, askers(vip))).filter(|(_, askers): &(_, Vec<_>)| !askers.is_empty());
    asked.collect()
}

/// Whether a task of this node behind an address was told to be left alone: who asks for it is Swarm's matter.
fn is_left_alone(vip: &Vip, observed: &VipFacts<'_>) -> bool {
    let mut local = vip.tasks.keys().filter_map(|task| observed.local.get(task));
    local.any(|task| task.is_left_alone)
}

/// The tasks that may take connections, and how many more there are.
fn entry(vip: &Vip, observed: &VipFacts<'_>) -> (Box<VipEntry>, usize) {
    let mut entry = Box::new(VipEntry::EMPTY);
    let mut left_out = 0;
    for (task, address) in &vip.tasks {
        let Some(member) = member(task, *address, observed) else { continue };
        match entry.members.get_mut(entry.members_len as usize) {
            Some(place) => {
                *place = member;
                entry.members_len += 1;
            }
            None => left_out += 1,
        }
    }
    (entry, left_out)
}

/// A task that may take connections; `None` = it may not.
fn member(task: &str, address: Ipv4Addr, observed: &VipFacts<'_>) -> Option<VipMember> {
    if observed.running.is_some_and(|running| !running.contains(task)) {
        return None;
    }
    let addr = Addr::from(address);
    match observed.local.get(task) {
        Some(Local { is_out: true, .. }) => None,
        Some(local) => {
            let (backend, generation) = local.backend.unwrap_or((BackendId::NONE, 0));
            let netns_id = local.netns_id.unwrap_or(VipMember::UNSEEN);
            Some(VipMember { addr, generation, backend, flags: 0, netns_id })
        }
        // One of this node whose container Docker has not described yet is no task of another node.
        None if observed.here.is_some_and(|here| here.contains_key(task)) => None,
        // Of those of this node the kernel and Docker tell sooner.
        None if observed.disabled.contains(task) => None,
        None => {
            let (backend, flags, netns_id) = (BackendId::NONE, VipMember::REMOTE, VipMember::UNSEEN);
            Some(VipMember { addr, generation: 0, backend, flags, netns_id })
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::swarm::DesiredState;

    static NOBODY: BTreeSet<String> = BTreeSet::new();

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 1, last)
    }

    fn vip(network: &str, service: &str, tasks: &[(&str, u8)]) -> Vip {
        let tasks = tasks.iter().map(|(task, last)| ((*task).to_owned(), ip(*last))).collect();
        Vip { network: network.to_owned(), service: service.to_owned(), address: ip(2), tasks }
    }

    fn place(netns_cookie: u64, networks: &[&str]) -> Place {
        Place { netns_cookie, networks: networks.iter().map(|name| (*name).to_owned()).collect() }
    }

    fn key(netns_cookie: u64) -> VipKey {
        VipKey { netns_cookie, addr: Addr::from(ip(2)) }
    }

    fn members(entry: &VipEntry) -> Vec<(u8, u16, u16)> {
        let used = entry.members.iter().take(entry.members_len as usize);
        used.map(|member| {
            (
                member.addr.to_ip().to_string().rsplit('.').next().unwrap().parse().unwrap(),
                member.backend.0,
                member.flags,
            )
        })
        .collect()
    }

    #[test]
    fn the_same_address_in_two_networks_is_two_services() {
        let vips =
            [vip("front", "web", &[("w1", 11)]), vip("back", "db", &[("d1", 21)]), vip("far", "x", &[("x1", 31)])];
        let places = [place(7, &["front", "ingress"]), place(8, &["back"]), place(9, &["front"])];
        let local = BTreeMap::new();
        let observed =
            VipFacts { vips: &vips, places: &places, local: &local, running: None, here: None, disabled: &NOBODY };
        let (tables, problems) = tables(&observed, &mut Ids::default());
        assert_eq!(problems, []);
        assert_eq!(tables.keys, [(key(7), 0), (key(8), 1), (key(9), 0)].into());
        assert_eq!(members(&tables.entries[&0]), [(11, 0, VipMember::REMOTE)]);
        assert_eq!(members(&tables.entries[&1]), [(21, 0, VipMember::REMOTE)]);
        assert_eq!(tables.entries.len(), 2, "nobody here is in the third");
    }

    #[test]
    fn who_leaves_or_is_not_to_run_stands_behind_no_address() {
        let vips =
            [vip("front", "web", &[("here", 1), ("going", 2), ("inner", 3), ("there", 4), ("ended", 5), ("young", 6)])];
        let places = [place(7, &["front"])];
        let local = BTreeMap::from([
            ("here".to_owned(), Local { backend: Some((BackendId(5), 1)), ..Local::default() }),
            ("going".to_owned(), Local { backend: Some((BackendId(6), 1)), is_out: true, ..Local::default() }),
            ("inner".to_owned(), Local::default()),
            ("young".to_owned(), Local::default()),
        ]);
        let running: BTreeSet<String> = ["here", "going", "inner", "there"].map(str::to_owned).into();
        let observed = VipFacts {
            vips: &vips,
            places: &places,
            local: &local,
            running: Some(&running),
            here: None,
            disabled: &NOBODY,
        };
        let (known, _) = tables(&observed, &mut Ids::default());
        assert_eq!(members(&known.entries[&0]), [(1, 5, 0), (3, 0, 0), (4, 0, VipMember::REMOTE)]);
        let (guessed, _) = tables(&VipFacts { running: None, ..observed }, &mut Ids::default());
        assert_eq!(members(&guessed.entries[&0]).len(), 5, "a worker takes what is listed");
    }

    #[test]
    fn a_task_of_this_node_that_is_not_known_yet_is_no_task_of_another_one() {
        let vips = [vip("front", "web", &[("young", 1), ("there", 2)])];
        let places = [place(7, &["front"])];
        let local = BTreeMap::new();
        let here = BTreeMap::from([("young".to_owned(), Task { desired: DesiredState::Serve })]);
        let observed = VipFacts {
            vips: &vips,
            places: &places,
            local: &local,
            running: None,
            here: Some(&here),
            disabled: &NOBODY,
        };
        let (known, _) = tables(&observed, &mut Ids::default());
        assert_eq!(members(&known.entries[&0]), [(2, 0, VipMember::REMOTE)]);
        let (guessed, _) = tables(&VipFacts { here: None, ..observed }, &mut Ids::default());
        assert_eq!(members(&guessed.entries[&0]).len(), 2, "a worker cannot know");
    }

    #[test]
    fn a_task_of_another_node_that_swarm_sends_nothing_new_to_stands_behind_no_address() {
        let vips = [vip("front", "web", &[("here", 1), ("there", 2), ("stopping", 3)])];
        let places = [place(7, &["front"])];
        let local = BTreeMap::from([("here".to_owned(), Local::default())]);
        let disabled = ["here", "stopping"].map(str::to_owned).into();
        let observed =
            VipFacts { vips: &vips, places: &places, local: &local, running: None, here: None, disabled: &disabled };
        let (known, _) = tables(&observed, &mut Ids::default());
        assert_eq!(
            members(&known.entries[&0]),
            [(1, 0, 0), (2, 0, VipMember::REMOTE)],
            "of its own a node knows better"
        );
    }

    #[test]
    fn an_address_of_somebody_who_is_to_be_left_alone_is_left_to_swarm() {
        let vips = [vip("front", "web", &[("here", 1), ("there", 2)]), vip("front", "db", &[("db", 3)])];
        let places = [place(7, &["front"])];
        let alone = Local { is_left_alone: true, ..Local::default() };
        let local = BTreeMap::from([("here".to_owned(), alone)]);
        let observed =
            VipFacts { vips: &vips[..1], places: &places, local: &local, running: None, here: None, disabled: &NOBODY };
        assert_eq!(tables(&observed, &mut Ids::default()), Default::default());
        let (both, _) = tables(&VipFacts { vips: &vips, ..observed }, &mut Ids::default());
        assert_eq!(members(&both.entries[&0]), [(3, 0, VipMember::REMOTE)]);
    }

    #[test]
    fn whoever_is_seen_by_all_that_may_ask_has_the_id_they_see_it_by() {
        let vips = [vip("front", "web", &[("seen", 1), ("unseen", 2), ("there", 3)])];
        let places = [place(7, &["front"])];
        let seen = Local { netns_id: Some(netns_id(8)), ..Local::default() };
        let local = BTreeMap::from([("seen".to_owned(), seen), ("unseen".to_owned(), Local::default())]);
        let observed =
            VipFacts { vips: &vips, places: &places, local: &local, running: None, here: None, disabled: &NOBODY };
        let (found, _) = tables(&observed, &mut Ids::default());
        let ids: Vec<_> = found.entries[&0].members.iter().take(3).map(|member| member.netns_id).collect();
        assert_eq!(ids, [netns_id(8), VipMember::UNSEEN, VipMember::UNSEEN]);
    }

    #[test]
    fn ids_of_namespaces_are_good_ones_and_apart() {
        let ids: BTreeSet<i32> = [1, 2, 4097, (1 << 30) - 1, u64::MAX].into_iter().map(netns_id).collect();
        assert!(ids.iter().all(|id| *id >= 1 << 30), "{ids:?}");
        assert_eq!(ids.len(), 4, "the last two are 2^30 namespaces apart, or more");
        assert_ne!(netns_id(1 << 30), netns_id(1));
    }

    #[test]
    fn who_has_ended_is_no_task_of_another_node_until_the_swarm_was_asked_after_that() {
        let vips = [vip("front", "web", &[("here", 1), ("there", 2)])];
        let places = [place(7, &["front"])];
        let behind = |ended: &Ended<u32>, local: &[&str]| {
            let mut known: BTreeMap<_, _> = ended.tasks().collect();
            known.extend(local.iter().map(|task| ((*task).to_owned(), Local::default())));
            let observed =
                VipFacts { vips: &vips, places: &places, local: &known, running: None, here: None, disabled: &NOBODY };
            members(&tables(&observed, &mut Ids::default()).0.entries[&0])
        };
        let mut ended = Ended::default();
        assert_eq!(behind(&ended, &["here"]), [(1, 0, 0), (2, 0, VipMember::REMOTE)]);
        ended.note("here".to_owned(), 11);
        assert_eq!(behind(&ended, &[]), [(2, 0, VipMember::REMOTE)], "the answer before knows nothing of it");
        ended.answered(&10);
        assert_eq!(behind(&ended, &[]), [(2, 0, VipMember::REMOTE)], "nor does one that was asked before");
        ended.answered(&20);
        assert_eq!(ended, Ended::default(), "from now on the swarm's word counts");
    }

    #[test]
    fn an_address_keeps_its_index_while_others_come_and_go() {
        let places = [place(7, &["a", "b", "c"])];
        let local = BTreeMap::new();
        let mut ids = Ids::default();
        let mut indices = |networks: &[&str]| {
            let vips: Vec<_> = networks.iter().map(|network| vip(network, "web", &[])).collect();
            let observed =
                VipFacts { vips: &vips, places: &places, local: &local, running: None, here: None, disabled: &NOBODY };
            tables(&observed, &mut ids);
            networks.iter().map(|network| ids.taken[&((*network).to_owned(), ip(2))]).collect::<Vec<_>>()
        };
        assert_eq!(indices(&["a", "b"]), [0, 1]);
        assert_eq!(indices(&["b"]), [1]);
        assert_eq!(indices(&["b", "c"]), [1, 0]);
    }

    #[test]
    fn what_has_no_room_is_told_and_hurts_nobody_else() {
        let tasks: Vec<(String, u8)> =
            (0..=MAX_VIP_MEMBERS).map(|number| (format!("t{number:03}"), number as u8)).collect();
        let tasks: Vec<(&str, u8)> = tasks.iter().map(|(task, last)| (task.as_str(), *last)).collect();
        let mut vips = vec![vip("front", "web", &tasks)];
        vips.extend((0..MAX_VIPS).map(|number| Vip { address: Ipv4Addr::from(number), ..vip("front", "more", &[]) }));
        let places = [place(7, &["front"])];
        let local = BTreeMap::new();
        let (found, problems) = tables(
            &VipFacts { vips: &vips, places: &places, local: &local, running: None, here: None, disabled: &NOBODY },
            &mut Ids::default(),
        );
        assert_eq!((found.entries.len(), found.keys.len()), (MAX_VIPS as usize, MAX_VIPS as usize));
        let told: Vec<_> = problems.iter().map(|problem| problem.container.as_str()).collect();
        assert_eq!(told, ["web", "more"]);
    }
}
