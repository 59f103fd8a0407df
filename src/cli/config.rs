//! `pando config DIR [FLAGS]`: shows or changes the setting of a volume (cli §4.2).

use crate::cli::values::{bandwidth, count_shown, human_bytes};
use crate::cli::{bucket_of, invalid, say, small_runtime, value, values, volume_of};
use crate::meta::setting::Setting;
use crate::volume::{self, Change};
use anyhow::{Context, bail};
use clap::ArgAction;
use std::io::{BufRead, Write};

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// Type of the bucket.
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
    /// Bytes the volume may use, in GiB, 0 = unlimited.
    #[arg(long, value_name = "SIZE")]
    capacity: Option<String>,
    /// Inodes the volume may have, 0 = unlimited.
    #[arg(long, value_name = "N")]
    inodes: Option<String>,
    /// Days deleted files are kept, 0 = they are not.
    #[arg(long, value_name = "DAYS")]
    trash_days: Option<String>,
    /// Mbit/s each client may upload, 0 = unlimited.
    #[arg(long, value_name = "MBPS")]
    upload_limit: Option<String>,
    /// Mbit/s each client may download, 0 = unlimited.
    #[arg(long, value_name = "MBPS")]
    download_limit: Option<String>,
    /// POSIX ACLs; cannot be switched off again.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    enable_acl: Option<bool>,
    /// Statistics of directories.
    #[arg(long, action = ArgAction::Set, num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    dir_stats: Option<bool>,
    /// Oldest client that may use the volume.
    #[arg(long, value_name = "VERSION")]
    min_client_version: Option<String>,
    /// Newest client that may use the volume.
    #[arg(long, value_name = "VERSION")]
    max_client_version: Option<String>,
    /// Encrypt secrets that an old client stored as they are.
    #[arg(long, action = ArgAction::SetTrue)]
    encrypt_secret: bool,
    /// Answer every question with yes.
    #[arg(long, short = 'y', action = ArgAction::SetTrue)]
    yes: bool,
    /// Skip checks and questions.
    #[arg(long, action = ArgAction::SetTrue)]
    force: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    let change = change(args)?;
    let runtime = small_runtime()?;
    let Some(change) = change else {
        let setting = runtime.block_on(volume::setting(&url))?;
        say(&serde_json::to_string_pretty(&setting.without_secrets()).context("cannot show the setting")?);
        return Ok(());
    };
    let planned = runtime.block_on(volume::plan_change(&url, &change))?;
    let lines = lines(&planned.old, &planned.new, &change);
    if lines.is_empty() {
        say("Nothing changed.");
        return Ok(());
    }
    for concern in &planned.concerns {
        // Coloured even if nobody looks, as scripts that search for it expect.
        print_now(&format!("\x1b[33mWARNING\x1b[0m: {concern}\n"));
        if !args.yes && !proceed(&mut std::io::stdin().lock()) {
            bail!("Aborted.");
        }
    }
    runtime.block_on(volume::commit_change(&planned))?;
    lines.iter().for_each(|line| say(line));
    Ok(())
}

/// What is asked for; `None` if nothing is.
fn change(args: &Args) -> anyhow::Result<Option<Change>> {
    let number = |option: &str, text: &Option<String>| -> anyhow::Result<Option<u64>> {
        text.as_ref().map(|text| text.parse().map_err(|_| invalid(text, option, "a number is wanted"))).transpose()
    };
    let limit = |option: &str, text: &Option<String>| -> anyhow::Result<Option<u64>> {
        text.as_ref().map(|text| bandwidth(text).map_err(|why| invalid(text, option, &why))).transpose()
    };
    let capacity = match &args.capacity {
        None => None,
        text => Some(value("capacity", text.as_ref(), 0, |text| values::size(text, 'G'))?),
    };
    let change = Change {
        storage: args.storage.clone(),
        bucket: args.bucket.as_ref().map(|text| bucket_of(args.storage.as_deref(), text)).transpose()?,
        access_key: args.access_key.clone(),
        secret_key: args.secret_key.clone(),
        session_token: args.session_token.clone(),
        storage_class: args.storage_class.clone(),
        capacity,
        inodes: number("inodes", &args.inodes)?,
        trash_days: number("trash-days", &args.trash_days)?,
        upload_limit: limit("upload-limit", &args.upload_limit)?,
        download_limit: limit("download-limit", &args.download_limit)?,
        enable_acl: args.enable_acl,
        dir_stats: args.dir_stats,
        min_client_version: args.min_client_version.clone(),
        max_client_version: args.max_client_version.clone(),
        encrypt_secret: args.encrypt_secret,
        force: args.force,
    };
    let nothing = Change { force: args.force, ..Change::default() };
    Ok((change != nothing).then_some(change))
}

