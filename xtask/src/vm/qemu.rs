//! QEMU: which one is here, what it can do, and one machine of it.

use std::{
    fs::{self, File},
    os::linux::net::SocketAddrExt,
    os::unix::net::{SocketAddr, UnixStream},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};

use super::{disk::Disk, protocol, wire::Place};
use crate::cmd;

pub(crate) const PROGRAM: &str = "qemu-system-x86_64";
/// 7.2, Debian 12's own, crashes guests that run dockerd under TCG.
const OLDEST: u32 = 8;
const LOOK: Duration = Duration::from_millis(50);

/// All that software can do, but for the promise that byte-wise string instructions are fast: here they are carried out byte by byte,
/// and a kernel that believes in it clears its pages so. Without it a test takes two thirds of the time.
const TCG_CPU: &str = "max,-erms,-fsrm";

/// How the guest's instructions are carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Accelerator {
    Kvm,
    /// In software: slower by a factor of about ten.
    Tcg,
}

impl Accelerator {
    fn arguments(self) -> [&'static str; 4] {
        match self {
            Self::Kvm => ["-accel", "kvm", "-cpu", "host"],
            Self::Tcg => ["-accel", "tcg,thread=multi", "-cpu", TCG_CPU],
        }
    }

    /// Whether there is a device to try. That it runs guests is another question: some hosts only pretend.
    pub(crate) fn may_be_kvm() -> bool {
        File::options().read(true).write(true).open("/dev/kvm").is_ok()
    }
}

/// The major version in what `qemu-system-x86_64 --version` says.
pub(crate) fn major(version: &str) -> Option<u32> {
    let (_, rest) = version.split_once("version ")?;
    rest.split('.').next()?.parse().ok()
}

/// Why this version will not do, with what would.
pub(crate) fn objection(version: &str) -> Option<String> {
    let first = version.lines().next().unwrap_or_default();
    match major(version) {
        Some(major) if major >= OLDEST => None,
        Some(_) => Some(format!(
            "{first}: below QEMU {OLDEST} guests crash that run dockerd; install a newer one (Debian 12: from \
             bookworm-backports)"
        )),
        None => Some(format!(
            "`{PROGRAM} --version` said {first:?}, which is not understood; QEMU {OLDEST} or newer is needed"
        )),
    }
}

/// What a machine is started with.
pub(crate) struct Spec<'a> {
    pub(crate) disk: &'a Disk,
    pub(crate) payload: &'a Path,
    pub(crate) accelerator: Accelerator,
    /// Where the socket goes, and the console's log.
    pub(crate) dir: &'a Path,
    pub(crate) memory_mib: u32,
    /// `None`: it has no network.
    pub(crate) place: Option<&'a Place>,
}

/// How QEMU begins to tell that KVM does not run this guest; it then holds the guest, and does not end.
const KVM_GAVE_UP: &str = "KVM internal error";

/// The kernel's log of a machine.
pub(crate) const CONSOLE: &str = "console.log";

/// A running machine. It ends with the guard, and with this process, however that ends.
pub(crate) struct Machine {
    child: Child,
    /// The abstract name of its serial port's socket.
    socket: String,
    /// What QEMU itself prints.
    said: PathBuf,
}

impl Machine {
    pub(crate) fn start(spec: &Spec<'_>) -> Result<Self> {
        // Without a file, so that none can be left behind.
        let number = spec.place.map_or(0, |place| place.number);
        let socket = format!("steer-vm-{}-{number}", std::process::id());
        let console = spec.dir.join(CONSOLE);
        let mut command = command(spec, "");
        command.arg("-serial").arg(format!("file:{}", console.display()));
        command.args([
            "-device",
            "virtio-serial-pci",
            "-device",
            &format!("virtserialport,chardev=steer,name={}", protocol::PORT),
        ]);
        command.arg("-chardev").arg(format!("socket,id=steer,server=on,wait=off,abstract=on,path={socket}"));
        let said = spec.dir.join("qemu.log");
        let log = File::create(&said).context("creating the log of QEMU")?;
        command.stdin(Stdio::null()).stdout(log.try_clone().context("sharing the log of QEMU")?).stderr(log);
        if let Some(place) = spec.place {
            command.args(place.arguments());
            place.hand_over()?;
        }
        let child = command.spawn().with_context(|| format!("cannot start `{PROGRAM}`"))?;
        Ok(Self { child, socket, said })
    }

