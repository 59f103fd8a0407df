//! `pando restore-meta META-URL`

use crate::cli::progress::Watch;
use crate::cli::{bucket_of, say, small_runtime, values, volume_of};
use crate::types::Civil;
use crate::volume::{self, Backup, Source};
use anyhow::{Context, bail};
use clap::ArgAction;
use serde_json::json;
use std::path::PathBuf;
use tracing::{info, warn};

const AFTER_HELP: &str = "Mounts take a backup every hour (`mount --backup-meta`). Give --storage, --bucket and keys as they were given to \
                          `format`; the restored volume can be mounted at once.";

#[derive(Debug, clap::Args)]
#[command(after_help = AFTER_HELP)]
pub struct Args {
    /// Where the metadata goes: an empty database, or a directory that holds no metadata.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// Show the backups and restore nothing.
    #[arg(long, action = ArgAction::SetTrue)]
    list: bool,
    /// The backup to restore, by its name [default: the latest].
    #[arg(long, value_name = "NAME")]
    backup: Option<String>,
    /// Name of the volume, if the bucket has several.
    #[arg(long, value_name = "NAME")]
    name: Option<String>,
    /// Where the objects are [default: file, a directory].
    #[arg(long, value_name = "TYPE")]
    storage: Option<String>,
    /// Bucket URL, or directory of the objects [default: `objects` in DIR].
    #[arg(long, value_name = "BUCKET")]
    bucket: Option<String>,
    /// Access key of the bucket [default: that of the environment].
    #[arg(long, value_name = "KEY")]
    access_key: Option<String>,
    /// Secret key of the bucket.
    #[arg(long, value_name = "KEY")]
    secret_key: Option<String>,
    /// Session token for the bucket.
    #[arg(long, value_name = "TOKEN")]
    session_token: Option<String>,
    /// Buckets over which the objects are spread.
    #[arg(long, value_name = "N")]
    shards: Option<u64>,
    /// File with the RSA private key (PEM) of an encrypted volume; its passphrase is taken from JFS_RSA_PASSPHRASE.
    #[arg(long, value_name = "FILE")]
    encrypt_rsa_key: Option<PathBuf>,
    /// Algorithm of that: aes256gcm-rsa or chacha20-rsa [default: aes256gcm-rsa].
    #[arg(long, value_name = "ALGORITHM")]
    encrypt_algo: Option<String>,
    /// Print the result as JSON.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    let source = source(args)?;
    let runtime = small_runtime()?;
    if args.list {
        let volumes = runtime.block_on(volume::list_backups(&url, &source))?;
        if volumes.is_empty() {
            bail!("there are no backups in the bucket");
        }
        for (name, backups) in volumes {
            for Backup { name: backup, sec, bytes } in backups {
                if args.json {
                    say(&json!({ "Volume": name, "Backup": backup, "Time": Civil::of(sec).rfc3339(), "Bytes": bytes }).to_string());
                    continue;
                }
                say(&format!("{name}  {backup}  {}  {}", Civil::of(sec).rfc3339(), values::human_bytes(bytes)));
            }
        }
        return Ok(());
    }
    let watch = Watch::start("restore-meta", args.json);
    let restored = runtime.block_on(volume::restore_meta(&url, &source, args.backup.as_deref()));
    drop(watch);
    let restored = restored?;
    let (backup, loaded) = (&restored.backup, &restored.loaded);
    info!("Loaded {} inodes, {} bytes", loaded.inodes, loaded.space);
    if let Some(first) = loaded.first_slice {
        info!("new slices begin with {first}, above all that the bucket has");
    }
    if loaded.secrets_removed {
        warn!("secret key was removed; please correct it with `config` command");
    }
    if args.json {
        say(&json!({
            "Volume": restored.volume, "Backup": backup.name, "Time": Civil::of(backup.sec).rfc3339(), "Inodes": loaded.inodes,
            "Bytes": loaded.space, "FirstSlice": loaded.first_slice, "SecretsRemoved": loaded.secrets_removed,
        })
        .to_string());
        return Ok(());
    }
    say(&format!(
        "{url} is the volume {} as it was at {}. Files written later are lost, and files whose data was deleted later cannot be read: \
         `fsck` names them. Mounts of the lost metadata must not be used any more.",
        restored.volume,
        Civil::of(backup.sec).rfc3339()
    ));
    Ok(())
}

fn source(args: &Args) -> anyhow::Result<Source> {
    // An empty key is what a script passes that has none.
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    let storage = given(&args.storage);
    Ok(Source {
        bucket: given(&args.bucket).map(|text| bucket_of(storage.as_deref(), &text)).transpose()?,
        storage,
        access_key: given(&args.access_key),
        secret_key: given(&args.secret_key),
        session_token: given(&args.session_token),
        shards: args.shards,
        volume: given(&args.name),
        encrypt_key: key_text(args.encrypt_rsa_key.as_ref())?,
        encrypt_algo: given(&args.encrypt_algo),
    })
}

/// The text of a key file.
pub fn key_text(path: Option<&PathBuf>) -> anyhow::Result<Option<String>> {
    path.map(|path| std::fs::read_to_string(path).with_context(|| format!("cannot read the key {}", path.display()))).transpose()
}
