//! An older version of steer, whose maps have another layout: what a dead agent has left, under another version's name.
//!
//! Its programs go on as they did, and the next agent can read none of its tables. No older program could be more like one.

use std::fs;
use std::time::Duration;

use steer::dataplane::{attach, clsact};
use steer_common::limits::{ABI, SOCKETS_ABI};

use super::Agent;
use crate::wait_until;

const LIMIT: Duration = Duration::from_secs(30);

impl Agent {
    /// Makes what the agent has left, which is dead, an older version's.
    #[track_caller]
    pub fn grow_old(&self) {
        assert!(self.child.is_none(), "an agent that lives has its pins open");
        let older = ABI - 1;
        let [from, to] = [ABI, older].map(|version| self.pins().join(format!("v{version}")));
        fs::rename(&from, &to).unwrap_or_else(|err| panic!("rename {}: {err}", from.display()));
        if attach::ingress_hook() != "clsact" {
            return;
        }
        // There a program has a place that is its instance's and version's.
        let handle = |version| u32::from(clsact::handle(self.instance(), version));
        let [here, there] = [ABI, older].map(|version| format!("{:#x}", handle(version)));
        let names = self.host.output("ip", "-o link");
        for link in self.links() {
            let interface = match link.split_once('-') {
                Some(("tcx", name)) => name.to_owned(),
                Some(("veth", index)) => interface(&names, index),
                _ => continue,
            };
            let pin = to.join("links").join(&link);
            let place = format!("dev {interface} ingress prio 1");
            self.host
                .output("tc", &format!("filter add {place} handle {there} bpf da object-pinned {}", pin.display()));
            self.host.output("tc", &format!("filter del {place} handle {here} bpf"));
        }
    }

    /// Waits until this version is the only one.
    #[track_caller]
    pub fn wait_alone(&mut self) {
        let own = [format!("sockets-v{SOCKETS_ABI}"), format!("v{ABI}")];
        wait_until("no other version has pins", LIMIT, || {
            let entries = fs::read_dir(self.pins()).map_err(|err| err.to_string())?;
            let mut names: Vec<_> =
                entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            names.sort();
            if names == own { Ok(()) } else { Err(format!("{names:?}")) }
        });
    }
}

/// Of `<index>: <name>@<peer>: <...>` the name.
#[track_caller]
fn interface(names: &str, index: &str) -> String {
    let of = |line: &str| {
        let mut words = line.split(": ");
        let name = (words.next()? == index).then(|| words.next())??;
        name.split('@').next().map(str::to_owned)
    };
    names.lines().find_map(of).unwrap_or_else(|| panic!("no interface {index} in {names}"))
}
