//! What a long command shows of its progress: on a terminal a line with a bar, drawn again and again; otherwise a line of the log now and
//! then. The result of a command is printed when it has ended, after the line is gone.

use crate::cli::values::{count_shown, human_bytes};
use crate::env::instant;
use crate::telemetry::progress::{self, Stage};
use std::io::{IsTerminal, Write};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use tracing::{info, warn};

/// Between two drawings: fluent enough, and no load.
const DRAWN_EVERY: Duration = Duration::from_millis(200);
/// Between two lines of the log: six a minute tell that it goes on, and do not flood what collects them.
const LOGGED_EVERY: Duration = Duration::from_secs(10);
/// Width of the bar in characters.
const BAR: usize = 24;

/// Shows progress until it is dropped.
pub struct Watch {
    end: Option<Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Watch {
    /// For a command of this name. `quiet`: nothing is drawn and nothing logged, for output that programs read.
    pub fn start(command: &'static str, quiet: bool) -> Watch {
        progress::stage("", 0);
        let off = || Watch { end: None, thread: None };
        if quiet {
            return off();
        }
        let wanted = std::env::var_os("DISPLAY_PROGRESSBAR").is_none_or(|value| value != "false");
        let drawn = wanted && std::io::stdout().is_terminal();
        let (end, ended) = channel();
        let named = std::thread::Builder::new().name("progress".into());
        match named.spawn(move || if drawn { draw(command, &ended) } else { log(command, &ended) }) {
            Ok(thread) => Watch { end: Some(end), thread: Some(thread) },
            Err(error) => {
                warn!("cannot start a thread, so that progress is not shown: {error}");
                off()
            }
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        drop(self.end.take());
        if let Some(thread) = self.thread.take() {
            // It only prints.
            let _ = thread.join();
        }
    }
}

/// Since when a stage goes on.
struct Since {
    what: &'static str,
    began: Instant,
}

impl Since {
    fn now() -> Since {
        Since { what: "", began: instant() }
    }

    /// How long the stage has gone on; a stage that was not seen before begins now.
    fn elapsed(&mut self, stage: &Stage) -> Duration {
        if self.what != stage.what {
            *self = Since { what: stage.what, began: instant() };
        }
        self.began.elapsed()
    }
}

/// Waits; whether it has ended.
fn pause(ended: &Receiver<()>, time: Duration) -> bool {
    !matches!(ended.recv_timeout(time), Err(RecvTimeoutError::Timeout))
}

fn draw(command: &str, ended: &Receiver<()>) {
    let (mut since, mut is_drawn) = (Since::now(), false);
    let put = |text: &str| {
        let mut out = std::io::stdout();
        // Nobody looks, if nobody can.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    };
    while !pause(ended, DRAWN_EVERY) {
        let stage = progress::now();
        if !stage.what.is_empty() {
            put(&format!("\r\x1b[K{command} {}", line(&stage, since.elapsed(&stage), true)));
            is_drawn = true;
        }
    }
    if is_drawn {
        put("\r\x1b[K");
    }
}

fn log(command: &str, ended: &Receiver<()>) {
    let mut since = Since::now();
    // Looked at more often than told, so that the rate of a stage is that since its beginning.
    let mut waits = 0;
    while !pause(ended, DRAWN_EVERY) {
        let stage = progress::now();
        let elapsed = since.elapsed(&stage);
        waits += 1;
        if DRAWN_EVERY * waits >= LOGGED_EVERY && !stage.what.is_empty() {
            info!("{command} {}", line(&stage, elapsed, false));
            waits = 0;
        }
    }
}

/// `objects: [====>    ] 1,200 of 5,000, 1.2 MiB, 400/s, 9s left`. What is beyond an estimate has no remaining time.
fn line(stage: &Stage, elapsed: Duration, bar: bool) -> String {
    let Stage { what, count, bytes, total } = *stage;
    let mut text = format!("{what}: ");
    let known = total > 0 && count <= total;
    if known && bar {
        let done = (count as f64 / total as f64 * BAR as f64) as usize;
        let head = if done < BAR { ">" } else { "" };
        text += &format!("[{}{head}{}] ", "=".repeat(done), " ".repeat(BAR.saturating_sub(done + 1)));
    }
    text += &count_shown(count);
    if known {
        text += &format!(" of {}", count_shown(total));
    }
    if bytes > 0 {
        text += &format!(", {}", human_bytes(bytes));
    }
    let seconds = elapsed.as_secs_f64();
    if seconds >= 1.0 && count > 0 {
        let rate = count as f64 / seconds;
        text += &format!(", {}/s", count_shown(rate as u64));
        if known && count < total {
            text += &format!(", {} left", time_shown(((total - count) as f64 / rate) as u64));
        }
    }
    text
}

/// `9s`, `1m05s`, `2h03m`.
fn time_shown(seconds: u64) -> String {
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => format!("{}m{:02}s", seconds / 60, seconds % 60),
        _ => format!("{}h{:02}m", seconds / 3600, seconds / 60 % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_tells_rate_and_time() {
        let stage = |count, bytes, total| Stage { what: "objects", count, bytes, total };
        let table = [
            (stage(0, 0, 0), 0, "objects: 0"),
            (stage(1200, 0, 0), 3, "objects: 1,200, 400/s"),
            (stage(1200, 2048, 5000), 3, "objects: 1,200 of 5,000, 2.0 KiB, 400/s, 9s left"),
            (stage(100, 0, 100_000), 10, "objects: 100 of 100,000, 10/s, 2h46m left"),
            (stage(5000, 0, 5000), 10, "objects: 5,000 of 5,000, 500/s"),
            (stage(6000, 0, 5000), 10, "objects: 6,000, 600/s"),
        ];
        for (stage, seconds, text) in table {
            assert_eq!(line(&stage, Duration::from_secs(seconds), false), text);
        }
        assert_eq!(line(&stage(1, 0, 2), Duration::ZERO, true), format!("objects: [{}>{}] 1 of 2", "=".repeat(12), " ".repeat(11)));
        assert_eq!(line(&stage(2, 0, 2), Duration::ZERO, true), format!("objects: [{}] 2 of 2", "=".repeat(24)));
        assert_eq!([time_shown(65), time_shown(7380)], ["1m05s", "2h03m"]);
    }
}
