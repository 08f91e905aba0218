//! What a client notices of a backend that refuses its connection, when another one takes it.

use std::net::{SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use steer_tests::greeter::Greeter;
use steer_tests::netns::Ns;
use steer_tests::world::HOST;

use super::{LIMIT, Stage, Times, WEB};
use crate::measure::Interrupted;
use crate::stop_if_asked;

/// The same two backends, which refuse nothing here.
const ECHO: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(HOST), 9001);
const CONNECTIONS: usize = 1000;
/// After each connection, so that a greeter is done with it before the next one.
const PAUSE: Duration = Duration::from_micros(300);

/// Nobody refuses; the first one asked refuses; how many did.
pub(super) fn measure() -> Result<(Times, Times, u64), Interrupted> {
    let (mut stage, backends) = Stage::set(2, &["9000:5000", "9001:5001"]);
    let _greeters = [Greeter::start(&backends[0], "a", &[]), Greeter::start(&backends[1], "b", &[])];
    stage.agent.wait_ready("web", 2);
    // Nearly everybody is sent to the one that refuses.
    stage.agent.steer_ok(&["weight", "a", "255"]);
    backends[0].output("iptables", "-A INPUT -p tcp --dport 5000 --syn -j REJECT --reject-with tcp-reset");
    let (plain, refused) = connect(&stage.world.client)?;
    let resteered = stage.agent.backend("a").resteered_total;
    Ok((Times::of(&plain), Times::of(&refused), resteered))
}

/// In turn, so that a machine that gets slower does so for both.
fn connect(client: &Ns) -> Result<(Vec<Duration>, Vec<Duration>), Interrupted> {
    client.run(|| {
        let once = |target| {
            let begin = Instant::now();
            let stream = TcpStream::connect_timeout(target, LIMIT).expect("one of the two takes it");
            let took = begin.elapsed();
            drop(stream);
            thread::sleep(PAUSE);
            took
        };
        let (mut plain, mut refused) = (Vec::new(), Vec::new());
        for _ in 0..CONNECTIONS {
            stop_if_asked()?;
            plain.push(once(&ECHO));
            refused.push(once(&WEB));
        }
        Ok((plain, refused))
    })
}
