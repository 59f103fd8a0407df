//! `pando status DIR`

use crate::cli::program::Program;
use crate::cli::{say, small_runtime, value, volume_of};
use crate::daemon::{AskError, Inside, mounts};
use crate::env::instant;
use crate::types::Errno;
use crate::volume::{self, Stores};
use anyhow::Context;
use clap::ArgAction;
use serde_json::{Value, json};
use std::sync::mpsc;
use std::time::Duration;
use tracing::warn;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// Show this session only.
    #[arg(long, short = 's', value_name = "N")]
    session: Option<String>,
    /// Count what waits for deletion too. Without a trash there is nothing more to show.
    #[arg(long, short = 'm', action = ArgAction::SetTrue)]
    more: bool,
}

/// How long a mount may take to tell what it has staged; it answers from memory.
const ANSWER_TIME_MAX: Duration = Duration::from_secs(3);

/// What the mounts of a volume on this host have staged. One that cannot be asked, another user's or one that is stopped, is warned of.
fn staging(name: &str, uuid: &str) -> Value {
    let found = mounts().unwrap_or_else(|error| {
        warn!("cannot look for mounts of this host, they may have staged blocks: {error}");
        Vec::new()
    });
    // Each on a thread of its own, which ends with this process: one that is stopped may not even let itself be connected to.
    let ask = |mount: Inside| {
        let (sender, answer) = mpsc::channel();
        let mountpoint = mount.mountpoint.clone();
        // Without a thread there is no answer either.
        let _ = std::thread::Builder::new().spawn(move || {
            let request = json!({ "Command": "staging", "Path": "" });
            sender.send(mount.connect().and_then(|mut connection| connection.ask(&request, &mut |_, _| {})))
        });
        (mountpoint, answer)
    };
    let asked: Vec<_> = found.into_iter().filter(|mount| mount.is_of(name)).map(ask).collect();
    let deadline = instant() + ANSWER_TIME_MAX;
    let mut staged = Vec::new();
    for (mountpoint, answer) in asked {
        match answer.recv_timeout(deadline.saturating_duration_since(instant())) {
            // One of an earlier version tells no UUID. What lies there from before is staged, too, although nothing is added.
            Ok(Ok(told)) if told.get("UUID").is_some_and(|told| told != uuid) || (told["Writeback"] != true && told["Blocks"] == 0) => {}
            Ok(Ok(told)) => {
                let at = mountpoint.to_string_lossy();
                staged.push(json!({ "MountPoint": at, "Blocks": told["Blocks"], "Bytes": told["Bytes"], "Dirs": told["Dirs"] }));
            }
            // One of an earlier version, which stages nothing.
            Ok(Err(AskError::Refused(Errno::NOSYS, _))) => {}
            Ok(Err(error)) => warn!("{} may have staged blocks: {error}", mountpoint.display()),
            Err(_) => warn!("{} may have staged blocks: it gives no answer", mountpoint.display()),
        }
    }
    Value::Array(staged)
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    let sid = value("session", args.session.as_ref(), 0, |text| text.parse().map_err(|_| "a number is wanted".into()))?;
    let document = small_runtime()?.block_on(async {
        let stores = Stores::open(&url).await?;
        match sid {
            0 => {
                let mut document = volume::status(&stores).await?;
                // Whoever reads what the reference prints gets nothing more.
                if Program::called() == Program::Pando {
                    document["Journal"] = volume::journal_status(&stores).await?;
                    document["Staging"] = staging(stores.setting.name(), stores.setting.uuid());
                }
                Ok(document)
            }
            sid => volume::session(&stores, sid).await,
        }
    })?;
    say(&serde_json::to_string_pretty(&document).context("cannot show the status")?);
    Ok(())
}
