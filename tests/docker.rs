//! What Docker tells late, twice, or not at all.

use std::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::time::{Duration, Instant};

use bollard::models::{
    EndpointIpamConfig, EndpointSettings, Ipam, IpamConfig, NetworkConnectRequest, NetworkCreateRequest,
    NetworkDisconnectRequest,
};
use bollard::query_parameters::RenameContainerOptionsBuilder;
use steer_tests::agent::{Agent, Attach};
use steer_tests::clients::Host;
use steer_tests::docker::{ContainerSpec, Docker, Proxy};
use steer_tests::http::Http;
use steer_tests::pace;
use steer_tests::skip::{self, Need};
use steer_tests::world::HOST;
use steer_tests::{World, wait_until};

const NEEDS: [Need; 3] = [Need::Root, Need::Docker, Need::Steer];
const LIMIT: Duration = Duration::from_secs(30);

fn replica(name: &str) -> ContainerSpec {
    ContainerSpec::greeter(name).label("steer.port", "9000:5000").label("steer.service", "web")
}

#[test]
fn a_docker_that_hangs_keeps_no_event_waiting() {
    if skip::without(&NEEDS) {
        return;
    }
    let world = Attach::Tc.world();
    let docker = Docker::start(&world);
    docker.import_greeter();
    let proxy = Proxy::start(&world, &docker);
    let mut agent = Agent::start_with(&world, Some(&proxy.host_url()), Attach::Tc, &[]);
    let [first, second] = ["first", "second"].map(|name| docker.run(replica(name)));
    agent.wait_ready("web", 2);

    proxy.hang(true);
    let third = docker.run(replica("third"));
    wait_until("the agent asks about the third", LIMIT, || match proxy.held() {
        0 => Err("it does not"),
        _ => Ok(()),
    });
    let begin = Instant::now();
    first.kill("KILL");
    agent.wait_state("first", "gone");
    assert!(begin.elapsed() < pace::soon(Duration::from_secs(3)), "an event waited for {:?}", begin.elapsed());
    // One that nobody could describe so far, and that has ended when somebody can.
    third.kill("KILL");
    let fourth = docker.run(replica("fourth"));

    proxy.hang(false);
    let status = agent.wait_ready("web", 2);
    let mut names: Vec<_> =
        status.service("web").into_iter().flat_map(|web| &web.backends).map(|one| &one.name).collect();
    names.sort();
    assert_eq!(names, [&fourth.name, &second.name], "{status}");
    assert_eq!(status.problems, [], "{status}");
}

#[test]
fn a_container_keeps_its_service_when_it_is_renamed() {
    let Some(Host { world: _world, docker, mut agent }) = Host::set(Attach::Tc) else { return };
    let shop = docker.run(ContainerSpec::greeter("shop").label("steer.port", "9000:5000"));
    agent.wait_ready("shop", 1);
    let options = RenameContainerOptionsBuilder::new().name("shop-old").build();
    docker.wait("rename", docker.api().rename_container(&shop.id, options));
    let status = agent.wait_for("the new name is shown", |status| status.backend("shop-old").is_some());
    assert_eq!(status.service("shop").map(|shop| shop.count("ready")), Some(1), "{status}");
    agent.restart();
    let pid = agent.pid();
    let status = agent.wait_for("the new agent has asked Docker", |status| {
        status.agent.pid == Some(pid) && status.agent.docker.is_some()
    });
    let names: Vec<_> = status.services.iter().map(|service| service.name.as_str()).collect();
    assert_eq!(names, ["shop"], "{status}");
    agent.wait_ready("shop", 1);

    // Its next run begins under its new name.
    docker.wait(
        "restart",
        docker.api().restart_container(&shop.id, None::<bollard::query_parameters::RestartContainerOptions>),
    );
    agent.wait_ready("shop-old", 1);
}

