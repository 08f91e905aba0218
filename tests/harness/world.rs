//! The network of one test: a Docker host, a client beside it, and, where asked for, another machine behind it.
//!
//! ```text
//!   client                    host                      other
//!   c0 10.203.0.2 ─────────── u0 10.203.0.1
//!                             u1 10.204.0.1 ─────────── o0 10.204.0.2
//! ```
//!
//! `u0` is the uplink. The addresses are the same in every world: worlds cannot see each other. Names carry the process
//! id, so [`World::sweep`] finds what a killed test left.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::Once;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use crate::netns::{Ns, run};
use crate::{cleanup, nodes, subnet, wait_until};

pub const HOST: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 1);
pub const CLIENT: Ipv4Addr = Ipv4Addr::new(10, 203, 0, 2);
/// The host's address on the far side.
pub const HOST_FAR: Ipv4Addr = Ipv4Addr::new(10, 204, 0, 1);
pub const OTHER: Ipv4Addr = Ipv4Addr::new(10, 204, 0, 2);
/// The host's interface towards the client.
pub const UPLINK: &str = "u0";

const PLUG_LIMIT: Duration = Duration::from_secs(30);

static SWEPT: Once = Once::new();

/// Takes the mount of bpffs away again that an agent makes where there is none, unless something is pinned there.
#[derive(Debug)]
pub struct Bpffs {
    was_there: bool,
}

impl Bpffs {
    #[expect(clippy::new_without_default, reason = "it looks at the machine")]
    pub fn new() -> Self {
        Self { was_there: cleanup::is_mounted(cleanup::PINS) }
    }
}

impl Drop for Bpffs {
    fn drop(&mut self) {
        if !self.was_there && cleanup::is_mounted(cleanup::PINS) {
            cleanup::unmount_if_unused(cleanup::PINS);
        }
    }
}

/// The guard of a test's network; dropping it removes namespaces, processes, mounts, cgroups and files.
#[derive(Debug)]
pub struct World {
    pub host: Ns,
    pub client: Ns,
    other: Option<Ns>,
    backends: Vec<Ns>,
    uplink: String,
    address: Ipv4Addr,
    tag: String,
    dir: PathBuf,
}

impl World {
    /// A host and a client, joined by the uplink.
    #[expect(clippy::new_without_default, reason = "making a world does things to the machine")]
    pub fn new() -> Self {
        SWEPT.call_once(Self::sweep);
        let tag = unique_tag();
        let dir = make_dir(&tag);
        let host = Ns::create(&format!("{tag}-host"));
        let client = Ns::create(&format!("{tag}-client"));
        // From here on a panic cleans up.
        let (uplink, address) = (UPLINK.to_owned(), HOST);
        let world = Self { host, client, other: None, backends: Vec::new(), uplink, address, tag, dir };
        // Before dockerd starts: one that finds forwarding off switches it on AND sets the policy of FORWARD to DROP.
        world.host.sysctl("net/ipv4/ip_forward", "1");
        join((&world.host, UPLINK, HOST), (&world.client, "c0", CLIENT));
        world.client.ip(&format!("route add default via {HOST}"));
        world
    }

    /// A client beside this very machine, whose own namespace is the `host`, for a Docker that already runs here. The
    /// uplink and its addresses are such as nothing else here has; what else is on the machine is left alone.
    pub fn beside_this_machine() -> Self {
        SWEPT.call_once(Self::sweep);
        let tag = unique_tag();
        let dir = make_dir(&tag);
        let routes = run("ip", "-4 route show table all");
        let address = subnet::free(&routes).expect("one of 256 small networks is free on this machine");
        let client = Ns::create(&format!("{tag}-client"));
        let uplink = format!("{}{}u0", cleanup::PREFIX, std::process::id());
        let host = Ns::own();
        let world = Self { host, client, other: None, backends: Vec::new(), uplink, address, tag, dir };
        join((&world.host, &world.uplink, address), (&world.client, "c0", subnet::second(address)));
        world.client.ip(&format!("route add default via {address}"));
        world
    }

    /// A host and, if asked for, a client at the wire between the machines of `cargo xtask vm`, instead of at an uplink of their own.
    pub(crate) fn at_the_wire(address: Ipv4Addr, with_client: bool) -> Self {
        SWEPT.call_once(Self::sweep);
        // As on every Docker host. The mesh's own namespace takes it from there, not from `host`, and forwards its answers by it.
        Ns::own().sysctl("net/ipv4/ip_forward", "1");
        let tag = unique_tag();
        let dir = make_dir(&tag);
        let host = Ns::create(&format!("{tag}-host"));
        let client = Ns::create(&format!("{tag}-client"));
        let uplink = nodes::NODE_NIC.to_owned();
        let world = Self { host, client, other: None, backends: Vec::new(), uplink, address, tag, dir };
        world.host.sysctl("net/ipv4/ip_forward", "1");
        plug((&world.host, nodes::NODE_NIC, address));
        if with_client {
            plug((&world.client, nodes::CLIENT_NIC, CLIENT));
        }
        world
    }

