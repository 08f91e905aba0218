//! The systems that tests run in.

use clap::ValueEnum;

/// A suite of Debian, with the kernel and the Docker that it ships.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, ValueEnum)]
pub(crate) enum Suite {
    /// Linux 6.1 (no tcx), Docker 20.10
    Bookworm,
    /// Linux 6.12, Docker 26.1
    Trixie,
    /// What comes next; when this was written: Linux 7.2, Docker 28.5
    Sid,
}

impl Suite {
    pub(crate) const ALL: [Self; 3] = [Self::Bookworm, Self::Trixie, Self::Sid];

    /// Its name in the archive.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bookworm => "bookworm",
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        }
    }
}

/// Each suite asked for once, oldest first; none asked for means all.
pub(crate) fn chosen(asked: &[Suite]) -> Vec<Suite> {
    Suite::ALL.into_iter().filter(|suite| asked.is_empty() || asked.contains(suite)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_suite_comes_once_and_oldest_first() {
        assert_eq!(chosen(&[]), Suite::ALL);
        assert_eq!(chosen(&[Suite::Sid, Suite::Bookworm, Suite::Sid]), [Suite::Bookworm, Suite::Sid]);
    }

    #[test]
    fn a_suite_is_asked_for_by_its_name_in_the_archive() {
        for suite in Suite::ALL {
            assert_eq!(Suite::from_str(suite.name(), false), Ok(suite));
        }
        assert!(Suite::from_str("bullseye", false).is_err());
    }
}
