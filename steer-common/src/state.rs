//! The state of a backend: the agent's word for it, and what it comes to with what the kernel has seen since.

use crate::edge::{EdgeEntry, EdgeKind};

/// Lifecycle of a backend, as the kernel needs it: see [`StateEntry`].
///
/// Words are HAProxy's and Kubernetes'. Only `Ready` takes new flows; `Draining` takes them when nothing is ready
/// (Kubernetes KEP-1669: terminating endpoints that still serve).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default, PartialOrd, Ord)]
#[repr(u8)]
pub enum BackendState {
    /// No backend, or one that ended: its flows are dead.
    #[default]
    Gone = 0,
    /// Runs, not yet known to serve.
    Starting = 1,
    /// Takes new flows.
    Ready = 2,
    /// Alive, but said to be unable to serve now: keeps its flows, may come back.
    Unready = 3,
    /// Stopping: keeps its flows, gets new ones only if nothing is ready.
    Draining = 4,
    /// Taken out by the operator: keeps its flows, gets no new ones.
    Maintenance = 5,
    /// Stopping, and its last flow has ended.
    Drained = 6,
}

impl BackendState {
    /// Every state, in numeric order.
    pub const ALL: [Self; 7] =
        [Self::Gone, Self::Starting, Self::Ready, Self::Unready, Self::Draining, Self::Maintenance, Self::Drained];

    /// From a map record; unknown values count as gone, which takes nothing.
    #[inline(always)]
    pub const fn from_u32(value: u32) -> Self {
        match value {
            1 => Self::Starting,
            2 => Self::Ready,
            3 => Self::Unready,
            4 => Self::Draining,
            5 => Self::Maintenance,
            6 => Self::Drained,
            _ => Self::Gone,
        }
    }

    /// Whether a backend in this state takes new flows, if its sockets do. `if_listening`: listening is what decides about it, so that the
    /// state lags behind the sockets, which are asked at each flow.
    #[inline(always)]
    pub const fn takes_new(self, if_listening: bool) -> bool {
        match self {
            Self::Ready => true,
            Self::Starting | Self::Unready => if_listening,
            _ => false,
        }
    }

    /// The word used in output and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Gone => "gone",
            Self::Starting => "starting",
            Self::Ready => "ready",
            Self::Unready => "unready",
            Self::Draining => "draining",
            Self::Maintenance => "maintenance",
            Self::Drained => "drained",
        }
    }
}

/// The state the agent gives a backend. Value of `BACKEND_STATES`, index [`crate::backend::BackendId`]; written by the agent only.
///
/// The kernel may take a backend out by itself ([`EdgeEntry`]). Both write words of their own, so neither can undo the other
/// by accident: an edge counts until the agent writes a state that takes it into account.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[repr(C)]
pub struct StateEntry {
    /// A [`BackendState`].
    pub state: u16,
    /// 1 = listening decides: takes new flows also while `state` is [`BackendState::Starting`] or [`BackendState::Unready`],
    /// as soon as the kernel finds a listener.
    pub if_listening: u16,
    /// How many edges of the backend this state takes into account: [`EdgeEntry::count`], cut to 32 bits.
    pub edges: u32,
}

impl StateEntry {
    /// What a new flow may take the backend for, now that the kernel has seen this. A stop signal makes it drain; one that is
    /// killed, has ended, or is frozen takes nothing.
    #[inline(always)]
    pub const fn for_new(self, edge: &EdgeEntry) -> BackendState {
        let state = BackendState::from_u32(self.state as u32);
        if edge.frozen_ns != 0 {
            return BackendState::Gone;
        }
        if edge.count as u32 == self.edges {
            return state;
        }
        match (EdgeKind::from_u32(edge.kind), state) {
            (Some(EdgeKind::Stop), BackendState::Ready | BackendState::Draining) => BackendState::Draining,
            _ => BackendState::Gone,
        }
    }
}

const _: () = assert!(size_of::<StateEntry>() == 8);

#[cfg(test)]
mod tests {
    use rstest::rstest;

    use super::*;

    #[test]
    fn states_cross_the_kernel_border_unchanged() {
        for state in BackendState::ALL {
            assert_eq!(BackendState::from_u32(state as u32), state);
        }
        assert_eq!(BackendState::from_u32(99), BackendState::Gone);
    }

    #[rstest]
    #[case::nothing_new(BackendState::Ready, 3, EdgeKind::Stop, BackendState::Ready)]
    #[case::a_stop_signal_drains(BackendState::Ready, 4, EdgeKind::Stop, BackendState::Draining)]
    #[case::a_killed_one_takes_nothing(BackendState::Ready, 4, EdgeKind::Kill, BackendState::Gone)]
    #[case::nor_does_one_that_ended(BackendState::Draining, 4, EdgeKind::Exit, BackendState::Gone)]
    #[case::a_stop_signal_puts_nobody_in(BackendState::Maintenance, 4, EdgeKind::Stop, BackendState::Gone)]
    #[case::the_count_goes_round(BackendState::Ready, (1 << 32) + 3, EdgeKind::Kill, BackendState::Ready)]
    fn an_edge_counts_until_the_agent_has_taken_it_in(
        #[case] state: BackendState,
        #[case] count: u64,
        #[case] kind: EdgeKind,
        #[case] expected: BackendState,
    ) {
        let entry = StateEntry { state: state as u16, if_listening: 0, edges: 3 };
        let edge = EdgeEntry { count, at_ns: 1, kind: kind as u32, signal: 15, ..EdgeEntry::default() };
        assert_eq!(entry.for_new(&edge), expected);
    }

    #[test]
    fn a_frozen_one_takes_nothing_for_as_long_as_it_is() {
        for state in BackendState::ALL {
            let entry = StateEntry { state: state as u16, if_listening: 1, edges: 0 };
            assert_eq!(entry.for_new(&EdgeEntry { frozen_ns: 1, ..EdgeEntry::default() }), BackendState::Gone);
            assert_eq!(entry.for_new(&EdgeEntry::default()), state);
        }
    }
}
