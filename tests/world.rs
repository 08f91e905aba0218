//! The harness alone, without steer: what it makes works, and nothing of it is left.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use steer_tests::World;
use steer_tests::docker::{ContainerSpec, Docker};
use steer_tests::greeter::Greeter;
use steer_tests::http::{Failure, Http};
use steer_tests::load::{self, Ab, Load};
use steer_tests::long_lived::LongLived;
use steer_tests::pace;
use steer_tests::packet::{Capture, conversation};
use steer_tests::skip::{self, Need};
use steer_tests::world::{CLIENT, HOST, OTHER};

/// Everything with a world's tag: namespaces, mounts, cgroups, processes, files.
fn traces(tag: &str) -> Vec<String> {
    let list = |dir: &str| -> Vec<PathBuf> {
        fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
    };
    let tagged = |path: &PathBuf| path.to_string_lossy().contains(tag);
    let mut found: Vec<String> = ["/run/netns", "/tmp"]
        .into_iter()
        .flat_map(list)
        .filter(tagged)
        .map(|path| path.display().to_string())
        .collect();
    found.extend(
        list("/sys/fs/cgroup")
            .into_iter()
            .map(|base| base.join(tag))
            .filter(|group| group.exists())
            .map(|path| path.display().to_string()),
    );
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    found.extend(mounts.lines().filter(|line| line.contains(tag)).map(|line| format!("mount {line}")));
    for process in list("/proc").into_iter().filter(|path| path.join("cmdline").exists()) {
        let words = fs::read_to_string(process.join("cmdline")).unwrap_or_default().replace('\0', " ");
        let groups = fs::read_to_string(process.join("cgroup")).unwrap_or_default();
        if words.contains(tag) || groups.contains(tag) {
            found.push(format!("{} {words}", process.display()));
        }
    }
    found
}

#[test]
fn a_client_reaches_containers_by_dockers_own_path_and_nothing_is_left() {
    if skip::without(&[Need::Root, Need::Docker, Need::Program("ab")]) {
        return;
    }
    let world = World::new();
    let tag = world.tag().to_owned();
    let docker = Docker::start(&world);
    eprintln!("dockerd answered after {:?}", docker.started_in);
    docker.import_greeter();
    let specs = [("one", 8081, "v1"), ("two", 8082, "v2")];
    let greeters = docker.run_all(specs.map(|(name, port, version)| {
        ContainerSpec::greeter(name).version(version).publish(port, 5000).publish(port + 1000, 5001).healthcheck()
    }));
    greeters.iter().for_each(|greeter| greeter.wait_healthy());

    let at = |port: u16| SocketAddr::from((HOST, port));
    let reply = Http::new(&world.client, at(8081)).from_port(40000).get("/").unwrap();
    assert_eq!((reply.status, reply.backend.as_str(), reply.version.as_str()), (200, "one", "v1"));
    assert_eq!(reply.body, format!("v1 one {CLIENT}:40000\n"));
    assert_eq!(Http::new(&world.client, at(8082)).backend(), "two");
    assert_eq!(Http::new(&world.client, at(8083)).get("/"), Err(Failure::Refused));

    let mut session = Http::new(&world.client, at(8081)).open().unwrap();
    let versions = [session.get("/").unwrap().version, session.get("/bytes/10000").unwrap().body.len().to_string()];
    assert_eq!(versions, ["v1", "10000"]);

    drop(session);

    let long = LongLived::start(&world.client, at(9081));
    let for_a_time = format!("--connections 8 --seconds {} --rate {}", pace::lasting_secs(1), pace::rate(200));
    for words in ["--connections 20 --requests 4000 --mode keepalive", "--connections 20 --requests 4000", &for_a_time]
    {
        let report = Load::start(&world.client, at(8081), &format!("{words} {}", load::patient())).finish();
        eprintln!("{words}: {:.0} per second, slowest {:.1} ms", report.requests_per_second, report.slowest_ms);
        assert_eq!(report.failed, 0, "{report:#?}");
        assert_eq!(report.backends.keys().collect::<Vec<_>>(), ["one"]);
    }
    let bulk = Load::start(&world.client, at(8082), "--connections 2 --mode bulk --seconds 60").stop();
    assert_eq!(bulk.failed, 0, "{bulk:#?}");
    let ab = Ab::start(&world.client, at(8082), "-c 10 -n 2000 -l -k").finish();
    assert_eq!((ab.complete, ab.failed, ab.non_2xx), (2000, 0, 0), "{}", ab.text);
    assert!(long.finish_unharmed().exchanged > 5);

    greeters[0].kill("USR1");
    greeters[0].wait_health(bollard::models::HealthStatusEnum::UNHEALTHY, Duration::from_secs(20));
    greeters[0].stop(None);
    assert_eq!(greeters[0].wait_exit(Duration::from_secs(5)), 0);
    greeters[1].pause();

    drop(docker);
    drop(world);
    assert_eq!(traces(&tag), Vec::<String>::new());
}

