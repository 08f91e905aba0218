//! Which tasks on other nodes take nothing new, though a network still lists them.
//!
//! Problem: Swarm's own balancing leaves a task out as soon as that is told to stop, or is unhealthy, two seconds before its stop signal.
//! Each Docker hears of it from the task's node, but tells nobody: `network inspect` lists the task until it has ended. A manager tells
//! whom it has told to stop itself, and not who is unhealthy: that is its own node's matter until the task has ended.
//! Approach: in the same moment it takes the task's address out of what its name server answers to `tasks.<service>.<network>`. So that
//! is asked for, again and again, and whom an answer leaves out takes nothing new until another one has it. An answer that has none of
//! the tasks is no answer of Docker's (a name that it does not know is asked of the host's name servers): as if there were none.

use std::collections::{BTreeMap, BTreeSet};
use std::mem::take;
use std::net::Ipv4Addr;
use std::time::Duration;

use super::vips::{Place, Vip, VipFacts, asked};

/// How often a name is asked for.
const EVERY: Duration = Duration::from_millis(250);
/// The same after an answer that says nothing: it may have been asked for far away.
const SELDOM: Duration = Duration::from_secs(1);
/// How long an answer is good for, and how long one is waited for.
const GOOD: Duration = Duration::from_secs(5);

/// A virtual address with tasks behind it that may be told to stop without a word to this node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Doubt {
    pub vip: Vip,
    /// The cookies of the network namespaces that may ask about it.
    pub askers: Vec<u64>,
}

/// The addresses that are asked for from here, and have tasks on other nodes.
pub fn doubts(observed: &VipFacts<'_>) -> Vec<Doubt> {
    let has_remote = |vip: &Vip| vip.tasks.keys().any(|task| !observed.local.contains_key(task));
    let doubt = |(vip, askers): (&Vip, Vec<&Place>)| Doubt {
        vip: vip.clone(),
        askers: askers.into_iter().map(|place| place.netns_cookie).collect(),
    };
    asked(observed).into_iter().filter(|(vip, _)| has_remote(vip)).map(doubt).collect()
}

