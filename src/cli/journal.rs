//! `pando journal drain META-URL`

use crate::cli::{say, small_runtime, volume_of};
use crate::volume;
use anyhow::bail;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Only `drain`: every small block that is kept beside the metadata becomes an object.
    #[arg(value_name = "drain")]
    action: String,
    /// The volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    if args.action != "drain" {
        bail!("`journal {}` is unknown; `journal drain` stores small blocks as objects", args.action);
    }
    let url = volume_of(&args.volume)?;
    let stored = small_runtime()?.block_on(volume::drain(&url))?;
    say(&format!("{url}: {stored} small blocks are objects now"));
    Ok(())
}
