//! `pando rmr PATH…`

use crate::cli::ask::{self, threads};
use crate::cli::program::Program;
use crate::cli::progress::Watch;
use crate::cli::say;
use crate::cli::values::count_shown;
use crate::daemon::{AskError, Last};
use crate::telemetry::progress;
use anyhow::bail;
use clap::ArgAction;
use serde_json::json;
use tracing::{error, info};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files and directories inside a mount, which are removed with all that is below them.
    #[arg(required = true)]
    path: Vec<String>,
    /// Delete for good, past the trash; for root only.
    #[arg(long, action = ArgAction::SetTrue)]
    skip_trash: bool,
    /// Directories worked on at once [default: 50; at most 255].
    #[arg(long, short = 'p', value_name = "N")]
    threads: Option<String>,
    /// Print the result as JSON.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command. A path outside of any mount is reported and passed over; in scripts that call it `juicefs` with exit code 0, as they know it.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let threads = threads(args.threads.as_ref(), 50)?;
    let mut outside_any = 0;
    for path in &args.path {
        let request = json!({ "Command": "rmr", "SkipTrash": args.skip_trash, "Threads": threads });
        let watch = Watch::start("rmr", args.json);
        progress::stage("inodes", 0);
        let answer = ask::about(path, Last::Itself, request);
        drop(watch);
        match answer {
            Ok(answer) if args.json => say(&json!({ "Path": path, "Removed": answer["Removed"] }).to_string()),
            Ok(answer) => info!("{path}: removed {}", count_shown(answer["Removed"].as_u64().unwrap_or(0))),
            Err(AskError::Outside(outside)) => {
                outside_any += 1;
                error!("Open control file for {path:?}: {outside} is not inside a Pando mount");
            }
            Err(error) => bail!("RMR {path:?}: {error}"),
        }
    }
    if outside_any > 0 && Program::called() == Program::Pando {
        bail!("not inside a mount, and not removed: {outside_any} of {}", args.path.len());
    }
    Ok(())
}
