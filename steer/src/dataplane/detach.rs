//! Takes everything away: the host is as it was before.

use std::io;
use std::path::Path;

use anyhow::{Context as _, Result};

use super::paths::Paths;
use super::{attach, clsact};

/// Detaches all programs and removes all maps, at once: steered connections that are open break.
pub fn now(paths: &Paths) -> Result<()> {
    // Links first: a program without maps is no use, maps without a program do no harm.
    remove_links(&paths.links)?;
    remove_all(&paths.maps)?;
    remove_directory(&paths.pins)?;
    if let Some(instance) = paths.pins.parent() {
        // Another ABI's pins may be there.
        let _ = std::fs::remove_dir(instance);
    }
    for file in [&paths.socket, &paths.lock] {
        remove_file(file)?;
    }
    if let Some(run) = paths.socket.parent() {
        let own_cgroup = run.join("cgroup2");
        if own_cgroup.exists() {
            let _ = nix::mount::umount(&own_cgroup);
            remove_directory(&own_cgroup)?;
        }
        let _ = std::fs::remove_dir(run);
    }
    Ok(())
}

/// Takes away what another version of steer left, if it did; whether it did. Its maps have another layout, so nothing of it can be
/// taken over: connections that it steered are known again by their sockets.
pub fn others(paths: &Paths) -> Result<bool> {
    let Some(instance) = paths.pins.parent() else { return Ok(false) };
    let entries = match std::fs::read_dir(instance) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) => return Err(error).with_context(|| format!("listing {}", instance.display())),
    };
    let mut found = false;
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", instance.display()))?.path();
        if path == paths.pins {
            continue;
        }
        remove_links(&path.join("links"))?;
        remove_all(&path.join("maps"))?;
        remove_directory(&path)?;
        found = true;
    }
    Ok(found)
}

/// Where a pin is not all there is to a link (see [`clsact`]), the rest goes first.
fn remove_links(directory: &Path) -> Result<()> {
    if clsact::is_needed() {
        for name in attach::links_in(directory)? {
            clsact::detach(&name).with_context(|| format!("detaching {name}"))?;
        }
    }
    remove_all(directory)
}

fn remove_all(directory: &Path) -> Result<()> {
    let entries = match std::fs::read_dir(directory) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(error).with_context(|| format!("listing {}", directory.display())),
    };
    for entry in entries {
        let path = entry.with_context(|| format!("listing {}", directory.display()))?.path();
        remove_file(&path)?;
    }
    remove_directory(directory)
}

/// Removes a file, if it is there.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn remove_directory(path: &Path) -> Result<()> {
    match std::fs::remove_dir(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}
