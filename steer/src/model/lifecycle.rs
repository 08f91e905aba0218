//! When a backend is ready, draining or gone.
//!
//! `starting → ready ⇄ unready → draining → drained → gone`, and `maintenance`, an operator's. A healthcheck decides readiness
//! where there is one, listening where there is none; unready is not dead. Strongest first: the end of its process, a stop signal, a
//! task that Swarm wants to end, the operator, a problem, a pause, then health or listening.

use std::time::Duration;

use steer_common::state::BackendState;

use super::cause::{Cause, Source};
use super::swarm::Leaving;
use super::{Health, ReadyPolicy};

/// All that is known about one run of a container.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Facts {
    pub policy: ReadyPolicy,
    pub health: Health,
    /// Whether its ports listen; `None` = nobody has looked yet.
    pub listening: Option<bool>,
    pub paused: bool,
    /// The signal that asked it to stop, if one did.
    pub stop_signal: Option<i32>,
    /// Docker told of that signal, not the kernel.
    pub stop_by_event: bool,
    /// Its first process has ended.
    pub exited: bool,
    /// The signal that it outlived, since when it has been ready.
    pub survived: Option<i32>,
    /// It is a task that Swarm wants to end, and its container still runs.
    pub leaving: Option<Leaving>,
    /// The operator took it out (`steer drain`).
    pub maintenance: bool,
    /// The operator put it in (`steer undrain`); only asked for by [`ReadyPolicy::Manual`].
    pub put_in: bool,
    /// It may get nothing new until somebody has mended something, but what it has goes on.
    pub has_problem: bool,
    /// Who says why it is in its present state.
    pub by: Option<Source>,
    /// Flows that are live or about to be; `None` = not counted yet.
    pub flows: Option<u64>,
}

impl Facts {
    /// Whether listening decides about it.
    pub fn by_listening(&self) -> bool {
        match self.policy {
            ReadyPolicy::Listen => true,
            ReadyPolicy::Auto => self.health == Health::None,
            ReadyPolicy::Health | ReadyPolicy::Manual => false,
        }
    }
}

/// The state that follows from the facts, and its cause. `current` matters where silence must not demote: after a
/// restart of dockerd every healthcheck starts over at `starting`, while the containers serve as before.
pub fn next(current: BackendState, facts: &Facts) -> (BackendState, Cause) {
    use BackendState::{Drained, Draining, Gone, Maintenance, Ready, Starting, Unready};
    let Facts { policy, health, listening, paused, stop_signal, survived, maintenance, put_in, flows, .. } = *facts;
    if facts.exited {
        return (Gone, Cause::exit());
    }
    let draining = if flows == Some(0) && matches!(current, Draining | Drained) { Drained } else { Draining };
    if let Some(signal) = stop_signal {
        return (draining, stop_cause(signal, facts.stop_by_event));
    }
    if let Some(leaving) = facts.leaving {
        return (draining, Cause::new(Source::Swarm, leaving.name()));
    }
    if maintenance {
        return (Maintenance, Cause::new(Source::Operator, "drain"));
    }
    if facts.has_problem {
        return (Unready, Cause::problem());
    }
    if paused {
        return (Unready, Cause::new(Source::Event, "pause"));
    }
    let has_served = matches!(current, Ready | Unready | Maintenance | Draining | Drained);
    let by_health = |health| match health {
        Health::Healthy => (Ready, "healthy"),
        Health::Unhealthy => (Unready, "unhealthy"),
        Health::Starting if current == Ready => (Ready, "healthy"),
        Health::Starting if has_served => (Unready, "starting"),
        Health::Starting => (Starting, "starting"),
        Health::None => (Starting, "the container has no healthcheck, and steer.ready=health waits for one"),
    };
    let by_listening = || match listening {
        Some(true) => (Ready, "listening"),
        Some(false) if has_served => (Unready, "not listening"),
        Some(false) => (Starting, "not listening yet"),
        None if current == Ready => (Ready, "listening"),
        None => (Starting, "not looked at yet"),
    };
    let from = |source, (state, what): (BackendState, &str)| (state, Cause::new(source, what));
    let (state, cause) = match (policy, health) {
        (ReadyPolicy::Manual, _) if put_in || current == Ready => from(Source::Operator, (Ready, "undrain")),
        (ReadyPolicy::Manual, _) => (Starting, Cause::label("steer.ready=manual waits for `steer undrain`")),
        (ReadyPolicy::Listen, _) | (ReadyPolicy::Auto, Health::None) => from(Source::Listen, by_listening()),
        (ReadyPolicy::Health | ReadyPolicy::Auto, health) => from(Source::Health, by_health(health)),
    };
    match survived {
        Some(signal) if state == Ready => (state, Cause::survived(&signal_name(signal))),
        // It was as good before: what has changed is that it may serve again.
        _ if state == Ready && matches!(current, Maintenance | Draining | Drained) => match facts.by {
            Some(Source::Swarm) => from(Source::Swarm, (state, "serve")),
            _ => from(Source::Operator, (state, "undrain")),
        },
        _ => (state, cause),
    }
}

