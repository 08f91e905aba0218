//! Freezing by cgroup version 1, which `docker pause` uses there.
//!
//! Version 2 has tracepoints, and the kernel side sees them (a container may be in groups of both). Version 1 tells nobody; but a
//! write to its control file `freezer.state` is seen by inotify when it is done, and Docker's own event comes milliseconds later.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd as _, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::cgroup;
use crate::model::ContainerId;

const CONTROLLER: &str = "freezer";
const STATE: &str = "freezer.state";
const THAWED: &str = "THAWED";

/// The control files of containers, watched.
pub struct Freezers {
    inotify: AsyncFd<Watcher>,
    watched: HashMap<WatchDescriptor, (ContainerId, PathBuf)>,
}

/// The library's type, for tokio.
struct Watcher(Inotify);

impl AsRawFd for Watcher {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// What became of a container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Change {
    pub container: ContainerId,
    pub is_frozen: bool,
}

impl Freezers {
    /// Watches nothing yet. Within a tokio runtime.
    pub fn new() -> io::Result<Self> {
        let inotify = Watcher(Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?);
        #[expect(
            deprecated,
            reason = "the replacement is an unsafe function, for types whose descriptor may change; this one's does not"
        )]
        let inotify = AsyncFd::with_interest(inotify, Interest::READABLE)?;
        Ok(Self { inotify, watched: HashMap::new() })
    }

    /// Watches the freezer that a container's first process is in, if it is in one of its own.
    pub fn watch(&mut self, container: &ContainerId, pid: i32) -> io::Result<()> {
        let mounts = std::fs::read_to_string("/proc/self/mounts")?;
        let (Some(root), Some(path)) = (mount(&mounts), cgroup::path(pid, CONTROLLER)?) else { return Ok(()) };
        let file = root.join(path).join(STATE);
        // The same file has the same descriptor.
        let watch = self.inotify.get_ref().0.add_watch(&file, AddWatchFlags::IN_MODIFY)?;
        self.watched.insert(watch, (container.clone(), file));
        Ok(())
    }

    /// Watches it no more: the kernel keeps the watch of a group that is gone, and tells nothing.
    pub fn forget(&mut self, container: &ContainerId) {
        self.watched.retain(|watch, (of, _)| {
            if of == container {
                // It may have ended by itself.
                let _ = self.inotify.get_ref().0.rm_watch(*watch);
            }
            of != container
        });
    }

    /// Waits until something may have changed. Cancel-safe: nothing is taken out.
    pub async fn changed(&self) {
        if self.inotify.readable().await.map(|mut guard| guard.retain_ready()).is_err() {
            // Without it the agent goes on by Docker's events.
            std::future::pending().await
        }
    }

    /// What has changed so far; as it is by now, since one may have been frozen and gone on.
    pub fn take(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Ok(events) = self.inotify.try_io(Interest::READABLE, |watcher| Ok(watcher.0.read_events()?)) {
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_IGNORED) {
                    // The group is gone.
                    self.watched.remove(&event.wd);
                } else if let Some((container, file)) = self.watched.get(&event.wd)
                    && let Ok(is_frozen) = is_frozen(file)
                {
                    changes.push(Change { container: container.clone(), is_frozen });
                }
            }
        }
        changes
    }
}

/// `FREEZING` and `FROZEN` are the same to who sends packets there.
fn is_frozen(file: &Path) -> io::Result<bool> {
    match std::fs::read_to_string(file) {
        Ok(state) => Ok(state.trim() != THAWED),
        Err(error) if error.raw_os_error() == Some(Errno::ENODEV as i32) => Ok(false),
        Err(error) => Err(error),
    }
}

/// Where the freezer is mounted, of lines like `cgroup /sys/fs/cgroup/freezer cgroup rw,relatime,freezer 0 0`.
fn mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let mut words = line.split(' ').skip(1);
        let (place, kind, options) = (words.next()?, words.next()?, words.next()?);
        let is_it = kind == "cgroup" && options.split(',').any(|option| option == CONTROLLER);
        is_it.then(|| PathBuf::from(place))
    })
}

#[cfg(test)]
mod tests {
    use rstest::rstest;
    use tempfile::TempDir;

    use super::*;

    #[rstest]
    #[case("cgroup /sys/fs/cgroup/freezer cgroup rw,relatime,freezer 0 0\n", Some("/sys/fs/cgroup/freezer"))]
    #[case("cgroup2 /sys/fs/cgroup cgroup2 rw,freezer 0 0\n", None)]
    #[case("tmpfs /freezer tmpfs rw 0 0\ncgroup /c cgroup rw,cpu,freezer 0 0\n", Some("/c"))]
    fn the_freezer_is_mounted_or_not(#[case] mounts: &str, #[case] expected: Option<&str>) {
        assert_eq!(mount(mounts), expected.map(PathBuf::from));
    }

    #[tokio::test]
    async fn what_is_written_is_told_as_it_is_by_then_and_a_group_that_goes_is_forgotten() {
        let dir = TempDir::new().unwrap();
        let file = dir.path().join(STATE);
        std::fs::write(&file, "THAWED\n").unwrap();
        let mut freezers = Freezers::new().unwrap();
        let watch = freezers.inotify.get_ref().0.add_watch(&file, AddWatchFlags::IN_MODIFY).unwrap();
        freezers.watched.insert(watch, (ContainerId("one".to_owned()), file.clone()));
        assert_eq!(freezers.take(), []);
        for (state, is_frozen) in [("FREEZING", true), ("FROZEN", true), ("THAWED", false)] {
            std::fs::write(&file, state).unwrap();
            freezers.changed().await;
            let told = freezers.take();
            assert_eq!(told.last(), Some(&Change { container: ContainerId("one".to_owned()), is_frozen }), "{state}");
            assert_eq!(freezers.take(), []);
        }
        dir.close().unwrap();
        freezers.changed().await;
        freezers.take();
        assert!(freezers.watched.is_empty());
    }
}
