//! `pando destroy META-URL UUID`

use crate::cli::config::proceed;
use crate::cli::progress::Watch;
use crate::cli::{say, values, volume_of};
use crate::volume::{self, Doomed};
use anyhow::{Context, bail};
use clap::ArgAction;
use serde_json::json;
use tracing::info;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// UUID of the volume, as `status` shows it.
    uuid: String,
    /// Do not ask.
    #[arg(long, short = 'y', action = ArgAction::SetTrue)]
    yes: bool,
    /// Destroy it although it is mounted, or its bucket is not there.
    #[arg(long, action = ArgAction::SetTrue)]
    force: bool,
    /// Print the result as JSON; needs --yes or --force, as nothing is asked.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    if args.json && !args.yes && !args.force {
        bail!("--json needs --yes or --force: nobody can be asked");
    }
    // Objects are deleted by several tasks.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let doomed = runtime.block_on(Doomed::open(&url, &args.uuid, args.force))?;
    if !args.force {
        let sessions = runtime.block_on(doomed.sessions())?;
        if !sessions.is_empty() {
            let text = |session: &volume::SessionEntry, field: &str| {
                session.document.get(field).and_then(|value| value.as_str()).unwrap_or_default().to_owned()
            };
            let rows: Vec<Vec<String>> =
                sessions.iter().map(|s| vec![s.sid.to_string(), text(s, "HostName"), text(s, "MountPoint")]).collect();
            let table = values::table(&["SID", "HostName", "MountPoint"], &rows);
            bail!("{} sessions are active, please disconnect them first:\n{table}", sessions.len());
        }
        if args.json {
            return finish(runtime, doomed, true);
        }
        let usage = runtime.block_on(doomed.usage())?;
        let place = volume::location(doomed.setting(), url.dir());
        say(&format!("  volume name: {}", doomed.setting().name()));
        say(&format!("  volume UUID: {}", doomed.setting().uuid()));
        say(&format!(" data storage: {place}"));
        say(&format!("   used bytes: {}", usage.space));
        say(&format!("  used inodes: {}", usage.inodes));
        say("WARNING: The target volume will be permanently destroyed, including:");
        say(&format!("WARNING: 1. ALL objects in the data storage: {place}"));
        say(&format!("WARNING: 2. ALL entries in the metadata engine: {url}"));
        if !args.yes && !proceed(&mut std::io::stdin().lock()) {
            bail!("Aborted.");
        }
    }
    finish(runtime, doomed, args.json)
}

fn finish(runtime: tokio::runtime::Runtime, doomed: Doomed, json: bool) -> anyhow::Result<()> {
    let watch = Watch::start("destroy", json);
    let destroyed = runtime.block_on(doomed.destroy());
    drop(watch);
    let destroyed = destroyed?;
    if json {
        say(&json!({ "Objects": destroyed.objects, "Keys": destroyed.keys }).to_string());
    }
    info!("Deleted {} objects", destroyed.objects);
    info!("The volume has been destroyed! You may need to delete cache directory manually.");
    Ok(())
}
