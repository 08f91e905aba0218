//! Removing what a world made, by its guard, or by a later process for one that was killed.
//!
//! Problem: a private dockerd leaves shims, containers, overlay mounts, nsfs mounts and cgroups behind when it is
//! killed, and a test binary can be killed too. Approach: a process belongs to a world if it lives in one of its
//! network namespaces or in a cgroup with its tag; that needs no book-keeping and never hits anything else. No step
//! panics: one that fails is reported, and the next one runs.

use std::fs;
use std::io::{ErrorKind, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use nix::mount::{MntFlags, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::netns::NAMES;
use crate::pace;

/// First letters of every name a world gives.
pub(crate) const PREFIX: &str = "st-";
/// Where agents pin, and where their sockets are.
pub(crate) const PINS: &str = "/sys/fs/bpf";
const RUN: &str = "/run";
const LIMIT: Duration = Duration::from_secs(10);
const CGROUP_LIMIT: Duration = Duration::from_secs(2);

/// Where worlds keep their files. Short, since unix sockets live below it and their paths end at 108 bytes.
pub(crate) fn scratch_root() -> PathBuf {
    std::env::temp_dir()
}

fn complain(what: impl std::fmt::Display) {
    drop(writeln!(std::io::stderr(), "steer-tests: cleaning up: {what}"));
}

/// Ends every process in these network namespaces or in a cgroup with this tag, and waits until they are gone.
pub(crate) fn end_processes(netns: &[u64], tag: Option<&str>) {
    let deadline = Instant::now() + pace::soon(LIMIT);
    loop {
        let left: Vec<Pid> = processes().filter(|&pid| belongs(pid, netns, tag)).collect();
        if left.is_empty() {
            return;
        }
        if Instant::now() > deadline {
            return complain(format!("processes {left:?} do not end"));
        }
        for pid in left {
            // A paused container's processes are frozen; they die when they thaw.
            thaw(pid, tag);
            let _ = kill(pid, Signal::SIGKILL);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

fn processes() -> impl Iterator<Item = Pid> {
    let own = std::process::id() as i32;
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    pids.filter(move |&pid| pid != own && pid != 1).map(Pid::from_raw)
}

fn belongs(pid: Pid, netns: &[u64], tag: Option<&str>) -> bool {
    // Dead already and waiting for its parent: nothing to end.
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let state = stat.rsplit(") ").next().and_then(|rest| rest.chars().next());
    if matches!(state, None | Some('Z' | 'X')) {
        return false;
    }
    let inode = fs::metadata(format!("/proc/{pid}/ns/net")).map(|meta| meta.ino());
    inode.is_ok_and(|inode| netns.contains(&inode)) || tag.is_some_and(|tag| in_cgroup(pid, tag))
}

fn in_cgroup(pid: Pid, tag: &str) -> bool {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    groups.lines().any(|line| line.split('/').any(|part| part == tag))
}

fn thaw(pid: Pid, tag: Option<&str>) {
    let groups = fs::read_to_string(format!("/proc/{pid}/cgroup")).unwrap_or_default();
    for line in groups.lines().filter(|line| tag.is_some_and(|tag| line.contains(tag))) {
        let mut fields = line.splitn(3, ':');
        let (Some(_), Some(controller), Some(path)) = (fields.next(), fields.next(), fields.next()) else { continue };
        // cgroup v1, then v2; the file that does not exist is not of this machine.
        match controller {
            "freezer" => drop(fs::write(format!("/sys/fs/cgroup/freezer{path}/freezer.state"), "THAWED")),
            "" => drop(fs::write(format!("/sys/fs/cgroup{path}/cgroup.freeze"), "0")),
            _ => {}
        }
    }
}

/// Unmounts everything below `dir`, the deepest first.
pub(crate) fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = mounts.lines().filter_map(|line| line.split(' ').nth(1)).map(PathBuf::from);
    let mut below: Vec<PathBuf> = points.filter(|point| point.starts_with(dir)).collect();
    below.sort();
    for point in below.iter().rev() {
        if let Err(err) = umount2(point, MntFlags::MNT_DETACH) {
            complain(format!("unmount {}: {err}", point.display()));
        }
    }
}

/// Removes the cgroups named by a tag, in every hierarchy.
pub(crate) fn remove_cgroups(tag: &str) {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path());
    for base in hierarchies.chain([root.to_owned()]) {
        let group = base.join(tag);
        if group.is_dir() {
            remove_cgroup_tree(&group);
        }
    }
}

fn remove_cgroup_tree(group: &Path) {
    let children = fs::read_dir(group).into_iter().flatten().flatten();
    children
        .filter(|child| child.file_type().is_ok_and(|kind| kind.is_dir()))
        .for_each(|child| remove_cgroup_tree(&child.path()));
    // The kernel keeps a group busy for a moment after its last process is gone.
    let deadline = Instant::now() + pace::soon(CGROUP_LIMIT);
    while let Err(err) = fs::remove_dir(group) {
        if err.kind() == ErrorKind::NotFound {
            return;
        }
        if Instant::now() > deadline {
            return complain(format!("remove {}: {err}", group.display()));
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Takes the name from a namespace; it goes when nothing is left inside.
pub(crate) fn remove_netns(name: &str) {
    let path = Path::new(NAMES).join(name);
    let _ = umount2(&path, MntFlags::MNT_DETACH);
    match fs::remove_file(&path) {
        Err(err) if err.kind() != ErrorKind::NotFound => complain(format!("remove {}: {err}", path.display())),
        _ => {}
    }
}

pub(crate) fn remove_dir(dir: &Path) {
    match fs::remove_dir_all(dir) {
        Err(err) if err.kind() != ErrorKind::NotFound => complain(format!("remove {}: {err}", dir.display())),
        _ => {}
    }
}

pub(crate) fn is_mounted(point: &str) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    mounts.lines().any(|line| line.split(' ').nth(1) == Some(point))
}

/// Unmounts a bpffs that holds no directory: agents pin in one of their own.
pub(crate) fn unmount_if_unused(point: &str) {
    let mut entries = fs::read_dir(point).into_iter().flatten().flatten();
    if entries.any(|entry| entry.path().is_dir()) {
        return;
    }
    drop(entries);
    if let Err(err) = umount2(point, MntFlags::empty()) {
        complain(format!("unmount {point}: {err}"));
    }
}

/// Removes what an agent of this instance has pinned and left, if `steer detach` could not. The programs go with the pins.
pub(crate) fn remove_instance(instance: &str) {
    remove_dir(&Path::new(PINS).join(instance));
    let run = Path::new(RUN).join(instance);
    // The agent may have mounted a cgroup2 here: nothing below a mount may be removed.
    unmount_below(&run);
    for entry in fs::read_dir(&run).into_iter().flatten().flatten() {
        let path = entry.path();
        let _ = fs::remove_file(&path).or_else(|_| fs::remove_dir(&path));
    }
    match fs::remove_dir(&run) {
        Err(err) if err.kind() != ErrorKind::NotFound => complain(format!("remove {}: {err}", run.display())),
        _ => {}
    }
}

/// Removes the worlds of dead processes: found by the process id in the names of directories and namespaces.
pub(crate) fn sweep() {
    let named = |dir: &Path| -> Vec<String> {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).filter(|name| is_stale(name)).collect()
    };
    for name in named(Path::new(NAMES)) {
        let inode = fs::metadata(Path::new(NAMES).join(&name)).map(|meta| meta.ino());
        end_processes(inode.as_ref().map(std::slice::from_ref).unwrap_or_default(), None);
        remove_netns(&name);
    }
    for tag in named(&scratch_root()) {
        end_processes(&[], Some(&tag));
        let dir = scratch_root().join(&tag);
        unmount_below(&dir);
        remove_cgroups(&tag);
        remove_dir(&dir);
    }
    [PINS, RUN].map(Path::new).into_iter().flat_map(named).for_each(|instance| remove_instance(&instance));
}

/// `st-<pid>-...` of a process that is gone.
pub(crate) fn is_stale(name: &str) -> bool {
    let pid = name.strip_prefix(PREFIX).and_then(|rest| rest.split('-').next()).and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| !Path::new("/proc").join(pid.to_string()).exists())
}
