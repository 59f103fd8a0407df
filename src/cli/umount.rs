//! `pando umount MOUNTPOINT`

use crate::daemon::{Unmount, umount};
use clap::ArgAction;
use std::path::PathBuf;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Where the volume is mounted.
    mountpoint: PathBuf,
    /// Take the mount away although programs use it.
    #[arg(long, short = 'f', action = ArgAction::SetTrue)]
    force: bool,
    /// Insist that all data is stored afterwards. A local volume always waits for that.
    #[arg(long, action = ArgAction::SetTrue)]
    flush: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    Ok(umount(&args.mountpoint, Unmount { force: args.force, flush: args.flush })?)
}
