//! What is not steer's passes as if steer were not there: connections open before it, other ports, transit, other protocols.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::process::Stdio;
use std::sync::atomic::Ordering;
use std::time::Duration;

use steer_tests::agent::{Agent, Attach};
use steer_tests::docker::{ContainerSpec, Docker};
use steer_tests::greeter::Greeter;
use steer_tests::http::{Failure, Http};
use steer_tests::long_lived::LongLived;
use steer_tests::netns::Ns;
use steer_tests::pace;
use steer_tests::packet::{Capture, Packet, conversation};
use steer_tests::skip::{self, Need};
use steer_tests::world::{CLIENT, HOST, OTHER};
use steer_tests::{World, wait_until};

const LIMIT: Duration = Duration::from_secs(30);
/// For one answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
const NEEDS: [Need; 3] = [Need::Root, Need::Docker, Need::Steer];

fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000,9001:5001").label("steer.service", "greeter")
}

/// Waits until a connection has moved on, so that it lived through what was done before.
#[track_caller]
fn goes_on(what: &str, long: &LongLived) {
    let echoed = long.counter();
    let before = echoed.load(Ordering::Relaxed);
    wait_until(&format!("{what} goes on"), LIMIT, || {
        assert!(!long.is_over(), "{what} broke");
        let moved = echoed.load(Ordering::Relaxed) - before;
        if moved >= 3 { Ok(()) } else { Err(format!("{moved} bytes")) }
    });
}

fn what_was_open_before_lives_through_attach_and_detach(attach: Attach) {
    if skip::without(&NEEDS) {
        return;
    }
    let world = attach.world();
    let docker = Docker::start(&world);
    docker.import_greeter();
    docker.run(replica("published").publish(9000, 5000).publish(9001, 5001));
    // Something like sshd: on the host itself, at a port that is a container's as well.
    let _sshd = Greeter::start(&world.host, "sshd", &[]);
    let [web, echo] = [9000, 9001].map(|port| SocketAddr::from((HOST, port)));
    wait_until("Docker's port leads to somebody who listens", LIMIT, || Http::new(&world.client, web).get("/"));
    let shell = LongLived::start(&world.client, (HOST, 5001));
    let before = LongLived::start(&world.client, echo);
    let mut before_http = Http::new(&world.client, web).open().expect("Docker publishes the port");
    before_http.get("/").expect("Docker publishes the port");

    let mut agent = Agent::start(&world, &docker, attach);
    agent.wait_ready("greeter", 1);
    goes_on("the connection through the published port", &before);
    goes_on("the shell", &shell);
    assert_eq!(before_http.get("/").map(|reply| reply.backend), Ok("published".to_owned()));
    let status = agent.status();
    assert_eq!(status.backend("published").map(|one| (one.live_flows, one.steered_total)), Some((0, 0)), "{status}");

    // The same port now is steer's for who comes anew.
    let steered = LongLived::start(&world.client, echo);
    assert_eq!(Http::new(&world.client, web).backend(), "published");
    assert_eq!(Http::new(&world.client, (HOST, 5000)).backend(), "sshd");
    // The request's connection may just be closing.
    agent.wait_for("two were steered, and one is open", |status| {
        status.backend("published").is_some_and(|one| (one.live_flows, one.steered_total) == (1, 2))
    });

    // Leaving: the steered one is waited for, new ones are Docker's again.
    let mut detach = agent.command(&["detach"]);
    let mut detach = detach.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("steer can be started");
    let closed = |agent: &Agent| {
        let reply = Http::new(&world.client, web).get("/").map(|reply| reply.backend);
        assert_eq!(reply, Ok("published".to_owned()));
        let status = agent.try_status()?;
        let steered = status.backend("published").map_or(0, |one| one.steered_total);
        Http::new(&world.client, web).get("/").map_err(|failure| failure.to_string())?;
        let now = agent.try_status()?.backend("published").map_or(0, |one| one.steered_total);
        if now == steered { Ok(()) } else { Err(format!("{now} steered after {steered}")) }
    };
    wait_until("new connections are Docker's", LIMIT, || closed(&agent));
    goes_on("the steered connection", &steered);
    goes_on("the connection through the published port", &before);
    assert!(matches!(detach.try_wait(), Ok(None)), "detach waits for the steered connection");
    steered.finish_unharmed();
    let output = detach.wait_with_output().expect("detach can be waited for");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(agent.wait_exit().success());

    goes_on("the connection through the published port", &before);
    goes_on("the shell", &shell);
    assert_eq!(before_http.get("/").map(|reply| reply.backend), Ok("published".to_owned()));
    assert_eq!(Http::new(&world.client, web).backend(), "published");

    // And once more, with everything taken away at once.
    agent.restart();
    agent.wait_ready("greeter", 1);
    goes_on("the connection through the published port", &before);
    agent.steer_ok(&["detach", "--now"]);
    assert!(agent.wait_exit().success());
    let (before, shell) = (before.finish_unharmed(), shell.finish_unharmed());
    eprintln!("{attach:?}: published port {before:?}, shell {shell:?}");
}

