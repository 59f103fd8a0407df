//! Compacting the chunks we are told of, one at a time: it reads and writes as much as a busy application.

use crate::chunk::Chunks;
use crate::jobs::Stop;
use crate::types::Ino;
use std::collections::HashSet;
use std::sync::Arc;
use tokio::sync::mpsc;

/// Chunks taken from the queue together, so that one that was asked for many times is compacted once.
const GATHER_MAX: usize = 1024;

pub(super) async fn run(chunks: Arc<Chunks>, mut asked: mpsc::Receiver<(Ino, u32)>, mut stop: Stop) {
    let mut batch = Vec::new();
    loop {
        if batch.is_empty() {
            tokio::select! {
                biased;
                () = stop.stopped() => return,
                count = asked.recv_many(&mut batch, GATHER_MAX) => if count == 0 { return },
            }
        }
        let mut done = HashSet::new();
        for (ino, chunk) in batch.drain(..) {
            if stop.is_stopped() {
                return;
            }
            if done.insert((ino, chunk)) {
                // A failure was logged where it happened; the next write to the chunk asks again.
                let _ = chunks.compact(ino, chunk).await;
            }
        }
        // What was asked for meanwhile is done. If a list has grown again, its next write asks again.
        while batch.len() < GATHER_MAX
            && let Ok(next) = asked.try_recv()
        {
            if !done.contains(&next) {
                batch.push(next);
            }
        }
    }
}