/// Of a stop signal, told by the kernel or by an event of Docker's.
pub fn stop_cause(signal: i32, by_event: bool) -> Cause {
    let signal = signal_name(signal);
    if by_event { Cause::new(Source::Event, format_args!("kill {signal}")) } else { Cause::new(Source::Signal, signal) }
}

/// Whether the kernel may give new flows to a backend in this state from the moment it listens: nothing but that is missing.
pub fn is_gated_by_listening(state: BackendState, facts: &Facts) -> bool {
    let waits = matches!(state, BackendState::Starting | BackendState::Unready);
    facts.by_listening()
        && waits
        && !facts.paused
        && !facts.maintenance
        && !facts.has_problem
        && !facts.exited
        && facts.stop_signal.is_none()
        && facts.leaving.is_none()
}

/// The least that a container is given to end after its stop signal.
const PATIENCE: Duration = Duration::from_secs(10);
/// The signal that nobody survives.
pub const KILL: i32 = 9;

/// How long after its last stop signal a container that still runs is held to be one that will not stop: whoever keeps flows for
/// longer (`steer.drain`), or is given more time by Docker, is given it here. `None` = for ever. `may_be_swarms`: it is a task, and
/// nobody tells what Swarm wants of it: Swarm takes no stop back, and how long it gives a task (`--stop-grace-period`) stands in no
/// container.
pub fn patience(drain: Duration, stop_timeout: Option<Duration>, may_be_swarms: bool) -> Option<Duration> {
    stop_timeout.filter(|_| !may_be_swarms).map(|stop_timeout| drain.max(stop_timeout).max(PATIENCE))
}

/// Whether a container that got its stop signal, `since` ago, goes on as if nothing had happened: it ignores that signal, or took
/// it for another order. Nobody survives `KILL`; and who does not serve is not put back.
pub fn has_survived(facts: &Facts, since: Duration, patience: Option<Duration>) -> bool {
    let Some(signal) = facts.stop_signal else { return false };
    let over = patience.is_some_and(|patience| since >= patience);
    let serves = || next(BackendState::Draining, &Facts { stop_signal: None, ..*facts }).0 == BackendState::Ready;
    signal != KILL && over && serves()
}

/// Whether a signal asks this container to stop: its own stop signal, or `KILL`. Others (a reload by `HUP`, logs reopened by
/// `USR1`) are none of steer's business.
pub const fn is_stop(signal: i32, stop_signal: i32) -> bool {
    signal == stop_signal || signal == KILL
}

