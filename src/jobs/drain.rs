//! Making objects of small blocks that were committed as frames beside the metadata.
//!
//! On a server frames stay for a second. Each client drains those it has committed itself; those that are left behind by one that is gone, or
//! too slow, are drained by whoever has the turn, so that not all do the same. On a store of this host they may stay: it is as good a place as
//! any, and they are drained only so that the database does not grow without end.

use crate::chunk::{Chunks, DRAINED_MAX};
use crate::jobs::Stop;
use crate::jobs::timer::jittered;
use crate::meta::Meta;
use crate::types::Errno;
use std::sync::Arc;
use std::time::Duration;
use tokio::time::Instant;

/// How often it is looked how much is kept, and whether clients have come or gone. Bounds, with the age below, how long a frame whose writer is
/// gone is not an object, and how long one of ours is that a client of another make looks for.
const LOOK: Duration = Duration::from_secs(3);
/// The same while it is not known what somebody is who has just begun a session: he tells within two round trips.
const LOOK_UNSURE: Duration = Duration::from_millis(200);
/// Frames of this age have been left behind: their writer takes a second, and accepts no new ones while the oldest is older than three.
const LEFT_MS: i64 = 4000;
/// Pause after a failure. The request itself has been tried for half a minute by then.
const PAUSE_FAILED: Duration = Duration::from_secs(1);
/// Bytes of frames that a store of this host keeps: all small files of a large source tree.
const LOCAL_BYTES_MAX: u64 = 128 << 20;
/// What is left when it is more: draining in larger portions rests longer.
const LOCAL_BYTES_LEFT: u64 = 96 << 20;
/// How often that is looked at. The store goes through all frames to tell.
const LOCAL_LOOK: Duration = Duration::from_secs(30);
/// Longest pause after a batch there; usually it is as long as the batch took, so the foreground has half of the disk at least.
const LOCAL_PAUSE_MAX: Duration = Duration::from_millis(200);

pub(super) async fn run(meta: Arc<Meta>, chunks: Arc<Chunks>, stop: Stop) {
    if meta.is_far() { server(&meta, &chunks, stop).await } else { local(&meta, &chunks, stop).await }
}

async fn server(meta: &Meta, chunks: &Chunks, mut stop: Stop) {
    let mut look_at = Instant::now();
    while !stop.is_stopped() {
        if look_at <= Instant::now() || meta.journal().is_unsure() {
            // A failure was logged where it happened. Until it works again the journal takes nothing that it should not.
            let Some(kept) = stop.or(meta.look_at_journal()).await else { return };
            look_at = Instant::now() + jittered(LOOK);
            let left = kept.ok().and_then(|kept| kept.oldest_ms).is_some_and(|oldest| oldest + LEFT_MS < meta.store_ms());
            if left && stop.or(drain_left(meta, chunks, &stop.clone())).await.is_none() {
                return;
            }
        }
        let Some(drained) = stop.or(chunks.drain_own(false)).await else { return };
        let mut wait = look_at.saturating_duration_since(Instant::now());
        match drained {
            Ok(Some(Duration::ZERO)) => continue,
            Ok(next) => wait = wait.min(next.unwrap_or(LOOK)),
            Err(_) if stop.pause(PAUSE_FAILED).await => return,
            Err(_) => continue,
        }
        if meta.journal().is_unsure() {
            wait = wait.min(LOOK_UNSURE);
        }
        tokio::select! {
            biased;
            () = stop.stopped() => return,
            () = meta.journal().work() => {}
            () = tokio::time::sleep(wait) => {}
        }
    }
}

/// Drains what others have left behind, until there is nothing, it is the turn of another client, or something fails.
async fn drain_left(meta: &Meta, chunks: &Chunks, stop: &Stop) -> Result<(), Errno> {
    while !stop.is_stopped() {
        let now = meta.store_ms();
        let oldest = meta.oldest_frames(DRAINED_MAX as u32).await?;
        let left: Vec<_> = oldest.into_iter().filter(|(_, ms)| ms + LEFT_MS < now).map(|(id, _)| (id, None)).collect();
        if left.is_empty() {
            return meta.end_drain().await;
        }
        if !meta.begin_drain().await? {
            return Ok(());
        }
        let drained = chunks.drain_frames(&left).await?;
        meta.journal().settle(&drained.done);
        if let Some(errno) = drained.failed {
            return Err(errno);
        }
    }
    Ok(())
}

async fn local(meta: &Meta, chunks: &Chunks, mut stop: Stop) {
    while !stop.pause(jittered(LOCAL_LOOK)).await {
        // A failure was logged where it happened; it is tried again.
        let Ok(kept) = meta.look_at_journal().await else { continue };
        let Some(_) = stop.or(shrink(meta, chunks, kept.bytes, LOCAL_BYTES_MAX, LOCAL_BYTES_LEFT, &stop.clone())).await else { return };
    }
}

/// Drains the oldest if there are more than `most` bytes, until `left` are left.
async fn shrink(meta: &Meta, chunks: &Chunks, bytes: u64, most: u64, left: u64, stop: &Stop) -> Result<(), Errno> {
    if bytes <= most {
        return Ok(());
    }
    let (mut stop, mut bytes) = (stop.clone(), bytes);
    while bytes > left && meta.begin_drain().await? {
        let began = Instant::now();
        let oldest: Vec<_> = meta.oldest_frames(DRAINED_MAX as u32).await?.into_iter().map(|(id, _)| (id, None)).collect();
        let drained = chunks.drain_frames(&oldest).await?;
        if let Some(errno) = drained.failed {
            return Err(errno);
        }
        if drained.bytes == 0 || stop.pause(began.elapsed().min(LOCAL_PAUSE_MAX)).await {
            break;
        }
        bytes = bytes.saturating_sub(drained.bytes);
    }
    meta.end_drain().await
}

#[cfg(test)]
mod tests;
