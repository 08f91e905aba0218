//! Whether steer is off this machine: while the mesh is measured alone, nothing of steer's may be attached.

use std::fs;
use std::path::Path;

use aya::programs::loaded_programs;
use steer::dataplane::load;

use crate::poll::{self, Stop};

/// Where agents of any instance pin.
const PINS: &str = "/sys/fs/bpf";
/// What the kernel keeps of a program's name.
const NAME: usize = 15;

/// Waits until nothing of steer's is left: the kernel lets go of a program a while after it was detached.
pub(crate) fn wait() -> Result<(), Stop> {
    poll::until("nothing of steer's is attached", || match traces()? {
        traces if traces.is_empty() => Ok(()),
        traces => Err(format!("{traces:?}")),
    })
}

/// Pins and programs, of any instance and any network namespace. What is not in the kernel is attached to nothing.
pub(crate) fn traces() -> Result<Vec<String>, String> {
    let mut traces = pins(Path::new(PINS));
    for program in loaded_programs() {
        let program = program.map_err(|err| format!("cannot ask for the kernel's programs: {err}"))?;
        traces.extend(ours(program.name()).map(str::to_owned));
    }
    Ok(traces)
}

/// The program of steer's that the kernel knows by this name.
fn ours(name: &[u8]) -> Option<&'static str> {
    load::program_names().find(|ours| ours.as_bytes()[..ours.len().min(NAME)] == *name)
}

/// `<instance>/v3` and `<instance>/sockets-v1`, whatever the versions.
fn pins(bpffs: &Path) -> Vec<String> {
    let names = |dir: &Path| {
        let entries = fs::read_dir(dir).into_iter().flatten().flatten();
        entries.filter_map(|entry| entry.file_name().into_string().ok()).collect::<Vec<_>>()
    };
    let is_version = |name: &str| {
        let version = name.strip_prefix("sockets-").unwrap_or(name).strip_prefix('v');
        version.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let of = |instance: String| {
        let versions = names(&bpffs.join(&instance)).into_iter().filter(|name| is_version(name));
        versions.map(|version| format!("{instance}/{version}")).collect::<Vec<_>>()
    };
    names(bpffs).into_iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use tempfile::TempDir;

    use super::*;

    #[test]
    fn a_program_is_known_by_as_much_of_its_name_as_the_kernel_keeps() {
        for name in load::program_names() {
            assert_eq!(ours(&name.as_bytes()[..name.len().min(NAME)]), Some(name));
        }
        for other in ["", "uplink", "sd_fw_egress", "uplink_tc_of_another"] {
            assert_eq!(ours(other.as_bytes()), None, "{other}");
        }
    }

    #[test]
    fn pins_of_every_instance_and_version_are_found_and_nobody_elses() {
        let dir = TempDir::new().unwrap();
        let bpffs = dir.path().to_owned();
        for dir in ["steer/v3/links", "st-1/sockets-v1/maps", "steer/vault", "other/maps", "v3"] {
            fs::create_dir_all(bpffs.join(dir)).unwrap();
        }
        let mut found = pins(&bpffs);
        found.sort();
        dir.close().unwrap();
        assert_eq!(found, ["st-1/sockets-v1", "steer/v3"]);
        assert!(pins(&bpffs).is_empty());
    }
}
