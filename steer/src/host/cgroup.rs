//! The cgroups that a process is in.

use std::io;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// The hierarchy of version 2, which has no controllers of its own in `/proc/<pid>/cgroup`.
const VERSION_2: &str = "";

/// The id of a process's cgroup (version 2), where that hierarchy is mounted at `root`; `None` = it is in no group but the root, as the
/// containers of a Docker that uses version 1 may be.
pub fn id(root: &Path, pid: i32) -> io::Result<Option<u64>> {
    // The number of the directory is the kernel's own id of the group (`kernfs_node.id`).
    path(pid, VERSION_2)?.map(|path| Ok(root.join(path).metadata()?.ino())).transpose()
}

/// Where a process's group is below the root of a controller's hierarchy (version 1), if it is in one of its own.
pub(super) fn path(pid: i32, controller: &str) -> io::Result<Option<String>> {
    let groups = std::fs::read_to_string(format!("/proc/{pid}/cgroup"))?;
    Ok(path_in(&groups, controller).map(str::to_owned))
}

/// The same of `/proc/<pid>/cgroup`: a line per hierarchy, which several controllers may share, as in `5:freezer,pids:/docker/0123`.
fn path_in<'a>(groups: &'a str, controller: &str) -> Option<&'a str> {
    groups.lines().find_map(|line| {
        let (_number, rest) = line.split_once(':')?;
        let (controllers, path) = rest.split_once(":/")?;
        let is_it = controllers.split(',').any(|name| name == controller) && !path.is_empty();
        is_it.then_some(path)
    })
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
        assert_eq!(path_in(groups, VERSION_2), expected);
    }

    #[rstest]
    #[case::version_2("0::/system.slice/docker-0123.scope\n", None)]
    #[case::beside_version_2("5:freezer:/docker/01\n0::/docker/23\n", Some("docker/01"))]
    #[case::shared("6:pids:/\n5:cpu,freezer:/docker/01\n", Some("docker/01"))]
    #[case::in_no_group_of_its_own("5:freezer:/\n1:name=freezer:/a\n", None)]
    fn a_group_is_found_by_its_controller(#[case] groups: &str, #[case] expected: Option<&str>) {
        assert_eq!(path_in(groups, "freezer"), expected);
    }
}
