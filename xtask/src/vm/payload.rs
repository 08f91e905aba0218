//! What is tested, as a disk: the test binaries, the agent, and the programs that tests run, all static.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use cargo_metadata::Artifact;

use super::{protocol::PAYLOAD, record};
use crate::{
    cmd,
    programs::{self, Programs, TestBuild},
    test::{self, Tier},
};

fn build_tests(wanted: &[String]) -> Result<Vec<Artifact>> {
    let mut cargo = TestBuild::Portable.cargo();
    if wanted.is_empty() {
        // Not the unit tests of programs, which need no kernel.
        cargo.args(["--test", "*"]);
    }
    for name in wanted {
        cargo.args(["--test", name]);
    }
    programs::build(cargo)
}

/// A disk that machines mount at [`PAYLOAD`].
pub(crate) struct Payload {
    pub(crate) image: PathBuf,
    /// Names of test binaries, cheapest tier first.
    pub(crate) tests: Vec<String>,
    /// Those that need several machines, and where they are here.
    pub(crate) on_nodes: Vec<(String, PathBuf)>,
    /// All programs as they were built, which every test may run, in words.
    pub(crate) programs: String,
    /// Test binaries as they were built, by name.
    digests: BTreeMap<String, String>,
}

impl Payload {
    /// Builds everything and packs it; `wanted`: only these test binaries, all if there are none.
    pub(crate) fn build(dir: &Path, wanted: &[String]) -> Result<Self> {
        let programs = Programs::build()?;
        let binaries = test::binaries(&build_tests(wanted)?, &test::test_package()?);
        Self::pack(dir, &programs, binaries)
    }

    /// The same without tests.
    pub(crate) fn of_programs(dir: &Path) -> Result<Self> {
        Self::pack(dir, &Programs::build()?, [])
    }

    fn pack(
        dir: &Path,
        programs: &Programs,
        binaries: impl IntoIterator<Item = (Tier, String, PathBuf)>,
    ) -> Result<Self> {
        let folder = dir.join("payload");
        let image = dir.join("payload.img");
        drop(fs::remove_dir_all(&folder));
        drop(fs::remove_file(&image));
        fs::create_dir_all(&folder).context("creating a folder for the programs")?;
        let mut built = Vec::new();
        for (name, path) in programs.all() {
            link(&path, &folder.join(name))?;
            built.push(format!("{name} {}", record::digest(&path)?));
        }
        let (mut tests, mut on_nodes, mut digests) = (Vec::new(), Vec::new(), BTreeMap::new());
        for (tier, name, path) in binaries {
            link(&path, &folder.join(in_machine(&name)))?;
            digests.insert(name.clone(), record::digest(&path)?);
            match tier {
                Tier::Nodes => on_nodes.push((name, path)),
                _ => tests.push(name),
            }
        }
        let mut make = cmd::command("mke2fs");
        make.args(["-q", "-t", "ext4", "-O", "^has_journal", "-Elazy_itable_init=1,root_owner=0:0", "-d"]);
        cmd::output(make.arg(&folder).arg(&image).arg("2G"))?;
        fs::remove_dir_all(&folder).context("removing the folder of the programs")?;
        built.sort();
        Ok(Self { image, tests, on_nodes, programs: built.join("\n"), digests })
    }

    /// The test binary as it was built.
    pub(crate) fn digest_of(&self, test: &str) -> &str {
        self.digests.get(test).map_or("", String::as_str)
    }

    /// By these variables the harness finds the programs there.
    pub(crate) fn vars() -> [(&'static str, String); 2] {
        [("STEER_BIN", format!("{PAYLOAD}/steer")), ("STEER_TESTS_BIN_DIR", PAYLOAD.to_owned())]
    }
}

/// A test binary's name there: tests and programs may have the same one.
pub(crate) fn in_machine(test: &str) -> String {
    format!("test-{test}")
}

fn link(from: &Path, to: &Path) -> Result<()> {
    let linked = fs::hard_link(from, to).or_else(|_| fs::copy(from, to).map(drop));
    linked.with_context(|| cmd::redact(&format!("packing {}", from.display())))
}
