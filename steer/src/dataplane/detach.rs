//! Takes everything away: the host is as it was before.

use std::path::Path;

use anyhow::{Context as _, Result};
use aya::maps::{HashMap, MapData};
use steer_common::limits::{ABI, names};
use steer_common::service::{FrontendEntry, FrontendKey};

use super::absent::found;
use super::paths::{LinkName, MAPS, Paths};
use super::read::{open, walk};
use super::{clsact, others, pins, vips};

/// Closes every frontend to new flows, and leaves virtual addresses to Swarm; what is known is followed. For a host whose agent is
/// gone: a living one does this itself, and the next one opens them again when it reconciles.
pub fn close(paths: &Paths) -> Result<()> {
    let mut frontends: HashMap<MapData, FrontendKey, FrontendEntry> = open(paths, names::FRONTENDS)?;
    for key in walk::keys(&frontends).context("reading FRONTENDS")? {
        let Some(mut entry) = found(frontends.get(&key, 0)).context("reading FRONTENDS")? else { continue };
        entry.flags |= FrontendEntry::CLOSED;
        frontends.insert(key, entry, 0).context("writing FRONTENDS")?;
    }
    vips::clear(&mut open(paths, names::VIP_KEYS)?)
}

/// Detaches all programs and removes all maps, those of other versions too, at once: steered connections that are open break.
pub fn now(paths: &Paths) -> Result<()> {
    // Links first: a program without maps is no use, maps without a program do no harm.
    remove_links(&paths.instance, &paths.links, Some(ABI))?;
    others::remove(paths)?;
    pins::remove_all(&paths.memory.join(MAPS))?;
    pins::remove_directory(&paths.memory)?;
    pins::remove_all(&paths.maps)?;
    pins::remove_directory(&paths.pins)?;
    pins::remove_directory(&paths.all)?;
    for file in [&paths.socket, &paths.lock] {
        pins::remove(file)?;
    }
    if let Some(run) = paths.socket.parent() {
        let own_cgroup = run.join("cgroup2");
        if own_cgroup.exists() {
            let _ = nix::mount::umount(&own_cgroup);
            pins::remove_directory(&own_cgroup)?;
        }
        let _ = std::fs::remove_dir(run);
    }
    Ok(())
}

/// Takes all links of a version away; `None` = there are none that are filters. Where clients come in, then where replies do: what the
/// one lets in, the other must let out. Where a pin is not all there is to a link (see [`clsact`]), the rest goes first.
pub(super) fn remove_links(instance: &str, directory: &Path, version: Option<u32>) -> Result<()> {
    let mut names = pins::links(directory)?;
    names.sort_by_key(|name| matches!(name, LinkName::Veth(_)));
    for name in names {
        if let Some(version) = version {
            clsact::detach(instance, &name, version).with_context(|| format!("detaching {name}"))?;
        }
        pins::remove(&directory.join(name.to_string()))?;
    }
    pins::remove_all(directory)
}
