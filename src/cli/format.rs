//! `pando format DIR NAME`

use crate::block::Compression;
use crate::cli::{bucket_of, invalid, small_runtime, value, values, volume_of};
use crate::meta::setting::BLOCK_KIB;
use crate::volume::{self, Created, NewVolume, Place, VolumeError, place};
use anyhow::Context;
use clap::ArgAction;
use std::path::PathBuf;
use tracing::{info, warn};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the volume; created if missing.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// Name of the volume: 3 to 63 lower-case letters, digits and dashes.
    name: String,
    /// Size of blocks, in KiB, a power of two from 64K to 16M [default: 4M].
    #[arg(long, value_name = "SIZE")]
    block_size: Option<String>,
    /// Bytes the volume may use, in GiB, 0 = unlimited [default: 0].
    #[arg(long, value_name = "SIZE")]
    capacity: Option<String>,
    /// Inodes the volume may have, 0 = unlimited [default: 0].
    #[arg(long, value_name = "N")]
    inodes: Option<String>,
    /// Days deleted files are kept, 0 = they are not [default: 1; 0 for a local volume].
    #[arg(long, value_name = "DAYS")]
    trash_days: Option<String>,
    /// Spread the objects over 256 prefixes.
    #[arg(long, action = ArgAction::SetTrue)]
    hash_prefix: bool,
    /// Compression of blocks: none, lz4 or zstd [default: none].
    #[arg(long, value_name = "ALGORITHM")]
    compress: Option<String>,
    /// File with the RSA private key (PEM) that encrypts the objects; its passphrase is taken from JFS_RSA_PASSPHRASE.
    #[arg(long, value_name = "FILE")]
    encrypt_rsa_key: Option<PathBuf>,
    /// Algorithm of that: aes256gcm-rsa or chacha20-rsa [default: aes256gcm-rsa].
    #[arg(long, value_name = "ALGORITHM")]
    encrypt_algo: Option<String>,
    /// Where the objects are [default: file, a directory].
    #[arg(long, value_name = "TYPE")]
    storage: Option<String>,
    /// Bucket URL, or directory of the objects.
    #[arg(long, value_name = "BUCKET")]
    bucket: Option<String>,
    /// Access key of the bucket.
    #[arg(long, value_name = "KEY")]
    access_key: Option<String>,
    /// Secret key of the bucket.
    #[arg(long, value_name = "KEY")]
    secret_key: Option<String>,
    /// Session token for the bucket.
    #[arg(long, value_name = "TOKEN")]
    session_token: Option<String>,
    /// Storage class of new objects.
    #[arg(long, value_name = "CLASS")]
    storage_class: Option<String>,
    /// Buckets over which the objects are spread.
    #[arg(long, value_name = "N")]
    shards: Option<String>,
    /// POSIX ACLs; cannot be switched off again.
    #[arg(long, action = ArgAction::SetTrue)]
    enable_acl: bool,
    /// Take a bucket that holds other objects under this name.
    #[arg(long, action = ArgAction::SetTrue)]
    force: bool,
    /// Leave an existing volume as it is.
    #[arg(long, action = ArgAction::SetTrue)]
    no_update: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    volume::check_name(&args.name).map_err(anyhow::Error::msg)?;
    let runtime = small_runtime()?;
    let found = match url.dir() {
        // Without looking inside nothing would tell a volume from other files.
        Some(dir) if place(dir).with_context(|| format!("cannot look into {url}"))? != Place::Volume => None,
        _ => match runtime.block_on(volume::setting(&url)) {
            Ok(setting) => Some(setting),
            Err(VolumeError::NotFormatted(_)) => None,
            Err(error) => return Err(error.into()),
        },
    };
    if found.is_some() && args.no_update {
        return Ok(());
    }
    let mut wanted = wanted(args)?;
    if found.is_none() {
        keys_from_environment(&mut wanted);
    }
    let setting = match runtime.block_on(volume::create(&url, &wanted))? {
        Created::New(setting) | Created::Updated(setting) => setting,
    };
    info!("Data use {}", volume::location(&setting, url.dir()));
    info!("Volume is formatted as {}", serde_json::to_string_pretty(&setting.without_secrets()).context("cannot show the setting")?);
    Ok(())
}

