//! From the kernel's start of this process to a machine that tests can run in.

use std::fs::{self, File};
use std::io::{self, Error};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::mount::{MsFlags, mount};
use nix::sys::reboot::{RebootMode, reboot};

use super::protocol::{PORT, Ready};

/// Where, what kind, options. What the initial RAM disk has mounted already is left as it is.
const MOUNTS: [(&str, &str, &str); 8] = [
    ("/proc", "proc", ""),
    ("/sys", "sysfs", ""),
    ("/dev", "devtmpfs", ""),
    ("/dev/pts", "devpts", "ptmxmode=666"),
    ("/run", "tmpfs", ""),
    ("/tmp", "tmpfs", "size=70%"),
    ("/sys/fs/cgroup", "cgroup2", ""),
    ("/dev/shm", "tmpfs", ""),
];

/// Mounts and settings that an init of a distribution would have made. Nothing of it is fatal: tests will tell.
pub(super) fn boot() -> Ready {
    for (path, kind, options) in MOUNTS {
        drop(fs::create_dir_all(path));
        let mounted = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        if mounted.lines().any(|line| line.split(' ').nth(1) == Some(path)) {
            continue;
        }
        if let Err(error) = mount(Some(kind), path, Some(kind), MsFlags::empty(), Some(options)) {
            eprintln!("guest: mounting {path}: {error}");
        }
    }
    for command in [
        "modprobe virtio_console",
        "modprobe virtio_net",
        // Its device would be made by udev, which does not run here.
        "modprobe tun",
        "ip link set lo up",
        "hostname steer-vm",
    ] {
        let mut words = command.split(' ');
        let run = words.next().map(|program| Command::new(program).args(words).status());
        if !run.is_some_and(|status| status.is_ok_and(|status| status.success())) {
            eprintln!("guest: `{command}` failed");
        }
    }
    // As on every Docker host. Namespaces made later begin with what the first one has, and Swarm's mesh forwards in one of those.
    if let Err(error) = fs::write("/proc/sys/net/ipv4/ip_forward", "1") {
        eprintln!("guest: forwarding: {error}");
    }
    let packages = fs::read_to_string("/etc/steer-machine").unwrap_or_default();
    let kernel = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    Ready { kernel: kernel.trim().to_owned(), packages: packages.lines().map(str::to_owned).collect() }
}

/// The serial port, found by its name.
pub(super) fn port() -> io::Result<File> {
    let device = named_port(Path::new("/sys/class/virtio-ports"), PORT)?;
    File::options().read(true).write(true).open(Path::new("/dev").join(device))
}

fn named_port(class: &Path, name: &str) -> io::Result<PathBuf> {
    for entry in fs::read_dir(class)? {
        let entry = entry?;
        if fs::read_to_string(entry.path().join("name"))?.trim() == name {
            return Ok(entry.file_name().into());
        }
    }
    Err(Error::other(format!("no serial port is called {name}")))
}

pub(super) fn wants_shell() -> bool {
    fs::read_to_string("/proc/cmdline").unwrap_or_default().split_whitespace().any(|word| word == "steer.shell")
}

/// A prompt on the console until it is left.
pub(super) fn shell(ready: &Ready) -> ! {
    println!("{} with {}; programs: /payload; leave with `exit`", ready.kernel, ready.packages.join(", "));
    // A session of its own, with the console as its terminal: else there is no job control.
    let shell = Command::new("setsid").args(["--ctty", "--wait", "bash", "-l"]).current_dir("/payload").status();
    if let Err(error) = shell {
        eprintln!("guest: no shell: {error}");
    }
    power_off()
}

/// Does not return; the kernel would panic if process 1 ended.
pub(super) fn power_off() -> ! {
    super::process::end_everything();
    loop {
        let _ = reboot(RebootMode::RB_POWER_OFF);
        std::thread::park();
    }
}
