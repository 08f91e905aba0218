//! In a worker's machine: does what tests ask, with this same harness, one node after the other.

use std::io;
use std::net::TcpListener;
use std::panic::{AssertUnwindSafe, catch_unwind};

use super::words::{Answer, Ask, Line};
use super::{DOCKER_PORT, HARNESS_NIC, HARNESS_PORT, harness_address, node_address};
use crate::World;
use crate::agent::{Agent, Attach};
use crate::docker::{Docker, tail};
use crate::netns::Ns;
use crate::panic;

const LOG_LINES: usize = 60;

/// Serves as the worker with this number until the machine ends.
pub fn serve(number: u8) -> io::Result<()> {
    take_address(number);
    let listener = TcpListener::bind((harness_address(number), HARNESS_PORT))?;
    for stream in listener.incoming() {
        let mut line = Line::new(stream?);
        // A test that failed takes its connection with it, in the middle of anything.
        match catch_unwind(AssertUnwindSafe(|| live(number, &mut line))) {
            Ok(ended) => ended.unwrap_or_else(|err| eprintln!("node: {err}")),
            Err(panic) => drop(line.send(&Answer::Failed(panic::words(&*panic)))),
        }
    }
    Ok(())
}

/// The harness's own address in this machine.
pub(super) fn take_address(number: u8) {
    let own = Ns::own();
    own.ip(&format!("addr replace {}/24 dev {HARNESS_NIC}", harness_address(number)));
    own.ip(&format!("link set {HARNESS_NIC} up"));
}

/// One node's life: everything is gone when it returns.
fn live(number: u8, line: &mut Line) -> io::Result<()> {
    let address = node_address(number);
    let world = World::at_the_wire(address, false);
    let api = format!("--host=tcp://{address}:{DOCKER_PORT}");
    let docker = Docker::start_with(&world, &[&api, "--tls=false"]);
    // Dropped first.
    let mut agent: Option<Agent> = None;
    line.send(&Answer::Done)?;
    while let Some(ask) = line.receive()? {
        let done = catch_unwind(AssertUnwindSafe(|| answer(ask, &world, &docker, &mut agent)));
        line.send(&done.unwrap_or_else(|panic| Answer::Failed(panic::words(&*panic))))?;
    }
    Ok(())
}

fn answer(ask: Ask, world: &World, docker: &Docker, agent: &mut Option<Agent>) -> Answer {
    match (ask, &agent) {
        (Ask::StartAgent, _) => {
            *agent = None;
            *agent = Some(Agent::start(world, docker, Attach::Tc));
            Answer::Done
        }
        (Ask::StopAgent, _) => {
            *agent = None;
            Answer::Done
        }
        (Ask::Steer(words), Some(agent)) => {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            let output = agent.steer(&words);
            let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
            if output.status.success() {
                Answer::Text(out.into_owned())
            } else {
                Answer::Failed(format!("steer {words:?}: {}\n{out}{err}", output.status))
            }
        }
        (Ask::AgentLog, Some(agent)) => Answer::Text(tail(&agent.log(), LOG_LINES)),
        (Ask::Steer(_) | Ask::AgentLog, None) => Answer::Failed("there is no agent".to_owned()),
    }
}
