//! What is wrong is named, and nothing else suffers from it.

use std::net::SocketAddr;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use steer_tests::agent::{Agent, Attach, Problem, Status};
use steer_tests::docker::{ContainerSpec, Docker};
use steer_tests::greeter::Greeter;
use steer_tests::http::Http;
use steer_tests::load::{self, Load};
use steer_tests::long_lived::{LongLived, go_on};
use steer_tests::pace;
use steer_tests::skip::{self, Need};
use steer_tests::world::HOST;
use steer_tests::{World, wait_until};

const NEEDS: [Need; 3] = [Need::Root, Need::Docker, Need::Steer];
const LIMIT: Duration = Duration::from_secs(30);

fn healthy() -> ContainerSpec {
    let spec = ContainerSpec::greeter("healthy").label("steer.port", "9000:5000").label("steer.service", "greeter");
    // When it is gone, its frontend is another one's only after that.
    spec.label("steer.hold", "2s")
}

/// Fields are dropped in this order.
struct Stage {
    agent: Agent,
    docker: Docker,
    world: World,
}

impl Stage {
    /// A host with one healthy service on port 9000.
    fn set(attach: Attach) -> Option<Self> {
        if skip::without(&NEEDS) {
            return None;
        }
        let world = attach.world();
        let docker = Docker::start(&world);
        docker.import_greeter();
        let mut agent = Agent::start(&world, &docker, attach);
        docker.run(healthy());
        agent.wait_ready("greeter", 1);
        Some(Self { agent, docker, world })
    }

    fn at(&self, port: u16) -> Http {
        Http::new(&self.world.client, SocketAddr::from((HOST, port)))
    }

    fn load(&self) -> Load {
        clients(&self.world, 9000)
    }
}

/// Clients of a healthy service, for longer than a test takes.
fn clients(world: &World, port: u16) -> Load {
    let (rate, seconds, patient) = (pace::rate(100), pace::lasting_secs(90), load::patient());
    Load::start(&world.client, (HOST, port), &format!("--connections 4 --rate {rate} --seconds {seconds} {patient}"))
}

/// Ends the load on the healthy service: nothing may have failed, nobody else may have answered.
#[track_caller]
fn assert_unharmed(load: Load) {
    let report = load.stop();
    assert_eq!((report.failed, report.backends.len()), (0, 1), "{report:#?}");
    assert!(report.requests > 0 && report.stalled == 0, "{report:#?}");
}

fn problem_of<'a>(status: &'a Status, container: &str) -> Option<&'a Problem> {
    status.problems.iter().find(|problem| problem.container.as_deref() == Some(container))
}

/// A label, a bad value of it, and what is said of that. What is quoted in the message is the value.
const BAD_LABELS: [(&str, &str, &str); 22] = [
    ("steer.port", "", "no port given, expected `[address:]port:target`"),
    ("steer.port", "9100", "`9100`: expected `[address:]port:target`"),
    ("steer.port", "9100:http", "`9100:http`: `http` is no port"),
    ("steer.port", "70000:5000", "`70000:5000`: `70000` is no port, expected 1 to 65535"),
    ("steer.port", "0:5000", "`0:5000`: `0` is no port"),
    ("steer.port", "9100-9110:5000", "`9100-9110` is a range"),
    ("steer.port", "300.1.1.1:9100:5000", "`300.1.1.1` is no IP address"),
    ("steer.port", "9100:5000/sctp", "`sctp` is no protocol steer knows"),
    ("steer.port", "9100:5000/udp", "`9100:5000/udp`: UDP is not steered yet"),
    ("steer.port", "[::1]:9100:5000", "IPv6 is not steered yet"),
    ("steer.port", "9100:5000,9100:5001", "`9100:5001`: port 9100 is in the list already"),
    ("steer.service", "two words", "`two words`: ' ' may not stand in a name"),
    ("steer.network", "nowhere", "not in `nowhere`, expected one of `bridge`"),
    ("steer.weight", "257", "`257` is no weight, expected a whole number from 0 to 256"),
    ("steer.balance", "fair", "`fair`: expected one of `round-robin`, `least-conn`, `maglev`, `source`"),
    ("steer.ready", "maybe", "`maybe`: expected one of `auto`, `health`, `listen`, `manual`"),
    ("steer.drain", "soon", "`soon` is no duration, expected such as `30s`"),
    ("steer.hold", "25h", "`25h` is too long, 24h is the most"),
    ("steer.allow", "10.0.0.0/33", "`10.0.0.0/33` is no prefix or address"),
    ("steer.allow", "", "no prefix given"),
    ("steer.ignore", "perhaps", "`perhaps`: expected one of `true`, `false`"),
    ("steer.wieght", "3", "no such label, did you mean `steer.weight`?"),
];

