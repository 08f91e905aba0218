//! What has run in a system, kept in a file: a run that ended early can be resumed.

use std::{
    fs, io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};

use super::matrix::Binary;
use crate::cmd;

/// In the folder of the system's logs.
const FILE: &str = "ran.json";

/// The results of one system, of one build.
pub(crate) struct Record {
    path: PathBuf,
    kept: Kept,
}

#[derive(Default, Serialize, Deserialize)]
struct Kept {
    /// All that every result depends on, in words.
    build: String,
    /// Kernel and packages.
    about: String,
    ran: Vec<Entry>,
    /// What was not good beside tests: of no test binary alone, so that it stays for as long as results of this build are taken.
    problems: Vec<String>,
}

#[derive(Serialize, Deserialize)]
struct Entry {
    /// All that this result depends on beside the build, in words.
    of: String,
    binary: Binary,
}

impl Record {
    /// Without a result.
    pub(crate) fn new(logs: &Path, build: String) -> Self {
        Self { path: logs.join(FILE), kept: Kept { build, ..Kept::default() } }
    }

    /// With the results of this build that are in the folder.
    pub(crate) fn open(logs: &Path, build: String) -> Result<Self> {
        let mut record = Self::new(logs, build);
        let shown = super::shown(&record.path);
        match fs::read(&record.path) {
            Ok(bytes) => match serde_json::from_slice::<Kept>(&bytes) {
                Ok(kept) if kept.build == record.kept.build => record.kept = kept,
                Ok(_) => println!("  {shown} is of another build: everything runs anew"),
                Err(error) => println!("  {shown} is not understood ({error}): everything runs anew"),
            },
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("reading {shown}")),
        }
        Ok(record)
    }

    /// The good result of just this.
    pub(crate) fn good(&self, of: &str) -> Option<&Binary> {
        let good = |entry: &&Entry| entry.of == of && entry.binary.is_good();
        self.kept.ran.iter().find(good).map(|entry| &entry.binary)
    }

    pub(crate) fn about(&self) -> &str {
        &self.kept.about
    }

    pub(crate) fn problems(&self) -> &[String] {
        &self.kept.problems
    }

    /// Keeps a result, in the place of an earlier one of the same.
    pub(crate) fn keep(&mut self, about: &str, of: &str, binary: &Binary) -> Result<()> {
        let Kept { about: known, ran, .. } = &mut self.kept;
        about.clone_into(known);
        ran.retain(|entry| entry.of != of);
        ran.push(Entry { of: of.to_owned(), binary: binary.clone() });
        self.write()
    }

    /// Keeps what was not good beside tests.
    pub(crate) fn keep_problem(&mut self, problem: String) -> Result<()> {
        self.kept.problems.push(problem);
        self.write()
    }

    /// In one step: however this program ends, a whole file is there.
    fn write(&self) -> Result<()> {
        let Self { path, kept } = self;
        let json = serde_json::to_vec(kept).context("putting results into words")?;
        let partial = path.with_extension("partial");
        let written = fs::write(&partial, json).and_then(|()| fs::rename(&partial, path));
        written.with_context(|| format!("writing {}", super::shown(path)))
    }
}

/// What tells a file from another of its name: its content, so that what is built anew from the same sources is the same.
pub(crate) fn digest(path: &Path) -> Result<String> {
    let line = cmd::output(cmd::command("sha256sum").arg("--binary").arg(path))?;
    let digest = line.split_whitespace().next();
    digest.map(str::to_owned).with_context(|| cmd::redact(&format!("sha256sum said nothing of {}", path.display())))
}

/// The same of a file that is too large to be read each time, and is never written again: when it was written, and its size.
pub(crate) fn stamp(path: &Path) -> Result<String> {
    let meta = fs::metadata(path).with_context(|| cmd::redact(&format!("looking at {}", path.display())))?;
    Ok(format!("{}.{:09} {}", meta.mtime(), meta.mtime_nsec(), meta.len()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{
        super::{matrix::Exit, results::Verdict},
        *,
    };

    fn binary(name: &str, verdict: Verdict, exit: Exit) -> Binary {
        Binary {
            name: name.into(),
            tests: vec![("a".into(), verdict)],
            verified: vec![("uplink_xdp".into(), 46_492)],
            took: Duration::from_secs(3),
            exit,
        }
    }

    fn open(dir: &tempfile::TempDir, build: &str) -> Record {
        Record::open(dir.path(), build.into()).unwrap()
    }

    #[test]
    fn what_was_good_need_not_run_again_and_only_that() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = open(&dir, "a build");
        for (name, verdict, exit, good) in [
            ("packet", Verdict::Passed, Exit::Code(0), true),
            ("firewall", Verdict::Skipped, Exit::Code(0), true),
            ("drain", Verdict::Failed, Exit::Code(101), false),
            ("swarm", Verdict::Unfinished, Exit::TimedOut, false),
            ("detach", Verdict::Passed, Exit::Signal, false),
        ] {
            record.keep("Linux 6.12", name, &binary(name, verdict, exit)).unwrap();
            let read = open(&dir, "a build");
            assert_eq!(read.good(name), good.then(|| binary(name, verdict, exit)).as_ref(), "{name}");
            assert_eq!(read.about(), "Linux 6.12");
        }
        assert!(open(&dir, "a build").good("packet").is_some(), "earlier ones stay");
        let again = binary("packet", Verdict::Failed, Exit::Code(101));
        record.keep("Linux 6.12", "packet", &again).unwrap();
        assert_eq!(open(&dir, "a build").good("packet"), None, "the last one counts");
    }

    #[test]
    fn what_is_of_another_build_is_no_result() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = open(&dir, "the first");
        record.keep("Linux 6.12", "packet", &binary("packet", Verdict::Passed, Exit::Code(0))).unwrap();
        record.keep_problem("BUG: one".into()).unwrap();
        let other = open(&dir, "the second");
        assert_eq!((other.good("packet"), other.about(), other.problems()), (None, "", [].as_slice()));
        assert_eq!(open(&dir, "the first").problems(), ["BUG: one"]);
    }

    #[test]
    fn what_was_not_good_beside_tests_is_told_again() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = open(&dir, "a build");
        for line in ["BUG: one", "BUG: two"] {
            record.keep_problem(line.to_owned()).unwrap();
        }
        record.keep("", "packet", &binary("packet", Verdict::Passed, Exit::Code(0))).unwrap();
        assert_eq!(open(&dir, "a build").problems(), ["BUG: one", "BUG: two"]);
    }

    #[test]
    fn a_file_is_told_by_its_content_and_not_by_when_it_was_written() {
        let dir = tempfile::tempdir().unwrap();
        let file = |name: &str, text: &str| {
            let path = dir.path().join(name);
            fs::write(&path, text).unwrap();
            digest(&path).unwrap()
        };
        let one = file("one", "abc");
        assert_eq!(one, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
        assert_eq!(file("one again", "abc"), one);
        assert_ne!(file("another", "abd"), one);
        assert!(digest(&dir.path().join("none")).is_err());
    }

    #[test]
    fn a_file_that_is_not_understood_is_no_result() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(FILE), "of another version").unwrap();
        assert!(open(&dir, "a build").about().is_empty());
    }
}
