//! Ids that network namespaces have in one another: by them a program that runs for one can look into the other's sockets.
//!
//! The kernel gives one by itself to a namespace that an interface leads to; of two containers in an overlay network neither has one
//! in the other's. An id is gone with either of the two namespaces.

use std::io;
use std::os::fd::AsRawFd as _;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::nsid::{NsidAttribute, NsidMessage};

use super::netlink::Netlink;
use super::netns::{Netns, ReachError};

/// The ids that others have in one network namespace.
pub struct NetnsIds {
    netlink: Netlink,
}

impl NetnsIds {
    /// Those in that namespace, which is kept alive by this.
    pub fn inside(netns: &Netns) -> Result<Self, ReachError> {
        let netlink = netns.visit(Netlink::route).and_then(|opened| opened);
        netlink.map(|netlink| Self { netlink }).map_err(netns.read_error("ask for ids in"))
    }

    /// Gives `other` this id; `false` = it has another one already, or another namespace has this one.
    pub fn give(&mut self, other: &Netns, id: i32) -> io::Result<bool> {
        let mut wish = NsidMessage::default();
        wish.attributes.push(NsidAttribute::Fd(other.as_raw_fd().cast_unsigned()));
        wish.attributes.push(NsidAttribute::Id(id));
        match self.netlink.ask(RouteNetlinkMessage::NewNsId(wish)) {
            Ok(_) => Ok(true),
            // Also what an earlier agent gave.
            Err(error) if matches!(error.raw_os_error(), Some(libc::EEXIST | libc::ENOSPC)) => {
                Ok(id_of(&mut self.netlink, other)? == Some(id))
            }
            Err(error) => Err(error),
        }
    }
}

impl std::fmt::Debug for NetnsIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NetnsIds").finish_non_exhaustive()
    }
}

/// Id of a namespace in that of the socket; `None` = it has none yet.
pub(super) fn id_of(netlink: &mut Netlink, netns: &Netns) -> io::Result<Option<i32>> {
    let mut question = NsidMessage::default();
    question.attributes.push(NsidAttribute::Fd(netns.as_raw_fd().cast_unsigned()));
    let answers = netlink.ask(RouteNetlinkMessage::GetNsId(question))?;
    Ok(answers.into_iter().find_map(|answer| match answer {
        RouteNetlinkMessage::NewNsId(message) => message.attributes.into_iter().find_map(|attribute| match attribute {
            NsidAttribute::Id(id) => Some(id).filter(|id| *id >= 0),
            _ => None,
        }),
        _ => None,
    }))
}