    /// The serial line to the agent inside.
    pub(crate) fn connect(&mut self) -> Result<UnixStream> {
        const LIMIT: Duration = Duration::from_secs(20);
        let began = Instant::now();
        let address = SocketAddr::from_abstract_name(&self.socket).context("naming the machine's serial port")?;
        loop {
            match UnixStream::connect_addr(&address) {
                Ok(stream) => return Ok(stream),
                Err(error) if began.elapsed() > LIMIT => {
                    return Err(error).context("connecting to the machine's serial port");
                }
                Err(_) => {}
            }
            if let Some(why) = self.lost()? {
                bail!("{why}");
            }
            thread::sleep(LOOK);
        }
    }

    /// Why nothing more will come of it: QEMU is gone, or holds the guest since KVM met an instruction it cannot carry out.
    pub(crate) fn lost(&mut self) -> Result<Option<String>> {
        let said = fs::read_to_string(&self.said).unwrap_or_default();
        if let Some(line) = said.lines().find(|line| line.starts_with(KVM_GAVE_UP)) {
            return Ok(Some(line.to_owned()));
        }
        let ended = self.child.try_wait().context("looking at QEMU")?;
        Ok(ended.map(|status| cmd::redact(&format!("{PROGRAM} ended ({status}): {}", said.trim()))))
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// A machine whose console is this terminal, until its shell is left.
pub(crate) fn shell(spec: &Spec<'_>) -> Result<bool> {
    let mut command = command(spec, "steer.shell");
    command.args(["-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"]);
    let status = command.status().with_context(|| format!("cannot start `{PROGRAM}`"))?;
    Ok(status.success())
}

/// `setpriv` has the kernel end QEMU when this process ends. Nothing is written to the disks: what the machine writes goes
/// to a file without a name, which goes with QEMU.
fn command(spec: &Spec<'_>, words: &str) -> Command {
    let Spec { disk, payload, accelerator, dir: _, memory_mib, place: _ } = spec;
    let mut command = cmd::command("setpriv");
    command.args(["--pdeathsig", "KILL", PROGRAM]).args(accelerator.arguments());
    command.args(["-m", &format!("{memory_mib}M"), "-smp", "2", "-nodefaults", "-display", "none", "-no-reboot"]);
    command.args(["-nic", "none", "-device", "virtio-rng-pci"]);
    for image in [disk.image.as_path(), payload] {
        command.arg("-drive").arg(format!("file={},format=raw,if=virtio,snapshot=on,cache=unsafe", image.display()));
    }
    command.arg("-kernel").arg(&disk.kernel).arg("-initrd").arg(&disk.initrd).arg("-append");
    command.arg(format!(
        "root=/dev/vda rw console=ttyS0 quiet loglevel=4 panic=1 noautogroup init=/sbin/steer-init {words}"
    ));
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)\nCopyright (c) 2003-2022\n";
    const NEW: &str = "QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2+deb13u1~bpo12+1)\n";

    #[test]
    fn the_version_is_read_as_qemu_prints_it() {
        assert_eq!((major(OLD), major(NEW), major("7.2"), major("")), (Some(7), Some(10), None, None));
    }

    #[test]
    fn an_old_qemu_is_refused_with_the_way_out() {
        assert_eq!(objection(NEW), None);
        let text = objection(OLD).unwrap();
        assert!(text.starts_with("QEMU emulator version 7.2.22") && text.contains("backports"), "{text}");
        assert!(objection("what?").is_some_and(|text| text.contains("not understood")));
    }
}
