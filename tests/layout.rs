//! An upgrade to a version whose maps have another layout, under load: it takes the old one's place, and nobody notices.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::time::Duration;

use steer_tests::agent::{Attach, Status};
use steer_tests::clients::{Clients, Host};
use steer_tests::docker::{ContainerSpec, Proxy};
use steer_tests::http::Http;
use steer_tests::long_lived::{LongLived, go_on};
use steer_tests::world::HOST;
use steer_tests::{pace, wait_until};

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

/// `next` is how the newer versions attach.
fn upgrades(attach: Attach, next: Attach) {
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
        host.agent.change_attach(next);
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
        eprintln!(
            "{} upgrade {upgrade}, over {}: known again by a packet {by_packets}, by a reply {by_replies}",
            attach.word(),
            next.word()
        );
        assert!(by_packets + by_replies > lives.len() as u64, "{by_packets} and {by_replies}");
    }
    let fared = clients.finish();
    eprintln!("{}: {fared}", attach.word());
    // What native XDP of a veth has taken in and not yet given on is lost when it is switched off: a SYN comes again after a second.
    let may_stall = attach != next;
    for report in [&fared.close, &fared.keepalive].into_iter().chain(&fared.local) {
        assert!(report.failed == 0 && (report.stalled == 0 || may_stall), "{report:#?}");
    }
    for life in lives {
        let life = life.finish_unharmed();
        assert!(may_stall || life.slowest < pace::soon(Duration::from_secs(1)), "{life:?}");
    }
}

#[test]
fn an_upgrade_with_another_layout_breaks_and_refuses_no_connection_over_tc() {
    upgrades(Attach::Tc, Attach::Tc);
}

#[test]
fn an_upgrade_with_another_layout_breaks_and_refuses_no_connection_over_xdp() {
    upgrades(Attach::Xdp, Attach::Xdp);
}

/// The old version's XDP stands before whatever the new one attaches.
#[test]
fn an_upgrade_with_another_layout_breaks_and_refuses_no_connection_where_xdp_becomes_tc() {
    upgrades(Attach::Xdp, Attach::Tc);
}

/// Meanwhile whoever starts gets nothing, and whoever is described waits for one who is not.
#[test]
fn an_upgrade_with_another_layout_waits_for_a_container_that_is_not_described_but_not_for_ever() {
    let Some(mut host) = Host::set(Attach::Tc) else { return };
    let replicas = host.docker.run_all(["one", "two"].map(replica));
    host.agent.wait_ready(SERVICE, 2);
    let proxy = Proxy::start(&host.world, &host.docker);
    host.agent.change_docker_host(&proxy.host_url());
    host.agent.kill9();
    host.agent.grow_old();
    let id = replicas[0].id.as_str();
    proxy.be_silent_about(Some(id));
    host.agent.restart();
    let is_waited_for = |status: &Status| {
        let mut named = status.problems.iter().filter_map(|problem| problem.container.as_deref());
        named.any(|container| id.starts_with(container))
    };
    host.agent.wait_for("it says whom it waits for", is_waited_for);
    let http = Http::new(&host.world.client, (HOST, 9000));
    assert!(http.get("/").is_ok(), "the other version steers");
    let refused = host.agent.steer(&["drain", "two"]);
    let why = String::from_utf8_lossy(&refused.stderr);
    assert!(refused.status.code() == Some(1) && why.contains("another version of steer steers"), "{refused:?}");
    let status = wait_until("it waits no longer", Duration::from_secs(90), || {
        let status = host.agent.status();
        if status.service(SERVICE).is_some() { Ok(status) } else { Err(status.to_string()) }
    });
    assert!(!is_waited_for(&status), "{status}");
    host.agent.wait_ready(SERVICE, 1);
    host.agent.wait_alone();
    for _ in 0..4 {
        assert_eq!(http.backend(), "two");
    }
    proxy.be_silent_about(None);
    host.agent.wait_ready(SERVICE, 2);
}