/// One line for each field that differs, in the order of their names. Secrets count as different whenever they are given.
fn lines(old: &Setting, new: &Setting, change: &Change) -> Vec<String> {
    let mbps = |limit: u64| format!("{limit}.0 Mbps");
    let shown = |setting: &Setting| {
        [
            ("access-key", setting.access_key().to_string()),
            ("bucket", setting.bucket().into()),
            ("capacity", human_bytes(setting.capacity())),
            ("dir-stats", setting.dir_stats().to_string()),
            ("download-limit", mbps(setting.download_limit())),
            ("enable-acl", setting.enable_acl().to_string()),
            ("inodes", count_shown(setting.inodes())),
            ("max-client-version", setting.max_client_version().into()),
            ("min-client-version", setting.min_client_version().into()),
            ("storage", setting.storage().into()),
            ("storage-class", setting.storage_class().into()),
            ("trash-days", setting.trash_days().to_string()),
            ("upload-limit", mbps(setting.upload_limit())),
        ]
    };
    let mut lines: Vec<(&str, String)> = shown(old)
        .into_iter()
        .zip(shown(new))
        .filter(|((_, old), (_, new))| old != new)
        .map(|((name, old), (_, new))| (name, format!("{name:>10}: {old} -> {new}")))
        .collect();
    for (name, given) in [("secret-key", change.secret_key.is_some()), ("session-token", change.session_token.is_some())] {
        if given {
            lines.push((name, format!("{name:>10}: updated")));
        }
    }
    if change.encrypt_secret && old != new && lines.is_empty() {
        lines.push(("encrypt-secret", "encrypt-secret: updated".into()));
    }
    lines.sort_by_key(|(name, _)| *name);
    // A limit too small to be seen in rounded numbers is a change all the same.
    if lines.is_empty() && old.capacity() != new.capacity() {
        lines.push(("capacity", format!("{:>10}: {} B -> {} B", "capacity", old.capacity(), new.capacity())));
    }
    lines.into_iter().map(|(_, line)| line).collect()
}

/// Asks until the answer is one. No answer is no.
pub fn proceed(input: &mut impl BufRead) -> bool {
    print_now("Proceed anyway? [y/N]: ");
    loop {
        let mut line = String::new();
        if !input.read_line(&mut line).is_ok_and(|read| read > 0) {
            return false;
        }
        match line.trim().to_ascii_lowercase().as_str() {
            "y" | "yes" => return true,
            "" | "n" | "no" => return false,
            _ => print_now("Please input y(yes) or n(no): "),
        }
    }
}

fn print_now(text: &str) {
    let mut out = std::io::stdout();
    // Whoever cannot see the question does not answer it either.
    let _ = write!(out, "{text}").and_then(|()| out.flush());
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn lines_are_those_scripts_know() {
        let old = Setting::new("vol", "u", "s3", "http://x/b", 4096);
        let mut new = old.clone();
        for (field, value) in [
            ("Capacity", json!(10u64 << 30)),
            ("Inodes", json!(1_000_000)),
            ("TrashDays", json!(3)),
            ("UploadLimit", json!(100)),
            ("EnableACL", json!(true)),
            ("MinClientVersion", json!("1.2.0-A")),
        ] {
            new.set(field, value);
        }
        let change = Change { secret_key: Some("sk".into()), ..Change::default() };
        let expected = [
            "  capacity: 0 B -> 10 GiB",
            "enable-acl: false -> true",
            "    inodes: 0 -> 1,000,000",
            "min-client-version: 1.1.0-A -> 1.2.0-A",
            "secret-key: updated",
            "trash-days: 0 -> 3",
            "upload-limit: 0.0 Mbps -> 100.0 Mbps",
        ];
        assert_eq!(lines(&old, &new, &change), expected);
        assert!(lines(&old, &old, &Change::default()).is_empty());
    }

    #[test]
    fn only_yes_goes_on() {
        for (input, answer) in
            [("y\n", true), ("YES\n", true), ("\n", false), ("no\n", false), ("", false), ("what\ny\n", true), ("what\n", false)]
        {
            assert_eq!(proceed(&mut input.as_bytes()), answer, "{input:?}");
        }
    }
}
