//! This host as the kernel knows it: its interfaces and addresses, and the network namespaces of containers.
//!
//! Everything asks the kernel over netlink, once, and blocks for it: a question costs some tens of microseconds, a dump
//! of a host with hundreds of interfaces a few milliseconds. The agent's loop calls these directly, since what they say decides what it
//! does next; a look into another namespace starts a thread for it, which is some tens of microseconds more.
//!
//! | module | answers |
//! |---|---|
//! | [`links`] | which interfaces there are, which are uplinks and bridges, what XDP is attached |
//! | [`addresses`] | which addresses are this host's, and when to look again |
//! | [`netns`] | how a container's address is reached from the host |
//! | [`netns_ids`] | (it gives) ids that namespaces have in one another |
//! | [`resolver`] | what Docker's name server says inside a namespace |
//! | [`listen`] | whether a port is being listened on |
//! | [`connections`] | who is connected to a port |
//! | [`cgroup`] | which cgroup a process is in |
//! | [`freezer`] | whether a cgroup of version 1 is frozen |
//! | [`clock`] | how long it has been up, by the kernel's clock |
//! | [`btf`] | where the kernel's structures have their fields |
//! | [`filters`] | (it removes) a filter at an interface's ingress |
//! | [`privileges`] | what this process may do |
//! | `ethtool` | offloads of an interface |
//! | `sock_diag` | the sockets of one port |
//! | `netlink` | one question to the kernel and its answer |
//! | `sys` | the socket option no library has |

pub mod addresses;
pub mod btf;
pub mod cgroup;
pub mod clock;
pub mod connections;
mod ethtool;
pub mod filters;
pub mod freezer;
pub mod links;
pub mod listen;
mod netlink;
pub mod netns;
pub mod netns_ids;
pub mod privileges;
pub mod resolver;
mod sock_diag;
mod sys;
