//! One run of `cargo xtask vm` at a time: runs share `target/vm` and the disks, and two machines on a few cores would be slower than
//! their tests expect.

use std::{
    fs::{File, TryLockError},
    path::Path,
};

use anyhow::{Context, Result};

use super::shown;

/// Holds off other runs while it is there. The kernel takes it back with this process, however that ends: the file is closed in
/// children, so that one that outlives the run does not keep it.
pub(crate) struct Lock {
    _file: File,
}

/// Calls `waits` if another run has it, and returns once that one has ended.
pub(crate) fn take(path: &Path, waits: impl FnOnce()) -> Result<Lock> {
    let file = File::options().create(true).append(true).open(path);
    let file = file.with_context(|| format!("opening {}", shown(path)))?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            waits();
            file.lock().with_context(|| format!("waiting for {}", shown(path)))?;
        }
        Err(TryLockError::Error(error)) => return Err(error).with_context(|| format!("locking {}", shown(path))),
    }
    Ok(Lock { _file: file })
}

#[cfg(test)]
mod tests {
    use std::{process::Command, sync::mpsc, thread, time::Duration};

    use tempfile::NamedTempFile;

    use super::*;

    #[test]
    fn the_second_run_waits_until_the_first_has_ended() {
        let file = NamedTempFile::new().unwrap();
        let first = take(file.path(), || panic!("nobody has it")).unwrap();
        let (says, said) = mpsc::channel();
        thread::scope(|scope| {
            scope.spawn(|| {
                let second = take(file.path(), || says.send("waits").unwrap()).unwrap();
                says.send("goes on").unwrap();
                drop(second);
            });
            assert_eq!(said.recv().unwrap(), "waits");
            assert!(said.recv_timeout(Duration::from_millis(50)).is_err());
            drop(first);
            assert_eq!(said.recv().unwrap(), "goes on");
        });
    }

    #[test]
    fn a_child_that_outlives_the_run_does_not_keep_it() {
        let file = NamedTempFile::new().unwrap();
        let run = take(file.path(), || panic!("nobody has it")).unwrap();
        let mut child = Command::new("sleep").arg("60").spawn().unwrap();
        drop(run);
        // Between its start and its program a process still has the file: other tests start some.
        let next = take(file.path(), || {});
        let ended = child.try_wait().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
        next.unwrap();
        assert_eq!(ended, None, "the child had it to its end");
    }
}
