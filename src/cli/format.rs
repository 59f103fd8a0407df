//! `pando format DIR NAME`

use crate::cli::{invalid, small_runtime, value, values, volume_of};
use crate::meta::setting::BLOCK_KIB;
use crate::volume::{self, Created, NewVolume, Place, place};
use anyhow::{Context, bail};
use clap::ArgAction;
use tracing::{info, warn};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the volume; created if missing.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// Name of the volume: 3 to 63 lower-case letters, digits and dashes.
    name: String,
    /// Size of blocks, in KiB, a power of two from 64K to 16M [default: 4M].
    #[arg(long, value_name = "SIZE")]
    block_size: Option<String>,
    /// Bytes the volume may use, in GiB, 0 = unlimited [default: 0].
    #[arg(long, value_name = "SIZE")]
    capacity: Option<String>,
    /// Inodes the volume may have, 0 = unlimited [default: 0].
    #[arg(long, value_name = "N")]
    inodes: Option<String>,
    /// Days deleted files are kept: only 0.
    #[arg(long, value_name = "DAYS")]
    trash_days: Option<String>,
    /// Spread the objects over 256 directories.
    #[arg(long, action = ArgAction::SetTrue)]
    hash_prefix: bool,
    /// Compression of blocks: only none.
    #[arg(long, value_name = "ALGORITHM")]
    compress: Option<String>,
    /// Where the objects are: only file, a directory.
    #[arg(long, value_name = "TYPE")]
    storage: Option<String>,
    /// Directory of the objects [default: objects, inside the volume's own].
    #[arg(long, value_name = "DIR")]
    bucket: Option<String>,
    /// Take a bucket that holds other objects under this name.
    #[arg(long, action = ArgAction::SetTrue)]
    force: bool,
    /// Leave an existing volume as it is.
    #[arg(long, action = ArgAction::SetTrue)]
    no_update: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    volume::check_name(&args.name).map_err(anyhow::Error::msg)?;
    let wanted = wanted(args)?;
    let there = match url.dir() {
        Some(dir) => place(dir).with_context(|| format!("cannot look into {url}"))? == Place::Volume,
        None => true,
    };
    if args.no_update && there {
        let runtime = small_runtime()?;
        if !matches!(runtime.block_on(volume::Stores::open(&url)), Err(volume::VolumeError::NotFormatted(_))) {
            return Ok(());
        }
    }
    let setting = match small_runtime()?.block_on(volume::create(&url, &wanted))? {
        Created::New(setting) => {
            let dir = url.dir().map_or_else(|| setting.bucket().into(), |dir| dir.join(setting.bucket()));
            info!("Data use file://{}", dir.display());
            setting
        }
        Created::Updated(setting) => setting,
    };
    info!("Volume is formatted as {}", serde_json::to_string_pretty(&setting.without_secrets()).context("cannot show the setting")?);
    Ok(())
}

fn wanted(args: &Args) -> anyhow::Result<NewVolume> {
    match args.trash_days.as_deref() {
        None | Some("0") => {}
        Some(days) => bail!("--trash-days {days} is not supported by this build, the trash comes later; use 0: what is deleted is gone"),
    }
    match args.compress.as_deref() {
        None | Some("" | "none") => {}
        Some("lz4" | "zstd") => bail!("--compress is not supported by this build, compression comes later; use none"),
        Some(other) => bail!("Unsupported compress algorithm: {other:?}"),
    }
    match args.storage.as_deref() {
        None | Some("file") => {}
        Some(other) => bail!("--storage {other} is not supported by this build; use file, which keeps the objects in a directory"),
    }
    let block_kib = match &args.block_size {
        None => None,
        Some(text) => Some(block_kib(text)?),
    };
    let inodes = args.inodes.as_ref().map(|text| text.parse().map_err(|_| invalid(text, "inodes", "a number is wanted"))).transpose()?;
    let bucket = match &args.bucket {
        None => None,
        Some(text) => {
            let path = std::path::absolute(text.strip_prefix("file://").unwrap_or(text)).with_context(|| format!("--bucket {text:?}"))?;
            let text = path.to_str().with_context(|| format!("--bucket {text:?} is not UTF-8, which the setting must be"))?;
            Some(format!("{}/", text.trim_end_matches('/')))
        }
    };
    Ok(NewVolume {
        name: args.name.clone(),
        block_kib,
        capacity: match &args.capacity {
            None => None,
            text => Some(value("capacity", text.as_ref(), 0, |text| values::size(text, 'G'))?),
        },
        inodes,
        hash_prefix: args.hash_prefix.then_some(true),
        bucket,
        force: args.force,
        ..NewVolume::default()
    })
}

/// Rounded down to a power of two and limited, with a warning.
fn block_kib(text: &str) -> anyhow::Result<u64> {
    let asked = value("block-size", Some(&text.to_string()), 0, |text| values::size(text, 'K'))? / 1024;
    let limited = asked.clamp(*BLOCK_KIB.start(), *BLOCK_KIB.end());
    let rounded = 1 << limited.ilog2();
    if rounded != asked {
        warn!("--block-size {text} becomes {rounded}K: a power of two from 64K to 16M is wanted");
    }
    Ok(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn block_sizes_are_powers_of_two_within_limits() {
        for (text, kib) in [("4M", 4096), ("100", 64), ("1", 64), ("0", 64), ("3M", 2048), ("1G", 16384), ("64K", 64)] {
            assert_eq!(block_kib(text).expect(text), kib, "{text}");
        }
        assert!(block_kib("x").is_err());
    }
}
