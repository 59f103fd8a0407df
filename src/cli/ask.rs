//! What commands that ask the process of a mount have in common: finding it, and telling how far it is.

use crate::cli::value;
use crate::cli::values::{count_shown, human_bytes};
use crate::daemon::{AskError, Last, locate};
use serde_json::{Value, json};
use std::io::{IsTerminal, Write};
use std::path::Path;

/// A line of progress on the standard output, if that is a terminal and `DISPLAY_PROGRESSBAR` is not `false`.
pub struct Line {
    what: &'static str,
    is_shown: bool,
    is_drawn: bool,
}

impl Line {
    /// For a command of this name.
    pub fn new(what: &'static str) -> Line {
        let wanted = std::env::var_os("DISPLAY_PROGRESSBAR").is_none_or(|value| value != "false");
        Line { what, is_shown: wanted && std::io::stdout().is_terminal(), is_drawn: false }
    }

    /// So many things and bytes are done.
    pub fn show(&mut self, count: u64, bytes: u64) {
        if self.is_shown {
            let bytes = if bytes > 0 { format!(", {}", human_bytes(bytes)) } else { String::new() };
            draw(&format!("\r\x1b[K{}: {}{bytes}", self.what, count_shown(count)));
            self.is_drawn = true;
        }
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        if self.is_drawn {
            draw("\r\x1b[K");
        }
    }
}

fn draw(text: &str) {
    let mut out = std::io::stdout();
    // Nobody looks, if nobody can.
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Most things done at once, as scripts know it.
pub const THREADS_MAX: usize = 255;

/// The option `--threads`.
pub fn threads(text: Option<&String>, default: usize) -> anyhow::Result<usize> {
    value("threads", text, default, |text| match text.parse() {
        Ok(n) if (1..=THREADS_MAX).contains(&n) => Ok(n),
        _ => Err(format!("a number from 1 to {THREADS_MAX} is wanted")),
    })
}

/// Asks the mount a path is in about it: `request` gets the path.
pub fn about(path: &str, last: Last, mut request: Value, line: &mut Line) -> Result<Value, AskError> {
    let inside = locate(Path::new(path), last)?;
    request["Path"] = json!(inside.path);
    inside.connect()?.ask(&request, &mut |count, bytes| line.show(count, bytes))
}
