//! A Docker that hangs when it is told to: requests about containers, or about its swarm, wait, or get no answer; events flow on.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;

use super::Docker;
use crate::World;

/// A socket in front of dockerd's. It lives as long as the test's process.
#[derive(Debug)]
pub struct Proxy {
    path: PathBuf,
    state: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Debug, Default)]
struct State {
    hung: bool,
    swarm_hung: bool,
    /// Requests that wait.
    held: usize,
    /// No question about this container is answered.
    silent_about: Option<String>,
    /// The first line of each request.
    asked: Vec<String>,
}

impl Proxy {
    pub fn start(world: &World, docker: &Docker) -> Self {
        let path = world.dir().join("proxy.sock");
        let listener = UnixListener::bind(&path).unwrap_or_else(|err| panic!("bind {}: {err}", path.display()));
        let state = Arc::<(Mutex<State>, Condvar)>::default();
        let (dockerd, shared) = (docker.start.dir.join("docker.sock"), state.clone());
        thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let (dockerd, state) = (dockerd.clone(), shared.clone());
                thread::spawn(move || drop(pass(client, &dockerd, &state)));
            }
        });
        Self { path, state }
    }

    /// What `--docker-host` takes.
    pub fn host_url(&self) -> String {
        format!("unix://{}", self.path.display())
    }

    /// From now on, questions about containers wait; or those that wait are passed on.
    pub fn hang(&self, hang: bool) {
        self.set(|state| state.hung = hang);
    }

    /// The same for questions about the swarm: services, tasks, and networks.
    pub fn hang_swarm(&self, hang: bool) {
        self.set(|state| state.swarm_hung = hang);
    }

    fn set(&self, change: impl FnOnce(&mut State)) {
        change(&mut self.state.0.lock().unwrap_or_else(PoisonError::into_inner));
        self.state.1.notify_all();
    }

    /// From now on, no question about this container is answered, though it is listed; or every one is.
    pub fn be_silent_about(&self, id: Option<&str>) {
        self.set(|state| state.silent_about = id.map(str::to_owned));
    }

    /// How many requests there were with these words in their first line.
    pub fn asked(&self, words: &str) -> usize {
        let state = self.state.0.lock().unwrap_or_else(PoisonError::into_inner);
        state.asked.iter().filter(|line| line.contains(words)).count()
    }

    /// How many requests wait.
    pub fn held(&self) -> usize {
        self.state.0.lock().unwrap_or_else(PoisonError::into_inner).held
    }
}

/// One connection: its first request decides whether it waits.
fn pass(mut client: UnixStream, dockerd: &Path, (state, changed): &(Mutex<State>, Condvar)) -> io::Result<()> {
    let mut head = vec![0; 4096];
    let length = client.read(&mut head)?;
    head.truncate(length);
    let line = String::from_utf8_lossy(&head).lines().next().unwrap_or_default().to_owned();
    state.lock().unwrap_or_else(PoisonError::into_inner).asked.push(line.clone());
    let is_about = |what: &[&str]| what.iter().any(|what| line.contains(what));
    let (of_containers, of_swarm) = (is_about(&["/containers/"]), is_about(&["/services", "/tasks", "/networks"]));
    if of_containers || of_swarm {
        let mut state = state.lock().unwrap_or_else(PoisonError::into_inner);
        let waits = |state: &mut State| of_containers && state.hung || of_swarm && state.swarm_hung;
        if waits(&mut state) {
            state.held += 1;
            state = changed.wait_while(state, waits).unwrap_or_else(PoisonError::into_inner);
            state.held -= 1;
        }
        if state.silent_about.as_ref().is_some_and(|id| line.contains(&format!("/containers/{id}/"))) {
            return Ok(());
        }
    }
    let mut server = UnixStream::connect(dockerd)?;
    server.write_all(&head)?;
    let (mut up_from, mut up_to) = (client.try_clone()?, server.try_clone()?);
    let up = thread::spawn(move || {
        let _ = io::copy(&mut up_from, &mut up_to);
        let _ = up_to.shutdown(Shutdown::Write);
    });
    let _ = io::copy(&mut server, &mut client);
    let _ = client.shutdown(Shutdown::Both);
    drop(up.join());
    Ok(())
}
