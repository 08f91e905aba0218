//! From listen() to the first connection, with and without another backend that takes connections.

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};
use steer_tests::greeter::Greeter;
use steer_tests::netns::Ns;

use super::{BACKEND, LIMIT, Stage, Times, WEB};
use crate::measure::Interrupted;
use crate::stop_if_asked;

const ROUNDS: usize = 50;
const SHORTLY: Duration = Duration::from_millis(30);
/// Of the client between two connections.
const PAUSE: Duration = Duration::from_micros(200);

/// A client that waits already: its SYN was taken, and nobody listened.
pub(super) fn held() -> Result<Times, Interrupted> {
    let (stage, backends) = Stage::set(1, &["9000:5000"]);
    let mut times = Vec::with_capacity(ROUNDS);
    for _ in 0..ROUNDS {
        stop_if_asked()?;
        times.push(thread::scope(|scope| {
            let client = scope.spawn(|| stage.world.client.connect(WEB, None, LIMIT));
            thread::sleep(SHORTLY);
            let took = listen_and_accept(&backends[0]);
            drop(client.join().expect("it does not panic").expect("somebody listens by now"));
            took
        }));
    }
    Ok(Times::of(&times))
}

/// A client that connects again and again, and is answered by the other one until then; how often it does in a second.
pub(super) fn beside() -> Result<(Times, f64), Interrupted> {
    let (mut stage, backends) = Stage::set(2, &["9000:5000"]);
    let _other = Greeter::start(&backends[1], "b", &[]);
    stage.agent.wait_ready("web", 1);
    let is_over = AtomicBool::new(false);
    let client = &stage.world.client;
    thread::scope(|scope| {
        // Also when a round panics: the client must end.
        let _end = Over(&is_over);
        let connecting = scope.spawn(|| {
            client.run(|| {
                let (begin, mut connections) = (Instant::now(), 0.0);
                while !is_over.load(Ordering::Relaxed) {
                    connect_once();
                    connections += 1.0;
                    thread::sleep(PAUSE);
                }
                connections / begin.elapsed().as_secs_f64()
            })
        });
        let mut times = Vec::with_capacity(ROUNDS);
        for _ in 0..ROUNDS {
            stop_if_asked()?;
            thread::sleep(SHORTLY);
            times.push(listen_and_accept(&backends[0]));
        }
        is_over.store(true, Ordering::Relaxed);
        Ok((Times::of(&times), connecting.join().expect("it does not panic")))
    })
}

struct Over<'a>(&'a AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Whether it is answered is not asked here: a listener that closes resets what it has not accepted.
fn connect_once() {
    drop(std::net::TcpStream::connect_timeout(&WEB, LIMIT));
}

/// Opens a listener, and closes it after the first connection.
fn listen_and_accept(ns: &Ns) -> Duration {
    ns.run(|| {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
        socket.set_reuse_address(true).expect("an option");
        socket.bind(&BACKEND.into()).expect("the port is free");
        socket.set_read_timeout(Some(LIMIT)).expect("an option");
        let begin = Instant::now();
        socket.listen(128).expect("it is bound");
        drop(socket.accept().expect("a connection comes"));
        begin.elapsed()
    })
}
