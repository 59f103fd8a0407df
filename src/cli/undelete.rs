//! `pando undelete PATH…`

use crate::cli::ask;
use crate::cli::progress::Watch;
use crate::cli::{say, value};
use crate::daemon::Last;
use crate::telemetry::progress;
use crate::types::Civil;
use anyhow::bail;
use clap::ArgAction;
use serde_json::{Value, json};
use tracing::{error, info};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// What was deleted, by the path it had: a file, or a directory with what was in it.
    #[arg(required = true)]
    path: Vec<String>,
    /// Show what of these paths is in the trash and change nothing.
    #[arg(long, action = ArgAction::SetTrue)]
    list: bool,
    /// Take this version, by its number in the list; 1 is the newest.
    #[arg(long, value_name = "N")]
    pick: Option<String>,
    /// Print the result as JSON.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command; fails if any path could not be restored as a whole.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let version = value("pick", args.pick.as_ref(), None, |text| match text.parse::<u64>() {
        Ok(number) if number > 0 => Ok(Some(number)),
        _ => Err("a number from 1 on is wanted".into()),
    })?;
    let mut failures = 0;
    for path in &args.path {
        let watch = Watch::start("undelete", args.json);
        progress::stage("entries", 0);
        let request = json!({ "Command": "undelete", "List": args.list, "Version": version });
        let answer = ask::about(path, Last::Itself, request);
        drop(watch);
        match answer {
            Ok(mut answer) if args.json => {
                failures += u64::from(answer["Failed"].as_u64().unwrap_or(0) > 0);
                answer["Path"] = json!(path);
                say(&answer.to_string());
            }
            Ok(answer) if args.list => list(path, &answer),
            Ok(answer) => {
                let count = |field: &str| answer[field].as_u64().unwrap_or(0);
                let (restored, conflicts, failed) = (count("Restored"), count("Conflicts"), count("Failed"));
                info!("{path}: restored {restored}, {conflicts} names are taken, {failed} failed");
                failures += u64::from(failed > 0);
            }
            Err(error) => {
                error!("undelete {path:?}: {error}");
                failures += 1;
            }
        }
    }
    if failures > 0 {
        bail!("{failures} of {} paths could not be restored", args.path.len());
    }
    Ok(())
}

fn list(path: &str, answer: &Value) {
    let versions = answer["Versions"].as_array().map(Vec::as_slice).unwrap_or_default();
    for (index, version) in versions.iter().enumerate() {
        let deleted = Civil::of(version["Deleted"].as_i64().unwrap_or(0));
        let Civil { year, month, day, hour, minute, second } = deleted;
        let text = |field: &str| version[field].as_str().unwrap_or_default().to_string();
        let number = |field: &str| version[field].as_u64().unwrap_or(0);
        say(&format!(
            "{path}\t{}\t{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}Z\t{}\t{} bytes\tuid {}\tinode {}",
            index + 1,
            text("Kind"),
            number("Length"),
            number("Uid"),
            number("Inode")
        ));
    }
}