/// The name of a signal, without `SIG`; its number where it is a rare one.
pub fn signal_name(signal: i32) -> String {
    let name = match signal {
        1 => "HUP",
        2 => "INT",
        3 => "QUIT",
        9 => "KILL",
        10 => "USR1",
        12 => "USR2",
        15 => "TERM",
        28 => "WINCH",
        other => return other.to_string(),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use steer_common::state::BackendState::{Drained, Draining, Gone, Maintenance, Ready, Starting, Unready};

    use super::*;

    const AUTO: Facts = Facts {
        policy: ReadyPolicy::Auto,
        health: Health::None,
        listening: None,
        paused: false,
        stop_signal: None,
        stop_by_event: false,
        exited: false,
        survived: None,
        leaving: None,
        maintenance: false,
        put_in: false,
        has_problem: false,
        by: None,
        flows: Some(0),
    };

    #[rstest]
    #[case::a_new_container_with_a_healthcheck_waits_for_it(Starting, Facts { health: Health::Starting, ..AUTO }, Starting)]
    #[case::a_healthy_one_is_ready(Starting, Facts { health: Health::Healthy, ..AUTO }, Ready)]
    #[case::an_unhealthy_one_is_out_but_not_dead(Ready, Facts { health: Health::Unhealthy, ..AUTO }, Unready)]
    #[case::and_comes_back(Unready, Facts { health: Health::Healthy, ..AUTO }, Ready)]
    #[case::a_dockerd_restart_does_not_demote(Ready, Facts { health: Health::Starting, ..AUTO }, Ready)]
    #[case::nor_does_it_promote(Unready, Facts { health: Health::Starting, ..AUTO }, Unready)]
    #[case::listening_is_enough_without_a_healthcheck(Starting, Facts { listening: Some(true), ..AUTO }, Ready)]
    #[case::but_not_with_one(Starting, Facts { listening: Some(true), health: Health::Starting, ..AUTO }, Starting)]
    #[case::unless_the_label_says_so(
        Starting,
        Facts { policy: ReadyPolicy::Listen, listening: Some(true), health: Health::Starting, ..AUTO },
        Ready
    )]
    #[case::not_listening_yet(Starting, Facts { listening: Some(false), ..AUTO }, Starting)]
    #[case::no_longer_listening(Ready, Facts { listening: Some(false), ..AUTO }, Unready)]
    #[case::health_policy_without_a_healthcheck_never_gets_ready(
        Starting,
        Facts { policy: ReadyPolicy::Health, listening: Some(true), ..AUTO },
        Starting
    )]
    #[case::manual_waits(Starting, Facts { policy: ReadyPolicy::Manual, health: Health::Healthy, ..AUTO }, Starting)]
    #[case::manual_is_put_in(Starting, Facts { policy: ReadyPolicy::Manual, put_in: true, ..AUTO }, Ready)]
    #[case::a_stop_signal_drains(Ready, Facts { stop_signal: Some(15), health: Health::Healthy, flows: Some(3), ..AUTO }, Draining)]
    #[case::even_with_no_flows_at_first(Ready, Facts { stop_signal: Some(15), ..AUTO }, Draining)]
    #[case::and_then_it_is_drained(Draining, Facts { stop_signal: Some(15), ..AUTO }, Drained)]
    #[case::not_before_its_flows_are_counted(Draining, Facts { stop_signal: Some(15), flows: None, ..AUTO }, Draining)]
    #[case::a_late_flow_makes_it_drain_again(Drained, Facts { stop_signal: Some(15), flows: Some(1), ..AUTO }, Draining)]
    #[case::health_does_not_bring_a_stopping_one_back(
        Draining,
        Facts { stop_signal: Some(15), health: Health::Healthy, flows: Some(1), ..AUTO },
        Draining
    )]
    #[case::the_operator_takes_a_healthy_one_out(Ready, Facts { maintenance: true, health: Health::Healthy, ..AUTO }, Maintenance)]
    #[case::one_that_ended_is_gone(Ready, Facts { exited: true, health: Health::Healthy, ..AUTO }, Gone)]
    #[case::and_back_in(Maintenance, Facts { health: Health::Healthy, ..AUTO }, Ready)]
    #[case::a_task_that_swarm_wants_to_end_drains_however_well_it_is(
        Ready,
        Facts { leaving: Some(Leaving::Shutdown), listening: Some(true), flows: Some(1), ..AUTO },
        Draining
    )]
    #[case::whatever_the_operator_says(
        Maintenance,
        Facts { leaving: Some(Leaving::Shutdown), maintenance: true, ..AUTO },
        Draining
    )]
    #[case::a_task_that_swarm_wants_after_all_is_back(Drained, Facts { listening: Some(true), ..AUTO }, Ready)]
    #[case::a_problem_takes_it_out(Ready, Facts { has_problem: true, health: Health::Healthy, ..AUTO }, Unready)]
    #[case::but_a_signal_is_a_signal(Ready, Facts { has_problem: true, stop_signal: Some(15), ..AUTO }, Draining)]
    #[case::a_pause_takes_it_out(Ready, Facts { paused: true, health: Health::Healthy, ..AUTO }, Unready)]
    #[case::who_waited_for_the_operator_waits_on(Unready, Facts { policy: ReadyPolicy::Manual, ..AUTO }, Starting)]
    #[case::whom_the_operator_put_in_is_back(Unready, Facts { policy: ReadyPolicy::Manual, put_in: true, ..AUTO }, Ready)]
    fn the_state_follows_from_the_facts(
        #[case] current: BackendState,
        #[case] facts: Facts,
        #[case] expected: BackendState,
    ) {
        let (state, cause) = next(current, &facts);
        assert_eq!(state, expected, "{cause:?}");
        assert_eq!(Cause::read(&cause.text), cause, "the maps keep the text, which tells the source too");
    }

    #[rstest]
    #[case::by_a_signal(Ready, Facts { stop_signal: Some(15), ..AUTO }, Source::Signal, "signal: TERM")]
    #[case::by_a_signal_that_docker_told_of(
        Ready,
        Facts { stop_signal: Some(9), stop_by_event: true, ..AUTO },
        Source::Event,
        "event: kill KILL"
    )]
    #[case::by_swarm_that_wants_it_after_all(
        Drained,
        Facts { by: Some(Source::Swarm), listening: Some(true), ..AUTO },
        Source::Swarm,
        "swarm: serve"
    )]
    #[case::by_the_operator(
        Drained,
        Facts { by: Some(Source::Signal), listening: Some(true), ..AUTO },
        Source::Operator,
        "operator: undrain"
    )]
    #[case::by_swarm(Ready, Facts { leaving: Some(Leaving::Remove), ..AUTO }, Source::Swarm, "swarm: remove")]
    #[case::by_a_signal_after_swarm_has_said_so(
        Draining,
        Facts { leaving: Some(Leaving::Remove), stop_signal: Some(15), flows: Some(1), ..AUTO },
        Source::Signal,
        "signal: TERM"
    )]
    #[case::by_its_end(Draining, Facts { stop_signal: Some(15), exited: true, ..AUTO }, Source::Exit, "exit")]
    #[case::by_the_operator(Ready, Facts { maintenance: true, ..AUTO }, Source::Operator, "operator: drain")]
    #[case::by_the_operator_again(
        Maintenance,
        Facts { health: Health::Healthy, ..AUTO },
        Source::Operator,
        "operator: undrain"
    )]
    #[case::by_the_operator_though_it_was_told_to_stop(
        Drained,
        Facts { listening: Some(true), ..AUTO },
        Source::Operator,
        "operator: undrain"
    )]
    #[case::but_it_is_sick(Maintenance, Facts { health: Health::Unhealthy, ..AUTO }, Source::Health, "health: unhealthy")]
    #[case::by_a_pause(Ready, Facts { paused: true, ..AUTO }, Source::Event, "event: pause")]
    #[case::by_its_health(Starting, Facts { health: Health::Healthy, ..AUTO }, Source::Health, "health: healthy")]
    #[case::by_listening(Starting, Facts { listening: Some(true), ..AUTO }, Source::Listen, "listen: listening")]
    #[case::by_a_label(
        Starting,
        Facts { policy: ReadyPolicy::Manual, ..AUTO },
        Source::Config,
        "steer.ready=manual waits for `steer undrain`"
    )]
    #[case::by_nothing_after_all(
        Draining,
        Facts { survived: Some(15), health: Health::Healthy, ..AUTO },
        Source::Signal,
        "survived: TERM"
    )]
    fn every_state_has_a_source_and_a_cause(
        #[case] current: BackendState,
        #[case] facts: Facts,
        #[case] source: Source,
        #[case] text: &str,
    ) {
        let (_, cause) = next(current, &facts);
        assert_eq!((cause.source, cause.text.as_str()), (source, text));
        assert_eq!(Cause::read(text), cause);
    }

    const STOPPING: Facts = Facts { stop_signal: Some(15), health: Health::Healthy, flows: Some(1), ..AUTO };

    #[rstest]
    #[case::it_still_serves(STOPPING, 30, true)]
    #[case::it_has_time_left(STOPPING, 29, false)]
    #[case::nobody_asked_it_to_stop(Facts { stop_signal: None, ..STOPPING }, 99, false)]
    #[case::nobody_survives_kill(Facts { stop_signal: Some(9), ..STOPPING }, 99, false)]
    #[case::its_own_stop_signal_is_quit(Facts { stop_signal: Some(3), ..STOPPING }, 30, true)]
    #[case::unhealthy(Facts { health: Health::Unhealthy, ..STOPPING }, 99, false)]
    #[case::its_health_is_not_known(Facts { health: Health::Starting, ..STOPPING }, 99, false)]
    #[case::it_listens(Facts { health: Health::None, listening: Some(true), ..STOPPING }, 30, true)]
    #[case::it_has_closed_its_listener(Facts { health: Health::None, listening: Some(false), ..STOPPING }, 99, false)]
    #[case::nobody_has_looked(Facts { health: Health::None, ..STOPPING }, 99, false)]
    #[case::listening_counts_where_the_label_says_so(
        Facts { policy: ReadyPolicy::Listen, health: Health::Unhealthy, listening: Some(true), ..STOPPING },
        30,
        true
    )]
    #[case::paused(Facts { paused: true, ..STOPPING }, 99, false)]
    #[case::the_operator_took_it_out(Facts { maintenance: true, ..STOPPING }, 99, false)]
    #[case::the_operator_put_it_in(Facts { policy: ReadyPolicy::Manual, put_in: true, ..STOPPING }, 30, true)]
    #[case::nobody_put_it_in(Facts { policy: ReadyPolicy::Manual, ..STOPPING }, 99, false)]
    fn who_outlives_its_stop_signal_and_serves_is_put_back(
        #[case] facts: Facts,
        #[case] since: u64,
        #[case] expected: bool,
    ) {
        let patience = patience(Duration::from_secs(30), Some(Duration::from_secs(10)), false);
        assert_eq!(has_survived(&facts, Duration::from_secs(since), patience), expected);
        assert!(!has_survived(&facts, Duration::from_secs(since), None), "some may take for ever");
        if expected {
            let facts = Facts { stop_signal: None, survived: facts.stop_signal, ..facts };
            let (state, cause) = next(Draining, &facts);
            let expected = Cause::survived(&signal_name(facts.survived.unwrap_or_default()));
            assert_eq!((state, cause), (Ready, expected));
        }
    }

    #[rstest]
    #[case::drain_is_longest(30, Some(10), Some(30))]
    #[case::docker_waits_longer(30, Some(90), Some(90))]
    #[case::never_less_than_ten_seconds(0, Some(1), Some(10))]
    #[case::docker_waits_for_ever(30, None, None)]
    fn patience_is_the_longest_of_all_times(
        #[case] drain: u64,
        #[case] stop_timeout: Option<u64>,
        #[case] expected: Option<u64>,
    ) {
        let (drain, stop_timeout) = (Duration::from_secs(drain), stop_timeout.map(Duration::from_secs));
        assert_eq!(patience(drain, stop_timeout, false), expected.map(Duration::from_secs));
        assert_eq!(patience(drain, stop_timeout, true), None, "Swarm takes no stop back");
    }

    #[rstest]
    #[case::docker_stop(15, 15, true)]
    #[case::nginx(3, 3, true)]
    #[case::kill(9, 3, true)]
    #[case::reload(1, 15, false)]
    #[case::reopen_logs(10, 15, false)]
    #[case::term_to_one_that_stops_by_quit(15, 3, false)]
    fn only_its_own_stop_signal_or_kill_stops_a_container(
        #[case] signal: i32,
        #[case] stop_signal: i32,
        #[case] stops: bool,
    ) {
        assert_eq!(is_stop(signal, stop_signal), stops);
    }

    #[test]
    fn the_same_facts_again_change_nothing_once_settled() {
        for current in BackendState::ALL {
            for health in [Health::None, Health::Starting, Health::Healthy, Health::Unhealthy] {
                for stop_signal in [None, Some(15)] {
                    let facts = Facts { health, stop_signal, ..AUTO };
                    let (once, _) = next(current, &facts);
                    let (twice, _) = next(once, &facts);
                    let (thrice, _) = next(twice, &facts);
                    assert_eq!(twice, thrice, "from {current:?} with {facts:?}");
                }
            }
        }
    }
}