/// A machine behind the host: HTTP and echo at the very ports that are frontends of the host.
fn serve_beyond(world: &World) -> Greeter {
    let greeter = Greeter::launch(world.other(), "beyond", &["--port", "9000", "--echo-port", "9001"]);
    let local = Http::new(world.other(), ([127, 0, 0, 1], 9000));
    wait_until("the machine behind the host serves", LIMIT, || local.get("/healthz"));
    greeter
}

/// Answers each datagram with itself until it is told to end.
fn echo_datagrams(ns: &Ns, at: SocketAddr) -> std::thread::JoinHandle<usize> {
    let socket = ns.run(|| UdpSocket::bind(at)).unwrap_or_else(|err| panic!("bind {at}: {err}"));
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        for answered in 0.. {
            let Ok((length, from)) = socket.recv_from(&mut buffer) else { return answered };
            drop(socket.send_to(&buffer[..length], from));
            if &buffer[..length] == b"end" {
                return answered;
            }
        }
        unreachable!("a counter does not end")
    })
}

/// One datagram there and back.
#[track_caller]
fn datagram(ns: &Ns, local_port: u16, to: SocketAddr, text: &[u8]) {
    let socket = ns.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, local_port))).expect("a port for UDP is free");
    socket.set_read_timeout(Some(pace::soon(ANSWER_LIMIT))).expect("a timeout can be set");
    socket.send_to(text, to).unwrap_or_else(|err| panic!("send to {to}: {err}"));
    let mut buffer = [0; 2048];
    let (length, from) = socket.recv_from(&mut buffer).unwrap_or_else(|err| panic!("no datagram from {to}: {err}"));
    assert_eq!((from, &buffer[..length]), (to, text));
}

/// The same things said, each time from the same client ports: what passed at the client, and behind the host.
fn converse(world: &World) -> [Vec<Packet>; 6] {
    let [near, far] = [(&world.client, "c0"), (world.other(), "o0")].map(|(ns, name)| Capture::start(ns, name));
    let beyond = SocketAddr::from((OTHER, 9000));
    assert_eq!(Http::new(&world.client, beyond).from_port(22_000).backend(), "beyond");
    // With much to say in both directions.
    let limit = pace::soon(ANSWER_LIMIT);
    let mut stream = world
        .client
        .connect((OTHER, 9001).into(), Some((Ipv4Addr::UNSPECIFIED, 22_001).into()), limit)
        .expect("the echo is there");
    stream.set_read_timeout(Some(limit)).expect("a timeout can be set");
    for length in [1, 500, 1448] {
        stream.write_all(&vec![b'x'; length]).expect("the echo takes it");
        let mut echo = vec![0; length];
        stream.read_exact(&mut echo).expect("and sends it back");
    }
    drop(stream);
    // Nobody listens there: a reset, all the way.
    assert_eq!(Http::new(&world.client, (OTHER, 9002)).from_port(22_002).get("/"), Err(Failure::Refused));
    datagram(&world.client, 22_003, (OTHER, 9000).into(), b"transit");
    datagram(&world.client, 22_004, (HOST, 9000).into(), b"host");
    for address in [HOST, OTHER] {
        let limit = pace::soon_secs(2);
        world.client.output("ping", &format!("-c 2 -i 0.01 -W {limit} {address}"));
    }
    // The host's own way to the machine behind it.
    assert_eq!(Http::new(&world.host, beyond).backend(), "beyond");
    // The last packet of the echo's end is on its way when the socket is closed: all of it, then no more.
    let ended = |packets: &[Packet]| packets.iter().filter(|packet| packet.flags.starts_with('F')).count() >= 4;
    let mut seen = Vec::new();
    wait_until("both connections end", ANSWER_LIMIT, || {
        let still = world.other().output("ss", "-Htan dport = :22001");
        if still.trim().is_empty() { Ok(()) } else { Err(still) }
    });
    for packets in [near.finish(), far.finish()] {
        assert!(ended(&packets), "{packets:#?}");
        let client = |packet: &Packet| (22_000..22_010).any(|port| packet.concerns(port));
        let ours: Vec<Packet> = packets.into_iter().filter(client).collect();
        for port in [9000, 9001, 9002] {
            seen.push(conversation(&ours, port));
        }
    }
    seen.try_into().unwrap_or_else(|seen: Vec<_>| panic!("{} conversations", seen.len()))
}

