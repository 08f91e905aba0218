//! How a container's address is reached from the host: read inside the container's network namespace, checked from
//! outside.
//!
//! A thread of its own enters the namespace and ends there; no other thread ever leaves the host's.

use std::fmt;
use std::fs::File;
use std::io;
use std::net::IpAddr;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::addresses;
use super::ethtool::Ethtool;
use super::links::{self, Link};
use super::netlink::Netlink;
use super::{netns_ids, sys};
use crate::model::Reach;

/// A network namespace, kept open.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: String,
}

/// Device and inode of a namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Identity {
    device: u64,
    inode: u64,
}

/// Why a container cannot be reached.
#[derive(Debug, thiserror::Error)]
pub enum ReachError {
    #[error("cannot open network namespace {netns} (steer runs as root; has the container ended?)")]
    Open { netns: String, source: io::Error },
    #[error("cannot {operation} network namespace {netns}")]
    Read { operation: &'static str, netns: String, source: io::Error },
    #[error(
        "{netns} is the host's own network namespace: steer reaches containers on bridge networks, \
         not `network_mode: host`"
    )]
    HostNetwork { netns: String },
    #[error("no interface in {netns} has the address {address}; there is {held}")]
    NoSuchAddress { netns: String, address: IpAddr, held: Addresses },
    #[error("{netns} has no IPv4 address: attach the container to a bridge network")]
    NoAddress { netns: String },
    #[error("{netns} has several IPv4 addresses, {held}: name the one to use")]
    Ambiguous { netns: String, held: Addresses },
    #[error(
        "{interface} in {netns} is of kind {kind}: steer reaches containers over the veth of a bridge network; \
         attach the container to one and name it in `steer.network`"
    )]
    NotVeth { netns: String, interface: String, kind: String },
    #[error(
        "the other end of {interface} in {netns} is not in the host's network namespace (an overlay network, or Docker \
         in Docker): attach the container to a bridge network of this host and name it in `steer.network`"
    )]
    NotOnHost { netns: String, interface: String },
}

/// Addresses in an error message.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Addresses(pub Vec<IpAddr>);

impl Addresses {
    fn of(held: &[(u32, IpAddr)]) -> Self {
        Self(held.iter().map(|(_, address)| *address).collect())
    }
}

impl fmt::Display for Addresses {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() {
            return f.write_str("none");
        }
        let texts: Vec<_> = self.0.iter().map(IpAddr::to_string).collect();
        f.write_str(&texts.join(", "))
    }
}

impl Netns {
    /// The namespace a process lives in.
    pub fn of_pid(pid: i32) -> Result<Self, ReachError> {
        Self::at(format!("/proc/{pid}/ns/net"))
    }

    /// The namespace a file stands for, as `ip netns` makes them under `/run/netns`.
    pub fn at(path: impl AsRef<Path>) -> Result<Self, ReachError> {
        let path = path.as_ref();
        let netns = path.display().to_string();
        match File::open(path) {
            Ok(file) => Ok(Self { file, path: netns }),
            Err(source) => Err(ReachError::Open { netns, source }),
        }
    }

    /// What tells it from every other namespace, for as long as it is kept open.
    pub fn identity(&self) -> Option<Identity> {
        self.file.metadata().ok().map(|found| Identity { device: found.dev(), inode: found.ino() })
    }

    /// Its cookie, which no other namespace ever has.
    pub fn cookie(&self) -> Result<u64, ReachError> {
        self.visit(sys::netns_cookie).and_then(|cookie| cookie).map_err(self.read_error("read the cookie of"))
    }

    /// Runs `work` on a thread of its own inside the namespace. Only netlink, sockets and `/proc/thread-self/net` are
    /// the namespace's: the files are the host's.
    pub fn visit<T: Send>(&self, work: impl FnOnce() -> T + Send) -> io::Result<T> {
        thread::scope(|scope| {
            let visitor = || -> io::Result<T> {
                setns(&self.file, CloneFlags::CLONE_NEWNET)?;
                Ok(work())
            };
            let thread = thread::Builder::new().name("steer-netns".to_owned()).spawn_scoped(scope, visitor)?;
            thread.join().unwrap_or_else(|_| Err(io::Error::other("the visiting thread panicked")))
        })
    }

    pub(super) fn read_error(&self, operation: &'static str) -> impl FnOnce(io::Error) -> ReachError {
        let netns = self.path.clone();
        move |source| ReachError::Read { operation, netns, source }
    }
}

