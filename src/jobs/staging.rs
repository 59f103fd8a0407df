//! Uploading staged blocks, oldest first: what this process has staged, and what others have left in its cache directories.

use crate::block::BlockStore;
use crate::env::join;
use crate::jobs::Stop;
use crate::jobs::timer::jittered;
use crate::meta::Meta;
use crate::types::BoxFuture;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;
use tracing::warn;

/// Blocks uploaded at once at most; the upload slots bound them together with what writers wait for.
const UPLOADS_MAX: usize = 16;
/// Blocks asked for at once.
const BATCH_MAX: usize = 64;
/// How often the directories are looked through for what a process of this host has left behind. Costs nothing where nothing is staged.
const SCAN_EVERY: Duration = Duration::from_secs(60);
/// Pause after a failure that would hit the next block, too.
const PAUSE_FAILED: Duration = Duration::from_secs(1);
/// A block that waits for so long beyond the delay is told about, and again each time this has passed.
const LATE: Duration = Duration::from_secs(600);

pub(super) async fn run(meta: Arc<Meta>, blocks: Arc<BlockStore>, mut stop: Stop) {
    let Some(staging) = blocks.staging().cloned() else { return };
    let (mut scan_at, mut told_at) = (Instant::now(), Instant::now() + LATE);
    while !stop.is_stopped() {
        if scan_at <= Instant::now() {
            let scanned = {
                let staging = Arc::clone(&staging);
                stop.or(tokio::task::spawn_blocking(move || staging.scan())).await
            };
            match scanned {
                None => return,
                Some(Ok(Ok(_))) => {}
                Some(Ok(Err(error))) => warn!("cannot look for staged blocks: {error}; it is tried again"),
                Some(Err(error)) => warn!("cannot look for staged blocks: {error}; it is tried again"),
            }
            scan_at = Instant::now() + jittered(SCAN_EVERY);
        }
        if told_at <= Instant::now() {
            told_at = Instant::now() + LATE;
            let stats = staging.stats();
            if stats.blocks > 0 && !staging.waits_for(stats.oldest_seconds, LATE) {
                warn!(
                    "{} staged blocks ({} bytes) are not in the bucket, the oldest for {} s; other hosts cannot read them, and they are lost with this disk",
                    stats.blocks, stats.bytes, stats.oldest_seconds
                );
            }
        }
        // A bucket that has become that of another volume must not get them.
        let due = if meta.is_disowned() { Default::default() } else { staging.due(BATCH_MAX) };
        if !due.blocks.is_empty() {
            let uploads = due.blocks.iter().map(|&block| -> BoxFuture<'_, Result<Option<String>, Infallible>> {
                let (blocks, staging) = (&blocks, &staging);
                Box::pin(async move {
                    let outcome = blocks.upload_staged(block).await;
                    if outcome.is_err() {
                        staging.put_off(&block);
                    }
                    Ok(outcome.err().map(|error| format!("block {block}: {error}")))
                })
            });
            let Some(Ok(outcomes)) = stop.or(join(uploads.collect(), UPLOADS_MAX)).await else { return };
            let failures: Vec<&String> = outcomes.iter().flatten().collect();
            let failed = failures.len();
            if let Some(first) = failures.first() {
                warn!("{failed} staged blocks could not be uploaded; they stay on disk and are tried again, the first of them: {first}");
            }
            if failed > 0 && stop.pause(PAUSE_FAILED).await {
                return;
            }
            continue;
        }
        let wait = scan_at.saturating_duration_since(Instant::now()).min(due.next.unwrap_or(SCAN_EVERY));
        tokio::select! {
            biased;
            () = stop.stopped() => return,
            () = staging.work() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}
