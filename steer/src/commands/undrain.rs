//! `steer undrain`: a backend comes back in.

use crate::api::ChangedBackend;
use crate::api::client::Client;
use crate::cli::TargetArgs;
use crate::dataplane::paths::Paths;

pub(super) async fn undrain(args: &TargetArgs, paths: &Paths) -> anyhow::Result<()> {
    let changed = Client::connect(paths).await?.undrain(&args.target).await?;
    super::ensure_steered_to(&args.target, &changed)?;
    super::print(&changed.backends.iter().map(text).collect::<String>())
}

fn text(backend: &ChangedBackend) -> String {
    let ChangedBackend { id: _, name, state, weight } = backend;
    match (state.as_str(), weight) {
        ("ready", 0) => format!("{name} is ready, but its weight is 0: it gets no new connections\n"),
        ("ready", _) => format!("{name} is ready and takes new connections\n"),
        _ => format!("{name} is {state}: it takes new connections when it is ready\n"),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case("ready", 1, "web-1 is ready and takes new connections\n")]
    #[case("ready", 0, "web-1 is ready, but its weight is 0: it gets no new connections\n")]
    #[case("starting", 1, "web-1 is starting: it takes new connections when it is ready\n")]
    fn the_answer_says_whether_new_connections_come(#[case] state: &str, #[case] weight: u16, #[case] expected: &str) {
        assert_eq!(text(&ChangedBackend { id: 1, name: "web-1".into(), state: state.into(), weight }), expected);
    }
}
