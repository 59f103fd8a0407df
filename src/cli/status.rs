//! `pando status DIR`

use crate::cli::program::Program;
use crate::cli::{say, small_runtime, value, volume_of};
use crate::volume::{self, Stores};
use anyhow::Context;
use clap::ArgAction;

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
                }
                Ok(document)
            }
            sid => volume::session(&stores, sid).await,
        }
    })?;
    say(&serde_json::to_string_pretty(&document).context("cannot show the status")?);
    Ok(())
}
