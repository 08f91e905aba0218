//! In a worker's machine of `cargo xtask vm`: does what the tests in the manager's machine ask, until the machine ends.

use std::process::ExitCode;

fn main() -> ExitCode {
    let Some(Ok(number)) = std::env::args().nth(1).map(|word| word.parse()) else {
        eprintln!("usage: node NUMBER");
        return ExitCode::from(2);
    };
    match steer_tests::nodes::serve(number) {
        Ok(()) => ExitCode::SUCCESS,
        Err(err) => {
            eprintln!("node: {err}");
            ExitCode::FAILURE
        }
    }
}
