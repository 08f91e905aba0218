//! One question to the kernel over netlink, and its answer.
//!
//! Blocking and synchronous on purpose. The same code runs on threads that visit a container's network namespace, where
//! no async runtime lives, and an answer from the kernel never waits for a peer. A socket belongs to the namespace of
//! the thread that opened it, and stays there.

use std::io;

use netlink_packet_core::{
    DecodeError, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_sys::protocols::{NETLINK_GENERIC, NETLINK_ROUTE, NETLINK_SOCK_DIAG};
use netlink_sys::{Socket, SocketAddr};

/// The kernel builds no larger part of a dump than 32 KiB.
const BUFFER: usize = 64 * 1024;

/// How often a dump is repeated that the kernel marked as overtaken by a change.
const DUMP_TRIES: usize = 5;

/// A netlink socket, for one question at a time.
pub(super) struct Netlink {
    socket: Socket,
    sequence: u32,
    buffer: Vec<u8>,
}

impl Netlink {
    /// Links, addresses, routes, namespace ids.
    pub(super) fn route() -> io::Result<Self> {
        Self::open(NETLINK_ROUTE)
    }

    /// Families that are found by name, as ethtool.
    pub(super) fn generic() -> io::Result<Self> {
        Self::open(NETLINK_GENERIC)
    }

    /// Sockets.
    pub(super) fn sockets() -> io::Result<Self> {
        Self::open(NETLINK_SOCK_DIAG)
    }

    fn open(protocol: isize) -> io::Result<Self> {
        let mut socket = Socket::new(protocol)?;
        socket.bind_auto()?;
        socket.connect(&SocketAddr::new(0, 0))?;
        Ok(Self { socket, sequence: 0, buffer: vec![0; BUFFER] })
    }

    /// Asks about one object, or changes it; the answer may be empty.
    pub(super) fn ask<M: NetlinkSerializable + NetlinkDeserializable>(&mut self, message: M) -> io::Result<Vec<M>> {
        self.exchange(message, NLM_F_ACK).map(|(answers, _)| answers)
    }

    /// Asks for all objects of a kind. Repeated if something changed meanwhile: such a list may have lost an entry.
    pub(super) fn dump<M>(&mut self, question: impl Fn() -> M) -> io::Result<Vec<M>>
    where
        M: NetlinkSerializable + NetlinkDeserializable,
    {
        let mut answers = Vec::new();
        for _ in 0..DUMP_TRIES {
            let (all, whole) = self.exchange(question(), NLM_F_DUMP)?;
            answers = all;
            if whole {
                break;
            }
        }
        Ok(answers)
    }

    /// The answers, and whether they describe one moment.
    fn exchange<M: NetlinkSerializable + NetlinkDeserializable>(
        &mut self,
        message: M,
        flags: u16,
    ) -> io::Result<(Vec<M>, bool)> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut question = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        question.finalize();
        let mut bytes = vec![0; question.buffer_len()];
        question.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;

        let (mut answers, mut whole) = (Vec::new(), true);
        loop {
            let length = self.receive()?;
            let mut rest = self.buffer.get(..length).unwrap_or_default();
            while !rest.is_empty() {
                let message = NetlinkMessage::<M>::deserialize(rest).map_err(invalid)?;
                // Messages are padded to four bytes, the last one of a datagram need not be.
                let step = (message.header.length as usize).next_multiple_of(4).clamp(4, rest.len());
                rest = rest.get(step..).unwrap_or_default();
                if message.header.sequence_number != self.sequence {
                    continue;
                }
                whole &= message.header.flags & NLM_F_DUMP_INTR == 0;
                match message.payload {
                    NetlinkPayload::InnerMessage(answer) => answers.push(answer),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    NetlinkPayload::Done(done) if done.code < 0 => {
                        return Err(io::Error::from_raw_os_error(-done.code));
                    }
                    NetlinkPayload::Error(_) | NetlinkPayload::Done(_) => return Ok((answers, whole)),
                    _ => {}
                }
            }
        }
    }

    fn receive(&mut self) -> io::Result<usize> {
        let length = self.socket.recv(&mut self.buffer.as_mut_slice(), libc::MSG_TRUNC)?;
        if length > self.buffer.len() {
            return Err(invalid(format!("an answer of {length} bytes, more than the {BUFFER} that fit")));
        }
        Ok(length)
    }
}

/// A message that no library describes: its type, and everything after the netlink header.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Raw {
    pub(super) kind: u16,
    pub(super) bytes: Vec<u8>,
}

impl NetlinkSerializable for Raw {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        self.bytes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.copy_from_slice(&self.bytes);
    }
}

impl NetlinkDeserializable for Raw {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Self::Error> {
        Ok(Self { kind: header.message_type, bytes: payload.to_vec() })
    }
}

/// The attributes in these bytes, up to the first malformed one.
pub(super) fn attributes(bytes: &[u8]) -> impl Iterator<Item = (u16, Vec<u8>)> {
    NlasIterator::new(bytes).map_while(|nla| nla.ok().map(|nla| (nla.kind(), nla.value().to_vec())))
}

/// Value of the first attribute of that kind.
pub(super) fn find(bytes: &[u8], wanted: u16) -> Option<Vec<u8>> {
    attributes(bytes).find(|(kind, _)| *kind == wanted).map(|(_, value)| value)
}

/// Something in an answer that cannot be.
pub(super) fn invalid(what: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}
