//! The command line: arguments, output, exit codes. One file per command.

mod accepted;
mod args;
mod ask;
mod bench;
mod cache;
mod clone;
mod compact;
mod config;
mod counted;
mod debug;
mod destroy;
mod dump;
mod format;
mod fsck;
mod gc;
mod helper;
mod info;
mod journal;
mod load;
mod mount;
mod profile;
mod program;
mod progress;
mod quota;
mod restore;
mod restore_meta;
mod rmr;
mod stats;
mod status;
mod summary;
mod title;
mod transfer;
mod umount;
mod undelete;
mod values;
mod warmup;
mod zip;

use crate::telemetry::{self, LogConfig};
use crate::volume::{CLIENT_LEVEL, MetaUrl};
use anyhow::{Context, anyhow};
use args::{Normal, Stop};
use clap::{ArgAction, CommandFactory, Parser, Subcommand};
use program::Program;
use std::io::Write;
use std::process::ExitCode;
use std::sync::OnceLock;
use tracing::{Level, warn};

/// Exit code for a command that does not exist; scripts tell old versions by it.
const NO_COMMAND: u8 = 3;

/// One POSIX tree for a fleet of agents.
#[derive(Debug, Parser)]
#[command(name = "pando", disable_help_subcommand = true, disable_version_flag = true, infer_long_args = false, args_override_self = true)]
struct Cli {
    #[command(flatten)]
    log: LogArgs,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, clap::Args)]
#[command(next_help_heading = "Log")]
struct LogArgs {
    /// Write DEBUG lines too.
    #[arg(long, short, alias = "debug", global = true, action = ArgAction::SetTrue)]
    verbose: bool,
    /// Write only warnings and errors.
    #[arg(long, short, global = true, action = ArgAction::SetTrue)]
    quiet: bool,
    /// Write everything.
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    trace: bool,
    /// Level of the log: trace, debug, info, warn, error; wins over the three above.
    #[arg(long, global = true, hide = true)]
    log_level: Option<String>,
    /// Every line of the log begins with this; `random` makes a fresh one.
    #[arg(long, global = true, value_name = "ID")]
    log_id: Option<String>,
    /// No colours.
    #[arg(long, global = true, action = ArgAction::SetTrue)]
    no_color: bool,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Mount a volume; a directory that is missing or empty becomes a new one.
    Mount(Box<mount::Args>),
    /// Unmount and wait until all data is written.
    Umount(umount::Args),
    /// Make a volume, or change the setting of one.
    Format(Box<format::Args>),
    /// Show or change the setting of a volume.
    Config(Box<config::Args>),
    /// Show the setting, the sessions and the usage of a volume as JSON.
    Status(status::Args),
    /// Show inode, usage, path and blocks of files.
    Info(info::Args),
    /// Show how much is below a directory.
    Summary(summary::Args),
    /// Remove trees fast.
    Rmr(rmr::Args),
    /// Copy a file or a tree without its data.
    Clone(clone::Args),
    /// Merge the many small slices of files.
    Compact(compact::Args),
    /// Bring files into the cache.
    Warmup(warmup::Args),
    /// Measure how fast files are written and read in a directory.
    Bench(bench::Args),
    /// Show what a mount does, a line each second.
    Stats(stats::Args),
    /// Show which requests of a mount take the time.
    Profile(profile::Args),
    /// Collect what is needed to find out what is wrong with a mount.
    Debug(debug::Args),
    /// Limit what directories, users and groups may use.
    Quota(quota::Args),
    /// Bring deleted files back from the trash, by the path they had.
    Undelete(undelete::Args),
    /// Restore everything that was deleted in an hour.
    Restore(restore::Args),
    /// Check that a volume is consistent and complete; mend directories with `--path` and `--repair`.
    Fsck(fsck::Args),
    /// Find, or delete, objects that nothing names and what waits for deletion; compact chunks.
    Gc(gc::Args),
    /// Destroy a volume with all its data.
    Destroy(destroy::Args),
    /// Store the small blocks that are kept beside the metadata as objects.
    Journal(journal::Args),
    /// Write the metadata of a volume into a file.
    Dump(dump::Args),
    /// Make the metadata of a new volume from such a file.
    Load(load::Args),
    /// Restore lost metadata from the newest backup in the bucket.
    RestoreMeta(Box<restore_meta::Args>),
    /// Show the version.
    Version,
}

