//! Showing the board: a page that is painted over on a terminal, a line per step and per second elsewhere.

use std::io::{self, Write};
use std::time::{Duration, Instant};

use terminal_size::{Height, Width, terminal_size};

use crate::board::Board;
use crate::view::{self, Line, Tone};

const FRAME: Duration = Duration::from_millis(200);
const BEAT: Duration = Duration::from_secs(1);

/// Shows the board until it is closed.
pub(crate) fn show(board: &Board, is_terminal: bool) {
    if is_terminal { paint(board) } else { log(board) }
}

fn paint(board: &Board) {
    let colour = std::env::var_os("NO_COLOR").is_none();
    let (mut above, mut doing) = (0, String::new());
    write("\x1b[?25l");
    loop {
        let goes_on = board.turn(FRAME, &doing);
        let lines;
        (lines, doing) = board.read(|state| (view::page(state), state.doing.clone()));
        write(&frame(&lines, above, size(), colour));
        above = lines.len().min(size().1);
        if !goes_on {
            break;
        }
    }
    write("\x1b[?25h");
}

/// Columns and lines that may be used: one that wraps or scrolls away cannot be painted over.
fn size() -> (usize, usize) {
    let (Width(width), Height(height)) = terminal_size().unwrap_or((Width(80), Height(24)));
    (usize::from(width).saturating_sub(1).max(1), usize::from(height).saturating_sub(1).max(1))
}

/// What paints `lines` over the `above` lines of the frame before.
fn frame(lines: &[Line], above: usize, (width, height): (usize, usize), colour: bool) -> String {
    let mut out = if above > 0 { format!("\x1b[{above}A") } else { String::new() };
    for (tone, line) in &lines[lines.len().saturating_sub(height)..] {
        let line: String = line.chars().take(width).collect();
        let (on, off) = if colour && *tone != Tone::Plain { (code(*tone), "\x1b[0m") } else { ("", "") };
        out.extend(["\r\x1b[K", on, &line, off, "\n"]);
    }
    // The page before may have been longer.
    out + "\x1b[J"
}

fn code(tone: Tone) -> &'static str {
    match tone {
        Tone::Plain => "",
        Tone::Strong => "\x1b[1m",
        Tone::Good => "\x1b[32m",
        Tone::Changing => "\x1b[33m",
        Tone::Bad => "\x1b[31m",
        Tone::Faint => "\x1b[2m",
    }
}

fn log(board: &Board) {
    let mut said = String::new();
    let mut titled = false;
    let mut beat = Instant::now();
    loop {
        let goes_on = board.turn(BEAT.saturating_sub(beat.elapsed()), &said);
        let (title, step, doing) = board.read(|state| (state.title.clone(), state.step, state.doing.clone()));
        if !titled && !title.is_empty() {
            write(&format!("demo: {title}\n"));
            titled = true;
        }
        if doing != said {
            if step > 0 {
                write(&format!("== step {step}: {doing}\n"));
            }
            said = doing;
        }
        if !goes_on {
            return;
        }
        if beat.elapsed() < BEAT {
            continue;
        }
        beat = Instant::now();
        if board.read(|state| state.long.is_some()) {
            write(&format!("{}\n", board.read(view::beat)));
        }
    }
}

/// A reader that is gone is no reason to stop: the run still has to clean up.
fn write(text: &str) {
    let mut out = io::stdout().lock();
    drop(out.write_all(text.as_bytes()).and_then(|()| out.flush()));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_is_painted_over_the_one_before_and_never_wraps() {
        let lines = [(Tone::Plain, "abcdef".to_owned()), (Tone::Bad, "g".to_owned())];
        assert_eq!(frame(&lines, 3, (4, 9), false), "\x1b[3A\r\x1b[Kabcd\n\r\x1b[Kg\n\x1b[J");
        assert_eq!(frame(&lines, 0, (4, 1), true), "\r\x1b[K\x1b[31mg\x1b[0m\n\x1b[J");
    }
}
