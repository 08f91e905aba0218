//! BPF programs and maps: load, attach, pin, adopt, write, read.
//!
//! | module | does |
//! |---|---|
//! | [`paths`] | where the pins are |
//! | `pins` | the pins: listed, put, replaced, removed |
//! | [`prepare`] | mounts what is not mounted |
//! | [`load`] | puts the programs into the kernel, with the maps that are pinned already |
//! | [`attach`] | puts them on their hooks, or replaces what is there, atomically |
//! | `clsact` | the same where there is no tcx, before Linux 6.6 |
//! | [`kernel_log`] | what the programs have to say |
//! | [`maps`] | the maps, opened for writing |
//! | [`adopt`] | reads what an earlier agent applied |
//! | [`apply`] | carries out the operations of a plan |
//! | [`count`] | what backends that are to end still have |
//! | [`notices`] | what the programs tell the agent |
//! | [`replay`] | clients that wait are sent on |
//! | [`sweep`] | flows that nobody ended |
//! | [`vips`] | virtual addresses inside overlay networks |
//! | [`others`] | what another version of steer has here |
//! | [`detach`] | takes everything away |
//! | [`read`] | what inspection commands see |
//! | [`explain`] | what the program would do with a packet |
//! | `frame` | a packet that is handed to a program |
//! | `text` | text in fields of fixed size |
//! | `absent` | an entry that is not there |

mod absent;
pub mod adopt;
pub mod apply;
pub mod attach;
pub mod clsact;
pub mod count;
pub mod detach;
pub mod explain;
mod frame;
pub mod kernel_log;
pub mod load;
pub mod maps;
pub mod notices;
pub mod others;
pub mod paths;
mod pins;
pub mod prepare;
pub mod read;
pub mod replay;
pub mod sweep;
mod text;
pub mod vips;
