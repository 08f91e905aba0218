//! Running one process to its end, or to the end of its time.

use std::io::{PipeReader, Read};
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use super::Line;
use super::protocol::{Ended, PAYLOAD, Report, Run};

const LOOK: Duration = Duration::from_millis(20);

pub(super) fn run(run: &Run, line: &Line) -> std::io::Result<Ended> {
    let Run { program, args, env, limit_seconds } = run;
    let own = Path::new(PAYLOAD).join(program);
    let (from, to) = std::io::pipe()?;
    let mut command = Command::new(if own.is_file() { own.as_os_str() } else { program.as_ref() });
    command.args(args).envs(env.iter().map(|(name, value)| (name, value)));
    command.current_dir(PAYLOAD).stdin(Stdio::null()).stdout(to.try_clone()?).stderr(to);
    let began = Instant::now();
    let child = command.spawn()?;
    // Its ends of the pipe.
    drop(command);

    let pid = Pid::from_raw(child.id() as i32);
    let limit = Duration::from_secs(*limit_seconds);
    let ended = thread::scope(|scope| {
        scope.spawn(|| copy(from, line));
        let mut ended = None;
        while ended.is_none() && began.elapsed() < limit {
            ended = reap(pid);
            if ended.is_none() {
                thread::sleep(LOOK);
            }
        }
        let millis = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        end_everything();
        // The copying ends now: nobody holds the other end of the pipe.
        Ended { code: ended.flatten(), timed_out: ended.is_none(), millis }
    });
    Ok(ended)
}

fn copy(mut from: PipeReader, line: &Line) {
    let mut chunk = [0; 16 * 1024];
    while let Ok(length @ 1..) = from.read(&mut chunk) {
        line.send(&Report::Output(String::from_utf8_lossy(&chunk[..length]).into_owned()));
    }
}

/// Takes every process that has ended; if `pid` is among them, its exit code, or `None` for a signal.
fn reap(pid: Pid) -> Option<Option<i32>> {
    loop {
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::Exited(ended, code)) if ended == pid => return Some(Some(code)),
            Ok(WaitStatus::Signaled(ended, ..)) if ended == pid => return Some(None),
            Ok(WaitStatus::StillAlive) | Err(_) => return None,
            Ok(_) => {}
        }
    }
}

/// Every process but this one.
pub(super) fn end_everything() {
    let all = Pid::from_raw(-1);
    loop {
        // Again and again: one that is being forked is not hit.
        let _ = kill(all, Signal::SIGKILL);
        match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
            Err(Errno::ECHILD) => return,
            Ok(WaitStatus::StillAlive) => thread::sleep(LOOK),
            _ => {}
        }
    }
}
