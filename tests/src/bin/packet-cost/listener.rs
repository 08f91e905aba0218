//! A listener in a network namespace of its own, which the bench's namespace has an id for.

use std::net::{Ipv4Addr, TcpListener};
use std::process::Command;
use std::sync::mpsc;
use std::thread;

use nix::sched::{CloneFlags, unshare};
use nix::unistd::gettid;
use steer_tests::bpf::Bench;

/// Where every backend of a bench listens.
const PORT: u16 = 5000;

/// The listener, and the id of its namespace; the namespace goes with the bench's.
pub(crate) fn beside(bench: &mut Bench) -> (TcpListener, i32) {
    let (tell, told) = mpsc::channel();
    let (end, ended) = mpsc::channel::<()>();
    let child = thread::spawn(move || {
        unshare(CloneFlags::CLONE_NEWNET).expect("a namespace of one's own, as root");
        let listener = TcpListener::bind((Ipv4Addr::UNSPECIFIED, PORT)).expect("nobody else is there");
        tell.send((listener, gettid())).expect("somebody waits");
        // Its namespace must still be this thread's when it is named.
        let _ = ended.recv();
    });
    let (listener, thread) = told.recv().expect("it listens");
    // A veth that leads there gives the namespace its id.
    bench.ip(&format!("link set e1 netns {thread}"));
    let netns_id = netns_id();
    drop(end);
    child.join().expect("it does not panic");
    (listener, netns_id)
}

/// The id of the namespace at the other end of the first backend's veth.
fn netns_id() -> i32 {
    let output = Command::new("ip").args(["-j", "link", "show", "dev", "b1"]).output().expect("ip can be started");
    let links: serde_json::Value = serde_json::from_slice(&output.stdout).expect("ip writes JSON");
    let id = links[0]["link_netnsid"].as_i64().and_then(|id| i32::try_from(id).ok());
    id.unwrap_or_else(|| panic!("no id of a namespace: {links}"))
}