fn each_bad_label_is_named_and_the_healthy_service_goes_on(attach: Attach) {
    let Some(mut stage) = Stage::set(attach) else { return };
    let load = stage.load();
    let name = |number: usize| format!("bad-{number}");
    let spec = |(number, (label, value, _)): (usize, &(&str, &str, &str))| {
        let spec = ContainerSpec::greeter(&name(number));
        let spec =
            if *label == "steer.port" { spec } else { spec.label("steer.port", &format!("{}:5000", 9100 + number)) };
        spec.label(label, value)
    };
    let bad = stage.docker.run_all(BAD_LABELS.iter().enumerate().map(spec));
    // One with everything wrong is told of everything at once.
    let all =
        ContainerSpec::greeter("all").label("steer.port", "x").label("steer.weight", "y").label("steer.hold", "z");
    stage.docker.run(all);

    let wanted = BAD_LABELS.len() + 3;
    let status = stage.agent.wait_for("every bad label is told", |status| status.problems.len() >= wanted);
    assert_eq!(status.problems.len(), wanted, "{status}");
    for (number, (label, value, said)) in BAD_LABELS.iter().enumerate() {
        let problem =
            problem_of(&status, &name(number)).unwrap_or_else(|| panic!("nothing of {label}={value}: {status}"));
        assert_eq!(problem.label.as_deref(), Some(*label), "{problem:?}");
        assert!(problem.message.contains(said), "{label}={value:?}: {said:?} is not in {problem:?}");
        assert_eq!(status.backend(&name(number)), None, "a container with a bad label is not steered: {status}");
        let line = |line: &&str| line.contains("ERROR") && line.contains(&name(number)) && line.contains(label);
        let log = stage.agent.log();
        assert!(log.lines().any(|text| line(&text)), "{label}={value:?} is not in the log");
    }
    let of_all = status.problems.iter().filter(|problem| problem.container.as_deref() == Some("all"));
    assert_eq!(
        of_all.filter_map(|problem| problem.label.as_deref()).collect::<Vec<_>>(),
        ["steer.port", "steer.weight", "steer.hold"]
    );
    let people = stage.agent.steer_ok(&["status"]);
    assert!(people.contains("problems") && people.contains("bad-13: steer.weight: `257`"), "{people}");
    assert_eq!(stage.at(9000).backend(), "healthy");

    // What is gone is no problem any more.
    bad[0].remove();
    stage.agent.wait_for("a problem goes with its container", |status| problem_of(status, "bad-0").is_none());
    assert_unharmed(load);
}

fn of_two_services_on_one_frontend_the_first_keeps_it(attach: Attach) {
    let Some(mut stage) = Stage::set(attach) else { return };
    let load = stage.load();
    // By name it would come first; it asks later.
    let second = ContainerSpec::greeter("second").label("steer.service", "alpha");
    stage.docker.run(second.label("steer.port", "9000:5000,9005:5000"));
    let status = stage.agent.wait_for("the conflict is told", |status| problem_of(status, "second").is_some());
    let problem = problem_of(&status, "second").expect("it was just seen");
    assert_eq!(problem.label.as_deref(), Some("steer.port"));
    for word in ["0.0.0.0:9000/tcp", "service alpha", "service greeter"] {
        assert!(problem.message.contains(word), "{word:?} is not in {problem:?}");
    }
    // Its other port is its own.
    wait_until("the other frontend is served", LIMIT, || match stage.at(9005).get("/") {
        Ok(reply) if reply.backend == "second" => Ok(()),
        other => Err(format!("{other:?}")),
    });
    assert_eq!(stage.at(9000).backend(), "healthy");

    // The agent's restart is no second chance.
    stage.agent.restart();
    let pid = stage.agent.pid();
    let status = stage.agent.wait_for("the new agent has asked Docker", |status| {
        status.agent.pid == Some(pid) && status.agent.docker.is_some()
    });
    assert!(problem_of(&status, "second").is_some(), "{status}");
    assert_eq!(stage.at(9000).backend(), "healthy");
    assert_unharmed(load);

    // What the first gives up is the other's.
    stage.docker.remove(status.backend("healthy").and_then(|one| one.container.as_deref()).expect("it is a container"));
    stage
        .agent
        .wait_for("the conflict is over", |status| status.problems.is_empty() && status.service("greeter").is_none());
    assert_eq!(stage.at(9000).backend(), "second");
}

