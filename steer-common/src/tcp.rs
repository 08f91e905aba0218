//! Flags and the state machine of a steered TCP connection.
//!
//! The machine sees both directions but only the flags: enough to know when a connection is established and when it has
//! ended, which is all that steering needs. Sequence numbers are the endpoints' business.

use crate::limits::{CLOSING_SECS, ESTABLISHED_SECS, HALF_CLOSED_SECS, PENDING_SECS};

/// The flag byte of a TCP header (RFC 9293, 3.1).
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(transparent)]
pub struct TcpFlags(pub u8);

impl TcpFlags {
    pub const FIN: Self = Self(0x01);
    pub const SYN: Self = Self(0x02);
    pub const RST: Self = Self(0x04);
    pub const PSH: Self = Self(0x08);
    pub const ACK: Self = Self(0x10);

    /// Whether all of `flags` are set.
    #[inline(always)]
    pub const fn has(self, flags: Self) -> bool {
        self.0 & flags.0 == flags.0
    }

    /// Both sets of flags.
    #[inline(always)]
    pub const fn with(self, flags: Self) -> Self {
        Self(self.0 | flags.0)
    }

    /// A packet that opens a connection: SYN without ACK, RST and FIN.
    #[inline(always)]
    pub const fn opens(self) -> bool {
        self.0 & (Self::SYN.0 | Self::ACK.0 | Self::RST.0 | Self::FIN.0) == Self::SYN.0
    }
}

/// Which way a packet goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Client to backend.
    Forward,
    /// Backend to client.
    Reverse,
}

const SYN_ACKED: u64 = 1;
const ACKED: u64 = 1 << 1;
const FIN_FORWARD: u64 = 1 << 2;
const FIN_REVERSE: u64 = 1 << 3;
const RESET: u64 = 1 << 4;

/// Where a connection is. The first two and the last two live in `PENDING`, the others in `FLOWS`.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Hash)]
pub enum TcpState {
    /// A SYN was steered, the backend has not answered.
    #[default]
    SynSent,
    /// The backend answered with SYN-ACK.
    SynReceived,
    /// The client acknowledged: both sides are connected.
    Established,
    /// The client has closed its direction.
    FinForward,
    /// The backend has closed its direction.
    FinReverse,
    /// Both have closed; last acknowledgements and retransmissions may follow.
    Closed,
    /// One of them reset the connection.
    Reset,
}

impl TcpState {
    /// Every state, in the order of a connection's life.
    pub const ALL: [Self; 7] = [
        Self::SynSent,
        Self::SynReceived,
        Self::Established,
        Self::FinForward,
        Self::FinReverse,
        Self::Closed,
        Self::Reset,
    ];

    /// The state as marks: what has been seen so far. Two CPUs may see the two halves of a connection at the same time, each
    /// from the same old state; marks are only ever added (one atomic OR in the map), so neither half gets lost.
    #[inline(always)]
    pub const fn marks(self) -> u64 {
        match self {
            Self::SynSent => 0,
            Self::SynReceived => SYN_ACKED,
            Self::Established => SYN_ACKED | ACKED,
            Self::FinForward => SYN_ACKED | ACKED | FIN_FORWARD,
            Self::FinReverse => SYN_ACKED | ACKED | FIN_REVERSE,
            Self::Closed => SYN_ACKED | ACKED | FIN_FORWARD | FIN_REVERSE,
            Self::Reset => RESET,
        }
    }

    /// The state that marks add up to.
    #[inline(always)]
    pub const fn from_marks(marks: u64) -> Self {
        if marks & RESET != 0 {
            Self::Reset
        } else if marks & (FIN_FORWARD | FIN_REVERSE) == FIN_FORWARD | FIN_REVERSE {
            Self::Closed
        } else if marks & FIN_FORWARD != 0 {
            Self::FinForward
        } else if marks & FIN_REVERSE != 0 {
            Self::FinReverse
        } else if marks & ACKED != 0 {
            Self::Established
        } else if marks & SYN_ACKED != 0 {
            Self::SynReceived
        } else {
            Self::SynSent
        }
    }

