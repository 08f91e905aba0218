//! Which ports a task of this node serves.
//!
//! They never change: Swarm replaces the tasks of a service whose ports do, and what is open to the old ones stays with them. So what
//! a task was told to serve stays with it, however often its service is told anew.
//!
//! Problem: Docker tells ports of services, and what it told last may be older than a task, or younger.
//! Approach: a manager tells what a service is to be now. That is the task's as soon as it was asked for after the task was seen; what
//! was told before that is a guess, good enough to begin with. A worker tells what one task of the service serves, another one each
//! time: that is this one's for good, and a guess for those of whom nothing was told. A guess that is contradicted stays, since
//! connections may be open there, until it is known better; somebody has to ask.

use std::collections::{BTreeMap, BTreeSet};

use super::{Membership, Swarm};
use crate::model::PortSpec;

/// The ports of the tasks of this node, by task.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Ports {
    known: BTreeMap<String, TaskPorts>,
}

#[derive(Clone, PartialEq, Eq, Debug)]
struct TaskPorts {
    ports: Vec<PortSpec>,
    origin: Origin,
    /// Another task of its service serves other ones.
    is_doubted: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Origin {
    /// What was told of this task.
    Itself,
    /// What was told of its service, or of another task of it.
    Guess,
    /// An earlier agent, of which nobody knows from where it had them.
    Before,
}

/// A task of this node, to whom an answer of the swarm may matter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Here<'a> {
    pub of: &'a Membership,
    /// It was there before the swarm was asked.
    pub is_older: bool,
    pub networks: &'a BTreeSet<String>,
}

impl Ports {
    /// What a task serves, as far as is known.
    pub fn of(&self, task: &str) -> Option<&[PortSpec]> {
        self.known.get(task).map(|known| known.ports.as_slice())
    }

    /// What an earlier agent knew of a task that is new to this one.
    pub fn inherit(&mut self, task: &str, ports: Vec<PortSpec>) {
        self.known.entry(task.to_owned()).or_insert(TaskPorts { ports, origin: Origin::Before, is_doubted: false });
    }

    /// Takes in an answer of the swarm. All tasks of this node are `here`; whether anything is new for one of them.
    pub fn answered<'a>(&mut self, here: impl IntoIterator<Item = Here<'a>>, swarm: &Swarm) -> bool {
        let here: Vec<_> = here.into_iter().collect();
        let there: BTreeSet<&str> = here.iter().map(|here| here.of.task.as_str()).collect();
        self.known.retain(|task, _| there.contains(task.as_str()));
        let mut is_new = false;
        for here in here {
            is_new |= self.take_in(here, swarm);
        }
        is_new
    }

    /// Whether something is not known that the next answer may tell.
    pub fn are_doubted(&self) -> bool {
        self.known.values().any(|known| known.is_doubted)
    }

    /// Takes in what the swarm says of one task; whether that is new.
    pub fn take_in(&mut self, Here { of, is_older, networks }: Here<'_>, swarm: &Swarm) -> bool {
        if swarm.is_of_manager()
            && let Some(known) = self.known.get_mut(&of.task)
            && known.origin == Origin::Before
        {
            // A manager's word is of now, and may be of another task.
            (known.origin, known.is_doubted) = (Origin::Itself, false);
        }
        let before = self.known.get(&of.task);
        if before.is_some_and(|before| before.origin == Origin::Itself) {
            return false;
        }
        let Some((ports, origin)) = told(of, is_older, networks, swarm) else { return false };
        let known = match before {
            Some(before) if origin == Origin::Guess => {
                let is_doubted = before.is_doubted || before.ports != ports;
                TaskPorts { is_doubted, ..before.clone() }
            }
            _ => TaskPorts { ports, origin, is_doubted: false },
        };
        let is_new = before.is_none_or(|before| before.ports != known.ports);
        self.known.insert(of.task.clone(), known);
        is_new
    }
}

