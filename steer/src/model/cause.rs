//! Why a backend is in its state, and who says so.

use std::fmt;

use serde::{Deserialize, Serialize};

use super::swarm::Leaving;

/// Who says so, one word each.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// The kernel: it was sent a signal.
    Signal,
    /// The kernel: somebody listens, or nobody does.
    Listen,
    /// The kernel: it refused a connection.
    Refused,
    /// The kernel: its first process has ended.
    Exit,
    /// The kernel: its cgroup is frozen.
    Frozen,
    /// Its healthcheck.
    Health,
    /// An event of Docker's.
    Event,
    /// Somebody with `steer drain`, `undrain` or `weight`.
    Operator,
    /// What Docker says when it is asked what runs.
    Resync,
    /// What Swarm wants of a task.
    Swarm,
    /// A label, or the configuration file.
    Config,
}

impl Source {
    const ALL: [Self; 11] = [
        Self::Signal,
        Self::Listen,
        Self::Refused,
        Self::Exit,
        Self::Frozen,
        Self::Health,
        Self::Event,
        Self::Operator,
        Self::Resync,
        Self::Swarm,
        Self::Config,
    ];

    pub const fn name(self) -> &'static str {
        match self {
            Self::Signal => "signal",
            Self::Listen => "listen",
            Self::Refused => "refused",
            Self::Exit => "exit",
            Self::Frozen => "frozen",
            Self::Health => "health",
            Self::Event => "event",
            Self::Operator => "operator",
            Self::Resync => "resync",
            Self::Swarm => "swarm",
            Self::Config => "config",
        }
    }

    /// Of a cause that is kept as text: its first word names the source, but for those that are a sentence of their own.
    pub fn of(text: &str) -> Self {
        let word = text.split_once(':').map_or(text, |(word, _)| word);
        match Self::ALL.into_iter().find(|source| source.name() == word) {
            Some(source) => source,
            None if word == SURVIVED => Self::Signal,
            None => Self::Config,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What the cause of one begins with that outlived its stop signal.
const SURVIVED: &str = "survived";

/// A source and what it says, as text: `signal: TERM`, `health: healthy`, `exit`. The maps keep the text alone.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Cause {
    pub source: Source,
    pub text: String,
}

impl Cause {
    pub fn new(source: Source, what: impl fmt::Display) -> Self {
        Self { source, text: format!("{source}: {what}") }
    }

    /// Its first process has ended: nothing more is to be said.
    pub fn exit() -> Self {
        Self::bare(Source::Exit)
    }

    /// Its cgroup is frozen, and Docker has not said that it is paused.
    pub fn frozen() -> Self {
        Self::bare(Source::Frozen)
    }

    fn bare(source: Source) -> Self {
        Self { source, text: source.name().to_owned() }
    }

    /// Why a task is to end, where that is the cause.
    pub fn leaving(&self) -> Option<Leaving> {
        let what = self.text.strip_prefix(Source::Swarm.name())?.strip_prefix(": ")?;
        Leaving::named(what)
    }

    /// Something is to be mended, by whoever reads `steer status`.
    pub fn problem() -> Self {
        Self::new(Source::Config, "a problem, see `steer status`")
    }

    /// It goes on after its stop signal.
    pub fn survived(signal: &str) -> Self {
        Self { source: Source::Signal, text: format!("{SURVIVED}: {signal}") }
    }

    /// A sentence about a label.
    pub fn label(text: &str) -> Self {
        Self { source: Source::Config, text: text.to_owned() }
    }

    /// From what the maps keep.
    pub fn read(text: &str) -> Self {
        Self { source: Source::of(text), text: text.to_owned() }
    }
}

/// Always with the source in front.
pub fn sentence(text: &str) -> String {
    let source = Source::of(text);
    if text.starts_with(source.name()) { text.to_owned() } else { format!("{source}: {text}") }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case(Cause::new(Source::Signal, "TERM"), "signal: TERM", "signal: TERM")]
    #[case(Cause::new(Source::Event, "kill TERM"), "event: kill TERM", "event: kill TERM")]
    #[case(Cause::exit(), "exit", "exit")]
    #[case(Cause::frozen(), "frozen", "frozen")]
    #[case(Cause::survived("TERM"), "survived: TERM", "signal: survived: TERM")]
    #[case(Cause::label("steer.ready=manual waits"), "steer.ready=manual waits", "config: steer.ready=manual waits")]
    fn a_cause_is_known_again_by_its_text(#[case] cause: Cause, #[case] text: &str, #[case] shown: &str) {
        assert_eq!(cause.text, text);
        assert_eq!(Cause::read(text), cause);
        assert_eq!(sentence(text), shown);
    }

    #[test]
    fn every_source_is_known_by_its_name() {
        for source in Source::ALL {
            assert_eq!(Source::of(source.name()), source);
            assert_eq!(Source::of(&Cause::new(source, "x").text), source);
        }
    }
}
