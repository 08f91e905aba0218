//! An upgrade to a version whose maps have another layout, under load: it takes the old one's place, and nobody notices.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use steer_tests::agent::Attach;
use steer_tests::clients::{Clients, Host};
use steer_tests::docker::ContainerSpec;
use steer_tests::long_lived::{LongLived, go_on};
use steer_tests::pace;
use steer_tests::world::HOST;

const SERVICE: &str = "web";
const ECHO: (std::net::Ipv4Addr, u16) = (HOST, 9001);
const LIMIT: Duration = Duration::from_secs(30);
/// Connections are older than the version before, too.
const UPGRADES: usize = 3;

fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000,9001:5001").label("steer.service", SERVICE)
}

/// Reads the name of a greeter, asked for by `?`.
#[track_caller]
fn name(mut stream: &TcpStream) -> String {
    let mut name = [0; 5];
    stream.read_exact(&mut name).unwrap_or_else(|err| panic!("no answer: {err}"));
    String::from_utf8_lossy(&name).trim_end().to_owned()
}

fn upgrades(attach: Attach) {
    let Some(mut host) = Host::set(attach) else { return };
    host.docker.run_all(["one", "two", "three"].map(replica));
    let slow = ContainerSpec::greeter("slow").label("steer.port", "9003:5001").label("steer.service", "slow");
    let slow = host.docker.run(slow);
    host.agent.wait_ready(SERVICE, 3);
    host.agent.wait_ready("slow", 1);
    let lives: Vec<_> = (0..9).map(|_| LongLived::start(&host.world.client, ECHO)).collect();
    let connect = |to| {
        let limit = pace::soon(LIMIT);
        let stream = host.world.client.connect(to, None, limit).expect("somebody listens");
        stream.set_read_timeout(Some(limit)).expect("a socket has a time limit");
        stream
    };
    let [waits, says_nothing] = [9003, 9003].map(|port| connect((HOST, port).into()));
    let clients = Clients::start_with_local(&host.world, 9000);
    for upgrade in 1..=UPGRADES {
        // Its kernel takes the question in, and it answers when it is no longer paused: the client says nothing meanwhile.
        slow.pause();
        (&waits).write_all(b"?").expect("it is open");
        host.agent.kill9();
        host.agent.grow_old();
        clients.flow_on();
        host.agent.restart();
        host.agent.wait_ready(SERVICE, 3);
        host.agent.wait_alone();
        go_on(&lives);
        clients.flow_on();
        slow.unpause();
        assert_eq!(name(&waits), "slow", "after upgrade {upgrade}");
        (&says_nothing).write_all(b"?").expect("it is open");
        assert_eq!(name(&says_nothing), "slow", "after upgrade {upgrade}");
        let [by_packets, by_replies] = ["follow_recovered", "reply_recovered"].map(|name| host.agent.counter(name));
        eprintln!("{} upgrade {upgrade}: known again by a packet {by_packets}, by a reply {by_replies}", attach.word());
        assert!(by_packets + by_replies > lives.len() as u64, "{by_packets} and {by_replies}");
    }
    let fared = clients.finish();
    eprintln!("{}: {fared}", attach.word());
    for report in [&fared.close, &fared.keepalive].into_iter().chain(&fared.local) {
        assert_eq!((report.failed, report.stalled), (0, 0), "{report:#?}");
    }
    for life in lives {
        let life = life.finish_unharmed();
        assert!(life.slowest < pace::soon(Duration::from_secs(1)), "{life:?}");
    }
}

#[test]
fn an_upgrade_with_another_layout_breaks_and_refuses_no_connection_over_tc() {
    upgrades(Attach::Tc);
}

#[test]
fn an_upgrade_with_another_layout_breaks_and_refuses_no_connection_over_xdp() {
    upgrades(Attach::Xdp);
}
