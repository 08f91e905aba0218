//! Running other programs: where they are found, what environment they get, and errors that name the command.

use std::{
    env,
    ffi::{OsStr, OsString},
    path::{Path, PathBuf},
    process::{Command, Stdio},
};

use anyhow::{Context, Result, bail};

/// Administrators' programs (`ip`, `dockerd`) are not in the `PATH` of an ordinary user on Debian.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// The root of the workspace.
///
/// Asked at run time: a target directory shared by several clones may hold a binary that another clone built.
pub(crate) fn root() -> PathBuf {
    let manifest = env::var_os("CARGO_MANIFEST_DIR").unwrap_or_else(|| env!("CARGO_MANIFEST_DIR").into());
    Path::new(&manifest).parent().map_or_else(|| PathBuf::from("."), Path::to_path_buf)
}

/// Where cargo puts what it builds.
pub(crate) fn target_dir() -> PathBuf {
    root().join(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into()))
}

/// `PATH`, and behind it cargo's own programs and the administrators'.
pub(crate) fn search_path() -> OsString {
    let path = env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = env::split_paths(&path).collect();
    let cargo_bin = cargo_home().map(|home| home.join("bin"));
    for dir in cargo_bin.into_iter().chain(SBIN.map(PathBuf::from)) {
        if !dirs.contains(&dir) {
            dirs.push(dir);
        }
    }
    env::join_paths(dirs).unwrap_or(path)
}

pub(crate) fn cargo_home() -> Option<PathBuf> {
    env::var_os("CARGO_HOME").map(PathBuf::from).or_else(|| Some(Path::new(&env::var_os("HOME")?).join(".cargo")))
}

/// The program's path, if it is installed.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    which::which_in(program, Some(search_path()), root()).ok()
}

/// A command that starts in the workspace's root and finds the programs that [`find`] finds.
pub(crate) fn command(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).env("PATH", search_path());
    command
}

/// `cargo <args>` with the environment of a user's shell.
///
/// `cargo run` gave this process variables (`CARGO_PKG_*`, `CARGO_MANIFEST_*`) that build scripts of dependencies watch: passing
/// them on would rebuild half of the tree at every change between `cargo` and `cargo xtask`. `RUSTC_BOOTSTRAP` likewise, should
/// someone have set it; the builds for BPF set it themselves.
pub(crate) fn cargo<const N: usize>(args: [&str; N]) -> Command {
    let mut command = command(env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in env::vars_os() {
        let text = name.to_string_lossy();
        if text.starts_with("CARGO_PKG_") || text.starts_with("CARGO_MANIFEST_") || text == "RUSTC_BOOTSTRAP" {
            command.env_remove(&name);
        }
    }
    command.args(args);
    command
}

/// Runs the command with our own output; an exit code other than 0 is an error.
pub(crate) fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot start `{}`", describe(command)))?;
    if !status.success() {
        bail!("`{}` failed ({status})", describe(command));
    }
    Ok(())
}

/// What the command prints to its standard output; an exit code other than 0 is an error that carries what it complained of.
pub(crate) fn output(command: &mut Command) -> Result<String> {
    let output =
        command.stdin(Stdio::null()).output().with_context(|| format!("cannot start `{}`", describe(command)))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        bail!("`{}` failed ({}): {}", describe(command), output.status, redact(complaint.trim()));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

/// The command as one would type it, without the directory of the program.
pub(crate) fn describe(command: &Command) -> String {
    let program = Path::new(command.get_program()).file_name().unwrap_or(command.get_program());
    let words = [program].into_iter().chain(command.get_args());
    redact(&words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" "))
}

/// How this process may do what only root may do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Privilege {
    Root,
    /// `sudo` that asks for no password.
    Sudo,
    None,
}

impl Privilege {
    pub(crate) fn of_this_process() -> Self {
        if nix::unistd::geteuid().is_root() {
            return Self::Root;
        }
        let sudo = find("sudo").is_some() && output(command("sudo").args(["-n", "true"])).is_ok();
        if sudo { Self::Sudo } else { Self::None }
    }

    /// A command that runs `program` as root, with these variables: `sudo` keeps neither `PATH` nor every variable.
    pub(crate) fn command(self, program: &OsStr, vars: &[(&str, OsString)]) -> Command {
        match self {
            Self::Root | Self::None => {
                let mut command = command(program);
                command.envs(vars.iter().map(|(name, value)| (name, value)));
                command
            }
            Self::Sudo => {
                let mut command = command("sudo");
                command.args(["-n", "-E", "env"]);
                for (name, value) in vars.iter().chain([&("PATH", search_path())]) {
                    let mut assignment = OsString::from(name);
                    assignment.push("=");
                    assignment.push(value);
                    command.arg(assignment);
                }
                command.arg(program);
                command
            }
        }
    }
}

/// The text without what belongs to one machine: its directories, and the hosts it downloads from.
pub(crate) fn redact(text: &str) -> String {
    let var = |name| env::var(name).ok().filter(|value| value.len() > 1);
    let mut text = text.replace(&*root().to_string_lossy(), ".");
    for (dir, name) in [
        (var("CARGO_TARGET_DIR"), "target"),
        (var("CARGO_HOME"), "$CARGO_HOME"),
        (var("RUSTUP_HOME"), "$RUSTUP_HOME"),
        (var("HOME"), "~"),
    ] {
        if let Some(dir) = dir {
            text = text.replace(&dir, name);
        }
    }
    text.split_inclusive(char::is_whitespace).map(redact_host).collect()
}

/// One word, with the host part of an address replaced.
fn redact_host(word: &str) -> String {
    const PLACE: &str = "<registry>";
    if let Some((before, rest)) = word.split_once("://") {
        let end = rest.find(['/', ')', '`', '\'', '"']).unwrap_or(rest.trim_end().len());
        return format!("{before}://{PLACE}{}", &rest[end..]);
    }
    let core = word.trim_matches(|c: char| !c.is_ascii_alphanumeric());
    let host = core.split(':').next().unwrap_or(core);
    let is_name = host.chars().all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-')
        && host
            .rsplit_once('.')
            .is_some_and(|(_, last)| ["com", "dev", "internal", "io", "net", "org"].contains(&last))
        && host != "docker.io";
    let is_address = host.split('.').count() == 4 && host.split('.').all(|part| part.parse::<u8>().is_ok());
    if is_name || is_address { word.replace(host, PLACE) } else { word.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_not_printed_but_the_rest_of_the_line_is() {
        for (line, expected) in [
            ("Get:1 http://deb.example.org/debian bookworm/main", "Get:1 http://<registry>/debian bookworm/main"),
            ("Could not resolve host: index.example.io", "Could not resolve host: <registry>"),
            ("could not connect to 'mirror.example.internal:80' [IP: 10.1.2.3 80]", {
                "could not connect to '<registry>:80' [IP: <registry> 80]"
            }),
            ("Setting up docker.io (20.10.24+dfsg1-1+deb12u1)", "Setting up docker.io (20.10.24+dfsg1-1+deb12u1)"),
            ("Compiling bpf-linker v0.10.3", "Compiling bpf-linker v0.10.3"),
        ] {
            assert_eq!(redact(line), expected);
        }
    }

    #[test]
    fn directories_of_this_machine_are_not_printed() {
        assert_eq!(redact(&format!("{}/xtask/src", root().display())), "./xtask/src");
    }

    #[test]
    fn a_command_is_described_as_typed() {
        let mut command = Command::new("/opt/tool/bin/cargo");
        command.args(["fmt", "--check"]);
        assert_eq!(describe(&command), "cargo fmt --check");
    }
}
