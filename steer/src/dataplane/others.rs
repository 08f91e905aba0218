//! What another version of steer has on this host: its maps have another layout, so that nothing in them can be taken over.
//!
//! Its programs steer on until this version's do: see `agent::takeover`. What both know is what the sockets of backends remember,
//! which is pinned beside the versions: by that this one knows the other's connections again.

use std::path::PathBuf;

use anyhow::Result;

use super::detach::remove_links;
use super::paths::{LINKS, LinkName, MAPS, Paths};
use super::pins;

/// A directory beside this version's.
struct Other {
    path: PathBuf,
    /// `None` = of no version's maps: what sockets remember, as an earlier version had it.
    version: Option<u32>,
}

/// Whether another version has pinned anything.
pub fn are_there(paths: &Paths) -> Result<bool> {
    Ok(!list(paths)?.is_empty())
}

/// Takes over another version's link at an interface's XDP, if it has one: there is room for one program alone. The link, this
/// version's own from here on, still has the other one's program.
pub(super) fn inherit_xdp(paths: &Paths, interface: &str) -> Result<()> {
    let name = LinkName::Xdp(interface.to_owned());
    for other in list(paths)? {
        let (from, to) = (other.path.join(LINKS).join(name.to_string()), paths.link(&name));
        pins::rename(&from, &to)?;
    }
    Ok(())
}

/// Takes away all that other versions have.
pub fn remove(paths: &Paths) -> Result<()> {
    for Other { path, version } in list(paths)? {
        remove_links(&paths.instance, &path.join(LINKS), version)?;
        pins::remove_all(&path.join(MAPS))?;
        pins::remove_directory(&path)?;
    }
    Ok(())
}

fn list(paths: &Paths) -> Result<Vec<Other>> {
    let mut others = Vec::new();
    for entry in pins::entries(&paths.all)? {
        let path = entry.path();
        // What is no directory is nobody's: versions have one each.
        let is_directory = entry.file_type().is_ok_and(|kind| kind.is_dir());
        if !is_directory || path == paths.pins || path == paths.memory {
            continue;
        }
        let name = path.file_name().and_then(|name| name.to_str());
        let version = name.and_then(|name| name.strip_prefix('v')?.parse().ok());
        others.push(Other { path, version });
    }
    Ok(others)
}

#[cfg(test)]
mod tests {
    use steer_common::limits::ABI;
    use tempfile::TempDir;

    use super::*;

    /// The places of an instance in a directory of its own, with these directories in it.
    fn with(root: &TempDir, directories: &[&str]) -> Paths {
        let root = root.path();
        let paths = Paths::under(root, &root.join("run"), "blue");
        for directory in directories {
            std::fs::create_dir_all(paths.all.join(directory)).unwrap();
        }
        paths
    }

    #[test]
    fn nobody_is_there_beside_oneself_and_what_sockets_remember() {
        let own = format!("v{ABI}/links");
        let root = TempDir::new().unwrap();
        let paths = with(&root, &[&own, "sockets-v1/maps"]);
        std::fs::write(paths.all.join("note"), "").unwrap();
        assert!(!are_there(&paths).unwrap());
        root.close().unwrap();
        assert!(!are_there(&paths).unwrap(), "nor where nothing is at all");
    }

    #[test]
    fn another_version_goes_and_leaves_its_place_at_xdp() {
        let own = format!("v{ABI}/links");
        let root = TempDir::new().unwrap();
        let paths = with(&root, &[&own, "v1/links", "v1/maps", "sockets-v0/maps"]);
        for file in ["v1/links/xdp-eth0", "v1/links/cgroup-release", "v1/maps/FLOWS", "sockets-v0/maps/SOCKETS"] {
            std::fs::write(paths.all.join(file), "").unwrap();
        }
        assert!(are_there(&paths).unwrap());
        inherit_xdp(&paths, "eth0").unwrap();
        inherit_xdp(&paths, "eth1").unwrap();
        remove(&paths).unwrap();
        assert!(!are_there(&paths).unwrap());
        assert!(paths.links.join("xdp-eth0").exists());
        assert_eq!(std::fs::read_dir(&paths.all).unwrap().count(), 1, "{}", paths.all.display());
    }
}
