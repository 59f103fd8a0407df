//! `pando umount MOUNTPOINT`

use crate::cli::ask::{self, Line};
use crate::cli::say;
use crate::daemon::{AskError, Last, Unmount, umount};
use anyhow::Context;
use clap::ArgAction;
use serde_json::json;
use std::path::PathBuf;
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

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let staged = args.flush && flush(args)?;
    umount(&args.mountpoint, Unmount { force: args.force, flush: args.flush })?;
    if staged {
        say("All staging chunks are flushed");
    }
    Ok(())
}

/// Waits until everything that is staged is in the bucket; answers whether the mount stages at all.
fn flush(args: &Args) -> anyhow::Result<bool> {
    let path = args.mountpoint.to_string_lossy();
    let mut line = Line::new("staging chunks to be flushed");
    loop {
        let request = json!({ "Command": "staging", "Flush": true });
        let left = match ask::about(&path, Last::Followed, request, &mut Line::new("umount")) {
            Ok(left) => left,
            // What it is, or that it is none of ours, is told by unmounting it.
            Err(AskError::Outside(_)) => return Ok(false),
            Err(error) => {
                return Err(error)
                    .context("cannot ask the mount what is staged; without --flush it is unmounted, and keeps what is staged on its disk");
            }
        };
        let (blocks, bytes) = (left["Blocks"].as_u64().unwrap_or(0), left["Bytes"].as_u64().unwrap_or(0));
        if blocks == 0 {
            return Ok(left["Writeback"] == true);
        }
        line.show(blocks, bytes);
        std::thread::sleep(LOOK_EVERY);
    }
}
