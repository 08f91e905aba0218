//! Looks at this host. Judges nothing.

use std::ffi::OsStr;
use std::path::Path;

use nix::sys::utsname::{UtsName, uname};

use super::rules::{AgentFacts, DockerFacts, Facts, Filesystem, Uplink};
use crate::api::client::{Client, ClientError};
use crate::cli::DoctorArgs;
use crate::dataplane::paths::{LinkName, Paths};
use crate::dataplane::read;
use crate::docker::Docker;
use crate::host::links::{self, Link};
use crate::host::privileges;

pub(super) async fn facts(args: &DoctorArgs, paths: &Paths) -> Facts {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let known = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    let filesystem = |kind, place: Option<&str>| filesystem(&mounts, &known, kind, place);
    let kernel = uname();
    let told = |part: fn(&UtsName) -> &OsStr| {
        kernel.as_ref().map(|name| part(name).to_string_lossy().into_owned()).unwrap_or_default()
    };
    Facts {
        capabilities: privileges::capabilities(),
        kernel: told(UtsName::release),
        realtime: told(UtsName::version).contains("PREEMPT_RT"),
        btf: Path::new("/sys/kernel/btf/vmlinux").exists(),
        // Others may be mounted elsewhere, but the pins are looked for here.
        bpffs: filesystem("bpf", Some("/sys/fs/bpf")),
        cgroup2: filesystem("cgroup2", None),
        tracefs: filesystem("tracefs", None),
        ip_forward: std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").ok().map(|value| value.trim() != "0"),
        uplinks: uplinks(&args.interfaces, paths).map_err(|error| format!("cannot list interfaces: {error}")),
        docker: if args.no_docker { None } else { Some(docker(args.docker_host.as_deref()).await) },
        agents: agents(paths).await,
        instance: paths.instance.clone(),
    }
}

/// From `/proc/self/mounts` and `/proc/filesystems`.
fn filesystem(mounts: &str, known: &str, kind: &str, place: Option<&str>) -> Filesystem {
    let mounted = mounts.lines().find_map(|line| {
        let mut fields = line.split(' ').skip(1);
        let (path, mounted) = (fields.next()?, fields.next()?);
        (mounted == kind && place.is_none_or(|place| place == path)).then_some(path)
    });
    match mounted {
        Some(path) => Filesystem::Mounted(path.to_owned()),
        None if known.lines().any(|line| line.split_whitespace().last() == Some(kind)) => Filesystem::Known,
        None => Filesystem::Unknown,
    }
}

fn uplinks(names: &[String], paths: &Paths) -> std::io::Result<Vec<Uplink>> {
    let all = links::links()?;
    let names = match names {
        [] => links::uplinks()?.into_iter().map(|link| link.name).collect(),
        names => names.to_vec(),
    };
    let pinned = read::links(paths).unwrap_or_default();
    Ok(names.into_iter().map(|name| uplink(name, &all, &pinned)).collect())
}

fn uplink(name: String, all: &[Link], pinned: &[LinkName]) -> Uplink {
    let link = all.iter().find(|link| link.name == name).cloned();
    let vlans = link.iter().flat_map(|link| link.vlans(all)).map(|vlan| vlan.name.clone()).collect();
    Uplink { ours: pinned.contains(&LinkName::Xdp(name.clone())), name, link, vlans }
}

async fn docker(host: Option<&str>) -> Result<DockerFacts, String> {
    let asked = async { Docker::at(host)?.version().await };
    match asked.await {
        Ok(version) => Ok(DockerFacts { engine: version.engine, api: version.api.to_string() }),
        Err(error) => Err(format!("{error:#}")),
    }
}

/// Agents whose sockets are taken: every instance has a directory beside this one's.
async fn agents(paths: &Paths) -> Vec<AgentFacts> {
    let run = paths.socket.parent().and_then(Path::parent);
    let Some(entries) = run.and_then(|run| std::fs::read_dir(run).ok()) else { return Vec::new() };
    let mut agents = Vec::new();
    for entry in entries.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        let paths = Paths::of(&name);
        if !paths.socket.exists() {
            continue;
        }
        let status = async { Client::connect(&paths).await?.status().await };
        match status.await {
            Ok(status) => agents.push(AgentFacts { instance: name, pid: Some(status.pid) }),
            Err(ClientError::NotRunning { .. }) => {}
            Err(_) => agents.push(AgentFacts { instance: name, pid: None }),
        }
    }
    agents.sort_by(|a, b| a.instance.cmp(&b.instance));
    agents
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    const MOUNTS: &str = "\
sysfs /sys sysfs rw 0 0
bpf /tmp/bpf bpf rw 0 0
cgroup2 /sys/fs/cgroup cgroup2 rw,nsdelegate 0 0
";
    const KNOWN: &str = "nodev\tsysfs\nnodev\tbpf\nnodev\tcgroup2\n\text4\n";

    #[rstest]
    #[case("cgroup2", None, Filesystem::Mounted("/sys/fs/cgroup".into()))]
    #[case("bpf", None, Filesystem::Mounted("/tmp/bpf".into()))]
    #[case("bpf", Some("/sys/fs/bpf"), Filesystem::Known)]
    #[case("ext4", None, Filesystem::Known)]
    #[case("tracefs", None, Filesystem::Unknown)]
    fn a_filesystem_is_mounted_known_or_neither(
        #[case] kind: &str,
        #[case] place: Option<&str>,
        #[case] expected: Filesystem,
    ) {
        assert_eq!(filesystem(MOUNTS, KNOWN, kind, place), expected);
    }
}
