//! Stories, the reasons they move, and the proof that no reason is left out.

use std::collections::BTreeSet;
use std::panic::{catch_unwind, resume_unwind};

use steer::dataplane::paths::Paths;
use steer_common::verdict::Counter;
use steer_tests::bpf::{Bench, FRONTEND, Hook, bench, bench_for, from_backend, from_client};
use steer_tests::skip::{self, Need};

/// The reasons of the stories of one file.
pub(super) type Moved = &'static [&'static [Counter]];

/// Reasons that no packet of a test run can be counted under, each with where it is tested instead.
const ELSEWHERE: [(Counter, &str); 8] = [
    (Counter::DropTableFull, "an LRU map takes every entry; the decision is tested in steer-common"),
    (Counter::DropRewrite, "the kernel's checksum helpers do not fail on a packet that was parsed"),
    (Counter::FollowRecovered, "needs sockets: tests with real connections"),
    (Counter::ReplyRecovered, "needs sockets: tests with real connections"),
    (Counter::SteerLocal, "no test run for socket hooks: tests with real connections"),
    (Counter::PassLocalNoBackend, "no test run for socket hooks: tests with real connections"),
    (Counter::SteerVip, "no test run for socket hooks: tests with real connections"),
    (Counter::PassVip, "no test run for socket hooks: tests with real connections"),
];

/// Makes a test of each function named, which must move exactly the counters listed.
macro_rules! stories {
    ($($sentence:ident: [$($counter:ident),* $(,)?]),+ $(,)?) => {
        pub(super) const MOVED: super::story::Moved =
            &[$(&[$(steer_common::verdict::Counter::$counter),*]),+];

        mod told {
            $(
                #[test]
                fn $sentence() {
                    let moved = [$(steer_common::verdict::Counter::$counter),*];
                    super::super::story::tell(super::$sentence, moved.into());
                }
            )+
        }
    };
}

pub(super) fn tell(story: fn(&mut Bench), moved: BTreeSet<Counter>) {
    if skip::without(&[Need::Root]) {
        return;
    }
    bench(|bench| {
        story(bench);
        assert_eq!(*bench.moved(), moved, "the counters that moved over the whole story");
    });
}

/// A whole handshake over one hook; the backend it ends on.
#[track_caller]
pub(super) fn connect(bench: &mut Bench, hook: Hook, port: u16) -> u16 {
    let id = bench.send(hook, &from_client(port).syn(1)).goes_somewhere(Counter::SteerNew);
    bench.reply(id, &from_backend(id, port).syn_ack()).comes_from(FRONTEND);
    bench.send(hook, &from_client(port)).goes_to(id, Counter::Follow);
    id
}

/// Both sides close, the client first.
#[track_caller]
pub(super) fn close(bench: &mut Bench, hook: Hook, port: u16, id: u16) {
    bench.send(hook, &from_client(port).fin()).goes_to(id, Counter::Follow);
    bench.reply(id, &from_backend(id, port).fin()).comes_from(FRONTEND);
    bench.send(hook, &from_client(port)).goes_to(id, Counter::Follow);
}

#[test]
fn nothing_of_a_bench_is_seen_outside_of_it() {
    if skip::without(&[Need::Root]) {
        return;
    }
    let pins = || Paths::of("bench").map("FLOWS").exists();
    let link = || nix::net::if_::if_nametoindex("b6").is_ok();
    let seen = || (pins(), link());
    assert_eq!(seen(), (false, false), "something else has these names");
    bench_for(16, |_| assert_eq!(seen(), (true, true)));
    let panicked = catch_unwind(|| bench_for(16, |_| resume_unwind(Box::new("on purpose, without a message"))));
    assert!(panicked.is_err());
    assert_eq!(seen(), (false, false));
}

#[test]
fn every_counter_has_a_story_or_a_reason_to_have_none() {
    let moved: BTreeSet<Counter> = super::MOVED.iter().copied().flatten().copied().flatten().copied().collect();
    let elsewhere = ELSEWHERE.map(|(counter, _)| counter).into();
    assert_eq!(moved.intersection(&elsewhere).collect::<Vec<_>>(), Vec::<&Counter>::new(), "it does have a story");
    assert_eq!(&moved | &elsewhere, Counter::ALL.iter().copied().collect());
}