#[test]
fn the_same_address_on_another_interface_is_found() {
    if skip::without(&NEEDS) {
        return;
    }
    let world = Attach::Tc.world();
    let docker = Docker::start(&world);
    docker.import_greeter();
    let config = vec![IpamConfig { subnet: Some("10.77.0.0/24".to_owned()), ..Default::default() }];
    let ipam = Some(Ipam { config: Some(config), ..Default::default() });
    let network = NetworkCreateRequest { name: "front".to_owned(), ipam, ..Default::default() };
    docker.wait("create network", docker.api().create_network(network));
    let mut agent = Agent::start(&world, &docker, Attach::Tc);
    let mut web = docker.run(replica("web").network("front"));
    let address = web.ip.expect("it has an address").to_string();
    agent.wait_ready("web", 1);
    let http = Http::new(&world.client, SocketAddr::from((HOST, 9000)));
    assert_eq!(http.backend(), "web");

    let container = web.id.clone();
    let leave = NetworkDisconnectRequest { container: container.clone(), force: None };
    docker.wait("disconnect", docker.api().disconnect_network("front", leave));
    let ipam_config = Some(EndpointIpamConfig { ipv4_address: Some(address.clone()), ..Default::default() });
    let endpoint_config = Some(EndpointSettings { ipam_config, ..Default::default() });
    docker.wait("connect", docker.api().connect_network("front", NetworkConnectRequest { container, endpoint_config }));
    wait_until("it is reached again", LIMIT, || match http.get("/") {
        Ok(reply) if reply.backend == "web" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(agent.status().backend("web").map(|web| web.address.clone()), Some(address));

    // The `die` of the run before, however late, is none of the run that is.
    for _ in 0..3 {
        web.restart();
        agent.wait_ready("web", 1);
    }
}

#[test]
fn a_container_in_two_networks_answers_by_whichever_its_route_names() {
    if skip::without(&NEEDS) {
        return;
    }
    let world = Attach::Tc.world();
    let docker = Docker::start(&world);
    docker.import_greeter();
    for (name, subnet) in [("front", "10.78.1.0/24"), ("back", "10.78.2.0/24")] {
        let config = vec![IpamConfig { subnet: Some(subnet.to_owned()), ..Default::default() }];
        let ipam = Some(Ipam { config: Some(config), ..Default::default() });
        let network = NetworkCreateRequest { name: name.to_owned(), ipam, ..Default::default() };
        docker.wait("create network", docker.api().create_network(network));
    }
    let mut agent = Agent::start(&world, &docker, Attach::Tc);
    let web = docker.run(replica("web").network("front").label("steer.network", "front"));
    agent.wait_ready("web", 1);
    let connect = NetworkConnectRequest { container: web.id.clone(), endpoint_config: None };
    docker.wait("connect", docker.api().connect_network("back", connect));
    let http = Http::new(&world.client, SocketAddr::from((HOST, 9000)));
    for gateway in ["10.78.2.1", "10.78.1.1"] {
        web.ns().output("ip", &format!("route replace default via {gateway}"));
        wait_until(&format!("it answers by {gateway}"), LIMIT, || match http.get("/") {
            Ok(reply) if reply.backend == "web" => Ok(()),
            other => Err(format!("{other:?}")),
        });
        for _ in 0..20 {
            assert_eq!(http.backend(), "web", "by {gateway}");
        }
    }
}

/// What systemd would be told, line by line, until a line begins so.
#[track_caller]
fn told(systemd: &UnixDatagram, until: &str) -> String {
    let mut all = String::new();
    let mut message = [0; 4096];
    while !all.lines().any(|line| line.starts_with(until)) {
        let length = systemd.recv(&mut message).unwrap_or_else(|err| panic!("{until}: {err}, after: {all}"));
        all += &String::from_utf8_lossy(&message[..length]);
        all.push('\n');
    }
    all
}

#[test]
fn systemd_is_told_when_docker_has_told_what_runs() {
    if skip::without(&NEEDS) {
        return;
    }
    let world = World::new();
    let systemd = UnixDatagram::bind(world.dir().join("notify.sock")).expect("one's own directory can be written");
    systemd.set_read_timeout(Some(pace::soon(LIMIT))).expect("a limit can be set");
    let docker = Docker::start(&world);
    docker.import_greeter();
    let proxy = Proxy::start(&world, &docker);
    docker.run(replica("web"));

    // A Docker that hangs: units that come after steer do not wait for ever.
    proxy.hang(true);
    let begin = Instant::now();
    let agent = Agent::start_with(&world, Some(&proxy.host_url()), Attach::Tc, &[]);
    let text = told(&systemd, "READY=1");
    assert!(begin.elapsed() >= Duration::from_secs(9), "{:?}: {text}", begin.elapsed());
    assert!(text.contains("waiting for Docker"), "{text}");
    proxy.hang(false);
    told(&systemd, "STATUS=steering: services 1, backends 1");
    drop(agent);

    let begin = Instant::now();
    let _agent = Agent::start_with(&world, Some(&proxy.host_url()), Attach::Tc, &[]);
    let text = told(&systemd, "READY=1");
    assert!(begin.elapsed() < pace::soon(Duration::from_secs(9)), "{:?}: {text}", begin.elapsed());
    let last = text.lines().rfind(|line| !line.is_empty());
    assert_eq!(last, Some("STATUS=steering: services 1, backends 1"), "{text}");
}
