//! `pando load DIR FILE`

use crate::cli::progress::Watch;
use crate::cli::{restore_meta, say, small_runtime, volume_of};
use crate::volume::{self, DumpInput};
use clap::ArgAction;
use serde_json::json;
use std::path::PathBuf;
use tracing::{info, warn};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the new volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// Dump to load; decompressed if its name ends with .gz or .zstd [default: the standard input].
    file: Option<PathBuf>,
    /// File with the RSA private key (PEM) of an encrypted backup; its passphrase is taken from JFS_RSA_PASSPHRASE.
    #[arg(long, value_name = "FILE")]
    encrypt_rsa_key: Option<PathBuf>,
    /// Algorithm of that: aes256gcm-rsa or chacha20-rsa [default: aes256gcm-rsa].
    #[arg(long, value_name = "ALGORITHM", alias = "encrypt-alg")]
    encrypt_algo: Option<String>,
    /// The dump is of the binary form.
    #[arg(long, action = ArgAction::SetTrue)]
    binary: bool,
    /// Print the result as JSON.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    let mut input = DumpInput::open(args.file.as_deref())?;
    if let Some(pem) = restore_meta::key_text(args.encrypt_rsa_key.as_ref())? {
        input = input.decrypted(&pem, args.encrypt_algo.as_deref())?;
    }
    let watch = Watch::start("load", args.json);
    let loaded = small_runtime()?.block_on(volume::load(&url, &mut input, args.binary));
    drop(watch);
    let loaded = loaded?;
    if args.json {
        say(&json!({
            "Inodes": loaded.inodes, "Bytes": loaded.space, "FirstSlice": loaded.first_slice, "SecretsRemoved": loaded.secrets_removed,
        })
        .to_string());
    }
    info!("Loaded {} inodes, {} bytes; the objects are where the setting says and were not touched", loaded.inodes, loaded.space);
    if let Some(first) = loaded.first_slice {
        warn!("the bucket has slices that the dump does not know; new ones begin with {first}, so that none is replaced");
    }
    if loaded.secrets_removed {
        warn!("secret key was removed; please correct it with `config` command");
    }
    let source = args.file.as_ref().map_or("STDIN".into(), |file| file.display().to_string());
    info!("Load metadata from {source:?} succeed");
    Ok(())
}