fn transit_and_other_protocols_are_the_same_packet_by_packet(attach: Attach) {
    if skip::without(&NEEDS) || skip::without(&[Need::Program("ping"), Need::Program("ss")]) {
        return;
    }
    // Real checksums on every leg, so that they can be compared as well.
    let world = World::with_other().without_checksum_offload();
    world.other().output("ethtool", "-K o0 tx off");
    let docker = Docker::start(&world);
    docker.import_greeter();
    docker.run(replica("one"));
    let _beyond = serve_beyond(&world);
    let echoes = [(world.other(), SocketAddr::from((OTHER, 9000))), (&world.host, SocketAddr::from((HOST, 9000)))];
    let echoes = echoes.map(|(ns, at)| (ns, at, echo_datagrams(ns, at)));
    let long = LongLived::start(&world.client, (OTHER, 9001));

    // Docker, where it starts first, lets nothing through that is not its own; what matters here is that it is the same.
    let without = converse(&world);
    let again = converse(&world);
    assert_eq!(without, again, "two runs without steer differ: nothing can be compared");

    let mut agent = Agent::start(&world, &docker, attach);
    agent.wait_ready("greeter", 1);
    assert_eq!(Http::new(&world.client, (HOST, 9000)).backend(), "one");
    let steered = agent.status().backend("one").map(|one| one.steered_total);
    let with = converse(&world);
    assert_eq!(without, with);
    assert_eq!(agent.status().backend("one").map(|one| one.steered_total), steered, "nothing of it was steered");

    // What was compared is not nothing: one hop, and the whole of each conversation.
    let [near_web, near_echo, near_refused, far_web, far_echo, far_refused] = &with;
    for (name, near, far) in [("web", near_web, far_web), ("echo", near_echo, far_echo)] {
        eprintln!("{attach:?}: {name}: {} packets at the client, {} behind the host", near.len(), far.len());
        assert!(far.len() >= 6, "{far:#?}");
        let first = |packets: &[Packet]| packets.iter().find(|packet| packet.flags == "S").map(|packet| packet.ttl);
        assert_eq!((first(near), first(far)), (Some(64), Some(63)));
        assert!(near.iter().chain(far).all(|packet| packet.checksums_ok || packet.source.ip() == HOST), "{near:#?}");
    }
    let flags = [near_refused, far_refused]
        .map(|packets| packets.iter().map(|packet| packet.flags.as_str()).collect::<Vec<_>>());
    assert_eq!(flags, [["S", "R."], ["S", "R."]]);
    assert_eq!(near_web.iter().filter(|packet| packet.protocol == "udp").count(), 4, "{near_web:#?}");
    long.finish_unharmed();
    for (ns, at, echo) in echoes {
        datagram(ns, 0, at, b"end");
        assert_eq!(echo.join().expect("the echo does not panic"), 3);
    }
}

