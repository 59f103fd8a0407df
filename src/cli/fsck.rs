//! `pando fsck DIR`

use crate::cli::{say, small_runtime, volume_of};
use crate::meta::store::Sharing;
use crate::volume::{self, Stores};
use anyhow::bail;
use tracing::{error, info, warn};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    let (findings, summary) = small_runtime()?.block_on(async {
        let stores = Stores::open(&url).await?;
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
    })?;
    for finding in &findings {
        error!("{}: {}; {}", finding.subject, finding.what, finding.advice);
    }
    info!("Found {} blocks ({} bytes)", summary.blocks, summary.block_bytes);
    info!("Checked {} inodes, {} entries, {} slices", summary.inodes, summary.entries, summary.slices);
    if findings.is_empty() {
        say(&format!("{url}: no damage found in {} inodes, {} slices, {} blocks", summary.inodes, summary.slices, summary.blocks));
        return Ok(());
    }
    let more = if summary.unlisted > 0 { format!(" and {} more", summary.unlisted) } else { String::new() };
    bail!("{} problems found{more}, {} objects are lost or damaged; see the lines above for what to do", findings.len(), summary.lost)
}
