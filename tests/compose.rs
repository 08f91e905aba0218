//! Compose: the README's example, by the command line: labels group the containers, scaling up adds, drain and stop take away.

use std::net::SocketAddr;
use std::process::Command;

use steer_tests::World;
use steer_tests::agent::{Agent, Attach};
use steer_tests::docker::Docker;
use steer_tests::http::Http;
use steer_tests::pace;
use steer_tests::skip::{self, Need};
use steer_tests::world::HOST;

const COMPOSE_FILE: &str = r#"
version: "3.8"
services:
  web:
    image: greeter:latest
    labels:
      steer.port: "80:5000"
    healthcheck:
      test: ["CMD", "/greeter", "health", "--port", "5000"]
      interval: INTERVAL
"#;

/// Runs Compose on the private Docker; panics with its output if it fails.
fn compose(world: &World, docker: &Docker, arguments: &str) -> String {
    let mut command = Command::new("docker-compose");
    command.current_dir(world.dir().join("shop")).env("DOCKER_HOST", docker.host_url()).args(arguments.split(' '));
    let output = command.output().unwrap_or_else(|err| panic!("docker-compose: {err}"));
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "docker-compose {arguments}: {}\n{text}", output.status);
    text
}

#[test]
fn a_compose_service_is_steered_to_scaled_and_drained() {
    if skip::without(&[Need::Root, Need::Docker, Need::Steer, Need::Program("docker-compose")]) {
        return;
    }
    let world = Attach::Tc.world();
    let docker = Docker::start(&world);
    docker.import_greeter();
    std::fs::create_dir_all(world.dir().join("shop")).expect("a directory for the project");
    let interval = format!("{}s", pace::lasting_secs(1));
    world.file("shop/docker-compose.yml", &COMPOSE_FILE.replace("INTERVAL", &interval));
    let mut agent = Agent::start(&world, &docker, Attach::Tc);
    let http = Http::new(&world.client, SocketAddr::from((HOST, 80)));

    compose(&world, &docker, "up -d --scale web=2");
    agent.wait_ready("shop_web", 2);
    let first = http.backend();

    compose(&world, &docker, "up -d --no-deps --scale web=4 --no-recreate web");
    agent.wait_ready("shop_web", 4);
    let mut answered: Vec<_> = (0..8).map(|_| http.backend()).collect();
    answered.sort();
    answered.dedup();
    assert_eq!(answered.len(), 4, "{answered:?}");
    assert!(answered.contains(&first));

    // Compose 1 calls them shop_web_1, Compose 2 shop-web-1.
    let names: Vec<String> = agent
        .status()
        .service("shop_web")
        .map(|service| service.backends.iter().map(|backend| backend.name.clone()).collect())
        .unwrap_or_default();
    let name = names.first().expect("a backend").clone();
    agent.steer_ok(&["drain", &name, "--wait"]);
    let stopped = Command::new("docker").args(["--host", &docker.host_url(), "stop", &name]).output().expect("docker");
    assert!(stopped.status.success(), "{}", String::from_utf8_lossy(&stopped.stderr));
    for _ in 0..8 {
        http.backend();
    }

    compose(&world, &docker, "run -d --no-deps web --port 5000");
    agent.wait_for("the one-off container is left alone", |status| {
        status.service("shop_web").is_some_and(|service| service.backends.len() == 3)
    });
    compose(&world, &docker, "down --timeout 2");
}