fn an_address_of_the_host_is_a_frontend_for_as_long_as_the_host_has_it(attach: Attach) {
    if skip::without(&NEEDS) {
        return;
    }
    const NEW: Ipv4Addr = Ipv4Addr::new(10, 206, 0, 1);
    let world = attach.world();
    let docker = Docker::start(&world);
    docker.import_greeter();
    let mut agent = Agent::start(&world, &docker, attach);
    docker.run(replica("one"));
    agent.wait_ready("greeter", 1);
    let limit = pace::soon(Duration::from_secs(1));
    let [old, new] = [HOST, NEW].map(|address| Http::new(&world.client, (address, 9000)).within(limit));
    assert!(matches!(new.get("/"), Err(Failure::Unreachable | Failure::Timeout)), "nobody has this address yet");

    for _ in 0..2 {
        world.host.ip(&format!("addr add {NEW}/32 dev lo"));
        wait_until("the new address is a frontend", LIMIT, || new.get("/"));
        let long = LongLived::start(&world.client, (NEW, 9001));
        world.host.ip(&format!("addr del {NEW}/32 dev lo"));
        wait_until("the address is no frontend any more", LIMIT, || match new.get("/") {
            Ok(reply) => Err(format!("{reply:?}")),
            Err(failure) => Ok(failure),
        });
        assert_eq!(old.backend(), "one");
        // It may come back, as after a cable was plugged in anew: no connection is lost by it.
        world.host.ip(&format!("addr add {NEW}/32 dev lo"));
        goes_on("what was open", &long);
        long.finish_unharmed();
        world.host.ip(&format!("addr del {NEW}/32 dev lo"));
    }
}

#[test]
fn what_is_open_stays_when_the_default_route_leads_elsewhere() {
    if skip::without(&NEEDS) {
        return;
    }
    let world = World::with_other();
    world.host.ip(&format!("route add default via {CLIENT}"));
    let docker = Docker::start(&world);
    docker.import_greeter();
    let mut agent = Agent::start_raw(&world, &["--attach", "tc", "--docker-host", &docker.host_url()]);
    docker.run(replica("one"));
    agent.wait_ready("greeter", 1);
    let long = LongLived::start(&world.client, (HOST, 9001));
    let links = || agent.links().into_iter().filter(|link| link.starts_with("tcx-u")).collect::<Vec<_>>();
    assert_eq!(links(), ["tcx-u0"]);

    world.host.ip(&format!("route replace default via {OTHER}"));
    wait_until("clients are met there too", LIMIT, || match links() {
        links if links == ["tcx-u0", "tcx-u1"] => Ok(()),
        links => Err(format!("{links:?}")),
    });
    goes_on("what came in by the other interface", &long);
    long.finish_unharmed();
    // With its last connection it is left, as soon as somebody looks.
    world.host.ip("link add d0 type bridge");
    wait_until("it is left", LIMIT, || match links() {
        links if links == ["tcx-u1"] => Ok(()),
        links => Err(format!("{links:?}")),
    });
}

#[test]
fn what_was_open_before_lives_through_attach_and_detach_over_tc() {
    what_was_open_before_lives_through_attach_and_detach(Attach::Tc);
}

#[test]
fn what_was_open_before_lives_through_attach_and_detach_over_xdp() {
    what_was_open_before_lives_through_attach_and_detach(Attach::Xdp);
}

#[test]
fn transit_and_other_protocols_are_the_same_packet_by_packet_over_tc() {
    transit_and_other_protocols_are_the_same_packet_by_packet(Attach::Tc);
}

#[test]
fn transit_and_other_protocols_are_the_same_packet_by_packet_over_xdp() {
    transit_and_other_protocols_are_the_same_packet_by_packet(Attach::Xdp);
}

#[test]
fn an_address_of_the_host_is_a_frontend_for_as_long_as_the_host_has_it_over_tc() {
    an_address_of_the_host_is_a_frontend_for_as_long_as_the_host_has_it(Attach::Tc);
}

#[test]
fn an_address_of_the_host_is_a_frontend_for_as_long_as_the_host_has_it_over_xdp() {
    an_address_of_the_host_is_a_frontend_for_as_long_as_the_host_has_it(Attach::Xdp);
}
