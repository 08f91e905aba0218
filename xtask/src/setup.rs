//! `cargo xtask setup`: installs what is missing to build and test steer, and says line by line what it found.

use std::{env, ffi::OsStr, fs, os::unix::fs::PermissionsExt, path::Path};

use anyhow::{Context, Error, Result};

use crate::{
    cmd::{self, Privilege},
    packages::{self, PROGRAMS, Program},
    progress,
};

/// As in `rust-toolchain.toml`; rustup does not install by itself everywhere.
const TOOLCHAIN: &str = "1.95.0";
const COMPONENTS: [&str; 3] = ["rust-src", "rustfmt", "clippy"];
const TARGET: &str = "x86_64-unknown-linux-musl";

/// A cargo program of one version.
struct CargoTool {
    name: &'static str,
    version: &'static str,
    /// Only this version will do: bpf-linker must know the bitcode of our rustc.
    exact: bool,
}

const CARGO_TOOLS: [CargoTool; 2] = [
    CargoTool { name: "bpf-linker", version: "0.10.3", exact: true },
    CargoTool { name: "cargo-deny", version: "0.20.2", exact: false },
];

/// True when nothing is missing any more.
pub(crate) fn run() -> Result<bool> {
    let mut missing = rust_parts().unwrap_or_else(|error| gave_up("the pinned toolchain's parts", &error));
    for tool in &CARGO_TOOLS {
        missing.extend(cargo_tool(tool).unwrap_or_else(|error| gave_up(tool.name, &error)));
    }
    missing.extend(programs().unwrap_or_else(|error| gave_up("the system's packages", &error)));

    if missing.is_empty() {
        println!("setup: nothing is missing");
        return Ok(true);
    }
    println!("setup: still missing; install:");
    for line in &missing {
        println!("  {line}");
    }
    Ok(false)
}

fn found(what: &str) {
    println!("  found    {what}");
}

fn absent(what: &str, why: &str) {
    println!("  missing  {what} ({why})");
}

/// One step's failure must not hide what the others find.
fn gave_up(what: &str, error: &Error) -> Vec<String> {
    println!("  failed   {what}: {error:#}");
    vec![format!("{what} (could not be installed, see above)")]
}

/// Components and the static target of the pinned toolchain. Returns what is still missing, as do the other steps.
fn rust_parts() -> Result<Vec<String>> {
    let wanted = || COMPONENTS.into_iter().chain([TARGET]);
    if cmd::find("rustup").is_none() {
        absent("rustup", "it brings the pinned toolchain");
        return Ok(vec![format!(
            "rustup, then toolchain {TOOLCHAIN} with {}",
            wanted().collect::<Vec<_>>().join(", ")
        )]);
    }
    let list =
        cmd::output(cmd::command("rustup").args(["component", "list", "--installed", "--toolchain", TOOLCHAIN]))?;
    let is_there = |part: &str| list.lines().any(|line| line == part || is_part_for_host(line, part));
    for part in wanted() {
        if is_there(part) || (part == TARGET && is_there(&format!("rust-std-{TARGET}"))) {
            found(&format!("{part} of Rust {TOOLCHAIN}"));
            continue;
        }
        absent(part, "part of the pinned toolchain");
        let kind = if part == TARGET { "target" } else { "component" };
        let mut rustup = cmd::command("rustup");
        rustup.args([kind, "add", "--toolchain", TOOLCHAIN, part]);
        progress::run_quietly(&format!("adding {part}"), &mut rustup)?;
    }
    Ok(Vec::new())
}

/// Most components are listed with the host they are for: `clippy-x86_64-unknown-linux-gnu`.
fn is_part_for_host(line: &str, part: &str) -> bool {
    line.strip_prefix(part).is_some_and(|rest| rest == host_suffix())
}

fn host_suffix() -> String {
    format!("-{}-unknown-linux-{}", env::consts::ARCH, if cfg!(target_env = "musl") { "musl" } else { "gnu" })
}

fn cargo_tool(tool: &CargoTool) -> Result<Vec<String>> {
    let CargoTool { name, version, exact } = tool;
    let installed = || {
        let path = cmd::find(name)?;
        let text = cmd::output(cmd::command(path).arg("--version")).ok()?;
        text.split_whitespace().nth(1).map(str::to_owned)
    };
    let will_do = |installed: &Option<String>| installed.as_ref().is_some_and(|is| !exact || is == version);

    let before = installed();
    if let (true, Some(is)) = (will_do(&before), &before) {
        found(&format!("{name} {is}"));
        return Ok(Vec::new());
    }
    absent(&format!("{name} {version}"), &before.map_or("not installed".into(), |is| format!("{is} is installed")));
    let mut install = cmd::cargo(["install", "--locked", name, "--version", version]);
    progress::run_quietly(&format!("building {name}"), &mut install)?;
    // Another one may come first in PATH.
    let after = installed();
    let hides = || format!("{name} {version}, before {} in PATH", after.as_deref().unwrap_or("any other"));
    Ok(if will_do(&after) { Vec::new() } else { vec![hides()] })
}

