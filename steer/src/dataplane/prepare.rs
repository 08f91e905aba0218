//! Mounts what is not mounted, and finds what is: bpffs for the pins, cgroup2 for the socket hooks.

use std::fs::File;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use nix::mount::{MsFlags, mount};
use nix::sys::statfs::{BPF_FS_MAGIC, CGROUP2_SUPER_MAGIC, FsType, statfs};

use super::paths::{MAPS, Paths};

const BPFFS: &str = "/sys/fs/bpf";
/// Where cgroup2 is usually found: alone, or beside version 1.
const CGROUP2: [&str; 2] = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"];

/// Makes sure that bpffs is there to pin to.
pub fn bpffs() -> Result<()> {
    let path = Path::new(BPFFS);
    mount_once("bpf", path, BPF_FS_MAGIC).with_context(|| {
        format!("mounting the BPF file system at {BPFFS}: steer pins its maps there (it needs root, or CAP_SYS_ADMIN)")
    })
}

/// The root of the cgroup2 hierarchy, mounted at a place of its own (`run`) if it is nowhere else.
pub fn cgroup2(run: &Path) -> Result<PathBuf> {
    if let Some(found) = CGROUP2.iter().map(Path::new).find(|path| is(path, CGROUP2_SUPER_MAGIC)) {
        return Ok(found.to_owned());
    }
    let own = run.join("cgroup2");
    std::fs::create_dir_all(&own).with_context(|| format!("creating {}", own.display()))?;
    mount_once("cgroup2", &own, CGROUP2_SUPER_MAGIC)
        .with_context(|| format!("mounting cgroup2 at {}", own.display()))?;
    Ok(own)
}

/// Mounts a file system where it is not mounted yet. Of several agents that start at once only one does: a second mount would hide
/// what the first agent has put into its own by then.
fn mount_once(kind: &str, path: &Path, magic: FsType) -> Result<()> {
    if is(path, magic) {
        return Ok(());
    }
    // Of the directory beneath, which the mount of another agent hides. Without it (a file system that cannot lock) all is as before.
    let _lock = File::open(path).ok().and_then(|beneath| Flock::lock(beneath, FlockArg::LockExclusive).ok());
    if !is(path, magic) {
        mount(Some(kind), path, Some(kind), MsFlags::empty(), None::<&str>)?;
        tracing::info!(path = %path.display(), "mounted {kind}");
    }
    Ok(())
}

/// Creates the directories of the pins.
pub fn directories(paths: &Paths) -> Result<()> {
    for directory in [&paths.maps, &paths.links, &paths.memory.join(MAPS)] {
        std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    }
    if !is(&paths.maps, BPF_FS_MAGIC) {
        bail!("{} is not on a BPF file system: mount one at {BPFFS}", paths.maps.display());
    }
    Ok(())
}

fn is(path: &Path, magic: FsType) -> bool {
    statfs(path).is_ok_and(|found| found.filesystem_type() == magic)
}
