//! What one packet costs in the programs, by the program `packet-cost` (`BPF_PROG_TEST_RUN`).

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// The report of `packet-cost`, or why there is none.
pub(crate) fn measure() -> Result<serde_json::Value, String> {
    let dir = std::env::var_os("STEER_TESTS_BIN_DIR").map(PathBuf::from).unwrap_or_default();
    let program = dir.join("packet-cost");
    if !program.is_file() {
        return Err("packet-cost is not built".to_owned());
    }
    let output = Command::new(program).stdin(Stdio::null()).stderr(Stdio::piped()).output();
    let output = output.map_err(|err| format!("start packet-cost: {err}"))?;
    if !output.status.success() {
        let complaint = String::from_utf8_lossy(&output.stderr);
        return Err(format!("packet-cost: {}: {}", output.status, complaint.trim().lines().last().unwrap_or_default()));
    }
    serde_json::from_slice(&output.stdout).map_err(|err| format!("the report of packet-cost: {err}"))
}