/// The programs that come in packages of the system.
fn programs() -> Result<Vec<String>> {
    let missing = |announce: bool| -> Vec<&'static Program> {
        let is_missing = |program: &&Program| {
            let is_there = cmd::find(program.name).is_some();
            match (announce, is_there) {
                (true, true) => found(program.name),
                (true, false) => absent(program.name, program.purpose),
                (false, _) => {}
            }
            !is_there
        };
        PROGRAMS.iter().filter(is_missing).collect()
    };
    let before = missing(true);
    if before.is_empty() {
        return Ok(Vec::new());
    }
    let os_release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    if !packages::is_debian_like(&os_release) || cmd::find("apt-get").is_none() {
        return Ok(before.iter().map(|program| format!("{} ({})", program.name, program.purpose)).collect());
    }
    let privilege = Privilege::of_this_process();
    if privilege == Privilege::None {
        let packages = packages::packages_for(&before, can_install).join(" ");
        return Ok(vec![format!("as root: apt-get install --no-install-recommends {packages}")]);
    }
    let failure = apt_install(privilege, &before, None).err();
    // What counts is that the programs are there: a package may fail only to start its service.
    let after = missing(false);
    if let Some(error) = failure {
        println!("  apt-get complained, {} programs are missing: {error:#}", after.len());
    }
    Ok(after.iter().map(|program| format!("{} ({})", program.name, program.packages.join(" or "))).collect())
}

fn can_install(package: &str) -> bool {
    cmd::output(cmd::command("apt-cache").args(["policy", package])).is_ok_and(|text| packages::has_candidate(&text))
}

/// Installs the packages of these programs, from another release of the distribution if one is named.
pub(crate) fn apt_install(privilege: Privilege, programs: &[&Program], release: Option<&str>) -> Result<()> {
    let apt = |args: &[&str]| {
        let mut command = privilege.command(OsStr::new("apt-get"), &[("DEBIAN_FRONTEND", "noninteractive".into())]);
        command.args(["-q", "-y", "-o", "DPkg::Lock::Timeout=300"]).args(args);
        command
    };
    progress::run_quietly("updating the package lists", &mut apt(&["update"]))?;
    let packages = packages::packages_for(programs, can_install);
    let _no_services = NoServices::unless_init_runs(privilege)?;
    let mut install = apt(&["install", "--no-install-recommends"]);
    install.args(release.map(|release| format!("--target-release={release}")));
    progress::run_quietly(&format!("installing {}", packages.join(" ")), install.args(&packages))
}

/// While it lives, packages do not start their services: without an init they could not, and would fail to install.
struct NoServices;

impl NoServices {
    const POLICY: &str = "/usr/sbin/policy-rc.d";

    fn unless_init_runs(privilege: Privilege) -> Result<Option<Self>> {
        let init_runs = Path::new("/run/systemd/system").exists();
        if init_runs || privilege != Privilege::Root || Path::new(Self::POLICY).exists() {
            return Ok(None);
        }
        fs::write(Self::POLICY, "#!/bin/sh\nexit 101\n")
            .context("writing the policy that keeps services from starting")?;
        let guard = Self;
        fs::set_permissions(Self::POLICY, fs::Permissions::from_mode(0o755)).context("making the policy executable")?;
        Ok(Some(guard))
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if let Err(error) = fs::remove_file(Self::POLICY) {
            eprintln!("could not remove {}: {error}", Self::POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_toolchain_file_names_the_same_parts() {
        let file = include_str!("../../rust-toolchain.toml");
        for part in COMPONENTS.into_iter().chain([TARGET, TOOLCHAIN]) {
            assert!(file.contains(&format!("\"{part}\"")), "{part}");
        }
    }

    #[test]
    fn a_component_is_known_with_its_host() {
        assert!(is_part_for_host(&format!("clippy{}", host_suffix()), "clippy"));
        assert!(!is_part_for_host(&format!("clippy-preview{}", host_suffix()), "clippy"));
    }
}
