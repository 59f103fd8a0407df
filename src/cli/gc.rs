//! `pando gc META-URL`

use crate::cli::progress::Watch;
use crate::cli::{invalid, say, volume_of};
use crate::volume::{self, Amount, GcOptions, GcSummary};
use anyhow::{Context, bail};
use clap::ArgAction;
use serde_json::json;
use tracing::{error, info};

/// Seconds for which an object is too young to be called a leak: nobody stores one so long before the record that names it.
const AGE_MIN_S: i64 = 3600;
/// Variable with another number of them.
const AGE_MIN: &str = "JFS_GC_SKIPPEDTIME";
/// Most deletions at once that can be asked for.
const THREADS_MAX: usize = 10_000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Directory of the volume.
    #[arg(value_name = "DIR|META-URL")]
    volume: String,
    /// Delete what is of no use; otherwise it is only counted.
    #[arg(long, action = ArgAction::SetTrue)]
    delete: bool,
    /// Compact chunks of many records first.
    #[arg(long, action = ArgAction::SetTrue)]
    compact: bool,
    /// Deletions and compactions at once [default: 10].
    #[arg(long, short = 'p', value_name = "N")]
    threads: Option<String>,
    /// Print the result as JSON.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

/// Runs the command.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let url = volume_of(&args.volume)?;
    let threads = match &args.threads {
        None => 10,
        Some(text) => match text.parse() {
            Ok(n) if n <= THREADS_MAX => n,
            _ => return Err(invalid(text, "threads", &format!("a number up to {THREADS_MAX} is wanted"))),
        },
    };
    if threads == 0 && (args.delete || args.compact) {
        bail!("threads should be greater than 0 to delete or compact objects");
    }
    let options = GcOptions { delete: args.delete, compact: args.compact, threads: threads.max(1), age_min_s: age_min() };
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start threads")?;
    let watch = Watch::start("gc", args.json);
    let summary = runtime.block_on(volume::gc(&url, options));
    drop(watch);
    let summary = summary?;
    if args.json {
        say(&document(&summary).to_string());
    }
    show(&summary, options);
    if summary.failed > 0 {
        bail!("{} leaked objects could not be deleted; see the lines above", summary.failed);
    }
    Ok(())
}

fn age_min() -> i64 {
    match std::env::var(AGE_MIN) {
        Ok(text) if !text.is_empty() => text.parse().ok().filter(|seconds| *seconds >= 0).unwrap_or_else(|| {
            error!("parse {AGE_MIN}={text}: a number of seconds is wanted; using {AGE_MIN_S}");
            AGE_MIN_S
        }),
        _ => AGE_MIN_S,
    }
}

fn document(found: &GcSummary) -> serde_json::Value {
    let amount = |Amount { count, bytes }: Amount| json!({ "Count": count, "Bytes": bytes });
    json!({
        "Slices": amount(found.slices), "Scanned": found.scanned, "Valid": found.valid, "Pending": amount(found.pending),
        "Replaced": amount(found.compacted), "Leaked": amount(found.leaked), "Skipped": amount(found.skipped),
        "DeletedReplaced": amount(found.delayed), "DeletedFiles": amount(found.files), "DeletedSlices": found.deleted_slices,
        "Compactable": found.compactable, "CompactedChunks": amount(found.compacted_chunks), "CompactedRecords": found.compacted_records,
        "CutCopies": found.cut, "Failed": found.failed,
    })
}

fn show(found: &GcSummary, options: GcOptions) {
    if options.compact {
        let (chunks, records) = (found.compacted_chunks, found.compacted_records);
        info!("Compacted {} chunks ({records} slices, {} bytes).", chunks.count, chunks.bytes);
    }
    info!("using {} slices ({} bytes)", found.slices.count, found.slices.bytes);
    if options.delete || options.compact {
        info!("Deleted {} pending slices", found.deleted_slices);
    }
    let (pending, compacted, leaked) = (found.pending, found.compacted, found.leaked);
    info!(
        "scanned {} objects, {} valid, {} pending delete ({} bytes), {} compacted ({} bytes), {} leaked ({} bytes), {} delslices ({} bytes), \
         {} delfiles ({} bytes), {} skipped ({} bytes)",
        found.scanned,
        found.valid,
        pending.count,
        pending.bytes,
        compacted.count,
        compacted.bytes,
        leaked.count,
        leaked.bytes,
        found.delayed.count,
        found.delayed.bytes,
        found.files.count,
        found.files.bytes,
        found.skipped.count,
        found.skipped.bytes
    );
    if found.leaked.count > 0 && !options.delete {
        info!("Please add `--delete` to clean leaked objects");
    }
    if found.cut > 0 {
        info!("{} copies that were cut {}", found.cut, if options.delete { "are removed" } else { "can be removed: add `--delete`" });
    }
    if found.compactable > 0 {
        info!("{} chunks can be compacted: add `--compact`", found.compactable);
    }
}
