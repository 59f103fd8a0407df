//! `pando restore DIR HOUR…`

use crate::cli::ask::threads;
use crate::cli::progress::Watch;
use crate::cli::{say, small_runtime, volume_of};
use crate::meta::ops::undelete::Restored;
use crate::types::Errno;
use crate::volume;
use anyhow::bail;
use clap::ArgAction;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use tracing::{error, info};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// Hours of the trash, YYYY-MM-DD-HH in UTC.
    #[arg(required = true)]
    hour: Vec<String>,
    /// Move everything back to where it was; otherwise trees are rebuilt inside the trash.
    #[arg(long, action = ArgAction::SetTrue)]
    put_back: bool,
    /// Things moved at once [default: 10].
    #[arg(long, value_name = "N")]
    threads: Option<String>,
    /// Print the result as JSON, a line for each hour.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command. Things that cannot be restored are counted and stay in the trash; that is no failure, as scripts know it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    // SAFETY: geteuid has no preconditions.
    if unsafe { libc::geteuid() } != 0 {
        bail!("only root can restore files from trash");
    }
    let threads = threads(args.threads.as_ref(), 10)?;
    let url = volume_of(&args.volume)?;
    let stopped = AtomicBool::new(false);
    let go_on = || !stopped.load(Ordering::Relaxed);
    let done = |hour: &str, outcome: Result<Restored, Errno>| match outcome {
        Ok(done) => {
            if args.json {
                say(&json!({
                    "Hour": hour, "Restored": done.moved, "NeedPutBack": done.left, "Conflicts": done.conflicts, "Failed": done.failed,
                })
                .to_string());
            }
            let left = if done.left > 0 { format!(", {} need --put-back", done.left) } else { String::new() };
            info!("{hour}: restored {}{left}, {} conflicts, {} failed", done.moved, done.conflicts, done.failed);
        }
        Err(Errno::INTR) => {}
        Err(errno) => error!("lookup {hour:?}: {}", errno.text()),
    };
    let _watch = Watch::start("restore", args.json);
    small_runtime()?.block_on(async {
        let restoring =
            volume::restore(&url, &args.hour, args.put_back, threads, &go_on, |hour| info!("restore files in {hour:?} ..."), done);
        tokio::pin!(restoring);
        loop {
            tokio::select! {
                outcome = &mut restoring => return outcome,
                _ = tokio::signal::ctrl_c() => stopped.store(true, Ordering::Relaxed),
            }
        }
    })?;
    if stopped.load(Ordering::Relaxed) {
        bail!("interrupted; what was restored stays, run it again for the rest");
    }
    Ok(())
}
