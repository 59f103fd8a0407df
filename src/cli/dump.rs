//! `pando dump DIR FILE`

use crate::cli::progress::Watch;
use crate::cli::{say, small_runtime, volume_of};
use crate::telemetry::progress;
use crate::volume::{self, DumpOptions, DumpOutput};
use anyhow::bail;
use clap::ArgAction;
use serde_json::json;
use std::path::PathBuf;
use tracing::info;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// File to write; compressed if its name ends with .gz or .zstd [default: the standard output].
    file: Option<PathBuf>,
    /// Only this directory of the volume.
    #[arg(long, value_name = "PATH")]
    subdir: Option<String>,
    /// Keep the secret key and the session token of the object store.
    #[arg(long, action = ArgAction::SetTrue)]
    keep_secret_key: bool,
    /// Leave the trash out.
    #[arg(long, action = ArgAction::SetTrue)]
    skip_trash: bool,
    /// The binary form: raw records, always the whole volume.
    #[arg(long, action = ArgAction::SetTrue)]
    binary: bool,
    /// Print the result as JSON; needs FILE.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    let options =
        DumpOptions { subdir: args.subdir.clone(), keep_secrets: args.keep_secret_key, skip_trash: args.skip_trash, binary: args.binary };
    if args.binary && (args.subdir.is_some() || args.skip_trash) {
        bail!("--binary dumps the whole volume; leave out --subdir and --skip-trash");
    }
    if args.json && args.file.is_none() {
        bail!("--json needs FILE: the dump itself goes to the standard output");
    }
    let mut out = DumpOutput::create(args.file.as_deref())?;
    // Not into a dump.
    let watch = Watch::start("dump", args.json || args.file.is_none());
    let dumped = small_runtime()?.block_on(volume::dump(&url, &options, &mut out));
    drop(watch);
    if let Err(error) = dumped {
        out.discard();
        return Err(error.into());
    }
    out.finish()?;
    let target = args.file.as_ref().map_or("STDOUT".into(), |file| file.display().to_string());
    if args.json {
        say(&json!({ "File": target, "Inodes": progress::now().count }).to_string());
    }
    info!("Dump metadata into {target:?} succeed");
    Ok(())
}
