//! Interfaces of this host's network namespace: uplinks, bridges, and what XDP is attached.

use std::collections::BTreeSet;
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use netlink_packet_route::link::{
    LinkAttribute, LinkExtentMask, LinkFlags, LinkInfo, LinkLayerType, LinkMessage, LinkXdp, XdpAttached,
};
use netlink_packet_route::route::{RouteAttribute, RouteHeader, RouteMessage, RouteType};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::addresses;
use super::netlink::Netlink;

/// A network interface.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Link {
    /// Number of the interface in its namespace.
    pub index: u32,
    /// At most 15 bytes; may change.
    pub name: String,
    /// `veth`, `bridge`, `vlan`, `bond` …; `None` = hardware, or the loopback.
    pub kind: Option<String>,
    /// Kernel driver of the device behind it, e.g. `virtio_net`.
    pub driver: Option<String>,
    /// Index of the bridge or bond it belongs to.
    pub master: Option<u32>,
    /// `IFLA_LINK`: other end of a veth, lower device of a VLAN; counted in the namespace of `peer_netns`.
    pub peer: Option<u32>,
    /// Id of the namespace the peer is in, as the namespace of this link counts them; `None` = the same namespace.
    pub peer_netns: Option<i32>,
    /// `None` where it has none of six bytes (tunnels).
    pub mac: Option<[u8; 6]>,
    /// Switched on; a cable may be missing.
    pub up: bool,
    /// `lo`.
    pub loopback: bool,
    /// What holds its XDP hook; `None` = nothing.
    pub xdp: Option<Xdp>,
}

/// An XDP program on an interface.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Xdp {
    /// Where it runs.
    pub mode: XdpMode,
    /// Id of the program, as `bpftool prog` lists it; with several, of the one nearest to the wire.
    pub program: u32,
}

/// Where an XDP program runs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum XdpMode {
    /// In the driver.
    Native,
    /// After the kernel built its packet.
    Generic,
    /// On the network card.
    Offloaded,
    /// More than one of these at once.
    Several,
}

impl Link {
    /// Whether it is of this kind: `veth`, `bridge`, …
    pub fn is(&self, kind: &str) -> bool {
        self.kind.as_deref() == Some(kind)
    }

    /// Whether its packets begin with an Ethernet header, where steer's programs expect one: those of WireGuard, `tun` and `ppp`
    /// begin with IP's.
    pub fn has_ethernet(&self) -> bool {
        self.mac.is_some()
    }

    /// Of all interfaces, the VLANs whose packets come in by this one: on top of it, or of the bridge or bond it belongs to.
    pub fn vlans<'a>(&self, all: &'a [Self]) -> impl Iterator<Item = &'a Self> {
        let below = [Some(self.index), self.master];
        all.iter().filter(move |link| {
            link.is("vlan") && link.peer_netns.is_none() && link.peer.is_some() && below.contains(&link.peer)
        })
    }
}

/// All interfaces, by index.
pub fn links() -> io::Result<Vec<Link>> {
    let mut links = dump(&mut Netlink::route()?)?;
    for link in &mut links {
        link.driver = driver(&link.name);
    }
    Ok(links)
}

/// The interface of that name; `None` = there is none.
pub fn link(name: &str) -> io::Result<Option<Link>> {
    let mut question = question();
    question.attributes.push(LinkAttribute::IfName(name.to_owned()));
    Ok(ask(&mut Netlink::route()?, question)?.map(|link| Link { driver: driver(&link.name), ..link }))
}

/// Interfaces clients come in by: those with a default route. Without any, each one that is up and has an address, but
/// for the loopback, bridges, and veths that are plugged into a bridge.
pub fn uplinks() -> io::Result<Vec<Link>> {
    let routed = default_route_links()?;
    let (with_default, others): (Vec<_>, Vec<_>) = links()?.into_iter().partition(|link| routed.contains(&link.index));
    if !with_default.is_empty() {
        return Ok(with_default);
    }
    let addressed: BTreeSet<_> =
        addresses::reachable(&mut Netlink::route()?)?.into_iter().map(|(link, _)| link).collect();
    let candidate = |link: &Link| {
        let container_side = link.is("bridge") || (link.is("veth") && link.master.is_some());
        link.up && !link.loopback && !container_side && addressed.contains(&link.index)
    };
    Ok(others.into_iter().filter(candidate).collect())
}

/// Index of the interface that packets to an address leave by; `None` = no route leads there.
pub fn towards(address: Ipv4Addr) -> io::Result<Option<u32>> {
    let mut question = RouteMessage::default();
    question.header.address_family = AddressFamily::Inet;
    question.header.destination_prefix_length = 32;
    question.attributes.push(RouteAttribute::Destination(address.into()));
    let answers = match Netlink::route()?.ask(RouteNetlinkMessage::GetRoute(question)) {
        Err(error) if matches!(error.raw_os_error(), Some(libc::ENETUNREACH | libc::EHOSTUNREACH)) => return Ok(None),
        answers => answers?,
    };
    Ok(answers.into_iter().find_map(|answer| {
        let RouteNetlinkMessage::NewRoute(RouteMessage { attributes, .. }) = answer else { return None };
        attributes.into_iter().find_map(|attribute| match attribute {
            RouteAttribute::Oif(index) => Some(index),
            _ => None,
        })
    }))
}

