//! Which container an operator means: by its name, its id, or a beginning of its id that no other has.

use std::collections::BTreeMap;
use std::fmt::{self, Display};

/// Why nobody is meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum NameError {
    /// The names that there are.
    NotFound { target: String, there: Vec<String> },
    /// The names of those whose ids begin so.
    Ambiguous { target: String, names: Vec<String> },
}

impl Display for NameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotFound { target, there } => {
                write!(f, "no backend is named `{target}`, and no container id begins with it; ")?;
                if there.is_empty() {
                    f.write_str("there are no backends")
                } else {
                    write!(f, "there are: {}", there.join(", "))
                }
            }
            Self::Ambiguous { target, names } => {
                write!(f, "the ids of several containers begin with `{target}`: {}", names.join(", "))
            }
        }
    }
}

impl std::error::Error for NameError {}

/// The id that a target means, of these names and ids.
pub fn resolve<'a>(target: &str, backends: impl IntoIterator<Item = (&'a str, &'a str)>) -> Result<&'a str, NameError> {
    // A container may be listed more than once.
    let by_id: BTreeMap<&str, &str> = backends.into_iter().map(|(name, id)| (id, name)).collect();
    let names = |backends: &[(&str, &str)]| {
        let mut names: Vec<_> = backends.iter().map(|(_, name)| (*name).to_owned()).collect();
        names.sort();
        names
    };
    if let Some((id, _)) = by_id.iter().find(|(id, name)| **name == target || **id == target) {
        return Ok(id);
    }
    let begun = by_id.iter().filter(|(id, _)| !target.is_empty() && id.starts_with(target));
    let begun: Vec<(&str, &str)> = begun.map(|(id, name)| (*id, *name)).collect();
    match begun.as_slice() {
        [(id, _)] => Ok(id),
        [] => {
            let there: Vec<_> = by_id.into_iter().collect();
            Err(NameError::NotFound { target: target.to_owned(), there: names(&there) })
        }
        several => Err(NameError::Ambiguous { target: target.to_owned(), names: names(several) }),
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const THERE: [(&str, &str); 4] = [("web-1", "abc1"), ("web-2", "abc2"), ("web-2", "abc2"), ("db", "def")];

    #[rstest]
    #[case::by_name("web-2", "abc2")]
    #[case::by_id("abc1", "abc1")]
    #[case::by_its_beginning("d", "def")]
    fn a_target_means(#[case] target: &str, #[case] id: &str) {
        assert_eq!(resolve(target, THERE), Ok(id));
    }

    #[rstest]
    #[case::of_several("abc", "the ids of several containers begin with `abc`: web-1, web-2")]
    #[case::of_none(
        "web",
        "no backend is named `web`, and no container id begins with it; there are: db, web-1, web-2"
    )]
    #[case::empty("", "no backend is named ``, and no container id begins with it; there are: db, web-1, web-2")]
    fn who_means_nobody_is_told_who_there_is(#[case] target: &str, #[case] message: &str) {
        assert_eq!(resolve(target, THERE).map_err(|error| error.to_string()), Err(message.to_owned()));
    }

    #[test]
    fn or_that_there_is_nobody() {
        let message = "no backend is named `web`, and no container id begins with it; there are no backends";
        assert_eq!(resolve("web", []).map_err(|error| error.to_string()), Err(message.to_owned()));
    }
}
