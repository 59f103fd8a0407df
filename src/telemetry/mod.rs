//! Log lines: their form, where they go, and which are written.

pub mod metrics;
pub mod progress;

use crate::env::{Clock, SystemClock};
use crate::types::Time;
use std::fmt;
use std::fs::File;
use std::io::{IsTerminal, Write};
use std::sync::{Mutex, OnceLock, PoisonError};
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::fmt::MakeWriter;
use tracing_subscriber::fmt::format::Writer;
use tracing_subscriber::fmt::{FmtContext, FormatEvent, FormatFields};
use tracing_subscriber::registry::LookupSpan;

/// What stands for this program in its lines.
static NAME: OnceLock<&str> = OnceLock::new();

/// Sets the name in front of every line. The first call wins.
pub fn called(name: &'static str) {
    // A second one would say the same.
    let _ = NAME.set(name);
}

fn program() -> &'static str {
    NAME.get().copied().unwrap_or("pando")
}

/// Environment variable with a filter in the syntax of `tracing`; wins over every flag.
pub const FILTER_VARIABLE: &str = "PANDO_LOG";

/// What the log looks like.
#[derive(Clone, Debug)]
pub struct LogConfig {
    /// Least important level written.
    pub level: Level,
    /// Stands in front of every line, in brackets.
    pub id: Option<String>,
    /// Whether levels may be coloured; they are if standard error is a terminal.
    pub color: bool,
}

/// Sends the log to standard error (the log file of a background process). The first call wins, later ones do nothing.
pub fn init(config: &LogConfig) {
    // Other crates' debugging is of no use to who runs a mount: the level asked for is ours, theirs stays at warnings.
    let filter = match std::env::var(FILTER_VARIABLE) {
        Ok(text) if !text.is_empty() => EnvFilter::new(text),
        _ => EnvFilter::new(format!("warn,pando={}", config.level.as_str().to_lowercase())),
    };
    let lines = Lines { id: config.id.clone(), color: config.color && std::io::stderr().is_terminal() };
    let subscriber = tracing_subscriber::fmt().with_env_filter(filter).with_writer(Output).event_format(lines).finish();
    // Only a second initialisation fails, and the first is as good.
    let _ = tracing::subscriber::set_global_default(subscriber);
}

/// Who started a background process and waits for it: sees its warnings and errors until then.
static WITNESS: Mutex<Option<File>> = Mutex::new(None);

/// Lets this file have a copy of warnings and errors from now on, or nobody any more.
pub fn witness(file: Option<File>) {
    *WITNESS.lock().unwrap_or_else(PoisonError::into_inner) = file;
}

/// Standard error, and the witness for what concerns it.
struct Output;

struct Lined {
    is_witnessed: bool,
}

impl<'a> MakeWriter<'a> for Output {
    type Writer = Lined;

    fn make_writer(&'a self) -> Lined {
        Lined { is_witnessed: false }
    }

    fn make_writer_for(&'a self, about: &Metadata<'_>) -> Lined {
        Lined { is_witnessed: *about.level() <= Level::WARN }
    }
}

impl Write for Lined {
    fn write(&mut self, line: &[u8]) -> std::io::Result<usize> {
        if self.is_witnessed
            && let Some(file) = WITNESS.lock().unwrap_or_else(PoisonError::into_inner).as_mut()
        {
            // A terminal that is gone has nobody before it.
            let _ = file.write_all(line);
        }
        std::io::stderr().write_all(line)?;
        Ok(line.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// Writes the line a failing command ends with, in the form of the log. It is written whatever the level.
pub fn fatal(message: &str) {
    line("FATAL", message);
}

/// Writes one line in the form of the log, for a process that has not started one.
pub fn line(level: &str, message: &str) {
    // Nothing is left to do if nobody can read it.
    let _ =
        writeln!(std::io::stderr(), "{} {}[{}] <{level}>: {message}", local_time(SystemClock::new().now()), program(), std::process::id());
}

/// `YYYY/MM/DD HH:MM:SS.uuuuuu pando[PID] <LEVEL>: message key=value…`, in local time.
struct Lines {
    id: Option<String>,
    color: bool,
}

impl<S, N> FormatEvent<S, N> for Lines
where
    S: Subscriber + for<'a> LookupSpan<'a>,
    N: for<'a> FormatFields<'a> + 'static,
{
    fn format_event(&self, _: &FmtContext<'_, S, N>, mut writer: Writer<'_>, event: &Event<'_>) -> fmt::Result {
        let mut fields = Fields::default();
        event.record(&mut fields);
        if let Some(id) = &self.id {
            write!(writer, "[{id}] ")?;
        }
        let (name, color) = match *event.metadata().level() {
            Level::ERROR => ("ERROR", 31),
            Level::WARN => ("WARNING", 33),
            Level::INFO => ("INFO", 34),
            Level::DEBUG => ("DEBUG", 37),
            Level::TRACE => ("TRACE", 37),
        };
        write!(writer, "{} {}[{}] ", local_time(SystemClock::new().now()), program(), std::process::id())?;
        if self.color {
            write!(writer, "<\x1b[1;{color}m{name}\x1b[0m>: ")?;
        } else {
            write!(writer, "<{name}>: ")?;
        }
        writeln!(writer, "{}{}", fields.message, fields.others)
    }
}

#[derive(Default)]
struct Fields {
    message: String,
    others: String,
}

impl Visit for Fields {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        let written = match field.name() {
            "message" => write!(self.message, "{value:?}"),
            name => write!(self.others, " {name}={value:?}"),
        };
        written.expect("writing to a string never fails");
    }
}

fn local_time(now: Time) -> String {
    let seconds: libc::time_t = now.sec;
    // SAFETY: `tm` is plain old data, for which all zeros are a valid value.
    let mut tm: libc::tm = unsafe { std::mem::zeroed() };
    // SAFETY: both pointers are to live locals; localtime_r keeps neither.
    unsafe { libc::localtime_r(&seconds, &mut tm) };
    let micros = now.nsec / 1000;
    format!(
        "{:04}/{:02}/{:02} {:02}:{:02}:{:02}.{micros:06}",
        tm.tm_year + 1900,
        tm.tm_mon + 1,
        tm.tm_mday,
        tm.tm_hour,
        tm.tm_min,
        tm.tm_sec
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_the_shape_scripts_cut() {
        let text = local_time(Time { sec: 1_700_000_000, nsec: 42_000 });
        assert_eq!(text.len(), "2023/11/14 22:13:20.000042".len());
        assert!(text.starts_with("2023/11/1") && text.ends_with(".000042"), "{text}");
    }
}
