//! The compiled programs, one packet at a time: tables and packet in, verdict, packet, counters and tables out.
//!
//! Every story begins with a list, at the top of its file, of the reasons its packets are counted under; each step of it says
//! what becomes of one packet: the program's return value, every byte (what is expected is built by etherparse, checksums
//! included) and exactly which counters moved. Each file guards some of the invariants of the design (its section 2):
//!
//! | file | guards |
//! |---|---|
//! | `rewrite` | 4, source kept: only the destination is rewritten, on the way back only the source; 8 across hooks |
//! | `untouched` | 3, untouched: what is not steer's leaves as it came, byte for byte |
//! | `pinned` | 1, pinned: a flow stays where it began, or its backend is gone; 5 and 6, states alone demote |
//! | `life` | 1 and 8: handshake, close, reset, the client's port again; live counts are exact |
//! | `mesh` | 3, untouched: what Swarm's routing mesh has, or gets since nobody here is ready |
//! | `pick` | 2, ready: who takes a new flow, in exact shares; 6, a state takes effect before the slot table follows |
//! | `refuse` | 7, nothing is lost in silence: every drop and pass has a reason; 9, hold ends |
//! | `refused` | 2 and 8: a SYN that a backend refuses goes to another one, bounded |
//! | `lanes` | 1 and 9: one client port, several frontends, a bounded number of lanes |
//! | `icmp` | 1: errors about a flow follow it; 3: all other ICMP is untouched |
//! | `flood` | 9, bounded: a SYN flood never reaches established flows |
//!
//! That packets arrive where they are redirected to, and local sockets (`connect`), is for the tests with real connections.

mod packet {
    #[macro_use]
    mod story;
    mod flood;
    mod icmp;
    mod lanes;
    mod life;
    mod mesh;
    mod pick;
    mod pinned;
    mod refuse;
    mod refused;
    mod rewrite;
    mod untouched;

    /// The reasons of every story, by file.
    const MOVED: [story::Moved; 11] = [
        flood::MOVED,
        icmp::MOVED,
        lanes::MOVED,
        life::MOVED,
        mesh::MOVED,
        pick::MOVED,
        pinned::MOVED,
        refuse::MOVED,
        refused::MOVED,
        rewrite::MOVED,
        untouched::MOVED,
    ];
}