/// What was answered, and when to ask again. Moments are by a clock that only goes forward.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Disabled {
    /// By network and virtual address.
    known: BTreeMap<(String, Ipv4Addr), Inquiry>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Inquiry {
    doubt: Doubt,
    due: Duration,
    /// Whose turn it is to ask.
    turn: usize,
    answer: Option<Answer>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct Answer {
    left_out: BTreeSet<String>,
    asked: Duration,
}

impl Disabled {
    /// These are in doubt, and no others.
    pub fn keep(&mut self, doubts: Vec<Doubt>) {
        let mut before = take(&mut self.known);
        for doubt in doubts {
            let key = key(&doubt.vip);
            let known = match before.remove(&key) {
                Some(known) => Inquiry { doubt, ..known },
                None => Inquiry { doubt, due: Duration::ZERO, turn: 0, answer: None },
            };
            self.known.insert(key, known);
        }
    }

    /// When the next question is due.
    pub fn due(&self) -> Option<Duration> {
        self.known.values().map(|known| known.due).min()
    }

    /// What to ask now, by the cookie of the namespace to ask in: another one each time, lest all hang on one that gets no answer.
    pub fn take(&mut self, now: Duration) -> BTreeMap<u64, Vec<Vip>> {
        let mut questions: BTreeMap<u64, Vec<Vip>> = BTreeMap::new();
        for known in self.known.values_mut().filter(|known| known.due <= now) {
            known.due = now + GOOD;
            let askers = &known.doubt.askers;
            if let Some(asker) = known.turn.checked_rem(askers.len()).and_then(|turn| askers.get(turn)) {
                questions.entry(*asker).or_default().push(known.doubt.vip.clone());
            }
            known.turn = known.turn.wrapping_add(1);
        }
        questions
    }

    /// There is an answer to what was `asked` then about an address and the tasks that were known behind it; `None` = none that says
    /// anything.
    pub fn answered(&mut self, vip: &Vip, addresses: Option<&BTreeSet<Ipv4Addr>>, asked: Duration) {
        let Some(known) = self.known.get_mut(&key(vip)) else { return };
        match addresses.and_then(|addresses| left_out(vip, addresses)) {
            Some(left_out) => {
                known.due = asked + EVERY;
                known.answer = Some(Answer { left_out, asked });
            }
            None => known.due = asked + SELDOM,
        }
    }

    /// The tasks that are to get nothing new.
    pub fn tasks(&self, now: Duration) -> BTreeSet<String> {
        let answers = self.known.values().filter_map(|known| known.answer.as_ref());
        let good = answers.filter(|answer| now < answer.asked + GOOD);
        good.flat_map(|answer| answer.left_out.iter().cloned()).collect()
    }
}

fn key(vip: &Vip) -> (String, Ipv4Addr) {
    (vip.network.clone(), vip.address)
}

/// The tasks that an answer leaves out; `None` = it is about others.
fn left_out(vip: &Vip, answered: &BTreeSet<Ipv4Addr>) -> Option<BTreeSet<String>> {
    let left_out = vip.tasks.iter().filter(|(_, address)| !answered.contains(address));
    let left_out: BTreeSet<String> = left_out.map(|(task, _)| task.clone()).collect();
    (left_out.len() < vip.tasks.len()).then_some(left_out)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::swarm::vips::Local;

    const fn ms(ms: u64) -> Duration {
        Duration::from_millis(ms)
    }

    fn ip(last: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 1, last)
    }

    /// Behind 10.0.1.2: each task's name is the last number of its address.
    fn vip(tasks: &[u8]) -> Vip {
        let tasks = tasks.iter().map(|last| (last.to_string(), ip(*last))).collect();
        Vip { network: "front".to_owned(), service: "web".to_owned(), address: ip(2), tasks }
    }

    fn addresses(answered: &[u8]) -> BTreeSet<Ipv4Addr> {
        answered.iter().copied().map(ip).collect()
    }

    fn in_doubt(tasks: &[u8], askers: &[u64]) -> Disabled {
        let mut disabled = Disabled::default();
        disabled.keep(vec![Doubt { vip: vip(tasks), askers: askers.to_vec() }]);
        disabled
    }

    fn out(disabled: &Disabled, now: u64) -> String {
        disabled.tasks(ms(now)).into_iter().collect::<Vec<_>>().join(" ")
    }

    #[rstest]
    #[case::all_are_there(&[11, 12, 13], Some(""))]
    #[case::one_is_to_stop(&[11, 13], Some("12"))]
    #[case::one_alone_is_left(&[12], Some("11 13"))]
    #[case::and_somebody_who_is_not_known_yet(&[11, 12, 13, 14], Some(""))]
    #[case::about_others(&[99], None)]
    #[case::nobody(&[], None)]
    fn whom_an_answer_leaves_out_takes_nothing_new(#[case] answered: &[u8], #[case] expected: Option<&str>) {
        let found = left_out(&vip(&[11, 12, 13]), &addresses(answered));
        let found = found.map(|tasks| tasks.into_iter().collect::<Vec<_>>().join(" "));
        assert_eq!(found.as_deref(), expected);
    }

    #[test]
    fn who_was_left_out_and_is_back_is_in_again() {
        let mut disabled = in_doubt(&[11, 12], &[7]);
        disabled.answered(&vip(&[11, 12]), Some(&addresses(&[11])), ms(0));
        assert_eq!(out(&disabled, 100), "12");
        disabled.answered(&vip(&[11, 12]), Some(&addresses(&[11, 12])), ms(250));
        assert_eq!(out(&disabled, 300), "");
    }

    #[test]
    fn an_answer_judges_those_alone_that_were_known_when_it_was_asked_for() {
        let mut disabled = in_doubt(&[11, 12], &[7]);
        let asked = vip(&[11, 12]);
        disabled.keep(vec![Doubt { vip: vip(&[11, 12, 13]), askers: vec![7] }]);
        disabled.answered(&asked, Some(&addresses(&[11])), ms(0));
        assert_eq!(out(&disabled, 100), "12");
    }

    #[test]
    fn what_was_said_is_good_until_there_was_no_answer_for_a_while() {
        let mut disabled = in_doubt(&[11, 12], &[7]);
        disabled.answered(&vip(&[11, 12]), Some(&addresses(&[11])), ms(1_000));
        disabled.answered(&vip(&[11, 12]), None, ms(1_250));
        disabled.answered(&vip(&[11, 12]), Some(&addresses(&[99])), ms(2_250));
        assert_eq!(out(&disabled, 5_999), "12");
        assert_eq!(out(&disabled, 6_000), "", "from now on the network's list alone counts");
    }

    #[test]
    fn what_is_in_doubt_no_more_is_not_asked_about_and_forgotten() {
        let mut disabled = in_doubt(&[11, 12], &[7]);
        disabled.answered(&vip(&[11, 12]), Some(&addresses(&[11])), ms(0));
        disabled.keep(Vec::new());
        assert_eq!((disabled.due(), out(&disabled, 1)), (None, String::new()));
        disabled.answered(&vip(&[11, 12]), Some(&addresses(&[11])), ms(2));
        assert_eq!(out(&disabled, 3), "", "an answer that comes after that");
    }

    #[test]
    fn names_are_asked_for_four_times_a_second_and_less_often_while_nobody_answers() {
        let mut disabled = in_doubt(&[11, 12], &[7]);
        assert_eq!(disabled.due(), Some(ms(0)), "at once");
        assert_eq!(disabled.take(ms(40)), [(7, vec![vip(&[11, 12])])].into());
        assert_eq!(disabled.take(ms(300)), BTreeMap::new(), "not before there is an answer");
        disabled.answered(&vip(&[11, 12]), Some(&addresses(&[11])), ms(40));
        assert_eq!(disabled.due(), Some(ms(290)));
        disabled.answered(&vip(&[11, 12]), None, ms(290));
        assert_eq!(disabled.due(), Some(ms(1_290)));
    }

    #[test]
    fn who_asks_takes_turns() {
        let mut disabled = in_doubt(&[11, 12], &[7, 8]);
        let mut asker = |now| {
            let questions = disabled.take(ms(now));
            disabled.answered(&vip(&[11, 12]), None, ms(now));
            questions.into_keys().next()
        };
        assert_eq!([0, 1_000, 2_000].map(&mut asker), [Some(7), Some(8), Some(7)]);
    }

    #[rstest]
    #[case::a_task_on_another_node(&["11"], true)]
    #[case::all_are_here(&["11", "12"], false)]
    fn in_doubt_is_what_has_tasks_elsewhere(
        #[case] local: &[&str],
        #[case] expected: bool,
        #[values(true, false)] is_manager: bool,
    ) {
        // Nor is a manager told of all that becomes of those.
        let here = is_manager.then(BTreeMap::new);
        let local = local.iter().map(|task| ((*task).to_owned(), Local::default())).collect();
        let (vips, nobody) = ([vip(&[11, 12])], BTreeSet::new());
        let place = |netns_cookie, network: &str| Place { netns_cookie, networks: [network.to_owned()].into() };
        let places = [place(6, "back"), place(7, "front")];
        let observed = VipFacts {
            vips: &vips,
            places: &places,
            local: &local,
            running: None,
            here: here.as_ref(),
            disabled: &nobody,
        };
        let expected = expected.then(|| Doubt { vip: vip(&[11, 12]), askers: vec![7] });
        assert_eq!(doubts(&observed), Vec::from_iter(expected));
        assert_eq!(doubts(&VipFacts { places: &places[..1], ..observed }), [], "nobody asks for it from here");
    }
}