/// All interfaces of the socket's namespace, drivers not looked up.
pub(super) fn dump(netlink: &mut Netlink) -> io::Result<Vec<Link>> {
    let answers = netlink.dump(|| RouteNetlinkMessage::GetLink(question()))?;
    let mut links: Vec<_> = answers.into_iter().filter_map(parse).collect();
    links.sort_by_key(|link| link.index);
    Ok(links)
}

/// One interface of the socket's namespace, driver not looked up; `None` = there is none.
pub(super) fn by_index(netlink: &mut Netlink, index: u32) -> io::Result<Option<Link>> {
    let mut question = question();
    question.header.index = index;
    ask(netlink, question)
}

fn question() -> LinkMessage {
    let mut question = LinkMessage::default();
    question.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
    question
}

fn ask(netlink: &mut Netlink, question: LinkMessage) -> io::Result<Option<Link>> {
    match netlink.ask(RouteNetlinkMessage::GetLink(question)) {
        Ok(answers) => Ok(answers.into_iter().find_map(parse)),
        Err(error) if error.raw_os_error() == Some(libc::ENODEV) => Ok(None),
        Err(error) => Err(error),
    }
}

fn parse(answer: RouteNetlinkMessage) -> Option<Link> {
    let RouteNetlinkMessage::NewLink(LinkMessage { header, attributes, .. }) = answer else { return None };
    let mut link = Link {
        index: header.index,
        name: String::new(),
        kind: None,
        driver: None,
        master: None,
        peer: None,
        peer_netns: None,
        mac: None,
        up: header.flags.contains(LinkFlags::Up),
        loopback: header.link_layer_type == LinkLayerType::Loopback,
        xdp: None,
    };
    for attribute in attributes {
        match attribute {
            LinkAttribute::IfName(name) => link.name = name,
            LinkAttribute::Controller(index) => link.master = Some(index).filter(|index| *index != 0),
            LinkAttribute::Link(index) => link.peer = Some(index).filter(|index| *index != 0),
            LinkAttribute::LinkNetNsId(id) => link.peer_netns = Some(id),
            LinkAttribute::Address(mac) => link.mac = mac.try_into().ok(),
            LinkAttribute::Xdp(attributes) => link.xdp = xdp(&attributes),
            LinkAttribute::LinkInfo(infos) => {
                link.kind = infos.into_iter().find_map(|info| match info {
                    LinkInfo::Kind(kind) => Some(kind.to_string()),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    Some(link)
}

fn xdp(attributes: &[LinkXdp]) -> Option<Xdp> {
    let mode = attributes.iter().find_map(|attribute| match attribute {
        LinkXdp::Attached(XdpAttached::Driver) => Some(XdpMode::Native),
        LinkXdp::Attached(XdpAttached::SocketBuffer) => Some(XdpMode::Generic),
        LinkXdp::Attached(XdpAttached::Hardware) => Some(XdpMode::Offloaded),
        LinkXdp::Attached(XdpAttached::Multiple) => Some(XdpMode::Several),
        _ => None,
    })?;
    // The kernel gives the plain program id only if there is one program.
    let program = |wanted: fn(&LinkXdp) -> Option<u32>| attributes.iter().find_map(wanted);
    let hardware = || program(|xdp| if let LinkXdp::HwProgId(id) = xdp { Some(*id) } else { None });
    let native = || program(|xdp| if let LinkXdp::DrvProgId(id) = xdp { Some(*id) } else { None });
    let generic = || program(|xdp| if let LinkXdp::SkbProgId(id) = xdp { Some(*id) } else { None });
    let program = program(|xdp| if let LinkXdp::ProgId(id) = xdp { Some(*id) } else { None });
    Some(Xdp { mode, program: program.or_else(hardware).or_else(native).or_else(generic).unwrap_or_default() })
}

/// Indices of the interfaces that a default route of the main table leads to.
fn default_route_links() -> io::Result<BTreeSet<u32>> {
    let mut netlink = Netlink::route()?;
    let mut links = BTreeSet::new();
    for family in [AddressFamily::Inet, AddressFamily::Inet6] {
        let answers = netlink.dump(|| {
            let mut question = RouteMessage::default();
            question.header.address_family = family;
            RouteNetlinkMessage::GetRoute(question)
        })?;
        for answer in answers {
            let RouteNetlinkMessage::NewRoute(RouteMessage { header, attributes, .. }) = answer else { continue };
            let is_default = header.destination_prefix_length == 0
                && header.table == RouteHeader::RT_TABLE_MAIN
                && header.kind == RouteType::Unicast;
            for attribute in attributes.into_iter().filter(|_| is_default) {
                match attribute {
                    RouteAttribute::Oif(index) => drop(links.insert(index)),
                    RouteAttribute::MultiPath(hops) => links.extend(hops.iter().map(|hop| hop.interface_index)),
                    _ => {}
                }
            }
        }
    }
    Ok(links)
}

fn driver(name: &str) -> Option<String> {
    let driver = std::fs::read_link(Path::new("/sys/class/net").join(name).join("device/driver")).ok()?;
    Some(driver.file_name()?.to_string_lossy().into_owned())
}
