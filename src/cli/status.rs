//! `pando status DIR`

use crate::cli::program::Program;
use crate::cli::{say, small_runtime, value, volume_of};
use crate::daemon::{AskError, Inside, mounts};
use crate::volume::{self, Stores};
use anyhow::Context;
use clap::ArgAction;
use serde_json::{Value, json};
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

/// What the mounts of a volume on this host have staged. Those of other users tell it only to them.
fn staging(uuid: &str) -> Value {
    let ask = |mount: &Inside| -> Result<Value, AskError> {
        let mut connection = mount.connect()?;
        connection.wait_at_most(ANSWER_TIME_MAX).map_err(|e| AskError::Failed("the connection cannot be set up".into(), e))?;
        connection.ask(&json!({ "Command": "staging", "Path": "" }), &mut |_, _| {})
    };
    let mut staged = Vec::new();
    let found = mounts().unwrap_or_else(|error| {
        warn!("cannot look for mounts of this host, they may have staged blocks: {error}");
        Vec::new()
    });
    for mount in found {
        match ask(&mount) {
            Ok(told) if told["UUID"] == uuid && told["Writeback"] == true => {
                let at = mount.mountpoint.to_string_lossy();
                staged.push(json!({ "MountPoint": at, "Blocks": told["Blocks"], "Bytes": told["Bytes"], "Dirs": told["Dirs"] }));
            }
            Ok(_) => {}
            // Another user's, or one of an earlier version.
            Err(AskError::Refused(..)) => {}
            Err(error) => warn!("{} may have staged blocks: {error}", mount.mountpoint.display()),
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
                    document["Staging"] = staging(stores.setting.uuid());
                }
                Ok(document)
            }
            sid => volume::session(&stores, sid).await,
        }
    })?;
    say(&serde_json::to_string_pretty(&document).context("cannot show the status")?);
    Ok(())
}
