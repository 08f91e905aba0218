//! The network between the machines of one swarm: a star of lines, with hubs at their ends, all inside QEMU.
//!
//! ```text
//!    machine 0                                machine 1
//!    eth0  eth1  eth2 ── hub ─── line ─── hub ── eth0  eth1  eth2
//!                         └───── line ─── hub ── …
//! ```
//!
//! A line is a pair of connected sockets, of which each QEMU is given one. They have no name, so nobody else can be connected by
//! mistake, nothing of the host's network is touched, no privilege is needed, and nothing is left when the processes end.

use std::os::{
    fd::{AsFd, AsRawFd},
    unix::net::UnixStream,
};

use anyhow::{Context, Result};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};

/// Of each machine: for the node, for the harness beside it, and for a client. `tests/harness/nodes` knows which is which.
const INTERFACES: u8 = 3;
/// Of locally administered MAC addresses; the machine's number and the interface's follow.
const MAC: &str = "52:54:00:73";

/// One machine's place in the network.
#[derive(Debug)]
pub(crate) struct Place {
    pub(crate) number: u8,
    lines: Vec<UnixStream>,
}

/// A place for each machine; all lines begin at the first one.
pub(crate) fn places(machines: u8) -> Result<Vec<Place>> {
    let mut first = Place { number: 0, lines: Vec::new() };
    let mut others = Vec::new();
    for number in 1..machines {
        let (near, far) = UnixStream::pair().context("making a line between two machines")?;
        first.lines.push(near);
        others.push(Place { number, lines: vec![far] });
    }
    Ok([first].into_iter().chain(others).collect())
}

impl Place {
    /// What QEMU takes for it. Its process has to be this one's next child: see [`Place::hand_over`].
    pub(crate) fn arguments(&self) -> Vec<String> {
        let mut arguments = Vec::new();
        let mut add = |option: &str, value: String| arguments.extend([option.to_owned(), value]);
        for (at, line) in self.lines.iter().enumerate() {
            let fd = line.as_raw_fd();
            add("-netdev", format!("stream,id=line{at},server=off,addr.type=fd,addr.str={fd}"));
            add("-netdev", format!("hubport,id=plug{at},hubid=0,netdev=line{at}"));
        }
        for at in 0..INTERFACES {
            let mac = format!("{MAC}:{:02x}:{at:02x}", self.number);
            add("-netdev", format!("hubport,id=nic{at},hubid=0"));
            add("-device", format!("virtio-net-pci,netdev=nic{at},mac={mac},romfile="));
        }
        arguments
    }

    /// Has the next child inherit the lines. Drop the place when it was started: a line is closed when its other end alone has it.
    pub(crate) fn hand_over(&self) -> Result<()> {
        for line in &self.lines {
            fcntl(line.as_fd(), FcntlArg::F_SETFD(FdFlag::empty())).context("handing a line to a machine")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_machine_has_a_line_to_the_first_one() {
        let places = places(3).unwrap();
        assert_eq!(
            places.iter().map(|place| (place.number, place.lines.len())).collect::<Vec<_>>(),
            [(0, 2), (1, 1), (2, 1)]
        );
    }

    #[test]
    fn all_that_a_machine_is_plugged_into_is_its_own_hub_and_lines_that_are_open_already() {
        for place in places(3).unwrap() {
            let arguments = place.arguments();
            let netdevs: Vec<_> = arguments.iter().filter(|argument| argument.contains("id=")).collect();
            assert_eq!(netdevs.len(), 2 * place.lines.len() + usize::from(INTERFACES));
            for netdev in netdevs {
                let is_line = netdev.starts_with("stream,") && netdev.contains(",addr.type=fd,");
                assert!(is_line || netdev.starts_with("hubport,") && netdev.contains(",hubid=0"), "{netdev}");
            }
        }
    }

    #[test]
    fn no_two_interfaces_have_one_address() {
        let places = places(3).unwrap();
        let arguments = places.iter().flat_map(Place::arguments);
        let macs: Vec<String> =
            arguments.filter_map(|argument| Some(argument.split_once("mac=")?.1.to_owned())).collect();
        assert_eq!(macs.len(), 9);
        assert_eq!(macs.iter().collect::<BTreeSet<_>>().len(), macs.len(), "{macs:?}");
    }

    #[test]
    fn a_line_is_inherited_once_it_is_handed_over_and_not_before() {
        let place = places(2).unwrap().remove(0);
        let path = format!("/proc/self/fd/{}", place.lines[0].as_raw_fd());
        let seen = || std::process::Command::new("test").args(["-e", &path]).status().unwrap().success();
        assert!(!seen());
        place.hand_over().unwrap();
        assert!(seen());
    }
}
