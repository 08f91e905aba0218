//! What each fact means for steer: pure.

use serde::Serialize;

use crate::host::links::{Link, XdpMode};
use crate::host::privileges;

/// One line.
#[derive(Serialize, Clone, PartialEq, Eq, Debug)]
pub(super) struct Finding {
    pub(super) severity: Severity,
    pub(super) subject: String,
    pub(super) found: String,
    pub(super) remedy: Option<String>,
}

#[derive(Serialize, Clone, Copy, PartialEq, Eq, Debug)]
#[serde(rename_all = "lowercase")]
pub(super) enum Severity {
    Ok,
    /// steer works, but with less, or does something about it by itself.
    Warn,
    /// steer does not work.
    Fail,
}

impl Severity {
    pub(super) const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warn => "warn",
            Self::Fail => "FAIL",
        }
    }
}

/// What was seen of this host.
#[derive(Clone, Debug)]
pub(super) struct Facts {
    /// Bits of `CapEff`; `None` = not known.
    pub(super) capabilities: Option<u64>,
    /// `uname -r`.
    pub(super) kernel: String,
    /// It was built with `PREEMPT_RT`, as `uname -v` says.
    pub(super) realtime: bool,
    pub(super) btf: bool,
    pub(super) bpffs: Filesystem,
    pub(super) cgroup2: Filesystem,
    pub(super) tracefs: Filesystem,
    /// `net.ipv4.ip_forward`; `None` = not known.
    pub(super) ip_forward: Option<bool>,
    /// The interfaces that clients come in by, or why they are not known.
    pub(super) uplinks: Result<Vec<Uplink>, String>,
    /// `None` = was not looked for.
    pub(super) docker: Option<Result<DockerFacts, String>>,
    /// Agents that answer, by instance.
    pub(super) agents: Vec<AgentFacts>,
    /// Instance asked about.
    pub(super) instance: String,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Filesystem {
    Mounted(String),
    /// Not mounted, but the kernel has it.
    Known,
    Unknown,
}

#[derive(Clone, Debug)]
pub(super) struct Uplink {
    /// Name it was asked for by, or has.
    pub(super) name: String,
    /// `None` = there is no such interface.
    pub(super) link: Option<Link>,
    /// VLAN interfaces on top of it.
    pub(super) vlans: Vec<String>,
    /// steer holds its XDP slot.
    pub(super) ours: bool,
}

#[derive(Clone, Debug)]
pub(super) struct DockerFacts {
    /// E.g. `28.5.2`.
    pub(super) engine: String,
    /// E.g. `1.51`.
    pub(super) api: String,
}

#[derive(Clone, Debug)]
pub(super) struct AgentFacts {
    pub(super) instance: String,
    pub(super) pid: Option<u32>,
}

/// The lines, in the order one would mend things.
pub(super) fn judge(facts: &Facts) -> Vec<Finding> {
    let Facts { capabilities: caps, kernel: release, btf: has_btf, .. } = facts;
    let mut findings = vec![
        capabilities(*caps),
        kernel(release, facts.realtime),
        btf(*has_btf),
        bpffs(&facts.bpffs),
        cgroup2(&facts.cgroup2),
        tracefs(&facts.tracefs),
        ip_forward(facts.ip_forward),
    ];
    match &facts.uplinks {
        Ok(uplinks) if uplinks.is_empty() => findings.push(fail(
            "interface",
            "none leads outside: no default route, no address",
            "name those that clients come in by: `steer run --interface NAME`",
        )),
        Ok(uplinks) => findings.extend(uplinks.iter().flat_map(interface)),
        Err(error) => findings.push(fail("interface", error, "check that netlink is allowed here")),
    }
    findings.extend(facts.docker.as_ref().map(docker));
    findings.extend(agents(&facts.agents, &facts.instance));
    findings
}

fn ok(subject: &str, found: impl Into<String>) -> Finding {
    Finding { severity: Severity::Ok, subject: subject.into(), found: found.into(), remedy: None }
}

fn warn(subject: &str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { severity: Severity::Warn, remedy: Some(remedy.into()), ..ok(subject, found) }
}

fn fail(subject: &str, found: impl Into<String>, remedy: impl Into<String>) -> Finding {
    Finding { severity: Severity::Fail, remedy: Some(remedy.into()), ..ok(subject, found) }
}

fn capabilities(caps: Option<u64>) -> Finding {
    const SUBJECT: &str = "privileges";
    const REMEDY: &str = "run as root, in the host's own user namespace";
    let Some(caps) = caps else { return warn(SUBJECT, "cannot be told", REMEDY) };
    let missing = privileges::missing(caps);
    if missing.is_empty() {
        ok(SUBJECT, "all that is needed")
    } else {
        fail(SUBJECT, format!("missing {}", missing.join(", ")), REMEDY)
    }
}

fn kernel(release: &str, realtime: bool) -> Finding {
    match version(release) {
        Some(version) if version >= (6, 1) && realtime => warn(
            "kernel",
            format!("{release} is built with PREEMPT_RT, which steer is not tested on"),
            "use your distribution's ordinary kernel",
        ),
        Some(version) if version >= (6, 6) => ok("kernel", format!("{release} (6.6 or newer: has tcx)")),
        Some(version) if version >= (6, 1) => ok("kernel", format!("{release} (has no tcx: clsact takes its place)")),
        Some(_) => {
            fail("kernel", format!("{release} is older than any that steer is tested on"), "use Linux 6.1 or newer")
        }
        None => warn("kernel", format!("{release}: not understood"), "steer needs Linux 6.1 or newer"),
    }
}

/// Major and minor number of `6.18.44-generic` or `28.0.1`.
fn version(text: &str) -> Option<(u32, u32)> {
    let mut numbers = text.split(|c: char| !c.is_ascii_digit());
    Some((numbers.next()?.parse().ok()?, numbers.next()?.parse().ok()?))
}

fn btf(has_btf: bool) -> Finding {
    if has_btf {
        ok("BTF", "/sys/kernel/btf/vmlinux")
    } else {
        fail(
            "BTF",
            "/sys/kernel/btf/vmlinux is missing",
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y, as distributions' are",
        )
    }
}

fn bpffs(bpffs: &Filesystem) -> Finding {
    match bpffs {
        Filesystem::Mounted(path) => ok("bpffs", path),
        Filesystem::Known => warn("bpffs", "not mounted", "`steer run` mounts it, or: mount -t bpf bpf /sys/fs/bpf"),
        Filesystem::Unknown => {
            fail("bpffs", "not known to this kernel", "use a kernel built with CONFIG_BPF_SYSCALL=y")
        }
    }
}

fn cgroup2(cgroup2: &Filesystem) -> Finding {
    match cgroup2 {
        Filesystem::Mounted(path) => ok("cgroup2", path),
        Filesystem::Known => warn("cgroup2", "not mounted", "`steer run` mounts one of its own"),
        Filesystem::Unknown => {
            fail("cgroup2", "not known to this kernel", "use a kernel built with CONFIG_CGROUP_BPF=y")
        }
    }
}

fn tracefs(tracefs: &Filesystem) -> Finding {
    match tracefs {
        Filesystem::Mounted(path) => ok("tracefs", path),
        Filesystem::Known => ok("tracefs", "not mounted, and not needed"),
        Filesystem::Unknown => warn(
            "tracefs",
            "not known to this kernel: a stop will be seen when Docker tells it, not when the signal is sent",
            "use a kernel built with CONFIG_FTRACE=y",
        ),
    }
}

fn ip_forward(on: Option<bool>) -> Finding {
    const REMEDY: &str = "Docker switches it on, or: sysctl -w net.ipv4.ip_forward=1";
    match on {
        Some(true) => ok("ip_forward", "on"),
        Some(false) => warn("ip_forward", "off: replies cannot be routed to clients", REMEDY),
        None => warn("ip_forward", "cannot be told", REMEDY),
    }
}

/// Drivers whose `ndo_bpf` takes a native XDP program. `virtio_net` does too, and has its own line.
const NATIVE_XDP: &[&str] = &[
    "atlantic",
    "bnxt_en",
    "cpsw",
    "ena",
    "fec",
    "fsl_dpaa2_eth",
    "gve",
    "hv_netvsc",
    "i40e",
    "ice",
    "igb",
    "igc",
    "ixgbe",
    "ixgbevf",
    "mana",
    "mlx4_core",
    "mlx5_core",
    "mvneta",
    "mvpp2",
    "nfp",
    "nicvf",
    "qede",
    "sfc",
    "stmmac",
    "vmxnet3",
    "xen-netfront",
];

fn interface(uplink: &Uplink) -> Vec<Finding> {
    let Uplink { name, link, vlans, ours } = uplink;
    let Some(link) = link else {
        return vec![fail(name, "no such interface", "`ip link` lists those there are")];
    };
    if !link.up {
        return vec![warn(name, "is down", format!("ip link set {name} up"))];
    }
    if !link.has_ethernet() {
        let kind = link.kind.as_deref().unwrap_or("of a kind that is not known");
        let remedy = "clients that come in there are not steered; name the others: `steer run --interface NAME`";
        return vec![fail(name, format!("{kind}: has no Ethernet header, steer does not attach there"), remedy)];
    }
    let mut findings = vec![hook(name, link, !vlans.is_empty())];
    if let Some(xdp) = link.xdp {
        let mode = match xdp.mode {
            XdpMode::Native => "native",
            XdpMode::Generic => "generic",
            XdpMode::Offloaded => "offloaded",
            XdpMode::Several => "several modes",
        };
        let found = format!("XDP program {} ({mode}) is attached", xdp.program);
        findings.push(if *ours {
            ok(name, format!("{found}: steer's"))
        } else {
            let remedy = format!(
                "`steer run --attach tc` leaves it alone; `bpftool prog show id {}` says what it is",
                xdp.program
            );
            warn(name, format!("{found}, and is not steer's"), remedy)
        });
    }
    if !vlans.is_empty() {
        let remedy = vlans.iter().map(|vlan| format!("--interface {vlan}")).collect::<Vec<_>>().join(" ");
        let found =
            format!("carries {}: clients that come in by a VLAN are steered at its own interface", vlans.join(", "));
        findings.push(warn(name, found, format!("if clients do, name them: `steer run --interface {name} {remedy}`")));
    }
    findings
}

fn hook(name: &str, link: &Link, carries_vlans: bool) -> Finding {
    match (link.kind.as_deref(), link.driver.as_deref()) {
        (Some("veth"), _) => ok(name, "veth: tc (XDP works too, but switches segmentation offload off)"),
        (Some("bridge"), _) => {
            warn(name, "bridge: tc only", "name its ports instead if XDP is wanted: `steer run --interface PORT`")
        }
        (Some(kind), _) => ok(name, format!("{kind}: tc")),
        (None, Some("virtio_net")) => {
            ok(name, "virtio_net: tc; has native XDP (`--attach xdp`), but that switches segmentation offload off")
        }
        (None, Some(driver)) if NATIVE_XDP.contains(&driver) && carries_vlans => {
            ok(name, format!("{driver}: tc (native XDP cannot see a VLAN tag that the interface takes off itself)"))
        }
        (None, Some(driver)) if NATIVE_XDP.contains(&driver) => {
            ok(name, format!("{driver}: native XDP likely, else tc"))
        }
        (None, Some(driver)) => ok(name, format!("{driver}: tc (no native XDP known)")),
        (None, None) if link.loopback => {
            warn(name, "loopback: clients on this host are steered at connect, not here", "leave it out")
        }
        (None, None) => ok(name, "driver not known: tc"),
    }
}

fn docker(docker: &Result<DockerFacts, String>) -> Finding {
    let DockerFacts { engine, api } = match docker {
        Ok(docker) => docker,
        Err(error) => {
            return fail(
                "docker",
                error,
                "start Docker, name its socket (`--docker-host URL`), or `steer run --no-docker`",
            );
        }
    };
    match (version(engine), version(api)) {
        (_, Some(spoken)) if spoken < (1, 41) => {
            fail("docker", format!("{engine}, API {api}"), "use Docker 20.10 (API 1.41) or newer")
        }
        (Some(release), _) if release >= (28, 0) => ok(
            "docker",
            format!("{engine}, API {api} (drops packets sent to containers directly; steer's do not pass there)"),
        ),
        _ => ok("docker", format!("{engine}, API {api}")),
    }
}

fn agents(agents: &[AgentFacts], instance: &str) -> Vec<Finding> {
    let line = |agent: &AgentFacts| {
        let pid = agent.pid.map_or(String::new(), |pid| format!(", pid {pid}"));
        if agent.instance == instance {
            ok("agent", format!("{} is running{pid}", agent.instance))
        } else {
            warn(
                "agent",
                format!("another one, {}, is running{pid}", agent.instance),
                "two agents must not steer the same frontends at the same interface",
            )
        }
    };
    if agents.is_empty() { vec![ok("agent", "none is running")] } else { agents.iter().map(line).collect() }
}

#[cfg(test)]
mod tests;