fn a_container_that_cannot_be_reached_is_named(attach: Attach) {
    let Some(mut stage) = Stage::set(attach) else { return };
    let load = stage.load();
    // Its name comes before the other one's: the network that a container answers by stays this one.
    stage.docker.create_network("back");
    let spec = |name: &str, network: &str| {
        ContainerSpec::greeter(name)
            .label("steer.port", "9007:5000,9008:5001")
            .label("steer.service", "unreachable")
            .network(network)
    };
    let beside = stage.docker.run(spec("beside", "back").label("steer.ignore", "true"));
    let specs = [spec("lonely", "none"), spec("at-home", "host").args(&["--port", "5050", "--echo-port", "5051"])];
    stage.docker.run_all(specs);
    stage.docker.wait("run sidecar", async {
        let mut body =
            bollard::models::ContainerCreateBody { image: Some("greeter:latest".to_owned()), ..Default::default() };
        body.labels = Some([("steer.port".to_owned(), "9007:5000".to_owned())].into());
        body.cmd = Some(["--port", "5060", "--echo-port", "5061"].map(str::to_owned).to_vec());
        let network_mode = Some(format!("container:{}", beside.id));
        body.host_config = Some(bollard::models::HostConfig { network_mode, ..Default::default() });
        let options = bollard::query_parameters::CreateContainerOptionsBuilder::new().name("sidecar").build();
        let id = stage.docker.api().create_container(Some(options), body).await?.id;
        stage.docker.api().start_container(&id, None::<bollard::query_parameters::StartContainerOptions>).await
    });

    let status = stage.agent.wait_for("all three are told", |status| status.problems.len() >= 3);
    for (container, words) in [
        ("lonely", "has no network (network mode `none`)"),
        ("at-home", "has no network of its own (network mode `host`)"),
        ("sidecar", "put the steer labels on container"),
    ] {
        let problem = problem_of(&status, container).unwrap_or_else(|| panic!("nothing of {container}: {status}"));
        assert!(problem.message.contains(words), "{problem:?}");
        assert_eq!(status.backend(container), None, "{status}");
    }
    assert_eq!(status.service("unreachable"), None, "{status}");

    // Two networks, and nobody says which: said, and good as soon as it is one.
    let torn = stage.docker.run(spec("torn", "back"));
    let connect = |join: bool| {
        let container = torn.id.clone();
        let api = stage.docker.api();
        if join {
            let request = bollard::models::NetworkConnectRequest { container, ..Default::default() };
            stage.docker.wait("connect", api.connect_network("bridge", request));
        } else {
            let request = bollard::models::NetworkDisconnectRequest { container, force: None };
            stage.docker.wait("disconnect", api.disconnect_network("bridge", request));
        }
    };
    stage.agent.wait_ready("unreachable", 1);
    let long = LongLived::start(&stage.world.client, (HOST, 9008));
    connect(true);
    let status = stage.agent.wait_for("two networks are told, and it gets nothing new", |status| {
        problem_of(status, "torn").is_some() && status.backend("torn").is_some_and(|torn| torn.state == "unready")
    });
    let problem = problem_of(&status, "torn").expect("it was just seen");
    assert_eq!(problem.label.as_deref(), Some("steer.network"));
    assert!(problem.message.contains("expected one of `back`, `bridge`"), "{problem:?}");
    // What is open goes on meanwhile.
    go_on(std::slice::from_ref(&long));
    // And when another agent finds it so.
    stage.agent.kill9();
    stage.agent.restart();
    stage.agent.wait_for("two networks are told again, and it gets nothing new", |status| {
        problem_of(status, "torn").is_some() && status.backend("torn").is_some_and(|torn| torn.state == "unready")
    });
    go_on(std::slice::from_ref(&long));
    connect(false);
    stage.agent.wait_ready("unreachable", 1);
    long.finish_unharmed();
    assert_eq!(stage.at(9007).backend(), "torn");
    assert_unharmed(load);
}

/// A start that must fail, while the data plane of an agent that was killed goes on.
struct Refused {
    what: &'static str,
    command: Command,
    code: i32,
    words: Vec<String>,
}

