//! QEMU and debootstrap: installed when they are missing, and only for `cargo xtask vm`.

use std::{ffi::OsStr, fs, io::Write, path::Path, process::Stdio};

use anyhow::{Context, Result, bail};

use super::{disk, qemu};
use crate::{
    cmd::{self, Privilege},
    packages::{self, Program},
    setup,
};

/// Programs whose package may have any version.
const TOOLS: [Program; 4] = [
    packages::program("debootstrap", &["debootstrap"], "making root disks"),
    packages::program("mke2fs", &["e2fsprogs"], "making root disks"),
    packages::program("setpriv", &["util-linux"], "ending QEMU together with the harness"),
    packages::program("unshare", &["util-linux"], "making root disks"),
];
/// No program, but installed like one: without it debootstrap trusts whatever comes. On Debian it is always there, on Ubuntu not.
const KEYS: Program = packages::program("debian-archive-keyring", &["debian-archive-keyring"], "checking root disks");
const QEMU: Program = packages::program(qemu::PROGRAM, &["qemu-system-x86"], "the machines");
/// apt reads it beside the sources that the system came with.
const SOURCES: &str = "/etc/apt/sources.list.d/steer-vm-backports.sources";
const KEYRING: &str = "/usr/share/keyrings/debian-archive-keyring.gpg";

/// Makes sure of the tools, or says what to install.
pub(crate) fn ensure(privilege: Privilege) -> Result<()> {
    let mut missing: Vec<&Program> = TOOLS.iter().filter(|tool| cmd::find(tool.name).is_none()).collect();
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if packages::is_debian_like(&os_release) && !Path::new(KEYRING).exists() {
        missing.push(&KEYS);
    }
    let objection = qemu_objection()?;
    if missing.is_empty() && objection.is_none() {
        return Ok(());
    }
    if !packages::is_debian_like(&os_release) || cmd::find("apt-get").is_none() || privilege == Privilege::None {
        let mut lines: Vec<_> = missing.iter().map(|tool| format!("{} ({})", tool.name, tool.purpose)).collect();
        lines.extend(objection);
        bail!("this needs root to install, or install by hand:\n  {}", lines.join("\n  "));
    }
    if objection.is_some() {
        missing.push(&QEMU);
    }
    setup::apt_install(privilege, &missing, None)?;
    if qemu_objection()?.is_some() {
        let codename = codename(&os_release).context("/etc/os-release has no VERSION_CODENAME")?;
        from_backports(privilege, codename)?;
    }
    match qemu_objection()? {
        Some(objection) => bail!("{objection}"),
        None => Ok(()),
    }
}

/// Why the installed QEMU will not do; that there is none is an objection too.
fn qemu_objection() -> Result<Option<String>> {
    let Some(path) = cmd::find(QEMU.name) else { return Ok(Some(format!("{} is not installed", QEMU.name))) };
    Ok(qemu::objection(&cmd::output(cmd::command(path).arg("--version"))?))
}

/// The suite's own QEMU is too old; a newer one comes from the same mirror.
fn from_backports(privilege: Privilege, codename: &str) -> Result<()> {
    let suite = format!("{codename}-backports");
    if !Path::new(SOURCES).exists() {
        let mut write = privilege.command(OsStr::new("tee"), &[]);
        let mut tee =
            write.arg(SOURCES).stdin(Stdio::piped()).stdout(Stdio::null()).spawn().context("cannot start `tee`")?;
        let mut stdin = tee.stdin.take().context("no input of `tee`")?;
        stdin.write_all(sources(&disk::mirror()?, &suite).as_bytes()).with_context(|| format!("writing {SOURCES}"))?;
        drop(stdin);
        if !tee.wait().context("waiting for `tee`")?.success() {
            bail!("could not write {SOURCES}");
        }
        println!("  added    {suite} to apt's sources, as {SOURCES}");
    }
    setup::apt_install(privilege, &[&QEMU], Some(&suite))
}

fn sources(mirror: &str, suite: &str) -> String {
    format!(
        "# By `cargo xtask vm`: a QEMU whose guests can run dockerd.\n\
         Types: deb\nURIs: {mirror}\nSuites: {suite}\nComponents: main\nSigned-By: {KEYRING}\n"
    )
}

fn codename(os_release: &str) -> Option<&str> {
    let value = os_release.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="))?;
    Some(value.trim_matches(['"', '\''])).filter(|value| !value.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backports_come_from_the_systems_own_mirror() {
        let text = sources("http://mirror.example/debian", "bookworm-backports");
        assert!(text.contains("\nURIs: http://mirror.example/debian\nSuites: bookworm-backports\n"), "{text}");
        assert!(text.lines().skip(1).all(|line| line.contains(": ")), "{text}");
    }

    #[test]
    fn the_systems_codename_is_read() {
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=bookworm\n"), Some("bookworm"));
        assert_eq!(codename("VERSION_CODENAME=\"noble\"\n"), Some("noble"));
        assert_eq!(codename("ID=debian\nVERSION_CODENAME=\n"), None);
    }
}