    /// Like [`World::new`], with another machine that the client reaches through the host.
    pub fn with_other() -> Self {
        let mut world = Self::new();
        let other = world.other.insert(Ns::create(&format!("{}-other", world.tag)));
        join((&world.host, "u1", HOST_FAR), (other, "o0", OTHER));
        other.ip(&format!("route add default via {HOST_FAR}"));
        world
    }

    /// A namespace that can be a backend without Docker: its `eth0` has the address returned with it, its veth ends at
    /// the host.
    pub fn add_backend(&mut self) -> (Ns, Ipv4Addr) {
        let number = u8::try_from(self.backends.len() + 1).expect("fewer than 256 backends");
        let ns = Ns::create(&format!("{}-b{number}", self.tag));
        self.backends.push(ns.clone());
        let (gateway, address) = (Ipv4Addr::new(10, 205, number, 1), Ipv4Addr::new(10, 205, number, 2));
        join((&self.host, &format!("b{number}"), gateway), (&ns, "eth0", address));
        ns.ip(&format!("route add default via {gateway}"));
        (ns, address)
    }

    /// Deletes a backend's namespace, the one added last: its name at once, the rest when nobody holds it open any more.
    /// The next one that is added has the same name and address.
    pub fn remove_backend(&mut self, ns: Ns) {
        let last = self.backends.pop().filter(|last| last.inode() == ns.inode());
        assert!(last.is_some(), "{} is not the backend that was added last", ns.name());
        cleanup::end_processes(&[ns.inode()], None);
        cleanup::remove_netns(ns.name());
    }

    /// Real checksums from the client, as from a wire. A local veth leaves them partial, and XDP cannot see that.
    #[must_use]
    pub fn without_checksum_offload(self) -> Self {
        self.client.output("ethtool", "-K c0 tx off");
        self
    }

    /// The machine behind the host.
    pub fn other(&self) -> &Ns {
        self.other.as_ref().expect("this world was made by World::with_other")
    }

    /// The host's interface towards the client.
    pub fn uplink(&self) -> &str {
        &self.uplink
    }

    /// The host's address on the uplink.
    pub fn host_address(&self) -> Ipv4Addr {
        self.address
    }

    /// A name that no other world has, for instances, cgroups and files.
    pub fn tag(&self) -> &str {
        &self.tag
    }

    /// A directory that goes with the world.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Writes a file into the world's directory.
    pub fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.dir.join(name);
        std::fs::write(&path, text).unwrap_or_else(|err| panic!("write {}: {err}", path.display()));
        path
    }

    /// True of a name that a world of a process that no longer lives has given.
    pub fn is_stale(name: &str) -> bool {
        cleanup::is_stale(name)
    }

    /// Removes what worlds of processes that no longer live have left behind.
    pub fn sweep() {
        cleanup::sweep();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        let Self { host, client, other, backends, uplink: _, address: _, tag, dir } = self;
        let all = [&*host, &*client].into_iter().chain(other.as_ref()).chain(backends.iter());
        let all: Vec<&Ns> = all.filter(|ns| !ns.is_own()).collect();
        let inodes: Vec<u64> = all.iter().map(|ns| ns.inode()).collect();
        cleanup::end_processes(&inodes, Some(tag));
        cleanup::unmount_below(dir);
        // The machine behind the host may have one too.
        [tag.clone(), format!("{tag}2")].iter().for_each(|instance| cleanup::remove_instance(instance));
        cleanup::remove_cgroups(tag);
        all.iter().for_each(|ns| cleanup::remove_netns(ns.name()));
        cleanup::remove_dir(dir);
    }
}

/// A veth pair between two namespaces, with addresses, up.
fn join((a, a_name, a_address): (&Ns, &str, Ipv4Addr), (b, b_name, b_address): (&Ns, &str, Ipv4Addr)) {
    run("ip", &format!("link add {a_name} netns {} type veth peer name {b_name} netns {}", a.handle(), b.handle()));
    let length = if a.is_own() { subnet::LENGTH } else { 24 };
    for (ns, name, address) in [(a, a_name, a_address), (b, b_name, b_address)] {
        ns.ip(&format!("addr add {address}/{length} dev {name}"));
        ns.ip(&format!("link set {name} up"));
    }
}

/// Moves an interface of this machine into a namespace, with an address, up. The kernel moves it back when the namespace goes.
fn plug((ns, name, address): (&Ns, &str, Ipv4Addr)) {
    // The last world's namespaces may still be going.
    wait_until(&format!("the machine's {name} is free"), PLUG_LIMIT, || {
        Path::new("/sys/class/net").join(name).exists().then_some(()).ok_or("it is not here")
    });
    run("ip", &format!("link set {name} netns {}", ns.handle()));
    ns.ip(&format!("addr add {address}/24 dev {name}"));
    ns.ip(&format!("link set {name} up"));
}

fn make_dir(tag: &str) -> PathBuf {
    let dir = cleanup::scratch_root().join(tag);
    std::fs::create_dir_all(&dir).unwrap_or_else(|err| panic!("create {}: {err}", dir.display()));
    dir
}

fn unique_tag() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let salt = now.subsec_nanos() & 0xfff;
    format!("{}{}-{salt:03x}{}", cleanup::PREFIX, std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}