#[test]
fn an_agent_that_cannot_start_says_why_and_leaves_what_is_steered_alone() {
    let programs = ["setpriv", "unshare", "sh", "mount"].map(Need::Program);
    if skip::without(&programs) {
        return;
    }
    let Some(mut stage) = Stage::set(Attach::Tc) else { return };
    // Where everybody may execute it.
    let program = stage.world.dir().join("steer");
    let running = format!("/proc/{}/exe", stage.agent.pid());
    std::fs::copy(&running, &program).unwrap_or_else(|err| panic!("copy {running}: {err}"));
    std::fs::set_permissions(&program, PermissionsExt::from_mode(0o755)).expect("one's own file can be changed");
    let load = stage.load();
    stage.agent.kill9();

    let (program, instance) = (program.display().to_string(), stage.agent.instance().to_owned());
    let url = stage.docker.host_url();
    let config = |name: &str, text: &str| stage.world.file(name, text).display().to_string();
    let [bad_key, bad_value, bad_service] = [
        config("key.toml", "[defaults]\nwieght = 3\n"),
        config("value.toml", "[defaults]\nweight = 300\ndrain = \"soon\"\n"),
        config("service.toml", "[[service]]\nname = \"web\"\nports = [\"9000\"]\n"),
    ];
    let in_host = |words: &[&str]| {
        let mut command = stage.world.host.command(PathBuf::from(words[0]));
        command.args(&words[1..]);
        command
    };
    let run = ["--instance", &instance, "run", "--interface", "u0", "--docker-host", &url];
    let steer = |words: &[&str]| {
        in_host(&[&[program.as_str(), "--instance", &instance, "run", "--docker-host", &url], words].concat())
    };
    let wrapped = |wrapper: &[&str]| in_host(&[wrapper, &[program.as_str()], &run].concat());
    let script = |setup: &str| wrapped(&["unshare", "--mount", "sh", "-ec", &format!("{setup}; exec \"$@\""), "sh"]);
    let refused = |what, command, code, words: &[&str]| Refused {
        what,
        command,
        code,
        words: words.iter().map(|word| (*word).to_owned()).collect(),
    };
    let cases = vec![
        refused(
            "no such interface",
            steer(&["--interface", "nope0"]),
            1,
            &["interface nope0 does not exist; there are:", "u0", "docker0"],
        ),
        refused(
            "no such interface among others",
            steer(&["--interface", "u0", "--interface", "eht0"]),
            1,
            &["interface eht0 does not exist"],
        ),
        refused("an unknown key", steer(&["--config", &bad_key]), 1, &[&bad_key, "line 2", "wieght"]),
        refused(
            "bad values",
            steer(&["--config", &bad_value]),
            1,
            &[&bad_value, "[defaults]: weight: 300", "[defaults]: drain: `soon`"],
        ),
        refused(
            "a bad service",
            steer(&["--config", &bad_service]),
            1,
            &[&bad_service, "service `web`: ports: `9000`", "service `web`: backend: 0 given"],
        ),
        refused("no such file", steer(&["--config", "/nowhere.toml"]), 1, &["/nowhere.toml", "No such file"]),
        refused(
            "a Docker that is no address",
            in_host(&[
                &program,
                "--instance",
                &instance,
                "run",
                "--interface",
                "u0",
                "--docker-host",
                "smoke://signal",
            ]),
            1,
            &["smoke://signal"],
        ),
        refused("an unknown option", steer(&["--interfaec", "u0"]), 2, &["--interfaec"]),
        refused("an unknown mode", steer(&["--attach", "magic"]), 2, &["magic", "auto", "xdp", "tc"]),
        refused(
            "nobody",
            wrapped(&["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]),
            1,
            &["run it as root"],
        ),
        refused(
            "root without its power over BPF",
            wrapped(&["setpriv", "--bounding-set=-sys_admin,-bpf"]),
            1,
            &["steer run misses CAP_SYS_ADMIN"],
        ),
        refused(
            "a bpffs that cannot be written",
            script("mount -t bpf -o ro bpf /sys/fs/bpf"),
            1,
            &["/sys/fs/bpf/", "Read-only file system"],
        ),
        refused("no bpffs and no place for it", script("mount -t tmpfs none /sys/fs"), 1, &["/sys/fs/bpf"]),
    ];
    let http = stage.at(9000);
    for Refused { what, mut command, code, words } in cases {
        assert_eq!(http.backend(), "healthy", "before {what}");
        let output = command.stdin(Stdio::null()).output().unwrap_or_else(|err| panic!("{what}: {command:?}: {err}"));
        let said = String::from_utf8_lossy(&output.stderr);
        eprintln!("{what}: {}", said.trim());
        assert_eq!(output.status.code(), Some(code), "{what}: {said}");
        for word in words {
            assert!(said.contains(&word), "{what}: {word:?} is not in: {said}");
        }
        assert!(!said.contains("panicked"), "{what}: {said}");
        assert_eq!(http.backend(), "healthy", "after {what}");
    }

    // And a good start takes over what stood all the time.
    stage.agent.restart();
    stage.agent.wait_ready("greeter", 1);
    assert_unharmed(load);
}

fn an_agent_without_docker_waits_for_it_and_serves_what_needs_none(attach: Attach) {
    if skip::without(&NEEDS) {
        return;
    }
    let mut world = attach.world();
    let (ns, _) = world.add_backend();
    let _greeter = Greeter::start(&ns, "static", &[]);
    let text = format!("[[service]]\nname = \"static\"\nports = [\"9003:5000\"]\n{}", ns.backend("static"));
    let config = world.file("steer.toml", &text);
    // Where Docker will be.
    let url = format!("unix://{}", world.dir().join("docker/docker.sock").display());
    let mut agent = Agent::start_with(&world, Some(&url), attach, &["--config", &config.display().to_string()]);
    let status = agent.wait_for("the absent Docker is told", |status| problem_of(status, "Docker").is_some());
    let problem = problem_of(&status, "Docker").expect("it was just seen");
    assert!(problem.message.contains("docker.sock"), "{problem:?}");
    assert_eq!(status.agent.docker, None);
    agent.wait_ready("static", 1);
    let http = Http::new(&world.client, (HOST, 9003));
    assert_eq!(http.backend(), "static");
    let load = clients(&world, 9003);

    let docker = Docker::start(&world);
    docker.import_greeter();
    docker.run(healthy());
    let status = agent.wait_ready("greeter", 1);
    assert_eq!(status.problems, [], "{status}");
    assert_eq!(Http::new(&world.client, (HOST, 9000)).backend(), "healthy");
    assert_unharmed(load);
    // The agent goes before its Docker.
    drop(agent);
}

#[test]
fn an_interface_without_ethernet_headers_is_refused_and_the_others_are_attached() {
    if skip::without(&[Need::Root, Need::Steer]) {
        return;
    }
    let world = Attach::Tc.world();
    world.host.output("ip", "tuntap add mode tun dev tun0");
    world.host.output("ip", "link set tun0 up");
    let arguments = ["--no-docker", "--attach", "tc", "--interface", "tun0", "--interface", world.uplink()];
    let mut agent = Agent::start_raw(&world, &arguments);
    let status = agent.wait_for("the interface is named", |status| problem_of(status, "tun0").is_some());
    let told = problem_of(&status, "tun0").map(|problem| problem.message.as_str()).unwrap_or_default();
    assert!(told.contains("no Ethernet header"), "{told}");
    assert!(agent.links().contains(&format!("tcx-{}", world.uplink())), "{:?}", agent.links());
    assert!(!agent.links().contains(&"tcx-tun0".to_owned()), "{:?}", agent.links());

    let doctor = agent.steer(&["doctor", "--no-docker", "--interface", "tun0"]);
    let said = String::from_utf8_lossy(&doctor.stdout);
    assert!(said.contains("tun0") && said.contains("no Ethernet header"), "{said}");
    assert_eq!(doctor.status.code(), Some(1), "{said}");
}

#[test]
fn each_bad_label_is_named_and_the_healthy_service_goes_on_over_tc() {
    each_bad_label_is_named_and_the_healthy_service_goes_on(Attach::Tc);
}

#[test]
fn each_bad_label_is_named_and_the_healthy_service_goes_on_over_xdp() {
    each_bad_label_is_named_and_the_healthy_service_goes_on(Attach::Xdp);
}

#[test]
fn of_two_services_on_one_frontend_the_first_keeps_it_over_tc() {
    of_two_services_on_one_frontend_the_first_keeps_it(Attach::Tc);
}

#[test]
fn of_two_services_on_one_frontend_the_first_keeps_it_over_xdp() {
    of_two_services_on_one_frontend_the_first_keeps_it(Attach::Xdp);
}

#[test]
fn a_container_that_cannot_be_reached_is_named_over_tc() {
    a_container_that_cannot_be_reached_is_named(Attach::Tc);
}

#[test]
fn a_container_that_cannot_be_reached_is_named_over_xdp() {
    a_container_that_cannot_be_reached_is_named(Attach::Xdp);
}

#[test]
fn an_agent_without_docker_waits_for_it_and_serves_what_needs_none_over_tc() {
    an_agent_without_docker_waits_for_it_and_serves_what_needs_none(Attach::Tc);
}

#[test]
fn an_agent_without_docker_waits_for_it_and_serves_what_needs_none_over_xdp() {
    an_agent_without_docker_waits_for_it_and_serves_what_needs_none(Attach::Xdp);
}
