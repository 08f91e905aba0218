//! Root disks: built once per recipe, kept outside the repository, never written to by a machine.

use std::{
    env,
    ffi::OsStr,
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use anyhow::{Context, Result, bail};

use super::{record, suite::Suite};
use crate::{
    cmd::{self, Privilege},
    packages::PROGRAMS,
    progress,
};

/// How the files of a machine are made.
const RECIPE: &str = include_str!("rootfs.sh");
/// What builds or compares, outside.
const NOT_INSIDE: [&str; 2] = ["gcc", "haproxy"];
/// What tests and people need beside [`PROGRAMS`]; they have these already outside.
const ALSO: [&str; 3] = ["kmod", "procps", "less"];
/// The file system has no journal: the disk is thrown away after each run.
const MKE2FS: [&str; 6] = ["-q", "-t", "ext4", "-O", "^has_journal", "-Elazy_itable_init=1,root_owner=0:0"];
/// A file with holes: only what is used takes room.
const SIZE: &str = "6G";
/// For root disks where the system is none of Debian's, but has the keys to its archive ([`super::tools`]).
const DEBIAN: &str = "http://deb.debian.org/debian";
/// Of the key in a folder's name.
const KEY_DIGITS: usize = 16;
/// What to do where there is no mirror.
const NO_MIRROR: &str = "no mirror of Debian is configured for apt here; name one: --mirror URL";

/// What a machine boots from.
#[derive(Clone, Debug)]
pub(crate) struct Disk {
    pub(crate) image: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) initrd: PathBuf,
}

impl Disk {
    fn in_dir(dir: &Path) -> Self {
        Self { image: dir.join("disk.img"), kernel: dir.join("vmlinuz"), initrd: dir.join("initrd") }
    }

    /// What tells it from one that was built earlier.
    pub(crate) fn stamp(&self) -> Result<String> {
        record::stamp(&self.image)
    }
}

/// Where disks are kept.
pub(crate) fn cache() -> Result<PathBuf> {
    let var = |name| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = var("XDG_CACHE_HOME").or_else(|| Some(var("HOME")?.join(".cache")));
    let base = base.context("neither XDG_CACHE_HOME nor HOME is set: where should disks be kept?")?;
    let dir = base.join("steer").join("vm");
    fs::create_dir_all(&dir).with_context(|| cmd::redact(&format!("creating {}", dir.display())))?;
    Ok(dir)
}

/// The suite's disk: the one that this recipe has made before, unless a `fresh` one is asked for.
pub(crate) fn of(suite: Suite, mirror: Option<&str>, fresh: bool, privilege: Privilege) -> Result<Disk> {
    let packages = packages();
    let dir = cache()?.join(name(suite, key(&packages)));
    if dir.exists() && !fresh {
        return Ok(Disk::in_dir(&dir));
    }
    let mirror = match mirror {
        Some(mirror) => mirror.to_owned(),
        None => mirror_for_disks()?,
    };
    sweep(&cache()?, privilege)?;
    let partial = Partial { dir: dir.with_extension(format!("partial-{}", std::process::id())), privilege };
    build(suite, &mirror, &packages, &partial)?;
    if dir.exists() {
        remove(&dir, privilege)?;
    }
    fs::rename(&partial.dir, &dir).with_context(|| cmd::redact(&format!("moving the disk to {}", dir.display())))?;
    remove_earlier(suite, &dir, privilege);
    Ok(Disk::in_dir(&dir))
}

/// Removes the suite's disks of earlier recipes, now that there is a new one. No machine runs from them: there is one run at a time
/// ([`super::lock`]). One that cannot be removed only takes room.
fn remove_earlier(suite: Suite, current: &Path, privilege: Privilege) {
    let (Some(cache), Some(current)) = (current.parent(), current.file_name().and_then(OsStr::to_str)) else { return };
    let entries = fs::read_dir(cache).into_iter().flatten().flatten();
    let names: Vec<String> = entries.filter_map(|entry| entry.file_name().into_string().ok()).collect();
    for name in earlier(suite, current, &names) {
        match remove(&cache.join(name), privilege) {
            Ok(()) => println!("  removed  the disk of an earlier recipe, {name}"),
            Err(error) => eprintln!("{error:#}"),
        }
    }
}

/// Of what is in the cache, the suite's other disks that are whole.
fn earlier<'a>(suite: Suite, current: &str, names: &'a [String]) -> Vec<&'a str> {
    let is_key = |key: &str| key.len() == KEY_DIGITS && key.bytes().all(|byte| byte.is_ascii_hexdigit());
    let is_disk =
        |name: &&str| name.strip_prefix(suite.name()).and_then(|rest| rest.strip_prefix('-')).is_some_and(is_key);
    names.iter().map(String::as_str).filter(is_disk).filter(|name| *name != current).collect()
}

/// A disk's folder.
fn name(suite: Suite, key: u64) -> String {
    format!("{}-{key:0KEY_DIGITS$x}", suite.name())
}