/// Runs the command line of this process.
pub fn run() -> ExitCode {
    let mut words = std::env::args_os();
    let argv0 = words.next().unwrap_or_default().to_string_lossy().into_owned();
    telemetry::called(Program::called().name());
    // Anything else in its place would be another file.
    let line: Vec<String> = match words.map(|word| word.into_string()).collect() {
        Ok(line) => line,
        Err(word) => return fail(&format!("the argument {word:?} is no text in UTF-8; give the path by another name, such as a link")),
    };
    title::hide_secrets();
    let program = Cli::command();
    let line = match helper::called(&argv0) {
        true => helper::mount_line(&program, &line),
        false => Ok(line),
    };
    match line.and_then(|line| args::normalise(&program, &line)) {
        Ok(normal) => execute(normal),
        Err(stop) => match end(stop) {
            0 => said(),
            code => ExitCode::from(code),
        },
    }
}

fn execute(normal: Normal) -> ExitCode {
    let cli = match Cli::try_parse_from(&normal.args) {
        Ok(cli) => cli,
        Err(error) => {
            // The normal form leaves clap little to object to; its first line says it.
            let text = error.to_string();
            return fail(text.lines().next().unwrap_or("wrong arguments").trim_start_matches("error: "));
        }
    };
    let log = match cli.log.config() {
        Ok(log) => log,
        Err(error) => return fail(&error.to_string()),
    };
    let logging = || {
        telemetry::init(&log);
        for warning in &normal.warnings {
            warn!("{warning}");
        }
    };
    let outcome = match cli.command {
        // It starts the log itself: in the background that is another file, of another process.
        Command::Mount(args) => mount::run(&args, Program::called(), logging),
        Command::Umount(args) => {
            logging();
            umount::run(&args)
        }
        Command::Format(args) => {
            logging();
            format::run(&args)
        }
        Command::Config(args) => {
            logging();
            config::run(&args)
        }
        Command::Status(args) => {
            logging();
            status::run(&args)
        }
        Command::Info(args) => {
            logging();
            info::run(&args)
        }
        Command::Summary(args) => {
            logging();
            summary::run(&args)
        }
        Command::Rmr(args) => {
            logging();
            rmr::run(&args)
        }
        Command::Clone(args) => {
            logging();
            clone::run(&args)
        }
        Command::Compact(args) => {
            logging();
            compact::run(&args)
        }
        Command::Warmup(args) => {
            logging();
            warmup::run(&args)
        }
        Command::Bench(args) => {
            logging();
            bench::run(&args)
        }
        Command::Stats(args) => {
            logging();
            stats::run(&args)
        }
        Command::Profile(args) => {
            logging();
            profile::run(&args)
        }
        Command::Debug(args) => {
            logging();
            debug::run(&args)
        }
        Command::Quota(args) => {
            logging();
            quota::run(&args)
        }
        Command::Undelete(args) => {
            logging();
            undelete::run(&args)
        }
        Command::Restore(args) => {
            logging();
            restore::run(&args)
        }
        Command::Fsck(args) => {
            logging();
            fsck::run(&args)
        }
        Command::Gc(args) => {
            logging();
            gc::run(&args)
        }
        Command::Destroy(args) => {
            logging();
            destroy::run(&args)
        }
        Command::Journal(args) => {
            logging();
            journal::run(&args)
        }
        Command::Dump(args) => {
            logging();
            dump::run(&args)
        }
        Command::Load(args) => {
            logging();
            load::run(&args)
        }
        Command::RestoreMeta(args) => {
            logging();
            restore_meta::run(&args)
        }
        Command::Version => {
            say(&version_line());
            Ok(())
        }
    };
    match outcome {
        Ok(()) => said(),
        Err(error) => fail(&format!("{error:#}")),
    }
}

/// The first failure to print what a command is asked for; the command ends with it.
static UNSAID: OnceLock<std::io::Error> = OnceLock::new();

/// Prints a line. A reader that has seen enough, such as `head`, is no failure; a full disk is one, at the end of the command.
fn say(text: &str) {
    match writeln!(std::io::stdout(), "{text}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => drop(UNSAID.set(error)),
        _ => {}
    }
}

/// The exit code of a command that went well, unless what it had to say could not be printed.
fn said() -> ExitCode {
    match UNSAID.get() {
        None => ExitCode::SUCCESS,
        Some(error) => fail(&format!("cannot write to standard output: {error}")),
    }
}

/// Prints a line that a command does not depend on: a mount goes on although nobody is told that it began.
fn announce(text: &str) {
    let _ = writeln!(std::io::stdout(), "{text}");
}

fn fail(message: &str) -> ExitCode {
    telemetry::fatal(message);
    ExitCode::FAILURE
}

