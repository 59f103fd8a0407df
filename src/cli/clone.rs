//! `pando clone SRC DST`

use crate::cli::ask::threads;
use crate::cli::progress::Watch;
use crate::cli::say;
use crate::cli::values::{count_shown, human_bytes};
use crate::daemon::{AskError, Last, locate};
use crate::telemetry::progress;
use crate::types::Errno;
use anyhow::bail;
use clap::ArgAction;
use serde_json::json;
use std::path::{Path, PathBuf};
use tracing::info;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// A file or directory inside a mount.
    src: String,
    /// Where the copy is to be, in the same mount; it must not exist. With a slash at the end the name of the source is added.
    dst: String,
    /// Keep owners, modes and times.
    #[arg(long, short = 'p', action = ArgAction::SetTrue)]
    preserve: bool,
    /// Directories worked on at once [default: 4; at most 255].
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Print the result as JSON.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let threads = threads(args.threads.as_ref(), 4)?;
    let mut dst = PathBuf::from(&args.dst);
    if args.dst.ends_with('/') {
        dst.push(Path::new(&args.src).file_name().unwrap_or_default());
    }
    let from = locate(Path::new(&args.src), Last::Itself)?;
    let to = locate(&dst, Last::Itself)?;
    if !from.is_beside(&to) {
        bail!("{} and {} are not in the same mount", args.src, dst.display());
    }
    if dst.symlink_metadata().is_ok() {
        bail!("{} already exists", dst.display());
    }
    let request = json!({
        "Command": "clone", "Path": from.path, "To": to.path, "Preserve": args.preserve, "Umask": crate::cli::own_umask(),
        "Threads": threads,
    });
    let watch = Watch::start("clone", args.json);
    progress::stage("inodes", 0);
    let answer = from.connect()?.ask(&request, &mut progress::set);
    drop(watch);
    match answer {
        Ok(answer) if args.json => {
            say(&answer.to_string());
            Ok(())
        }
        Ok(answer) => {
            let number = |field: &str| answer[field].as_u64().unwrap_or(0);
            info!("cloned {} inodes, {}", count_shown(number("Count")), human_bytes(number("Bytes")));
            Ok(())
        }
        Err(AskError::Refused(Errno::EXIST, _)) => bail!("{} already exists", dst.display()),
        Err(error) => bail!("clone {:?}: {error}", args.src),
    }
}
