//! `pando fsck DIR`

use crate::cli::progress::Watch;
use crate::cli::{invalid, say, small_runtime, value, values, volume_of};
use crate::meta::store::Sharing;
use crate::meta::store::redis::Options as RedisOptions;
use crate::types::Ino;
use crate::volume::{self, COMMAND_PATIENCE, Finding, FsckSummary, PathCheck, Stores};
use anyhow::bail;
use clap::ArgAction;
use serde_json::{Value, json};
use std::fmt::Write;
use tracing::{error, info, warn};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// Check only this file or directory, by its path in the volume.
    #[arg(long, value_name = "PATH")]
    path: Option<String>,
    /// Check everything below the path, too.
    #[arg(long, short = 'r', action = ArgAction::SetTrue)]
    recursive: bool,
    /// Mend what can be mended of a volume that nobody uses; with --path, attributes and link counts of directories.
    #[arg(long, action = ArgAction::SetTrue)]
    repair: bool,
    /// Look at statistics of directories that are not exact, too, and mend them with --repair; at the root also at those of the volume.
    #[arg(long, action = ArgAction::SetTrue)]
    sync_dir_stat: bool,
    /// Mode of directories whose record is lost [default: 0755].
    #[arg(long, value_name = "OCTAL")]
    repair_dir_mode: Option<String>,
    /// Print the result as JSON.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    let dir_mode = value("repair-dir-mode", args.repair_dir_mode.as_ref(), 0o755, values::octal)?;
    let path = match &args.path {
        None if args.sync_dir_stat || args.recursive => bail!("--recursive and --sync-dir-stat need --path"),
        Some(path) if !path.starts_with('/') => {
            return Err(invalid(path, "path", "the path from the root of the volume begins with a slash"));
        }
        path => path.clone(),
    };
    let watch = Watch::start("fsck", args.json);
    let checked = small_runtime()?.block_on(async {
        let options = RedisOptions { patience: Some(COMMAND_PATIENCE), writes: args.repair };
        let stores = Stores::open_for(&url, options, std::time::Duration::ZERO).await?;
        if let Some(path) = path {
            let (recursive, repair, sync_dir_stat) = (args.recursive, args.repair, args.sync_dir_stat);
            return volume::check_path(&stores, &PathCheck { path, recursive, repair, sync_dir_stat, dir_mode }).await;
        }
        if args.repair {
            return volume::repair(&stores).await;
        }
        match stores.store.sharing() {
            Sharing::Alone => {}
            Sharing::Neighbours => {
                warn!("{url} is in use: what was written last may be reported wrongly; unmount it for an answer that is sure");
            }
            Sharing::Server => {
                warn!(
                    "if {url} is in use, what was written last may be reported wrongly; unmount it everywhere for an answer that is sure"
                );
            }
        }
        volume::fsck(&stores).await
    });
    drop(watch);
    let (findings, summary) = checked?;
    if args.json {
        say(&document(&findings, &summary).to_string());
    }
    let place = args.path.as_ref().map_or_else(|| url.to_string(), |path| format!("{url} {path}"));
    conclude(&place, &findings, &summary, args.json)
}

fn document(findings: &[Finding], summary: &FsckSummary) -> Value {
    let finding = |found: &Finding| json!({ "Subject": found.subject, "What": found.what, "Advice": found.advice });
    let broken = |(ino, path): (&Ino, &String)| json!({ "Inode": ino.0, "Path": path });
    json!({
        "Inodes": summary.inodes, "Entries": summary.entries, "Slices": summary.slices, "Blocks": summary.blocks,
        "BlockBytes": summary.block_bytes, "LostBlocks": summary.lost, "LostBytes": summary.lost_bytes,
        "BrokenFiles": summary.broken.iter().map(broken).collect::<Vec<_>>(),
        "Findings": findings.iter().map(finding).collect::<Vec<_>>(), "Unlisted": summary.unlisted,
    })
}

fn conclude(place: &str, findings: &[Finding], summary: &FsckSummary, json: bool) -> anyhow::Result<()> {
    for finding in findings {
        error!("{}: {}; {}", finding.subject, finding.what, finding.advice);
    }
    info!("Found {} blocks ({} bytes)", summary.blocks, summary.block_bytes);
    info!("Checked {} inodes, {} entries, {} slices", summary.inodes, summary.entries, summary.slices);
    if findings.is_empty() {
        if json {
            return Ok(());
        }
        say(&format!("{place}: no damage found in {} inodes, {} slices, {} blocks", summary.inodes, summary.slices, summary.blocks));
        return Ok(());
    }
    let more = if summary.unlisted > 0 { format!(" and {} more", summary.unlisted) } else { String::new() };
    let problems = format!("{} problems found{more}; see the lines above for what to do", findings.len());
    if summary.lost == 0 {
        bail!("{problems}");
    }
    error!("{problems}");
    let mut table = format!("{:>13}: PATH", "INODE");
    for (ino, path) in &summary.broken {
        // Writing into a string does not fail.
        let _ = write!(table, "\n{:>13}: {path}", ino.0);
    }
    bail!("{} objects are lost ({} bytes), {} broken files:\n{table}", summary.lost, summary.lost_bytes, summary.broken.len())
}