/// What a command line asks for that is no command, or is wrong. Returns the exit code.
fn end(stop: Stop) -> u8 {
    match stop {
        Stop::Help(command) => {
            say(&help(command.as_deref()));
            0
        }
        Stop::Version => {
            say(&version_line());
            0
        }
        Stop::NoCommand(name) => {
            let _ = writeln!(std::io::stderr(), "No help topic for '{name}'");
            NO_COMMAND
        }
        Stop::Wrong(message) => {
            telemetry::fatal(&message);
            1
        }
        Stop::NoValue { option, command } => {
            say(&format!("Incorrect Usage: flag needs an argument: {option}\n\n{}", help(Some(&command))));
            telemetry::fatal(&format!("flag needs an argument: {option}"));
            1
        }
        Stop::Count { message, command } => {
            say(&format!("ERROR: {message}\nUSAGE:\n   {}", synopsis(&command)));
            1
        }
    }
}

fn help(command: Option<&str>) -> String {
    let mut program = program();
    let found = command.and_then(|name| program.find_subcommand_mut(name)).map(|command| command.render_long_help());
    found.unwrap_or_else(|| program.render_long_help()).to_string()
}

/// All commands, under the name by which this process was called.
fn program() -> clap::Command {
    let name = Program::called().name();
    let mut program = Cli::command().name(name).bin_name(name);
    program.build();
    program
}

fn synopsis(command: &str) -> String {
    let mut program = program();
    let usage = program.find_subcommand_mut(command).map(|command| command.render_usage().to_string()).unwrap_or_default();
    usage.trim_start_matches("Usage: ").to_string()
}

/// The version other clients of a volume see: the feature level, and as build metadata what this program is.
fn version_line() -> String {
    format!("{} version {CLIENT_LEVEL}+pando.{}", Program::called().name(), env!("CARGO_PKG_VERSION"))
}

impl LogArgs {
    fn config(&self) -> anyhow::Result<LogConfig> {
        let level = match self.log_level.as_deref() {
            Some("trace") => Level::TRACE,
            Some("debug") => Level::DEBUG,
            Some("info") => Level::INFO,
            Some("warn" | "warning") => Level::WARN,
            Some("error" | "fatal" | "panic") => Level::ERROR,
            Some(other) => return Err(invalid(other, "log-level", "trace, debug, info, warn and error are levels")),
            None if self.trace => Level::TRACE,
            None if self.verbose => Level::DEBUG,
            None if self.quiet => Level::WARN,
            None => Level::INFO,
        };
        let id = match self.log_id.as_deref() {
            Some("random") => Some(crate::env::uuid_v4(&crate::env::SystemRandom)),
            other => other.map(String::from),
        };
        Ok(LogConfig { level, id, color: !self.no_color })
    }
}

fn invalid(text: &str, option: &str, why: &str) -> anyhow::Error {
    anyhow!("Invalid value {text:?} for {option:?}: {why}")
}

/// Reads the value of an option, or takes the default.
fn value<T>(option: &str, text: Option<&String>, default: T, read: impl Fn(&str) -> Result<T, String>) -> anyhow::Result<T> {
    match text {
        None => Ok(default),
        Some(text) => read(text).map_err(|why| invalid(text, option, &why)),
    }
}

fn volume_of(text: &str) -> anyhow::Result<MetaUrl> {
    MetaUrl::parse(text).map_err(|why| anyhow!(why))
}

/// The bucket as it is stored: a directory is absolute and ends with a slash, a URL stays as it is.
fn bucket_of(storage: Option<&str>, text: &str) -> anyhow::Result<String> {
    let is_url = text.contains("://") && !text.starts_with("file://");
    if is_url || storage.is_some_and(|storage| storage != "file") {
        return Ok(text.into());
    }
    let path = std::path::absolute(text.strip_prefix("file://").unwrap_or(text)).with_context(|| format!("--bucket {text:?}"))?;
    let text = path.to_str().with_context(|| format!("--bucket {text:?} is not UTF-8, which the setting must be"))?;
    Ok(format!("{}/", text.trim_end_matches('/')))
}

/// A runtime for commands that do one thing after another.
fn small_runtime() -> anyhow::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")
}

/// The umask of this process.
fn own_umask() -> u16 {
    // SAFETY: umask always succeeds; it is put back at once, and no other thread of this process makes files.
    let mask = unsafe { libc::umask(0) };
    // SAFETY: as above.
    unsafe { libc::umask(mask) };
    (mask & 0o777) as u16
}
