//! Draining: a small block that is kept beside the metadata becomes an object, as every other client expects it.
//!
//! First the object is stored, durably, then the frame is removed. So at every moment one of them is there, as long as a record names the
//! slice:
//! - A crash before the object is stored leaves the frame; whoever drains next stores it. One between the two leaves both, and the next
//!   drainer stores the same block once more, under the same name.
//! - Two that drain the same frame do the same twice. An absent frame never authorises a deletion: it means that somebody else has finished, or
//!   that the commit which removed the last record has taken it along.
//! - In the latter case an object that is stored a moment later is garbage that nobody names. The deletion of the slice waits some seconds for
//!   it (`delete.rs`); what comes later than that `gc` finds.
//! - A reader looks for the frame first and then for the object. If the frame has gone in between the object is there.

use crate::chunk::Chunks;
use crate::env::join;
use crate::types::{BoxFuture, Errno, SliceId};
use std::collections::BTreeSet;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Frames drained together: their bytes are one answer of the store, 4 MiB at most.
pub const DRAINED_MAX: usize = 64;
/// Frames on their way at once. The upload slots of the volume bound them together with everything else.
const UPLOADS_MAX: usize = 16;

/// What became of a batch.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Drained {
    /// Slices that have no frame any more.
    pub done: BTreeSet<SliceId>,
    /// How many of them are objects because of this.
    pub stored: u64,
    /// Bytes of their frames.
    pub bytes: u64,
    /// Why others have theirs still.
    pub failed: Option<Errno>,
}

impl Chunks {
    /// Stores the frames of these slices as objects, then removes them. Sizes of slices that are known spare looking into the frame. What
    /// fails stays as it is.
    pub async fn drain_frames(&self, slices: &[(SliceId, Option<u32>)]) -> Result<Drained, Errno> {
        let ids: Vec<_> = slices.iter().map(|(id, _)| *id).collect();
        let frames = self.meta.frames_of(&ids).await?;
        let mut drained = Drained::default();
        let mut uploads: Vec<BoxFuture<'_, Result<_, Errno>>> = Vec::new();
        for (&(id, size), frame) in slices.iter().zip(frames) {
            match frame {
                // Somebody was faster, or the slice is deleted.
                None => drop(drained.done.insert(id)),
                Some(frame) => {
                    let bytes = frame.len() as u64;
                    uploads.push(Box::pin(async move { Ok((id, bytes, self.blocks.store_frame(id, size, frame).await)) }));
                }
            }
        }
        let outcomes = join(uploads, UPLOADS_MAX).await?;
        let stored: Vec<_> = outcomes.iter().filter(|(.., outcome)| outcome.is_ok()).map(|(id, bytes, _)| (*id, *bytes)).collect();
        if !stored.is_empty() {
            self.meta.journal().note_stored();
        }
        self.meta.drop_frames(stored.iter().map(|(id, _)| *id)).await?;
        drained.stored = stored.len() as u64;
        drained.bytes = stored.iter().map(|(_, bytes)| bytes).sum();
        drained.done.extend(stored.into_iter().map(|(id, _)| id));
        drained.failed = outcomes.iter().find_map(|(.., outcome)| outcome.as_ref().err().map(|error| error.errno()));
        Ok(drained)
    }

    /// Drains some of the frames this process has committed, the oldest of those that are due. Answers when the next are due; `None` if there
    /// are none.
    pub async fn drain_own(&self, at_once: bool) -> Result<Option<Duration>, Errno> {
        let (due, next) = self.meta.journal().due(DRAINED_MAX, at_once);
        if due.is_empty() {
            return Ok(next);
        }
        let slices: Vec<_> = due.iter().map(|frame| (frame.id, Some(frame.size))).collect();
        let drained = self.drain_frames(&slices).await?;
        self.meta.journal().settle(&drained.done);
        drained.failed.map_or(Ok(next), Err)
    }

    /// Drains what this process has committed, at its end. What is left after `time` others drain. Answers how many are left.
    pub async fn drain_own_within(&self, time: Duration) -> usize {
        // A failure was logged where it happened; a bucket that is away is not waited for.
        let all = async { while matches!(self.drain_own(true).await, Ok(Some(_))) {} };
        let _ = timeout_at(Instant::now() + time, all).await;
        self.meta.journal().due(usize::MAX, true).0.len()
    }

    /// Drains every frame of the volume that is there when this is called, whoever has committed it. Answers how many became objects.
    pub async fn drain_all(&self) -> Result<u64, Errno> {
        let mut left = self.meta.look_at_journal().await?.count;
        let mut stored = 0;
        while left > 0 {
            let oldest = self.meta.oldest_frames(left.min(DRAINED_MAX as u64) as u32).await?;
            if oldest.is_empty() {
                break;
            }
            let drained = self.drain_frames(&oldest.iter().map(|(id, _)| (*id, None)).collect::<Vec<_>>()).await?;
            if let Some(errno) = drained.failed {
                return Err(errno);
            }
            stored += drained.stored;
            left = left.saturating_sub(oldest.len() as u64);
        }
        Ok(stored)
    }
}

#[cfg(test)]
mod tests;
