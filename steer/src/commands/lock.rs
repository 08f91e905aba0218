//! One agent at a time, per instance; and nobody takes its pins away under it.

use std::fs::File;
use std::io::Read as _;

use anyhow::{Context as _, Result};
use nix::fcntl::{Flock, FlockArg};

use crate::dataplane::paths::Paths;

/// Holds the instance's lock for as long as this process has it; else the id of the process that does.
pub(super) fn lock(paths: &Paths) -> Result<Result<Flock<File>, String>> {
    let directory = paths.lock.parent().context("the lock file has no directory")?;
    std::fs::create_dir_all(directory).with_context(|| format!("creating {}", directory.display()))?;
    let mut file = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&paths.lock)
        .with_context(|| format!("opening {}", paths.lock.display()))?;
    let mut holder = String::new();
    let _ = file.read_to_string(&mut holder);
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => {
            std::fs::write(&paths.lock, std::process::id().to_string())
                .with_context(|| format!("writing {}", paths.lock.display()))?;
            Ok(Ok(lock))
        }
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => Ok(Err(holder.trim().to_owned())),
        Err((_, error)) => Err(error).with_context(|| format!("locking {}", paths.lock.display())),
    }
}
