//! Incremental Internet checksums (RFC 1071, RFC 1624).
//!
//! The sum is kept as the one's complement of the header field, so adding what came in and the complement of what went out is
//! all there is to it. Words are taken as they lie in memory: one's complement addition does not care which byte order, as
//! long as it is the same everywhere (RFC 1071, 2B).

use crate::addr::{Addr, Port};

/// A change to a checksum that is still being added up.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Delta(u32);

impl Delta {
    /// No change.
    pub const NONE: Self = Self(0);

    /// One 16-bit word of the packet changed.
    #[inline(always)]
    #[must_use]
    pub const fn word(self, old: u16, new: u16) -> Self {
        // Cannot overflow: each call adds less than 2^17, and no caller adds more than a dozen words.
        Self(self.0 + (!old as u32) + new as u32)
    }

    /// A port changed.
    #[inline(always)]
    #[must_use]
    pub const fn port(self, old: Port, new: Port) -> Self {
        self.word(old.0, new.0)
    }

    /// An IPv4 address changed.
    #[inline(always)]
    #[must_use]
    pub const fn v4(self, old: Addr, new: Addr) -> Self {
        let (old, new) = (old.v4_be(), new.v4_be());
        self.word(old as u16, new as u16).word((old >> 16) as u16, (new >> 16) as u16)
    }

    /// The checksum field after the change (RFC 1624, equation 3).
    #[inline(always)]
    pub const fn apply(self, checksum: u16) -> u16 {
        let mut sum = (!checksum as u32) + (self.0 & 0xffff) + (self.0 >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        sum = (sum & 0xffff) + (sum >> 16);
        !(sum as u16)
    }
}

/// The sum of TCP's pseudo header over IPv4 (RFC 9293, 3.1), folded but not complemented: what the checksum field holds while the
/// rest is left to the hardware.
#[inline(always)]
pub const fn pseudo(src: Addr, dst: Addr, proto: u8, len: u16) -> u16 {
    let (src, dst) = (src.v4_be(), dst.v4_be());
    let words = (src & 0xffff) + (src >> 16) + (dst & 0xffff) + (dst >> 16);
    fold(words + (proto as u16).to_be() as u32 + len.to_be() as u32)
}

/// The checksum field for a sum of 16-bit words.
#[inline(always)]
pub const fn finish(sum: u32) -> u16 {
    !fold(sum)
}

#[inline(always)]
const fn fold(sum: u32) -> u16 {
    let sum = (sum & 0xffff) + (sum >> 16);
    ((sum & 0xffff) + (sum >> 16)) as u16
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// The checksum of RFC 1071 from scratch.
    fn full(words: &[u16]) -> u16 {
        let mut sum: u64 = words.iter().map(|&w| u64::from(w)).sum();
        while sum > 0xffff {
            sum = (sum & 0xffff) + (sum >> 16);
        }
        !(sum as u16)
    }

    proptest! {
        #[test]
        fn an_incremental_update_equals_a_new_sum(
            // At least one word that does not change and is not zero, as every real packet has (version, protocol).
            rest in prop::collection::vec(1_u16.., 1..32),
            old: u32, new: u32, old_port: u16, new_port: u16,
        ) {
            let words = |addr: u32, port: u16| -> Vec<u16> {
                rest.iter().copied().chain([addr as u16, (addr >> 16) as u16, port]).collect()
            };
            let before = full(&words(old, old_port));
            let after = Delta::NONE
                .v4(Addr::from_v4_be(old), Addr::from_v4_be(new))
                .port(Port(old_port), Port(new_port))
                .apply(before);
            prop_assert_eq!(after, full(&words(new, new_port)));
        }
    }

    #[test]
    fn the_example_of_rfc_1624() {
        assert_eq!(Delta::NONE.word(0x5555, 0x3285).apply(0xdd2f), 0x0000);
    }

    #[test]
    fn there_and_back_again_changes_nothing() {
        let (a, b) = (Addr::from(Ipv4Addr::new(10, 0, 0, 1)), Addr::from(Ipv4Addr::new(172, 17, 0, 2)));
        let there = Delta::NONE.v4(a, b).apply(0x1234);
        assert_eq!(Delta::NONE.v4(b, a).apply(there), 0x1234);
    }
}
