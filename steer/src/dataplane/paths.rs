//! Where an agent's pins, socket and lock are: all derived from its instance name.

use std::borrow::Cow;
use std::path::{Path, PathBuf};

use steer_common::limits::{ABI, SOCKETS_ABI, names};

/// Instance name of an agent that was given none.
pub const DEFAULT_INSTANCE: &str = "steer";

/// Directories of what is pinned, inside that of a version.
pub(super) const MAPS: &str = "maps";
pub(super) const LINKS: &str = "links";

/// The places of one instance.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Paths {
    pub instance: String,
    /// Directory of everything that this instance has pinned, of any version.
    pub all: PathBuf,
    /// Directory of what this version pins. Holds the ABI version, so maps are never read with another layout than they have.
    pub pins: PathBuf,
    /// The same for what sockets remember, which has a version of its own: it outlives the others.
    pub memory: PathBuf,
    /// Pinned maps, each under its name.
    pub maps: PathBuf,
    /// Pinned links, each under its [`LinkName`].
    pub links: PathBuf,
    /// The agent's unix socket.
    pub socket: PathBuf,
    /// Locked by the agent for as long as it lives.
    pub lock: PathBuf,
}

impl Paths {
    /// The places of an instance on this host.
    pub fn of(instance: &str) -> Self {
        Self::under(Path::new("/sys/fs/bpf"), Path::new("/run"), instance)
    }

    /// The same below other roots: a private bpffs, a test's directory.
    pub fn under(bpffs: &Path, run: &Path, instance: &str) -> Self {
        let all = bpffs.join(instance);
        let pins = all.join(format!("v{ABI}"));
        let run = run.join(instance);
        Self {
            instance: instance.to_owned(),
            memory: all.join(format!("sockets-v{SOCKETS_ABI}")),
            all,
            maps: pins.join(MAPS),
            links: pins.join(LINKS),
            pins,
            socket: run.join("steer.sock"),
            lock: run.join("steer.lock"),
        }
    }

    /// The pin of a map: see [`steer_common::limits::names`].
    pub fn map(&self, name: &str) -> PathBuf {
        // In a directory below, as in a version's own: whoever takes that for a version can remove it as one.
        if name == names::SOCKETS { self.memory.join(MAPS).join(name) } else { self.maps.join(name) }
    }

    /// The pin of a link.
    pub fn link(&self, name: &LinkName) -> PathBuf {
        self.links.join(name.to_string())
    }
}

/// What a pinned link attaches a program to. As text it is the name of the pin.
///
/// bpffs refuses names with a dot, which names of VLAN interfaces have (`eth0.100`), so a dot is written `%2e`, and `%`
/// itself `%25`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum LinkName {
    /// XDP on an uplink, by interface name.
    Xdp(String),
    /// tcx on an uplink, by interface name.
    Tcx(String),
    /// tcx on the host end of a backend's veth, by interface index.
    Veth(u32),
    /// A program on the root cgroup, by program name.
    Cgroup(String),
    /// A program on a tracepoint, by its name.
    Tracepoint(String),
}

impl LinkName {
    /// From the name of a pin; `None` = none of steer's.
    pub fn parse(pin: &str) -> Option<Self> {
        let (kind, rest) = pin.split_once('-')?;
        match kind {
            "xdp" => Some(Self::Xdp(unescape(rest))),
            "tcx" => Some(Self::Tcx(unescape(rest))),
            "veth" => rest.parse().ok().map(Self::Veth),
            "cgroup" => Some(Self::Cgroup(unescape(rest))),
            "tracepoint" => Some(Self::Tracepoint(unescape(rest))),
            _ => None,
        }
    }
}

impl std::fmt::Display for LinkName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Xdp(interface) => write!(f, "xdp-{}", escape(interface)),
            Self::Tcx(interface) => write!(f, "tcx-{}", escape(interface)),
            Self::Veth(ifindex) => write!(f, "veth-{ifindex}"),
            Self::Cgroup(program) => write!(f, "cgroup-{}", escape(program)),
            Self::Tracepoint(name) => write!(f, "tracepoint-{}", escape(name)),
        }
    }
}

fn escape(name: &str) -> Cow<'_, str> {
    if name.contains(['.', '%']) { name.replace('%', "%25").replace('.', "%2e").into() } else { name.into() }
}

fn unescape(name: &str) -> String {
    name.replace("%2e", ".").replace("%25", "%")
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn an_instance_has_its_own_directory_in_both_places() {
        let paths = Paths::of("blue");
        assert_eq!(paths.map("FLOWS"), Path::new("/sys/fs/bpf/blue/v6/maps/FLOWS"));
        assert_eq!(paths.map("SOCKETS"), Path::new("/sys/fs/bpf/blue/sockets-v1/maps/SOCKETS"));
        assert_eq!(paths.link(&LinkName::Xdp("eth0".into())), Path::new("/sys/fs/bpf/blue/v6/links/xdp-eth0"));
        assert_eq!(paths.socket, Path::new("/run/blue/steer.sock"));
        assert_eq!(paths.lock, Path::new("/run/blue/steer.lock"));
    }

    #[rstest]
    #[case(LinkName::Xdp("eth0".into()), "xdp-eth0")]
    #[case(LinkName::Tcx("br-1a2b".into()), "tcx-br-1a2b")]
    #[case(LinkName::Tcx("eth0.100".into()), "tcx-eth0%2e100")]
    #[case(LinkName::Tcx("odd%2e".into()), "tcx-odd%252e")]
    #[case(LinkName::Veth(12), "veth-12")]
    #[case(LinkName::Cgroup("connect4".into()), "cgroup-connect4")]
    #[case(LinkName::Tracepoint("signal_generate".into()), "tracepoint-signal_generate")]
    fn a_link_is_pinned_under_a_name_that_bpffs_takes(#[case] name: LinkName, #[case] pin: &str) {
        assert_eq!(name.to_string(), pin);
        assert_eq!(LinkName::parse(pin), Some(name));
    }

    #[rstest]
    #[case("veth-x")]
    #[case("eth0")]
    #[case("other-eth0")]
    fn other_pins_are_not_ours(#[case] pin: &str) {
        assert_eq!(LinkName::parse(pin), None);
    }
}
