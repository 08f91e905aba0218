//! Pins: links and maps as files of bpffs, and the directories they are in.
//!
//! What is not there is no error: whoever lists or removes may have been here before.

use std::fs::DirEntry;
use std::io;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use aya::programs::links::{FdLink, PinnedLink};

use super::paths::LinkName;

/// The links that are pinned in a directory.
pub(super) fn links(directory: &Path) -> Result<Vec<LinkName>> {
    Ok(entries(directory)?.iter().filter_map(|entry| LinkName::parse(entry.file_name().to_str()?)).collect())
}

/// What is in a directory.
pub(super) fn entries(directory: &Path) -> Result<Vec<DirEntry>> {
    let listing = || format!("listing {}", directory.display());
    match std::fs::read_dir(directory) {
        Ok(entries) => entries.collect::<io::Result<_>>().with_context(listing),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
        Err(error) => Err(error).with_context(listing),
    }
}

/// The link that is pinned there.
pub(super) fn open(pin: &Path) -> Result<Option<FdLink>> {
    if !pin.exists() {
        return Ok(None);
    }
    match PinnedLink::from_pin(pin) {
        Ok(link) => Ok(Some(link.into())),
        Err(error) => bail!("opening the pinned link {}: {error}", pin.display()),
    }
}

/// Pins a link where there is none.
pub(super) fn put(link: FdLink, pin: &Path) -> Result<()> {
    link.pin(pin).map(drop).with_context(|| format!("pinning the link at {}", pin.display()))
}

/// Pins a new link in the place of an old one, which ends by it. At no moment is neither of them pinned: an agent may be killed at any.
pub(super) fn replace(link: FdLink, pin: &Path) -> Result<()> {
    let name = pin.file_name().unwrap_or_default().to_string_lossy();
    // No name of a link's: whatever is left of it is not taken for one.
    let new = pin.with_file_name(format!("new-{name}"));
    remove(&new)?;
    put(link, &new)?;
    std::fs::rename(&new, pin).with_context(|| format!("renaming the pin {} to {name}", new.display()))
}

/// Gives a pin another place, in which it replaces what is there.
pub(super) fn rename(from: &Path, to: &Path) -> Result<()> {
    none_is_fine(std::fs::rename(from, to))
        .with_context(|| format!("renaming the pin {} to {}", from.display(), to.display()))
}

/// Removes a pin that leads nowhere; `error` says why.
pub(super) fn remove_defunct(pin: &Path, error: &anyhow::Error) -> Result<()> {
    tracing::debug!(pin = %pin.display(), error = format!("{error:#}"), "pinned link leads nowhere, attaching anew");
    remove(pin)
}

/// Removes a pin, or another file.
pub(super) fn remove(path: &Path) -> Result<()> {
    none_is_fine(std::fs::remove_file(path)).with_context(|| format!("removing {}", path.display()))
}

/// Removes an empty directory.
pub(super) fn remove_directory(path: &Path) -> Result<()> {
    none_is_fine(std::fs::remove_dir(path)).with_context(|| format!("removing {}", path.display()))
}

/// Removes a directory of pins, with all that is in it.
pub(super) fn remove_all(directory: &Path) -> Result<()> {
    entries(directory)?.iter().try_for_each(|entry| remove(&entry.path()))?;
    remove_directory(directory)
}

fn none_is_fine(done: io::Result<()>) -> io::Result<()> {
    match done {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        done => done,
    }
}
