//! `pando compact PATH…`

use crate::cli::ask::{self, threads};
use crate::cli::progress::Watch;
use crate::cli::say;
use crate::daemon::Last;
use crate::telemetry::progress;
use crate::types::Errno;
use anyhow::bail;
use clap::ArgAction;
use serde_json::json;
use std::path::Path;
use tracing::{error, info};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, or directories with all files below them.
    #[arg(required = true)]
    path: Vec<String>,
    /// Chunks compacted at once [default: 10; at most 255].
    #[arg(long, short = 'p', value_name = "N")]
    threads: Option<String>,
    /// Print the result as JSON.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command; fails if the files of any path could not be compacted.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let threads = threads(args.threads.as_ref(), 10)?;
    let mut failures = 0;
    for path in &args.path {
        let request = json!({ "Command": "compact", "Threads": threads });
        if let Err(error) = std::fs::metadata(path) {
            // As scripts know it, no failure.
            error!("lookup inode for {path:?} error: {}", Errno::from(error).text());
            continue;
        }
        let watch = Watch::start("compact", args.json);
        progress::stage("files", 0);
        let answer = ask::about(path, Last::Followed, request);
        drop(watch);
        match answer {
            Ok(answer) if args.json => say(&json!({ "Path": path, "Inode": answer["Inode"], "Files": answer["Files"] }).to_string()),
            Ok(answer) => {
                let shown = std::path::absolute(Path::new(path)).unwrap_or_else(|_| path.into());
                info!("compact [{}:{shown:?}] success.", answer["Inode"]);
            }
            Err(error) => {
                error!("compact {path:?}: {error}");
                failures += 1;
            }
        }
    }
    if failures > 0 {
        bail!("{failures} of {} paths could not be compacted", args.path.len());
    }
    Ok(())
}
