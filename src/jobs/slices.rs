//! Deleting the objects of slices that nothing names any more: those we are told of, and those a crash or a failing bucket has left.

use crate::chunk::Chunks;
use crate::jobs::Stop;
use crate::jobs::timer::jittered;
use crate::meta::{Meta, key};
use crate::types::SliceId;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::mpsc;

/// Slices deleted together, behind one sync.
const SLICES_MAX: usize = 100;
/// The same where each batch waits for some seconds.
const SLICES_FAR_MAX: usize = 1000;
/// After the first, others are waited for this long.
const GATHER_TIME: Duration = Duration::from_millis(20);
/// Longest pause after a batch; usually it is as long as the batch took.
const PAUSE_MAX: Duration = Duration::from_millis(200);
/// How often all reference counts are looked through. It is a long list, and what is on it merely takes space.
const PERIOD: Duration = Duration::from_secs(600);
/// While other clients use the volume, one of them does it within this time (metadata §5.5).
const TURN_SECONDS: i64 = 3240;

/// `unasked`: also looks for what was left.
pub(super) async fn run(meta: Arc<Meta>, chunks: Arc<Chunks>, mut asked: mpsc::Receiver<(SliceId, u32)>, unasked: bool, mut stop: Stop) {
    let slices_max = if meta.is_far() { SLICES_FAR_MAX } else { SLICES_MAX };
    if unasked {
        scan(&meta, &chunks, &mut stop).await;
    }
    let mut next_scan = tokio::time::Instant::now() + jittered(PERIOD);
    loop {
        let mut batch = Vec::new();
        tokio::select! {
            biased;
            () = stop.stopped() => return,
            Some(first) = asked.recv() => batch.push(first),
            () = tokio::time::sleep_until(next_scan), if unasked => {
                scan(&meta, &chunks, &mut stop).await;
                next_scan = tokio::time::Instant::now() + jittered(PERIOD);
                continue;
            }
        }
        if stop.pause(GATHER_TIME).await {
            return;
        }
        while batch.len() < slices_max
            && let Ok(slice) = asked.try_recv()
        {
            batch.push(slice);
        }
        let begin = crate::env::instant();
        // A failure was logged where it happened, and the scan finds what is left.
        let _ = stop.or(chunks.delete_slices(&batch)).await;
        if stop.pause(begin.elapsed().min(PAUSE_MAX)).await {
            return;
        }
    }
}

/// All slices whose count is below zero, until none is left or something fails. Of several clients one does it.
async fn scan(meta: &Meta, chunks: &Chunks, stop: &mut Stop) {
    if meta.store().shared() && meta.elect(&key::NEXT_CLEANUP_SLICES, TURN_SECONDS).await != Ok(true) {
        return;
    }
    let slices_max = if meta.is_far() { SLICES_FAR_MAX } else { SLICES_MAX };
    while !stop.is_stopped() {
        let begin = crate::env::instant();
        let Ok(slices) = meta.pending_slices(slices_max as u32).await else { return };
        if slices.is_empty()
            || !matches!(stop.or(chunks.delete_slices(&slices)).await, Some(Ok(())))
            || stop.pause(begin.elapsed().min(PAUSE_MAX)).await
        {
            return;
        }
    }
}
