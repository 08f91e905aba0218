//! What steer does to the host before it steers, and what it must not leave there: parts of it alone, on the real kernel.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command};
use std::sync::Barrier;
use std::thread;

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use steer::dataplane::prepare;
use steer::host::freezer::Freezers;
use steer::host::netns::Netns;
use steer::host::netns_ids::NetnsIds;
use steer::model::ContainerId;
use steer_tests::skip::{self, Need};

/// Where steer pins.
const BPFFS: &str = "/sys/fs/bpf";

/// In a mount namespace of the thread's own, which its children share.
fn mounts_of_many_at_once() -> usize {
    const MANY: usize = 8;
    unshare(CloneFlags::CLONE_NEWNS).expect("root may");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).expect("root may");
    let mounts = || {
        let mounts = fs::read_to_string("/proc/thread-self/mountinfo").expect("it can be read");
        mounts.lines().filter(|line| line.contains(&format!(" {BPFFS} ")) && line.contains(" - bpf ")).count()
    };
    while mounts() > 0 {
        umount2(BPFFS, MntFlags::MNT_DETACH).expect("what is mounted can be taken off");
    }
    let at_once = Barrier::new(MANY);
    thread::scope(|scope| {
        let one = || {
            at_once.wait();
            prepare::bpffs()
        };
        let all: Vec<_> = (0..MANY).map(|_| scope.spawn(one)).collect();
        for one in all {
            one.join().expect("it does not panic").expect("bpffs can be mounted");
        }
    });
    mounts()
}

#[test]
fn agents_that_start_at_once_mount_once() {
    if skip::without(&[Need::Root]) {
        return;
    }
    for turn in 0..20 {
        let mounts = thread::scope(|scope| scope.spawn(mounts_of_many_at_once).join().expect("it does not panic"));
        assert_eq!(mounts, 1, "turn {turn}");
    }
}

/// A namespace of its own, of a thread that has ended: what keeps it alive is what is returned.
fn new_netns() -> Netns {
    let made = thread::spawn(|| {
        unshare(CloneFlags::CLONE_NEWNET).expect("root may");
        Netns::at("/proc/thread-self/ns/net").expect("a thread has a namespace")
    });
    made.join().expect("it does not panic")
}

#[test]
fn a_namespaces_id_is_given_once_and_to_one() {
    if skip::without(&[Need::Root]) {
        return;
    }
    let (one, other) = (new_netns(), new_netns());
    let mut ids = NetnsIds::inside(&one).unwrap();
    assert!(ids.give(&other, 1_234_567_890).unwrap());
    assert!(ids.give(&other, 1_234_567_890).unwrap(), "an earlier agent gave the same");
    assert!(!ids.give(&other, 1_234_567_891).unwrap());
    assert!(!ids.give(&one, 1_234_567_890).unwrap(), "it is another's");
    assert!(ids.give(&one, 1_234_567_892).unwrap(), "one may have an id in itself");
}

/// A process in a freezer of its own; both go with it.
struct Frozen {
    child: Child,
    group: PathBuf,
}

impl Frozen {
    fn new(root: &str, name: &str) -> Self {
        let group = PathBuf::from(root).join(format!("st-{}-{name}", std::process::id()));
        fs::create_dir(&group).expect("root may make a group");
        let child = Command::new("sleep").arg("60").spawn().expect("sleep can be started");
        fs::write(group.join("cgroup.procs"), child.id().to_string()).expect("a process can be moved");
        Self { child, group }
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
        drop(fs::remove_dir(&self.group));
    }
}

/// What this process watches, as the kernel counts it.
fn watches() -> usize {
    let files = fs::read_dir("/proc/self/fdinfo").expect("it can be listed").flatten();
    let told = files.filter_map(|file| fs::read_to_string(file.path()).ok());
    told.map(|told| told.lines().filter(|line| line.starts_with("inotify wd:")).count()).sum()
}

#[tokio::test]
async fn the_freezer_of_a_container_that_has_ended_is_watched_no_more() {
    if skip::without(&[Need::Root]) {
        return;
    }
    let mounts = fs::read_to_string("/proc/self/mounts").expect("it can be read");
    let mut freezers = mounts.lines().filter(|line| {
        let words: Vec<_> = line.split(' ').collect();
        words.get(2) == Some(&"cgroup")
            && words.get(3).is_some_and(|options| options.split(',').any(|word| word == "freezer"))
    });
    let Some(root) = freezers.next().and_then(|line| line.split(' ').nth(1)) else {
        return skip::not_of_this_kind("no freezer of cgroup version 1");
    };
    let mut freezers = Freezers::new().expect("inotify is there");
    let ids = ["one", "two"].map(|name| ContainerId(name.to_owned()));
    let containers = ["one", "two"].map(|name| Frozen::new(root, name));
    for (id, container) in ids.iter().zip(&containers) {
        freezers.watch(id, container.child.id() as i32).expect("a group can be watched");
    }
    assert_eq!(watches(), 2);
    let [one, two] = containers;
    drop(one);
    freezers.forget(&ids[0]);
    assert_eq!(watches(), 1, "the kernel keeps the watch of a group that is gone");
    freezers.forget(&ids[1]);
    assert_eq!(watches(), 0);
    drop(two);
}
