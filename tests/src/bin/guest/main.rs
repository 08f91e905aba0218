//! The first process of a test machine (`cargo xtask vm`): runs what it is told over a serial port, one process at a time.
//!
//! It is process 1, so every process whose parent ended is its child, and `kill(-1)` ends everything else: whatever a
//! test leaves behind goes before the next one comes. The machine itself is thrown away; nothing here shuts it down.

#[path = "../../../../xtask/src/vm/protocol.rs"]
mod protocol;

mod boot;
mod process;

use std::fs::File;
use std::io::{BufRead, BufReader, Write};
use std::sync::Mutex;

use protocol::{Report, Request};

fn main() {
    let ready = boot::boot();
    if boot::wants_shell() {
        boot::shell(&ready);
    }
    if let Err(error) = serve(ready) {
        eprintln!("guest: {error}");
    }
    boot::power_off();
}

/// Answers requests until the line is closed.
fn serve(ready: protocol::Ready) -> std::io::Result<()> {
    let port = boot::port()?;
    let line = Line(Mutex::new(port.try_clone()?));
    line.send(&Report::Ready(ready));
    for request in BufReader::new(port).lines() {
        match serde_json::from_str(&request?) {
            Ok(Request::Run(run)) => match process::run(&run, &line) {
                Ok(ended) => line.send(&Report::Ended(ended)),
                Err(error) => line.send(&Report::Refused(format!("{}: {error}", run.program))),
            },
            Err(error) => line.send(&Report::Refused(format!("not a request: {error}"))),
        }
    }
    Ok(())
}

/// The way out, from any thread.
struct Line(Mutex<File>);

impl Line {
    fn send(&self, report: &Report) {
        let Ok(text) = protocol::line(report) else { return };
        if let Ok(mut port) = self.0.lock()
            && let Err(error) = port.write_all(text.as_bytes())
        {
            eprintln!("guest: writing to the port: {error}");
        }
    }
}
