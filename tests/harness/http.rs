//! A client that asks once, says what it got, and in one word how it failed.

use std::fmt;
use std::io::{self, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::netns::Ns;
use crate::pace;

const LIMIT: Duration = Duration::from_secs(5);

/// An HTTP client inside a namespace. Each [`Http::get`] is a connection of its own.
#[derive(Clone, Debug)]
pub struct Http {
    ns: Ns,
    target: SocketAddr,
    local: Option<SocketAddr>,
    limit: Duration,
}

/// What a greeter answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    pub status: u16,
    /// `X-Backend`.
    pub backend: String,
    /// `X-Version`.
    pub version: String,
    pub body: String,
    /// From the SYN to the last byte.
    pub took: Duration,
}

/// Why there was no reply.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Failure {
    /// RST in answer to the SYN.
    Refused,
    /// RST later.
    Reset,
    /// Nothing within the limit.
    Timeout,
    /// The connection ended before the answer did.
    Closed,
    Unreachable,
    Other(String),
}

impl Http {
    pub fn new(ns: &Ns, target: impl Into<SocketAddr>) -> Self {
        Self { ns: ns.clone(), target: target.into(), local: None, limit: pace::soon(LIMIT) }
    }

    /// From this client port, each time. The connection is closed by the server, so the port is free again at once.
    #[must_use]
    pub fn from_port(self, port: u16) -> Self {
        let any = if self.target.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
        self.bound(SocketAddr::new(any, port))
    }

    /// From this address, at any port.
    #[must_use]
    pub fn from_address(self, address: impl Into<IpAddr>) -> Self {
        self.bound(SocketAddr::new(address.into(), 0))
    }

    fn bound(mut self, local: SocketAddr) -> Self {
        self.local = Some(local);
        self
    }

    /// The limit for connecting and for each read, on this machine; what is 5 s for a real one otherwise.
    #[must_use]
    pub fn within(mut self, limit: Duration) -> Self {
        self.limit = limit;
        self
    }

    pub fn get(&self, path: &str) -> Result<Reply, Failure> {
        let begin = Instant::now();
        let mut session = self.open()?;
        session.ask(path, false)?;
        let mut answer = Vec::new();
        session.stream.read_to_end(&mut answer)?;
        let (mut reply, _) = parse(&answer).ok_or(Failure::Closed)?;
        reply.took = begin.elapsed();
        Ok(reply)
    }

    /// The name of the backend that answers, or a panic.
    #[track_caller]
    pub fn backend(&self) -> String {
        self.get("/").unwrap_or_else(|failure| panic!("GET / from {}: {failure}", self.target)).backend
    }

    /// A connection that stays open for many requests.
    pub fn open(&self) -> Result<Session, Failure> {
        let stream = self.ns.connect(self.target, self.local, self.limit)?;
        stream.set_read_timeout(Some(self.limit))?;
        Ok(Session { stream })
    }
}

/// A keep-alive connection.
#[derive(Debug)]
pub struct Session {
    stream: TcpStream,
}

impl Session {
    /// One request on this connection.
    pub fn get(&mut self, path: &str) -> Result<Reply, Failure> {
        let begin = Instant::now();
        self.ask(path, true)?;
        let mut answer = Vec::new();
        let mut chunk = [0; 4096];
        loop {
            match parse(&answer) {
                Some((mut reply, length)) if reply.body.len() >= length => {
                    reply.took = begin.elapsed();
                    return Ok(reply);
                }
                _ => {}
            }
            match self.stream.read(&mut chunk)? {
                0 => return Err(Failure::Closed),
                n => answer.extend(&chunk[..n]),
            }
        }
    }

    pub fn stream(&self) -> &TcpStream {
        &self.stream
    }

    fn ask(&mut self, path: &str, stay: bool) -> io::Result<()> {
        let connection = if stay { "keep-alive" } else { "close" };
        self.stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: t\r\nConnection: {connection}\r\n\r\n").as_bytes())
    }
}

/// The reply so far and the length its body will have, once the head is complete.
fn parse(answer: &[u8]) -> Option<(Reply, usize)> {
    let end = answer.windows(4).position(|four| four == b"\r\n\r\n")?;
    let head = std::str::from_utf8(&answer[..end]).ok()?;
    let field = |wanted: &str| {
        let mut fields = head.lines().filter_map(|line| line.split_once(": "));
        fields.find(|(key, _)| key.eq_ignore_ascii_case(wanted)).map(|(_, value)| value.to_owned()).unwrap_or_default()
    };
    let reply = Reply {
        status: head.split(' ').nth(1)?.parse().ok()?,
        backend: field("x-backend"),
        version: field("x-version"),
        body: String::from_utf8_lossy(&answer[end + 4..]).into_owned(),
        took: Duration::ZERO,
    };
    Some((reply, field("content-length").parse().unwrap_or(0)))
}

impl From<io::Error> for Failure {
    fn from(err: io::Error) -> Self {
        match err.kind() {
            ErrorKind::ConnectionRefused => Self::Refused,
            ErrorKind::ConnectionReset | ErrorKind::ConnectionAborted | ErrorKind::BrokenPipe => Self::Reset,
            ErrorKind::TimedOut | ErrorKind::WouldBlock => Self::Timeout,
            ErrorKind::UnexpectedEof => Self::Closed,
            ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable => Self::Unreachable,
            _ => Self::Other(err.to_string()),
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused => f.write_str("refused"),
            Self::Reset => f.write_str("reset"),
            Self::Timeout => f.write_str("timeout"),
            Self::Closed => f.write_str("closed before the answer was complete"),
            Self::Unreachable => f.write_str("unreachable"),
            Self::Other(words) => f.write_str(words),
        }
    }
}