    /// Whether the connection counts as live: established and not ended. Such flows are in `FLOWS`.
    #[inline(always)]
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Established | Self::FinForward | Self::FinReverse)
    }

    /// Whether the handshake is still under way.
    #[inline(always)]
    pub const fn is_opening(self) -> bool {
        matches!(self, Self::SynSent | Self::SynReceived)
    }

    /// Whether both sides have closed, or one has reset the connection.
    #[inline(always)]
    pub const fn has_ended(self) -> bool {
        matches!(self, Self::Closed | Self::Reset)
    }

    /// Seconds a flow in this state may be idle before its entry means nothing.
    #[inline(always)]
    pub const fn timeout_secs(self) -> u32 {
        match self {
            Self::SynSent | Self::SynReceived => PENDING_SECS,
            Self::Established => ESTABLISHED_SECS,
            Self::FinForward | Self::FinReverse => HALF_CLOSED_SECS,
            Self::Closed | Self::Reset => CLOSING_SECS,
        }
    }

    /// The word used in output.
    pub const fn name(self) -> &'static str {
        match self {
            Self::SynSent => "syn-sent",
            Self::SynReceived => "syn-received",
            Self::Established => "established",
            Self::FinForward => "fin-client",
            Self::FinReverse => "fin-backend",
            Self::Closed => "closed",
            Self::Reset => "reset",
        }
    }

    /// The state after a packet that does not open a connection (for one that does, see [`crate::steer`]).
    #[inline(always)]
    #[must_use]
    pub const fn advance(self, direction: Direction, flags: TcpFlags) -> Self {
        if flags.has(TcpFlags::RST) {
            // An abort from either side. Out of window it means nothing to the endpoints, so the flow stays known (and is
            // followed) for a while: only its place in the table changes.
            return Self::Reset;
        }
        match (self, direction) {
            (Self::SynSent, Direction::Reverse) => {
                if flags.has(TcpFlags::SYN.with(TcpFlags::ACK)) {
                    Self::SynReceived
                } else {
                    // A challenge ACK of a backend that still knows an older connection (RFC 5961, 4).
                    Self::SynSent
                }
            }
            // A packet of the client's older connection, or fast-open data behind a SYN.
            (Self::SynSent, Direction::Forward) => Self::SynSent,
            // The third packet of the handshake; it may carry data, and even the FIN (a client that sends and shuts down).
            (Self::SynReceived, Direction::Forward) => {
                if flags.has(TcpFlags::FIN) {
                    Self::FinForward
                } else if flags.has(TcpFlags::ACK) {
                    Self::Established
                } else {
                    Self::SynReceived
                }
            }
            // The SYN-ACK again: its first copy, or the client's ACK, got lost.
            (Self::SynReceived, Direction::Reverse) => Self::SynReceived,
            (Self::Established, Direction::Forward) => {
                if flags.has(TcpFlags::FIN) {
                    Self::FinForward
                } else {
                    Self::Established
                }
            }
            (Self::Established, Direction::Reverse) => {
                if flags.has(TcpFlags::FIN) {
                    Self::FinReverse
                } else {
                    Self::Established
                }
            }
            // The other side may go on sending for as long as it likes.
            (Self::FinForward, Direction::Reverse) => {
                if flags.has(TcpFlags::FIN) {
                    Self::Closed
                } else {
                    Self::FinForward
                }
            }
            (Self::FinReverse, Direction::Forward) => {
                if flags.has(TcpFlags::FIN) {
                    Self::Closed
                } else {
                    Self::FinReverse
                }
            }
            // Acknowledgements and retransmissions of the side that has closed.
            (Self::FinForward, Direction::Forward) => Self::FinForward,
            (Self::FinReverse, Direction::Reverse) => Self::FinReverse,
            // The last acknowledgement, a retransmitted FIN, or stragglers.
            (Self::Closed, Direction::Forward | Direction::Reverse) => Self::Closed,
            (Self::Reset, Direction::Forward | Direction::Reverse) => Self::Reset,
        }
    }
}

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::Direction::{Forward, Reverse};
    use super::TcpState::{Closed, Established, FinForward, FinReverse, Reset, SynReceived, SynSent};
    use super::*;

    const ACK: TcpFlags = TcpFlags::ACK;
    const FIN: TcpFlags = TcpFlags::FIN.with(TcpFlags::ACK);
    const SYN_ACK: TcpFlags = TcpFlags::SYN.with(TcpFlags::ACK);
    const RST: TcpFlags = TcpFlags::RST;

    #[rstest]
    #[case::the_client_closes_first(
        &[(Reverse, SYN_ACK, SynReceived), (Forward, ACK, Established), (Forward, FIN, FinForward), (Reverse, ACK, FinForward),
          (Reverse, FIN, Closed), (Forward, ACK, Closed)])]
    #[case::the_backend_closes_first(
        &[(Reverse, SYN_ACK, SynReceived), (Forward, ACK, Established), (Reverse, FIN, FinReverse), (Forward, ACK, FinReverse),
          (Forward, FIN, Closed), (Reverse, ACK, Closed)])]
    #[case::a_lost_syn_ack_is_sent_again(
        &[(Reverse, SYN_ACK, SynReceived), (Reverse, SYN_ACK, SynReceived), (Forward, ACK, Established)])]
    #[case::the_client_sends_and_shuts_down_with_its_first_ack(
        &[(Reverse, SYN_ACK, SynReceived), (Forward, FIN, FinForward), (Reverse, ACK, FinForward), (Reverse, FIN, Closed)])]
    #[case::the_backend_refuses(&[(Reverse, TcpFlags::RST.with(ACK), Reset)])]
    #[case::the_client_aborts(&[(Reverse, SYN_ACK, SynReceived), (Forward, ACK, Established), (Forward, RST, Reset), (Reverse, ACK, Reset)])]
    #[case::a_challenge_ack_does_not_establish(&[(Reverse, ACK, SynSent), (Forward, RST, Reset)])]
    #[case::a_closed_flow_stays_closed_under_stragglers(
        &[(Reverse, SYN_ACK, SynReceived), (Forward, ACK, Established), (Forward, FIN, FinForward), (Reverse, FIN, Closed),
          (Reverse, FIN, Closed), (Forward, ACK, Closed)])]
    fn transcript(#[case] packets: &[(Direction, TcpFlags, TcpState)]) {
        let mut state = SynSent;
        for (i, &(direction, flags, expected)) in packets.iter().enumerate() {
            state = state.advance(direction, flags);
            assert_eq!(state, expected, "after packet {i}: {direction:?} {flags:?}");
        }
    }

    #[test]
    fn a_reset_ends_every_state() {
        for state in TcpState::ALL {
            for direction in [Forward, Reverse] {
                assert_eq!(state.advance(direction, RST), Reset);
            }
        }
    }

    #[test]
    fn no_packet_brings_an_ended_connection_back_to_life() {
        for flags in 0..=u8::MAX {
            for direction in [Forward, Reverse] {
                assert!(!Closed.advance(direction, TcpFlags(flags)).is_live());
                assert!(!Reset.advance(direction, TcpFlags(flags)).is_live());
            }
        }
    }

    #[test]
    fn states_cross_the_kernel_border_unchanged() {
        for state in TcpState::ALL {
            assert_eq!(TcpState::from_marks(state.marks()), state);
        }
    }

    #[test]
    fn two_halves_seen_at_once_add_up_whatever_their_order() {
        let client = Established.advance(Forward, FIN).marks();
        let backend = Established.advance(Reverse, FIN).marks();
        assert_eq!(TcpState::from_marks(client | backend), Closed);
    }

    #[test]
    fn marks_never_take_a_state_back() {
        for state in TcpState::ALL {
            for flags in 0..=u8::MAX {
                for direction in [Forward, Reverse] {
                    let next = state.advance(direction, TcpFlags(flags));
                    assert_eq!(
                        TcpState::from_marks(state.marks() | next.marks()),
                        next,
                        "{state:?} {direction:?} {flags:#x}"
                    );
                }
            }
        }
    }

    #[rstest]
    #[case(TcpFlags::SYN, true)]
    #[case(TcpFlags::SYN.with(TcpFlags::PSH), true)]
    #[case(SYN_ACK, false)]
    #[case(TcpFlags::SYN.with(RST), false)]
    #[case(TcpFlags::SYN.with(TcpFlags::FIN), false)]
    #[case(ACK, false)]
    fn only_a_bare_syn_opens(#[case] flags: TcpFlags, #[case] opens: bool) {
        assert_eq!(flags.opens(), opens);
    }
}
