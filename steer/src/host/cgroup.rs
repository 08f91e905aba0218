//! The cgroup (version 2) that a process is in.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The id of a process's cgroup, where that hierarchy is mounted at `root`; `None` = it is in no group but the root, as the containers
/// of a Docker that uses version 1 are.
pub fn id(root: &Path, pid: i32) -> io::Result<Option<u64>> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    // The number of the directory is the kernel's own id of the group (`kernfs_node.id`).
    path(&groups).map(|path| Ok(root.join(path).metadata()?.ino())).transpose()
}

/// Where the group is below its root, from `/proc/<pid>/cgroup`: a line per hierarchy, version 2 under the number 0.
fn path(groups: &str) -> Option<&str> {
    let path = groups.lines().find_map(|line| line.strip_prefix("0::/"))?;
    (!path.is_empty()).then_some(path)
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[rstest]
    #[case::version_2("0::/system.slice/docker-0123.scope\n", Some("system.slice/docker-0123.scope"))]
    #[case::beside_version_1("5:freezer:/docker/0123\n0::/docker/0123\n", Some("docker/0123"))]
    #[case::version_1_alone("5:freezer:/docker/0123\n0::/\n", None)]
    #[case::without_version_2("5:freezer:/docker/0123\n", None)]
    fn a_group_is_found_under_the_number_of_version_2(#[case] groups: &str, #[case] expected: Option<&str>) {
        assert_eq!(path(groups), expected);
    }
}
