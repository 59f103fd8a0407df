//! Emptying the trash of what is older than the volume keeps it, deleting slices that compaction replaced as long ago, and removing clones that were never completed.

use crate::chunk::Chunks;
use crate::jobs::Stop;
use crate::jobs::timer::jittered;
use crate::meta::ops::clone::DETACHED_SECONDS;
use crate::meta::{Meta, key};
use crate::types::Ino;
use std::sync::Arc;
use std::time::Duration;
use tracing::info;

/// How often it is looked whether the job is due.
const PERIOD: Duration = Duration::from_secs(3600);
/// Of all clients of a volume one runs it within this time (metadata §5.5).
const TURN_SECONDS: i64 = 3240;
/// Longest run; the next one goes on.
const RUN_TIME_MAX: Duration = Duration::from_secs(50 * 60);
/// Replacements whose slices are deleted together, behind one sync.
const DELAYED_MAX: usize = 100;
const DAY_SECONDS: i64 = 86_400;

pub(super) async fn run(meta: Arc<Meta>, chunks: Arc<Chunks>, mut stop: Stop) {
    loop {
        // A failure was logged where it happened; the next turn tries again. A volume that never had a trash has nothing to expire.
        let has_trash = meta.setting().trash_days() > 0 || meta.getattr(Ino::TRASH).await.is_ok();
        let is_due = has_trash || meta.detached(i64::MAX).await.is_ok_and(|clones| !clones.is_empty());
        if is_due && meta.elect(&key::LAST_CLEANUP_TRASH, TURN_SECONDS).await == Ok(true) {
            turn(&meta, &chunks, &stop).await;
        }
        if stop.pause(jittered(PERIOD)).await {
            return;
        }
    }
}

async fn turn(meta: &Meta, chunks: &Chunks, stop: &Stop) {
    let begin = crate::env::instant();
    let go_on = || !stop.is_stopped() && begin.elapsed() < RUN_TIME_MAX;
    if let Ok(hours @ 1..) = meta.expire_trash(&go_on).await {
        info!(hours, "the trash of some hours has expired");
    }
    // Clones whose process died before they were complete.
    for ino in meta.detached(meta.clock().now().sec.saturating_sub(DETACHED_SECONDS)).await.unwrap_or_default() {
        if !go_on() || meta.remove_detached(ino, &go_on).await.is_err() {
            break;
        }
    }
    let kept = i64::try_from(meta.setting().trash_days()).unwrap_or(i64::MAX).saturating_mul(DAY_SECONDS);
    let older_than = meta.clock().now().sec.saturating_sub(kept).saturating_sub(1);
    while go_on() {
        // Several records of one commit: none left means that nothing is due any more.
        match meta.drop_delayed(older_than, DELAYED_MAX).await {
            Ok(dropped) if dropped.taken > 0 => {
                if chunks.delete_slices(&dropped.dead).await.is_err() {
                    return;
                }
            }
            _ => return,
        }
    }
}