fn build(suite: Suite, mirror: &str, packages: &[String], partial: &Partial) -> Result<()> {
    let Partial { dir, privilege } = partial;
    if *privilege == Privilege::None {
        bail!("debootstrap makes devices and owners: run this as root, or with a sudo that asks for no password");
    }
    fs::create_dir_all(dir).with_context(|| cmd::redact(&format!("creating {}", dir.display())))?;
    let (script, root, disk) = (dir.join("rootfs.sh"), dir.join("root"), Disk::in_dir(dir));
    fs::write(&script, RECIPE).context("writing the recipe of the root disk")?;
    let mut make = privilege.command(OsStr::new("unshare"), &[("PATH", cmd::search_path())]);
    make.args(["--mount", "--fork", "--kill-child", "sh"])
        .arg(&script)
        .args([suite.name(), mirror])
        .arg(&root)
        .args(packages);
    progress::run_quietly(&format!("installing {} into a folder", suite.name()), &mut make)?;

    let copy = |name: &str, to: &Path| -> Result<()> {
        // The one kernel that is installed.
        let pattern = format!("cp {}/boot/{name}-* {}", quoted(&root), quoted(to));
        let mut copy = as_root(*privilege, "sh");
        cmd::run(copy.args(["-c", &format!("{pattern} && chmod 644 {}", quoted(to))]))
    };
    copy("vmlinuz", &disk.kernel)?;
    copy("initrd.img", &disk.initrd)?;
    let mut make = as_root(*privilege, "mke2fs");
    make.args(MKE2FS).arg("-d").arg(&root).arg(&disk.image).arg(SIZE);
    progress::run_quietly(&format!("making a disk of {}", suite.name()), &mut make)?;
    if *privilege != Privilege::Root {
        cmd::run(as_root(*privilege, "chmod").arg("644").arg(&disk.image))?;
    }
    remove(&root, *privilege)?;
    fs::remove_file(&script).context("removing the recipe")
}

fn as_root(privilege: Privilege, program: &str) -> Command {
    privilege.command(OsStr::new(program), &[("PATH", cmd::search_path())])
}

fn quoted(path: &Path) -> String {
    format!("'{}'", path.display().to_string().replace('\'', r"'\''"))
}

fn remove(dir: &Path, privilege: Privilege) -> Result<()> {
    cmd::run(as_root(privilege, "rm").arg("-rf").arg("--one-file-system").arg(dir))
}

/// A disk in the making; what is left of one that failed goes.
struct Partial {
    dir: PathBuf,
    privilege: Privilege,
}

impl Drop for Partial {
    fn drop(&mut self) {
        if self.dir.exists()
            && let Err(error) = remove(&self.dir, self.privilege)
        {
            eprintln!("{error:#}");
        }
    }
}

/// Removes what builds have left that were killed.
fn sweep(cache: &Path, privilege: Privilege) -> Result<()> {
    for entry in fs::read_dir(cache).context("listing the disks")? {
        let path = entry.context("listing the disks")?.path();
        if path.to_str().and_then(builder).is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            remove(&path, privilege)?;
        }
    }
    Ok(())
}

/// The process that builds a partial disk, by the name of its folder.
fn builder(path: &str) -> Option<&str> {
    let (_, pid) = path.rsplit_once(".partial-")?;
    pid.bytes().all(|byte| byte.is_ascii_digit()).then_some(pid)
}

/// What is installed: each a package, or alternatives (`a|b`) of which a suite has the first or the second.
fn packages() -> Vec<String> {
    let inside = PROGRAMS.iter().filter(|program| !NOT_INSIDE.contains(&program.name));
    let mut packages: Vec<_> = inside.map(|program| program.packages.join("|")).collect();
    packages.extend(ALSO.map(str::to_owned));
    packages.dedup();
    packages
}

/// A disk is another one when anything that it is made of changes.
fn key(packages: &[String]) -> u64 {
    let text = [RECIPE, &packages.join(" "), &MKE2FS.join(" "), SIZE].join("\n");
    fnv1a(text.as_bytes())
}

/// The same on every machine and with every compiler, which the standard library's hashes do not promise.
fn fnv1a(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3))
}

/// The mirror that this system's own packages come from.
pub(crate) fn mirror() -> Result<String> {
    mirror_in(&targets()?).context(NO_MIRROR)
}

/// That one, or Debian's own where the system is Ubuntu.
pub(crate) fn mirror_for_disks() -> Result<String> {
    mirror_for_disks_in(&targets()?).context(NO_MIRROR)
}

/// What apt is configured for: address, codename and origin of each archive.
fn targets() -> Result<String> {
    const FORMAT: &str = "$(REPO_URI) $(CODENAME) $(ORIGIN)";
    let mut ask = cmd::command("apt-get");
    cmd::output(ask.args(["indextargets", "--format", FORMAT, "Created-By: Packages"])).context(NO_MIRROR)
}

