//! What every test of steer stands on: a network of its own, a Docker of its own, an agent of its own, and clients.
//!
//! A test makes a [`World`](netns::World) (namespaces `host` and `client`, joined by the uplink), starts a
//! [`Docker`](docker::Docker) in it, then an [`Agent`](agent::Agent), and looks at what clients see. Each of these is a
//! guard: dropping it, also by a panic, removes what it made. Declare them in that order; Rust drops them in the
//! reverse order.
//!
//! [`report`] is all that the programs `greeter` and `load` need of this crate; without the feature `harness` it is all
//! there is.

pub mod report;

#[cfg(feature = "harness")]
pub mod agent;
#[cfg(feature = "harness")]
pub mod bpf;
#[cfg(feature = "harness")]
mod cleanup;
#[cfg(feature = "harness")]
pub mod clients;
#[cfg(feature = "harness")]
pub mod docker;
#[cfg(feature = "harness")]
pub mod greeter;
#[cfg(feature = "harness")]
pub mod http;
#[cfg(feature = "harness")]
pub mod load;
#[cfg(feature = "harness")]
pub mod long_lived;
#[cfg(feature = "harness")]
pub mod netns;
#[cfg(feature = "harness")]
pub mod nodes;
#[cfg(feature = "harness")]
pub mod pace;
#[cfg(feature = "harness")]
pub mod packet;
#[cfg(feature = "harness")]
pub mod panic;
#[cfg(feature = "harness")]
mod poll;
#[cfg(feature = "harness")]
mod programs;
#[cfg(feature = "harness")]
pub mod signals;
#[cfg(feature = "harness")]
pub mod skip;
#[cfg(feature = "harness")]
pub mod stage;
#[cfg(feature = "harness")]
mod subnet;
#[cfg(feature = "harness")]
pub mod world;

#[cfg(feature = "harness")]
pub use poll::{look_until, wait_until};
#[cfg(feature = "harness")]
pub use world::World;
