//! The purity rule: code that decides names no runtime, no kernel library, no clock and no environment.

/// Crates and types that pure code must not name.
const FORBIDDEN: [&str; 5] = ["tokio", "bollard", "aya", "Instant", "SystemTime"];
/// The one exception: the marker that a record is plain bytes, in the file that defines the records.
const POD: (&str, &str) = ("steer-common/src/lib.rs", "aya::Pod");

/// What a line of a pure file names that it must not. Comments may talk about anything.
pub(crate) fn violations(path: &str, text: &str) -> Vec<(usize, &'static str)> {
    let mut found = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let mut code = line.split_once("//").map_or(line, |(code, _)| code).to_owned();
        if path == POD.0 {
            code = code.replace(POD.1, "");
        }
        let mut words = code.split(|c: char| !c.is_alphanumeric() && c != '_');
        let word = words.find_map(|word| FORBIDDEN.into_iter().find(|forbidden| names(word, forbidden)));
        let env = code.contains("std::env").then_some("std::env");
        found.extend(word.or(env).map(|what| (index + 1, what)));
    }
    found
}

/// `tokio` and `tokio_util`, not `tokiox`.
fn names(word: &str, forbidden: &str) -> bool {
    word.strip_prefix(forbidden).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MODEL: &str = "steer/src/model/plan.rs";

    #[test]
    fn runtimes_clocks_and_the_environment_are_found_with_their_line() {
        let text =
            "use std::time::{Duration, Instant};\n\nuse tokio_util::sync::X;\nlet home = std::env::var(\"HOME\");\n";
        assert_eq!(violations(MODEL, text), [(1, "Instant"), (3, "tokio"), (4, "std::env")]);
    }

    #[test]
    fn comments_and_longer_words_are_no_violation() {
        let text = "//! Knows neither tokio nor aya.\nlet instant = 1; // not an Instant\nlet ayah = SystemTimes;\n";
        assert_eq!(violations(MODEL, text), []);
    }

    #[test]
    fn the_pod_marker_is_allowed_where_the_records_are() {
        let text = "unsafe impl aya::Pod for FlowKey {}\n";
        assert_eq!(violations("steer-common/src/lib.rs", text), []);
        assert_eq!(violations("steer-common/src/flow.rs", text), [(1, "aya")]);
        assert_eq!(violations("steer-common/src/lib.rs", "use aya::maps::Map;\n"), [(1, "aya")]);
    }
}
