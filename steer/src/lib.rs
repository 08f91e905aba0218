//! steer's agent and command line, as a library that the thin binary and the tests use.
//!
//! | module | is |
//! |---|---|
//! | [`cli`], [`config`] | what was typed, and what it means |
//! | [`commands`] | one file per subcommand |
//! | [`model`] | the decisions, pure |
//! | [`agent`] | the loop that observes, decides and applies |
//! | [`docker`] | Docker's containers and events |
//! | [`host`] | this host's interfaces, addresses and network namespaces |
//! | [`dataplane`] | BPF programs and maps: load, attach, pin, adopt, write, read |
//! | [`api`] | the agent's unix socket |

#![deny(unsafe_code)]

pub mod agent;
pub mod api;
pub mod cli;
pub mod commands;
pub mod config;
pub mod dataplane;
pub mod docker;
pub mod host;
pub mod model;
