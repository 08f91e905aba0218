//! Offloads of an interface, over ethtool's netlink family (kernel 5.7 and newer), so that no ioctl is needed.
//!
//! Only generic receive offload is of interest. A veth takes frames from an XDP redirect only while its *peer* end
//! polls (NAPI), which it does while GRO is on (kernel 5.13 and newer) or an XDP program is attached; else the frames
//! are dropped.

use std::io;

use netlink_packet_core::{DefaultNla, Emitable};

use super::netlink::{Netlink, Raw, attributes, find, invalid};

/// As `ethtool -k` abbreviates "generic-receive-offload" inside the kernel.
const GRO: &str = "rx-gro";

const VERSION: u8 = 1;
const NESTED: u16 = 1 << 15;

// linux/genetlink.h
const CONTROLLER: u16 = 0x10;
const CTRL_CMD_GETFAMILY: u8 = 3;
const CTRL_ATTR_FAMILY_ID: u16 = 1;
const CTRL_ATTR_FAMILY_NAME: u16 = 2;

// linux/ethtool_netlink.h
const MSG_FEATURES_GET: u8 = 11;
const MSG_FEATURES_SET: u8 = 12;
const FEATURES_HEADER: u16 = 1;
const FEATURES_WANTED: u16 = 3;
const FEATURES_ACTIVE: u16 = 4;
const HEADER_DEV_INDEX: u16 = 1;
const HEADER_FLAGS: u16 = 3;
const FLAG_OMIT_REPLY: u32 = 2;
const BITSET_BITS: u16 = 3;
const BITS_BIT: u16 = 1;
const BIT_NAME: u16 = 2;
const BIT_VALUE: u16 = 3;

/// Ethtool in the network namespace of the thread that opened it.
pub(super) struct Ethtool {
    netlink: Netlink,
    family: u16,
}

impl Ethtool {
    pub(super) fn open() -> io::Result<Self> {
        let mut netlink = Netlink::generic()?;
        let name = attribute(CTRL_ATTR_FAMILY_NAME, b"ethtool\0");
        let answers = netlink.ask(message(CONTROLLER, CTRL_CMD_GETFAMILY, &[name]))?;
        let id = answer(&answers, CTRL_ATTR_FAMILY_ID);
        let id =
            id.and_then(|id| id.first_chunk().copied()).ok_or_else(|| invalid("ethtool's netlink family has no id"))?;
        Ok(Self { netlink, family: u16::from_ne_bytes(id) })
    }

    /// Whether generic receive offload is on.
    pub(super) fn gro(&mut self, ifindex: u32) -> io::Result<bool> {
        let header = nested(FEATURES_HEADER, &[attribute(HEADER_DEV_INDEX, &ifindex.to_ne_bytes())]);
        let answers = self.netlink.ask(message(self.family, MSG_FEATURES_GET, &[header]))?;
        let active = answer(&answers, FEATURES_ACTIVE).unwrap_or_default();
        // Without a mask, the list holds exactly the bits that are set.
        let bits = find(&active, BITSET_BITS).unwrap_or_default();
        Ok(attributes(&bits).any(|(kind, bit)| {
            kind == BITS_BIT
                && find(&bit, BIT_NAME).is_some_and(|name| name.strip_suffix(b"\0") == Some(GRO.as_bytes()))
        }))
    }

    /// Switches generic receive offload on, and says whether it is.
    pub(super) fn enable_gro(&mut self, ifindex: u32) -> io::Result<bool> {
        let header = nested(
            FEATURES_HEADER,
            &[
                attribute(HEADER_DEV_INDEX, &ifindex.to_ne_bytes()),
                attribute(HEADER_FLAGS, &FLAG_OMIT_REPLY.to_ne_bytes()),
            ],
        );
        let bit = nested(BITS_BIT, &[attribute(BIT_NAME, format!("{GRO}\0").as_bytes()), attribute(BIT_VALUE, &[])]);
        let wanted = nested(FEATURES_WANTED, &[nested(BITSET_BITS, &[bit])]);
        self.netlink.ask(message(self.family, MSG_FEATURES_SET, &[header, wanted]))?;
        self.gro(ifindex)
    }
}

fn attribute(kind: u16, value: &[u8]) -> DefaultNla {
    DefaultNla::new(kind, value.to_vec())
}

fn nested(kind: u16, inner: &[DefaultNla]) -> DefaultNla {
    DefaultNla::new(kind | NESTED, bytes_of(inner))
}

fn bytes_of(attributes: &[DefaultNla]) -> Vec<u8> {
    let mut bytes = vec![0; attributes.buffer_len()];
    attributes.emit(&mut bytes);
    bytes
}

/// A message of a generic family: command, version, attributes.
fn message(family: u16, command: u8, attributes: &[DefaultNla]) -> Raw {
    let mut bytes = vec![command, VERSION, 0, 0];
    bytes.extend(bytes_of(attributes));
    Raw { kind: family, bytes }
}

/// Value of an attribute of the first answer that has it.
fn answer(answers: &[Raw], kind: u16) -> Option<Vec<u8>> {
    answers.iter().find_map(|answer| find(answer.bytes.get(4..)?, kind))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_are_found_at_their_depth() {
        let bit = nested(BITS_BIT, &[attribute(BIT_NAME, b"rx-gro\0"), attribute(BIT_VALUE, &[])]);
        let answers = [message(
            20,
            MSG_FEATURES_GET,
            &[attribute(7, b"abc"), nested(FEATURES_ACTIVE, &[nested(BITSET_BITS, &[bit])])],
        )];
        let bits = answer(&answers, FEATURES_ACTIVE).and_then(|active| find(&active, BITSET_BITS)).unwrap();
        let names: Vec<_> = attributes(&bits).filter_map(|(_, bit)| find(&bit, BIT_NAME)).collect();
        assert_eq!(names, [b"rx-gro\0"]);
        assert_eq!(answer(&answers, 7).as_deref(), Some(&b"abc"[..]), "padding is not part of the value");
        assert_eq!(answer(&answers, 8), None);
    }
}