/// The first archive with a whole suite of Debian: not updates, security or backports, which are named after one.
fn mirror_in(targets: &str) -> Option<String> {
    targets.lines().find_map(|line| {
        let mut words = line.split_whitespace();
        let (uri, codename, origin) = (words.next()?, words.next()?, words.next()?);
        let whole = origin == "Debian" && words.next().is_none() && !codename.contains('-');
        whole.then(|| uri.trim_end_matches('/').to_owned())
    })
}

fn mirror_for_disks_in(targets: &str) -> Option<String> {
    let is_ubuntu = |line: &str| line.split_whitespace().nth(2) == Some("Ubuntu");
    mirror_in(targets).or_else(|| targets.lines().any(is_ubuntu).then(|| DEBIAN.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mirror_is_the_one_with_the_whole_system() {
        let targets = "http://one.example/tools/ tools-bookworm Tools\n\
                       http://two.example/debian/ bookworm-backports Debian Backports\n\
                       http://two.example/security/ bookworm-security Debian\n\
                       http://three.example/debian/ bookworm Debian\n";
        assert_eq!(mirror_in(targets).as_deref(), Some("http://three.example/debian"));
        assert_eq!(mirror_in("http://one.example/ubuntu/ noble Ubuntu\n"), None);
        assert_eq!(mirror_for_disks_in(targets).as_deref(), Some("http://three.example/debian"));
    }

    #[test]
    fn ubuntu_has_disks_from_debian() {
        let ubuntu = "http://one.example/ppa/ noble LP-PPA-one\nhttp://one.example/ubuntu/ noble-updates Ubuntu\n";
        assert_eq!(mirror_for_disks_in(ubuntu).as_deref(), Some(DEBIAN));
        assert_eq!(mirror_for_disks_in("http://one.example/other/ other Other\n"), None);
        assert_eq!(mirror_for_disks_in(""), None);
    }

    #[test]
    fn the_machine_has_what_tests_ask_for_and_no_compiler() {
        let packages = packages();
        for package in ["docker-cli|docker.io", "ethtool", "apache2-utils", "kmod"] {
            assert!(packages.iter().any(|is| is == package), "{package}");
        }
        assert!(!packages.iter().any(|is| is == "gcc"));
    }

    #[test]
    fn a_partial_disk_tells_who_builds_it() {
        assert_eq!(builder("/cache/sid-0123.partial-77"), Some("77"));
        assert_eq!(builder("/cache/sid-0123"), None);
        assert_eq!(builder("/cache/sid-0123.partial-x"), None);
    }

    #[test]
    fn disks_of_earlier_recipes_are_told_from_all_else_in_the_cache() {
        let current = name(Suite::Sid, 7);
        assert_eq!(current, "sid-0000000000000007");
        let others = [name(Suite::Trixie, 7), name(Suite::Sid, 8), "sid-000000000000000a.partial-77".to_owned()];
        let names: Vec<String> = others
            .into_iter()
            .chain([current.clone()])
            .chain(["lock", "no-kvm", "sid-mine"].map(str::to_owned))
            .collect();
        assert_eq!(earlier(Suite::Sid, &current, &names), ["sid-0000000000000008"]);
        assert_eq!(earlier(Suite::Bookworm, "bookworm-0000000000000007", &names), [""; 0]);
    }

    /// The recipe's choice, by a suite that has these packages: what is chosen, or what it complains of.
    fn choice(has: &[&str], wanted: &[&str]) -> std::result::Result<String, String> {
        let from = RECIPE.find("chosen=\n").unwrap();
        let until = RECIPE[from..].find("in_root apt-get").unwrap();
        let candidates =
            has.iter().map(|name| format!("*' {name}') echo '  Candidate: 1.0-1' ;;\n")).collect::<String>();
        let script = format!(
            "set -eu\nsuite=potato\nin_root() {{ case \"$*\" in\n{candidates}*' virtual') echo '  Candidate: (none)' ;;\nesac; }}\n\
             {}echo \"$chosen\"\n",
            &RECIPE[from..from + until]
        );
        let output = Command::new("sh").args(["-c", &script, "sh"]).args(wanted).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).trim().to_owned();
        if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) }
    }

    #[test]
    fn a_package_that_a_suite_does_not_have_ends_the_recipe_with_its_name() {
        assert_eq!(choice(&["docker.io", "less"], &["docker-cli|docker.io", "less"]).unwrap(), "docker.io less");
        assert_eq!(choice(&["docker.io", "docker-cli"], &["docker-cli|docker.io"]).unwrap(), "docker-cli");
        assert_eq!(choice(&["less"], &["less", "one|two"]).unwrap_err(), "potato has no package one|two");
        assert_eq!(choice(&["less"], &["virtual", "less"]).unwrap_err(), "potato has no package virtual");
    }

    #[test]
    fn another_recipe_is_another_disk() {
        assert_eq!(fnv1a(b""), 0xcbf2_9ce4_8422_2325);
        assert_eq!(fnv1a(b"a"), 0xaf63_dc4c_8601_ec8c);
        assert_ne!(key(&packages()), key(&[]));
    }
}