impl AsRawFd for Netns {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

/// The [`Netns::identity`] of the namespace a file stands for; `None` = there is no such file.
pub fn identity(path: &Path) -> Option<Identity> {
    std::fs::metadata(path).ok().map(|found| Identity { device: found.dev(), inode: found.ino() })
}

/// What was found inside the namespace.
struct Leg {
    address: IpAddr,
    link: Link,
    cookie: u64,
    /// Frames may come straight from XDP.
    polls: bool,
}

/// How the host reaches the container end of the veth that holds `address`; `None` = the only IPv4 address there is.
pub fn reach(netns: &Netns, address: Option<IpAddr>) -> Result<(IpAddr, Reach), ReachError> {
    let leg = find_leg(netns, address)?;
    let not_on_host = || ReachError::NotOnHost { netns: netns.path.clone(), interface: leg.link.name.clone() };
    let mac = leg.link.mac.ok_or_else(not_on_host)?;
    let (ifindex, netns_id) =
        host_end(netns, &leg.link).map_err(netns.read_error("find the veth that leads to"))?.ok_or_else(not_on_host)?;
    Ok((leg.address, Reach { ifindex, mac, netns_id, netns_cookie: leg.cookie, xdp: leg.polls }))
}

/// Host ends of every other veth that leads into a namespace: a container in several networks sends its replies by the one that its
/// default route names, which need not be the one they are answers to.
pub fn other_ways(netns: &Netns, reach: &Reach) -> Result<Vec<u32>, ReachError> {
    let inside = netns.visit(links::links).and_then(|result| result);
    let inside = inside.map_err(netns.read_error("read the interfaces of"))?;
    let mut ways = Vec::new();
    for link in inside.iter().filter(|link| link.is("veth")) {
        let end = host_end(netns, link).map_err(netns.read_error("find the veths that lead to"))?;
        ways.extend(end.map(|(ifindex, _)| ifindex).filter(|ifindex| *ifindex != reach.ifindex));
    }
    Ok(ways)
}

/// Switches generic receive offload on at the interface that holds `address`, so that XDP can redirect into it; says
/// whether it can now. Changes the container's interface, so only when asked for.
pub fn enable_gro(netns: &Netns, address: IpAddr) -> Result<bool, ReachError> {
    let leg = find_leg(netns, Some(address))?;
    if leg.polls {
        return Ok(true);
    }
    let enabled = netns.visit(|| Ethtool::open()?.enable_gro(leg.link.index)).and_then(|result| result);
    Ok(leg.link.up && enabled.map_err(netns.read_error("switch on generic receive offload in"))?)
}

/// Cookie of the network namespace steer runs in.
pub fn own_cookie() -> io::Result<u64> {
    sys::netns_cookie()
}

/// The veth that holds `address`, seen from inside.
fn find_leg(netns: &Netns, address: Option<IpAddr>) -> Result<Leg, ReachError> {
    let host_cookie = own_cookie()
        .map_err(netns.read_error("compare (socket option SO_NETNS_COOKIE, kernel 5.14 and newer) with"))?;
    netns
        .visit(|| {
            let read = |operation| netns.read_error(operation);
            let cookie = sys::netns_cookie().map_err(read("read the cookie of"))?;
            if cookie == host_cookie {
                return Err(ReachError::HostNetwork { netns: netns.path.clone() });
            }
            let mut netlink = Netlink::route().map_err(read("ask for the interfaces of"))?;
            let held = addresses::of_links(&mut netlink).map_err(read("read the addresses of"))?;
            let (index, address) = choose(netns, &held, address)?;
            let link = links::by_index(&mut netlink, index).map_err(read("read the interfaces of"))?;
            let link = link.ok_or_else(|| no_such_address(netns, &held, address))?;
            if !link.is("veth") {
                let kind = link.kind.unwrap_or_else(|| "hardware".to_owned());
                return Err(ReachError::NotVeth { netns: netns.path.clone(), interface: link.name, kind });
            }
            Ok(Leg { address, polls: link.up && is_gro_on(link.index), link, cookie })
        })
        .map_err(netns.read_error("enter"))?
}

/// A kernel that cannot tell has no way to switch it on either.
fn is_gro_on(ifindex: u32) -> bool {
    Ethtool::open().and_then(|mut ethtool| ethtool.gro(ifindex)).unwrap_or_else(|error| {
        tracing::debug!(ifindex, %error, "offloads of a container's interface not known");
        false
    })
}

fn choose(netns: &Netns, held: &[(u32, IpAddr)], wanted: Option<IpAddr>) -> Result<(u32, IpAddr), ReachError> {
    if let Some(wanted) = wanted {
        let found = held.iter().find(|(_, address)| *address == wanted).copied();
        return found.ok_or_else(|| no_such_address(netns, held, wanted));
    }
    let candidates: Vec<_> = held.iter().filter(|(_, address)| address.is_ipv4()).copied().collect();
    match candidates.as_slice() {
        [only] => Ok(*only),
        [] => Err(ReachError::NoAddress { netns: netns.path.clone() }),
        several => Err(ReachError::Ambiguous { netns: netns.path.clone(), held: Addresses::of(several) }),
    }
}

fn no_such_address(netns: &Netns, held: &[(u32, IpAddr)], address: IpAddr) -> ReachError {
    ReachError::NoSuchAddress { netns: netns.path.clone(), address, held: Addresses::of(held) }
}

/// The veth's end in the namespace of the calling thread, with the id that namespace has for `netns`; `None` = it is
/// not here.
///
/// An index alone proves nothing, another namespace counts from 1 too: the link found must point back to `end`, in
/// `netns`.
fn host_end(netns: &Netns, end: &Link) -> io::Result<Option<(u32, i32)>> {
    let Some(index) = end.peer else { return Ok(None) };
    let mut netlink = Netlink::route()?;
    // In this order: to describe the link, the kernel gives the other namespace an id if it has none.
    let Some(link) = links::by_index(&mut netlink, index)? else { return Ok(None) };
    let id = netns_ids::id_of(&mut netlink, netns)?;
    let points_back = link.is("veth") && link.peer == Some(end.index) && id.is_some() && link.peer_netns == id;
    Ok(id.filter(|_| points_back).map(|id| (index, id)))
}
