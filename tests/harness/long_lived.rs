//! A connection that lives through everything: one byte each way every 100 ms.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::netns::Ns;
use crate::{pace, wait_until};

const EVERY: Duration = Duration::from_millis(100);
/// A retransmission may take a second or two; longer is a broken connection.
const LIMIT: Duration = Duration::from_secs(10);
/// How long it may take until all have moved.
const GOES_ON: Duration = Duration::from_secs(30);

/// A running connection to a greeter's echo port; [`LongLived::finish`] ends it.
#[derive(Debug)]
pub struct LongLived {
    /// The backend it began on.
    pub backend: String,
    pub local: SocketAddr,
    exchanged: Arc<AtomicU64>,
    stop: Sender<()>,
    thread: JoinHandle<Life>,
}

/// How a long connection fared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Life {
    /// Bytes sent and echoed.
    pub exchanged: u64,
    /// The slowest echo.
    pub slowest: Duration,
    /// The backend at its end, as the backend itself says.
    pub backend: Option<String>,
    pub error: Option<String>,
}

impl LongLived {
    /// Connects from inside a namespace to an echo port (5001 of a greeter), and begins.
    #[track_caller]
    pub fn start(ns: &Ns, target: impl Into<SocketAddr>) -> Self {
        let target = target.into();
        Self::try_start(ns, target).unwrap_or_else(|err| panic!("connect to the echo port at {target}: {err}"))
    }

    pub fn try_start(ns: &Ns, target: SocketAddr) -> io::Result<Self> {
        let mut stream = ns.connect(target, None, pace::soon(LIMIT))?;
        stream.set_read_timeout(Some(pace::soon(LIMIT)))?;
        let local = stream.local_addr()?;
        let backend = name(&mut stream)?;
        let (stop, stopped) = channel();
        let exchanged = Arc::new(AtomicU64::new(0));
        let counter = exchanged.clone();
        let thread = ns.spawn("long-lived", move || {
            let mut life = Life { exchanged: 0, slowest: Duration::ZERO, backend: None, error: None };
            // The channel is the clock: it ticks every 100 ms and ends at once.
            while let Err(RecvTimeoutError::Timeout) = stopped.recv_timeout(EVERY) {
                let begin = Instant::now();
                if let Err(err) = exchange(&mut stream, b'a' + (life.exchanged % 26) as u8) {
                    life.error = Some(format!("after {} bytes: {err}", life.exchanged));
                    return life;
                }
                life.exchanged += 1;
                counter.store(life.exchanged, Ordering::Relaxed);
                life.slowest = life.slowest.max(begin.elapsed());
            }
            match name(&mut stream) {
                Ok(backend) => life.backend = Some(backend),
                Err(err) => life.error = Some(format!("at the end: {err}")),
            }
            life
        });
        Ok(Self { backend, local, exchanged, stop, thread })
    }

    /// Bytes sent and echoed so far, for another thread to look at.
    pub fn counter(&self) -> Arc<AtomicU64> {
        self.exchanged.clone()
    }

    /// True once it has failed.
    pub fn is_over(&self) -> bool {
        self.thread.is_finished()
    }

    /// Ends it and tells how it fared.
    pub fn finish(self) -> Life {
        drop(self.stop);
        self.thread.join().expect("the connection's thread does not panic")
    }

    /// Ends it; panics unless it lived to the end, on the backend it began on.
    #[track_caller]
    pub fn finish_unharmed(self) -> Life {
        let first = self.backend.clone();
        let life = self.finish();
        assert_eq!(life.error, None, "{life:?}");
        assert_eq!(life.backend, Some(first), "{life:?}");
        life
    }
}

/// Waits until each has sent and got back a few bytes more.
#[track_caller]
pub fn go_on(lives: &[LongLived]) {
    let now = || lives.iter().map(|life| life.exchanged.load(Ordering::Relaxed));
    let before: Vec<u64> = now().collect();
    wait_until("long connections go on", GOES_ON, || {
        assert!(!lives.iter().any(LongLived::is_over), "one broke");
        let is_enough = now().zip(&before).all(|(now, before)| now >= before + 3);
        if is_enough { Ok(()) } else { Err("some have not moved") }
    });
}

fn exchange(stream: &mut TcpStream, byte: u8) -> io::Result<()> {
    stream.write_all(&[byte])?;
    let mut echo = [0];
    stream.read_exact(&mut echo)?;
    if echo[0] == byte { Ok(()) } else { Err(io::Error::other(format!("sent {byte}, got {}", echo[0]))) }
}

/// Asks the greeter at the other end for its name.
fn name(stream: &mut TcpStream) -> io::Result<String> {
    stream.write_all(b"?")?;
    let mut line = Vec::new();
    let mut byte = [0];
    while byte != *b"\n" {
        stream.read_exact(&mut byte)?;
        line.push(byte[0]);
    }
    Ok(String::from_utf8_lossy(&line).trim_end().to_owned())
}
