//! `pando umount MOUNTPOINT`

use crate::cli::progress::Watch;
use crate::cli::{ask, say};
use crate::daemon::{AskError, Last, Unmount, umount};
use crate::env::instant;
use crate::telemetry::progress;
use crate::types::Errno;
use anyhow::{Context, bail};
use clap::ArgAction;
use serde_json::json;
use std::fs::DirEntry;
use std::path::{Path, PathBuf};
use std::time::Duration;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the volume is mounted.
    mountpoint: PathBuf,
    /// Take the mount away although programs use it.
    #[arg(long, short = 'f', action = ArgAction::SetTrue)]
    force: bool,
    /// Wait until all staged blocks are in the bucket, and insist that all data is stored afterwards.
    #[arg(long, action = ArgAction::SetTrue)]
    flush: bool,
}

/// How often it is asked how much is still staged.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How long it may take until one more staged block is in the bucket.
const STUCK_TIME: Duration = Duration::from_secs(120);

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let staged = if args.flush { flush(args)? } else { None };
    umount(&args.mountpoint, Unmount { force: args.force, flush: args.flush })?;
    if let Some(dirs) = staged {
        // What was written while it was unmounted was staged, too.
        let left: u64 = dirs.iter().map(|dir| files_below(dir)).sum();
        if left > 0 {
            bail!("{left} staging chunks are not flushed; mount the volume here again with the same --cache-dir");
        }
        say("All staging chunks are flushed");
    }
    Ok(())
}

/// Waits until everything that is staged is in the bucket; answers where the mount stages, if it does.
fn flush(args: &Args) -> anyhow::Result<Option<Vec<PathBuf>>> {
    let path = args.mountpoint.to_string_lossy();
    let _watch = Watch::start("umount", false);
    progress::stage("staging chunks to be flushed", 0);
    let (mut least, mut since) = (u64::MAX, instant());
    let mut request = json!({ "Command": "staging", "Flush": true });
    loop {
        let left = match ask::about(&path, Last::Followed, request.clone()) {
            Ok(left) => left,
            // What it is, or that it is none of ours, is told by unmounting it.
            Err(AskError::Outside(_)) => return Ok(None),
            // A process of an earlier version, which stages nothing.
            Err(AskError::Refused(Errno::NOSYS, _)) => return Ok(None),
            Err(error) => {
                let hint = "cannot ask the mount what is staged; without --flush it is unmounted, and keeps what is staged on its disk";
                return Err(error).context(hint);
            }
        };
        let (blocks, bytes) = (left["Blocks"].as_u64().unwrap_or(0), left["Bytes"].as_u64().unwrap_or(0));
        if blocks == 0 {
            let dirs = left["Dirs"].as_array().map(|dirs| dirs.iter().filter_map(|dir| dir.as_str()).map(PathBuf::from).collect());
            return Ok(dirs.filter(|_| left["Writeback"] == true));
        }
        if blocks < least {
            (least, since) = (blocks, instant());
        } else if since.elapsed() > STUCK_TIME {
            bail!(
                "{blocks} staging chunks ({bytes} bytes) are not flushed, and none was for {} seconds; see the log of the mount, which goes on",
                STUCK_TIME.as_secs()
            );
        }
        progress::set(blocks, bytes);
        request["Flush"] = false.into();
        std::thread::sleep(LOOK_EVERY);
    }
}

/// Files that are complete.
fn files_below(dir: &Path) -> u64 {
    // What cannot be looked at was there neither for the mount.
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    let count = |entry: DirEntry| match entry.file_type() {
        Ok(kind) if kind.is_dir() => files_below(&entry.path()),
        _ => u64::from(entry.path().extension().is_none_or(|ending| ending != "tmp")),
    };
    entries.flatten().map(count).sum()
}
