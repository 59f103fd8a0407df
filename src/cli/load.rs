//! `pando load DIR FILE`

use crate::cli::{small_runtime, volume_of};
use crate::volume::{self, DumpInput};
use clap::ArgAction;
use std::path::PathBuf;
use tracing::{info, warn};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the new volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// Dump to load; decompressed if its name ends with .gz or .zstd [default: the standard input].
    file: Option<PathBuf>,
    /// The dump is of the binary form.
    #[arg(long, action = ArgAction::SetTrue)]
    binary: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    let mut input = DumpInput::open(args.file.as_deref())?;
    let loaded = small_runtime()?.block_on(volume::load(&url, &mut input, args.binary))?;
    info!("Loaded {} inodes, {} bytes; the objects are where the setting says and were not touched", loaded.inodes, loaded.space);
    if loaded.secrets_removed {
        warn!("secret key was removed; please correct it with `config` command");
    }
    let source = args.file.as_ref().map_or("STDIN".into(), |file| file.display().to_string());
    info!("Load metadata from {source:?} succeed");
    Ok(())
}
