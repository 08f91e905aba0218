//! What the harness outside and the agent inside a machine say to each other: one JSON value a line, over a serial port.
//!
//! This file is compiled into both ends: here, and into `tests/src/bin/guest`.

use serde::{Deserialize, Serialize};

/// Name of the virtio serial port that carries it.
pub(crate) const PORT: &str = "steer.vm";
/// Where the machine mounts the disk with the programs.
pub(crate) const PAYLOAD: &str = "/payload";

/// To the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Request {
    Run(Run),
}

/// One process to run. Whatever it leaves running is ended with it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Run {
    /// A file on the payload, or a program of the system.
    pub(crate) program: String,
    pub(crate) args: Vec<String>,
    pub(crate) env: Vec<(String, String)>,
    pub(crate) limit_seconds: u64,
}

/// From the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Report {
    /// It is up.
    Ready(Ready),
    /// A piece of what the process printed, standard output and error as they came.
    Output(String),
    Ended(Ended),
    /// The process could not be started, or the request not be read.
    Refused(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ready {
    pub(crate) kernel: String,
    /// Packages that make the machine what it is, each with its version.
    pub(crate) packages: Vec<String>,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    /// `None`: it was ended by a signal.
    pub(crate) code: Option<i32>,
    pub(crate) timed_out: bool,
    pub(crate) millis: u64,
}

/// A message as it goes over the line.
pub(crate) fn line(message: &impl Serialize) -> serde_json::Result<String> {
    Ok(serde_json::to_string(message)? + "\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_is_one_line_whatever_it_carries() {
        let text = line(&Report::Output("two\nlines \u{1b}[32mok\0".into())).unwrap();
        assert_eq!(text, "{\"output\":\"two\\nlines \\u001b[32mok\\u0000\"}\n");
        assert_eq!(serde_json::from_str::<Report>(&text).unwrap(), Report::Output("two\nlines \u{1b}[32mok\0".into()));
    }

    #[test]
    fn a_request_is_read_as_it_was_written() {
        let run = Run {
            program: "packet".into(),
            args: vec!["a filter".into(), "--show-output".into()],
            env: vec![("STEER_BIN".into(), "/payload/steer".into())],
            limit_seconds: 60,
        };
        let text = line(&Request::Run(run.clone())).unwrap();
        assert_eq!(serde_json::from_str::<Request>(&text).unwrap(), Request::Run(run));
    }

    #[test]
    fn what_is_no_message_is_an_error() {
        for text in ["", "{}", "ready", "{\"output\":1}"] {
            assert!(serde_json::from_str::<Report>(text).is_err(), "{text}");
        }
    }
}