fn wanted(args: &Args) -> anyhow::Result<NewVolume> {
    let number = |option: &str, text: &Option<String>| -> anyhow::Result<Option<u64>> {
        text.as_ref().map(|text| text.parse().map_err(|_| invalid(text, option, "a number is wanted"))).transpose()
    };
    if let Some(name) = &args.compress {
        Compression::named(name).map_err(anyhow::Error::msg)?;
    }
    let encrypt_key = match &args.encrypt_rsa_key {
        None => None,
        Some(path) => Some(std::fs::read_to_string(path).with_context(|| format!("cannot read the key {}", path.display()))?),
    };
    // An empty key is what a script passes that has none.
    let given = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    Ok(NewVolume {
        name: args.name.clone(),
        block_kib: args.block_size.as_deref().map(block_kib).transpose()?,
        capacity: match &args.capacity {
            None => None,
            text => Some(value("capacity", text.as_ref(), 0, |text| values::size(text, 'G'))?),
        },
        inodes: number("inodes", &args.inodes)?,
        hash_prefix: args.hash_prefix.then_some(true),
        storage: given(&args.storage),
        bucket: given(&args.bucket).map(|text| bucket_of(args.storage.as_deref(), &text)).transpose()?,
        access_key: given(&args.access_key),
        secret_key: given(&args.secret_key),
        session_token: given(&args.session_token),
        storage_class: given(&args.storage_class),
        compression: args.compress.clone(),
        encrypt_key,
        encrypt_algo: given(&args.encrypt_algo),
        shards: number("shards", &args.shards)?,
        trash_days: number("trash-days", &args.trash_days)?,
        enable_acl: args.enable_acl,
        force: args.force,
    })
}

/// Keys that are not on the command line of a new volume come from the environment (cli §4.1).
fn keys_from_environment(wanted: &mut NewVolume) {
    for (key, name) in
        [(&mut wanted.access_key, "ACCESS_KEY"), (&mut wanted.secret_key, "SECRET_KEY"), (&mut wanted.session_token, "SESSION_TOKEN")]
    {
        if key.is_none() {
            *key = std::env::var(name).ok().filter(|text| !text.is_empty());
        }
    }
}

/// Rounded down to a power of two and limited, with a warning.
fn block_kib(text: &str) -> anyhow::Result<u64> {
    let asked = value("block-size", Some(&text.to_string()), 0, |text| values::size(text, 'K'))? / 1024;
    let limited = asked.clamp(*BLOCK_KIB.start(), *BLOCK_KIB.end());
    let rounded = 1 << limited.ilog2();
    if rounded != asked {
        warn!("--block-size {text} becomes {rounded}K: a power of two from 64K to 16M is wanted");
    }
    Ok(rounded)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::{Cli, Command};
    use clap::Parser;

    #[test]
    fn block_sizes_are_powers_of_two_within_limits() {
        for (text, kib) in [("4M", 4096), ("100", 64), ("1", 64), ("0", 64), ("3M", 2048), ("1G", 16384), ("64K", 64)] {
            assert_eq!(block_kib(text).expect(text), kib, "{text}");
        }
        assert!(block_kib("x").is_err());
    }

    fn wanted_of(line: &str) -> anyhow::Result<NewVolume> {
        let words: Vec<String> = line.split_whitespace().map(String::from).collect();
        let normal = crate::cli::args::normalise(&<Cli as clap::CommandFactory>::command(), &words).expect(line);
        match Cli::try_parse_from(normal.args).expect(line).command {
            Command::Format(args) => wanted(&args),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn options_say_what_the_volume_is_to_be() {
        let line = "format --storage s3 --bucket http://rustfs:9000/djinnbot --access-key ak --secret-key sk --trash-days 7 \
                    redis://redis:6379/2 djinnbot";
        let wanted = wanted_of(line).expect("wanted");
        assert_eq!((wanted.name.as_str(), wanted.storage.as_deref(), wanted.trash_days), ("djinnbot", Some("s3"), Some(7)));
        assert_eq!(wanted.bucket.as_deref(), Some("http://rustfs:9000/djinnbot"));
        assert_eq!((wanted.access_key.as_deref(), wanted.secret_key.as_deref()), (Some("ak"), Some("sk")));
        let wanted = wanted_of("format --bucket x/y --access-key= --compress lz4 vol name").expect("wanted");
        assert!(wanted.bucket.is_some_and(|bucket| bucket.starts_with('/') && bucket.ends_with("/x/y/")));
        assert_eq!((wanted.access_key, wanted.compression.as_deref()), (None, Some("lz4")));
        for (line, what) in [
            ("format --compress gzip vol name", "Unsupported compress algorithm: \"gzip\""),
            ("format --trash-days x vol name", "trash-days"),
            ("format --encrypt-rsa-key /no/such/key vol name", "/no/such/key"),
        ] {
            assert!(format!("{:#}", wanted_of(line).expect_err(line)).contains(what));
        }
    }
}
