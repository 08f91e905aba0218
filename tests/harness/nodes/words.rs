//! What a test says to a worker, and what that answers: one JSON value a line.

use std::io::{self, BufRead, BufReader, Write};
use std::net::TcpStream;

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// A node lives from the connection's begin to its end. Its first answer, unasked, says that it is up.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Ask {
    StartAgent,
    /// `steer detach --now`, and the agent's end.
    StopAgent,
    /// `steer <words>`, to its end.
    Steer(Vec<String>),
    /// The end of the agent's log.
    AgentLog,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Answer {
    Done,
    /// Of a command that succeeded, or of a log.
    Text(String),
    /// In words, why not.
    Failed(String),
}

/// A connection with one of them at each end.
#[derive(Debug)]
pub(super) struct Line {
    from: BufReader<TcpStream>,
}

impl Line {
    pub(super) fn new(stream: TcpStream) -> Self {
        Self { from: BufReader::new(stream) }
    }

    pub(super) fn send(&mut self, message: &impl Serialize) -> io::Result<()> {
        let text = serde_json::to_string(message)? + "\n";
        self.from.get_mut().write_all(text.as_bytes())
    }

    /// `None` when the other end has closed.
    pub(super) fn receive<T: DeserializeOwned>(&mut self) -> io::Result<Option<T>> {
        let mut text = String::new();
        if self.from.read_line(&mut text)? == 0 {
            return Ok(None);
        }
        Ok(Some(serde_json::from_str(&text)?))
    }
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::thread;

    use super::*;

    #[test]
    fn what_is_said_arrives_and_an_end_is_no_error() {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port is free");
        let address = listener.local_addr().expect("it is bound");
        let asking = thread::spawn(move || {
            let mut line = Line::new(TcpStream::connect(address).expect("it listens"));
            line.send(&Ask::Steer(vec!["status".into(), "two\nlines".into()])).expect("it is open");
        });
        let mut line = Line::new(listener.accept().expect("it connects").0);
        let Ok(Some(Ask::Steer(words))) = line.receive() else { panic!("it asks for steer") };
        assert_eq!(words, ["status", "two\nlines"]);
        asking.join().expect("it does not panic");
        assert!(line.receive::<Ask>().expect("an end is no error").is_none());
    }
}
