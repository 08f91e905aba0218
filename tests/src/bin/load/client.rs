//! One client: connects, asks, reads, and tells the tally how it went.

use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::{Instant, sleep_until, timeout};

use crate::ports::Ports;
use crate::response::{self, Response};
use crate::rhythm::Rhythm;
use crate::tally::Took;
use crate::{Mode, Run};

pub(crate) struct Client {
    run: Rc<Run>,
    ports: Option<Ports>,
    /// Without one it asks again as soon as it is answered.
    rhythm: Option<Rhythm>,
    index: u16,
    buffer: Vec<u8>,
    stream: Option<TcpStream>,
    /// Which target is next.
    turn: usize,
    /// Requests that the connection in use has carried.
    carried: u32,
    /// What the first connection counts as carried already, so that not all clients open their next one at the same time.
    head_start: u32,
    /// Address of the connection in use, for the words about a failure.
    local: Option<SocketAddr>,
    /// Who has answered on the connection in use; empty before the first answer.
    backend: String,
    /// How long the request in hand has waited for its connection: not at all for one that was open.
    connecting: Duration,
}

impl Client {
    pub(crate) fn new(run: Rc<Run>, ports: Option<Ports>, rhythm: Option<Rhythm>, index: u16) -> Self {
        let room = if run.mode == Mode::Bulk { 256 << 10 } else { 4 << 10 };
        let buffer = Vec::with_capacity(room);
        let (turn, head_start) = (index.into(), u32::from(index) % run.per_connection.max(1));
        Self {
            run,
            ports,
            rhythm,
            index,
            buffer,
            stream: None,
            turn,
            carried: 0,
            head_start,
            local: None,
            backend: String::new(),
            connecting: Duration::ZERO,
        }
    }

    pub(crate) async fn run(mut self) {
        let (mut due, mut turn) = (Instant::now(), 0);
        if let Some(rhythm) = &self.rhythm {
            due += rhythm.offset();
            sleep_until(due + rhythm.late(turn)).await;
        }
        while self.run.may_start() {
            let run = self.run.clone();
            let started = Instant::now();
            // One timer for connecting and asking: a client that waits does not care for which of them.
            let outcome = match timeout(run.limit, self.request(started)).await {
                Ok(outcome) => outcome,
                Err(_) => Err(ErrorKind::TimedOut.into()),
            };
            let took = |all| Took { all, connecting: self.connecting };
            match outcome {
                Ok((response, all)) => run.tally.success(&response, took(all)),
                Err(err) => {
                    run.tally.failure(&err, &self.backend, self.local, took(started.elapsed()));
                    (self.stream, self.local) = (None, None);
                }
            }
            run.tally.keeps(self.index, self.stream.is_some().then_some(&self.backend));
            if let Some(rhythm) = &self.rhythm {
                turn += 1;
                due = (due + rhythm.pause()).max(Instant::now());
                sleep_until(due + rhythm.late(turn)).await;
            } else if run.stopped.get() {
                return;
            }
        }
    }

    /// One request, over the connection that is open or over a new one.
    async fn request(&mut self, started: Instant) -> io::Result<(Response, Duration)> {
        self.connecting = Duration::ZERO;
        // Whoever has to connect first waits for that too, also if the connection is kept afterwards.
        let mut stream = match self.stream.take() {
            Some(stream) => stream,
            None => self.connect(started).await?,
        };
        stream.write_all(&self.run.request).await?;
        let response = response::read(&mut stream, &mut self.buffer).await?;
        let took = started.elapsed();
        self.carried += 1;
        self.backend.clone_from(&response.backend);
        if response.stays {
            // Dropping it closes it: clients do not keep a connection for ever.
            self.stream = (self.carried < self.run.per_connection).then_some(stream);
        } else {
            // The server closes first and keeps the TIME_WAIT, as behind a real client: only so may this port be used
            // again at once.
            while stream.read(&mut self.buffer).await? > 0 {}
        }
        Ok((response, took))
    }

    async fn connect(&mut self, started: Instant) -> io::Result<TcpStream> {
        let target = self.run.targets[self.turn % self.run.targets.len()];
        self.turn = self.turn.wrapping_add(1);
        self.backend.clear();
        let socket = if target.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        if let Some(ports) = &mut self.ports {
            ports.bind(&socket, target)?;
            self.local = socket.local_addr().ok();
        }
        let stream = socket.connect(target).await?;
        self.carried = std::mem::take(&mut self.head_start);
        stream.set_nodelay(true)?;
        self.connecting = started.elapsed();
        self.run.tally.connected(self.connecting);
        if self.local.is_none() || self.ports.is_none() {
            self.local = stream.local_addr().ok();
        }
        Ok(stream)
    }
}
