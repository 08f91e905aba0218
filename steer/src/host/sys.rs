//! The socket option no library has.
//!
//! `nix` writes the `getsockopt` call, with the type and size checked by its macro, so there is no `unsafe` of steer's
//! own.

use std::io;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, getsockopt, socket};
use nix::{getsockopt_impl, sockopt_impl};

sockopt_impl!(
    /// Number of a socket's network namespace: unique until the machine restarts, never used again.
    NetnsCookie,
    GetOnly,
    libc::SOL_SOCKET,
    libc::SO_NETNS_COOKIE,
    u64
);

/// Cookie of the calling thread's network namespace: what `bpf_get_netns_cookie` calls it too. Kernel 5.14 and newer.
pub(super) fn netns_cookie() -> io::Result<u64> {
    let socket = socket(AddressFamily::Unix, SockType::Datagram, SockFlag::SOCK_CLOEXEC, None)?;
    Ok(getsockopt(&socket, NetnsCookie)?)
}