#[test]
fn a_crashed_dockerd_comes_back_to_its_containers() {
    if skip::without(&[Need::Root, Need::Docker]) {
        return;
    }
    let world = World::new();
    let mut docker = Docker::start_with(&world, &["--live-restore"]);
    docker.import_greeter();
    let greeter = docker.run(ContainerSpec::greeter("stays"));
    docker.stop_daemon(nix::sys::signal::Signal::SIGKILL);
    assert_eq!(Http::new(&world.host, greeter.address()).backend(), "stays");
    docker.start_daemon();
    let state = docker.inspect(&greeter.id).state.unwrap();
    assert_eq!((state.running, state.pid), (Some(true), Some(greeter.pid.into())));
}

#[test]
fn what_passes_through_the_host_can_be_compared_packet_by_packet() {
    if skip::without(&[Need::Root, Need::Docker]) {
        return;
    }
    let world = World::with_other().without_checksum_offload();
    let greeter = Greeter::start(world.other(), "far", &[]);
    let target = SocketAddr::from((OTHER, 5000));
    let http = Http::new(&world.client, target).from_port(41000);

    let run = || {
        let capture = Capture::start(&world.client, "c0");
        assert_eq!(http.backend(), "far");
        conversation(&capture.finish(), 5000)
    };
    let (first, second) = (run(), run());
    assert_eq!(first, second);
    let flags: Vec<&str> = first.iter().map(|packet| packet.flags.as_str()).collect();
    assert_eq!(flags, ["S", "S.", "P.", "P.", "F.", "F."], "{first:#?}");
    assert_eq!((first[0].ttl, first[1].ttl), (64, 63));
    assert!(first.iter().filter(|packet| packet.outgoing).all(|packet| packet.checksums_ok), "{first:#?}");
    assert!(greeter.terminate().success());
}

#[test]
fn a_backend_without_docker_is_reached_through_the_host() {
    if skip::without(&[Need::Root, Need::Docker]) {
        return;
    }
    let mut world = World::new();
    let (ns, address) = world.add_backend();
    let greeter = Greeter::start(&ns, "bare", &[]);
    assert_eq!(Http::new(&world.client, SocketAddr::from((address, 5000))).backend(), "bare");
    assert!(greeter.terminate().success());
    let gone = Http::new(&world.client, SocketAddr::from((address, 5000))).get("/");
    assert_eq!(gone, Err(Failure::Refused));
}

#[test]
fn a_world_goes_with_a_panic() {
    if skip::without(&[Need::Root]) {
        return;
    }
    let tag = std::thread::spawn(|| {
        let world = World::new();
        let tag = world.tag().to_owned();
        let sleeper = world.client.command("sleep").arg("1000").spawn().unwrap();
        let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _moved = (world, sleeper);
            std::panic::resume_unwind(Box::new("on purpose, without a message"));
        }));
        assert!(outcome.is_err());
        tag
    });
    let tag = tag.join().unwrap();
    assert_eq!(traces(&tag), Vec::<String>::new());
}

#[test]
fn what_a_killed_process_left_is_swept() {
    if skip::without(&[Need::Root]) {
        return;
    }
    // No process can have this id: it is above the kernel's limit of 2^22.
    let name = "st-4194999-left-host";
    let status = std::process::Command::new("ip").args(["netns", "add", name]).status().unwrap();
    assert!(status.success());
    let dir = std::env::temp_dir().join("st-4194999-left");
    fs::create_dir_all(dir.join("docker")).unwrap();
    World::sweep();
    assert!(!PathBuf::from("/run/netns").join(name).exists());
    assert!(!dir.exists());
}
