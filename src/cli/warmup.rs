//! `pando warmup [PATH…]`

use crate::cli::ask::threads;
use crate::cli::progress::Watch;
use crate::cli::say;
use crate::cli::values::{human_bytes, table_left};
use crate::daemon::{Inside, Last, locate};
use crate::telemetry::progress;
use anyhow::{Context, bail};
use clap::ArgAction;
use serde_json::{Value, json};
use std::io::BufRead;
use std::path::Path;
use tracing::{error, info};

/// Paths in one request.
const PATHS_MAX: usize = 1000;

#[derive(Debug, clap::Args)]
pub struct Args {
    /// Files, or directories with all files below them.
    path: Vec<String>,
    /// More paths, one a line.
    #[arg(long, short = 'f', value_name = "FILE")]
    file: Option<String>,
    /// Blocks fetched at once [default: 50; at most 255].
    #[arg(long, short = 'p', value_name = "N")]
    threads: Option<String>,
    /// Return at once; the mount goes on.
    #[arg(long, short = 'b', action = ArgAction::SetTrue)]
    background: bool,
    /// Take the blocks out of the caches.
    #[arg(long, action = ArgAction::SetTrue)]
    evict: bool,
    /// Only tell how much is cached.
    #[arg(long, action = ArgAction::SetTrue)]
    check: bool,
    /// Print the result as JSON.
    #[arg(long, action = ArgAction::SetTrue)]
    json: bool,
}

#[derive(Default)]
struct Sum {
    files: u64,
    bytes: u64,
    blocks: u64,
    places: [u64; 3],
}

/// Runs the command. A path that cannot be worked on is reported, the others follow, and the command fails at the end.
pub fn run(args: &Args) -> anyhow::Result<()> {
    let threads = threads(args.threads.as_ref(), 50)?;
    let (action, what) = match (args.evict, args.check) {
        (true, true) => bail!("--evict and --check exclude each other"),
        (true, _) => ("evict", "evict cache"),
        (_, true) => ("check", "check cache"),
        _ => ("fill", "warmup cache"),
    };
    let mut paths = args.path.clone();
    if let Some(file) = &args.file {
        let lines = std::fs::File::open(file).with_context(|| format!("open file {file}"))?;
        for line in std::io::BufReader::new(lines).lines() {
            let line = line.with_context(|| format!("read file {file}"))?;
            paths.extend((!line.trim().is_empty()).then(|| line.trim().to_string()));
        }
    }
    if paths.is_empty() {
        info!("no path");
        return Ok(());
    }
    let (mut sum, mut failures) = (Sum::default(), 0);
    let mut batch: Vec<Inside> = Vec::new();
    let request = |batch: &[Inside]| {
        let paths: Vec<&str> = batch.iter().map(|inside| inside.path.as_str()).collect();
        json!({ "Command": "warmup", "Action": action, "Threads": threads, "Background": args.background, "Paths": paths })
    };
    let watch = Watch::start("warmup", args.json);
    progress::stage("files", 0);
    let send = |batch: &mut Vec<Inside>, sum: &mut Sum| -> anyhow::Result<()> {
        let Some(first) = batch.first() else { return Ok(()) };
        let before = (sum.files, sum.bytes);
        let answer = first.connect()?.ask(&request(batch), &mut |files, bytes| progress::set(before.0 + files, before.1 + bytes));
        batch.clear();
        sum.add(&answer?);
        Ok(())
    };
    for path in &paths {
        let inside =
            std::fs::metadata(path).with_context(|| format!("lookup {path:?}")).and_then(|_| Ok(locate(Path::new(path), Last::Followed)?));
        match inside {
            Err(error) => {
                error!("{error:#}");
                failures += 1;
            }
            Ok(inside) => {
                if batch.len() >= PATHS_MAX || batch.first().is_some_and(|first| !first.is_beside(&inside)) {
                    send(&mut batch, &mut sum)?;
                }
                batch.push(inside);
            }
        }
    }
    send(&mut batch, &mut sum)?;
    drop(watch);
    if args.json {
        let Sum { files, bytes, blocks, places: [disk, memory, metadata] } = sum;
        say(&json!({
            "Action": action, "Files": files, "Bytes": bytes, "BlockBytes": blocks, "Disk": disk, "Memory": memory, "Metadata": metadata,
            "PassedOver": failures,
        })
        .to_string());
    } else if args.background {
        info!("{what} for {} paths in background", paths.len() - failures);
    } else if args.check {
        let cached: u64 = sum.places.iter().sum();
        let percent = |part: u64| format!("{:.1}%", if sum.blocks == 0 { 0.0 } else { part as f64 * 100.0 / sum.blocks as f64 });
        let row = |(name, bytes): (&str, u64)| (bytes > 0).then(|| vec![name.into(), human_bytes(bytes), percent(bytes)]);
        let rows: Vec<_> = ["disk", "memory", "metadata"].into_iter().zip(sum.places).filter_map(row).collect();
        if !rows.is_empty() {
            say(table_left(&["Location", "Size", "Percentage"], &rows).trim_end());
        }
        info!("{what}: {} files checked, {} of {} ({}) cached", sum.files, human_bytes(cached), human_bytes(sum.blocks), percent(cached));
    } else {
        info!("{what}: {} files ({} bytes)", sum.files, human_bytes(sum.bytes));
    }
    if failures > 0 {
        bail!("{failures} of {} paths were passed over", paths.len());
    }
    Ok(())
}

impl Sum {
    fn add(&mut self, answer: &Value) {
        let number = |field: &str| answer[field].as_u64().unwrap_or(0);
        self.files += number("Files");
        self.bytes += number("Bytes");
        self.blocks += number("Blocks");
        for (place, field) in self.places.iter_mut().zip(["Disk", "Memory", "Metadata"]) {
            *place += number(field);
        }
    }
}