/// What an answer says of a task; `None` = nothing.
fn told(
    of: &Membership,
    is_older: bool,
    networks: &BTreeSet<String>,
    swarm: &Swarm,
) -> Option<(Vec<PortSpec>, Origin)> {
    if swarm.is_of_manager() {
        return Some((swarm.ports(of)?.to_vec(), if is_older { Origin::Itself } else { Origin::Guess }));
    }
    if let Some(own) = swarm.served.get(&of.task) {
        return Some((own.clone(), Origin::Itself));
    }
    // Who is not in the mesh's network publishes nothing, whatever others of its service do.
    if swarm.ingress.as_ref().is_some_and(|ingress| !networks.contains(ingress)) {
        return Some((Vec::new(), Origin::Itself));
    }
    Some((swarm.ports(of)?.to_vec(), Origin::Guess))
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;
    use crate::model::Protocol;
    use crate::model::swarm::{Service, published};

    fn membership(task: &str) -> Membership {
        Membership { service_id: "s1".to_owned(), service: "web".to_owned(), task: task.to_owned() }
    }

    fn ports(port: u16) -> Vec<PortSpec> {
        published([(port, 5000, Protocol::Tcp)])
    }

    /// What a manager says (`told`), or a worker (`told by task`): ports of the service `web`.
    fn swarm(answer: &str) -> Swarm {
        let (port, by) = answer.split_once(" by ").map_or((answer, None), |(port, by)| (port, Some(by)));
        let ports = if port == "none" { Vec::new() } else { ports(port.parse().unwrap()) };
        let service =
            Service { id: by.is_none().then(|| "s1".to_owned()), name: "web".to_owned(), ports: ports.clone() };
        Swarm {
            services: vec![service],
            tasks: by.is_none().then(BTreeMap::new),
            served: by.map(|task| (task.to_owned(), ports)).into_iter().collect(),
            ingress: by.map(|_| "ingress".to_owned()),
            ..Swarm::default()
        }
    }

    /// Answers, each `asked before` the task `t1` was seen or after, and what it serves after each.
    #[rstest]
    // A manager.
    #[case::what_is_told_later_is_another_tasks("after:9000=9000 after:9100=9000")]
    #[case::what_was_told_before_it_came_is_a_guess("before:9000=9000 after:9100=9100 after:9200=9100")]
    #[case::that_it_has_none_is_known_too("after:none=none after:9000=none")]
    // A worker.
    #[case::a_guess_stays("after:9000 by t2=9000 after:9100 by t3=9000 after:9000 by t2=9000")]
    #[case::until_it_is_told_itself("after:9000 by t2=9000 after:9100 by t1=9100 after:9000 by t2=9100")]
    #[case::whoever_was_first("before:9000 by t1=9000 after:9100 by t3=9000")]
    fn the_ports_of_a_task_do_not_change(#[case] answers: &str) {
        let (of, networks) = (membership("t1"), BTreeSet::from(["ingress".to_owned()]));
        let mut known = Ports::default();
        let words = answers.replace(" by ", "_by_");
        for (when, rest) in words.split(' ').map(|word| word.split_once(':').unwrap()) {
            let (answer, expected) = rest.split_once('=').unwrap();
            let here = Here { of: &of, is_older: when == "after", networks: &networks };
            let before = known.of("t1").map(<[_]>::to_vec);
            let is_new = known.answered([here], &swarm(&answer.replace("_by_", " by ")));
            let expected = if expected == "none" { Vec::new() } else { ports(expected.parse().unwrap()) };
            assert_eq!(known.of("t1"), Some(expected.as_slice()), "{answer} {when}");
            assert_eq!(is_new, before != Some(expected), "{answer} {when}");
        }
    }

    #[test]
    fn a_worker_asks_until_it_knows() {
        let (of, networks) = (membership("t1"), BTreeSet::from(["ingress".to_owned()]));
        let here = Here { of: &of, is_older: true, networks: &networks };
        let mut known = Ports::default();
        let mut doubted = |answer: &str| {
            known.answered([here], &swarm(answer));
            known.are_doubted()
        };
        assert!(!doubted("9000 by t2"), "as far as anybody knows, all serve the same");
        assert!(doubted("9100 by t3"));
        assert!(doubted("9000 by t2"), "that says nothing of this one");
        assert!(!doubted("9000 by t1"));
        assert!(!doubted("9100 by t3"));
        known.answered([], &swarm("9100 by t3"));
        assert_eq!(known, Ports::default(), "who has ended is forgotten");
    }

    #[test]
    fn who_is_not_in_the_meshs_network_publishes_nothing() {
        let (of, networks) = (membership("t1"), BTreeSet::from(["front".to_owned()]));
        let mut known = Ports::default();
        known.answered([Here { of: &of, is_older: true, networks: &networks }], &swarm("9000 by t2"));
        assert_eq!(known.of("t1"), Some([].as_slice()));
    }

    #[rstest]
    #[case::a_managers_word_is_of_now("9100", 9000)]
    #[case::a_worker_is_told_of_itself("9100 by t1", 9100)]
    #[case::or_not("9100 by t2", 9000)]
    fn what_an_earlier_agent_knew_stays_until_it_is_known_better(#[case] answer: &str, #[case] expected: u16) {
        let (of, networks) = (membership("t1"), BTreeSet::from(["ingress".to_owned()]));
        let mut known = Ports::default();
        let swarm = swarm(answer);
        known.inherit("t1", ports(9000));
        known.take_in(Here { of: &of, is_older: false, networks: &networks }, &swarm);
        known.answered([Here { of: &of, is_older: true, networks: &networks }], &swarm);
        assert_eq!(known.of("t1"), Some(ports(expected).as_slice()));
        assert_eq!(known.are_doubted(), answer.ends_with("t2"));
    }
}
