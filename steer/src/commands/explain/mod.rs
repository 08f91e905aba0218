//! `steer explain`: where a packet would go, and why.

mod explanation;

use self::explanation::Explanation;
use crate::cli::{ExplainArgs, HookArg};
use crate::dataplane::explain::{self, Hook, Question};
use crate::dataplane::paths::Paths;
use crate::dataplane::read::Reader;
use crate::host::clock::unix_now;

pub(super) fn explain(args: &ExplainArgs, paths: &Paths) -> anyhow::Result<()> {
    let snapshot = Reader::open(paths)?.snapshot()?;
    let question = Question { client: args.client, frontend: args.frontend, ack: args.ack };
    let hook = args.hook.map(|hook| match hook {
        HookArg::Xdp => Hook::Xdp,
        HookArg::Tc => Hook::Tc,
    });
    let way_in = explain::way_in(paths, args.client, args.interface.as_deref(), hook)?;
    let run = explain::ask(paths, &question, &way_in)?;
    let explanation = Explanation::of(&question, &way_in, &run, &snapshot, unix_now());
    if args.json { super::print_json(&explanation) } else { super::print(&explanation.text()) }
}
