//! Building the workspace's programs, and where cargo put them.

use std::{
    ffi::OsString, io::BufReader, os::unix::process::CommandExt, path::PathBuf, process::Command, process::Stdio,
};

use anyhow::{Context, Error, Result, bail};
use cargo_metadata::{Artifact, Message};

use crate::{
    cmd::{self, Privilege},
    setup,
};

/// The package with the harness, the tests, and the programs that they run.
pub(crate) const PACKAGE: &str = "steer-tests";
/// What is tested is what is shipped: the static binary.
pub(crate) const TARGET: &str = "x86_64-unknown-linux-musl";

/// The agent and every program of [`PACKAGE`], built.
pub(crate) struct Programs {
    artifacts: Vec<Artifact>,
}

impl Programs {
    /// One build for all of them, so that they share what they depend on.
    pub(crate) fn build() -> Result<Self> {
        let cargo = cmd::cargo(["build", "--release", "--target", TARGET, "-p", "steer", "-p", PACKAGE, "--bins"]);
        Ok(Self { artifacts: build(cargo)? })
    }

    /// Every program: its name, and where it is.
    pub(crate) fn all(&self) -> impl Iterator<Item = (&str, PathBuf)> {
        let executable = |artifact: &Artifact| artifact.executable.clone().map(Into::into);
        self.artifacts.iter().filter_map(move |artifact| Some((&*artifact.target.name, executable(artifact)?)))
    }

    pub(crate) fn path(&self, name: &str) -> Result<PathBuf> {
        // The agent's library has the same name, but cannot be executed.
        let mut named = self.artifacts.iter().filter(|artifact| artifact.target.name == name);
        let path = named.find_map(|artifact| artifact.executable.clone());
        path.map(Into::into).with_context(|| format!("the workspace builds no program called {name}"))
    }

    /// By these variables the harness finds them.
    pub(crate) fn vars(&self) -> Result<[(&'static str, OsString); 2]> {
        let bin_dir = self.path("greeter")?.parent().map(|dir| dir.as_os_str().to_owned()).unwrap_or_default();
        Ok([("STEER_BIN", self.path("steer")?.into_os_string()), ("STEER_TESTS_BIN_DIR", bin_dir)])
    }
}

/// How [`PACKAGE`]'s tests are built.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TestBuild {
    /// In the least time.
    Debug,
    /// For every system: static, so that they run beside any C library; optimised, since a machine may be slow.
    Portable,
}

impl TestBuild {
    pub(crate) fn of(portable: bool) -> Self {
        if portable { Self::Portable } else { Self::Debug }
    }

    /// A build of tests: as it is, of all of them.
    pub(crate) fn cargo(self) -> Command {
        let mut cargo = cmd::cargo(["test", "--no-run", "-p", PACKAGE]);
        if self == Self::Portable {
            cargo.args(["--release", "--target", TARGET]);
        }
        cargo
    }
}

/// Sets up, builds, and goes on as a program of [`PACKAGE`], as root: from there on its signals and its exit code are this
/// process's. Returns if that fails, and `false` if something is still missing after the setup.
pub(crate) fn become_program(name: &str, args: &[String]) -> Result<bool> {
    let privilege = Privilege::of_this_process();
    if privilege == Privilege::None {
        bail!("{name} needs network namespaces and BPF: run it as root, or with a sudo that asks for no password");
    }
    println!("== setup");
    if !setup::run()? {
        return Ok(false);
    }
    println!("== {name}: building");
    let programs = Programs::build()?;
    println!("== {name}");
    let mut command = privilege.command(programs.path(name)?.as_os_str(), &programs.vars()?);
    let command = command.args(args);
    Err(Error::new(command.exec()).context(format!("cannot start `{}`", cmd::describe(command))))
}

/// Runs a cargo command that builds, and returns what it built.
pub(crate) fn build(mut cargo: Command) -> Result<Vec<Artifact>> {
    let name = cmd::describe(&cargo);
    cargo.arg("--message-format=json-render-diagnostics").stdout(Stdio::piped());
    let mut child = cargo.spawn().with_context(|| format!("cannot start `{name}`"))?;
    let stdout = child.stdout.take().with_context(|| format!("no output of `{name}`"))?;
    let mut artifacts = Vec::new();
    for message in Message::parse_stream(BufReader::new(stdout)) {
        if let Message::CompilerArtifact(artifact) =
            message.with_context(|| format!("reading the output of `{name}`"))?
        {
            artifacts.push(artifact);
        }
    }
    let status = child.wait().with_context(|| format!("waiting for `{name}`"))?;
    if !status.success() {
        bail!("`{name}` failed ({status})");
    }
    Ok(artifacts)
}
